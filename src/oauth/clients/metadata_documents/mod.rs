//! Client ID metadata documents: the `client_id` is the URL of a document with the client's
//! metadata (draft-ietf-oauth-client-id-metadata-document).
//!
//! Any authorization request can make this service fetch a URL. To prevent server-side request
//! forgery (SSRF), it connects only to public addresses, connects to exactly the addresses that it
//! has checked, follows no redirects, and reads at most 5 KB.

mod fetch_permits;
mod public_addresses;

use std::{net::IpAddr, sync::Arc, time::Duration};

use quick_cache::sync::Cache;
use reqwest::{
    StatusCode,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap},
};
use tokio::time::timeout;
use url::{Host, Url};

use super::client_metadata::{ClientMetadata, client_from_metadata};
use crate::{
    config::MetadataDocuments,
    env::Env,
    model::oauth::client::{Client, ClientAuthMethod, ClientOrigin},
    oauth::{OAuthError, ProtocolError},
};

use fetch_permits::FetchPermits;
use public_addresses::{PublicAddressResolver, is_public};

/// Maximum size of a document, in bytes.
const MAX_BYTES: usize = 5 * 1024;
/// Timeout of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum number of cached documents.
const CACHE_CAPACITY: usize = 1000;
/// Maximum length of a `client_id` that is a URL, in bytes.
const MAX_URL: usize = 500;
/// Cache lifetime of a document without `max-age`, and the maximum cache lifetime.
const DEFAULT_MAX_AGE: Duration = Duration::from_mins(5);
const LONGEST_MAX_AGE: Duration = Duration::from_hours(24);

/// Fetches client metadata documents and caches them according to their `Cache-Control` header.
pub struct MetadataDocumentFetcher {
    mode: MetadataDocuments,
    env: Env,
    http: reqwest::Client,
    fetch_permits: FetchPermits,
    native_schemes: Arc<[String]>,
    /// Clients by URL, each with its expiry on the monotonic clock.
    cache: Cache<String, (Arc<Client>, Duration)>,
}

impl MetadataDocumentFetcher {
    /// Creates a fetcher with an empty cache.
    ///
    /// # Errors
    /// A message if TLS cannot be set up.
    pub fn new(
        mode: MetadataDocuments,
        native_schemes: &Arc<[String]>,
        env: Env,
    ) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would resolve names itself and so bypass the address check.
            .no_proxy()
            .dns_resolver(Arc::new(PublicAddressResolver::new(mode)))
            .timeout(FETCH_TIMEOUT)
            .user_agent(concat!("call2me-auth/", env!("CARGO_PKG_VERSION")))
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| format!("cannot set up the HTTP client: {error}"))?;
        Ok(Self {
            mode,
            env,
            http,
            fetch_permits: FetchPermits::new(),
            native_schemes: Arc::clone(native_schemes),
            cache: Cache::new(CACHE_CAPACITY),
        })
    }

    /// Returns true if clients with metadata documents are accepted.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.mode != MetadataDocuments::Off
    }

    /// Returns the client that the document at a URL describes, from the cache or the network. The
    /// client has a new id. `ip` is the address of the request, whose fetches are limited.
    ///
    /// # Errors
    /// `invalid_client` if the document cannot be fetched or is not valid; a 503
    /// if too many fetches are in progress.
    pub(in crate::oauth) async fn fetch_client(
        &self,
        url: &str,
        ip: IpAddr,
    ) -> Result<Client, OAuthError> {
        check_url(url, self.mode)?;
        let now = self.env.clock.monotonic();
        if let Some((client, expires_at)) = self.cache.get(url)
            && now < expires_at
        {
            return Ok((*client).clone());
        }
        let permit = timeout(FETCH_TIMEOUT, self.fetch_permits.acquire(ip)).await;
        let _permit = permit.map_err(|_| OAuthError::unavailable())?;
        let (metadata, max_age) = self.fetch(url).await?;
        let client = self.parse_client(url, &metadata)?;
        // Errors are not cached, so that a corrected document works at once.
        if !max_age.is_zero() {
            let expires_at = self.env.clock.monotonic() + max_age;
            self.cache.insert(url.to_owned(), (Arc::new(client.clone()), expires_at));
        }
        Ok(client)
    }

    async fn fetch(&self, url: &str) -> Result<(ClientMetadata, Duration), ProtocolError> {
        let failed = |error: reqwest::Error| {
            tracing::info!(%error, "cannot fetch a client metadata document");
            ProtocolError::invalid_client("cannot fetch the client metadata document")
        };
        let request = self.http.get(url).header(ACCEPT, "application/json");
        let mut response = request.send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(ProtocolError::invalid_client(
                "the URL of the client metadata document must return status 200",
            ));
        }
        if !is_json(response.headers()) {
            return Err(ProtocolError::invalid_client(
                "the client metadata document must be application/json",
            ));
        }
        let max_age = cache_lifetime(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(ProtocolError::invalid_client(
                    "the client metadata document is larger than 5 KB",
                ));
            }
            body.extend_from_slice(&chunk);
        }
        let metadata = serde_json::from_slice(&body);
        let metadata = metadata.map_err(|_| {
            ProtocolError::invalid_client("the client metadata document is malformed")
        })?;
        Ok((metadata, max_age))
    }

    fn parse_client(&self, url: &str, metadata: &ClientMetadata) -> Result<Client, ProtocolError> {
        if metadata.client_id.as_deref() != Some(url) {
            return Err(ProtocolError::invalid_client(
                "client_id in the client metadata document must be its own URL",
            ));
        }
        if metadata.client_secret.is_some() {
            return Err(ProtocolError::invalid_client(
                "a client metadata document must not contain a secret",
            ));
        }
        let keys = metadata.jwks.iter().filter_map(|set| set["keys"].as_array()).flatten();
        if keys.into_iter().any(|key| key.get("d").is_some() || key.get("k").is_some()) {
            return Err(ProtocolError::invalid_client(
                "a client metadata document must not contain private keys",
            ));
        }
        // Such a client has no shared secret. A client that declares private_key_jwt is refused
        // instead of accepted without authentication, because this server does not support it.
        let method = metadata.token_endpoint_auth_method.as_deref().unwrap_or("none");
        if ClientAuthMethod::from_name(method) != Some(ClientAuthMethod::None) {
            return Err(ProtocolError::invalid_client(
                "token_endpoint_auth_method in a client metadata document must be none",
            ));
        }
        let origin = ClientOrigin::MetadataDocument(url.to_owned());
        let client = client_from_metadata(
            &self.env,
            metadata,
            origin,
            ClientAuthMethod::None,
            &self.native_schemes,
        );
        client.map_err(|error| ProtocolError::invalid_client(error.description))
    }
}

