//! Extractors for forms, with protection against cross-site request forgery (CSRF).
//!
//! A handler gets the fields of a form only if two checks pass: the browser sent it from a page of
//! our origin, and its CSRF token is valid for this browser or session. `Browser::layout` creates
//! the tokens.
//!
//! A handler that acts for a session gets the session only together with a form that is bound to
//! it. [`form_endpoint`] enforces that: the route table passes every handler of a form to it.

use std::str::FromStr;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request, State},
    http::{HeaderMap, header, request::Parts},
};
use secrecy::SecretString;

use super::{
    browser::{Browser, Visitor},
    context::DashboardContext,
    paths::same_origin_path,
};
use crate::{
    auth::caller::SessionCaller,
    http::{
        ApiError, App,
        endpoint::{Endpoint, Handler},
        error::ErrorCode,
        extract::{
            self, Access, MailedLink, Open, PathId, ProtectedAccess, Query, SignIn, SignUp,
            UserCode,
        },
    },
    idempotency::IdempotentRequest,
    model::password::Password,
};

/// The field of the CSRF token.
const TOKEN_FIELD: &str = "form_token";

/// A form whose CSRF token was verified, or that needs none, on a route with the access rule `A`.
///
/// A form of a signed-in user is bound to the session, and of others to the browser. So each type
/// implements this only for the rules that it fits.
pub trait VerifiedForm<A> {}

impl<A: ProtectedAccess> VerifiedForm<A> for Form {}
impl<A: ProtectedAccess> VerifiedForm<A> for UserForm {}
impl<A: ProtectedAccess> VerifiedForm<A> for UploadForm {}
impl<A: AttemptAccess> VerifiedForm<A> for PublicForm {}
impl<A: AttemptAccess> VerifiedForm<A> for VisitorForm {}
impl VerifiedForm<Open> for ForeignForm {}

/// The access rule of a form that needs no session.
pub trait AttemptAccess: Access {}

impl AttemptAccess for SignIn {}
impl AttemptAccess for SignUp {}
impl AttemptAccess for MailedLink {}
impl AttemptAccess for UserCode {}

/// A parameter of a form's handler besides the form. It gives no access to a session that the form
/// is not bound to.
pub trait FormParameter {}

impl FormParameter for State<App> {}
impl FormParameter for DashboardContext {}
impl FormParameter for Query {}
impl<I> FormParameter for PathId<I> {}

/// The parameters of a handler that takes a [`VerifiedForm`].
pub trait FormParameters<A> {}

impl<A, Via, F: VerifiedForm<A>> FormParameters<A> for (Via, F) {}
impl<A, Via, P1: FormParameter, F: VerifiedForm<A>> FormParameters<A> for (Via, P1, F) {}
impl<A, Via, P1: FormParameter, P2: FormParameter, F: VerifiedForm<A>> FormParameters<A>
    for (Via, P1, P2, F)
{
}
impl<A, Via, P1: FormParameter, P2: FormParameter, P3: FormParameter, F: VerifiedForm<A>>
    FormParameters<A> for (Via, P1, P2, P3, F)
{
}

/// Wraps the handler of a form, as [`Endpoint::new`] does. A handler without a [`VerifiedForm`] of
/// its access rule does not compile:
///
/// ```
/// use call2me_auth::http::{
///     dashboard::form::{Form, form_endpoint},
///     extract::{Authorized, UserSession},
/// };
///
/// async fn leave(_caller: Authorized<UserSession>, _form: Form) -> &'static str { "left" }
/// form_endpoint::<UserSession, _>(leave);
/// ```
///
/// ```compile_fail,E0277
/// use call2me_auth::http::{
///     dashboard::form::form_endpoint,
///     extract::{Authorized, Query, UserSession},
/// };
///
/// async fn leave(_caller: Authorized<UserSession>, _query: Query) -> &'static str { "left" }
/// form_endpoint::<UserSession, _>(leave);
/// ```
///
/// Nor does one whose form is bound to the browser only:
///
/// ```compile_fail,E0277
/// use call2me_auth::http::{
///     dashboard::form::{PublicForm, form_endpoint},
///     extract::{Authorized, UserSession},
/// };
///
/// async fn leave(_caller: Authorized<UserSession>, _form: PublicForm) -> &'static str { "left" }
/// form_endpoint::<UserSession, _>(leave);
/// ```
#[must_use]
pub fn form_endpoint<A: Access, Args: FormParameters<A> + 'static>(
    handler: impl Handler<A, Args>,
) -> Endpoint {
    Endpoint::new::<A, Args>(handler)
}

