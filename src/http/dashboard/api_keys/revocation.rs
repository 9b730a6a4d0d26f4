//! Revoking a key, and what that breaks.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use time::{Duration, OffsetDateTime};

use super::{mint::page_of, rotation::why};
use crate::{
    http::{
        ApiError, App,
        dashboard::{
            form::Form,
            layout::{Desk, Done, Layout},
            words::{Requests, When},
        },
        error::Code,
        extract::{Admin, Authorized, PathId},
    },
    model::{
        api_key::{ApiKey, KeyStatus},
        id::ApiKeyId,
        principal::Caller,
        rotation::RotationReport,
    },
};

#[derive(Template)]
#[template(path = "revoke_api_key.html")]
struct RevokePage<'a> {
    layout: Layout,
    now: OffsetDateTime,
    key: &'a ApiKey,
    redacted: String,
    report: RotationReport,
    /// How long a key has to be quiet.
    quiet: Duration,
    problem: Option<String>,
}

impl RevokePage<'_> {
    fn why(&self) -> String {
        why(&self.report, self.now, self.quiet)
    }

    /// Whether nobody can have come to rely on it.
    fn was_never_used(&self) -> bool {
        self.report.old.last_used_at.is_none()
    }

    fn when(&self, moment: &OffsetDateTime) -> When {
        When::new(*moment, self.now)
    }
}

/// Tells whom it breaks, and asks.
pub(in crate::http::dashboard) async fn show(
    caller: Authorized<Admin>,
    State(app): State<App>,
    desk: Desk,
    PathId(id): PathId<ApiKeyId>,
) -> Result<Response, ApiError> {
    page(&app, &desk, &caller, id, None).await
}

/// Revokes it. Whoever was told that it is in use has to say that they know.
pub(in crate::http::dashboard) async fn revoke(
    caller: Authorized<Admin>,
    State(app): State<App>,
    desk: Desk,
    PathId(id): PathId<ApiKeyId>,
    form: Form,
) -> Result<Response, ApiError> {
    let knows_better = match form.filled("anyway")? {
        // Which it may be no longer.
        Some("unused") => app.auth.get_key(&caller, id).await?.last_used_at.is_none(),
        anyway => anyway.is_some(),
    };
    match app.auth.revoke_key(&caller, id, !knows_better).await.map_err(ApiError::from) {
        Ok(()) => {
            let key = app.auth.get_key(&caller, id).await?;
            let rotation = key.rotated_to.map(|_| format!("{}/rotation", page_of(id)));
            Ok(Done::KeyRevoked.at(&rotation.unwrap_or_else(|| page_of(id))))
        }
        Err(error) if error.code() == Code::KeyInUse => {
            let problem = "It was not revoked, since somebody may use it.".to_owned();
            page(&app, &desk, &caller, id, Some((409, problem))).await
        }
        Err(error) => Err(error),
    }
}

async fn page(
    app: &App,
    desk: &Desk,
    caller: &Caller,
    id: ApiKeyId,
    refused: Option<(u16, String)>,
) -> Result<Response, ApiError> {
    let key = app.auth.get_key(caller, id).await?;
    if key.status() == KeyStatus::Revoked {
        return Ok(Redirect::to(&page_of(id)).into_response());
    }
    let report = app.auth.whom_it_serves(caller, id).await?;
    let (status, problem) = refused.map_or((200, None), |(status, text)| (status, Some(text)));
    let page = RevokePage {
        layout: desk.layout(),
        now: app.env.clock.now(),
        redacted: key.redacted(app.auth.environment()),
        key: &key,
        report,
        quiet: app.auth.quiet_to_revoke(),
        problem,
    };
    Ok(desk.page(status, &page))
}
