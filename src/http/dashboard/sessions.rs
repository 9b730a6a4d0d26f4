//! The user's sessions: list and end.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    context::DashboardContext,
    form::UserForm,
    layout::{FlashMessage, Layout},
    page::PAGE_SIZE,
};
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, PathId, Query, UserSession},
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
    is_second_factor_missing: bool,
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
            since: timestamp::format_to_minute(session.created_at),
            last_seen: timestamp::format_to_minute(session.last_seen_at),
            is_current: session.id == own,
        }
    }
}

/// Lists the user's sessions.
pub(super) async fn show(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    query: Query,
) -> Result<Response, ApiError> {
    let own = caller.session();
    let (page, _) = app.auth.sessions.list(&caller, query.page_with_limit(PAGE_SIZE)?).await?;
    let next = page.next_cursor(|session| session.id.uuid());
    let page = SessionsPage {
        layout: context.layout(),
        is_second_factor_missing: caller.principal.lacks_second_factor,
        sessions: page.items.into_iter().map(|session| SessionRow::new(session, own)).collect(),
        next,
    };
    context.render_page(200, &page)
}

/// Ends one session. If it is the current one, also deletes the cookie.
pub(super) async fn end(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    PathId(id): PathId<SessionId>,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    app.auth.sessions.end(&caller, id).await?;
    let own = caller.session();
    if id == own {
        return Ok(form.browser.sign_out_redirect("/sign-in"));
    }
    Ok(FlashMessage::SessionEnded.redirect_to("/sessions"))
}

/// Ends all sessions except the current one.
pub(super) async fn end_others(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    _form: UserForm,
) -> Result<Response, ApiError> {
    app.auth.sessions.end_others(&caller).await?;
    Ok(FlashMessage::OtherSessionsEnded.redirect_to("/sessions"))
}

/// Ends the current session.
pub(super) async fn sign_out(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    app.auth.sessions.sign_out(&caller).await?;
    Ok(form.browser.sign_out_redirect("/sign-in"))
}
