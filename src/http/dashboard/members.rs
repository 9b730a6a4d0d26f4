//! Members and invitations of the workspace.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    form::Form,
    layout::{Desk, Done, Layout},
    page::{ITEMS, explained},
};
use crate::{
    auth::sessions::own_session,
    http::{
        ApiError, App,
        extract::{Admin, Authorized, FirstPartyAdmin, PathId, Query},
    },
    idempotency::{Begun, KeptAnswer},
    model::{
        id::{Id, InvitationId, UserId},
        invitation::Invitation,
        page::Page,
        principal::Caller,
        scope::Role,
        timestamp,
        user::Member,
    },
};

const HERE: &str = "/members";
/// Open invitations that are shown.
const INVITATIONS: i64 = 50;
/// The page of members that is shown after a form.
const FIRST: Page = Page { limit: ITEMS, before: None, offset: 0 };

#[derive(Template)]
#[template(path = "members.html")]
struct MembersPage<'a> {
    layout: Layout,
    own: UserId,
    role: Role,
    /// Whether they signed in too long ago for what takes a password.
    must_confirm: bool,
    members: Vec<Member>,
    next: Option<String>,
    invitations: Vec<Invitation>,
    email: &'a str,
    invited_role: Role,
    problem: Option<String>,
}

impl MembersPage<'_> {
    /// The roles that the person may give.
    fn roles(&self) -> Vec<Role> {
        let roles = [Role::Viewer, Role::Member, Role::Admin, Role::Owner];
        roles.into_iter().filter(|role| *role <= self.role).collect()
    }
}

/// What a role lets a person do, in a few words.
pub(super) const fn meaning(role: Role) -> &'static str {
    match role {
        Role::Viewer => "sees everything, changes nothing",
        Role::Member => "changes agents, calls and the like",
        Role::Admin => "also keys, members and settings",
        Role::Owner => "also owners; may delete the workspace",
    }
}

/// What came of a form on the page.
#[derive(Default)]
struct Outcome<'a> {
    email: &'a str,
    role: Option<Role>,
    problem: Option<(u16, String)>,
}

/// Lists them.
pub(super) async fn show(
    caller: Authorized<Admin>,
    State(app): State<App>,
    desk: Desk,
    query: Query,
) -> Result<Response, ApiError> {
    page(&app, &desk, &caller, query.page_of(ITEMS)?, Outcome::default()).await
}

/// Gives a member another role.
pub(super) async fn change_role(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    desk: Desk,
    PathId(user): PathId<UserId>,
    form: Form,
) -> Result<Response, ApiError> {
    let password = form.password("password")?;
    let changed = app.auth.change_role(&caller, user, role(&form)?, password.as_ref()).await;
    let changed = changed.map(|_| Done::RoleChanged).map_err(ApiError::from);
    done(&app, &desk, &caller, changed).await
}

/// Takes a member out.
pub(super) async fn remove(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    desk: Desk,
    PathId(user): PathId<UserId>,
    _form: Form,
) -> Result<Response, ApiError> {
    let removed = app.auth.remove_member(&caller, user).await;
    let removed = removed.map(|()| Done::MemberRemoved).map_err(ApiError::from);
    done(&app, &desk, &caller, removed).await
}

/// Invites somebody.
pub(super) async fn invite(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    desk: Desk,
    form: Form,
) -> Result<Response, ApiError> {
    let (email, role) = (form.text("email")?.trim(), role(&form)?);
    match send(&app, &caller, &form, email, role).await {
        Ok(()) => Ok(Done::Invited.at(HERE)),
        Err(error) => {
            let outcome = Outcome { email, role: Some(role), problem: Some(explained(error)?) };
            page(&app, &desk, &caller, FIRST, outcome).await
        }
    }
}

async fn send(
    app: &App,
    caller: &Caller,
    form: &Form,
    email: &str,
    role: Role,
) -> Result<(), ApiError> {
    // Before the transaction: a password takes a while to check.
    let confirmed = app.auth.is_confirmed(caller, form.password("password")?.as_ref()).await?;
    let mut work = match app.idempotency.begin(caller, form.attempt()?).await? {
        Begun::Work(work) => work,
        Begun::Answered(_) => return Ok(()),
    };
    app.auth.invite(work.tx(), caller, email, role, confirmed).await?;
    let answer = KeptAnswer { status: 200, location: HERE.to_owned(), body: String::new() };
    Ok(work.finish(&answer).await?)
}

/// Takes an invitation back.
pub(super) async fn withdraw(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    desk: Desk,
    PathId(id): PathId<InvitationId>,
    _form: Form,
) -> Result<Response, ApiError> {
    let withdrawn = app.auth.withdraw_invitation(&caller, id).await;
    let withdrawn = withdrawn.map(|()| Done::InvitationWithdrawn).map_err(ApiError::from);
    done(&app, &desk, &caller, withdrawn).await
}

fn role(form: &Form) -> Result<Role, ApiError> {
    let what = "owner, admin, member or viewer";
    form.parse_as("role", what)?
        .ok_or_else(|| ApiError::invalid("role", format!("role must be {what}")))
}

/// The page anew, or with what stood in the way.
async fn done(
    app: &App,
    desk: &Desk,
    caller: &Caller,
    outcome: Result<Done, ApiError>,
) -> Result<Response, ApiError> {
    match outcome {
        Ok(done) => Ok(done.at(HERE)),
        Err(error) => {
            let outcome = Outcome { problem: Some(explained(error)?), ..Outcome::default() };
            page(app, desk, caller, FIRST, outcome).await
        }
    }
}

async fn page(
    app: &App,
    desk: &Desk,
    caller: &Caller,
    wanted: Page,
    outcome: Outcome<'_>,
) -> Result<Response, ApiError> {
    let (_, own) = own_session(caller)?;
    let (members, _) = app.resources.members(caller, wanted).await?;
    let next = members.next_cursor(|member| member.user_id.uuid());
    let open = Page { limit: INVITATIONS, ..Page::default() };
    let (invitations, _) = app.auth.invitations(caller, open).await?;
    let Outcome { email, role, problem } = outcome;
    let (status, problem) = problem.map_or((200, None), |(status, text)| (status, Some(text)));
    let page = MembersPage {
        layout: desk.layout(),
        own,
        role: desk.role(),
        must_confirm: !app.auth.is_confirmed(caller, None).await?,
        members: members.items,
        next,
        invitations: invitations.items,
        email,
        // The least is where to begin.
        invited_role: role.unwrap_or(Role::Viewer),
        problem,
    };
    Ok(desk.page(status, &page))
}
