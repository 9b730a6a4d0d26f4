//! The creation of an API key. Its secret is displayed once.
//!
//! The same form sent twice creates one key. The second response displays the secret again, unless
//! the key has been used or revoked.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse as _, Redirect, Response},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::{
    auth::api_keys::{CreateKeyParams, CreatedKey},
    http::{
        ApiError, App,
        dashboard::{context::DashboardContext, form::Form, layout::Layout, page::form_error},
        error::ErrorCode,
        extract::{Authorized, FirstPartyAdmin},
    },
    idempotency::{IdempotencyError, IdempotencyOutcome, IdempotentTransaction, StoredResponse},
    model::{
        api_key::{ApiKey, KeyStatus},
        id::ApiKeyId,
        principal::Caller,
        scope::Scope,
    },
    store::Audited,
};

#[derive(Template)]
#[template(path = "new_api_key.html")]
struct NewKeyPage<'a> {
    layout: Layout,
    name: &'a str,
    description: &'a str,
    allowed_ips: &'a str,
    rate_limit: &'a str,
    scope: Scope,
    problem: Option<String>,
}

/// The page of a new key with its secret.
#[derive(Template)]
#[template(path = "created_api_key.html")]
struct CreatedKeyPage<'a> {
    layout: Layout,
    key: &'a ApiKey,
    secret: &'a str,
    public_url: &'a str,
    /// The name of the predecessor in a rotation.
    predecessor_name: Option<String>,
}

/// The stored response of a form that created a key, for a retry.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    id: ApiKeyId,
    secret: String,
}

/// Displays the form for a new key.
pub(in crate::http::dashboard) async fn show(
    _caller: Authorized<FirstPartyAdmin>,
    context: DashboardContext,
) -> Result<Response, ApiError> {
    let page = NewKeyPage {
        layout: context.layout(),
        name: "",
        description: "",
        allowed_ips: "",
        rate_limit: "",
        // The scope with the fewest rights is preselected.
        scope: Scope::ReadOnly,
        problem: None,
    };
    context.render_page(200, &page)
}

/// Creates the key.
pub(in crate::http::dashboard) async fn create(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    context: DashboardContext,
    form: Form,
) -> Result<Response, ApiError> {
    let scope = form.parse_as("scope", "read-only, write or admin")?.unwrap_or(Scope::ReadOnly);
    let allowed_ips = form.text("allowed_ips")?;
    let new_key = CreateKeyParams {
        name: form.text("name")?.to_owned(),
        scope,
        description: form.non_empty_text("description")?.map(str::to_owned),
        allowed_ips: parse_networks(allowed_ips),
        rate_limit_per_minute: parse_rate_limit(&form)?,
    };
    let minted = match app.idempotency.begin(&caller, form.attempt()?).await {
        Ok(IdempotencyOutcome::New(mut work)) => {
            let minted = app.auth.api_keys.create(work.tx(), &caller, new_key).await;
            minted.map(|minted| (work, minted)).map_err(ApiError::from)
        }
        Ok(IdempotencyOutcome::Replayed(answer)) => {
            return display_again(&app, &context, &caller, &answer).await;
        }
        Err(IdempotencyError::Conflict) => Err(ApiError::new(
            ErrorCode::Conflict,
            "you already created a key with this form; submit it again to create another one",
        )),
        Err(error) => Err(error.into()),
    };
    match minted {
        Ok((work, minted)) => commit_and_display(&app, &context, &caller, work, minted).await,
        Err(error) => {
            let (status, problem) = form_error(error)?;
            let page = NewKeyPage {
                layout: context.layout(),
                name: form.text("name")?,
                description: form.text("description")?,
                allowed_ips,
                rate_limit: form.text(RATE_LIMIT_FIELD)?,
                scope,
                problem: Some(problem),
            };
            context.render_page(status, &page)
        }
    }
}

/// The form field of a key's rate limit.
pub(super) const RATE_LIMIT_FIELD: &str = "rate_limit_per_minute";

/// Returns the rate limit of a form; `None` if the field is empty.
pub(super) fn parse_rate_limit(form: &Form) -> Result<Option<u32>, ApiError> {
    form.parse_as(RATE_LIMIT_FIELD, "a whole number")
}

/// Splits a text into networks, separated by commas, spaces or line breaks.
pub(super) fn parse_networks(text: &str) -> Vec<String> {
    let networks = text.split([',', '\n', '\r', ' ', '\t']);
    networks.filter(|network| !network.is_empty()).map(str::to_owned).collect()
}

/// Commits a new key and displays it with its secret.
pub(super) async fn commit_and_display(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    work: IdempotentTransaction,
    (minted, audited): (CreatedKey, Audited),
) -> Result<Response, ApiError> {
    let secret = SecretString::from(minted.secret.reveal());
    let stored = StoredKey { id: minted.key.id, secret: secret.expose_secret().to_owned() };
    let body = serde_json::to_string(&stored);
    let body = body.map_err(|_| ApiError::internal("failed to serialize a new key"))?;
    let answer = StoredResponse { status: 201, location: key_path(stored.id), body };
    work.commit(&answer, audited).await?.unfenced("a new key, which no node has cached");
    created_key_page(app, context, caller, &minted.key, &secret).await
}

/// Displays a created key again if its form was sent twice.
pub(super) async fn display_again(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    answer: &StoredResponse,
) -> Result<Response, ApiError> {
    let stored: StoredKey = serde_json::from_str(&answer.body)
        .map_err(|_| ApiError::internal("invalid stored response of a key"))?;
    let key = app.auth.api_keys.get(caller, stored.id).await?;
    // A used key has been copied, so its secret need not be displayed again.
    if key.status() != KeyStatus::Active || key.last_used_at.is_some() {
        return Ok(Redirect::to(&key_path(key.id)).into_response());
    }
    created_key_page(app, context, caller, &key, &stored.secret.into()).await
}

async fn created_key_page(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    key: &ApiKey,
    secret: &SecretString,
) -> Result<Response, ApiError> {
    let succeeds = match key.rotated_from {
        Some(predecessor) => Some(app.auth.api_keys.get(caller, predecessor).await?.name),
        None => None,
    };
    let page = CreatedKeyPage {
        layout: context.layout(),
        key,
        secret: secret.expose_secret(),
        public_url: &app.settings.public_url,
        predecessor_name: succeeds,
    };
    context.render_page(201, &page)
}

/// Returns the path of a key's page.
pub(super) fn key_path(id: ApiKeyId) -> String {
    format!("/api-keys/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_may_be_separated_by_commas_or_line_breaks() {
        assert!(parse_networks(" \r\n").is_empty());
        assert_eq!(
            parse_networks("10.0.0.0/8, 203.0.113.9\r\n2001:db8::/32"),
            ["10.0.0.0/8", "203.0.113.9", "2001:db8::/32"]
        );
    }
}
