//! Connected apps: the OAuth grants of the user, to list and to revoke.

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
        id::{GrantId, Id},
        oauth::grant::Grant,
        timestamp,
    },
};

#[derive(Template)]
#[template(path = "connected_apps.html")]
struct AppsPage {
    layout: Layout,
    apps: Vec<AppRow>,
    next: Option<String>,
}

/// A connected app in the list.
struct AppRow {
    id: GrantId,
    name: String,
    workspace: String,
    scope: &'static str,
    since: String,
    last_used: String,
}

impl From<Grant> for AppRow {
    fn from(grant: Grant) -> Self {
        let last_used = grant.last_used_at.map_or_else(String::new, timestamp::format_to_minute);
        Self {
            id: grant.id,
            name: grant.client_name,
            workspace: grant.workspace_name,
            scope: grant.scope.as_str(),
            since: timestamp::format_to_minute(grant.created_at),
            last_used,
        }
    }
}

/// Lists the user's connected apps.
pub(super) async fn show(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    query: Query,
) -> Result<Response, ApiError> {
    let (page, _) =
        app.oauth.grants.list_by_user(&caller, query.page_with_limit(PAGE_SIZE)?).await?;
    let next = page.next_cursor(|grant| grant.id.uuid());
    let apps = page.items.into_iter().map(AppRow::from).collect();
    context.render_page(200, &AppsPage { layout: context.layout(), apps, next })
}

/// Disconnects an app: revokes its grant.
pub(super) async fn disconnect(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    PathId(id): PathId<GrantId>,
    _form: UserForm,
) -> Result<Response, ApiError> {
    app.oauth.grants.end(&caller, id).await?;
    Ok(FlashMessage::AppDisconnected.redirect_to("/connected-apps"))
}
