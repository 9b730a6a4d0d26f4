//! Emails in the outbox: stored and not yet sent.
//!
//! An entry holds no secret. The tokens of links are derived from their ids when the email is
//! rendered; see [`super::one_time_token`].

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::scope::Role;

/// An email to be rendered and sent. It is stored in the database and therefore holds no secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct OutgoingEmail {
    /// The recipient's address.
    pub to: String,
    /// The kind of email, with the data that its text needs.
    #[serde(flatten)]
    pub subject: EmailKind,
}

impl fmt::Debug for OutgoingEmail {
    /// Prints only the kind: addresses are personal data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutgoingEmail({})", self.subject.as_str())
    }
}

/// The kind of an email, with the data that its text needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EmailKind {
    /// A password reset was requested. The account is looked up when the email is sent, so that
    /// the request takes the same time for known and unknown addresses.
    ForgotPassword,
    /// Email verification.
    VerifyEmail {
        /// The id of the link's token.
        token: Uuid,
    },
    /// An invitation to a workspace.
    Invitation {
        /// The id of the invitation, and of the link's token.
        token: Uuid,
        /// The workspace's name.
        workspace: String,
    },
    /// The password was changed or reset.
    PasswordChanged {
        /// The request that changed it.
        origin: RequestOrigin,
        /// The names of the user's passkeys, which can still sign in.
        #[serde(default)]
        passkeys: Vec<String>,
        /// The names of the user's connected apps, which keep their access.
        #[serde(default)]
        apps: Vec<String>,
        /// The names of connected apps that a reset has disconnected.
        #[serde(default)]
        disconnected_apps: Vec<String>,
    },
    /// The address was proven for the first time, without a session of the account. What was set up
    /// before has ended.
    PriorSetupEnded {
        /// The request that proved the address.
        origin: RequestOrigin,
        /// What has ended.
        ended: EndedSetup,
    },
    /// TOTP was enabled: sign-in now requires a code.
    SecondFactorAdded {
        /// The request that enabled it.
        origin: RequestOrigin,
    },
    /// New recovery codes were created.
    RecoveryCodesRenewed {
        /// The request that created them.
        origin: RequestOrigin,
    },
    /// A passkey was added.
    PasskeyAdded {
        /// The request that added it.
        origin: RequestOrigin,
    },
    /// A passkey was removed.
    PasskeyRemoved {
        /// The request that removed it.
        origin: RequestOrigin,
    },
    /// TOTP was disabled: sign-in no longer requires a code.
    SecondFactorRemoved {
        /// The request that disabled it.
        origin: RequestOrigin,
    },
    /// The operator removed the user's second factor and passkeys.
    FactorsTakenAway,
    /// A sign-in with a client, or from a network, that the user has not used recently.
    NewDeviceAuthorization {
        /// The request that signed in.
        origin: RequestOrigin,
    },
    /// An API key with the admin scope was created.
    AdminKey {
        /// The key's name.
        key: String,
        /// The workspace's name.
        workspace: String,
        /// The name of the principal that created the key.
        by: String,
        /// The request that created the key.
        origin: RequestOrigin,
    },
    /// An OAuth client with the admin scope was created.
    AdminClient {
        /// The client's name.
        client: String,
        /// The workspace's name.
        workspace: String,
        /// The name of the principal that created the client.
        by: String,
        /// The request that created the client.
        origin: RequestOrigin,
    },
    /// An API key invited an administrator.
    AdminInvitation {
        /// The invited address.
        email: String,
        /// The workspace's name.
        workspace: String,
        /// The name of the API key.
        by: String,
        /// The request that sent the invitation.
        origin: RequestOrigin,
    },
    /// An API key was revoked by its holder, or with descendants that stay valid.
    KeyRevoked {
        /// The key's name.
        key: String,
        /// The workspace's name.
        workspace: String,
        /// The name of the principal that revoked the key.
        by: String,
        /// The request that revoked the key; `None` for the operator.
        origin: Option<RequestOrigin>,
        /// The access that remains.
        remaining: RemainingAccess,
    },
    /// A member was removed or got a lower role, and access that the member created stays valid.
    MemberLostAccess {
        /// The member's address.
        member: String,
        /// The member's new role; `None` if the member was removed.
        role: Option<Role>,
        /// The workspace's name.
        workspace: String,
        /// The name of the principal that removed the member or changed the role.
        by: String,
        /// The request of that principal.
        origin: RequestOrigin,
        /// The access that remains.
        remaining: RemainingAccess,
    },
    /// Many wrong passwords from networks that the account never signed in from. The account is
    /// looked up when the email is sent, as for [`Self::ForgotPassword`].
    PasswordGuesses {
        /// The last such request.
        origin: RequestOrigin,
    },
    /// The account was deleted.
    AccountDeleted {
        /// The request that deleted it.
        origin: RequestOrigin,
    },
    /// A refresh token was reused; its session ended.
    SessionReuse {
        /// The request that reused the token.
        origin: RequestOrigin,
    },
}

