//! The audit log, for a person in a hurry: who did what, with filters in the URL, and as it grows.

use askama::Template;
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde_json::Value;

use super::{
    layout::{Desk, Layout},
    live,
    page::{ITEMS, encoded, for_people},
};
use crate::{
    http::{
        ApiError, App,
        api::audit_stream,
        error::Code,
        extract::{Authorized, EVENT_FILTERS, PathId, Query, ReadOnly, Standing},
    },
    model::{
        api_key::KeyStatus,
        audit::{Action, ActorType, Event},
        id::{EventId, Id, WorkspaceId},
        page::Page,
        timestamp,
    },
    store::api_keys::KeyFilter,
};

/// Keys that the filter offers.
const KEYS: i64 = 40;
#[derive(Template)]
#[template(path = "audit_log.html")]
struct LogPage {
    layout: Layout,
    events: Vec<Line>,
    /// The filters as they are set: name and value.
    filters: Vec<(&'static str, String)>,
    /// The keys that the filter offers: id and name.
    keys: Vec<(String, String)>,
    problem: Option<String>,
    /// Whether this is the newest page, which goes on growing.
    is_newest: bool,
    workspace: WorkspaceId,
    next: Option<String>,
}

impl LogPage {
    /// What a filter is set to.
    fn set(&self, name: &str) -> &str {
        self.filters.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// The filters as a query string, of which the first sign is `sign`; empty where there are none.
    fn query(&self, sign: &str) -> String {
        let pair = |(name, value): &(&str, String)| format!("{name}={}", encoded(value));
        let pairs: Vec<_> = self.filters.iter().map(pair).collect();
        if pairs.is_empty() { String::new() } else { format!("{sign}{}", pairs.join("&")) }
    }

    /// A moment as a field of the form has it.
    fn local(&self, name: &str) -> &str {
        self.set(name).get(.."2026-01-31T12:00".len()).unwrap_or_default()
    }

    /// Whether filters are set that no link at the top sets.
    fn is_chosen(&self) -> bool {
        let links = [
            ("changes", "true"),
            ("action", "request"),
            ("status", "401"),
            ("status", "403"),
            ("status", "429"),
        ];
        !self.filters.is_empty() && !links.iter().any(|(name, value)| self.shows(name, value))
    }

    /// Whether this is what a link with this filter alone shows; without a name: all.
    fn shows(&self, name: &str, value: &str) -> bool {
        match self.filters.as_slice() {
            [] => name.is_empty(),
            [(known, set)] => *known == name && set == value,
            _ => false,
        }
    }
}

/// An event as a line of the log.
#[derive(Template)]
#[template(path = "audit_line.html")]
struct Line {
    id: EventId,
    at: String,
    date: String,
    time: String,
    actor: String,
    actor_kind: &'static str,
    what: &'static str,
    /// What was called, or done to whom.
    object: Option<String>,
    is_request: bool,
    status: Option<i16>,
    ip: Option<String>,
    took: Option<String>,
}

impl askama::filters::HtmlSafe for Line {}

impl Line {
    fn new(event: &Event<'_>) -> Self {
        let at = timestamp::to_the_second(event.at);
        let (date, time) = at.split_once(' ').unwrap_or_default();
        let is_request = event.action == Action::Request.as_str();
        let request = &event.request;
        let called = || {
            let (method, path) = (request.method.as_deref()?, request.path.as_deref()?);
            Some(if event.is_page() { path.to_owned() } else { format!("{method} {path}") })
        };
        let target = event.target.as_ref();
        // A session or a workspace without a name tells nobody anything.
        let named = target.filter(|target| {
            target.name.is_some() || !["session", "workspace"].contains(&&*target.kind)
        });
        let named = named.map(|target| {
            target.name.as_deref().map_or_else(|| target.id.to_string(), ToOwned::to_owned)
        });
        Self {
            id: event.id,
            at: timestamp::format(event.at),
            date: date.to_owned(),
            time: time.trim_end_matches(" UTC").to_owned(),
            actor: actor(event),
            actor_kind: kind(event),
            what: if is_request { call(event) } else { what(&event.action) },
            object: if is_request { called() } else { named }.map(|text| short(text, 160)),
            is_request,
            status: request.status,
            ip: request.ip.map(|ip| ip.addr().to_string()),
            took: request.latency_us.map(|micros| match micros {
                ..1000 => format!("{micros} µs"),
                _ => format!("{} ms", micros / 1000),
            }),
        }
    }

