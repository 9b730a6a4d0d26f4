//! Minting a key, whose secret is shown once.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse as _, Redirect, Response},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::{
    auth::keys::{MintKey, Minted},
    http::{
        ApiError, App,
        dashboard::{
            form::Form,
            layout::{Desk, Layout},
            page::explained,
        },
        error::Code,
        extract::{Authorized, FirstPartyAdmin},
    },
    idempotency::{Begun, IdempotencyError, KeptAnswer, Work},
    model::{
        api_key::{ApiKey, KeyStatus},
        id::ApiKeyId,
        principal::Caller,
        scope::Scope,
    },
};

#[derive(Template)]
#[template(path = "new_api_key.html")]
struct NewKeyPage<'a> {
    layout: Layout,
    name: &'a str,
    description: &'a str,
    allowed_ips: &'a str,
    scope: Scope,
    problem: Option<String>,
}

/// A fresh key, with its secret.
#[derive(Template)]
#[template(path = "fresh_api_key.html")]
struct FreshKeyPage<'a> {
    layout: Layout,
    key: &'a ApiKey,
    secret: &'a str,
    public_url: &'a str,
    /// The name of the key that it succeeds.
    succeeds: Option<String>,
}

/// What is kept of a form that made a key, should it come again.
#[derive(Serialize, Deserialize)]
struct Fresh {
    id: ApiKeyId,
    secret: String,
}

/// Asks what it is to be.
pub(in crate::http::dashboard) async fn show(
    _caller: Authorized<FirstPartyAdmin>,
    desk: Desk,
) -> Response {
    let page = NewKeyPage {
        layout: desk.layout(),
        name: "",
        description: "",
        allowed_ips: "",
        // The least is where to begin.
        scope: Scope::ReadOnly,
        problem: None,
    };
    desk.page(200, &page)
}

/// Mints it.
pub(in crate::http::dashboard) async fn mint(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    desk: Desk,
    form: Form,
) -> Result<Response, ApiError> {
    let scope = form.parse_as("scope", "read-only, write or admin")?.unwrap_or(Scope::ReadOnly);
    let allowed_ips = form.text("allowed_ips")?;
    let wanted = MintKey {
        name: form.text("name")?.to_owned(),
        scope,
        description: form.filled("description")?.map(str::to_owned),
        allowed_ips: networks(allowed_ips),
    };
    let minted = match app.idempotency.begin(&caller, form.attempt()?).await {
        Ok(Begun::Work(mut work)) => {
            let minted = app.auth.mint_key(work.tx(), &caller, wanted).await;
            minted.map(|minted| (work, minted)).map_err(ApiError::from)
        }
        Ok(Begun::Answered(answer)) => return again(&app, &desk, &caller, &answer).await,
        Err(IdempotencyError::Conflict) => Err(ApiError::new(
            Code::Conflict,
            "you have created a key from this form already; to create this one as well, send it again",
        )),
        Err(error) => Err(error.into()),
    };
    match minted {
        Ok((work, minted)) => finish(&app, &desk, &caller, work, minted).await,
        Err(error) => {
            let (status, problem) = explained(error)?;
            let page = NewKeyPage {
                layout: desk.layout(),
                name: form.text("name")?,
                description: form.text("description")?,
                allowed_ips,
                scope,
                problem: Some(problem),
            };
            Ok(desk.page(status, &page))
        }
    }
}

/// Networks as people write them: with commas, or one a line.
pub(super) fn networks(text: &str) -> Vec<String> {
    let networks = text.split([',', '\n', '\r', ' ', '\t']);
    networks.filter(|network| !network.is_empty()).map(str::to_owned).collect()
}

/// Makes a fresh key last, and shows it.
pub(super) async fn finish(
    app: &App,
    desk: &Desk,
    caller: &Caller,
    work: Work,
    minted: Minted,
) -> Result<Response, ApiError> {
    let secret = SecretString::from(minted.secret.reveal());
    let fresh = Fresh { id: minted.key.id, secret: secret.expose_secret().to_owned() };
    let body = serde_json::to_string(&fresh).map_err(|_| ApiError::internal("no JSON of a key"))?;
    work.finish(&KeptAnswer { status: 201, location: page_of(fresh.id), body }).await?;
    shown(app, desk, caller, &minted.key, &secret).await
}

/// Shows it once more, where the same form came twice.
pub(super) async fn again(
    app: &App,
    desk: &Desk,
    caller: &Caller,
    answer: &KeptAnswer,
) -> Result<Response, ApiError> {
    let fresh: Fresh = serde_json::from_str(&answer.body)
        .map_err(|_| ApiError::internal("what was kept of a form is no key"))?;
    let key = app.auth.get_key(caller, fresh.id).await?;
    // Who needs to copy it has not used it yet.
    if key.status() == KeyStatus::Revoked || key.last_used_at.is_some() {
        return Ok(Redirect::to(&page_of(key.id)).into_response());
    }
    shown(app, desk, caller, &key, &fresh.secret.into()).await
}

async fn shown(
    app: &App,
    desk: &Desk,
    caller: &Caller,
    key: &ApiKey,
    secret: &SecretString,
) -> Result<Response, ApiError> {
    let succeeds = match key.rotated_from {
        Some(old) => Some(app.auth.get_key(caller, old).await?.name),
        None => None,
    };
    let page = FreshKeyPage {
        layout: desk.layout(),
        key,
        secret: secret.expose_secret(),
        public_url: &app.settings.public_url,
        succeeds,
    };
    Ok(desk.page(201, &page))
}

/// The page of a key.
pub(super) fn page_of(id: ApiKeyId) -> String {
    format!("/api-keys/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_taken_as_people_write_them() {
        assert!(networks(" \r\n").is_empty());
        assert_eq!(
            networks("10.0.0.0/8, 203.0.113.9\r\n2001:db8::/32"),
            ["10.0.0.0/8", "203.0.113.9", "2001:db8::/32"]
        );
    }
}
