//! Client ID metadata documents: a client's `client_id` is the URL of a document that tells of it
//! (draft-ietf-oauth-client-id-metadata-document).
//!
//! Whoever asks for authorization makes this service fetch a URL. So it fetches from public addresses alone,
//! connects to the very addresses that it has looked at, follows no redirect, and reads little.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use ipnet::IpNet;
use quick_cache::sync::Cache;
use reqwest::{
    StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap},
};
use tokio::{sync::Semaphore, time::timeout};
use url::{Host, Url};

use super::{
    Code, OAuthError,
    registration::{ClientMetadata, client_of},
};
use crate::{
    config::MetadataDocuments,
    env::Env,
    model::oauth::client::{AuthMethod, Client, Origin},
};

/// The largest document, in bytes.
const MAX_BYTES: usize = 5 * 1024;
/// The longest that fetching one may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// Documents that are fetched at a time: more than the limit of one address can keep busy.
const AT_ONCE: usize = 64;
/// Documents that are remembered.
const REMEMBERED: usize = 1000;
/// The longest `client_id` that is one, in bytes.
const MAX_URL: usize = 500;
/// How long a document is believed that does not say, and the longest that any is.
const FRESH_UNLESS_SAID: Duration = Duration::from_mins(5);
const FRESH_AT_MOST: Duration = Duration::from_hours(24);

/// Fetches documents, and remembers them for as long as they say. Cheap to clone.
#[derive(Clone)]
pub struct Documents {
    mode: MetadataDocuments,
    env: Env,
    http: reqwest::Client,
    places: Arc<Semaphore>,
    native_schemes: Arc<[String]>,
    /// Until when by the monotonic clock each is believed.
    remembered: Arc<Cache<String, (Arc<Client>, Duration)>>,
}

impl Documents {
    /// With nothing remembered.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        mode: MetadataDocuments,
        native_schemes: &[String],
        env: Env,
    ) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would look names up by itself.
            .no_proxy()
            .dns_resolver(Arc::new(Resolver { mode }))
            .timeout(PATIENCE)
            .user_agent(concat!("call2me-auth/", env!("CARGO_PKG_VERSION")))
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| format!("cannot set up the HTTP client: {error}"))?;
        Ok(Self {
            mode,
            env,
            http,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            native_schemes: native_schemes.into(),
            remembered: Arc::new(Cache::new(REMEMBERED)),
        })
    }

    /// Whether there can be such clients at all.
    #[must_use]
    pub fn are_taken(&self) -> bool {
        self.mode != MetadataDocuments::Off
    }

    /// The client that the document at a URL tells of. Its id is a fresh one.
    ///
    /// # Errors
    /// [`Code::InvalidClient`], with what is wrong; unavailable where too many are being fetched.
    pub(super) async fn find(&self, url: &str) -> Result<Client, OAuthError> {
        check_url(url, self.mode)?;
        let now = self.env.clock.monotonic();
        if let Some((client, until)) = self.remembered.get(url)
            && now < until
        {
            return Ok((*client).clone());
        }
        let place = timeout(PATIENCE, self.places.acquire()).await;
        let _place = place.ok().and_then(Result::ok).ok_or_else(OAuthError::unavailable)?;
        let (metadata, fresh) = self.fetch(url).await?;
        let client = self.read(url, &metadata)?;
        // What is wrong is not remembered: its author mends it and tries again.
        if !fresh.is_zero() {
            let until = self.env.clock.monotonic() + fresh;
            self.remembered.insert(url.to_owned(), (Arc::new(client.clone()), until));
        }
        Ok(client)
    }

    async fn fetch(&self, url: &str) -> Result<(ClientMetadata, Duration), OAuthError> {
        let away = |error: reqwest::Error| {
            tracing::info!(%error, "a client's metadata document cannot be fetched");
            refused("the client's metadata document cannot be fetched")
        };
        let request = self.http.get(url).header(ACCEPT, "application/json");
        let mut response = request.send().await.map_err(away)?;
        if response.status() != StatusCode::OK {
            return Err(refused("the client's metadata document is not answered with 200"));
        }
        if !is_json(response.headers()) {
            return Err(refused("the client's metadata document is not application/json"));
        }
        let fresh = freshness(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(refused("the client's metadata document is larger than 5 KB"));
            }
            body.extend_from_slice(&chunk);
        }
        let metadata = serde_json::from_slice(&body);
        let metadata =
            metadata.map_err(|_| refused("the client's metadata document is malformed"))?;
        Ok((metadata, fresh))
    }

    fn read(&self, url: &str, metadata: &ClientMetadata) -> Result<Client, OAuthError> {
        if metadata.client_id.as_deref() != Some(url) {
            return Err(refused("the client's metadata document is of another client_id"));
        }
        if metadata.client_secret.is_some() {
            return Err(refused("a metadata document must hold no secret"));
        }
        let keys = metadata.jwks.iter().filter_map(|set| set["keys"].as_array()).flatten();
        if keys.into_iter().any(|key| key.get("d").is_some() || key.get("k").is_some()) {
            return Err(refused("a metadata document must hold no private keys"));
        }
        // Nor is there a secret to share; and who wants to sign is not let in without.
        let method = metadata.token_endpoint_auth_method.as_deref().unwrap_or("none");
        if AuthMethod::from_name(method) != Some(AuthMethod::None) {
            return Err(refused("of metadata documents, token_endpoint_auth_method must be none"));
        }
        let origin = Origin::Document(url.to_owned());
        let client = client_of(&self.env, metadata, origin, AuthMethod::None, &self.native_schemes);
        client.map_err(|error| match error {
            OAuthError::Refused { description, .. } => {
                OAuthError::new(Code::InvalidClient, description)
            }
            failed @ OAuthError::Failed(_) => failed,
        })
    }
}

