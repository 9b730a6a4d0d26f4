//! CORS: what scripts of web pages may call and read.

use call2me_auth::http::routes;

use crate::fixture::{TestApp, TestClient, TestResponse};

const ALLOWED_ORIGIN: &str = "https://app.example";
const OTHER_ORIGIN: &str = "https://any.example";

async fn app_with_allowed_origin() -> TestApp {
    TestApp::start_with(&[("server.allowed_origins", ALLOWED_ORIGIN)]).await
}

/// Sends the preflight request of a browser.
async fn preflight(app: &TestClient, path: &str, origin: &str) -> TestResponse {
    let headers = "authorization,content-type,mcp-protocol-version";
    app.request("OPTIONS", path)
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", headers)
        .send()
        .await
}

fn allowed_origin(response: &TestResponse) -> &str {
    response.header("access-control-allow-origin")
}

/// Paths that no route has are open too: clients probe several paths for metadata.
#[tokio::test]
async fn oauth_endpoints_are_open_to_any_origin_without_credentials() {
    let app = app_with_allowed_origin().await;
    for path in [
        "/.well-known/oauth-authorization-server",
        "/.well-known/oauth-authorization-server/v1/agents",
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-protected-resource/mcp",
        "/.well-known/openid-configuration",
        "/.well-known/openid-configuration/mcp",
        "/.well-known/jwks.json",
        "/oauth/token",
        "/oauth/register",
        "/oauth/revoke",
        "/oauth/introspect",
        "/oauth/device_authorization",
        "/oauth/nothing",
    ] {
        for origin in [OTHER_ORIGIN, ALLOWED_ORIGIN, "null"] {
            let answer = preflight(&app, path, origin).await;
            assert_eq!((answer.status.as_u16(), allowed_origin(&answer)), (200, "*"), "{path}");
            assert!(answer.header("access-control-allow-headers").contains("authorization"));
            let response = app.get(path).header("origin", origin).send().await;
            assert_eq!(allowed_origin(&response), "*", "{path}: {}", response.status);
            for answer in [answer, response] {
                assert!(!answer.headers.contains_key("access-control-allow-credentials"));
            }
        }
    }
}

/// Also without `server.allowed_origins`.
#[tokio::test]
async fn oauth_endpoints_are_open_by_default() {
    let app = TestClient::shared();
    for path in ["/oauth/token", "/.well-known/oauth-protected-resource/x"] {
        assert_eq!(allowed_origin(&preflight(&app, path, OTHER_ORIGIN).await), "*", "{path}");
    }
    let refused = preflight(&app, "/v1/agents", OTHER_ORIGIN).await;
    refused.assert_error(405, "method_not_allowed");
}

#[tokio::test]
async fn api_is_open_to_configured_origins_only() {
    let app = app_with_allowed_origin().await;
    for path in ["/v1/agents", "/v1/auth/login", "/v1/agents/agent_x", "/v1/nothing"] {
        let answer = preflight(&app, path, ALLOWED_ORIGIN).await;
        assert_eq!((answer.status.as_u16(), allowed_origin(&answer)), (200, ALLOWED_ORIGIN));
        for header in ["authorization", "idempotency-key", "last-event-id", "traceparent"] {
            assert!(answer.header("access-control-allow-headers").contains(header), "{header}");
        }
        let response = app.get(path).header("origin", ALLOWED_ORIGIN).send().await;
        assert_eq!(allowed_origin(&response), ALLOWED_ORIGIN, "{path}");
        let exposed = response.header("access-control-expose-headers");
        for header in [
            "location",
            "retry-after",
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            "x-request-id",
            "www-authenticate",
            "idempotency-replayed",
        ] {
            assert!(exposed.split(',').any(|name| name.trim() == header), "{header}: {exposed}");
        }
        for origin in ["https://evil.example", "null", "https://app.example.evil.example"] {
            let answers = [
                preflight(&app, path, origin).await,
                app.get(path).header("origin", origin).send().await,
            ];
            for answer in answers {
                assert_eq!(allowed_origin(&answer), "", "{path}");
            }
        }
    }
}

#[tokio::test]
async fn pages_and_forward_auth_are_closed_to_other_origins() {
    let app = app_with_allowed_origin().await;
    for path in [
        "/oauth/authorize",
        "/oauth/consent",
        "/sign-in",
        "/device",
        "/v1/auth/verify",
        "/v1/auth/verify/v1/agents",
        "/v1/auth/require/write",
    ] {
        for origin in [ALLOWED_ORIGIN, OTHER_ORIGIN] {
            let answers = [
                preflight(&app, path, origin).await,
                app.get(path).header("origin", origin).send().await,
            ];
            for answer in answers {
                assert_eq!(allowed_origin(&answer), "", "{path}: {}", answer.status);
            }
        }
    }
}

/// Only a preflight request, which has both headers, is answered without a route.
#[tokio::test]
async fn other_options_request_is_not_answered_as_preflight() {
    let app = app_with_allowed_origin().await;
    let request_method = ("access-control-request-method", "POST");
    let incomplete = [&[][..], &[("origin", ALLOWED_ORIGIN)], &[request_method]];
    for route in routes::route_table() {
        let is_cors_path = route.path.starts_with("/v1/") || route.path.starts_with("/oauth/");
        if route.method.is_none() || !is_cors_path {
            continue;
        }
        for headers in incomplete {
            let request = app.request("OPTIONS", route.path);
            let request = headers.iter().fold(request, |it, (name, value)| it.header(name, value));
            let answer = request.send().await;
            answer.assert_error(405, "method_not_allowed");
            assert_ne!(answer.header("allow"), "", "{}", route.path);
        }
        let is_api = route.path.starts_with("/v1/");
        let expected = if is_api { ALLOWED_ORIGIN } else { "*" };
        let answer = preflight(&app, route.path, ALLOWED_ORIGIN).await;
        assert_eq!((answer.status.as_u16(), allowed_origin(&answer)), (200, expected));
    }
    app.request("OPTIONS", "/v1/nothing").send().await.assert_error(404, "not_found");
    app.request("OPTIONS", "/oauth/authorize").send().await.assert_error(405, "method_not_allowed");
    app.request("PUT", "/oauth/token").send().await.assert_error(405, "method_not_allowed");
}
