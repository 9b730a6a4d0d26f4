//! The person behind a credential.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::Answer;
use crate::{
    http::{
        App,
        extract::{self, Authorized, FirstPartyWrite, OwnSession, ReadOnly},
    },
    model::{
        fields::Fields,
        id::{UserId, WorkspaceId},
        password::Password,
        user::User,
    },
};

/// A person, with whatever clients store about them.
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

/// The person of the session, or who minted the key
#[utoipa::path(get, path = "/v1/users/me", tag = "Resources",
    responses((status = 200, body = ProfileBody), (status = 404)))]
pub async fn get(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
) -> Answer<Json<ProfileBody>> {
    let user = app.resources.person(&caller).await?;
    Ok(Json(ProfileBody::new(user, caller.workspace())))
}

/// Change that person's name, or store more about them
///
/// Fields that are absent stay. The address is not changed here.
#[utoipa::path(patch, path = "/v1/users/me", tag = "Resources",
    request_body(content = Object, example = json!({"full_name": "Dana Meyer", "timezone": "Europe/Berlin"})),
    responses((status = 200, body = ProfileBody), (status = 404)))]
pub async fn update(
    caller: Authorized<FirstPartyWrite>,
    State(app): State<App>,
    extract::Json(body): extract::Json<Fields>,
) -> Answer<Json<ProfileBody>> {
    let user = app.resources.change_person(&caller, body).await?;
    Ok(Json(ProfileBody::new(user, caller.workspace())))
}

/// Who leaves for good.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteUserRequest {
    /// One's own.
    #[schema(value_type = String, format = Password)]
    password: Password,
}

/// Delete one's own account
///
/// With the workspaces that nobody else is in. The last owner of a workspace that has other members makes
/// somebody else an owner first. Keys that one minted for others stay, and so do the logs.
#[utoipa::path(delete, path = "/v1/users/me", tag = "Resources", request_body = DeleteUserRequest,
    responses((status = 204), (status = 403)))]
pub async fn delete(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<DeleteUserRequest>,
) -> Answer<StatusCode> {
    app.auth.delete_account(&caller, &body.password).await?;
    Ok(StatusCode::NO_CONTENT)
}
