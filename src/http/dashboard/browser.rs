//! A browser, and the two cookies that it is known by.
//!
//! One stands for a session; the other for the browser itself, whoever sits at it, so that forms work before
//! anybody has signed in. Neither is for scripts, nor sent along from other sites' forms; where the service
//! is reached over https, no neighbour's subdomain can plant them (`__Host-`, RFC 6265bis).

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use cookie::{Cookie, SameSite, time::Duration};
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::{authorize, layout::Layout, page};
use crate::{
    auth::{AuthError, browser::FormOf},
    http::{ApiError, App, extract::Query},
    model::{
        audit::RequestInfo,
        brand::Brand,
        id::SessionId,
        oauth::{parameters::Parameters, redirect_uri},
        principal::{Caller, Credential},
    },
};

const SESSION: &str = "call2me_session";
const BROWSER: &str = "call2me_browser";

/// Who looks at a page, as far as cookies tell.
pub struct Browser {
    app: App,
    /// What its forms are made for: its session where a page asks for one, else the browser.
    form_of: FormOf,
    /// Its own id, where it is seen for the first time.
    new: Option<Uuid>,
    session: Option<String>,
    /// Where its forms may lead besides here, as a source of `form-action`.
    way: Option<String>,
    /// How pages look.
    brand: Brand,
}

impl FromRequestParts<App> for Browser {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let known = cookie(app, &parts.headers, BROWSER).and_then(|text| text.parse().ok());
        let session = cookie(app, &parts.headers, SESSION);
        let signed_in = parts.extensions.get::<Caller>().and_then(form_of);
        let (form_of, new) = match (signed_in, known) {
            (Some(session), _) => (session, None),
            (_, Some(known)) => (FormOf::Browser(known), None),
            (_, None) => {
                let new = Uuid::from_bytes(app.env.entropy.bytes());
                (FormOf::Browser(new), Some(new))
            }
        };
        Ok(Self { app: Arc::clone(app), form_of, new, session, way: None, brand: Brand::default() })
    }
}

impl Browser {
    /// What is around its pages.
    pub(super) fn layout(&self) -> Layout {
        let form_token = self.app.auth.form_token(self.form_of);
        let own_token = self.app.auth.form_token(self.own());
        let attempt = Uuid::from_bytes(self.app.env.entropy.bytes()).to_string();
        Layout::new(form_token, own_token, attempt.into(), self.brand.clone())
    }

    /// Makes its pages look like a workspace's.
    pub(super) fn brand(&mut self, brand: Brand) {
        self.brand = brand;
    }

    /// Whether a form was made for this browser.
    pub(super) fn has_made(&self, token: &str) -> bool {
        self.new.is_none() && self.app.auth.is_form_of(self.form_of, token)
    }

    /// The same, for a form that is about the person.
    pub(super) fn has_made_own(&self, token: &str) -> bool {
        self.new.is_none() && self.app.auth.is_form_of(self.own(), token)
    }

    /// What forms about the person are made for.
    fn own(&self) -> FormOf {
        match self.form_of {
            FormOf::Session(id, _) => FormOf::Person(id),
            other => other,
        }
    }

    /// Who is signed in, on a page that is for anybody.
    ///
    /// # Errors
    /// When the database that knows is away.
    pub async fn caller(&self, request: &Arc<RequestInfo>) -> Result<Option<Caller>, ApiError> {
        let Some(cookie) = &self.session else { return Ok(None) };
        match self.app.auth.authenticate_cookie(cookie).await {
            Ok(principal) => Ok(Some(Caller { principal, request: Arc::clone(request) })),
            Err(AuthError::InvalidCredential(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes what follows for the session of somebody who is signed in, on a page that is for anybody.
    pub(super) fn is_of(&mut self, caller: &Caller) {
        self.form_of = form_of(caller).unwrap_or(self.form_of);
    }

    /// Makes pages from here on those of a way that ends at this redirect URI.
    pub(super) fn leads_to(&mut self, redirect_uri: &str) {
        self.way = redirect_uri::csp_source(redirect_uri);
    }

    /// The same, where the page to come after this one is a client's request for authorization.
    pub(super) async fn is_bound_for(&mut self, next: &str) {
        let query = next.strip_prefix(authorize::HERE).and_then(|rest| rest.strip_prefix('?'));
        let Some(pairs) = query.and_then(Query::parse).map(Query::into_pairs) else { return };
        if let Some(uri) = self.app.oauth.redirect_uri_of(&Parameters::new(pairs)).await {
            self.leads_to(&uri);
        }
    }

    /// A page for this browser.
    pub fn page<T: askama::Template>(&self, status: u16, template: &T) -> Response {
        let mut response = match &self.way {
            Some(way) => page::render_on_the_way(status, template, &self.brand, way),
            None => page::render(status, template, &self.brand),
        };
        if let Some(new) = self.new {
            set(&self.app, &mut response, BROWSER, new.to_string(), None);
        }
        response
    }

    /// The way to another page, as whoever signed in with this session.
    #[must_use]
    pub fn signed_in(&self, session: SessionId, next: &str) -> Response {
        let mut response = Redirect::to(next).into_response();
        let lasts = self.app.auth.session_lifetime().as_secs();
        let lasts = Duration::seconds(i64::try_from(lasts).unwrap_or(i64::MAX));
        let value = self.app.auth.cookie_of(session);
        set(&self.app, &mut response, SESSION, value.expose_secret().to_owned(), Some(lasts));
        response
    }

    /// The way to another page, as nobody.
    #[must_use]
    pub fn signed_out(&self, next: &str) -> Response {
        let mut response = Redirect::to(next).into_response();
        set(&self.app, &mut response, SESSION, String::new(), Some(Duration::ZERO));
        response
    }
}

/// What forms are made for where somebody is signed in.
fn form_of(caller: &Caller) -> Option<FormOf> {
    match &caller.principal.credential {
        Credential::Session { id, .. } => Some(FormOf::Session(*id, caller.workspace())),
        _ => None,
    }
}

/// What a browser shows for its session.
pub fn session_cookie(app: &App, headers: &HeaderMap) -> Option<String> {
    cookie(app, headers, SESSION)
}

fn is_secure(app: &App) -> bool {
    app.settings.public_url.starts_with("https://")
}

fn name_of(app: &App, name: &str) -> String {
    if is_secure(app) { format!("__Host-{name}") } else { name.to_owned() }
}

/// A cookie's value; none where there are two, for nobody knows which is ours.
fn cookie(app: &App, headers: &HeaderMap, name: &str) -> Option<String> {
    let name = name_of(app, name);
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookies = texts.flat_map(Cookie::split_parse).filter_map(Result::ok);
    let mut values = cookies.filter(|cookie| cookie.name() == name);
    match (values.next(), values.next()) {
        (Some(only), None) => Some(only.value().to_owned()),
        _ => None,
    }
}

fn set(app: &App, response: &mut Response, name: &str, value: String, lasts: Option<Duration>) {
    let mut cookie = Cookie::build((name_of(app, name), value))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .secure(is_secure(app))
        .build();
    cookie.set_max_age(lasts);
    if let Ok(value) = HeaderValue::try_from(cookie.to_string()) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}
