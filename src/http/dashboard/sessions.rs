//! The user's sessions: list and end.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    form::OwnForm,
    layout::{Desk, Done, Layout},
    page::ITEMS,
};
use crate::{
    auth::sessions::own_session,
    http::{
        ApiError, App,
        extract::{Authorized, OwnSession, PathId, Query},
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
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    query: Query,
) -> Result<Response, ApiError> {
    let (own, _) = own_session(&caller)?;
    let (page, _) = app.auth.sessions(&caller, query.page_of(ITEMS)?).await?;
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
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    PathId(id): PathId<SessionId>,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    app.auth.end_session(&caller, id).await?;
    let (own, _) = own_session(&caller)?;
    if id == own {
        return Ok(form.browser.signed_out("/sign-in"));
    }
    Ok(Done::SessionEnded.at("/sessions"))
}

/// Ends all sessions except the current one.
pub(super) async fn end_others(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    _form: OwnForm,
) -> Result<Response, ApiError> {
    app.auth.end_other_sessions(&caller).await?;
    Ok(Done::OthersEnded.at("/sessions"))
}

/// Ends the current session.
pub(super) async fn sign_out(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    app.auth.logout(&caller).await?;
    Ok(form.browser.signed_out("/sign-in"))
}
