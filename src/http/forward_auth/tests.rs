use axum::body::Body;
use proptest::prelude::*;

use super::*;

fn request(method: &Method, path: &str, headers: &[(HeaderName, Vec<u8>)]) -> Request {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method.clone();
    *request.uri_mut() = path.parse().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
    }
    request
}

/// Returns the method, the path and the required scope of the original request.
fn read(method: &str, path: &str, headers: &[(&'static str, &str)]) -> (String, String, Scope) {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.as_bytes().to_vec()))
        .collect();
    let request = request(&method.parse().unwrap(), path, &headers);
    let original = OriginalRequest::from_forward_auth(&request);
    let scope = original.required_scope.0.unwrap();
    (original.method.to_string(), original.path.into_owned(), scope)
}

const FORWARDED_METHOD: &str = "x-forwarded-method";
const ORIGINAL_METHOD: &str = "x-original-method";
const OVERRIDE: &str = "x-http-method-override";

/// A method, a path and headers of a forward-auth request, and the method, the path and the scope
/// of the original request.
type Row = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    (&'static str, &'static str, Scope),
);

#[rustfmt::skip]
const TABLE: [Row; 21] = {
    use Scope::{Admin, ReadOnly, Write};
    [
        ("GET", VERIFY, &[], ("GET", VERIFY, ReadOnly)),
        ("HEAD", "/v1/auth/verify/", &[], ("HEAD", "/", ReadOnly)),
        ("GET", "/v1/auth/verify/a/b", &[], ("GET", "/a/b", ReadOnly)),
        ("DELETE", "/v1/auth/verify/a", &[], ("DELETE", "/a", Write)),
        ("OPTIONS", VERIFY, &[], ("OPTIONS", VERIFY, Write)),
        ("GET", "/v1/auth/require/read-only", &[], ("GET", "/v1/auth/require/read-only", ReadOnly)),
        ("GET", "/v1/auth/require/write/", &[], ("GET", "/", Write)),
        ("GET", "/v1/auth/require/admin/a", &[], ("GET", "/a", Admin)),
        ("POST", "/v1/auth/require/read-only/a", &[], ("POST", "/a", Write)),
        ("GET", VERIFY, &[(FORWARDED_METHOD, "GET"), ("x-forwarded-uri", "/a?b")],
            ("GET", "/a", ReadOnly)),
        ("GET", "/v1/auth/verify/", &[(ORIGINAL_METHOD, "PUT"), ("x-original-url", "http://h/a")],
            ("PUT", "/a", Write)),
        ("GET", VERIFY, &[("x-original-uri", "/a")], ("GET", "/a", Write)),
        ("GET", VERIFY, &[("x-original-uri", "/a"), (FORWARDED_METHOD, "HEAD")],
            ("HEAD", "/a", Write)),
        ("PUT", VERIFY, &[("x-original-uri", "/a"), (FORWARDED_METHOD, "GET")],
            ("PUT", "/a", Write)),
        ("GET", VERIFY, &[(FORWARDED_METHOD, "GET"), ("x-forwarded-uri", "/forged"),
            (ORIGINAL_METHOD, "POST"), ("x-original-uri", "/a")], ("POST", "/a", Write)),
        ("GET", "/v1/auth/verify/a", &[(FORWARDED_METHOD, "GET"), ("x-forwarded-uri", "/forged")],
            ("GET", "/a", ReadOnly)),
        ("GET", VERIFY, &[(ORIGINAL_METHOD, "( )"), ("x-original-uri", "/a")], ("GET", "/a", Write)),
        ("GET", VERIFY, &[(ORIGINAL_METHOD, "GET"), (ORIGINAL_METHOD, "GET")],
            ("GET", VERIFY, Write)),
        ("GET", VERIFY, &[(ORIGINAL_METHOD, "GET"), (OVERRIDE, "PUT")], ("PUT", VERIFY, Write)),
        ("POST", VERIFY, &[(OVERRIDE, "GET")], ("POST", VERIFY, Write)),
        ("GET", VERIFY, &[("x-forwarded-uri", "")], ("GET", VERIFY, Write)),
    ]
};

#[test]
fn original_request_is_that_of_the_table() {
    for (method, path, headers, (expected_method, expected_path, scope)) in TABLE {
        let expected = (expected_method.to_owned(), expected_path.to_owned(), scope);
        assert_eq!(read(method, path, headers), expected, "{method} {path} {headers:?}");
    }
}

fn method() -> impl Strategy<Value = Vec<u8>> {
    let known = ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "BREW", "get", "", "GET, GET", "( )"];
    let known = proptest::sample::select(known.to_vec()).prop_map(|text| text.as_bytes().to_vec());
    prop_oneof![4 => known, 1 => value()]
}

