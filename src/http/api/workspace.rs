//! The caller's workspace.

use axum::{Json, extract::State};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::Answer;
use crate::{
    http::{
        App,
        extract::{Authorized, ReadOnly},
    },
    model::{id::WorkspaceId, workspace::Workspace},
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
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
}

impl WorkspaceBody {
    pub(super) fn new(app: &App, workspace: Workspace) -> Self {
        let Workspace { id, name, rate_limit_per_minute, created_at } = workspace;
        let rate_limit_per_minute = app.limits.effective(rate_limit_per_minute);
        Self { id, name, rate_limit_per_minute, created_at }
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