/// A form of a signed-in user. Its CSRF token is bound to the session and its workspace.
pub struct Form {
    /// The browser that sent it.
    pub browser: Browser,
    fields: extract::Query,
}

impl FromRequest<App> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let form = read_form(request, app).await?;
        if form.browser.verify_csrf_token(form.token()?) { Ok(form) } else { Err(invalid_token()) }
    }
}

/// Reads a form from a page of our origin. The caller must still verify its CSRF token.
async fn read_form(request: Request, app: &App) -> Result<Form, ApiError> {
    let (browser, parts, body) = check_request(request, app).await?;
    read_fields(browser, &parts, body, app).await
}

async fn read_fields(
    browser: Browser,
    parts: &Parts,
    body: Body,
    app: &App,
) -> Result<Form, ApiError> {
    let limit = app.settings.max_body_bytes;
    let fields = extract::read_urlencoded_form(&parts.headers, body, app, limit).await?;
    Ok(Form { browser, fields })
}

async fn check_request(request: Request, app: &App) -> Result<(Browser, Parts, Body), ApiError> {
    let (mut parts, body) = request.into_parts();
    check_origin(&parts.headers, &app.settings.public_url)?;
    let Ok(browser) = Browser::from_request_parts(&mut parts, app).await;
    Ok((browser, parts, body))
}

/// A form of a page that starts a session or needs none. Its CSRF token is bound to the browser, so
/// its handler gets no session.
pub struct PublicForm(pub Form);

impl FromRequest<App> for PublicForm {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let form = read_form(request, app).await?;
        if form.browser.verify_csrf_token(form.token()?) {
            Ok(Self(form))
        } else {
            Err(invalid_token())
        }
    }
}

/// A form of a page that acts for the user's session if there is one. Its CSRF token is then bound
/// to the session and its workspace, otherwise to the browser.
pub struct VisitorForm {
    /// The signed-in user.
    pub caller: Option<SessionCaller>,
    /// The form.
    pub form: Form,
}

impl FromRequest<App> for VisitorForm {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        check_origin(&parts.headers, &app.settings.public_url)?;
        let Visitor { browser, caller } = Visitor::from_request_parts(&mut parts, app).await?;
        let form = read_fields(browser, &parts, body, app).await?;
        if form.browser.verify_csrf_token(form.token()?) {
            Ok(Self { caller, form })
        } else {
            Err(invalid_token())
        }
    }
}

/// A form of another site, such as an authorization request by POST. It has no CSRF token, so its
/// handler must change nothing.
pub struct ForeignForm(pub extract::Query);

impl FromRequest<App> for ForeignForm {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let limit = app.settings.max_body_bytes;
        Ok(Self(extract::read_urlencoded_form(&parts.headers, body, app, limit).await?))
    }
}

/// A form about the user's account. Its CSRF token is bound to the session, in any workspace.
pub struct UserForm(pub Form);

impl FromRequest<App> for UserForm {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let form = read_form(request, app).await?;
        if form.browser.verify_user_csrf_token(form.token()?) {
            Ok(Self(form))
        } else {
            Err(invalid_token())
        }
    }
}

fn invalid_token() -> ApiError {
    let message = "this form belongs to another session or workspace, or your browser blocks cookies; go back and reload the page";
    ApiError::new(ErrorCode::Forbidden, message)
}

/// A form with a file.
pub struct UploadForm {
    /// The other fields.
    pub form: Form,
    /// The file; `None` if the user chose none.
    pub file: Option<Bytes>,
}

impl FromRequest<App> for UploadForm {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (browser, parts, body) = check_request(request, app).await?;
        let (fields, file) = extract::read_multipart_form(parts, body, app).await?;
        let form = Form { browser, fields };
        if form.browser.verify_csrf_token(form.token()?) {
            Ok(Self { form, file })
        } else {
            Err(invalid_token())
        }
    }
}

