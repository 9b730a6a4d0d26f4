//! Events of the audit log: their types, their canonical form and their hash chain.
//!
//! A [`NewEvent`] is written, an [`Event`] is read. Both have the same canonical form, whose digest
//! the hash chain covers: see [`Event::canonical_bytes`] and [`ChainHash`].

mod chain;
mod checkpoint;
mod event;
mod filter;
mod metadata;

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use serde_json::Value;
use uuid::Uuid;

use super::{
    id::{ApiKeyId, ClientId, EventId, GrantId, Id, RequestId, SessionId, UserId, WorkspaceId},
    principal::{Credential, Principal},
    text::truncate_bytes,
    usage::KeyUse,
    user::User,
};

pub use chain::{ChainHash, ChainSegment, EventDigest};
pub use checkpoint::{Checkpoint, PruneRecord, SignedCheckpoint};
pub use event::{Event, EventActor, EventRequest, EventTarget, PublicId};
pub use filter::EventFilter;
pub use metadata::Metadata;

macro_rules! actions {
    ($($(#[$doc:meta])* $action:ident = $name:literal;)*) => {
        /// The action of an audit event.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Action {
            $($(#[$doc])* $action,)*
        }

        impl Action {
            /// All actions.
            pub const ALL: &[Self] = &[$(Self::$action),*];

            /// Returns the name in JSON and in the database.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$action => $name,)*
                }
            }

            /// Returns the action of a name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$action),)*
                    _ => None,
                }
            }
        }
    };
}

actions! {
    /// An authenticated API request, successful or not.
    Request = "request";
    /// An API key was created.
    ApiKeyCreated = "api_key.created";
    /// An API key's name, description, allowed networks or rate limit changed.
    ApiKeyUpdated = "api_key.updated";
    /// An API key was rotated: its successor was created.
    ApiKeyRotated = "api_key.rotated";
    /// An API key was disabled.
    ApiKeyDisabled = "api_key.disabled";
    /// A disabled API key was enabled again.
    ApiKeyEnabled = "api_key.enabled";
    /// An API key was revoked.
    ApiKeyRevoked = "api_key.revoked";
    /// A request with a revoked or disabled API key was rejected.
    ApiKeyRejected = "api_key.rejected";
    /// A user signed in.
    SessionCreated = "session.created";
    /// A session's tokens were refreshed.
    SessionRefreshed = "session.refreshed";
    /// A session ended.
    SessionEnded = "session.ended";
    /// A session switched to another workspace.
    SessionSwitched = "session.switched";
    /// A user changed or reset the password.
    PasswordChanged = "member.password_changed";
    /// A user enabled TOTP.
    SecondFactorAdded = "member.mfa_enabled";
    /// TOTP of a user was disabled.
    SecondFactorRemoved = "member.mfa_disabled";
    /// A user renewed the recovery codes.
    RecoveryCodesRenewed = "member.recovery_codes_renewed";
    /// A user added a passkey.
    PasskeyAdded = "member.passkey_added";
    /// A passkey of a user was removed.
    PasskeyRemoved = "member.passkey_removed";
    /// A user verified the email address.
    EmailVerified = "member.email_verified";
    /// A refresh token was reused; its session was ended.
    SessionReuseDetected = "session.reuse_detected";
    /// A sign-in failed.
    LoginFailed = "login.failed";
    /// A workspace was created.
    WorkspaceCreated = "workspace.created";
    /// A workspace's name or settings changed.
    WorkspaceUpdated = "workspace.updated";
    /// A workspace was deleted with all its data except the audit log.
    WorkspaceDeleted = "workspace.deleted";
    /// The database was restored from a backup: later events may be missing.
    WorkspaceRestored = "workspace.restored";
    /// Retention dropped old events of the workspace's audit log.
    LogPruned = "workspace.log_pruned";
    /// A user became a member.
    MemberJoined = "member.joined";
    /// A member's role changed.
    MemberRoleChanged = "member.role_changed";
    /// A member left or was removed.
    MemberRemoved = "member.removed";
    /// An invitation was sent.
    InvitationCreated = "member.invited";
    /// An invitation was revoked.
    InvitationRevoked = "member.invitation_revoked";
    /// The branding changed.
    BrandingUpdated = "workspace.branding_updated";
    /// A user's profile changed.
    ProfileUpdated = "member.profile_updated";
    /// An administrator registered an OAuth client.
    ClientCreated = "oauth.client_created";
    /// An OAuth client's name or redirect URIs changed.
    ClientUpdated = "oauth.client_updated";
    /// An OAuth client's secret was rotated.
    ClientSecretRotated = "oauth.client_secret_rotated";
    /// Secrets of an OAuth client ended, because the API key that added them was revoked.
    ClientSecretRevoked = "oauth.client_secret_revoked";
    /// An OAuth client was deleted together with its grants.
    ClientDeleted = "oauth.client_deleted";
    /// A user authorized an OAuth client.
    GrantCreated = "oauth.granted";
    /// A user denied authorization to an OAuth client.
    GrantDenied = "oauth.denied";
    /// The first tokens of a grant were issued.
    TokenIssued = "oauth.token_issued";
    /// The tokens of a grant were refreshed.
    TokenRefreshed = "oauth.token_refreshed";
    /// An OAuth client revoked an access token.
    TokenRevoked = "oauth.token_revoked";
    /// A grant ended.
    GrantEnded = "oauth.grant_ended";
    /// A request with an OAuth client's id and without its secret was rejected.
    ClientRejected = "oauth.client_rejected";
    /// A genuine code or refresh token was refused.
    TokenRefused = "oauth.token_refused";
    /// A code or refresh token was reused; its grant was ended.
    GrantReuseDetected = "oauth.reuse_detected";
}

