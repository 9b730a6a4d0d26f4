//! Events of the audit log.

mod chain;
mod checkpoint;
mod event;
mod filter;

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use super::{
    id::{ApiKeyId, ClientId, EventId, GrantId, Id, RequestId, SessionId, UserId, WorkspaceId},
    principal::{Credential, Principal},
    usage::RouteUse,
    user::User,
};

pub use chain::{ChainHash, EventDigest, Run};
pub use checkpoint::{Checkpoint, Pruned, SignedCheckpoint};
pub use event::{Event, EventActor, EventRequest, EventTarget, PublicId};
pub use filter::EventFilter;

macro_rules! actions {
    ($($(#[$doc:meta])* $action:ident = $name:literal;)*) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Action {
            $($(#[$doc])* $action,)*
        }

        impl Action {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$action),*];

            /// The name in JSON and in the database.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$action => $name,)*
                }
            }

            /// The action of this name.
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
    /// An authenticated call of the API, whatever came of it.
    Request = "request";
    /// A key was minted.
    ApiKeyCreated = "api_key.created";
    /// A key's name, description or addresses were changed.
    ApiKeyUpdated = "api_key.updated";
    /// A key was given a successor.
    ApiKeyRotated = "api_key.rotated";
    /// A key was revoked.
    ApiKeyRevoked = "api_key.revoked";
    /// Somebody used a revoked key.
    ApiKeyRejected = "api_key.rejected";
    /// A person signed in.
    SessionCreated = "session.created";
    /// A session was given a new pair of tokens.
    SessionRefreshed = "session.refreshed";
    /// A session ended.
    SessionEnded = "session.ended";
    /// A session went from one workspace to another.
    SessionSwitched = "session.switched";
    /// A person chose another password.
    PasswordChanged = "member.password_changed";
    /// A person's sign-in takes a code from now on.
    SecondFactorAdded = "member.mfa_enabled";
    /// A person's sign-in takes no code any more.
    SecondFactorRemoved = "member.mfa_disabled";
    /// A person made new recovery codes.
    RecoveryCodesRenewed = "member.recovery_codes_renewed";
    /// A person made a passkey.
    PasskeyAdded = "member.passkey_added";
    /// A person took a passkey away.
    PasskeyRemoved = "member.passkey_removed";
    /// A person showed that the address is theirs.
    EmailVerified = "member.email_verified";
    /// A refresh token was used a second time; its session was ended.
    SessionReuseDetected = "session.reuse_detected";
    /// A sign-in with a wrong password.
    LoginFailed = "login.failed";
    /// A workspace came to be.
    WorkspaceCreated = "workspace.created";
    /// A workspace's name was changed.
    WorkspaceUpdated = "workspace.updated";
    /// A workspace was deleted, with all that was in it but its log.
    WorkspaceDeleted = "workspace.deleted";
    /// Retention dropped old events of the workspace's log.
    LogPruned = "workspace.log_pruned";
    /// Somebody became a member.
    MemberJoined = "member.joined";
    /// A member was given another role.
    MemberRoleChanged = "member.role_changed";
    /// A member is none any more.
    MemberRemoved = "member.removed";
    /// Somebody was invited.
    InvitationCreated = "member.invited";
    /// An invitation was withdrawn.
    InvitationRevoked = "member.invitation_revoked";
    /// The white-label settings were changed.
    BrandingUpdated = "workspace.branding_updated";
    /// A person's profile was changed.
    ProfileUpdated = "member.profile_updated";
    /// An admin made an OAuth client.
    ClientCreated = "oauth.client_created";
    /// An OAuth client's name or redirect URIs were changed.
    ClientUpdated = "oauth.client_updated";
    /// An OAuth client was given another secret.
    ClientSecretRotated = "oauth.client_secret_rotated";
    /// An OAuth client was deleted, and its grants with it.
    ClientDeleted = "oauth.client_deleted";
    /// Somebody let an OAuth client in.
    GrantCreated = "oauth.granted";
    /// Somebody did not let an OAuth client in.
    GrantDenied = "oauth.denied";
    /// A grant gave its first tokens.
    TokenIssued = "oauth.token_issued";
    /// A grant gave further tokens.
    TokenRefreshed = "oauth.token_refreshed";
    /// An OAuth client gave an access token back.
    TokenRevoked = "oauth.token_revoked";
    /// A grant ended.
    GrantEnded = "oauth.grant_ended";
    /// Somebody used an OAuth client's name without its secret.
    ClientRejected = "oauth.client_rejected";
    /// A genuine code or refresh token was worth nothing.
    TokenRefused = "oauth.token_refused";
    /// A code or a refresh token of a grant was used a second time; the grant was ended.
    GrantReuseDetected = "oauth.reuse_detected";
}

/// What kind of thing acted or was acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActorType {
    /// An API key.
    ApiKey,
    /// A person.
    User,
    /// An OAuth client.
    OAuthClient,
    /// Nobody known.
    Anonymous,
    /// The operator, from the command line, or the service itself.
    System,
}

impl ActorType {
    /// The name in JSON and in the database.
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

    /// The kind of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::ApiKey, Self::User, Self::OAuthClient, Self::Anonymous, Self::System]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }

