//! The user's sessions: list and end.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    form::UserForm,
    layout::{Desk, Done, Layout},
    page::PAGE_SIZE,
};
use crate::{
    auth::sessions::require_user_session,
    http::{
        ApiError, App,
        extract::{Authorized, UserSession, PathId, Query},
    },
    model::{
        id::{Id, SessionId},
        session::Session,
        timestamp,
    },
};

#[derive(Template)]
#[template(path = "sessions.html")]
struct SessionsPage {
    layout: Layout,
    /// True if the workspace requires a second factor and the user has none.
    is_incomplete: bool,
    sessions: Vec<SessionRow>,
    next: Option<String>,
}

/// A session in the list.
struct SessionRow {
    id: SessionId,
    client: String,
    ip: String,
    since: String,
    last_seen: String,
    is_current: bool,
}

impl SessionRow {
    fn new(session: Session, own: SessionId) -> Self {
        Self {
            id: session.id,
            client: session.user_agent.unwrap_or_else(|| "Unknown browser".to_owned()),
            ip: session.ip.map_or_else(|| "unknown address".to_owned(), |ip| ip.to_string()),
            since: timestamp::for_people(session.created_at),
            last_seen: timestamp::for_people(session.last_seen_at),
            is_current: session.id == own,
        }
    }
}

/// Lists the user's sessions.
pub(super) async fn show(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    desk: Desk,
    query: Query,
) -> Result<Response, ApiError> {
    let (own, _) = require_user_session(&caller)?;
    let (page, _) = app.auth.sessions(&caller, query.page_of(PAGE_SIZE)?).await?;
    let next = page.next_cursor(|session| session.id.uuid());
    let page = SessionsPage {
        layout: desk.layout(),
        is_incomplete: caller.principal.lacks_second_factor,
        sessions: page.items.into_iter().map(|session| SessionRow::new(session, own)).collect(),
        next,
    };
    Ok(desk.page(200, &page))
}

/// Ends one session. If it is the current one, also deletes the cookie.
pub(super) async fn end(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    PathId(id): PathId<SessionId>,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    app.auth.end_session(&caller, id).await?;
    let (own, _) = require_user_session(&caller)?;
    if id == own {
        return Ok(form.browser.signed_out("/sign-in"));
    }
    Ok(Done::SessionEnded.at("/sessions"))
}

/// Ends all sessions except the current one.
pub(super) async fn end_others(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    _form: UserForm,
) -> Result<Response, ApiError> {
    app.auth.end_other_sessions(&caller).await?;
    Ok(Done::OtherSessionsEnded.at("/sessions"))
}

/// Ends the current session.
pub(super) async fn sign_out(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    app.auth.logout(&caller).await?;
    Ok(form.browser.signed_out("/sign-in"))
}
