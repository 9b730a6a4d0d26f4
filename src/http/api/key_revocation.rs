//! Routes to revoke an API key, alone or with what it made, and to list what it made.
//!
//! The rules are in [`crate::auth::api_keys::revocation`].

use axum::{Json, extract::State, http::StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{ApiResult, api_keys::ApiKeyBody, invitations::InvitationBody, members::MemberBody};
use crate::{
    auth::api_keys::revocation::{QuietCondition, RevokeKeyOptions},
    http::{
        App,
        extract::{self, Admin, Authorized, PathId, Public, Query, ReadOnly},
    },
    model::{
        api_key::KeyStatus,
        id::{ApiKeyId, ClientId},
        key_descendants::{
            AddedAccess, AddedRedirectUri, AddedSecret, DescendantClient, DescendantKey,
            KeyDescendants,
        },
        scope::Scope,
    },
};

/// Revoke an API key
///
/// Final and immediate: every request that starts after the response is rejected. The key stays in
/// the list as revoked. Its open invitations are closed. Revoking the successor of a key cancels
/// the rotation.
///
/// What the key made stays valid: the event `api_key.revoked` and an email to the owners name it.
/// With `cascade=true`, the keys, OAuth clients (with their grants and tokens) and open invitations
/// that the key made are revoked too, and what these keys made. The secrets and redirect URIs that
/// they added to other OAuth clients end too, with the grants that these clients got since. Members
/// that they invited or whose role they set, and keys that they enabled or widened, are named.
///
/// With `if_quiet=true`, the key is revoked only if no client has used it recently; otherwise the
/// response is 409 with the details in `rotation`. With both, every key that would be revoked must
/// be idle, and no OAuth client that would be deleted may have access.
#[utoipa::path(delete, path = "/v1/api-keys/{id}", tag = "API keys",
    params(("id" = ApiKeyId, Path),
           ("if_quiet" = Option<bool>, Query, description = "Revoke only if it is safe to do so"),
           ("cascade" = Option<bool>, Query, description = "Also revoke what the key made")),
    responses((status = 204), (status = 404), (status = 409)))]
pub async fn revoke(
    caller: Authorized<Admin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    query: Query,
) -> ApiResult<StatusCode> {
    app.auth.api_keys.revoke(&caller, id, revoke_options(&query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Revoke an API key and return it
///
/// As `DELETE /v1/api-keys/{id}`, but the response contains the revoked key.
#[utoipa::path(patch, path = "/v1/api-keys/{id}/revoke", tag = "API keys",
    params(("id" = ApiKeyId, Path),
           ("if_quiet" = Option<bool>, Query, description = "Revoke only if it is safe to do so"),
           ("cascade" = Option<bool>, Query, description = "Also revoke what the key made")),
    responses((status = 200, body = ApiKeyBody), (status = 404), (status = 409)))]
pub async fn revoke_and_get(
    caller: Authorized<Admin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    query: Query,
) -> ApiResult<Json<ApiKeyBody>> {
    app.auth.api_keys.revoke(&caller, id, revoke_options(&query)?).await?;
    let key = app.auth.api_keys.get(&caller, id).await?;
    Ok(Json(ApiKeyBody::new(&app, key)))
}

fn revoke_options(query: &Query) -> ApiResult<RevokeKeyOptions> {
    let only_if_quiet = query.parse_as("if_quiet", "true or false")?.unwrap_or(false);
    Ok(RevokeKeyOptions {
        condition: if only_if_quiet { QuietCondition::All } else { QuietCondition::None },
        cascade: query.parse_as("cascade", "true or false")?.unwrap_or(false),
    })
}

/// A key to revoke.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeByHolderRequest {
    /// The whole key.
    #[schema(value_type = String, example = "sk_call2me_live_…")]
    key: SecretString,
}

/// Revoke the key that you hold
///
/// For a finder of a leaked key. It needs no credential but the key itself. The owners of the
/// workspace get an email. The response is the same for unknown, malformed and revoked keys.
#[utoipa::path(post, path = "/v1/api-keys/revoke", tag = "API keys",
    request_body = RevokeByHolderRequest, responses((status = 204)))]
