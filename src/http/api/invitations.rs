//! Routes of invitations: invite users to the caller's workspace and accept an invitation.
//!
//! An invitation has an emailed token. New users and existing users accept in different ways; see
//! [`accept`].

use axum::{Json, extract::State, http::StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{ApiResult, Created, CreationOutcome, IdempotentCreated, auth::TokenBody, to_json};
use crate::{
    auth::invitations::NewMember,
    http::{
        App,
        extract::{
            self, Admin, Authorized, FirstPartyAdmin, IdempotentJson, OptionalSession, PathId,
            Public, Query,
        },
    },
    model::{
        id::{Id, InvitationId},
        invitation::Invitation,
        password::Password,
        scope::Role,
    },
};

/// An open invitation.
#[derive(Serialize, ToSchema)]
pub struct InvitationBody {
    id: InvitationId,
    #[schema(example = "sam@acme.example")]
    email: String,
    role: Role,
    /// The id of the user or API key that sent the invitation.
    #[schema(example = "user_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    invited_by: String,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    expires_at: OffsetDateTime,
}

impl From<Invitation> for InvitationBody {
    fn from(invitation: Invitation) -> Self {
        let Invitation { id, email, role, invited_by, created_at, expires_at } = invitation;
        Self { id, email, role, invited_by, created_at, expires_at }
    }
}

/// A page of invitations.
#[derive(Serialize, ToSchema)]
pub struct InvitationsBody {
    invitations: Vec<InvitationBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// An invitation to send.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// The email address that gets the link.
    #[schema(example = "sam@acme.example")]
    email: String,
    /// The role of the new member, at most the caller's own role.
    role: Role,
    /// The caller's password. Required to invite an owner, unless the caller signed in within the
    /// last 15 minutes.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// Invite a member
///
/// Sends an email with a link that works once, within one week.
#[utoipa::path(post, path = "/v1/invitations", tag = "Workspaces", request_body = InviteRequest,
    params(crate::http::dto::parameters::IdempotencyKeyHeader),
    responses((status = 201, body = InvitationBody), (status = 409)))]
pub async fn create(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    IdempotentJson { body, attempt }: IdempotentJson<InviteRequest>,
) -> ApiResult<IdempotentCreated> {
    // Before the transaction begins: password verification is slow.
    let is_confirmed =
        app.auth.passwords.has_reauthenticated(&caller, body.password.as_ref()).await?;
    let mut transaction = match IdempotentCreated::begin(&app, &caller, attempt).await? {
        CreationOutcome::New(transaction) => transaction,
        CreationOutcome::Replayed(response) => return Ok(response),
    };
    let (email, role) = (&body.email, body.role);
    let (invitation, audited) =
        app.auth.invitations.create(transaction.tx(), &caller, email, role, is_confirmed).await?;
    let location = format!("/v1/invitations/{}", invitation.id);
    IdempotentCreated::finish(
        transaction,
        audited,
        location,
        to_json(&InvitationBody::from(invitation))?,
    )
    .await
}

/// List open invitations
#[utoipa::path(get, path = "/v1/invitations", tag = "Workspaces",
    params(crate::http::dto::parameters::PageParams), responses((status = 200, body = InvitationsBody)))]
pub async fn list(
    caller: Authorized<Admin>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<InvitationsBody>> {
    let (page, total) = app.auth.invitations.list(&caller, query.page()?).await?;
    let next_cursor = page.next_cursor(|invitation| invitation.id.uuid());
    let invitations = page.items.into_iter().map(InvitationBody::from).collect();
    Ok(Json(InvitationsBody { invitations, total, next_cursor }))
}

/// Withdraw an invitation
#[utoipa::path(delete, path = "/v1/invitations/{id}", tag = "Workspaces",
    params(("id" = InvitationId, Path)), responses((status = 204), (status = 404)))]
pub async fn withdraw(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<InvitationId>,
) -> ApiResult<StatusCode> {
    app.auth.invitations.revoke(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The acceptance of an invitation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptInvitationRequest {
    /// The token of the mailed link.
    #[schema(value_type = String)]
    token: SecretString,
    /// The password of a new user: 12 to 256 characters of any kind.
    #[schema(value_type = Option<String>, format = Password, min_length = 12, max_length = 256)]
    password: Option<Password>,
    /// The name of a new user.
    #[schema(example = "Sam Lee")]
    full_name: Option<String>,
}

/// Accept an invitation
///
/// A new user sends a password; the request creates the user and signs in. An existing user sends
/// the access token of their own session; the session switches to the workspace.
#[utoipa::path(post, path = "/v1/invitations/accept", tag = "Workspaces",
    request_body = AcceptInvitationRequest,
    responses((status = 201, body = TokenBody), (status = 401), (status = 403), (status = 409)))]
pub async fn accept(
    public: Public,
    OptionalSession(caller): OptionalSession,
    State(app): State<App>,
    extract::Json(body): extract::Json<AcceptInvitationRequest>,
) -> ApiResult<Created<Json<TokenBody>>> {
    let AcceptInvitationRequest { token, password, full_name } = body;
    let token = token.expose_secret();
    let pair = if let Some(caller) = caller {
        app.auth.invitations.accept(&caller, token).await?
    } else {
        let new = NewMember { password, full_name };
        app.auth.invitations.accept_with_new_account(token, &new, &public.request).await?.tokens
    };
    Ok(Created::without_replay(
        "/v1/auth/me".to_owned(),
        Json(TokenBody::new(&app, &pair)),
        "there may be no caller yet that a stored response could belong to; a retry is refused",
    ))
}
