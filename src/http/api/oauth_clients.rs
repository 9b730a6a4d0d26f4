//! OAuth clients of a workspace.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Answer, Created};
use crate::{
    http::{
        ApiError, App,
        extract::{self, Admin, Authorized, FirstPartyAdmin, PathId, Query},
    },
    model::{
        id::{ClientId, Id},
        oauth::client::{AuthMethod, Client, GrantType},
        scope::Scope,
    },
    oauth::workspace_clients::{ChangeClient, MAX_OVERLAP, NewClient},
};

/// A superseded secret goes on for a day, unless said otherwise.
const OVERLAP: Duration = Duration::from_hours(24);

/// A client, without its secret.
#[derive(Serialize, ToSchema)]
pub struct ClientBody {
    /// Also its `client_id`.
    id: ClientId,
    #[schema(example = "Booking integration")]
    name: String,
    redirect_uris: Vec<String>,
    #[schema(example = "client_secret_basic")]
    token_endpoint_auth_method: &'static str,
    #[schema(example = json!(["authorization_code", "refresh_token"]))]
    grant_types: Vec<&'static str>,
    /// The most that it is granted.
    #[schema(required = true)]
    scope: Option<Scope>,
    #[schema(required = true)]
    client_uri: Option<String>,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// Who made it; null is the operator.
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

/// A client to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateClientRequest {
    /// 1 to 100 characters; people read it when they consent.
    #[schema(min_length = 1, max_length = 100, example = "Booking integration")]
    name: String,
    /// Where codes may be sent: `https`, or `http` on a loopback address.
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
    /// The most that it is granted, and what it asks for unless it says; `write` unless said otherwise.
    #[schema(default = "write")]
    scope: Option<Scope>,
    client_uri: Option<String>,
}

impl CreateClientRequest {
    fn wanted(self) -> Result<NewClient, ApiError> {
        let method = self.token_endpoint_auth_method.as_deref().unwrap_or("client_secret_basic");
        let auth_method = AuthMethod::from_name(method).ok_or_else(|| {
            let what = "must be client_secret_basic, client_secret_post or none";
            let field = "token_endpoint_auth_method";
            ApiError::invalid(field, format!("{field} {what}"))
        })?;
        let grant_types = match self.grant_types {
            None => vec![GrantType::AuthorizationCode, GrantType::RefreshToken],
            Some(names) => {
                let grants = names.iter().map(|name| GrantType::from_name(name));
                let grants = grants.collect::<Option<Vec<_>>>();
                grants.ok_or_else(|| {
                    let offered = GrantType::ALL.map(GrantType::as_str).join(", ");
                    ApiError::invalid("grant_types", format!("grant_types are: {offered}"))
                })?
            }
        };
        Ok(NewClient {
            name: self.name,
            redirect_uris: self.redirect_uris.unwrap_or_default(),
            auth_method,
            grant_types,
            scope: self.scope.unwrap_or(Scope::Write),
            client_uri: self.client_uri,
        })
    }
}

/// A fresh client, with its secret.
#[derive(Serialize, ToSchema)]
pub struct CreatedClientBody {
    #[serde(flatten)]
    client: ClientBody,
    /// Shown here and never again; not there for a public client.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "cs_call2me_…")]
    client_secret: Option<String>,
}

/// Make an OAuth client
///
/// The answer is the only place that ever shows the secret.
#[utoipa::path(post, path = "/v1/oauth/clients", tag = "OAuth", request_body = CreateClientRequest,
    responses((status = 201, body = CreatedClientBody)))]
pub async fn create(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    extract::Json(body): extract::Json<CreateClientRequest>,
) -> Answer<Created<Json<CreatedClientBody>>> {
    let made = app.oauth.create_client(&caller, body.wanted()?).await?;
    let location = format!("/v1/oauth/clients/{}", made.client.id);
    let client_secret = made.secret.map(|secret| secret.reveal().to_owned());
    let client = made.client.into();
    Ok(Created::at(location, Json(CreatedClientBody { client, client_secret })))
}