    /// The prefix of such an actor's public id, if it has one.
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

/// Who did it, under the name of that time.
#[derive(Debug, Clone)]
pub struct Actor {
    /// What kind of actor.
    pub kind: ActorType,
    /// Its id; the kind tells of what.
    pub id: Option<Uuid>,
    /// Its name.
    pub name: Option<Arc<str>>,
}

impl Actor {
    /// The operator, or the service itself.
    #[must_use]
    pub const fn system() -> Self {
        Self { kind: ActorType::System, id: None, name: None }
    }

    /// Nobody known.
    #[must_use]
    pub const fn anonymous() -> Self {
        Self { kind: ActorType::Anonymous, id: None, name: None }
    }

    /// A person.
    #[must_use]
    pub fn user(user: &User) -> Self {
        Self::person(user.id, user.display_name())
    }

    /// A person, by what they are called.
    #[must_use]
    pub fn person(id: UserId, name: &str) -> Self {
        Self { kind: ActorType::User, id: Some(id.uuid()), name: Some(name.into()) }
    }

    /// An API key.
    #[must_use]
    pub fn api_key(id: ApiKeyId, name: &Arc<str>) -> Self {
        Self { kind: ActorType::ApiKey, id: Some(id.uuid()), name: Some(Arc::clone(name)) }
    }

    /// An OAuth client.
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

/// What it was done to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The prefix of its public id, which is also how its kind is stored.
    pub kind: &'static str,
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: Option<String>,
}

impl Target {
    /// The word for a target of this prefix.
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

/// The request that something happened in.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// Its id.
    pub id: RequestId,
    /// Its method.
    pub method: Cow<'static, str>,
    /// Its path, without the query string.
    pub path: String,
    /// Where it came from, seen through trusted proxies.
    pub ip: IpAddr,
    /// What the client calls itself.
    pub user_agent: Option<String>,
    /// When its head had been read, by the monotonic clock.
    pub began: Duration,
}

/// How a request was answered.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// The HTTP status.
    pub status: u16,
    /// From the request's head to this event, in microseconds.
    pub latency_us: i64,
}

/// An event to be written.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Its id, which also tells when.
    pub id: EventId,
    /// The workspace whose log it is in.
    pub workspace_id: WorkspaceId,
    /// What happened.
    pub action: Action,
    /// Who did it.
    pub actor: Actor,
    /// What it was done to.
    pub target: Option<Target>,
    /// The request and its answer; none for what the operator does.
    pub request: Option<(Arc<RequestInfo>, Outcome)>,
    /// More about it.
    pub metadata: Metadata,
    /// What the request asked for, where it counts as a use of a key. Counted, but no part of the event.
    pub route: Option<RouteUse>,
    /// It tells that a request goes on using its key, and nothing else: it is noted with the key's uses, and is
    /// in no log.
    pub is_use_alone: bool,
}

/// More about an event. Its names are sorted, as the canonical form of the event wants it.
#[derive(Debug, Clone, Default)]
pub enum Metadata {
    /// There is no more.
    #[default]
    None,
    /// It tells of a request that a gateway asked about: whoever holds a key may ask about requests
    /// that nobody made.
    Gateway,
    /// A client does it for whoever granted it.
    OnBehalf {
        /// What they granted.
        grant: GrantId,
        /// Who; none: the client acts for itself.
        person: Option<UserId>,
    },
    /// This, a JSON object: see [`Metadata::object`].
    Object(Value),
}

impl Metadata {
    /// Whether there is no more.
    #[must_use]
    pub fn is_none(&self) -> bool {
        match self {
            Self::None => true,
            Self::Gateway | Self::OnBehalf { .. } => false,
            Self::Object(object) => object.as_object().is_some_and(serde_json::Map::is_empty),
        }
    }

    /// A JSON object.
    #[must_use]
    pub fn object(mut object: Value) -> Self {
        object.sort_all_objects();
        Self::Object(object)
    }
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.collect_map::<&str, &str, _>([]),
            Self::Gateway => serializer.collect_map([("via", "verify")]),
            Self::OnBehalf { grant, person } => {
                let person = person.map(|person| ("user_id", person.to_string()));
                serializer.collect_map([("grant_id", grant.to_string())].into_iter().chain(person))
            }
            Self::Object(object) => object.serialize(serializer),
        }
    }
}

impl NewEvent {
    /// That something happened in a workspace, outside of any request.
    #[must_use]
    pub fn new(id: EventId, workspace_id: WorkspaceId, action: Action, actor: Actor) -> Self {
        let (target, request, metadata, route) = (None, None, Metadata::None, None);
        let is_use_alone = false;
        Self { id, workspace_id, action, actor, target, request, metadata, route, is_use_alone }
    }

    /// What it was done to.
    #[must_use]
    pub fn on<T: Id>(mut self, id: T, name: impl Into<Option<String>>) -> Self {
        self.target = Some(Target { kind: T::PREFIX, id: id.uuid(), name: name.into() });
        self
    }

    /// The request that it happened in, and the status of the answer.
    #[must_use]
    pub fn in_request(mut self, request: &Arc<RequestInfo>, status: u16, now: Duration) -> Self {
        let latency = now.saturating_sub(request.began).as_micros();
        let outcome = Outcome { status, latency_us: i64::try_from(latency).unwrap_or(i64::MAX) };
        self.request = Some((Arc::clone(request), outcome));
        self
    }

    /// More about it, a JSON object.
    #[must_use]
    pub fn with(mut self, metadata: Value) -> Self {
        self.metadata = Metadata::object(metadata);
        self
    }
}
