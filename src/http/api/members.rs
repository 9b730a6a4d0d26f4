//! Routes of the members of the caller's workspace.
//!
//! The rules for roles are in [`crate::auth`]: no member grants, changes or removes a role above
//! their own, and a workspace keeps at least one owner.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    http::{
        ApiError, App,
        extract::{self, Admin, Authorized, FirstPartyAdmin, PathId, Query},
    },
    model::{
        id::{Id, UserId},
        page::PageRequest,
        password::Password,
        scope::Role,
        user::Member,
    },
};

/// A member of a workspace.
#[derive(Serialize, ToSchema)]
pub struct MemberBody {
    user_id: UserId,
    #[schema(example = "dana@acme.example")]
    email: String,
    #[schema(required = true, example = "Dana Meyer")]
    full_name: Option<String>,
    role: Role,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    joined_at: OffsetDateTime,
}

impl From<Member> for MemberBody {
    fn from(member: Member) -> Self {
        let Member { user_id, email, full_name, role, joined_at } = member;
        Self { user_id, email, full_name, role, joined_at }
    }
}

/// A page of members.
#[derive(Serialize, ToSchema)]
pub struct MembersBody {
    members: Vec<MemberBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List members
#[utoipa::path(get, path = "/v1/members", tag = "Workspaces",
    params(crate::http::dto::parameters::PageParams), responses((status = 200, body = MembersBody)))]
pub async fn list(
    caller: Authorized<Admin>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<MembersBody>> {
    let (page, total) = app.resources.list_members(&caller, query.page()?).await?;
    let next_cursor = page.next_cursor(|member| member.user_id.uuid());
    let members = page.items.into_iter().map(MemberBody::from).collect();
    Ok(Json(MembersBody { members, total, next_cursor }))
}

/// A change of a member's role.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateMemberRequest {
    /// The new role.
    role: Role,
    /// The caller's password. Required to grant or remove the role `owner`, unless the caller
    /// signed in within the last 15 minutes.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// Change the role of a member
///
/// Takes effect at once on every node. You cannot grant, change or remove a role above your own,
/// and a workspace keeps at least one owner.
#[utoipa::path(patch, path = "/v1/members/{user_id}", tag = "Workspaces",
    params(("user_id" = UserId, Path)), request_body = UpdateMemberRequest,
    responses((status = 200, body = MemberBody), (status = 404)))]
pub async fn update(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(user): PathId<UserId>,
    extract::Json(body): extract::Json<UpdateMemberRequest>,
) -> ApiResult<Json<MemberBody>> {
    let member =
        app.auth.members.change_role(&caller, user, body.role, body.password.as_ref()).await?;
    Ok(Json(member.into()))
}

/// Remove a member
///
/// Ends the user's sessions and OAuth grants in the workspace at once. API keys that the user
/// created stay active; the audit event lists them. Removing an owner requires a sign-in within the
/// last 15 minutes.
#[utoipa::path(delete, path = "/v1/members/{user_id}", tag = "Workspaces",
    params(("user_id" = UserId, Path)), responses((status = 204), (status = 404)))]
pub async fn remove(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(user): PathId<UserId>,
) -> ApiResult<StatusCode> {
    app.auth.members.remove(&caller, user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A numbered page of members.
#[derive(Serialize, ToSchema)]
pub struct TenantMembersBody {
    members: Vec<MemberBody>,
    total: i64,
    page: u32,
    per_page: u32,
}

/// List members by page number
///
/// For the official SDKs, which paginate by number. Other clients use `GET /v1/members`.
#[utoipa::path(get, path = "/v1/users/me/tenant/members", tag = "Workspaces",
    params(("page" = Option<u32>, Query, minimum = 1, maximum = 1_000_000),
           ("per_page" = Option<u32>, Query, minimum = 1, maximum = 100)),
    responses((status = 200, body = TenantMembersBody)))]
pub async fn tenant_members(
    caller: Authorized<Admin>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<TenantMembersBody>> {
    let page = number(&query, "page", 1, 1_000_000)?;
    let per_page = number(&query, "per_page", 20, 100)?;
    let offset = i64::from(page - 1) * i64::from(per_page);
    let requested = PageRequest { limit: per_page.into(), before: None, offset };
    let (result, total) = app.resources.list_members(&caller, requested).await?;
    let members = result.items.into_iter().map(MemberBody::from).collect();
    Ok(Json(TenantMembersBody { members, total, page, per_page }))
}

fn number(query: &Query, name: &'static str, default: u32, max: u32) -> Result<u32, ApiError> {
    let expected = format!("a whole number from 1 to {max}");
    let number = query.parse_as::<u32>(name, &expected)?.unwrap_or(default);
    if (1..=max).contains(&number) {
        Ok(number)
    } else {
        Err(ApiError::invalid(name, format!("{name} must be {expected}")))
    }
}