/// A page of clients.
#[derive(Serialize, ToSchema)]
pub struct ClientsBody {
    clients: Vec<ClientBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List OAuth clients
#[utoipa::path(get, path = "/v1/oauth/clients", tag = "OAuth",
    params(crate::http::openapi::PageParams), responses((status = 200, body = ClientsBody)))]
pub async fn list(
    caller: Authorized<Admin>,
    State(app): State<App>,
    query: Query,
) -> Answer<Json<ClientsBody>> {
    let (page, total) = app.oauth.clients(&caller, query.page()?).await?;
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
) -> Answer<Json<ClientBody>> {
    Ok(Json(app.oauth.client(&caller, id).await?.into()))
}

/// What is to change about a client; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateClientRequest {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// All of them.
    #[schema(max_items = 20)]
    redirect_uris: Option<Vec<String>>,
}

/// Change an OAuth client
#[utoipa::path(patch, path = "/v1/oauth/clients/{id}", tag = "OAuth",
    params(("id" = ClientId, Path)), request_body = UpdateClientRequest,
    responses((status = 200, body = ClientBody), (status = 404)))]
pub async fn update(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<ClientId>,
    extract::Json(body): extract::Json<UpdateClientRequest>,
) -> Answer<Json<ClientBody>> {
    let UpdateClientRequest { name, redirect_uris } = body;
    let wanted = ChangeClient { name, redirect_uris };
    Ok(Json(app.oauth.change_client(&caller, id, wanted).await?.into()))
}

/// Delete an OAuth client
///
/// And end all that was granted to it, at once.
#[utoipa::path(delete, path = "/v1/oauth/clients/{id}", tag = "OAuth",
    params(("id" = ClientId, Path)), responses((status = 204), (status = 404)))]
pub async fn delete(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<ClientId>,
) -> Answer<StatusCode> {
    app.oauth.delete_client(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How a secret is to be superseded.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateSecretRequest {
    /// How long the secrets before go on, in seconds; a day unless said otherwise, 0 is not at all.
    #[schema(minimum = 0, maximum = 2_592_000, default = 86_400)]
    overlap_seconds: Option<u64>,
}

/// A client's fresh secret.
#[derive(Serialize, ToSchema)]
pub struct RotatedSecretBody {
    #[serde(flatten)]
    client: ClientBody,
    /// Shown here and never again.
    #[schema(example = "cs_call2me_…")]
    client_secret: String,
    /// Until when those before go on.
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    others_until: OffsetDateTime,
}

/// Give an OAuth client another secret
///
/// The one before goes on for a while, so that nothing has to stop: deploy the new one meanwhile.
#[utoipa::path(post, path = "/v1/oauth/clients/{id}/secret", tag = "OAuth",
    params(("id" = ClientId, Path)), request_body = RotateSecretRequest,
    responses((status = 201, body = RotatedSecretBody), (status = 404), (status = 409)))]
pub async fn rotate_secret(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<ClientId>,
    extract::Json(body): extract::Json<RotateSecretRequest>,
) -> Answer<Created<Json<RotatedSecretBody>>> {
    let overlap = body.overlap_seconds.map_or(OVERLAP, Duration::from_secs);
    if overlap > MAX_OVERLAP {
        let (field, most) = ("overlap_seconds", MAX_OVERLAP.as_secs());
        return Err(ApiError::invalid(field, format!("{field} must be at most {most}")));
    }
    let (client, secret, others_until) =
        app.oauth.rotate_client_secret(&caller, id, overlap).await?;
    let location = format!("/v1/oauth/clients/{id}");
    let body = RotatedSecretBody {
        client: client.into(),
        client_secret: secret.reveal().to_owned(),
        others_until,
    };
    Ok(Created::at(location, Json(body)))
}
