//! The caller's workspace.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::Answer;
use crate::{
    http::{
        App,
        extract::{self, Admin, Authorized, ReadOnly},
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
    /// Requests a minute that each of its credentials may make.
    #[schema(example = 600)]
    rate_limit_per_minute: u32,
    /// Whether its people need a second factor.
    require_second_factor: bool,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
}

impl WorkspaceBody {
    pub(super) fn new(app: &App, workspace: Workspace) -> Self {
        let Workspace { id, name, rate_limit_per_minute, require_second_factor, created_at } =
            workspace;
        let rate_limit_per_minute = app.limits.effective(rate_limit_per_minute);
        Self { id, name, rate_limit_per_minute, require_second_factor, created_at }
    }
}

/// The current workspace
#[utoipa::path(get, path = "/v1/workspace", tag = "Workspaces",
    responses((status = 200, body = WorkspaceBody)))]
pub async fn get(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
) -> Answer<Json<WorkspaceBody>> {
    let workspace = app.resources.workspace(&caller).await?;
    Ok(Json(WorkspaceBody::new(&app, workspace)))
}

/// What is to change.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWorkspaceRequest {
    /// What people will call it.
    #[schema(example = "acme")]
    name: Option<String>,
    /// Whether its people need a second factor; an owner's to say. Who has none can set one up, and nothing
    /// else, until they have. API keys are not affected.
    require_second_factor: Option<bool>,
    /// The owner's own, for `require_second_factor` and where the owner has not just signed in.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// Change the current workspace
#[utoipa::path(patch, path = "/v1/workspace", tag = "Workspaces",
    request_body = UpdateWorkspaceRequest, responses((status = 200, body = WorkspaceBody)))]
pub async fn update(
    caller: Authorized<Admin>,
    State(app): State<App>,
    extract::Json(body): extract::Json<UpdateWorkspaceRequest>,
) -> Answer<Json<WorkspaceBody>> {
    let UpdateWorkspaceRequest { name, require_second_factor, password } = body;
    let change = WorkspaceChange { name, require_second_factor };
    let workspace = app.auth.update_workspace(&caller, change, password.as_ref()).await?;
    Ok(Json(WorkspaceBody::new(&app, workspace)))
}

/// Who deletes a workspace.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteWorkspaceRequest {
    /// The owner's own.
    #[schema(value_type = String, format = Password)]
    password: Password,
}

/// Delete the current workspace
///
/// With all that is in it: keys and sessions stop working at once. Takes an owner's own session and
/// password. The log is kept for its time.
#[utoipa::path(delete, path = "/v1/workspace", tag = "Workspaces",
    request_body = DeleteWorkspaceRequest, responses((status = 204)))]
pub async fn delete(
    caller: Authorized<Admin>,
    State(app): State<App>,
    extract::Json(body): extract::Json<DeleteWorkspaceRequest>,
) -> Answer<StatusCode> {
    app.auth.delete_workspace(&caller, &body.password).await?;
    Ok(StatusCode::NO_CONTENT)
}