pub async fn revoke_by_holder(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<RevokeByHolderRequest>,
) -> ApiResult<StatusCode> {
    app.auth.api_keys.revoke_by_holder(body.key.expose_secret(), &public.request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A key that another key made or widened.
#[derive(Serialize, ToSchema)]
pub struct DescendantKeyBody {
    id: ApiKeyId,
    #[schema(example = "prod-2026-q2")]
    name: String,
    scope: Scope,
    status: KeyStatus,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// The id of the user or key that created it.
    #[schema(required = true, example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    created_by: Option<String>,
}

impl From<DescendantKey> for DescendantKeyBody {
    fn from(key: DescendantKey) -> Self {
        let DescendantKey { id, name, scope, status, created_at, created_by } = key;
        Self { id, name, scope, status, created_at, created_by }
    }
}

/// An OAuth client that a key made.
#[derive(Serialize, ToSchema)]
pub struct DescendantClientBody {
    id: ClientId,
    #[schema(example = "Booking integration")]
    name: String,
    /// The maximum scope of its grants.
    #[schema(required = true)]
    scope: Option<Scope>,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// The id of the key that created it.
    #[schema(required = true, example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    created_by: Option<String>,
}

impl From<DescendantClient> for DescendantClientBody {
    fn from(client: DescendantClient) -> Self {
        let DescendantClient { id, name, scope, created_at, created_by } = client;
        Self { id, name, scope, created_at, created_by }
    }
}

/// A secret that a key added to an OAuth client of another creator.
#[derive(Serialize, ToSchema)]
pub struct AddedSecretBody {
    client_id: ClientId,
    #[schema(example = "Booking integration")]
    client_name: String,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// The id of the key that added it.
    #[schema(required = true, example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    created_by: Option<String>,
}

impl From<AddedSecret> for AddedSecretBody {
    fn from(secret: AddedSecret) -> Self {
        let AddedSecret { client_id, client_name, created_at, created_by } = secret;
        Self { client_id, client_name, created_at, created_by }
    }
}

/// A redirect URI that a key added to an OAuth client of another creator.
#[derive(Serialize, ToSchema)]
pub struct AddedRedirectUriBody {
    client_id: ClientId,
    #[schema(example = "Booking integration")]
    client_name: String,
    #[schema(example = "https://booking.example/oauth/callback")]
    redirect_uri: String,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    added_at: OffsetDateTime,
    /// The time at which it was removed: users have authorized the client in between. `null` if the
    /// client still has it.
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    removed_at: Option<OffsetDateTime>,
    /// The id of the key that added it.
    #[schema(example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    added_by: String,
}

impl From<AddedRedirectUri> for AddedRedirectUriBody {
    fn from(added: AddedRedirectUri) -> Self {
        let AddedRedirectUri { client_id, client_name, uri, added_at, removed_at, added_by } =
            added;
        Self { client_id, client_name, redirect_uri: uri, added_at, removed_at, added_by }
    }
}

/// The descendants of a key: what it made and still gives access, and the access that it gave to
/// what others made. At most 1,000 of each kind, newest first.
#[derive(Serialize, ToSchema)]
pub struct DescendantsBody {
    /// Keys that are not revoked, also as successors of other keys.
    api_keys: Vec<DescendantKeyBody>,
    oauth_clients: Vec<DescendantClientBody>,
    /// Open invitations.
    invitations: Vec<InvitationBody>,
    /// Secrets that it added to OAuth clients of others, and that are valid or have expired after
    /// users authorized the client. `cascade=true` ends them, and what was authorized meanwhile.
    client_secrets: Vec<AddedSecretBody>,
    /// Redirect URIs that it added to OAuth clients of others, also if they were removed after
    /// users authorized the client. `cascade=true` removes them, and ends what was authorized
    /// meanwhile.
    redirect_uris: Vec<AddedRedirectUriBody>,
    /// Members that it invited, or whose role it set, also through members and keys of others that
    /// it gave access to. They stay, also with `cascade=true`.
    members: Vec<MemberBody>,
    /// Keys of others that it enabled, or whose allowed networks it widened, in the same ways, and
    /// keys that such members and keys created since. They stay, also with `cascade=true`.
    widened_api_keys: Vec<DescendantKeyBody>,
    /// True if a list is incomplete; absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    has_more: bool,
}

impl From<KeyDescendants> for DescendantsBody {
    fn from(descendants: KeyDescendants) -> Self {
        let has_more = descendants.has_more();
        let KeyDescendants { api_keys, oauth_clients, invitations, added } = descendants;
        let AddedAccess { client_secrets, redirect_uris, members, widened_keys } = added;
        Self {
            api_keys: api_keys.items.into_iter().map(Into::into).collect(),
            oauth_clients: oauth_clients.items.into_iter().map(Into::into).collect(),
            invitations: invitations.items.into_iter().map(Into::into).collect(),
            client_secrets: client_secrets.items.into_iter().map(Into::into).collect(),
            redirect_uris: redirect_uris.items.into_iter().map(Into::into).collect(),
            members: members.items.into_iter().map(Into::into).collect(),
            widened_api_keys: widened_keys.items.into_iter().map(Into::into).collect(),
            has_more,
        }
    }
}

/// List what an API key made
///
/// The keys, OAuth clients and open invitations that the key made, directly or through keys that it
/// made, also if these are revoked, and the access that these keys gave to what others made.
/// `DELETE /v1/api-keys/{id}?cascade=true` ends it, except that of members and of widened keys.
#[utoipa::path(get, path = "/v1/api-keys/{id}/descendants", tag = "API keys",
    params(("id" = ApiKeyId, Path)),
    responses((status = 200, body = DescendantsBody), (status = 404)))]
pub async fn descendants(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
) -> ApiResult<Json<DescendantsBody>> {
    Ok(Json(app.auth.api_keys.descendants(&caller, id).await?.into()))
}
