//! The context of signed-in pages.

use axum::{extract::FromRequestParts, http::request::Parts, response::Response};

use super::{
    browser::Browser,
    layout::{FlashMessage, Layout, Navigation, Section},
    page::isolate_window,
};
use crate::{
    http::{ApiError, App},
    model::{
        principal::{Caller, Credential},
        scope::{Role, Scope},
    },
};

/// The browser, the layout and the role of a signed-in user: an extractor for handlers of pages.
pub(super) struct DashboardContext {
    pub(super) browser: Browser,
    layout: Layout,
    role: Role,
}

impl FromRequestParts<App> for DashboardContext {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Ok(mut browser) = Browser::from_request_parts(parts, app).await;
        let caller = parts.extensions.get::<Caller>();
        let caller = caller.ok_or_else(|| ApiError::internal("dashboard page without a caller"))?;
        let Credential::Session { role, .. } = &caller.principal.credential else {
            return Err(ApiError::internal("dashboard page without a session"));
        };
        let (workspace, brand) = app.resources.name_and_brand(caller).await?;
        let navigation = Navigation {
            flash_message: FlashMessage::text_for(&parts.uri),
            user_name: caller.principal.name().to_string(),
            workspace_name: workspace,
            role: *role,
            current: Section::of_uri(&parts.uri),
        };
        browser.set_brand(brand);
        let mut layout = browser.layout();
        layout.navigation = Some(navigation);
        Ok(Self { browser, layout, role: *role })
    }
}

impl DashboardContext {
    /// Returns the layout with branding and navigation.
    pub(super) fn layout(&self) -> Layout {
        self.layout.clone()
    }

    /// True if the user's role has this scope.
    pub(super) fn has_scope(&self, scope: Scope) -> bool {
        self.role.scope() >= scope
    }

    /// Returns the user's role in the workspace.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// Renders a page.
    ///
    /// # Errors
    /// As [`Browser::render_page`].
    pub(super) fn render_page<T: askama::Template>(
        &self,
        status: u16,
        template: &T,
    ) -> Result<Response, ApiError> {
        let mut response = self.browser.render_page(status, template)?;
        isolate_window(&mut response);
        Ok(response)
    }
}
