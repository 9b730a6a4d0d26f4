//! Connected apps: what one has let in, to be seen and ended.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    form::OwnForm,
    layout::{Desk, Done, Layout},
    page::ITEMS,
};
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, OwnSession, PathId, Query},
    },
    model::{
        id::{GrantId, Id},
        oauth::grant::Grant,
        timestamp,
    },
};

#[derive(Template)]
#[template(path = "connected_apps.html")]
struct AppsPage {
    layout: Layout,
    apps: Vec<Line>,
    next: Option<String>,
}

/// A connected app as the page shows it.
struct Line {
    id: GrantId,
    name: String,
    workspace: String,
    scope: &'static str,
    since: String,
    last_used: String,
}

impl From<Grant> for Line {
    fn from(grant: Grant) -> Self {
        let last_used = grant.last_used_at.map_or_else(String::new, timestamp::for_people);
        Self {
            id: grant.id,
            name: grant.client_name,
            workspace: grant.workspace_name,
            scope: grant.scope.as_str(),
            since: timestamp::for_people(grant.created_at),
            last_used,
        }
    }
}

/// Lists them.
pub(super) async fn show(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    query: Query,
) -> Result<Response, ApiError> {
    let (page, _) = app.oauth.own_grants(&caller, query.page_of(ITEMS)?).await?;
    let next = page.next_cursor(|grant| grant.id.uuid());
    let apps = page.items.into_iter().map(Line::from).collect();
    Ok(desk.page(200, &AppsPage { layout: desk.layout(), apps, next }))
}

/// Ends one of them.
pub(super) async fn end(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    PathId(id): PathId<GrantId>,
    _form: OwnForm,
) -> Result<Response, ApiError> {
    app.oauth.end_grant(&caller, id).await?;
    Ok(Done::AppDisconnected.at("/connected-apps"))
}
