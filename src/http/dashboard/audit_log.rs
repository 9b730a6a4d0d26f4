//! The audit log: a filtered list that grows live, and the details of an event.
//!
//! The URL contains the filters, so a filtered list can be bookmarked and shared.

use askama::Template;
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde_json::Value;

use super::{
    context::DashboardContext,
    layout::Layout,
    live,
    page::{PAGE_SIZE, encode_query_value, user_message},
};
use crate::{
    http::{
        ApiError, App,
        api::audit_stream,
        error::ErrorCode,
        extract::{Authorized, EVENT_FILTERS, LiveAuthorization, PathId, Query, ReadOnly},
    },
    model::{
        api_key::KeyStatus,
        audit::{Action, ActorType, Event},
        id::{EventId, Id, WorkspaceId},
        page::PageRequest,
        timestamp,
    },
    store::api_keys::KeyFilter,
};

/// The maximum number of API keys in the key filter.
const MAX_FILTER_KEYS: i64 = 40;

#[derive(Template)]
#[template(path = "audit_log.html")]
struct LogPage {
    layout: Layout,
    events: Vec<EventRow>,
    /// The names and values of the active filters.
    filters: Vec<(&'static str, String)>,
    /// The ids and names of the API keys in the key filter.
    keys: Vec<(String, String)>,
    problem: Option<String>,
    /// True on the newest page, which grows live.
    is_newest: bool,
    workspace: WorkspaceId,
    next: Option<String>,
}

impl LogPage {
    /// Returns the value of a filter; empty if the filter is not active.
    fn filter_value(&self, name: &str) -> &str {
        self.filters.iter().find(|(filter, _)| *filter == name).map_or("", |(_, value)| value)
    }

    /// Returns the active filters as a query string that starts with `prefix`; empty if no filter
    /// is active.
    fn filter_query(&self, prefix: &str) -> String {
        let pair = |(name, value): &(&str, String)| format!("{name}={}", encode_query_value(value));
        let pairs: Vec<_> = self.filters.iter().map(pair).collect();
        if pairs.is_empty() { String::new() } else { format!("{prefix}{}", pairs.join("&")) }
    }

    /// Returns a time filter as the value of a `datetime-local` field.
    fn datetime_local(&self, name: &str) -> &str {
        self.filter_value(name).get(.."2026-01-31T12:00".len()).unwrap_or_default()
    }

    /// Returns true if the active filters are not one of the quick filters.
    fn has_custom_filters(&self) -> bool {
        let quick_filters = [
            ("changes", "true"),
            ("action", "request"),
            ("status", "401"),
            ("status", "403"),
            ("status", "429"),
        ];
        !self.filters.is_empty()
            && !quick_filters.iter().any(|(name, value)| self.is_only_filter(name, value))
    }

    /// Returns true if this is the only active filter; with an empty name: if no filter is active.
    fn is_only_filter(&self, name: &str, value: &str) -> bool {
        match self.filters.as_slice() {
            [] => name.is_empty(),
            [(filter, current)] => *filter == name && current == value,
            _ => false,
        }
    }
}

/// An event in the list. Actor, verb and object read as a sentence.
#[derive(Template)]
#[template(path = "audit_event_row.html")]
struct EventRow {
    id: EventId,
    at: String,
    date: String,
    time: String,
    actor: String,
    actor_kind: &'static str,
    /// The verb of the sentence, such as "created the key".
    verb: &'static str,
    /// The method and path of a request, or the name of the target.
    object: Option<String>,
    is_request: bool,
    status: Option<i16>,
    ip: Option<String>,
    latency: Option<String>,
}

impl askama::filters::HtmlSafe for EventRow {}

impl EventRow {
    fn new(event: &Event<'_>) -> Self {
        let at = timestamp::format_to_second(event.at);
        let (date, time) = at.split_once(' ').unwrap_or_default();
        let is_request = event.action == Action::Request.as_str();
        let request = &event.request;
        let request_line = || {
            let (method, path) = (request.method.as_deref()?, request.path.as_deref()?);
            Some(if event.is_browser_request() {
                path.to_owned()
            } else {
                format!("{method} {path}")
            })
        };
        let target = event.target.as_ref();
        // The id of a session or a workspace without a name is of no use to readers.
        let target_name = target.filter(|target| {
            target.name.is_some() || !["session", "workspace"].contains(&&*target.kind)
        });
        let target_name = target_name.map(|target| {
            target.name.as_deref().map_or_else(|| target.id.to_string(), ToOwned::to_owned)
        });
        Self {
            id: event.id,
            at: timestamp::format(event.at),
            date: date.to_owned(),
            time: time.trim_end_matches(" UTC").to_owned(),
            actor: actor_name(event),
            actor_kind: actor_label(event),
            verb: if is_request { request_verb(event) } else { action_verb(&event.action) },
            object: if is_request { request_line() } else { target_name }
                .map(|text| truncate(text, 160)),
            is_request,
            status: request.status,
            ip: request.ip.map(|ip| ip.addr().to_string()),
            latency: request.latency_us.map(|micros| match micros {
                ..1000 => format!("{micros} µs"),
                _ => format!("{} ms", micros / 1000),
            }),
        }
    }

