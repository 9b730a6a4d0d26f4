//! What a form sends, once it is known that it was ours.

use std::str::FromStr;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, header, request::Parts},
};
use secrecy::SecretString;

use super::{browser::Browser, sign_in::own_page};
use crate::{
    http::{ApiError, App, error::Code, extract},
    idempotency::Attempt,
    model::password::Password,
};

/// The field that holds the form's own token.
const TOKEN: &str = "form_token";

/// A form that was made for the browser that sends it (against cross-site request forgery).
pub struct Form {
    /// Who sends it.
    pub browser: Browser,
    fields: extract::Query,
}

impl FromRequest<App> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let form = received(request, app).await?;
        if form.browser.has_made(form.token()?) { Ok(form) } else { Err(too_old()) }
    }
}

/// What was sent, from a page of ours; whose form it was is still to be seen.
async fn received(request: Request, app: &App) -> Result<Form, ApiError> {
    let (browser, parts, body) = sent(request, app).await?;
    let fields = extract::form_fields(&parts.headers, body, app).await?;
    Ok(Form { browser, fields })
}

async fn sent(request: Request, app: &App) -> Result<(Browser, Parts, Body), ApiError> {
    let (mut parts, body) = request.into_parts();
    check_origin(&parts.headers, &app.settings.public_url)?;
    let Ok(browser) = Browser::from_request_parts(&mut parts, app).await;
    Ok((browser, parts, body))
}

/// A form about the person who sends it: made for their session, in whatever workspace that is by now.
pub struct OwnForm(pub Form);

impl FromRequest<App> for OwnForm {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let form = received(request, app).await?;
        if form.browser.has_made_own(form.token()?) { Ok(Self(form)) } else { Err(too_old()) }
    }
}

fn too_old() -> ApiError {
    let message = "this form was made for another workspace or session, or the browser keeps no cookies: go back and reload the page";
    ApiError::new(Code::Forbidden, message)
}

/// A form with a file.
pub struct Upload {
    /// What else it sends.
    pub form: Form,
    /// The file, if one was chosen.
    pub file: Option<Bytes>,
}

impl FromRequest<App> for Upload {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (browser, parts, body) = sent(request, app).await?;
        let (fields, file) = extract::form_with_file(parts, body, app).await?;
        let form = Form { browser, fields };
        if form.browser.has_made(form.token()?) { Ok(Self { form, file }) } else { Err(too_old()) }
    }
}

impl Form {
    fn token(&self) -> Result<&str, ApiError> {
        self.text(TOKEN)
    }

    /// Notes where its sender wants to go on to (`next`), which what is shown until then has to allow.
    ///
    /// # Errors
    /// When that is there twice, or holds a NUL.
    pub async fn goes_on(&mut self) -> Result<(), ApiError> {
        let next = own_page(self.text("next")?).to_owned();
        self.browser.is_bound_for(&next).await;
        Ok(())
    }

    /// By what it is known, should it be sent twice (as an `Idempotency-Key` does for programs).
    ///
    /// # Errors
    /// When that is there twice, or holds a NUL.
    pub fn attempt(&self) -> Result<Attempt, ApiError> {
        let key = self.filled("attempt")?.map(SecretString::from);
        let body: Vec<_> = self.fields.pairs().flat_map(|(name, value)| [name, value]).collect();
        Ok(Attempt::new(key, serde_json::to_string(&body).unwrap_or_default().as_bytes()))
    }

    /// A field's text; empty where it was left out.
    ///
    /// # Errors
    /// When it is there twice, or holds a NUL.
    pub fn text(&self, name: &'static str) -> Result<&str, ApiError> {
        Ok(self.fields.text(name)?.unwrap_or_default())
    }

    /// A field's text, unless it was left out.
    ///
    /// # Errors
    /// When it is there twice, or holds a NUL.
    pub fn given(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        self.fields.text(name)
    }

    /// A password, unless it was left empty. Spaces are part of it.
    ///
    /// # Errors
    /// When it is there twice, or holds a NUL.
    pub fn password(&self, name: &'static str) -> Result<Option<Password>, ApiError> {
        let text = Some(self.text(name)?).filter(|text| !text.is_empty());
        Ok(text.map(|text| Password::new(text.to_owned())))
    }

    /// A field of some type, unless it was left empty; `what` tells what it must be.
    ///
    /// # Errors
    /// When it is not that, or there twice.
    pub fn parse_as<T: FromStr>(
        &self,
        name: &'static str,
        what: &str,
    ) -> Result<Option<T>, ApiError> {
        if self.filled(name)?.is_none() { Ok(None) } else { self.fields.parse_as(name, what) }
    }

    /// A field's text, unless it was left empty.
    ///
    /// # Errors
    /// When it is there twice, or holds a NUL.
    pub fn filled(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        Ok(Some(self.text(name)?.trim()).filter(|text| !text.is_empty()))
    }
}

/// Browsers tell where a form stood: newer ones by `Sec-Fetch-Site`, others by `Origin`.
fn check_origin(headers: &HeaderMap, public_url: &str) -> Result<(), ApiError> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let is_ours = match (text("sec-fetch-site"), text(header::ORIGIN.as_str())) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => origin == public_url,
        // No browser's; the form's token decides.
        (None, None) => true,
    };
    if is_ours {
        return Ok(());
    }
    let message = format!("forms are only taken from pages at {public_url}");
    Err(ApiError::new(Code::Forbidden, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_forms_of_our_own_pages_are_taken() {
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