/// A value that a header can have.
fn value() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![0x20_u8..0x7f, 0x80_u8..], 0..12)
}

fn header() -> impl Strategy<Value = (HeaderName, Vec<u8>)> {
    let methods = [&STATED_REQUESTS[0].0, &STATED_REQUESTS[1].0].into_iter();
    let methods: Vec<_> = methods.chain(&METHOD_OVERRIDES).cloned().collect();
    let uris: Vec<_> = FORWARDED_URI.iter().chain(&ORIGINAL_URI).cloned().collect();
    let uri = prop_oneof![Just(b"/a".to_vec()), Just(b"https://h/a?b".to_vec()), value()];
    prop_oneof![
        (proptest::sample::select(methods), method()),
        (proptest::sample::select(uris), uri),
    ]
}

/// The scope that one statement of a method requires.
fn scope_of_text(text: &[u8]) -> Scope {
    if matches!(text, b"GET" | b"HEAD") { Scope::ReadOnly } else { Scope::Write }
}

proptest! {
    #[test]
    fn no_headers_lower_the_required_scope(
        own in proptest::sample::select(vec!["GET", "HEAD", "POST", "DELETE", "OPTIONS", "BREW"]),
        least in proptest::sample::select(Scope::ALL.to_vec()),
        is_verify: bool,
        suffix in proptest::sample::select(vec!["", "/", "/a/b"]),
        headers in proptest::collection::vec(header(), 0..6),
    ) {
        let (prefix, least) = if is_verify {
            (VERIFY.to_owned(), Scope::ReadOnly)
        } else {
            (format!("{REQUIRE}/{least}"), least)
        };
        let path = format!("{prefix}{suffix}");
        let required = |headers: &[(HeaderName, Vec<u8>)]| {
            let request = request(&own.parse().unwrap(), &path, headers);
            OriginalRequest::from_forward_auth(&request).required_scope.0.unwrap()
        };
        let scope = required(&headers);
        prop_assert!(scope >= least && scope >= scope_of_text(own.as_bytes()));
        for (name, value) in &headers {
            let is_method = !FORWARDED_URI.contains(name) && !ORIGINAL_URI.contains(name);
            prop_assert!(!is_method || scope >= scope_of_text(value), "{name} {value:?}");
        }
        for (method, uris) in &STATED_REQUESTS {
            let has = |name: &HeaderName| headers.iter().any(|(present, _)| present == name);
            prop_assert!(has(method) || !uris.iter().any(has) || scope >= Scope::Write);
        }
        // A header that is added to a complete request raises the scope or leaves it unchanged.
        if let Some((_, fewer)) = headers.split_last().filter(|(last, fewer)| {
            fewer.iter().any(|(name, _)| *name == last.0) || METHOD_OVERRIDES.contains(&last.0)
        }) {
            prop_assert!(scope >= required(fewer));
        }
    }

    #[test]
    fn any_uri_becomes_text_without_query(bytes in value()) {
        let text = text_of(path_of(&bytes)).into_owned();
        prop_assert!(!text.contains(['?', '#', '\u{fffd}']), "{text:?}");
    }
}

#[test]
fn uri_with_host_query_or_fragment_is_reduced_to_its_path() {
    for (uri, path) in [
        ("/v1/agents?x=1", "/v1/agents"),
        ("https://api.example.com/v1/agents?x=1#y", "/v1/agents"),
        ("https://api.example.com", "/"),
        ("https://api.example.com?x=/y", "/"),
        ("/a?next=https://b/c", "/a"),
        ("/a/https://b/c", "/a/https://b/c"),
        ("/a#b", "/a"),
        ("", ""),
    ] {
        assert_eq!(path_of(uri.as_bytes()), path.as_bytes(), "{uri}");
    }
}

#[test]
fn query_is_removed_from_uri() {
    for (uri, without_query) in
        [("/a?b=c", "/a"), ("/a", "/a"), ("/?", "/"), ("/a%3fb?c", "/a%3fb")]
    {
        let mut parsed: Uri = uri.parse().unwrap();
        remove_query(&mut parsed);
        assert_eq!(parsed.to_string(), without_query);
    }
}
