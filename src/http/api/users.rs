//! Routes of the profile of the user behind a credential, and of account deletion.
//!
//! The user of a session is its own user; the user of an API key is the one that created the key.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    http::{
        App,
        extract::{self, Authorized, FirstPartyWrite, ReadOnly, UserSession},
    },
    model::{
        fields::Fields,
        id::{UserId, WorkspaceId},
        password::Password,
        user::User,
    },
};

/// The profile of a user, with all fields that clients stored in it.
#[derive(Serialize, ToSchema)]
pub struct ProfileBody {
    #[serde(flatten)]
    #[schema(value_type = std::collections::BTreeMap<String, serde_json::Value>)]
    profile: Fields,
    id: UserId,
    #[schema(example = "dana@acme.example")]
    email: String,
    #[schema(required = true, example = "Dana Meyer")]
    full_name: Option<String>,
    workspace_id: WorkspaceId,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
}

impl ProfileBody {
    fn new(user: User, workspace_id: WorkspaceId) -> Self {
        let User { id, email, full_name, profile, created_at, .. } = user;
        Self { profile, id, email, full_name, workspace_id, created_at }
    }
}

/// Get the current user
///
/// Returns the user of the session, or the user that created the API key. An API key or an OAuth
/// client sees the name and fields that API keys of its workspace stored; the user's own ones are
/// for the user's sessions.
#[utoipa::path(get, path = "/v1/users/me", tag = "Resources",
    responses((status = 200, body = ProfileBody), (status = 404)))]
pub async fn get(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
) -> ApiResult<Json<ProfileBody>> {
    let user = app.resources.current_user(&caller).await?;
    Ok(Json(ProfileBody::new(user, caller.workspace())))
}

/// Update the current user
///
/// Changes the name or stores any other fields. Absent fields keep their value. The email address
/// cannot be changed here. What an API key changes is stored in its workspace only.
#[utoipa::path(patch, path = "/v1/users/me", tag = "Resources",
    request_body(content = Object, example = json!({"full_name": "Dana Meyer", "timezone": "Europe/Berlin"})),
    responses((status = 200, body = ProfileBody), (status = 404)))]
pub async fn update(
    caller: Authorized<FirstPartyWrite>,
    State(app): State<App>,
    extract::Json(body): extract::Json<Fields>,
) -> ApiResult<Json<ProfileBody>> {
    let user = app.resources.update_current_user(&caller, body).await?;
    Ok(Json(ProfileBody::new(user, caller.workspace())))
}

/// An account deletion.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteUserRequest {
    /// The caller's password.
    #[schema(value_type = String, format = Password)]
    password: Password,
}

/// Delete your account
///
/// Also deletes all workspaces in which you are the only member. If you are the last owner of a
/// workspace with other members, make another member an owner first. API keys that you created in
/// remaining workspaces stay active, and audit logs are kept.
#[utoipa::path(delete, path = "/v1/users/me", tag = "Resources", request_body = DeleteUserRequest,
    responses((status = 204), (status = 403)))]
pub async fn delete(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<DeleteUserRequest>,
) -> ApiResult<StatusCode> {
    app.auth.accounts.delete(&caller, &body.password).await?;
    Ok(StatusCode::NO_CONTENT)
}