    /// How the answer is to be looked at.
    fn tone(&self) -> &'static str {
        match self.status {
            Some(..400) => "good",
            Some(400..500) => "warn",
            Some(_) => "bad",
            None => "",
        }
    }
}

/// As much of a text as there is room for; the page of what it names has all of it.
fn short(text: String, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn actor(event: &Event<'_>) -> String {
    match (&event.actor.name, ActorType::from_name(&event.actor.kind)) {
        (Some(name), _) => name.to_string(),
        (None, Some(ActorType::System)) => "The operator".to_owned(),
        (None, _) => "Somebody unknown".to_owned(),
    }
}

fn kind(event: &Event<'_>) -> &'static str {
    match ActorType::from_name(&event.actor.kind) {
        Some(ActorType::ApiKey) => "API key",
        Some(ActorType::OAuthClient) => "app",
        Some(ActorType::User) => "person",
        _ => "",
    }
}

/// What a request is called in a sentence that begins with whoever made it.
fn call(event: &Event<'_>) -> &'static str {
    match event.request.method.as_deref() {
        _ if !event.is_page() => "called",
        Some("GET" | "HEAD") => "opened",
        _ => "sent the form",
    }
}

/// What an action is called in a sentence that begins with whoever did it.
fn what(action: &str) -> &'static str {
    let Some(action) = Action::from_name(action) else { return "did" };
    match action {
        Action::Request => "called",
        Action::ApiKeyCreated => "created the key",
        Action::ApiKeyUpdated => "changed the key",
        Action::ApiKeyRotated => "began to rotate the key",
        Action::ApiKeyRevoked => "revoked the key",
        Action::ApiKeyRejected => "is revoked, and was used all the same",
        Action::SessionCreated => "signed in",
        Action::SessionRefreshed => "went on with a session",
        Action::SessionEnded => "signed out or ended a session",
        Action::SessionSwitched => "switched workspaces",
        Action::PasswordChanged => "changed their password",
        Action::SecondFactorAdded => "turned on a second factor",
        Action::SecondFactorRemoved => "turned off a second factor",
        Action::RecoveryCodesRenewed => "made new recovery codes",
        Action::PasskeyAdded => "added a passkey",
        Action::PasskeyRemoved => "removed a passkey",
        Action::EmailVerified => "verified their address",
        Action::SessionReuseDetected => "used a refresh token twice; the session was ended",
        Action::LoginFailed => "failed to sign in as",
        Action::WorkspaceCreated => "created the workspace",
        Action::WorkspaceUpdated => "changed the workspace",
        Action::WorkspaceDeleted => "deleted the workspace",
        Action::LogPruned => "dropped old events of this log, by its retention",
        Action::MemberJoined => "joined",
        Action::MemberRoleChanged => "changed the role of",
        Action::MemberRemoved => "removed",
        Action::InvitationCreated => "invited",
        Action::InvitationRevoked => "withdrew the invitation of",
        Action::BrandingUpdated => "changed the branding",
        Action::ProfileUpdated => "changed their profile",
        Action::ClientCreated => "created the app",
        Action::ClientUpdated => "changed the app",
        Action::ClientSecretRotated => "gave another secret to the app",
        Action::ClientDeleted => "deleted the app",
        Action::GrantCreated => "let in the app",
        Action::GrantDenied => "did not let in the app",
        Action::TokenIssued => "got its first tokens",
        Action::TokenRefreshed => "got further tokens",
        Action::TokenRevoked => "gave a token back",
        Action::GrantEnded => "ended the access of",
        Action::ClientRejected => "used an app's name without its secret",
        Action::TokenRefused => "used a code or token that is worth nothing",
        Action::GrantReuseDetected => "used a code or token twice; its access was ended",
    }
}

/// Shows it.
pub(super) async fn show(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    desk: Desk,
    query: Query,
) -> Result<Response, ApiError> {
    let query = query.as_filled_in();
    let mut filters = Vec::new();
    for name in EVENT_FILTERS {
        if let Some(value) = query.text(name)? {
            filters.push((name, value.to_owned()));
        }
    }
    // As they are understood, whatever zone a moment was told in.
    for (name, value) in &mut filters {
        if ["since", "until"].contains(name)
            && let Ok(Some(moment)) = query.timestamp(name)
        {
            *value = timestamp::format(moment);
        }
    }
    // What people look at is for who asks for it.
    let query = query.with_default("pages", "false");
    let found = match (query.event_filter(), query.page_of(ITEMS)) {
        (Ok(filter), Ok(page)) => Ok((filter, page)),
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    let (status, problem, page, is_newest) = match found {
        Ok((filter, page)) => {
            let found = app.audit_log.list(&caller, &filter, page).await?;
            let grows = page.before.is_none() && page.offset == 0 && filter.until.is_none();
            (200, None, Some(found), grows)
        }
        Err(error) => (422, Some(for_people(error.message())), None, false),
    };
    let offered = KeyFilter { status: None, name: None };
    let offered_page = Page { limit: KEYS, before: None, offset: 0 };
    let (keys, _) = app.auth.list_keys(&caller, &offered, offered_page).await?;
    let key = |key: &crate::model::api_key::ApiKey| {
        let revoked = if key.status() == KeyStatus::Revoked { " (revoked)" } else { "" };
        (key.id.to_string(), format!("{}{revoked}", short(key.name.clone(), 40)))
    };
    let page = LogPage {
        layout: desk.layout(),
        filters,
        keys: keys.items.iter().map(key).collect(),
        problem,
        is_newest,
        workspace: caller.workspace(),
        next: page.as_ref().and_then(|page| page.next_cursor(|event| event.id.uuid())),
        events: page.iter().flat_map(|page| &page.items).map(Line::new).collect(),
    };
    Ok(desk.page(status, &page))
}

/// The lines that come to be, as Server-Sent Events.
pub(super) async fn stream(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
    standing: Standing<ReadOnly>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if live::is_elsewhere(&caller, &query)? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let tell = |event: &Event<'static>| Line::new(event).render().ok();
    let query = query.as_filled_in().with_default("pages", "false");
    audit_stream::follow(caller, app, &query, standing, &headers, tell).await
}

#[derive(Template)]
#[template(path = "audit_event.html")]
struct EventPage<'a> {
    layout: Layout,
    line: Line,
    event: &'a Event<'a>,
    /// All of it, as programs read it.
    json: String,
}

/// Shows one event.
pub(super) async fn details(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    desk: Desk,
    PathId(id): PathId<EventId>,
) -> Result<Response, ApiError> {
    let event = app.audit_log.event(&caller, id).await?;
    let event = event.ok_or_else(|| ApiError::new(Code::NotFound, "there is no such event"))?;
    let json: Value = serde_json::to_value(&event).unwrap_or_default();
    let page = EventPage {
        layout: desk.layout(),
        line: Line::new(&event),
        event: &event,
        json: format!("{json:#}"),
    };
    Ok(desk.page(200, &page))
}