/// Checks a `client_id` that is a URL. It must be in normalized form, so that the compared text is
/// exactly the URL that is fetched.
fn check_url(text: &str, mode: MetadataDocuments) -> Result<(), ProtocolError> {
    if mode == MetadataDocuments::Off {
        return Err(ProtocolError::invalid_client(
            "this server does not accept client metadata documents",
        ));
    }
    let url = Url::parse(text).ok().filter(|url| {
        url.as_str() == text
            && text.len() <= MAX_URL
            && url.scheme() == "https"
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
    });
    // The resolver checks the addresses of names; an address literal never reaches the resolver.
    let address = match url.as_ref().and_then(Url::host) {
        Some(Host::Domain(_)) => None,
        Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
        None => {
            return Err(ProtocolError::invalid_client(
                "a client_id that is a URL must be https and normalized, without user and fragment",
            ));
        }
    };
    if mode == MetadataDocuments::Public && address.is_some_and(|address| !is_public(address)) {
        return Err(ProtocolError::invalid_client(
            "the client metadata document is not at a public address",
        ));
    }
    Ok(())
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|text| text.split(';').next()).unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Returns the cache lifetime of a response (RFC 9111, section 5.2.2); zero: do not cache.
fn cache_lifetime(headers: &HeaderMap) -> Duration {
    let texts = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut max_age = DEFAULT_MAX_AGE;
    for directive in texts.flat_map(|text| text.split(',')) {
        let directive = directive.trim().to_ascii_lowercase();
        if ["no-store", "no-cache"].contains(&&*directive) {
            return Duration::ZERO;
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            let seconds = seconds.trim_matches('"').parse().unwrap_or(0);
            max_age = Duration::from_secs(seconds).min(LONGEST_MAX_AGE);
        }
    }
    max_age
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_that_is_not_normalized_or_public_is_rejected() {
        let check = |url: &str| check_url(url, MetadataDocuments::Public).is_ok();
        for good in [
            "https://client.example/",
            "https://client.example/oauth/metadata.json",
            "https://client.example:8443/m?v=1",
            "https://1.1.1.1/m",
        ] {
            assert!(check(good), "{good}");
        }
        for bad in [
            "https://client.example",
            "http://client.example/m",
            "https://user@client.example/m",
            "https://client.example/m#x",
            "https://client.example/a/../m",
            "https://client.example/./m",
            "https://client.example/%2e%2e/m",
            "https://CLIENT.example/m",
            "https://client.example:443/m",
            "https://client.example\\@evil.example/m",
            "https://127.0.0.1/m",
            "https://2130706433/m",
            "https://0x7f.1/m",
            "https://[::1]/m",
            "https://[::ffff:127.0.0.1]/m",
            "https://169.254.169.254/latest/meta-data",
            "https:///m",
            " https://client.example/m",
        ] {
            assert!(!check(bad), "{bad}");
        }
        assert!(check_url("https://client.example/m", MetadataDocuments::Off).is_err());
        assert!(check_url("https://127.0.0.1/m", MetadataDocuments::Any).is_ok());
    }

    #[test]
    fn cache_lifetime_follows_cache_control() {
        let seconds = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, value.parse().unwrap());
            cache_lifetime(&headers).as_secs()
        };
        assert_eq!(cache_lifetime(&HeaderMap::new()).as_secs(), 300);
        assert_eq!(seconds("public, max-age=60"), 60);
        assert_eq!(seconds("max-age=99999999"), 86_400);
        assert_eq!(seconds("max-age=60, no-cache"), 0);
        assert_eq!(seconds("No-Store"), 0);
        assert_eq!(seconds("max-age=soon"), 0);
        assert_eq!(seconds("public"), 300);
    }
}
