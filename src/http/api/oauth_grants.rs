//! Connected apps.

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::Answer;
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, OwnSession, PathId, Query},
    },
    model::{
        id::{ClientId, GrantId, Id, UserId, WorkspaceId},
        oauth::grant::Grant,
        scope::Scope,
    },
};

/// A client as a grant names it.
#[derive(Serialize, ToSchema)]
pub struct GrantedClientBody {
    id: ClientId,
    /// What it calls itself.
    #[schema(example = "Zapier")]
    name: String,
}

/// What somebody lets a client do in a workspace.
#[derive(Serialize, ToSchema)]
pub struct GrantBody {
    id: GrantId,
    client: GrantedClientBody,
    scope: Scope,
    workspace_id: WorkspaceId,
    /// Who consented; null: the client acts for itself.
    #[schema(required = true)]
    user_id: Option<UserId>,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// When it last got a token, which then works for an hour.
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    last_used_at: Option<OffsetDateTime>,
}

impl From<Grant> for GrantBody {
    fn from(grant: Grant) -> Self {
        Self {
            id: grant.id,
            client: GrantedClientBody { id: grant.client_id, name: grant.client_name },
            scope: grant.scope,
            workspace_id: grant.workspace_id,
            user_id: grant.user_id,
            created_at: grant.created_at,
            last_used_at: grant.last_used_at,
        }
    }
}

/// A page of connected apps.
#[derive(Serialize, ToSchema)]
pub struct GrantsBody {
    grants: Vec<GrantBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List connected apps
///
/// One's own, in whatever workspace; or, for who runs the current workspace, all there.
#[utoipa::path(get, path = "/v1/oauth/grants", tag = "OAuth",
    params(crate::http::openapi::PageParams,
        ("of" = Option<String>, Query, description = "`me`, which goes without saying, or `workspace`")),
    responses((status = 200, body = GrantsBody)))]
pub async fn list(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    query: Query,
) -> Answer<Json<GrantsBody>> {
    let (page, total) = match query.text("of")? {
        None | Some("me") => app.oauth.own_grants(&caller, query.page()?).await?,
        Some("workspace") => app.oauth.workspace_grants(&caller, query.page()?).await?,
        Some(_) => return Err(ApiError::invalid("of", "of must be me or workspace")),
    };
    let next_cursor = page.next_cursor(|grant| grant.id.uuid());
    let grants = page.items.into_iter().map(GrantBody::from).collect();
    Ok(Json(GrantsBody { grants, total, next_cursor }))
}

/// Disconnect an app
///
/// At once: its tokens stop working. One's own or, for who runs the workspace, anybody's there.
#[utoipa::path(delete, path = "/v1/oauth/grants/{id}", tag = "OAuth", params(("id" = GrantId, Path)),
    responses((status = 204), (status = 404)))]
pub async fn end(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    PathId(id): PathId<GrantId>,
) -> Answer<StatusCode> {
    app.oauth.end_grant(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
