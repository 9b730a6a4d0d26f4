//! Routes of workspace clients: OAuth clients that an administrator registers.
//!
//! A client gets no access by being registered; see [`super::oauth_grants`]. Clients that register
//! themselves use `POST /oauth/register`.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{ApiResult, CreationOutcome, IdempotentCreated, to_json};
use crate::{
    http::{
        ApiError, App,
        extract::{self, Admin, Authorized, FirstPartyAdmin, IdempotentJson, PathId, Query},
    },
    model::{
        id::{ClientId, Id},
        oauth::client::{Client, ClientAuthMethod, GrantType},
        scope::Scope,
    },
    oauth::clients::{
        RegisteredClient,
        workspace_clients::{
            CreateClientParams, MAX_SECRET_OVERLAP, RotatedSecret, UpdateClientParams,
        },
    },
};

/// Default time for which previous secrets stay valid after a rotation.
const DEFAULT_OVERLAP: Duration = Duration::from_hours(24);

/// An OAuth client without its secret.
#[derive(Serialize, ToSchema)]
pub struct ClientBody {
    /// The id of the client, and its `client_id` in OAuth.
    id: ClientId,
    #[schema(example = "Booking integration")]
    name: String,
    redirect_uris: Vec<String>,
    #[schema(example = "client_secret_basic")]
    token_endpoint_auth_method: &'static str,
    #[schema(example = json!(["authorization_code", "refresh_token"]))]
    grant_types: Vec<&'static str>,
    /// The maximum scope of its grants.
    #[schema(required = true)]
    scope: Option<Scope>,
    #[schema(required = true)]
    client_uri: Option<String>,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// The id of the user or API key that created the client, or null for the operator.
    #[schema(required = true, example = "user_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    created_by: Option<String>,
}

impl From<Client> for ClientBody {
    fn from(client: Client) -> Self {
        Self {
            id: client.id,
            name: client.name,
            redirect_uris: client.redirect_uris,
            token_endpoint_auth_method: client.auth_method.as_str(),
            grant_types: client.grant_types.into_iter().map(GrantType::as_str).collect(),
            scope: client.scope,
            client_uri: client.client_uri,
            created_at: client.created_at,
            created_by: client.created_by,
        }
    }
}

/// An OAuth client to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateClientRequest {
    /// 1 to 100 characters. Users see the name when they authorize the client.
    #[schema(min_length = 1, max_length = 100, example = "Booking integration")]
    name: String,
    /// Redirect URIs for authorization codes: `https`, or `http` on a loopback address.
    #[serde(default)]
    #[schema(max_items = 20, example = json!(["https://booking.example/oauth/callback"]))]
    redirect_uris: Option<Vec<String>>,
    /// `client_secret_basic`, `client_secret_post` or `none`.
    #[schema(default = "client_secret_basic")]
    token_endpoint_auth_method: Option<String>,
    /// `authorization_code`, `refresh_token`, `client_credentials`,
    /// `urn:ietf:params:oauth:grant-type:device_code`.
    #[schema(default = json!(["authorization_code", "refresh_token"]))]
    grant_types: Option<Vec<String>>,
    /// The maximum scope of its grants, and the default for authorization requests without
    /// `scope`.
    #[schema(default = "write")]
    scope: Option<Scope>,
    client_uri: Option<String>,
}

impl CreateClientRequest {
    fn into_new_client(self) -> Result<CreateClientParams, ApiError> {
        let method = self.token_endpoint_auth_method.as_deref().unwrap_or("client_secret_basic");
        let auth_method = ClientAuthMethod::from_name(method).ok_or_else(|| {
            let requirement = "must be client_secret_basic, client_secret_post or none";
            let field = "token_endpoint_auth_method";
            ApiError::invalid(field, format!("{field} {requirement}"))
        })?;
        let grant_types = match self.grant_types {
            None => vec![GrantType::AuthorizationCode, GrantType::RefreshToken],
            Some(names) => {
                let grants = names.iter().map(|name| GrantType::from_name(name));
                let grants = grants.collect::<Option<Vec<_>>>();
                grants.ok_or_else(|| {
                    let supported = GrantType::ALL.map(GrantType::as_str).join(", ");
                    let message = format!("grant_types must be a list of: {supported}");
                    ApiError::invalid("grant_types", message)
                })?
            }
        };
        Ok(CreateClientParams {
            name: self.name,
            redirect_uris: self.redirect_uris.unwrap_or_default(),
            auth_method,
            grant_types,
            scope: self.scope.unwrap_or(Scope::Write),
            client_uri: self.client_uri,
        })
    }
}

/// A new OAuth client with its secret.
#[derive(Serialize, ToSchema)]
pub struct CreatedClientBody {
    #[serde(flatten)]
    client: ClientBody,
    /// The client secret. Only this response contains it. Absent for public clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "cs_call2me_…")]
    client_secret: Option<String>,
}

/// Create an OAuth client
///
/// Only this response contains the secret. Store it: it cannot be retrieved again.
#[utoipa::path(post, path = "/v1/oauth/clients", tag = "OAuth", request_body = CreateClientRequest,
    params(crate::http::dto::parameters::IdempotencyKeyHeader),
    responses((status = 201, body = CreatedClientBody), (status = 409)))]
