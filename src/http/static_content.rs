//! Content that is the same for all clients: the OpenAPI document, the files of `/docs` and the
//! scripts of the dashboard.
//!
//! It is compressed once and kept in one place. A response refers to it instead of copying it, so
//! clients that read slowly need no memory of their own.

use std::{
    io::Write as _,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use data_encoding::HEXLOWER;
use flate2::{Compression, write::GzEncoder};
use hyper::body::{Frame, SizeHint};
use sha2::{Digest as _, Sha256};

/// Shorter content is not compressed: it fits in one packet.
const MIN_COMPRESSED_BYTES: usize = 1024;

/// Number of bytes of the digest in an entity tag.
const TAG_BYTES: usize = 16;

/// Content with its headers, as it is and compressed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StaticContent {
    headers: Vec<(HeaderName, HeaderValue)>,
    identity: Representation,
    /// `None` if compression does not make it shorter.
    gzip: Option<Representation>,
}

/// The bytes in one encoding, with their entity tag.
#[derive(Debug, Clone)]
struct Representation {
    bytes: Bytes,
    tag: HeaderValue,
}

impl Representation {
    fn new(bytes: Bytes) -> Self {
        let digest = Sha256::digest(&bytes);
        let tag = format!("\"{}\"", HEXLOWER.encode(&digest[..TAG_BYTES]));
        // Hexadecimal digits are valid in a header.
        let tag = HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        Self { bytes, tag }
    }
}

impl StaticContent {
    /// Creates content of a media type. `cache_control` says for how long clients may keep it.
    #[must_use]
    pub fn new(
        media_type: HeaderValue,
        cache_control: &'static str,
        bytes: impl Into<Bytes>,
    ) -> Self {
        let identity = Representation::new(bytes.into());
        let gzip = compress(&identity.bytes).map(Representation::new);
        let headers = vec![
            (header::CONTENT_TYPE, media_type),
            (header::CACHE_CONTROL, HeaderValue::from_static(cache_control)),
        ];
        Self { headers, identity, gzip }
    }

