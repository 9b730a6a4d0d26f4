//! Mails, as they wait to be sent.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A mail that is to be written and sent. It waits in the database, so it holds no secret: tokens are
/// derived from their ids when it is written.
#[derive(Clone, Serialize, Deserialize)]
pub struct Mail {
    /// The address.
    pub to: String,
    /// What it is about.
    #[serde(flatten)]
    pub subject: MailSubject,
}

impl fmt::Debug for Mail {
    /// Addresses are personal data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mail({})", self.subject.kind())
    }
}

/// What a mail is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MailSubject {
    /// Somebody asked for a new password. Whether the address is anybody's is found out when the mail is
    /// sent, so that asking takes the same time either way.
    ForgotPassword,
    /// To show that the address is one's own.
    VerifyEmail {
        /// The id of the link's token.
        token: Uuid,
    },
    /// Somebody is invited to a workspace.
    Invitation {
        /// The id of the invitation, and of the link's token.
        token: Uuid,
        /// The workspace's name.
        workspace: String,
    },
    /// The password was changed or reset.
    PasswordChanged {
        /// From where.
        origin: Origin,
        /// What the person's passkeys are called, which go on signing in.
        #[serde(default)]
        passkeys: Vec<String>,
        /// What the apps are called that the person has connected, which go on too.
        #[serde(default)]
        apps: Vec<String>,
    },
    /// Sign-in takes a code from now on.
    SecondFactorAdded {
        /// From where.
        origin: Origin,
    },
    /// There are new recovery codes.
    RecoveryCodesRenewed {
        /// From where.
        origin: Origin,
    },
    /// A passkey was made.
    PasskeyAdded {
        /// From where.
        origin: Origin,
    },
    /// A passkey was taken away.
    PasskeyRemoved {
        /// From where.
        origin: Origin,
    },
    /// Sign-in takes no code any more.
    SecondFactorRemoved {
        /// From where.
        origin: Origin,
    },
    /// The operator took what signs the person in, beside the password, away.
    FactorsTakenAway,
    /// Somebody signed in with a client, or from a network, that the person has not used of late.
    NewDevice {
        /// From where.
        origin: Origin,
    },
    /// A key that may run the workspace was minted.
    AdminKey {
        /// The key's name.
        key: String,
        /// The workspace's.
        workspace: String,
        /// The name of who did it.
        by: String,
        /// From where.
        origin: Origin,
    },
    /// The account is gone.
    AccountDeleted {
        /// From where.
        origin: Origin,
    },
    /// A refresh token was used a second time; the session was ended.
    SessionReuse {
        /// From where it was used.
        origin: Origin,
    },
}

impl MailSubject {
    /// Its name, for logs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ForgotPassword => "forgot_password",
            Self::VerifyEmail { .. } => "verify_email",
            Self::Invitation { .. } => "invitation",
            Self::PasswordChanged { .. } => "password_changed",
            Self::SecondFactorAdded { .. } => "second_factor_added",
            Self::PasskeyAdded { .. } => "passkey_added",
            Self::PasskeyRemoved { .. } => "passkey_removed",
            Self::RecoveryCodesRenewed { .. } => "recovery_codes_renewed",
            Self::SecondFactorRemoved { .. } => "second_factor_removed",
            Self::FactorsTakenAway => "factors_taken_away",
            Self::NewDevice { .. } => "new_device",
            Self::AdminKey { .. } => "admin_key",
            Self::AccountDeleted { .. } => "account_deleted",
            Self::SessionReuse { .. } => "session_reuse",
        }
    }
}

/// When and from where something was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// When, as clients see moments.
    pub at: String,
    /// From which address.
    pub ip: String,
    /// With which client.
    pub user_agent: Option<String>,
}
