//! API keys: the list, and the pages to create, view, rotate and revoke a key.

pub(super) mod create;
pub(super) mod details;
pub(super) mod revocation;
pub(super) mod rotation;

use askama::Template;
use axum::{extract::State, response::Response};
use time::OffsetDateTime;

use super::{
    charts::Sparkline, context::DashboardContext, format::RelativeTime, layout::Layout,
    page::PAGE_SIZE,
};
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, Query, ReadOnly},
    },
    model::{
        api_key::{ApiKey, KeyStatus},
        id::{ApiKeyId, Id},
        scope::Scope,
        usage::UNUSED_AFTER,
    },
    store::api_keys::KeyFilter,
};

/// The number of hours in a sparkline.
const SPARKLINE_HOURS: u32 = 24;

#[derive(Template)]
#[template(path = "api_keys.html")]
struct KeysPage {
    layout: Layout,
    can_create: bool,
    status: Option<KeyStatus>,
    keys: Vec<KeyRow>,
    next: Option<String>,
}

/// A key in the list.
struct KeyRow {
    id: ApiKeyId,
    name: String,
    redacted: String,
    scope: Scope,
    status: KeyStatus,
    created: RelativeTime,
    last_used: Option<RelativeTime>,
    is_rotating: bool,
    sparkline: Sparkline,
    /// True if the key has been idle for longer than [`UNUSED_AFTER`].
    is_unused: bool,
    /// The highest scope that requests needed, if the key has a higher one.
    highest_used_scope: Option<Scope>,
}

impl KeyRow {
    fn new(
        app: &App,
        key: ApiKey,
        uses: Option<&Vec<i64>>,
        highest_used_scope: Option<Scope>,
        now: OffsetDateTime,
    ) -> Self {
        let idle_since = key.last_used_at.unwrap_or(key.created_at);
        let no_uses = vec![0; usize::try_from(SPARKLINE_HOURS).unwrap_or_default()];
        Self {
            id: key.id,
            redacted: key.redacted(app.auth.api_keys.environment()),
            scope: key.scope,
            status: key.status(),
            created: RelativeTime::new(key.created_at, now),
            last_used: key.last_used_at.map(|used| RelativeTime::new(used, now)),
            is_rotating: key.revoked_at.is_none() && key.rotated_to.is_some(),
            sparkline: Sparkline::new(uses.unwrap_or(&no_uses)),
            is_unused: key.revoked_at.is_none() && now - idle_since > UNUSED_AFTER,
            highest_used_scope,
            name: key.name,
        }
    }
}

/// Lists the API keys of the workspace.
pub(super) async fn list(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    context: DashboardContext,
    query: Query,
) -> Result<Response, ApiError> {
    let status = match query.text("status")? {
        Some("all") => None,
        _ => Some(
            query
                .parse_as("status", "active, disabled, revoked or all")?
                .unwrap_or(KeyStatus::Active),
        ),
    };
    let wanted = query.page_with_limit(PAGE_SIZE)?;
    let filter = KeyFilter { status, name: None };
    let (page, _) = app.auth.api_keys.list(&caller, &filter, wanted).await?;
    let next = page.next_cursor(|key| key.id.uuid());
    let ids: Vec<_> = page.items.iter().map(|key| key.id).collect();
    let uses = app.auth.api_keys.usage_by_hour(&caller, &ids, SPARKLINE_HOURS).await?;
    let highest_used_scope = app.auth.api_keys.over_scoped(&caller, &ids).await?;
    let now = app.env.clock.now();
    let row = |key: ApiKey| {
        let (uses, highest_used_scope) =
            (uses.get(&key.id), highest_used_scope.get(&key.id).copied());
        KeyRow::new(&app, key, uses, highest_used_scope, now)
    };
    let page = KeysPage {
        layout: context.layout(),
        can_create: context.has_scope(Scope::Admin),
        status,
        keys: page.items.into_iter().map(row).collect(),
        next,
    };
    context.render_page(200, &page)
}

/// Returns a description of what a key with a scope can do.
pub(super) const fn scope_description(scope: Scope) -> &'static str {
    match scope {
        Scope::ReadOnly => {
            "Can read agents, calls, knowledge bases, campaigns, key metadata and the audit log. Cannot change anything."
        }
        Scope::Write => {
            "Can read, create, change and delete agents, calls, knowledge bases and campaigns, and read key metadata and the audit log."
        }
        Scope::Admin => {
            "Full access, including API keys, members, invitations and billing. Anyone with this key controls the workspace."
        }
    }
}
