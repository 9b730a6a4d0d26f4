//! Protected resources, for which access tokens are issued (RFC 8707).

use url::Url;

/// The protected resources of this deployment. The first one is this service's own API.
#[derive(Debug, Clone)]
pub struct ProtectedResources(Vec<(String, String)>);

impl ProtectedResources {
    /// Creates the list from the URL of this service and the URLs of other resources.
    #[must_use]
    pub fn new(own: &str, others: &[String]) -> Self {
        let all = std::iter::once(own).chain(others.iter().map(String::as_str));
        Self(
            all.map(|text| {
                (canonicalize(text).unwrap_or_else(|| text.to_owned()), text.to_owned())
            })
            .collect(),
        )
    }

    /// Returns the URL in tokens of the resource that a request names. A trailing slash is ignored,
    /// because clients write URLs with and without it.
    #[must_use]
    pub fn find(&self, resource: &str) -> Option<&str> {
        let resource = canonicalize(resource)?;
        self.0.iter().find(|(known, _)| *known == resource).map(|(_, text)| &**text)
    }

    /// Returns the URL of this service's own API.
    #[must_use]
    pub fn own_api(&self) -> &str {
        self.0.first().map_or("", |(_, text)| text)
    }

    /// Returns the URLs of all resources, as tokens contain them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, text)| &**text)
    }
}

/// Returns the canonical form of a resource's URL, for comparison. `None` if the text is not an
/// absolute `http` or `https` URL without a fragment, user name and password.
#[must_use]
pub fn canonicalize(text: &str) -> Option<String> {
    let url = text.parse::<Url>().ok()?;
    let is_resource = ["http", "https"].contains(&url.scheme())
        && url.host().is_some()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    let text = String::from(url);
    is_resource.then(|| text.strip_suffix('/').unwrap_or(&text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_urls_find_the_same_resource() {
        let others = ["https://mcp.example/mcp".to_owned()];
        let resources = ProtectedResources::new("https://auth.example", &others);
        for own in ["https://auth.example", "https://auth.example/", "HTTPS://AUTH.example:443/"] {
            assert_eq!(resources.find(own), Some("https://auth.example"), "{own}");
        }
        for mcp in ["https://mcp.example/mcp", "https://mcp.example/mcp/"] {
            assert_eq!(resources.find(mcp), Some("https://mcp.example/mcp"), "{mcp}");
        }
        for none in [
            "",
            "auth.example",
            "http://auth.example",
            "https://auth.example:8443",
            "https://auth.example/v1",
            "https://auth.example/#x",
            "https://x@auth.example",
            "https://mcp.example/MCP",
            "https://mcp.example/mcp?x",
            "https://mcp.example",
        ] {
            assert_eq!(resources.find(none), None, "{none}");
        }
        assert_eq!(resources.own_api(), "https://auth.example");
    }
}