/// The type of an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActorType {
    /// An API key.
    ApiKey,
    /// A user.
    User,
    /// An OAuth client.
    OAuthClient,
    /// An unauthenticated client.
    Anonymous,
    /// The operator, on the command line, or the service itself.
    System,
}

impl ActorType {
    /// Returns the name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::User => "user",
            Self::OAuthClient => "oauth_client",
            Self::Anonymous => "anonymous",
            Self::System => "system",
        }
    }

    /// Returns the type of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::ApiKey, Self::User, Self::OAuthClient, Self::Anonymous, Self::System]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }

    /// Returns the prefix of the public ids of such actors, if they have ids.
    #[must_use]
    pub const fn id_prefix(self) -> Option<&'static str> {
        match self {
            Self::ApiKey => Some(ApiKeyId::PREFIX),
            Self::User => Some(UserId::PREFIX),
            Self::OAuthClient => Some(ClientId::PREFIX),
            Self::Anonymous | Self::System => None,
        }
    }
}

/// Maximum length of the name of an actor or a target, in bytes; longer ones are cut. The limits of
/// names are lower, but injected SQL may have stored others.
const MAX_NAME_BYTES: usize = 512;

/// The name of the actor that presented an API key only to revoke it.
pub const KEY_HOLDER_NAME: &str = "holder of the key";

/// The actor of an event, with its name at that time.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The actor's type.
    pub kind: ActorType,
    /// The actor's id, without its prefix; see [`ActorType::id_prefix`].
    pub id: Option<Uuid>,
    /// The actor's name.
    pub name: Option<Arc<str>>,
}

impl Actor {
    /// Returns the actor for the operator and the service itself.
    #[must_use]
    pub const fn system() -> Self {
        Self { kind: ActorType::System, id: None, name: None }
    }

    /// Returns the actor for an unauthenticated client.
    #[must_use]
    pub const fn anonymous() -> Self {
        Self { kind: ActorType::Anonymous, id: None, name: None }
    }

    /// Returns the actor for a client that presented an API key only to revoke it.
    #[must_use]
    pub fn key_holder() -> Self {
        Self { name: Some(KEY_HOLDER_NAME.into()), ..Self::anonymous() }
    }

    /// Returns the actor for a user.
    #[must_use]
    pub fn user(user: &User) -> Self {
        Self::user_with_name(user.id, user.display_name())
    }

    /// Returns the actor for a user with this id and name.
    #[must_use]
    pub fn user_with_name(id: UserId, name: &str) -> Self {
        Self { kind: ActorType::User, id: Some(id.uuid()), name: Some(name.into()) }
    }

    /// Returns the actor for an API key.
    #[must_use]
    pub fn api_key(id: ApiKeyId, name: &Arc<str>) -> Self {
        Self { kind: ActorType::ApiKey, id: Some(id.uuid()), name: Some(Arc::clone(name)) }
    }

    /// Returns the actor for an OAuth client.
    #[must_use]
    pub fn client(id: ClientId, name: &str) -> Self {
        Self { kind: ActorType::OAuthClient, id: Some(id.uuid()), name: Some(name.into()) }
    }
}

impl From<&Principal> for Actor {
    fn from(principal: &Principal) -> Self {
        let (kind, id) = match &principal.credential {
            Credential::ApiKey { id, .. } => (ActorType::ApiKey, id.uuid()),
            Credential::Session { user_id, .. } => (ActorType::User, user_id.uuid()),
            Credential::Grant { client_id, .. } => (ActorType::OAuthClient, client_id.uuid()),
        };
        Self { kind, id: Some(id), name: Some(Arc::clone(principal.name())) }
    }
}

/// The target of an event: the object that the action changed.
#[derive(Debug, Clone)]
pub struct Target {
    /// The prefix of the target's public id. The database stores it as the target's type.
    pub kind: &'static str,
    /// The target's id, without its prefix.
    pub id: Uuid,
    /// The target's name at that time.
    pub name: Option<String>,
}