impl EmailKind {
    /// Returns the class by which the outbox limits and orders emails.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::VerifyEmail { .. } => "verification",
            Self::ForgotPassword => "reset",
            Self::Invitation { .. } => "invitation",
            Self::AdminKey { .. }
            | Self::AdminClient { .. }
            | Self::AdminInvitation { .. }
            | Self::KeyRevoked { .. }
            | Self::MemberLostAccess { .. } => "workspace",
            Self::PasswordChanged { .. }
            | Self::PriorSetupEnded { .. }
            | Self::SecondFactorAdded { .. }
            | Self::PasskeyAdded { .. }
            | Self::PasskeyRemoved { .. }
            | Self::RecoveryCodesRenewed { .. }
            | Self::SecondFactorRemoved { .. }
            | Self::FactorsTakenAway
            | Self::NewDeviceAuthorization { .. }
            | Self::PasswordGuesses { .. }
            | Self::AccountDeleted { .. }
            | Self::SessionReuse { .. } => "account",
        }
    }

    /// Returns the name of the kind, for logs.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::ForgotPassword => "forgot_password",
            Self::VerifyEmail { .. } => "verify_email",
            Self::Invitation { .. } => "invitation",
            Self::PasswordChanged { .. } => "password_changed",
            Self::PriorSetupEnded { .. } => "prior_setup_ended",
            Self::SecondFactorAdded { .. } => "second_factor_added",
            Self::PasskeyAdded { .. } => "passkey_added",
            Self::PasskeyRemoved { .. } => "passkey_removed",
            Self::RecoveryCodesRenewed { .. } => "recovery_codes_renewed",
            Self::SecondFactorRemoved { .. } => "second_factor_removed",
            Self::FactorsTakenAway => "factors_taken_away",
            Self::NewDeviceAuthorization { .. } => "new_device",
            Self::AdminKey { .. } => "admin_key",
            Self::AdminClient { .. } => "admin_client",
            Self::AdminInvitation { .. } => "admin_invitation",
            Self::KeyRevoked { .. } => "key_revoked",
            Self::MemberLostAccess { .. } => "member_lost_access",
            Self::PasswordGuesses { .. } => "password_guesses",
            Self::AccountDeleted { .. } => "account_deleted",
            Self::SessionReuse { .. } => "session_reuse",
        }
    }
}

/// What has ended with the first proof of an address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndedSetup {
    /// True if the password was removed.
    pub password: bool,
    /// The number of sessions.
    pub sessions: usize,
    /// True if an authenticator app was removed.
    pub totp: bool,
    /// The names of passkeys.
    pub passkeys: NameList,
    /// The names of connected apps.
    pub apps: NameList,
    /// The names of API keys.
    pub api_keys: NameList,
    /// The names of the workspace's OAuth clients.
    pub oauth_clients: NameList,
    /// The addresses of invited users.
    pub invitations: NameList,
    /// The addresses of members.
    pub members: NameList,
}

/// A list of names: the first ones, and the number of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameList {
    /// The first names, at most [`Self::MAX_NAMES`].
    pub names: Vec<String>,
    /// The number of all names.
    pub total: usize,
}

impl NameList {
    /// The maximum number of names, so that an email stays small.
    pub const MAX_NAMES: usize = 20;

    /// Creates a list of these names.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let mut list = Self::default();
        names.into_iter().for_each(|name| list.push(name));
        list
    }

    /// Adds a name.
    pub fn push(&mut self, name: String) {
        self.total += 1;
        if self.names.len() < Self::MAX_NAMES {
            self.names.push(name);
        }
    }
}

/// Names of what stays valid after a key or a member has lost access.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemainingAccess {
    /// The names of API keys that it created.
    pub api_keys: Vec<String>,
    /// The names of OAuth clients that it created.
    pub oauth_clients: Vec<String>,
    /// The names of other OAuth clients to which it added a secret.
    pub client_secrets: NameList,
    /// The names of other OAuth clients to which it added a redirect URI.
    pub redirect_uris: NameList,
    /// The addresses of members that it invited, or whose role it set.
    pub members: NameList,
    /// The names of other API keys that it enabled, or allowed further networks, or that were
    /// created by members and keys to which it gave access.
    pub widened_api_keys: NameList,
    /// True if there are more than these lists name.
    pub has_more: bool,
}

impl RemainingAccess {
    /// True if no access remains.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let lists =
            [&self.client_secrets, &self.redirect_uris, &self.members, &self.widened_api_keys];
        !self.has_more
            && self.api_keys.is_empty()
            && self.oauth_clients.is_empty()
            && lists.iter().all(|list| list.total == 0)
    }
}

/// The origin of the request behind an email: time, address and client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestOrigin {
    /// The time, formatted as in the API.
    pub at: String,
    /// The client's address.
    pub ip: String,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
}