impl Form {
    fn token(&self) -> Result<&str, ApiError> {
        self.text(TOKEN_FIELD)
    }

    /// Lets the forms of the next pages lead to the target of `next`, the page after the sign-in.
    ///
    /// # Errors
    /// `validation_failed` if `next` is repeated or contains NUL.
    pub fn allow_forms_to_next(&mut self) -> Result<(), ApiError> {
        let next = same_origin_path(self.text("next")?).to_owned();
        self.browser.allow_forms_to_next(&next);
        Ok(())
    }

    /// Returns the idempotency key and the content of the form, as `Idempotency-Key` does for API
    /// requests.
    ///
    /// # Errors
    /// `validation_failed` if the field `attempt` is repeated or contains NUL.
    pub fn attempt(&self) -> Result<IdempotentRequest, ApiError> {
        let key = self.non_empty_text("attempt")?.map(SecretString::from);
        let body: Vec<_> = self.fields.pairs().flat_map(|(name, value)| [name, value]).collect();
        Ok(IdempotentRequest::new(key, serde_json::to_string(&body).unwrap_or_default().as_bytes()))
    }

    /// Returns a field's text; empty if the field is missing.
    ///
    /// # Errors
    /// `validation_failed` if the field is repeated or contains NUL.
    pub fn text(&self, name: &'static str) -> Result<&str, ApiError> {
        Ok(self.fields.text(name)?.unwrap_or_default())
    }

    /// Returns a field's text; `None` if the field is missing.
    ///
    /// # Errors
    /// `validation_failed` if the field is repeated or contains NUL.
    pub fn optional_text(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        self.fields.text(name)
    }

    /// Returns a password; `None` if the field is empty. Spaces are part of the password.
    ///
    /// # Errors
    /// `validation_failed` if the field is repeated or contains NUL.
    pub fn password(&self, name: &'static str) -> Result<Option<Password>, ApiError> {
        let text = Some(self.text(name)?).filter(|text| !text.is_empty());
        Ok(text.map(|text| Password::new(text.to_owned())))
    }

    /// Parses a field; `None` if the field is empty. `what` describes valid values in the error
    /// message.
    ///
    /// # Errors
    /// `validation_failed` if the value is invalid, or the field is repeated or contains NUL.
    pub fn parse_as<T: FromStr>(
        &self,
        name: &'static str,
        what: &str,
    ) -> Result<Option<T>, ApiError> {
        if self.non_empty_text(name)?.is_none() {
            Ok(None)
        } else {
            self.fields.parse_as(name, what)
        }
    }

    /// Returns a field's trimmed text; `None` if the field is empty.
    ///
    /// # Errors
    /// `validation_failed` if the field is repeated or contains NUL.
    pub fn non_empty_text(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        Ok(Some(self.text(name)?.trim()).filter(|text| !text.is_empty()))
    }
}

/// Rejects forms from pages of other origins. Newer browsers state the origin in `Sec-Fetch-Site`,
/// older ones in `Origin`.
fn check_origin(headers: &HeaderMap, public_url: &str) -> Result<(), ApiError> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_same_origin = match (text("sec-fetch-site"), text(header::ORIGIN.as_str())) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => origin == public_url,
        // Not from a browser: the CSRF token decides.
        (None, None) => true,
    };
    if is_same_origin {
        return Ok(());
    }
    let message = format!("forms are only accepted from pages at {public_url}");
    Err(ApiError::new(ErrorCode::Forbidden, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn form_from_other_origin_is_rejected() {
        let url = "https://auth.example";
        for (ok, sent) in [
            (true, &[][..]),
            (true, &[("origin", "https://auth.example")]),
            (true, &[("sec-fetch-site", "same-origin"), ("origin", "null")]),
            (false, &[("origin", "https://auth.example.evil")]),
            (false, &[("origin", "http://auth.example")]),
            (false, &[("origin", "null")]),
            (false, &[("sec-fetch-site", "same-site"), ("origin", "https://auth.example")]),
            (false, &[("sec-fetch-site", "cross-site")]),
            (false, &[("sec-fetch-site", "none")]),
        ] {
            assert_eq!(check_origin(&headers(sent), url).is_ok(), ok, "{sent:?}");
        }
    }
}
