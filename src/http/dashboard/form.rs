//! Extractors for forms, with protection against cross-site request forgery (CSRF).
//!
//! A handler gets the fields of a form only if two checks pass: the browser sent it from a page of
//! our origin, and its CSRF token is valid for this browser or session. `Browser::layout` creates
//! the tokens.

use std::str::FromStr;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, header, request::Parts},
};
use secrecy::SecretString;

use super::{browser::Browser, paths::same_origin_path};
use crate::{
    http::{ApiError, App, error::ErrorCode, extract},
    idempotency::IdempotentRequest,
    model::password::Password,
};

/// The field of the CSRF token.
const TOKEN_FIELD: &str = "form_token";

/// A form with a valid CSRF token for the browser, or for its session and workspace.
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
    let fields =
        extract::read_urlencoded_form(&parts.headers, body, app, app.settings.max_body_bytes)
            .await?;
    Ok(Form { browser, fields })
}

async fn check_request(request: Request, app: &App) -> Result<(Browser, Parts, Body), ApiError> {
    let (mut parts, body) = request.into_parts();
    check_origin(&parts.headers, &app.settings.public_url)?;
    let Ok(browser) = Browser::from_request_parts(&mut parts, app).await;
    Ok((browser, parts, body))
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
    pub async fn allow_next_form_action(&mut self) -> Result<(), ApiError> {
        let next = same_origin_path(self.text("next")?).to_owned();
        self.browser.allow_form_action(&next).await;
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
