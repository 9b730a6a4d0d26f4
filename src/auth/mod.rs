//! Authentication, and the management of users, credentials and workspaces.
//!
//! Every change that ends or restricts access waits at [`Fence::wait`] before it is answered, so
//! that no node grants the old access from its cache afterwards.
//!
//! Each service is a struct in the file or folder of its name; [`Auth`] connects them. A service
//! uses only services above it in that struct.
//!
//! - Verifying credentials: [`authenticator`] turns a credential into a
//!   [`Principal`](crate::model::principal::Principal). [`caches`] holds the records that it looks
//!   up.
//! - Authorization: [`check_scope`] decides what a principal may do, in one pure function.
//! - Signing in: [`sign_in`] (password and code), [`passkeys`], [`second_factors`]; [`sessions`]
//!   and their refresh tokens; [`browser_sessions`] (cookies and CSRF tokens).
//! - Users: [`accounts`], [`passwords`], [`email_verification`].
//! - Workspaces: [`workspaces`], [`members`], [`invitations`].
//! - API keys: [`api_keys`], with their rotation and usage.
//! - Cryptography: [`password_hashing`], [`token_issuer`], [`signing_keys`] (JWTs and
//!   checkpoints), [`checkpoints`], [`master_key`] (key derivation).

pub mod accounts;
pub mod api_keys;
pub mod authenticator;
pub mod browser_sessions;
pub mod caches;
pub mod check_scope;
pub mod checkpoints;
mod context;
mod credential_cache;
pub mod email_verification;
mod error;
pub mod invitations;
pub mod master_key;
pub mod members;
pub mod passkeys;
pub mod password_hashing;
pub mod passwords;
pub mod second_factors;
pub mod sessions;
pub mod sign_in;
pub mod signing_keys;
pub mod token_issuer;
pub mod workspaces;

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    audit::AuditWriter,
    cache_invalidation::Fence,
    config::Settings,
    env::Env,
    model::{
        id::{GrantId, SessionId},
        refresh_token::RefreshKey,
        second_factor::SecondFactorKey,
    },
    store::Store,
};

use accounts::Accounts;
use api_keys::ApiKeys;
use authenticator::Authenticator;
use browser_sessions::BrowserSessions;
use caches::CredentialCaches;
use checkpoints::Checkpoints;
pub use context::ServiceContext;
pub use credential_cache::CacheCounters;
use email_verification::EmailVerification;
pub use error::AuthError;
use invitations::Invitations;
use master_key::MasterKey;
use members::Members;
use passkeys::Passkeys;
use password_hashing::PasswordHasher;
use passwords::Passwords;
use second_factors::SecondFactors;
use sessions::Sessions;
use sign_in::SignIn;
use signing_keys::SigningKeys;
use token_issuer::TokenIssuer;
use workspaces::Workspaces;

/// The services of this module. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    /// What every service needs.
    pub(crate) context: ServiceContext,
    /// The keys that sign access tokens and checkpoints.
    pub signing_keys: Arc<SigningKeys>,
    /// Checkpoints of audit logs.
    pub checkpoints: Checkpoints,
    /// Verification of credentials.
    pub authenticator: Authenticator,
    /// Session cookies and CSRF tokens.
    pub browser_sessions: BrowserSessions,
    /// Access tokens.
    pub token_issuer: TokenIssuer,
    /// Sessions and their refresh tokens.
    pub sessions: Sessions,
    /// Passwords.
    pub passwords: Passwords,
    /// Verification of email addresses.
    pub email_verification: EmailVerification,
    /// Authenticator apps and recovery codes.
    pub second_factors: SecondFactors,
    /// Members of workspaces.
    pub members: Members,
    /// Workspaces.
    pub workspaces: Workspaces,
    /// Accounts of users.
    pub accounts: Accounts,
    /// Invitations to workspaces.
    pub invitations: Invitations,
    /// API keys.
    pub api_keys: ApiKeys,
    /// Sign-in with a password and a code.
    pub sign_in: SignIn,
    /// Passkeys, and sign-in with them.
    pub passkeys: Passkeys,
    /// This node's credential caches, for metrics.
    pub caches: CredentialCaches,
    /// The MAC key of refresh tokens of OAuth grants.
    pub grant_refresh_key: RefreshKey<GrantId>,
}

/// Keys that are derived from the master key for one service each.
struct DerivedKeys {
    session_refresh: RefreshKey<SessionId>,
    grant_refresh: RefreshKey<GrantId>,
    second_factor: SecondFactorKey,
}

