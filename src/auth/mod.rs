//! Authentication, and the management of users, credentials and workspaces.
//!
//! Every change that ends or restricts access waits at [`Fence::wait`] before the response, so that
//! no node accepts the old credential afterwards.
//!
//! Each service is a struct in the file or folder of its name; [`Auth`] connects them. A service
//! uses only services above it in that struct.
//!
//! - Verifying credentials: [`authenticator`] turns a credential into a
//!   [`Principal`](crate::model::principal::Principal). [`credential_caches`] holds the records
//!   that it looks up.
//! - Authorization: [`check_scope::check_access`] decides what a principal may do.
//! - Signing in: [`sign_in`] (password and code), [`passkeys`], [`second_factors`]; [`sessions`]
//!   and their refresh tokens; [`browser_sessions`] (CSRF tokens).
//! - Users: [`accounts`], [`passwords`], [`email_verification`], [`account_reclaim`].
//! - Workspaces: [`workspaces`], [`members`], [`invitations`].
//! - API keys: [`api_keys`], with their rotation and usage.
//! - Cryptography: [`password_hashing`], [`token_issuer`], [`signing_keys`] (JWTs and
//!   checkpoints), [`checkpoints`], [`master_key`] (key derivation), [`sealing`] (encryption at
//!   rest), [`reencryption`] (rotation of the master key).

pub mod account_reclaim;
pub mod accounts;
pub mod api_keys;
pub mod authenticator;
pub mod browser_sessions;
pub mod caller;
pub mod check_scope;
pub mod checkpoints;
mod context;
pub mod credential_caches;
pub mod email_verification;
mod error;
pub mod invitations;
pub mod master_key;
pub mod members;
pub mod passkeys;
pub mod password_hashing;
pub mod passwords;
pub mod reencryption;
mod remaining_access;
pub mod restore;
pub mod sealing;
pub mod second_factors;
pub mod sessions;
pub mod sign_in;
pub mod signing_keys;
pub mod token_issuer;
pub mod workspaces;

use std::sync::Arc;

use account_reclaim::AccountReclaim;
use accounts::Accounts;
use api_keys::ApiKeys;
use authenticator::Authenticator;
use browser_sessions::BrowserSessions;
use checkpoints::Checkpoints;
pub use context::ServiceContext;
pub use credential_caches::CacheCounters;
use credential_caches::CredentialCaches;
use email_verification::EmailVerification;
pub use error::AuthError;
use invitations::Invitations;
use master_key::MasterKeys;
use members::Members;
use passkeys::Passkeys;
use password_hashing::PasswordHasher;
use passwords::Passwords;
use sealing::SealingKeys;
use second_factors::SecondFactors;
use sessions::Sessions;
use sign_in::SignIn;
use signing_keys::SigningKeys;
use token_issuer::TokenIssuer;
use uuid::Uuid;
use workspaces::Workspaces;

use crate::{
    audit::AuditWriter, cache_invalidation::Fence, config::Settings, env::Env, limit::Limits,
    store::Store,
};

/// The services of this module. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    /// Store, clock, audit writer and fence, shared by all services.
    pub(crate) context: Arc<ServiceContext>,
    /// The keys that sign tokens and checkpoints.
    pub signing_keys: Arc<SigningKeys>,
    /// Checkpoints of audit logs.
    pub checkpoints: Arc<Checkpoints>,
    /// Verification of credentials.
    pub authenticator: Arc<Authenticator>,
    /// CSRF tokens of forms.
    pub browser_sessions: Arc<BrowserSessions>,
    /// Access tokens.
    pub token_issuer: Arc<TokenIssuer>,
    /// Sessions and their refresh tokens.
    pub sessions: Arc<Sessions>,
    /// Passwords.
    pub passwords: Arc<Passwords>,
    /// Verification of email addresses.
    pub email_verification: Arc<EmailVerification>,
    /// Authenticator apps and recovery codes.
    pub second_factors: Arc<SecondFactors>,
    /// Members of workspaces.
    pub members: Arc<Members>,
    /// Workspaces.
    pub workspaces: Arc<Workspaces>,
    /// Accounts of users.
    pub accounts: Arc<Accounts>,
    /// Invitations to workspaces.
    pub invitations: Arc<Invitations>,
    /// API keys.
    pub api_keys: Arc<ApiKeys>,
    /// Sign-in with a password and a code.
    pub sign_in: Arc<SignIn>,
    /// Passkeys, and sign-in with them.
    pub passkeys: Arc<Passkeys>,
    /// This node's credential caches, for metrics.
    pub caches: CredentialCaches,
    /// Encrypts the seeds of OAuth grants' refresh tokens.
    pub grant_seed_sealing: SealingKeys,
}

/// Keys that are derived from the master keys for one service each.
struct DerivedKeys {
    session_seeds: SealingKeys,
    grant_seeds: SealingKeys,
    second_factors: SealingKeys,
}

