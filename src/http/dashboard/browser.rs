//! The browser that sends a request, and its two cookies.
//!
//! One cookie identifies a session. The other identifies the browser itself, so that forms have a
//! CSRF token before sign-in. Both are `HttpOnly` and `SameSite=Lax`: scripts cannot read them, and
//! forms of other sites do not send them. Over https they have the prefix `__Host-` (RFC 6265bis),
//! so other subdomains cannot set them.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::request::Parts,
    response::{IntoResponse, Redirect, Response},
};
use cookie::time::Duration;
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::{
    layout::Layout,
    page::{self, FormTargets},
    paths,
};
use crate::{
    auth::{AuthError, browser_sessions::CsrfBinding, caller::SessionCaller},
    http::{
        ApiError, App,
        cookies::{BROWSER_COOKIE, SESSION_COOKIE, read_cookie, set_cookie},
    },
    model::{audit::RequestInfo, brand::Brand, principal::Caller, session_cookie::SessionCookie},
};

/// The browser that sent the request, as its cookies identify it.
pub struct Browser {
    app: App,
    /// The binding of CSRF tokens: the session on pages that require one, otherwise the browser.
    form_binding: CsrfBinding,
    /// The id of a new browser, which has no browser cookie yet.
    new_id: Option<Uuid>,
    /// The value of the session cookie.
    session: Option<String>,
    form_targets: FormTargets,
    brand: Brand,
}

impl FromRequestParts<App> for Browser {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        let browser_id =
            read_cookie(app, &parts.headers, BROWSER_COOKIE).and_then(|text| text.parse().ok());
        let session = read_cookie(app, &parts.headers, SESSION_COOKIE);
        let signed_in = parts.extensions.get::<Caller>().and_then(session_form_binding);
        let (form_binding, new_id) = match (signed_in, browser_id) {
            (Some(session), _) => (session, None),
            (_, Some(id)) => (CsrfBinding::Browser(id), None),
            (_, None) => {
                let id = Uuid::from_bytes(app.env.entropy.bytes());
                (CsrfBinding::Browser(id), Some(id))
            }
        };
        Ok(Self {
            app: Arc::clone(app),
            form_binding,
            new_id,
            session,
            form_targets: FormTargets::Own,
            brand: Brand::default(),
        })
    }
}

impl Browser {
    /// Returns the layout of its pages, with fresh CSRF tokens and a fresh idempotency key.
    pub(super) fn layout(&self) -> Layout {
        let form_token = self.app.auth.browser_sessions.csrf_token(self.form_binding);
        let user_form_token = self.app.auth.browser_sessions.csrf_token(self.user_form_binding());
        let attempt = Uuid::from_bytes(self.app.env.entropy.bytes()).to_string();
        Layout::new(form_token, user_form_token, attempt.into(), self.brand.clone())
    }

    /// Sets the branding of its pages.
    pub(super) fn set_brand(&mut self, brand: Brand) {
        self.brand = brand;
    }

    /// Returns true if a CSRF token is valid for this browser, or for its session and workspace.
    pub(super) fn verify_csrf_token(&self, token: &str) -> bool {
        self.new_id.is_none()
            && self.app.auth.browser_sessions.is_valid_csrf_token(self.form_binding, token)
    }

    /// Returns true if a CSRF token is valid for forms about the user's account.
    pub(super) fn verify_user_csrf_token(&self, token: &str) -> bool {
        self.new_id.is_none()
            && self.app.auth.browser_sessions.is_valid_csrf_token(self.user_form_binding(), token)
    }

    /// Returns the binding of forms about the user's account: the session, in any workspace.
    fn user_form_binding(&self) -> CsrfBinding {
        match self.form_binding {
            CsrfBinding::SessionInWorkspace(id, _) => CsrfBinding::Session(id),
            other => other,
        }
    }

