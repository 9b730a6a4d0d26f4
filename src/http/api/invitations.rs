//! Invitations to the caller's workspace, and their acceptance.

use axum::{Json, extract::State, http::StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Answer, Created, CreatedOnce, Creating, auth::TokenBody, json};
use crate::{
    auth::invitations::NewMember,
    http::{
        App,
        extract::{
            self, Admin, Authorized, Creation, FirstPartyAdmin, PathId, Public, Query, Visitor,
        },
    },
    model::{
        id::{Id, InvitationId},
        invitation::Invitation,
        password::Password,
        scope::Role,
    },
};

/// An invitation that is open.
#[derive(Serialize, ToSchema)]
pub struct InvitationBody {
    id: InvitationId,
    #[schema(example = "sam@acme.example")]
    email: String,
    role: Role,
    /// Who invites.
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

/// Who is invited.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// The address that the link is mailed to.
    #[schema(example = "sam@acme.example")]
    email: String,
    /// What the person will be; not above the caller.
    role: Role,
    /// The caller's own, for an owner to be and where the caller has not just signed in.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// Invite somebody
///
/// By a mailed link that works once, within a week.
#[utoipa::path(post, path = "/v1/invitations", tag = "Workspaces", request_body = InviteRequest,
    params(crate::http::openapi::IdempotencyKey),
    responses((status = 201, body = InvitationBody), (status = 409)))]
pub async fn create(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    Creation { body, attempt }: Creation<InviteRequest>,
) -> Answer<CreatedOnce> {
    // Before the transaction: a password takes a while to check.
    let confirmed = app.auth.is_confirmed(&caller, body.password.as_ref()).await?;
    let mut work = match CreatedOnce::begin(&app, &caller, attempt).await? {
        Creating::Work(work) => work,
        Creating::Done(answer) => return Ok(answer),
    };
    let invitation = app.auth.invite(work.tx(), &caller, &body.email, body.role, confirmed).await?;
    let location = format!("/v1/invitations/{}", invitation.id);
    CreatedOnce::finish(work, location, json(&InvitationBody::from(invitation))?).await
}

/// List open invitations
#[utoipa::path(get, path = "/v1/invitations", tag = "Workspaces",
    params(crate::http::openapi::PageParams), responses((status = 200, body = InvitationsBody)))]
pub async fn list(
    caller: Authorized<Admin>,
    State(app): State<App>,
    query: Query,
) -> Answer<Json<InvitationsBody>> {
    let (page, total) = app.auth.invitations(&caller, query.page()?).await?;
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
) -> Answer<StatusCode> {
    app.auth.withdraw_invitation(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who accepts.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptRequest {
    /// The token of the link.
    #[schema(value_type = String)]
    token: SecretString,
    /// For a new account: 12 to 256 characters, of any kind.
    #[schema(value_type = Option<String>, format = Password, min_length = 12, max_length = 256)]
    password: Option<Password>,
    /// For a new account: the person's name.
    #[schema(example = "Sam Lee")]
    full_name: Option<String>,
}

/// Accept an invitation
///
/// Who has no account yet gets one. An account that exists accepts with its own session as bearer,
/// which moves to the workspace.
#[utoipa::path(post, path = "/v1/invitations/accept", tag = "Workspaces",
    request_body = AcceptRequest,
    responses((status = 201, body = TokenBody), (status = 401), (status = 403), (status = 409)))]
pub async fn accept(
    public: Public,
    Visitor(caller): Visitor,
    State(app): State<App>,
    extract::Json(body): extract::Json<AcceptRequest>,
) -> Answer<Created<Json<TokenBody>>> {
    let AcceptRequest { token, password, full_name } = body;
    let token = token.expose_secret();
    let pair = if let Some(caller) = caller {
        app.auth.accept_invitation(&caller, token).await?
    } else {
        let new = NewMember { password, full_name };
        app.auth.accept_invitation_anew(token, &new, &public.request).await?
    };
    Ok(Created::at("/v1/auth/me".to_owned(), Json(TokenBody::new(&app, &pair))))
}
