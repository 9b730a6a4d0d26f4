//! What is around the matter of a page: whose it looks like, and, for who is signed in, the way to all other pages.

use axum::{
    extract::FromRequestParts,
    http::{Uri, request::Parts},
    response::{IntoResponse as _, Redirect, Response},
};
use secrecy::{ExposeSecret as _, SecretString};

use super::browser::Browser;
use crate::{
    http::{ApiError, App, extract::Query},
    model::{
        brand::Brand,
        principal::{Caller, Credential},
        scope::{Role, Scope},
    },
};

/// What every page needs besides what it is about.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// What forms on it have to hold.
    form_token: SecretString,
    /// The same, of forms about the person, whatever workspace the session is in when they are sent.
    own_token: SecretString,
    /// What a form that makes something is known by, should it be sent twice.
    attempt: SecretString,
    /// How it looks.
    pub(super) brand: Brand,
    /// The way to other pages; none on those for anybody.
    pub(super) shell: Option<Shell>,
}

/// What was just done, as the page that one is led to says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Saved,
    KeyRevoked,
    RoleChanged,
    MemberRemoved,
    InvitationWithdrawn,
    SessionEnded,
    OthersEnded,
    AppDisconnected,
    LinkSent,
    Invited,
}

impl Done {
    const ALL: [(Self, &'static str, &'static str); 10] = [
        (Self::Saved, "saved", "Saved."),
        (
            Self::KeyRevoked,
            "revoked",
            "The key is revoked. It stopped working at once, everywhere.",
        ),
        (Self::RoleChanged, "role", "The role was changed, at once."),
        (Self::MemberRemoved, "removed", "They are a member no longer."),
        (Self::InvitationWithdrawn, "withdrawn", "The invitation was withdrawn."),
        (Self::SessionEnded, "ended", "The session was ended."),
        (Self::OthersEnded, "others-ended", "All your other sessions were ended."),
        (Self::Invited, "invited", "The invitation is on its way."),
        (Self::LinkSent, "link", "A link is on its way to your address."),
        (Self::AppDisconnected, "disconnected", "The app has no access any more."),
    ];

    /// To a page that says so.
    pub(super) fn at(self, path: &str) -> Response {
        let known = Self::ALL.into_iter().find(|(done, ..)| *done == self);
        let name = known.map_or("", |(_, name, _)| name);
        Redirect::to(&format!("{path}?done={name}")).into_response()
    }

    /// What a page says that was led to so.
    fn words(uri: &Uri) -> Option<&'static str> {
        let query = Query::parse(uri.query()?)?;
        let name = query.text("done").ok()??;
        Self::ALL.into_iter().find(|(_, known, _)| *known == name).map(|(.., words)| words)
    }
}

/// The way to other pages.
#[derive(Debug, Clone)]
pub(super) struct Shell {
    /// What was just done.
    pub(super) done: Option<&'static str>,
    /// What the person is called.
    pub(super) person: String,
    /// What the workspace is called.
    pub(super) workspace: String,
    /// What the person is there.
    pub(super) role: Role,
    /// Where the page belongs.
    here: Option<Section>,
}

/// A group of pages.
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

    /// Its first page.
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

    /// What it is called.
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

    /// What its first page asks of a person: what one may not see is not offered.
    const fn asks_for(self) -> Scope {
        match self {
            Self::Members => Scope::Admin,
            _ => Scope::ReadOnly,
        }
    }

    /// That of a path.
    fn of(uri: &Uri) -> Option<Self> {
        Self::ALL.into_iter().find(|section| {
            let rest = uri.path().strip_prefix(section.path());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

impl Layout {
    /// Around pages that look like this.
    pub(super) fn new(
        form_token: SecretString,
        own_token: SecretString,
        attempt: SecretString,
        brand: Brand,
    ) -> Self {
        Self { form_token, own_token, attempt, brand, shell: None }
    }

    /// What forms have to hold.
    pub(super) fn token(&self) -> &str {
        self.form_token.expose_secret()
    }

    /// What forms about the person have to hold.
    pub(super) fn own(&self) -> &str {
        self.own_token.expose_secret()
    }

    /// What a form that makes something is known by.
    pub(super) fn attempt(&self) -> &str {
        self.attempt.expose_secret()
    }

    /// The style of the brand.
    pub(super) fn style(&self) -> Option<String> {
        style(&self.brand)
    }
}

/// The style of a brand, if it has any.
pub(super) fn style(brand: &Brand) -> Option<String> {
    let color = brand.color?;
    Some(format!(":root{{--brand:{color};--on-brand:{}}}", color.ink()))
}

impl Shell {
    /// The sections that are offered, and whether the page is in it.
    pub(super) fn sections(&self) -> impl Iterator<Item = (Section, bool)> {
        let may = self.role.scope();
        let offered = Section::ALL.into_iter().filter(move |section| section.asks_for() <= may);
        offered.map(|section| (section, self.here == Some(section)))
    }
}

/// Pages of who is signed in.
pub(super) struct Desk {
    /// The browser.
    pub(super) browser: Browser,
    layout: Layout,
    role: Role,
}

impl FromRequestParts<App> for Desk {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Ok(mut browser) = Browser::from_request_parts(parts, app).await;
        let caller = parts.extensions.get::<Caller>();
        let caller = caller.ok_or_else(|| ApiError::internal("a page of nobody has a desk"))?;
        let Credential::Session { role, .. } = &caller.principal.credential else {
            return Err(ApiError::internal("a page is asked for by a program"));
        };
        let (workspace, brand) = app.resources.appearance(caller).await?;
        let shell = Shell {
            done: Done::words(&parts.uri),
            person: caller.principal.name().to_string(),
            workspace,
            role: *role,
            here: Section::of(&parts.uri),
        };
        browser.brand(brand);
        let layout = Layout { shell: Some(shell), ..browser.layout() };
        Ok(Self { browser, layout, role: *role })
    }
}

impl Desk {
    /// What is around the page.
    pub(super) fn layout(&self) -> Layout {
        self.layout.clone()
    }

    /// Whether the person may do what takes this scope.
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.role.scope() >= scope
    }

    /// What the person is in the workspace.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// A page.
    pub(super) fn page<T: askama::Template>(&self, status: u16, template: &T) -> Response {
        self.browser.page(status, template)
    }
}