impl Auth {
    /// Creates the services. Loads the signing keys, and creates the first ones on a fresh
    /// database.
    ///
    /// # Errors
    /// A message for the operator, if the database is unreachable or `keys.encryption_key` is not
    /// the key that its signing keys were encrypted with.
    pub async fn new(
        settings: &Settings,
        store: Store,
        env: Env,
        audit: AuditWriter,
        caches: CredentialCaches,
        fence: Fence,
        node_id: Uuid,
    ) -> Result<Self, String> {
        let master_key = MasterKey::new(&settings.keys.encryption_key);
        let context = ServiceContext {
            store,
            env,
            audit,
            fence,
            token_key: master_key.token_key()?,
            issuer: settings.server.public_url.as_str().into(),
        };
        let hasher = PasswordHasher::start(settings.passwords, &context.env)?;
        let keys = DerivedKeys {
            session_refresh: master_key.refresh_key()?,
            grant_refresh: master_key.grant_refresh_key()?,
            second_factor: master_key.second_factor_key()?,
        };
        let signing_keys = Arc::new(
            SigningKeys::load_or_create(
                context.store.clone(),
                master_key,
                context.env.clone(),
                caches.tokens.clone(),
            )
            .await?,
        );
        Ok(Self::connect(settings, context, caches, signing_keys, keys, hasher, node_id))
    }

    /// Creates the services in the order of their dependencies.
    fn connect(
        settings: &Settings,
        context: ServiceContext,
        caches: CredentialCaches,
        signing_keys: Arc<SigningKeys>,
        keys: DerivedKeys,
        hasher: PasswordHasher,
        node_id: Uuid,
    ) -> Self {
        let registration = settings.sessions.registration;
        let token_issuer = TokenIssuer {
            context: context.clone(),
            signing_keys: Arc::clone(&signing_keys),
            lifetime: settings.sessions.access_token_lifetime,
        };
        let sessions = Sessions {
            context: context.clone(),
            refresh_key: keys.session_refresh,
            lifetime: settings.sessions.absolute_lifetime,
            idle_timeout: settings.sessions.refresh_token_lifetime,
            refresh_retry_window: settings.sessions.refresh_reuse_window,
            token_issuer: token_issuer.clone(),
        };
        let passwords = Passwords { context: context.clone(), hasher, sessions: sessions.clone() };
        let email_verification = EmailVerification { context: context.clone() };
        let second_factors = SecondFactors {
            context: context.clone(),
            key: keys.second_factor,
            passwords: passwords.clone(),
            sessions: sessions.clone(),
        };
        let members = Members {
            context: context.clone(),
            passwords: passwords.clone(),
            sessions: sessions.clone(),
        };
        let workspaces = Workspaces {
            context: context.clone(),
            members: members.clone(),
            passwords: passwords.clone(),
        };
        let accounts = Accounts {
            context: context.clone(),
            registration,
            email_verification: email_verification.clone(),
            members: members.clone(),
            passwords: passwords.clone(),
            sessions: sessions.clone(),
            workspaces: workspaces.clone(),
        };
        let sign_in = SignIn {
            context: context.clone(),
            passwords: passwords.clone(),
            second_factors: second_factors.clone(),
            sessions: sessions.clone(),
            workspaces: workspaces.clone(),
        };
        let passkeys = Passkeys {
            context: context.clone(),
            passwords: passwords.clone(),
            second_factors: second_factors.clone(),
            sessions: sessions.clone(),
            sign_in: sign_in.clone(),
        };
        let invitations = Invitations {
            context: context.clone(),
            passwords: passwords.clone(),
            registration,
            accounts: accounts.clone(),
            members: members.clone(),
            sessions: sessions.clone(),
        };
        let api_keys = ApiKeys {
            context: context.clone(),
            environment: settings.keys.environment.clone(),
            quiet_period: settings.rotation.quiet_period.try_into().unwrap_or(time::Duration::MAX),
            node_id,
            members: members.clone(),
        };
        let authenticator = Authenticator {
            context: context.clone(),
            caches: caches.clone(),
            environment: settings.keys.environment.clone(),
            signing_keys: Arc::clone(&signing_keys),
            session_idle_timeout: settings.sessions.refresh_token_lifetime,
        };
        let checkpoints =
            Checkpoints { context: context.clone(), signing_keys: Arc::clone(&signing_keys) };
        Self {
            signing_keys,
            checkpoints,
            authenticator,
            browser_sessions: BrowserSessions { context: context.clone() },
            token_issuer,
            sessions,
            passwords,
            email_verification,
            second_factors,
            members,
            workspaces,
            accounts,
            invitations,
            api_keys,
            sign_in,
            passkeys,
            caches,
            grant_refresh_key: keys.grant_refresh,
            context,
        }
    }
}