impl Target {
    /// Returns the type name in JSON of a target with this id prefix.
    #[must_use]
    pub fn type_name(prefix: &str) -> &str {
        match prefix {
            ApiKeyId::PREFIX => "api_key",
            SessionId::PREFIX => "session",
            ClientId::PREFIX => "oauth_client",
            GrantId::PREFIX => "oauth_grant",
            WorkspaceId::PREFIX => "workspace",
            "kb" => "knowledge_base",
            other => other,
        }
    }
}

/// The HTTP request of an event.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// The request's id.
    pub id: RequestId,
    /// The method.
    pub method: Cow<'static, str>,
    /// The path, without the query string.
    pub path: String,
    /// The client's address, as trusted proxies forward it.
    pub ip: IpAddr,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// The time at which the request's head was read, on the monotonic clock.
    pub started_at: Duration,
}

/// The response to the request of an event.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// The HTTP status.
    pub status: u16,
    /// Time from the request's head to this event, in microseconds.
    pub latency_us: i64,
}

/// A new event, to be written.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event's id, which contains its time.
    pub id: EventId,
    /// The workspace that owns the audit log.
    pub workspace_id: WorkspaceId,
    /// The action.
    pub action: Action,
    /// The actor.
    pub actor: Actor,
    /// The target, if there is one.
    pub target: Option<Target>,
    /// The request and its response; `None` for actions of the operator.
    pub request: Option<(Arc<RequestInfo>, Outcome)>,
    /// Additional data.
    pub metadata: Metadata,
    /// The effect on the usage counts of the key. It is counted, and is not part of the stored
    /// event.
    pub key_use: KeyUse,
}

impl NewEvent {
    /// Creates an event without target, request and metadata.
    #[must_use]
    pub fn new(id: EventId, workspace_id: WorkspaceId, action: Action, mut actor: Actor) -> Self {
        if let Some(name) = actor.name.take_if(|name| name.len() > MAX_NAME_BYTES) {
            actor.name = Some(truncate_bytes(&name, MAX_NAME_BYTES).into());
        }
        let (target, request, metadata, key_use) = (None, None, Metadata::None, KeyUse::None);
        Self { id, workspace_id, action, actor, target, request, metadata, key_use }
    }

    /// Sets the target.
    #[must_use]
    pub fn with_target<T: Id>(mut self, id: T, name: impl Into<Option<String>>) -> Self {
        let mut name = name.into();
        if let Some(name) = &mut name {
            name.truncate(truncate_bytes(name, MAX_NAME_BYTES).len());
        }
        self.target = Some(Target { kind: T::PREFIX, id: id.uuid(), name });
        self
    }

    /// Returns the approximate number of bytes that the event takes in a statement.
    #[must_use]
    pub fn size(&self) -> usize {
        /// The ids, numbers, digests and short texts.
        const FIXED: usize = 512;
        let request = self.request.as_ref().map_or(0, |(request, _)| {
            // Once for the event and once for its usage.
            2 * (request.path.len() + request.user_agent.as_ref().map_or(0, String::len))
        });
        let actor = self.actor.name.as_ref().map_or(0, |name| name.len());
        let target = self.target.as_ref().and_then(|target| target.name.as_ref());
        FIXED + request + actor + target.map_or(0, String::len) + self.metadata.size()
    }

    /// Sets the request and the response status. `now` is the time on the monotonic clock.
    #[must_use]
    pub fn with_request(mut self, request: &Arc<RequestInfo>, status: u16, now: Duration) -> Self {
        let latency = now.saturating_sub(request.started_at).as_micros();
        let outcome = Outcome { status, latency_us: i64::try_from(latency).unwrap_or(i64::MAX) };
        self.request = Some((Arc::clone(request), outcome));
        self
    }

    /// Sets the metadata to a JSON object.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Value) -> Self {
        self.metadata = Metadata::object(metadata).shortened();
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_names_of_event_are_cut() {
        let name = format!("{}é", "n".repeat(MAX_NAME_BYTES - 1));
        let actor = Actor::api_key(Uuid::nil().into(), &name.as_str().into());
        let event = NewEvent::new(Uuid::nil().into(), Uuid::nil().into(), Action::Request, actor)
            .with_target(ApiKeyId::from(Uuid::nil()), name.clone());
        let cut = &name[..MAX_NAME_BYTES - 1];
        assert_eq!(event.actor.name.as_deref(), Some(cut));
        assert_eq!(event.target.as_ref().and_then(|target| target.name.as_deref()), Some(cut));
        let size = event.size();
        let larger = event.with_metadata(json!({ "x": "x".repeat(1000) }));
        assert!(size > 2 * cut.len() && larger.size() > size + 1000);
    }
}
