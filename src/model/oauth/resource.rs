//! Protected resources: what access tokens are for (RFC 8707).

use url::Url;

/// Resources that tokens are made for, the first being this service's own API.
#[derive(Debug, Clone)]
pub struct Resources(Vec<(String, String)>);

impl Resources {
    /// This service at its own URL, and others.
    #[must_use]
    pub fn new(own: &str, others: &[String]) -> Self {
        let all = std::iter::once(own).chain(others.iter().map(String::as_str));
        Self(
            all.map(|text| (canonical(text).unwrap_or_else(|| text.to_owned()), text.to_owned()))
                .collect(),
        )
    }

    /// The resource that a request names, as tokens name it. Clients write URLs with and without a slash at
    /// the end.
    #[must_use]
    pub fn find(&self, given: &str) -> Option<&str> {
        let given = canonical(given)?;
        self.0.iter().find(|(known, _)| *known == given).map(|(_, text)| &**text)
    }

    /// This service's own API.
    #[must_use]
    pub fn own(&self) -> &str {
        self.0.first().map_or("", |(_, text)| text)
    }

    /// All of them, as tokens name them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, text)| &**text)
    }
}

/// A resource's URL in the one way that it is compared; none for what names no resource: anything but an
/// absolute `http` or `https` URL without a fragment or a user.
#[must_use]
pub fn canonical(text: &str) -> Option<String> {
    let url = text.parse::<Url>().ok()?;
    let fits = ["http", "https"].contains(&url.scheme())
        && url.host().is_some()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    let text = String::from(url);
    fits.then(|| text.strip_suffix('/').unwrap_or(&text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_found_however_its_url_is_written() {
        let others = ["https://mcp.example/mcp".to_owned()];
        let resources = Resources::new("https://auth.example", &others);
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
        assert_eq!(resources.own(), "https://auth.example");
    }
}
