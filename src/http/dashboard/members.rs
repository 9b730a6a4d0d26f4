//! The members and invitations of the workspace.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    context::DashboardContext,
    form::Form,
    layout::{FlashMessage, Layout},
    page::{PAGE_SIZE, form_error},
};
use crate::{
    auth::caller::AdminCaller,
    http::{
        ApiError, App,
        extract::{Admin, Authorized, FirstPartyAdmin, PathId, Query},
    },
    idempotency::{IdempotencyOutcome, StoredResponse},
    model::{
        id::{Id, InvitationId, UserId},
        invitation::Invitation,
        page::PageRequest,
        principal::Caller,
        scope::Role,
        timestamp,
        user::Member,
    },
};

/// The path of the page.
const PATH: &str = "/members";
/// The maximum number of open invitations on the page.
const MAX_INVITATIONS: i64 = 50;
/// The first page of members, displayed after a form.
const FIRST_PAGE: PageRequest = PageRequest { limit: PAGE_SIZE, before: None, offset: 0 };

#[derive(Template)]
#[template(path = "members.html")]
struct MembersPage<'a> {
    layout: Layout,
    /// The id of the signed-in user.
    current_user: Option<UserId>,
    /// The role of the signed-in user.
    role: Role,
    /// True if the sign-in is too long ago, so that changes of ownership require the password.
    is_password_required: bool,
    members: Vec<Member>,
    next: Option<String>,
    invitations: Vec<Invitation>,
    email: &'a str,
    invited_role: Role,
    problem: Option<String>,
}

impl MembersPage<'_> {
    fn is_current_user(&self, id: &UserId) -> bool {
        self.current_user == Some(*id)
    }
}

impl MembersPage<'_> {
    /// Returns the roles that the user may assign: up to the user's own.
    fn assignable_roles(&self) -> Vec<Role> {
        let roles = [Role::Viewer, Role::Member, Role::Admin, Role::Owner];
        roles.into_iter().filter(|role| *role <= self.role).collect()
    }
}

/// Returns a short description of a role.
pub(super) const fn role_description(role: Role) -> &'static str {
    match role {
        Role::Viewer => "can view everything and change nothing",
        Role::Member => "can also change agents, calls, knowledge bases and campaigns",
        Role::Admin => "can also manage keys, members and settings",
        Role::Owner => "can also manage owners and delete the workspace",
    }
}

/// The state of the page after a rejected form.
#[derive(Default)]
struct RejectedForm<'a> {
    /// The email address of the invitation.
    email: &'a str,
    /// The role of the invitation.
    role: Option<Role>,
    problem: Option<(u16, String)>,
}

/// Lists the members and the open invitations.
pub(super) async fn show(
    caller: Authorized<Admin>,
    State(app): State<App>,
    context: DashboardContext,
    query: Query,
) -> Result<Response, ApiError> {
    page(&app, &context, &caller, query.page_with_limit(PAGE_SIZE)?, RejectedForm::default()).await
}

/// Changes the role of a member.
pub(super) async fn change_role(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(user): PathId<UserId>,
    form: Form,
) -> Result<Response, ApiError> {
    let password = form.password("password")?;
    let changed =
        app.auth.members.change_role(&caller, user, parse_role(&form)?, password.as_ref()).await;
    let changed = changed.map(|_| FlashMessage::RoleChanged).map_err(ApiError::from);
    redirect_or_error(&app, &context, &caller, changed).await
}

/// Removes a member.
pub(super) async fn remove(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(user): PathId<UserId>,
    _form: Form,
) -> Result<Response, ApiError> {
    let removed = app.auth.members.remove(&caller, user).await;
    let removed = removed.map(|()| FlashMessage::MemberRemoved).map_err(ApiError::from);
    redirect_or_error(&app, &context, &caller, removed).await
}

/// Sends an invitation.
pub(super) async fn invite(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    context: DashboardContext,
    form: Form,
) -> Result<Response, ApiError> {
    let (email, role) = (form.text("email")?.trim(), parse_role(&form)?);
    match send_invitation(&app, &caller, &form, email, role).await {
        Ok(()) => Ok(FlashMessage::InvitationSent.redirect_to(PATH)),
        Err(error) => {
            let problem = Some(form_error(error)?);
            let rejected = RejectedForm { email, role: Some(role), problem };
            page(&app, &context, &caller, FIRST_PAGE, rejected).await
        }
    }
}

async fn send_invitation(
    app: &App,
    caller: &AdminCaller,
    form: &Form,
    email: &str,
    role: Role,
) -> Result<(), ApiError> {
    // Before the transaction starts, since the check of a password is slow.
    let confirmed =
        app.auth.passwords.has_reauthenticated(caller, form.password("password")?.as_ref()).await?;
    let mut work = match app.idempotency.begin(caller, form.attempt()?).await? {
        IdempotencyOutcome::New(work) => work,
        IdempotencyOutcome::Replayed(_) => return Ok(()),
    };
    let (_, audited) =
        app.auth.invitations.create(work.tx(), caller, email, role, confirmed).await?;
    let answer = StoredResponse { status: 200, location: PATH.to_owned(), body: String::new() };
    work.commit(&answer, audited).await?.unfenced("no node caches invitations");
    Ok(())
}

/// Withdraws an invitation.
pub(super) async fn withdraw(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<InvitationId>,
    _form: Form,
) -> Result<Response, ApiError> {
    let withdrawn = app.auth.invitations.revoke(&caller, id).await;
    let withdrawn = withdrawn.map(|()| FlashMessage::InvitationWithdrawn).map_err(ApiError::from);
    redirect_or_error(&app, &context, &caller, withdrawn).await
}

fn parse_role(form: &Form) -> Result<Role, ApiError> {
    let expected = "owner, admin, member or viewer";
    form.parse_as("role", expected)?
        .ok_or_else(|| ApiError::invalid("role", format!("role must be {expected}")))
}

/// Redirects to the page with a success message, or displays the error.
async fn redirect_or_error(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    outcome: Result<FlashMessage, ApiError>,
) -> Result<Response, ApiError> {
    match outcome {
        Ok(message) => Ok(message.redirect_to(PATH)),
        Err(error) => {
            let problem = Some(form_error(error)?);
            let rejected = RejectedForm { problem, ..RejectedForm::default() };
            page(app, context, caller, FIRST_PAGE, rejected).await
        }
    }
}

async fn page(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    wanted: PageRequest,
    rejected: RejectedForm<'_>,
) -> Result<Response, ApiError> {
    let own = caller.principal.user_id();
    let (members, _) = app.resources.list_members(caller, wanted).await?;
    let next = members.next_cursor(|member| member.user_id.uuid());
    let open = PageRequest { limit: MAX_INVITATIONS, ..PageRequest::default() };
    let (invitations, _) = app.auth.invitations.list(caller, open).await?;
    let RejectedForm { email, role, problem } = rejected;
    let (status, problem) = problem.map_or((200, None), |(status, text)| (status, Some(text)));
    let page = MembersPage {
        layout: context.layout(),
        current_user: own,
        role: context.role(),
        is_password_required: !app.auth.passwords.has_reauthenticated(caller, None).await?,
        members: members.items,
        next,
        invitations: invitations.items,
        email,
        // The role with the fewest rights is preselected.
        invited_role: role.unwrap_or(Role::Viewer),
        problem,
    };
    context.render_page(status, &page)
}
