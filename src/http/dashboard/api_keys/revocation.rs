//! The revocation of an API key, with a report on clients that would break.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use time::{Duration, OffsetDateTime};

use super::{create::key_path, rotation::explain_verdict};
use crate::{
    auth::api_keys::revocation::{QuietCondition, RevokeKeyOptions},
    http::{
        ApiError, App,
        dashboard::{
            context::DashboardContext,
            form::Form,
            format::{RelativeTime, RequestCount},
            layout::{FlashMessage, Layout},
        },
        error::ErrorCode,
        extract::{Admin, Authorized, PathId},
    },
    model::{
        api_key::{ApiKey, KeyStatus},
        id::ApiKeyId,
        key_descendants::{AddedAccess, KeyDescendants},
        principal::Caller,
        rotation::RotationReport,
        scope::Scope,
    },
};

/// The number of descendants of each kind that the page lists.
const MAX_LISTED: usize = 20;

#[derive(Template)]
#[template(path = "revoke_api_key.html")]
struct RevokePage<'a> {
    layout: Layout,
    now: OffsetDateTime,
    key: &'a ApiKey,
    redacted: String,
    report: RotationReport,
    /// The time that a key must be idle before it is safe to revoke.
    required_quiet: Duration,
    descendants: KeyDescendants,
    problem: Option<String>,
}

impl RevokePage<'_> {
    fn explanation(&self) -> String {
        explain_verdict(&self.report, self.now, self.required_quiet)
    }

    /// Returns true if no client can depend on the key.
    fn is_never_used(&self) -> bool {
        self.report.old.last_used_at.is_none()
    }

    /// Returns the number of descendants beyond the 20 of each kind that the page lists.
    fn unlisted_descendants(&self) -> usize {
        let KeyDescendants { api_keys, oauth_clients, invitations, added } = &self.descendants;
        let AddedAccess { client_secrets, redirect_uris, members, widened_keys } = added;
        [
            api_keys.items.len(),
            oauth_clients.items.len(),
            invitations.items.len(),
            client_secrets.items.len(),
            redirect_uris.items.len(),
            members.items.len(),
            widened_keys.items.len(),
        ]
        .map(|count| count.saturating_sub(MAX_LISTED))
        .iter()
        .sum()
    }

    fn relative_time(&self, moment: &OffsetDateTime) -> RelativeTime {
        RelativeTime::new(*moment, self.now)
    }
}

/// Displays the clients that still use the key, and asks for confirmation.
pub(in crate::http::dashboard) async fn show(
    caller: Authorized<Admin>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<ApiKeyId>,
) -> Result<Response, ApiError> {
    page(&app, &context, &caller, id, None).await
}

/// Revokes the key and, with the field `cascade`, what it made. If the key may be in use, the form
/// must confirm that with the field `anyway`.
pub(in crate::http::dashboard) async fn revoke(
    caller: Authorized<Admin>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<ApiKeyId>,
    form: Form,
) -> Result<Response, ApiError> {
    let is_confirmed = match form.non_empty_text("anyway")? {
        // The page said that the key was never used; it may have been used since.
        Some("unused") => app.auth.api_keys.get(&caller, id).await?.last_used_at.is_none(),
        anyway => anyway.is_some(),
    };
    let options = RevokeKeyOptions {
        condition: if is_confirmed { QuietCondition::None } else { QuietCondition::Key },
        cascade: form.non_empty_text("cascade")?.is_some(),
    };
    match app.auth.api_keys.revoke(&caller, id, options).await.map_err(ApiError::from) {
        Ok(()) => {
            let key = app.auth.api_keys.get(&caller, id).await?;
            let rotation = key.rotated_to.map(|_| format!("{}/rotation", key_path(id)));
            Ok(FlashMessage::KeyRevoked.redirect_to(&rotation.unwrap_or_else(|| key_path(id))))
        }
        Err(error) if error.code() == ErrorCode::KeyInUse => {
            let problem = "The key was not revoked because it may be in use.".to_owned();
            page(&app, &context, &caller, id, Some((409, problem))).await
        }
        Err(error) => Err(error),
    }
}

async fn page(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    id: ApiKeyId,
    error: Option<(u16, String)>,
) -> Result<Response, ApiError> {
    let key = app.auth.api_keys.get(caller, id).await?;
    if key.status() == KeyStatus::Revoked {
        return Ok(Redirect::to(&key_path(id)).into_response());
    }
    let report = app.auth.api_keys.rotation_report(caller, id).await?;
    let descendants = app.auth.api_keys.descendants(caller, id).await?;
    let (status, problem) = error.map_or((200, None), |(status, text)| (status, Some(text)));
    let page = RevokePage {
        layout: context.layout(),
        now: app.env.clock.now(),
        redacted: key.redacted(app.auth.api_keys.environment()),
        key: &key,
        report,
        required_quiet: app.auth.api_keys.required_quiet_period(),
        descendants,
        problem,
    };
    context.render_page(status, &page)
}
