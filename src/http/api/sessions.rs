//! Routes of the caller's own sessions: list, sign out, and switch the workspace.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{ApiResult, auth::TokenBody};
use crate::{
    http::{
        App,
        extract::{self, Authorized, PathId, Query, UserSession},
    },
    model::{
        id::{Id, SessionId, WorkspaceId},
        session::Session,
    },
};

/// A session of a user.
#[derive(Serialize, ToSchema)]
pub struct SessionBody {
    id: SessionId,
    workspace_id: WorkspaceId,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// Time at which the session last got tokens.
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    last_seen_at: OffsetDateTime,
    /// IP address of the sign-in.
    #[schema(required = true, example = "203.0.113.9")]
    ip: Option<String>,
    /// User agent of the sign-in.
    #[schema(required = true, example = "Mozilla/5.0")]
    user_agent: Option<String>,
    /// True for the session that sent the request.
    current: bool,
}

impl SessionBody {
    fn new(session: Session, own: SessionId) -> Self {
        let Session { id, workspace_id, created_at, last_seen_at, ip, user_agent } = session;
        let (ip, current) = (ip.map(|ip| ip.to_string()), id == own);
        Self { id, workspace_id, created_at, last_seen_at, ip, user_agent, current }
    }
}

/// A page of sessions.
#[derive(Serialize, ToSchema)]
pub struct SessionsBody {
    sessions: Vec<SessionBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List your sessions
///
/// Lists your active sessions in all workspaces.
#[utoipa::path(get, path = "/v1/auth/sessions", tag = "Sessions",
    params(crate::http::dto::parameters::PageParams), responses((status = 200, body = SessionsBody)))]
pub async fn list(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<SessionsBody>> {
    let own = caller.session();
    let (page, total) = app.auth.sessions.list(&caller, query.page()?).await?;
    let next_cursor = page.next_cursor(|session| session.id.uuid());
    let sessions = page.items.into_iter().map(|session| SessionBody::new(session, own)).collect();
    Ok(Json(SessionsBody { sessions, total, next_cursor }))
}

/// Sign out one of your sessions
///
/// Its access and refresh tokens stop working at once on every node.
#[utoipa::path(delete, path = "/v1/auth/sessions/{id}", tag = "Sessions",
    params(("id" = SessionId, Path)), responses((status = 204), (status = 404)))]
pub async fn end(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    PathId(id): PathId<SessionId>,
) -> ApiResult<StatusCode> {
    app.auth.sessions.end(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sign out your other sessions
#[utoipa::path(delete, path = "/v1/auth/sessions", tag = "Sessions", responses((status = 204)))]
pub async fn end_others(
    caller: Authorized<UserSession>,
    State(app): State<App>,
) -> ApiResult<StatusCode> {
    app.auth.sessions.end_others(&caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A switch to another workspace.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchWorkspaceRequest {
    /// The id of a workspace that the caller is a member of.
    workspace_id: WorkspaceId,
}

/// Switch to another workspace
///
/// Moves the session to the workspace and returns new tokens. The tokens for the previous workspace
/// stop working at once.
#[utoipa::path(post, path = "/v1/auth/switch-workspace", tag = "Sessions",
    request_body = SwitchWorkspaceRequest, responses((status = 200, body = TokenBody), (status = 403)))]
pub async fn switch_workspace(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<SwitchWorkspaceRequest>,
) -> ApiResult<Json<TokenBody>> {
    let pair = app.auth.sessions.switch_workspace(&caller, body.workspace_id).await?;
    Ok(Json(TokenBody::new(&app, &pair)))
}
