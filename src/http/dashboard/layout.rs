//! The layout of pages: branding, CSRF tokens and, for signed-in users, the navigation.
//!
//! Handlers of signed-in pages take a [`DashboardContext`](super::context::DashboardContext), which
//! loads the branding and the navigation. Other pages use the layout of a
//! [`Browser`](super::browser::Browser).

use axum::{
    http::Uri,
    response::{IntoResponse as _, Redirect, Response},
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    http::extract::Query,
    model::{
        brand::Brand,
        scope::{Role, Scope},
    },
};

/// The values that the base template and the forms of every page need.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// The CSRF token of forms that act in the current workspace.
    form_token: SecretString,
    /// The CSRF token of forms about the user's account. It stays valid if the session switches to
    /// another workspace.
    user_form_token: SecretString,
    /// The idempotency key of a form that creates something: sent twice, it creates it once.
    attempt: SecretString,
    pub(super) brand: Brand,
    /// The navigation; `None` on pages that need no session.
    pub(super) navigation: Option<Navigation>,
}

/// A success message on the page that follows a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlashMessage {
    Saved,
    KeyRevoked,
    KeyDisabled,
    KeyEnabled,
    RoleChanged,
    MemberRemoved,
    InvitationWithdrawn,
    SessionEnded,
    OtherSessionsEnded,
    AppDisconnected,
    VerificationEmailSent,
    InvitationSent,
}

impl FlashMessage {
    const ALL: [(Self, &'static str, &'static str); 12] = [
        (Self::Saved, "saved", "Changes saved."),
        (Self::KeyRevoked, "revoked", "Key revoked. It no longer works on any server."),
        (Self::KeyDisabled, "disabled", "Key disabled. It does not work on any server."),
        (Self::KeyEnabled, "enabled", "Key enabled. It works again."),
        (Self::RoleChanged, "role", "Role changed. It takes effect immediately."),
        (Self::MemberRemoved, "removed", "Member removed."),
        (Self::InvitationWithdrawn, "withdrawn", "Invitation withdrawn."),
        (Self::SessionEnded, "ended", "Session signed out."),
        (Self::OtherSessionsEnded, "others-ended", "All other sessions signed out."),
        (Self::InvitationSent, "invited", "Invitation sent."),
        (Self::VerificationEmailSent, "link", "Verification email sent. Check your inbox."),
        (Self::AppDisconnected, "disconnected", "App disconnected. It no longer has access."),
    ];

    /// Redirects to a page that displays the message.
    pub(super) fn redirect_to(self, path: &str) -> Response {
        let known = Self::ALL.into_iter().find(|(message, ..)| *message == self);
        let name = known.map_or("", |(_, name, _)| name);
        Redirect::to(&format!("{path}?done={name}")).into_response()
    }

    /// Returns the text that the `done` parameter of a URI selects. Texts never come from the URI.
    pub(super) fn text_for(uri: &Uri) -> Option<&'static str> {
        let query = Query::parse(uri.query()?)?;
        let name = query.text("done").ok()??;
        Self::ALL.into_iter().find(|(_, known, _)| *known == name).map(|(.., text)| text)
    }
}

/// The header and the navigation of a signed-in page.
#[derive(Debug, Clone)]
pub(super) struct Navigation {
    /// The success message.
    pub(super) flash_message: Option<&'static str>,
    /// The user's display name.
    pub(super) user_name: String,
    /// The name of the workspace.
    pub(super) workspace_name: String,
    /// The user's role in the workspace.
    pub(super) role: Role,
    /// The section of the current page.
    pub(super) current: Option<Section>,
}

/// An entry of the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    ApiKeys,
    AuditLog,
    Members,
    ConnectedApps,
    Sessions,
    Security,
    Settings,
}

impl Section {
    const ALL: [Self; 7] = [
        Self::ApiKeys,
        Self::AuditLog,
        Self::Members,
        Self::ConnectedApps,
        Self::Sessions,
        Self::Security,
        Self::Settings,
    ];

    /// Returns the path of its first page.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::ApiKeys => "/api-keys",
            Self::AuditLog => "/audit-log",
            Self::Members => "/members",
            Self::ConnectedApps => "/connected-apps",
            Self::Sessions => "/sessions",
            Self::Security => "/second-factor",
            Self::Settings => "/settings",
        }
    }

    /// Returns the label in the navigation.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ApiKeys => "API keys",
            Self::AuditLog => "Audit log",
            Self::Members => "Members",
            Self::ConnectedApps => "Connected apps",
            Self::Sessions => "Sessions",
            Self::Security => "Security",
            Self::Settings => "Settings",
        }
    }

    /// Returns the scope that its first page requires. The navigation omits sections that the user
    /// may not see.
    const fn required_scope(self) -> Scope {
        match self {
            Self::Members => Scope::Admin,
            _ => Scope::ReadOnly,
        }
    }

    /// Returns the section of a page.
    pub(super) fn of_uri(uri: &Uri) -> Option<Self> {
        Self::ALL.into_iter().find(|section| {
            let rest = uri.path().strip_prefix(section.path());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

impl Layout {
    /// Returns a layout without navigation.
    pub(super) fn new(
        form_token: SecretString,
        user_form_token: SecretString,
        attempt: SecretString,
        brand: Brand,
    ) -> Self {
        Self { form_token, user_form_token, attempt, brand, navigation: None }
    }

    /// Returns the CSRF token of forms that act in the workspace.
    pub(super) fn form_token(&self) -> &str {
        self.form_token.expose_secret()
    }

    /// Returns the CSRF token of forms about the user's account.
    pub(super) fn user_form_token(&self) -> &str {
        self.user_form_token.expose_secret()
    }

    /// Returns the idempotency key of a form that creates something.
    pub(super) fn attempt(&self) -> &str {
        self.attempt.expose_secret()
    }

    /// Returns the style sheet of the brand.
    pub(super) fn style(&self) -> Option<String> {
        brand_style(&self.brand)
    }
}

/// Returns the style sheet of a brand; `None` if the brand has no color.
pub(super) fn brand_style(brand: &Brand) -> Option<String> {
    let color = brand.color?;
    Some(format!(":root{{--brand:{color};--on-brand:{}}}", color.text_color()))
}

impl Navigation {
    /// Returns the sections that the user may see, each with true if the page belongs to it.
    pub(super) fn sections(&self) -> impl Iterator<Item = (Section, bool)> {
        let scope = self.role.scope();
        let visible =
            Section::ALL.into_iter().filter(move |section| section.required_scope() <= scope);
        visible.map(|section| (section, self.current == Some(section)))
    }
}