    /// Returns the CSS class for the status of the response.
    fn status_class(&self) -> &'static str {
        match self.status {
            Some(..400) => "good",
            Some(400..500) => "warn",
            Some(_) => "bad",
            None => "",
        }
    }
}

/// Truncates a text for the list; the page of the event or key has the full text.
fn truncate(text: String, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn actor_name(event: &Event<'_>) -> String {
    match (&event.actor.name, ActorType::from_name(&event.actor.kind)) {
        (Some(name), _) => name.to_string(),
        (None, Some(ActorType::System)) => "The operator".to_owned(),
        (None, _) => "Unknown caller".to_owned(),
    }
}

fn actor_label(event: &Event<'_>) -> &'static str {
    match ActorType::from_name(&event.actor.kind) {
        Some(ActorType::ApiKey) => "API key",
        Some(ActorType::OAuthClient) => "app",
        Some(ActorType::User) => "user",
        _ => "",
    }
}

/// Returns the verb for a request, in a sentence that starts with the actor.
fn request_verb(event: &Event<'_>) -> &'static str {
    match event.request.method.as_deref() {
        _ if !event.is_browser_request() => "called",
        Some("GET" | "HEAD") => "opened",
        _ => "submitted the form",
    }
}

/// Returns the verb for an action, in a sentence that starts with the actor.
fn action_verb(action: &str) -> &'static str {
    let Some(action) = Action::from_name(action) else { return "performed an unknown action" };
    match action {
        Action::Request => "called",
        Action::ApiKeyCreated => "created the key",
        Action::ApiKeyUpdated => "changed the key",
        Action::ApiKeyRotated => "started to rotate the key",
        Action::ApiKeyRevoked => "revoked the key",
        Action::ApiKeyDisabled => "disabled the key",
        Action::ApiKeyEnabled => "enabled the key",
        Action::ApiKeyRejected => "was used after it was revoked or disabled",
        Action::SessionCreated => "signed in",
        Action::SessionRefreshed => "refreshed the session",
        Action::SessionEnded => "ended a session",
        Action::SessionSwitched => "switched workspaces",
        Action::PasswordChanged => "changed their password",
        Action::SecondFactorAdded => "turned on two-factor authentication",
        Action::SecondFactorRemoved => "turned off two-factor authentication",
        Action::RecoveryCodesRenewed => "created new recovery codes",
        Action::PasskeyAdded => "added a passkey",
        Action::PasskeyRemoved => "removed a passkey",
        Action::EmailVerified => "verified their email address",
        Action::SessionReuseDetected => "reused a refresh token; the session was ended",
        Action::LoginFailed => "failed to sign in as",
        Action::WorkspaceCreated => "created the workspace",
        Action::WorkspaceUpdated => "changed the workspace",
        Action::WorkspaceDeleted => "deleted the workspace",
        Action::WorkspaceRestored => "restored the database from a backup",
        Action::LogPruned => "deleted old events after the retention period",
        Action::MemberJoined => "joined the workspace as",
        Action::MemberRoleChanged => "changed the role of",
        Action::MemberRemoved => "removed",
        Action::InvitationCreated => "invited",
        Action::InvitationRevoked => "withdrew the invitation for",
        Action::BrandingUpdated => "changed the branding",
        Action::ProfileUpdated => "changed their profile",
        Action::ClientCreated => "created the app",
        Action::ClientUpdated => "changed the app",
        Action::ClientSecretRotated => "rotated the secret of the app",
        Action::ClientSecretRevoked => "ended secrets of the app",
        Action::ClientDeleted => "deleted the app",
        Action::GrantCreated => "authorized the app",
        Action::GrantDenied => "denied access to the app",
        Action::TokenIssued => "received its first tokens",
        Action::TokenRefreshed => "refreshed its tokens",
        Action::TokenRevoked => "revoked a token of",
        Action::GrantEnded => "ended the access of",
        Action::ClientRejected => "failed to authenticate as the app",
        Action::TokenRefused => "used an invalid code or token",
        Action::GrantReuseDetected => "reused a code or token; its access was ended",
    }
}

/// Displays a page of the audit log.
pub(super) async fn show(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    context: DashboardContext,
    query: Query,
) -> Result<Response, ApiError> {
    let query = query.normalize_form_values();
    let mut filters = Vec::new();
    for name in EVENT_FILTERS {
        if let Some(value) = query.text(name)? {
            filters.push((name, value.to_owned()));
        }
    }
    // Normalize times to UTC: the fields of the form have no time zone.
    for (name, value) in &mut filters {
        if ["since", "until"].contains(name)
            && let Ok(Some(time)) = query.timestamp(name)
        {
            *value = timestamp::format(time);
        }
    }
    // Page views are hidden by default.
    let query = query.with_default("pages", "false");
    let parsed = match (query.event_filter(), query.page_with_limit(PAGE_SIZE)) {
        (Ok(filter), Ok(page)) => Ok((filter, page)),
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    let (status, problem, page, is_newest) = match parsed {
        Ok((filter, page)) => {
            let events = app.audit_log.list(&caller, &filter, page).await?;
            let is_newest = page.before.is_none() && page.offset == 0 && filter.until.is_none();
            (200, None, Some(events), is_newest)
        }
        Err(error) => (422, Some(user_message(error.message())), None, false),
    };
    let key_filter = KeyFilter { status: None, name: None };
    let key_page = PageRequest { limit: MAX_FILTER_KEYS, before: None, offset: 0 };
    let (keys, _) = app.auth.api_keys.list(&caller, &key_filter, key_page).await?;
    let key = |key: &crate::model::api_key::ApiKey| {
        let status = match key.status() {
            KeyStatus::Active => "",
            KeyStatus::Disabled => " (disabled)",
            KeyStatus::Revoked => " (revoked)",
        };
        (key.id.to_string(), format!("{}{status}", truncate(key.name.clone(), 40)))
    };
    let page = LogPage {
        layout: context.layout(),
        filters,
        keys: keys.items.iter().map(key).collect(),
        problem,
        is_newest,
        workspace: caller.workspace(),
        next: page.as_ref().and_then(|page| page.next_cursor(|event| event.id.uuid())),
        events: page.iter().flat_map(|page| &page.items).map(EventRow::new).collect(),
    };
    context.render_page(status, &page)
}

/// Streams new events as Server-Sent Events: the data of each is the HTML of a row.
pub(super) async fn stream(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
    authorization: LiveAuthorization<ReadOnly>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if live::is_other_workspace(&caller, &query)? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let render = |event: &Event<'static>| EventRow::new(event).render().ok();
    let query = query.normalize_form_values().with_default("pages", "false");
    audit_stream::stream_events(caller, app, &query, authorization, &headers, render).await
}

#[derive(Template)]
#[template(path = "audit_event.html")]
struct EventPage<'a> {
    layout: Layout,
    row: EventRow,
    event: &'a Event<'a>,
    /// The event as the API returns it.
    json: String,
}

/// Displays the details of an event.
pub(super) async fn details(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<EventId>,
) -> Result<Response, ApiError> {
    let event = app.audit_log.find_event(&caller, id).await?;
    let event =
        event.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "there is no such event"))?;
    let json: Value = serde_json::to_value(&event).unwrap_or_default();
    let page = EventPage {
        layout: context.layout(),
        row: EventRow::new(&event),
        event: &event,
        json: format!("{json:#}"),
    };
    context.render_page(200, &page)
}
