//! Routes of all workspaces of a user: list, create and leave.
//!
//! Routes for the current workspace are in [`super::workspace`].

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ApiResult, CreationOutcome, IdempotentCreated, to_json, workspace::WorkspaceBody};
use crate::{
    http::{
        App,
        extract::{Authorized, IdempotentJson, PathId, Query, UserSession},
    },
    model::{
        id::{Id, WorkspaceId},
        scope::Role,
        workspace::WorkspaceWithRole,
    },
};

/// A workspace of the caller.
#[derive(Serialize, ToSchema)]
pub struct OwnWorkspaceBody {
    #[serde(flatten)]
    workspace: WorkspaceBody,
    /// The caller's role in the workspace.
    role: Role,
}

impl OwnWorkspaceBody {
    fn new(app: &App, own: WorkspaceWithRole) -> Self {
        Self { workspace: WorkspaceBody::new(app, own.workspace), role: own.role }
    }
}

/// A page of workspaces.
#[derive(Serialize, ToSchema)]
pub struct WorkspacesBody {
    workspaces: Vec<OwnWorkspaceBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List your workspaces
#[utoipa::path(get, path = "/v1/workspaces", tag = "Workspaces",
    params(crate::http::dto::parameters::PageParams), responses((status = 200, body = WorkspacesBody)))]
pub async fn list(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<WorkspacesBody>> {
    let (page, total) = app.auth.workspaces.list_own(&caller, query.page()?).await?;
    let next_cursor = page.next_cursor(|own| own.workspace.id.uuid());
    let workspaces = page.items.into_iter().map(|own| OwnWorkspaceBody::new(&app, own)).collect();
    Ok(Json(WorkspacesBody { workspaces, total, next_cursor }))
}

/// A workspace to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWorkspaceRequest {
    /// The name of the workspace.
    #[schema(example = "acme")]
    name: String,
}

/// Create a workspace
///
/// The caller becomes its owner. The session stays in its current workspace; switch with
/// `POST /v1/auth/switch-workspace`.
#[utoipa::path(post, path = "/v1/workspaces", tag = "Workspaces",
    request_body = CreateWorkspaceRequest, params(crate::http::dto::parameters::IdempotencyKeyHeader),
    responses((status = 201, body = OwnWorkspaceBody), (status = 409)))]
pub async fn create(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    IdempotentJson { body, attempt }: IdempotentJson<CreateWorkspaceRequest>,
) -> ApiResult<IdempotentCreated> {
    let mut transaction = match IdempotentCreated::begin(&app, &caller, attempt).await? {
        CreationOutcome::New(transaction) => transaction,
        CreationOutcome::Replayed(response) => return Ok(response),
    };
    let (own, audited) = app.auth.workspaces.create(transaction.tx(), &caller, &body.name).await?;
    let body = to_json(&OwnWorkspaceBody::new(&app, own))?;
    IdempotentCreated::finish(transaction, audited, "/v1/workspaces".to_owned(), body).await
}

/// Leave a workspace
///
/// Ends your sessions in the workspace. The last owner cannot leave.
#[utoipa::path(post, path = "/v1/workspaces/{id}/leave", tag = "Workspaces",
    params(("id" = WorkspaceId, Path)), responses((status = 204), (status = 403), (status = 404)))]
pub async fn leave(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    PathId(id): PathId<WorkspaceId>,
) -> ApiResult<StatusCode> {
    app.auth.members.leave(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
