//! Serves Swagger UI, which displays the OpenAPI document, at `/docs`. Its files are in the binary,
//! so it needs no other host.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    future::ready,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, HeaderValue, Method, header},
    response::Redirect,
};
use utoipa_swagger_ui::Config;

use super::{
    App,
    dashboard::page,
    endpoint::Endpoint,
    extract::{AddressLimited, Public},
    middleware::serve_static,
    static_content::StaticContent,
    surface::Surface,
};

/// The files that the page consists of. Swagger UI has others, for programs that embed it.
const FILES: [&str; 10] = [
    "favicon-16x16.png",
    "favicon-32x32.png",
    "index.css",
    "index.html",
    "oauth2-redirect.html",
    "oauth2-redirect.js",
    "swagger-initializer.js",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-ui.css",
];

/// Swagger UI shares its origin with the dashboard, so it gets its own strict policy.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The contents by path. They are the same for all services of a process.
static CONTENTS: LazyLock<BTreeMap<String, StaticContent>> = LazyLock::new(|| {
    let config = Config::new(["/openapi.json"]).try_it_out_enabled(true);
    let config = Arc::new(config.persist_authorization(false));
    let files = FILES.iter().map(|file| (format!("/docs/{file}"), *file));
    let files = [("/docs/".to_owned(), "index.html")].into_iter().chain(files);
    files.filter_map(|(path, file)| Some((path, read_file(file, &config)?))).collect()
});

/// Reads a file of Swagger UI; `None` if its version has no such file.
fn read_file(file: &str, config: &Arc<Config<'static>>) -> Option<StaticContent> {
    let file = utoipa_swagger_ui::serve(file, Arc::clone(config)).ok().flatten()?;
    let media_type = HeaderValue::try_from(file.content_type).ok()?;
    let bytes = match file.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    // The next version of the service may have other files under the same names.
    let content = StaticContent::new(media_type, "no-cache", bytes);
    Some(content.with_header(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
}

/// Returns the routes of `/docs`.
pub(super) fn routes(app: &App) -> Router<App> {
    let surface = Surface::Page(page::render_error);
    let serve = |endpoint| serve_static(Some(Method::GET), endpoint, surface, app);
    let redirect = |_: Public| ready(Redirect::to("/docs/"));
    let mut router =
        Router::new().route("/docs", serve(Endpoint::new::<AddressLimited, _>(redirect)));
    for (path, content) in &*CONTENTS {
        let respond = move |_: Public, request: HeaderMap| ready(content.respond(&request));
        let endpoint = Endpoint::new::<AddressLimited, _>(respond);
        router = router.route(path, serve(endpoint));
    }
    router
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_exist() {
        assert_eq!(CONTENTS.len(), FILES.len() + 1);
    }
}
