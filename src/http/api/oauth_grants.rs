//! Routes of connected apps: the OAuth grants of a user or a workspace.

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, PathId, Query, UserSession},
    },
    model::{
        id::{ClientId, GrantId, Id, UserId, WorkspaceId},
        oauth::grant::Grant,
        scope::Scope,
    },
};

/// The OAuth client of a grant.
#[derive(Serialize, ToSchema)]
pub struct GrantedClientBody {
    id: ClientId,
    /// The name of the client. For self-registered clients, the client chose it.
    #[schema(example = "Zapier")]
    name: String,
}

/// A connected app: the grant of an OAuth client in a workspace.
#[derive(Serialize, ToSchema)]
pub struct GrantBody {
    id: GrantId,
    client: GrantedClientBody,
    scope: Scope,
    workspace_id: WorkspaceId,
    /// The user that authorized the client, or null if the client acts on its own behalf.
    #[schema(required = true)]
    user_id: Option<UserId>,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// Time at which the client last got an access token. The token is valid for one hour.
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
/// Lists your own grants in all workspaces. With `of=workspace`, lists all grants in the current
/// workspace; this requires the role `admin` or `owner`.
#[utoipa::path(get, path = "/v1/oauth/grants", tag = "OAuth",
    params(crate::http::dto::parameters::PageParams,
        ("of" = Option<String>, Query, description = "`me` (the default) or `workspace`")),
    responses((status = 200, body = GrantsBody)))]
pub async fn list(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<GrantsBody>> {
    let (page, total) = match query.text("of")? {
        None | Some("me") => app.oauth.grants.list_by_user(&caller, query.page()?).await?,
        Some("workspace") => app.oauth.grants.list_by_workspace(&caller, query.page()?).await?,
        Some(_) => return Err(ApiError::invalid("of", "of must be me or workspace")),
    };
    let next_cursor = page.next_cursor(|grant| grant.id.uuid());
    let grants = page.items.into_iter().map(GrantBody::from).collect();
    Ok(Json(GrantsBody { grants, total, next_cursor }))
}

/// Disconnect an app
///
/// Ends the grant; its tokens stop working at once. You can end your own grants and, with the role
/// `admin` or `owner`, all grants in the current workspace.
#[utoipa::path(delete, path = "/v1/oauth/grants/{id}", tag = "OAuth", params(("id" = GrantId, Path)),
    responses((status = 204), (status = 404)))]
pub async fn end(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    PathId(id): PathId<GrantId>,
) -> ApiResult<StatusCode> {
    app.oauth.grants.end(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
