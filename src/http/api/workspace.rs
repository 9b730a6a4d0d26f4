//! Routes of the caller's current workspace: get, update and delete.
//!
//! Routes for all workspaces of a user are in [`super::workspaces`].

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    http::{
        App,
        extract::{self, Admin, AdminSession, Authorized, ReadOnly},
    },
    model::{
        id::WorkspaceId,
        password::Password,
        workspace::{Workspace, WorkspaceChange},
    },
};

/// A workspace.
#[derive(Serialize, ToSchema)]
pub struct WorkspaceBody {
    id: WorkspaceId,
    #[schema(example = "acme")]
    name: String,
    /// Rate limit of each credential of the workspace, in requests per minute.
    #[schema(example = 600)]
    rate_limit_per_minute: u32,
    /// True if members must have a second factor.
    require_second_factor: bool,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
}

impl WorkspaceBody {
    pub(super) fn new(app: &App, workspace: Workspace) -> Self {
        let Workspace { id, name, rate_limit_per_minute, require_second_factor, created_at } =
            workspace;
        let rate_limit_per_minute = app.limits.effective_limit(rate_limit_per_minute);
        Self { id, name, rate_limit_per_minute, require_second_factor, created_at }
    }
}

/// Get the current workspace
#[utoipa::path(get, path = "/v1/workspace", tag = "Workspaces",
    responses((status = 200, body = WorkspaceBody)))]
pub async fn get(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
) -> ApiResult<Json<WorkspaceBody>> {
    let workspace = app.resources.workspace(&caller).await?;
    Ok(Json(WorkspaceBody::new(&app, workspace)))
}

/// A change of a workspace. Absent fields keep their value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWorkspaceRequest {
    /// The new name of the workspace.
    #[schema(example = "acme")]
    name: Option<String>,
    /// Requires a second factor from all members. Only an owner with a second factor can change
    /// it. Members without a second factor can do nothing but set one up. API keys are not
    /// affected.
    require_second_factor: Option<bool>,
    /// The owner's password. Required to change `require_second_factor`, unless the owner signed
    /// in within the last 15 minutes.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// Update the current workspace
#[utoipa::path(patch, path = "/v1/workspace", tag = "Workspaces",
    request_body = UpdateWorkspaceRequest, responses((status = 200, body = WorkspaceBody)))]
pub async fn update(
    caller: Authorized<Admin>,
    State(app): State<App>,
    extract::Json(body): extract::Json<UpdateWorkspaceRequest>,
) -> ApiResult<Json<WorkspaceBody>> {
    let UpdateWorkspaceRequest { name, require_second_factor, password } = body;
    let change = WorkspaceChange { name, require_second_factor };
    let workspace = app.auth.workspaces.update(&caller, change, password.as_ref()).await?;
    Ok(Json(WorkspaceBody::new(&app, workspace)))
}

/// The deletion of a workspace.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteWorkspaceRequest {
    /// The owner's password.
    #[schema(value_type = String, format = Password)]
    password: Password,
}

/// Delete the current workspace
///
/// Deletes the workspace with all its resources. API keys and sessions stop working at once.
/// Requires the session and the password of an owner. The audit log is kept until its retention
/// period ends.
#[utoipa::path(delete, path = "/v1/workspace", tag = "Workspaces",
    request_body = DeleteWorkspaceRequest, responses((status = 204)))]
pub async fn delete(
    caller: Authorized<AdminSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<DeleteWorkspaceRequest>,
) -> ApiResult<StatusCode> {
    app.auth.workspaces.delete(&caller, &body.password).await?;
    Ok(StatusCode::NO_CONTENT)
}
