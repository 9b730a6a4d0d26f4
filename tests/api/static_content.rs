//! Content that is the same for all clients: /openapi.json, /docs and /assets.

use std::io::Read as _;

use flate2::read::GzDecoder;
use reqwest::{Method, Response, header::HeaderMap};

use crate::fixture::TestApp;

/// Paths with their media types; true if the content is long enough to be compressed.
const FILES: [(&str, &str, bool); 11] = [
    ("/openapi.json", "application/json", true),
    ("/docs/", "text/html", false),
    ("/docs/index.css", "text/css", false),
    ("/docs/swagger-ui.css", "text/css", true),
    ("/docs/swagger-ui-bundle.js", "text/javascript", true),
    ("/docs/swagger-ui-standalone-preset.js", "text/javascript", true),
    ("/docs/swagger-initializer.js", "text/javascript", false),
    ("/docs/oauth2-redirect.html", "text/html", false),
    ("/docs/favicon-32x32.png", "image/png", false),
    ("/assets/dashboard.js", "text/javascript; charset=utf-8", true),
    ("/assets/passkeys.js", "text/javascript; charset=utf-8", true),
];

async fn send(app: &TestApp, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = app.http.request(method, format!("{}{path}", app.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn content_is_compressed_for_clients_that_accept_it() {
    let app = TestApp::start().await;
    for (path, media_type, is_compressed) in FILES {
        let plain = send(&app, Method::GET, path, &[]).await;
        let gzip = send(&app, Method::GET, path, &[("accept-encoding", "br, gzip")]).await;
        for response in [&plain, &gzip] {
            assert_eq!(response.status(), 200, "{path}");
            assert_eq!(header(response.headers(), "content-type"), media_type, "{path}");
            let vary = if is_compressed { "accept-encoding" } else { "" };
            assert_eq!(header(response.headers(), "vary"), vary, "{path}");
            assert_eq!(header(response.headers(), "x-content-type-options"), "nosniff", "{path}");
            let length = response.content_length().unwrap();
            assert_eq!(header(response.headers(), "content-length"), length.to_string(), "{path}");
        }
        assert_eq!(header(plain.headers(), "content-encoding"), "", "{path}");
        let encoding = if is_compressed { "gzip" } else { "" };
        assert_eq!(header(gzip.headers(), "content-encoding"), encoding, "{path}");
        let (plain, gzip) = (plain.bytes().await.unwrap(), gzip.bytes().await.unwrap());
        if is_compressed {
            let mut decoded = Vec::new();
            GzDecoder::new(&gzip[..]).read_to_end(&mut decoded).unwrap();
            assert!(decoded == plain && gzip.len() < plain.len(), "{path}");
        } else {
            assert_eq!(gzip, plain, "{path}");
        }
    }
}

#[tokio::test]
async fn head_and_known_content_have_no_body() {
    let app = TestApp::start().await;
    for (path, ..) in FILES {
        for encoding in ["identity", "gzip"] {
            let accepted = ("accept-encoding", encoding);
            let full = send(&app, Method::GET, path, &[accepted]).await.headers().clone();
            let head = send(&app, Method::HEAD, path, &[accepted]).await;
            for name in ["content-type", "content-length", "content-encoding", "etag", "vary"] {
                assert_eq!(header(head.headers(), name), header(&full, name), "{path} {name}");
            }
            assert!(head.bytes().await.unwrap().is_empty(), "{path}");
            let known = ("if-none-match", header(&full, "etag"));
            for method in [Method::GET, Method::HEAD] {
                let response = send(&app, method, path, &[accepted, known]).await;
                assert_eq!(response.status(), 304, "{path}");
                for name in ["etag", "vary", "cache-control", "content-security-policy"] {
                    assert_eq!(header(response.headers(), name), header(&full, name), "{path}");
                }
                assert!(response.bytes().await.unwrap().is_empty(), "{path}");
            }
        }
    }
}

/// Ranges are not supported (RFC 9110, section 14.2): the whole content is sent.
#[tokio::test]
async fn range_is_ignored() {
    let app = TestApp::start().await;
    for (path, ..) in FILES {
        let whole = send(&app, Method::GET, path, &[]).await.bytes().await.unwrap();
        let part = send(&app, Method::GET, path, &[("range", "bytes=0-9")]).await;
        assert_eq!(part.status(), 200, "{path}");
        assert_eq!(part.bytes().await.unwrap(), whole, "{path}");
    }
}

#[tokio::test]
async fn content_counts_against_limit_of_address() {
    for (path, ..) in FILES {
        let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "3")]).await;
        for _ in 0..3 {
            assert_eq!(send(&app, Method::GET, path, &[]).await.status(), 200, "{path}");
        }
        let refused = send(&app, Method::GET, path, &[]).await;
        assert_eq!(refused.status(), 429, "{path}");
        assert_eq!(header(refused.headers(), "retry-after"), "20", "{path}");
        // A cache must not keep the error in place of the content.
        assert_ne!(header(refused.headers(), "cache-control"), "public, max-age=3600", "{path}");
        // Health checks and keys must be available all the same.
        for path in ["/livez", "/readyz", "/.well-known/jwks.json"] {
            assert_eq!(send(&app, Method::GET, path, &[]).await.status(), 200, "{path}");
        }
    }
}

#[tokio::test]
async fn unknown_file_and_other_methods_are_rejected() {
    let app = TestApp::start().await;
    for path in ["/docs/swagger-ui-es-bundle.js", "/docs/x/y", "/docs/..%2findex.css", "/assets/x"]
    {
        app.get(path).send().await.assert_error(404, "not_found");
    }
    for (path, ..) in FILES {
        app.post(path).send().await.assert_error(405, "method_not_allowed");
    }
}