pub async fn create(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    IdempotentJson { body, attempt }: IdempotentJson<CreateClientRequest>,
) -> ApiResult<IdempotentCreated> {
    let params = body.into_new_client()?;
    let mut transaction = match IdempotentCreated::begin(&app, &caller, attempt).await? {
        CreationOutcome::New(transaction) => transaction,
        CreationOutcome::Replayed(response) => return Ok(response),
    };
    let (RegisteredClient { client, secret }, audited) =
        app.oauth.workspace_clients.create(transaction.tx(), &caller, params).await?;
    let location = format!("/v1/oauth/clients/{}", client.id);
    let client_secret = secret.map(|secret| secret.reveal().to_owned());
    let body = to_json(&CreatedClientBody { client: client.into(), client_secret })?;
    IdempotentCreated::finish(transaction, audited, location, body).await
}

/// A page of OAuth clients.
#[derive(Serialize, ToSchema)]
pub struct ClientsBody {
    clients: Vec<ClientBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List OAuth clients
#[utoipa::path(get, path = "/v1/oauth/clients", tag = "OAuth",
    params(crate::http::dto::parameters::PageParams), responses((status = 200, body = ClientsBody)))]
pub async fn list(
    caller: Authorized<Admin>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<ClientsBody>> {
    let (page, total) = app.oauth.workspace_clients.list(&caller, query.page()?).await?;
    let next_cursor = page.next_cursor(|client| client.id.uuid());
    let clients = page.items.into_iter().map(ClientBody::from).collect();
    Ok(Json(ClientsBody { clients, total, next_cursor }))
}

/// Get an OAuth client
#[utoipa::path(get, path = "/v1/oauth/clients/{id}", tag = "OAuth",
    params(("id" = ClientId, Path)), responses((status = 200, body = ClientBody), (status = 404)))]
pub async fn get(
    caller: Authorized<Admin>,
    State(app): State<App>,
    PathId(id): PathId<ClientId>,
) -> ApiResult<Json<ClientBody>> {
    Ok(Json(app.oauth.workspace_clients.get(&caller, id).await?.into()))
}

/// A change of an OAuth client. Absent fields keep their value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateClientRequest {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// The new list of redirect URIs. It replaces the old list.
    #[schema(max_items = 20)]
    redirect_uris: Option<Vec<String>>,
}

/// Update an OAuth client
#[utoipa::path(patch, path = "/v1/oauth/clients/{id}", tag = "OAuth",
    params(("id" = ClientId, Path)), request_body = UpdateClientRequest,
    responses((status = 200, body = ClientBody), (status = 404)))]
pub async fn update(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<ClientId>,
    extract::Json(body): extract::Json<UpdateClientRequest>,
) -> ApiResult<Json<ClientBody>> {
    let UpdateClientRequest { name, redirect_uris } = body;
    let change = UpdateClientParams { name, redirect_uris };
    Ok(Json(app.oauth.workspace_clients.update(&caller, id, change).await?.into()))
}

/// Delete an OAuth client
///
/// Ends all grants of the client at once.
#[utoipa::path(delete, path = "/v1/oauth/clients/{id}", tag = "OAuth",
    params(("id" = ClientId, Path)), responses((status = 204), (status = 404)))]
pub async fn delete(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<ClientId>,
) -> ApiResult<StatusCode> {
    app.oauth.workspace_clients.delete(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A rotation of a client secret.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateSecretRequest {
    /// Seconds for which the previous secrets stay valid. The default is one day; 0 ends them at
    /// once.
    #[schema(minimum = 0, maximum = 2_592_000, default = 86_400)]
    overlap_seconds: Option<u64>,
}

/// An OAuth client with its new secret.
#[derive(Serialize, ToSchema)]
pub struct RotatedSecretBody {
    #[serde(flatten)]
    client: ClientBody,
    /// The new client secret. Only this response contains it.
    #[schema(example = "cs_call2me_…")]
    client_secret: String,
    /// Time until which the previous secrets stay valid.
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    others_until: OffsetDateTime,
}

/// Rotate the secret of an OAuth client
///
/// The previous secrets stay valid for `overlap_seconds`, so you can deploy the new secret without
/// downtime.
#[utoipa::path(post, path = "/v1/oauth/clients/{id}/secret", tag = "OAuth",
    params(("id" = ClientId, Path), crate::http::dto::parameters::IdempotencyKeyHeader),
    request_body = RotateSecretRequest,
    responses((status = 201, body = RotatedSecretBody), (status = 404), (status = 409)))]
pub async fn rotate_secret(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<ClientId>,
    IdempotentJson { body, attempt }: IdempotentJson<RotateSecretRequest>,
) -> ApiResult<IdempotentCreated> {
    let overlap = body.overlap_seconds.map_or(DEFAULT_OVERLAP, Duration::from_secs);
    if overlap > MAX_SECRET_OVERLAP {
        let (field, max) = ("overlap_seconds", MAX_SECRET_OVERLAP.as_secs());
        return Err(ApiError::invalid(field, format!("{field} must be at most {max}")));
    }
    let mut transaction = match IdempotentCreated::begin(&app, &caller, attempt).await? {
        CreationOutcome::New(transaction) => transaction,
        CreationOutcome::Replayed(response) => return Ok(response),
    };
    let (RotatedSecret { client, secret, others_until }, audited) =
        app.oauth.workspace_clients.rotate_secret(transaction.tx(), &caller, id, overlap).await?;
    let body = RotatedSecretBody {
        client: client.into(),
        client_secret: secret.reveal().to_owned(),
        others_until,
    };
    let location = format!("/v1/oauth/clients/{id}");
    IdempotentCreated::finish(transaction, audited, location, to_json(&body)?).await
}