/// Checks a `client_id` that is a URL: as it is written, it must be what is fetched.
fn check_url(text: &str, mode: MetadataDocuments) -> Result<(), OAuthError> {
    if mode == MetadataDocuments::Off {
        return Err(refused("clients of metadata documents are not taken here"));
    }
    let url = Url::parse(text).ok().filter(|url| {
        url.as_str() == text
            && text.len() <= MAX_URL
            && url.scheme() == "https"
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
    });
    // Names are looked at when they are looked up; addresses are not looked up.
    let address = match url.as_ref().and_then(Url::host) {
        Some(Host::Domain(_)) => None,
        Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
        None => {
            return Err(refused(
                "a client_id that is a URL must be https, in its shortest form, without user and fragment",
            ));
        }
    };
    if mode == MetadataDocuments::Public && address.is_some_and(|address| !is_public(address)) {
        return Err(refused("the client's metadata document is not at a public address"));
    }
    Ok(())
}

/// Looks names up, and answers public addresses alone: those that are then connected to.
struct Resolver {
    mode: MetadataDocuments,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let mode = self.mode;
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            // One that is not may be how somebody tries their luck.
            let is_fine = mode == MetadataDocuments::Any
                || found.iter().all(|address| is_public(address.ip()));
            if !is_fine {
                return Err("the name is not of public addresses alone".into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Addresses of special use (the registries of IANA, after RFC 6890), of version 4; of version 6 those within
/// what is assigned to the Internet.
static SPECIAL: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    let nets = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    ];
    nets.iter().filter_map(|net| net.parse().ok()).collect()
});

/// Whether an address is one of the Internet, which anybody could reach as well.
fn is_public(address: IpAddr) -> bool {
    let is_assigned = match address {
        IpAddr::V4(_) => true,
        // Global unicast; what embeds an address of version 4 is outside.
        IpAddr::V6(address) => address.segments()[0] & 0xe000 == 0x2000,
    };
    is_assigned && !SPECIAL.iter().any(|net| net.contains(&address))
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|text| text.split(';').next()).unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// How long a document may be believed (RFC 9111, section 5.2.2).
fn freshness(headers: &HeaderMap) -> Duration {
    let texts = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut fresh = FRESH_UNLESS_SAID;
    for directive in texts.flat_map(|text| text.split(',')) {
        let directive = directive.trim().to_ascii_lowercase();
        if ["no-store", "no-cache"].contains(&&*directive) {
            return Duration::ZERO;
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            let seconds = seconds.trim_matches('"').parse().unwrap_or(0);
            fresh = Duration::from_secs(seconds).min(FRESH_AT_MOST);
        }
    }
    fresh
}

fn refused(why: &'static str) -> OAuthError {
    OAuthError::new(Code::InvalidClient, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for public in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:1.1.1.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2001:0:7f00:1::",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    #[test]
    fn a_url_is_fetched_only_as_it_is_written() {
        let check = |url: &str| check_url(url, MetadataDocuments::Public).is_ok();
        for fine in [
            "https://client.example/",
            "https://client.example/oauth/metadata.json",
            "https://client.example:8443/m?v=1",
            "https://1.1.1.1/m",
        ] {
            assert!(check(fine), "{fine}");
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

    #[tokio::test]
    async fn names_of_this_machine_are_not_resolved() {
        let resolver = Resolver { mode: MetadataDocuments::Public };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_err());
        let resolver = Resolver { mode: MetadataDocuments::Any };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_ok());
    }

    #[test]
    fn documents_are_believed_for_as_long_as_they_say() {
        let fresh = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, value.parse().unwrap());
            freshness(&headers).as_secs()
        };
        assert_eq!(freshness(&HeaderMap::new()).as_secs(), 300);
        assert_eq!(fresh("public, max-age=60"), 60);
        assert_eq!(fresh("max-age=99999999"), 86_400);
        assert_eq!(fresh("max-age=60, no-cache"), 0);
        assert_eq!(fresh("No-Store"), 0);
        assert_eq!(fresh("max-age=soon"), 0);
        assert_eq!(fresh("public"), 300);
    }
}