    /// Looks up the session of the cookie. `None` without a valid session.
    ///
    /// Private: a handler that acts for a session gets it only from an extractor that binds the
    /// forms to it.
    async fn caller(&self, request: &Arc<RequestInfo>) -> Result<Option<SessionCaller>, ApiError> {
        let Some(cookie) = &self.session else { return Ok(None) };
        match self.app.auth.authenticator.authenticate_cookie(cookie).await {
            Ok(principal) => {
                let caller = Caller { principal, request: Arc::clone(request) };
                Ok(Some(SessionCaller::new(caller)?))
            }
            Err(AuthError::InvalidCredential(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the cookie of a session.
    pub(super) fn set_session_cookie(&self, response: &mut Response, cookie: &SessionCookie) {
        let lifetime = self.app.auth.sessions.lifetime().as_secs();
        let max_age = Duration::seconds(i64::try_from(lifetime).unwrap_or(i64::MAX));
        let value = cookie.value().expose_secret().to_owned();
        set_cookie(&self.app, response, SESSION_COOKIE, value, Some(max_age));
    }

    /// Lets the forms of the following pages lead to an OAuth client.
    pub(super) fn allow_forms_to_client(&mut self) {
        self.form_targets = FormTargets::Any;
    }

    /// Lets the forms of the following pages lead to an OAuth client if `next` is an authorization
    /// request.
    pub(super) fn allow_forms_to_next(&mut self, next: &str) {
        if paths::is_authorization_request(next) {
            self.allow_forms_to_client();
        }
    }

    /// Renders a page for this browser. A new browser gets its cookie.
    ///
    /// # Errors
    /// `internal` if the template fails.
    pub fn render_page<T: askama::Template>(
        &self,
        status: u16,
        template: &T,
    ) -> Result<Response, ApiError> {
        let mut response = page::render(status, template, &self.brand, self.form_targets)?;
        if let Some(id) = self.new_id {
            set_cookie(&self.app, &mut response, BROWSER_COOKIE, id.to_string(), None);
        }
        Ok(response)
    }

    /// Redirects to a page and sets the cookie of a new session.
    #[must_use]
    pub fn sign_in_redirect(&self, cookie: &SessionCookie, next: &str) -> Response {
        let mut response = Redirect::to(next).into_response();
        self.set_session_cookie(&mut response, cookie);
        response
    }

    /// Redirects to a page and deletes the session cookie.
    #[must_use]
    pub fn sign_out_redirect(&self, next: &str) -> Response {
        let mut response = Redirect::to(next).into_response();
        set_cookie(&self.app, &mut response, SESSION_COOKIE, String::new(), Some(Duration::ZERO));
        response
    }
}

/// A browser on a page that requires no session, with its session if it has one.
///
/// With a session, the forms of the page are bound to it: [`VisitorForm`](super::form::VisitorForm)
/// accepts no others.
pub struct Visitor {
    /// The browser.
    pub browser: Browser,
    /// The signed-in user.
    pub caller: Option<SessionCaller>,
}

impl FromRequestParts<App> for Visitor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let request = parts.extensions.get::<Arc<RequestInfo>>().cloned();
        let request =
            request.ok_or_else(|| ApiError::internal("the request has no RequestInfo"))?;
        let Ok(mut browser) = Browser::from_request_parts(parts, app).await;
        let caller = browser.caller(&request).await?;
        if let Some(binding) = caller.as_deref().and_then(session_form_binding) {
            browser.form_binding = binding;
            browser.new_id = None;
        }
        Ok(Self { browser, caller })
    }
}

/// A browser on a page that starts a session, and whether it has one already.
///
/// The forms of the page are bound to the browser: they work also if the user signs in meanwhile in
/// another tab. [`PublicForm`](super::form::PublicForm) accepts them.
pub struct Newcomer {
    /// The browser.
    pub browser: Browser,
    /// True if the browser has a valid session.
    pub is_signed_in: bool,
}

impl FromRequestParts<App> for Newcomer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let is_signed_in = Visitor::from_request_parts(parts, app).await?.caller.is_some();
        let Ok(browser) = Browser::from_request_parts(parts, app).await;
        Ok(Self { browser, is_signed_in })
    }
}

/// Returns the binding of forms of a signed-in user: the session in its workspace.
fn session_form_binding(caller: &Caller) -> Option<CsrfBinding> {
    let (session, _) = caller.principal.session()?;
    Some(CsrfBinding::SessionInWorkspace(session.id, caller.workspace()))
}