    /// Adds a header to all responses.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// Responds to a request with these headers: compressed if the client accepts it, and 304 if
    /// it has the content already.
    #[must_use]
    pub fn respond(&self, request: &HeaderMap) -> Response {
        let gzip = self.gzip.as_ref().filter(|_| accepts_gzip(request));
        let chosen = gzip.unwrap_or(&self.identity);
        let is_known = is_known(request, &chosen.tag);
        let mut response = if is_known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            Body::from(chosen.bytes.clone()).into_response()
        };
        let headers = response.headers_mut();
        for (name, value) in &self.headers {
            if !is_known || *name != header::CONTENT_TYPE {
                headers.insert(name, value.clone());
            }
        }
        headers.insert(header::ETAG, chosen.tag.clone());
        if self.gzip.is_some() {
            headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        if gzip.is_some() && !is_known {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

/// Compresses bytes; `None` if that does not make them shorter.
fn compress(bytes: &[u8]) -> Option<Bytes> {
    if bytes.len() < MIN_COMPRESSED_BYTES {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory cannot fail.
    encoder.write_all(bytes).ok()?;
    let mut compressed = encoder.finish().ok()?;
    compressed.shrink_to_fit();
    (compressed.len() < bytes.len()).then(|| compressed.into())
}

/// True if the client accepts gzip (RFC 9110, section 12.5.3).
fn accepts_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(header::ACCEPT_ENCODING).into_iter();
    let codings = values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    let (mut gzip, mut any) = (None, None);
    for coding in codings {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let is_accepted = is_weight_positive(parameters);
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => gzip = Some(is_accepted),
            "*" => any = Some(is_accepted),
            _ => {}
        }
    }
    gzip.or(any).unwrap_or(false)
}

/// True unless the parameters of a coding are `q=0`.
fn is_weight_positive(parameters: &str) -> bool {
    let parameters = parameters.trim();
    let weight = parameters.strip_prefix("q=").or_else(|| parameters.strip_prefix("Q="));
    weight.is_none_or(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0))
}

/// True if the client has the representation with this tag (RFC 9110, section 13.1.2).
fn is_known(request: &HeaderMap, tag: &HeaderValue) -> bool {
    let Ok(tag) = tag.to_str() else { return false };
    let values = request.get_all(header::IF_NONE_MATCH).into_iter();
    let known = values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    known.map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}

/// A body of several parts, which may be shared with other responses.
pub struct SegmentedBody {
    /// The parts in reverse order.
    rest: Vec<Bytes>,
}

impl SegmentedBody {
    /// Creates a body of these parts, in their order.
    #[must_use]
    pub fn new(parts: impl IntoIterator<Item = Bytes, IntoIter: DoubleEndedIterator>) -> Self {
        Self { rest: parts.into_iter().filter(|part| !part.is_empty()).rev().collect() }
    }
}

impl hyper::body::Body for SegmentedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.rest.pop().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let length: usize = self.rest.iter().map(Bytes::len).sum();
        SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn request(headers: &[(HeaderName, &str)]) -> HeaderMap {
        let headers = headers.iter();
        headers.map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn content(bytes: impl Into<Bytes>) -> StaticContent {
        StaticContent::new(HeaderValue::from_static("text/css"), "no-cache", bytes)
    }

    async fn body(response: Response) -> Bytes {
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap()
    }

    #[test]
    fn gzip_is_used_only_if_accepted() {
        for (accepted, expected) in [
            ("gzip", true),
            ("br, gzip;q=0.5", true),
            ("deflate,GZIP", true),
            ("*", true),
            ("gzip;q=0", false),
            ("*, gzip; q=0.000", false),
            ("gzip, *;q=0", true),
            ("identity", false),
            ("gzip;q=x", false),
            ("", false),
        ] {
            let request = request(&[(header::ACCEPT_ENCODING, accepted)]);
            assert_eq!(accepts_gzip(&request), expected, "{accepted}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn both_representations_have_the_same_content() {
        let text = "a { color: red }\n".repeat(500);
        let content = content(text.clone());
        let plain = content.respond(&HeaderMap::new());
        let gzip = content.respond(&request(&[(header::ACCEPT_ENCODING, "gzip")]));
        assert_eq!(gzip.headers()[header::CONTENT_ENCODING], "gzip");
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        assert_ne!(plain.headers()[header::ETAG], gzip.headers()[header::ETAG]);
        for response in [&plain, &gzip] {
            assert_eq!(response.headers()[header::VARY], "accept-encoding");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "text/css");
        }
        assert_eq!(body(plain).await, text);
        let mut decoded = String::new();
        GzDecoder::new(&body(gzip).await[..]).read_to_string(&mut decoded).unwrap();
        assert_eq!(decoded, text);
    }

    #[test]
    fn content_that_compression_does_not_shorten_has_one_representation() {
        let random: Vec<u8> =
            (0..64u32).flat_map(|number| Sha256::digest(number.to_le_bytes())).collect();
        for bytes in [b"short".to_vec(), Vec::new(), random] {
            let response = content(bytes).respond(&request(&[(header::ACCEPT_ENCODING, "gzip")]));
            assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
            assert!(!response.headers().contains_key(header::VARY));
        }
    }

    #[tokio::test]
    async fn known_content_is_not_sent_again() {
        let content = content("a".repeat(5000));
        let tag = content.respond(&HeaderMap::new()).headers()[header::ETAG].clone();
        let tag = tag.to_str().unwrap();
        for (known, status) in [
            (tag.to_owned(), 304),
            (format!("W/{tag}"), 304),
            (format!("\"other\", {tag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\"".to_owned(), 200),
            (tag.trim_matches('"').to_owned(), 200),
        ] {
            let response = content.respond(&request(&[(header::IF_NONE_MATCH, &known)]));
            assert_eq!(response.status(), status, "{known}");
            assert_eq!(response.headers()[header::ETAG], tag);
            assert_eq!(body(response).await.is_empty(), status == 304);
        }
        // The tag belongs to the other representation.
        let gzip = [(header::IF_NONE_MATCH, tag), (header::ACCEPT_ENCODING, "gzip")];
        assert_eq!(content.respond(&request(&gzip)).status(), 200);
    }

    #[tokio::test]
    async fn segments_are_sent_in_order_and_not_copied() {
        let shared = Bytes::from_static(b"shared");
        let parts = [Bytes::from("a"), shared.clone(), Bytes::new(), Bytes::from("b")];
        let body = SegmentedBody::new(parts);
        assert_eq!(hyper::body::Body::size_hint(&body).exact(), Some(8));
        let mut data = Body::new(body).into_data_stream();
        let mut sent = Vec::new();
        while let Some(part) = futures_util::StreamExt::next(&mut data).await {
            sent.push(part.unwrap());
        }
        assert_eq!(sent.concat(), b"asharedb");
        assert_eq!(sent[1].as_ptr(), shared.as_ptr());
    }
}