impl Auth {
    /// Creates the services. Loads the signing keys, and creates the first ones on a fresh
    /// database.
    ///
    /// # Errors
    /// A message for the operator, if the database is unreachable or `keys.encryption_key` is not
    /// the key that its signing keys were encrypted with.
    #[expect(clippy::too_many_arguments, reason = "one for each component that services use")]
    pub async fn new(
        settings: &Settings,
        master_keys: &MasterKeys,
        store: Store,
        env: Env,
        audit: AuditWriter,
        caches: CredentialCaches,
        fence: Fence,
        limits: Limits,
        node_id: Uuid,
    ) -> Result<Self, String> {
        let context = Arc::new(ServiceContext {
            store,
            env,
            audit,
            fence,
            limits,
            token_key: master_keys.token_key()?,
            issuer: settings.server.public_url.as_str().into(),
        });
        let hasher = PasswordHasher::start(settings.passwords, &context.env)?;
        let keys = DerivedKeys {
            session_seeds: master_keys.session_seed_sealing()?,
            grant_seeds: master_keys.grant_seed_sealing()?,
            second_factors: master_keys.second_factor_sealing()?,
        };
        let signing_keys = Arc::new(
            SigningKeys::load_or_create(
                context.store.clone(),
                master_keys.signing_key_sealing()?,
                context.env.clone(),
                settings.tokens,
                caches.tokens.clone(),
            )
            .await?,
        );
        Ok(Self::connect(settings, context, caches, signing_keys, keys, hasher, node_id))
    }

    /// Creates the services in the order of their dependencies.
    #[expect(clippy::too_many_lines, reason = "a few lines for each service")]
    fn connect(
        settings: &Settings,
        context: Arc<ServiceContext>,
        caches: CredentialCaches,
        signing_keys: Arc<SigningKeys>,
        keys: DerivedKeys,
        hasher: PasswordHasher,
        node_id: Uuid,
    ) -> Self {
        let registration = settings.sessions.registration;
        let token_issuer = Arc::new(TokenIssuer {
            context: Arc::clone(&context),
            signing_keys: Arc::clone(&signing_keys),
            lifetime: settings.sessions.access_token_lifetime,
        });
        let sessions = Arc::new(Sessions {
            context: Arc::clone(&context),
            seed_sealing: keys.session_seeds,
            lifetime: settings.sessions.absolute_lifetime,
            idle_timeout: settings.sessions.refresh_token_lifetime,
            refresh_retry_window: settings.sessions.refresh_reuse_window,
            token_issuer: Arc::clone(&token_issuer),
        });
        let reclaim = Arc::new(AccountReclaim {
            context: Arc::clone(&context),
            sessions: Arc::clone(&sessions),
        });
        let passwords = Arc::new(Passwords {
            context: Arc::clone(&context),
            hasher,
            reclaim: Arc::clone(&reclaim),
            sessions: Arc::clone(&sessions),
        });
        let email_verification =
            Arc::new(EmailVerification { context: Arc::clone(&context), reclaim });
        let second_factors = Arc::new(SecondFactors {
            context: Arc::clone(&context),
            key_sealing: keys.second_factors,
            passwords: Arc::clone(&passwords),
            sessions: Arc::clone(&sessions),
        });
        let members = Arc::new(Members {
            context: Arc::clone(&context),
            passwords: Arc::clone(&passwords),
            sessions: Arc::clone(&sessions),
        });
        let workspaces = Arc::new(Workspaces {
            context: Arc::clone(&context),
            passwords: Arc::clone(&passwords),
        });
        let accounts = Arc::new(Accounts {
            context: Arc::clone(&context),
            registration,
            email_verification: Arc::clone(&email_verification),
            members: Arc::clone(&members),
            passwords: Arc::clone(&passwords),
            sessions: Arc::clone(&sessions),
            workspaces: Arc::clone(&workspaces),
        });
        let sign_in = Arc::new(SignIn {
            context: Arc::clone(&context),
            passwords: Arc::clone(&passwords),
            second_factors: Arc::clone(&second_factors),
            sessions: Arc::clone(&sessions),
            workspaces: Arc::clone(&workspaces),
        });
        let passkeys = Arc::new(Passkeys {
            context: Arc::clone(&context),
            passwords: Arc::clone(&passwords),
            second_factors: Arc::clone(&second_factors),
            sessions: Arc::clone(&sessions),
            sign_in: Arc::clone(&sign_in),
        });
        let invitations = Arc::new(Invitations {
            context: Arc::clone(&context),
            passwords: Arc::clone(&passwords),
            registration,
            accounts: Arc::clone(&accounts),
            sessions: Arc::clone(&sessions),
        });
        let api_keys = Arc::new(ApiKeys {
            context: Arc::clone(&context),
            environment: settings.keys.environment.clone(),
            quiet_period: settings.rotation.quiet_period.try_into().unwrap_or(time::Duration::MAX),
            node_id,
        });
        let authenticator = Arc::new(Authenticator {
            context: Arc::clone(&context),
            caches: caches.clone(),
            environment: settings.keys.environment.clone(),
            signing_keys: Arc::clone(&signing_keys),
            session_idle_timeout: settings.sessions.refresh_token_lifetime,
        });
        let checkpoints = Arc::new(Checkpoints {
            context: Arc::clone(&context),
            signing_keys: Arc::clone(&signing_keys),
        });
        Self {
            signing_keys,
            checkpoints,
            authenticator,
            browser_sessions: Arc::new(BrowserSessions { context: Arc::clone(&context) }),
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
            grant_seed_sealing: keys.grant_seeds,
            context,
        }
    }
}
