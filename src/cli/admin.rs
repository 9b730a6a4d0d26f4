//! `call2me-auth admin`: operations for the operator, without a session. The output is JSON.

mod backup;
mod checkpoint_file;
mod restore;

use std::{collections::BTreeMap, path::PathBuf, str::FromStr};

use clap::Subcommand;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::CommandError;
use crate::{
    app::Application,
    audit::verifier,
    auth::{
        Auth,
        accounts::NewAccount,
        api_keys::{CreateKeyParams, KeyOwner},
        signing_keys::Activation,
    },
    config::Settings,
    env::Env,
    model::{
        api_key::{ApiKey, KeyStatus},
        audit::Checkpoint,
        id::{ApiKeyId, SigningKeyId, WorkspaceId},
        oauth::client::{ClientAuthMethod, GrantType},
        password::Password,
        scope::Scope,
        signing_key::KeyPurpose,
        timestamp,
    },
    oauth::clients::{
        RegisteredClient,
        workspace_clients::{CreateClientParams, WorkspaceClients},
    },
    store::{api_keys::KeyFilter, with_source as describe},
};

/// The `admin` commands.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Manage users.
    #[command(subcommand)]
    Users(UsersCommand),
    /// Manage workspaces.
    #[command(subcommand)]
    Workspaces(WorkspacesCommand),
    /// Manage API keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Manage OAuth clients.
    #[command(subcommand)]
    OauthClients(OAuthClientsCommand),
    /// Manage the keys that sign access tokens and audit checkpoints.
    #[command(subcommand)]
    SigningKeys(SigningKeysCommand),
    /// Verify the audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Check what a backup of the database depends on.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Finish a restore of the database. Until then nodes answer 503.
    #[command(subcommand)]
    Restore(restore::RestoreCommand),
    /// Encrypt everything in the database under `keys.encryption_key`, after it was rotated. It is
    /// safe while nodes run, and an interrupted run can be repeated. The output says whether
    /// `keys.previous_encryption_keys` are still needed.
    Reencrypt {
        /// Do not wait until values of the previous keys expire. Links in emails and the stored
        /// responses of idempotent requests become invalid at once.
        #[arg(long)]
        discard_previous: bool,
    },
}

/// Commands for the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Verify that all events are as they were sealed. The exit code is 0 if they are. Otherwise it
    /// is 1, and for each workspace the first event that was changed, removed, inserted or cut off
    /// is named.
    Verify {
        /// Verify only this workspace.
        #[arg(long)]
        workspace: Option<WorkspaceId>,
        /// File with checkpoints to compare the log with, from `/v1/audit-log/checkpoint` or from
        /// `admin backup check`. Only the workspaces of the checkpoints are verified. May be
        /// repeated.
        #[arg(long = "checkpoint", value_name = "FILE")]
        checkpoints: Vec<PathBuf>,
    },
}

/// Commands for users.
#[derive(Debug, Subcommand)]
pub enum UsersCommand {
    /// Create a user and the user's first workspace.
    Create {
        /// Email address to sign in with.
        #[arg(long)]
        email: String,
        /// Full name of the user.
        #[arg(long)]
        full_name: Option<String>,
        /// Name of the workspace.
        #[arg(long)]
        workspace_name: Option<String>,
        /// Read the password from standard input; by default a random one is generated and
        /// printed.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Remove a user's authenticator app and passkeys after they were lost, and end all sessions.
    /// The user can then sign in with the password alone.
    RemoveSecondFactor {
        /// Email address of the user.
        #[arg(long)]
        email: String,
    },
}

/// Commands for workspaces.
#[derive(Debug, Subcommand)]
pub enum WorkspacesCommand {
    /// Create a workspace for an existing user.
    Create {
        /// Name of the workspace.
        #[arg(long)]
        name: String,
        /// Email address of the owner.
        #[arg(long)]
        owner: String,
    },
    /// Set the rate limit of each credential of a workspace. It takes effect on every node before
    /// the command returns. Keys with a higher limit of their own get this one.
    SetLimit {
        /// Workspace.
        workspace: WorkspaceId,
        /// Requests per minute, or `default` for the configured limit.
        per_minute: PerMinute,
    },
}

/// A rate limit on the command line; `None` is `default`.
#[derive(Debug, Clone, Copy)]
pub struct PerMinute(Option<u32>);

impl FromStr for PerMinute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "default" {
            return Ok(Self(None));
        }
        let limit = text.parse().map_err(|_| "must be a whole number or `default`".to_owned());
        Ok(Self(Some(limit?)))
    }
}

/// Commands for API keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Create an API key. The secret is printed only once.
    Create {
        /// Workspace of the key.
        #[arg(long)]
        workspace: WorkspaceId,
        /// Name of the key.
        #[arg(long)]
        name: String,
        /// Scope of the key: read-only, write or admin.
        #[arg(long, default_value = "write")]
        scope: Scope,
    },
    /// List API keys.
    List {
        /// Only keys of this workspace.
        #[arg(long)]
        workspace: Option<WorkspaceId>,
        /// Only keys with this status: active, disabled or revoked.
        #[arg(long)]
        status: Option<KeyStatus>,
    },
    /// Disable an API key. Every node rejects it before the command returns.
    Disable {
        /// Id of the key.
        id: ApiKeyId,
    },
    /// Enable a disabled API key again.
    Enable {
        /// Id of the key.
        id: ApiKeyId,
    },
    /// Revoke an API key for good. Every node rejects it before the command returns.
    Revoke {
        /// Id of the key.
        id: ApiKeyId,
        /// Also revoke the keys, OAuth clients and open invitations that the key made.
        #[arg(long)]
        cascade: bool,
    },
    /// Find the workspace and owners of a leaked key. The key is read from standard input, so that
    /// it does not end up in the shell history, and is neither stored nor logged. The exit code is
    /// 1 if no key matches.
    RevealOwner,
}

/// Commands for OAuth clients.
#[derive(Debug, Subcommand)]
pub enum OAuthClientsCommand {
    /// Create an OAuth client. The secret is printed only once.
    Create {
        /// Workspace of the client.
        #[arg(long)]
        workspace: WorkspaceId,
        /// Name of the client, as users see it on the consent page.
        #[arg(long)]
        name: String,
        /// Redirect URI for authorization codes; may be repeated. Without one the client can only
        /// use the client credentials grant.
        #[arg(long = "redirect-uri")]
        redirect_uris: Vec<String>,
        /// Maximum scope of the client: read-only, write or admin.
        #[arg(long, default_value = "write")]
        scope: Scope,
        /// Resource (one of oauth.resources) that the client is the server of: it may introspect
        /// tokens for this resource from all workspaces.
        #[arg(long)]
        resource: Option<String>,
        /// Create a public client, without a secret.
        #[arg(long)]
        public: bool,
    },
}

/// Commands for signing keys.
#[derive(Debug, Subcommand)]
pub enum SigningKeysCommand {
    /// List all signing keys and their state.
    List,
    /// Create a new signing key. It is published at once, and signs when no cache of the key set
    /// lacks it. Tokens signed by the other keys stay valid.
    Rotate {
        /// Create a key that signs audit checkpoints, not access tokens.
        #[arg(long)]
        checkpoints: bool,
        /// Create a key that signs the ID tokens of clients that ask for RS256.
        #[arg(long, conflicts_with = "checkpoints")]
        id_tokens: bool,
        /// Sign with the new key within ten seconds, for emergencies. Servers that cache the key
        /// set reject its tokens until they fetch it again.
        #[arg(long)]
        now: bool,
    },
    /// Retire a key that signs tokens. Its tokens become invalid within ten seconds. After a
    /// rotation, first wait until the new key signs, and then for the lifetime of an access token;
    /// otherwise clients must refresh theirs at once.
    Retire {
        /// `kid` of the key.
        id: SigningKeyId,
    },
}

pub(super) async fn run(command: AdminCommand, settings: Settings) -> Result<(), CommandError> {
    let env = Env::system();
    let application = Application::build(settings, env.clone()).await?;
    let outcome = execute(&application, &env, command).await;
    application.shut_down().await;
    let CommandOutput { value, problem } = outcome?;
    super::print(&format!("{value:#}\n"));
    problem.map_or(Ok(()), |line| Err(CommandError { message: line, code: 1 }))
}

/// The output of a command.
struct CommandOutput {
    value: Value,
    /// The message if a check failed; the exit code is then 1.
    problem: Option<String>,
}

async fn execute(
    application: &Application,
    env: &Env,
    command: AdminCommand,
) -> Result<CommandOutput, String> {
    let auth = &application.app().auth;
    let value: Result<Value, String> = match command {
        AdminCommand::Audit(command) => return audit(application, command).await,
        AdminCommand::Backup(command) => return backup::run(application, command).await,
        AdminCommand::Restore(command) => restore::run(application, command).await,
        AdminCommand::Keys(command) => return keys(auth, command).await,
        AdminCommand::Users(UsersCommand::Create {
            email,
            full_name,
            workspace_name,
            password_stdin,
        }) => {
            let (password, generated) = password(env, password_stdin)?;
            let account = NewAccount { email, password, full_name, workspace_name };
            let (user, workspace) =
                auth.accounts.create_as_operator(account).await.map_err(describe)?;
            let mut output = json!({
                "user": { "id": user.id, "email": user.email, "full_name": user.full_name },
                "workspace": { "id": workspace.id, "name": workspace.name },
            });
            if let Some(generated) = generated {
                output["password"] = generated.into();
            }
            Ok(output)
        }
        AdminCommand::Users(UsersCommand::RemoveSecondFactor { email }) => {
            auth.second_factors.remove_all_as_operator(&email).await.map_err(describe)?;
            Ok(json!({ "email": email, "second_factor": null }))
        }
        AdminCommand::Workspaces(WorkspacesCommand::Create { name, owner }) => {
            let workspace =
                auth.workspaces.create_as_operator(&name, &owner).await.map_err(describe)?;
            Ok(json!({ "workspace": { "id": workspace.id, "name": workspace.name } }))
        }
        AdminCommand::SigningKeys(command) => signing_keys(auth, command).await,
        AdminCommand::Reencrypt { discard_previous } => {
            serde_json::to_value(application.reencrypt(discard_previous).await?)
                .map_err(|error| error.to_string())
        }
        AdminCommand::OauthClients(command) => {
            create_client(&application.app().oauth.workspace_clients, command).await
        }
        AdminCommand::Workspaces(WorkspacesCommand::SetLimit { workspace, per_minute }) => {
            let limit = auth.workspaces.set_rate_limit_as_operator(workspace, per_minute.0).await;
            let effective = limit.map_err(describe)?;
            Ok(json!({ "workspace_id": workspace, "rate_limit_per_minute": effective }))
        }
    };
    Ok(CommandOutput { value: value?, problem: None })
}

async fn keys(auth: &Auth, command: KeysCommand) -> Result<CommandOutput, String> {
    let keys = &auth.api_keys;
    let value = match command {
        KeysCommand::Create { workspace, name, scope } => {
            let request = CreateKeyParams {
                name,
                description: None,
                scope,
                allowed_ips: Vec::new(),
                rate_limit_per_minute: None,
            };
            let minted = keys.create_as_operator(workspace, request).await.map_err(describe)?;
            json!({
                "id": minted.key.id,
                "name": minted.key.name,
                "scope": minted.key.scope,
                "workspace_id": workspace,
                "key": minted.secret.reveal(),
            })
        }
        KeysCommand::List { workspace, status } => {
            let filter = KeyFilter { status, name: None };
            let listed = keys.list_as_operator(workspace, &filter).await.map_err(describe)?;
            let listed: Vec<_> = listed.iter().map(|key| key_output(auth, key)).collect();
            json!({ "api_keys": listed })
        }
        KeysCommand::Disable { id } => {
            key_output(auth, &keys.set_disabled_as_operator(id, true).await.map_err(describe)?)
        }
        KeysCommand::Enable { id } => {
            key_output(auth, &keys.set_disabled_as_operator(id, false).await.map_err(describe)?)
        }
        KeysCommand::Revoke { id, cascade } => {
            key_output(auth, &keys.revoke_as_operator(id, cascade).await.map_err(describe)?)
        }
        KeysCommand::RevealOwner => return reveal_owner(auth).await,
    };
    Ok(CommandOutput { value, problem: None })
}

fn key_output(auth: &Auth, key: &ApiKey) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "scope": key.scope,
        "status": key.status(),
        "redacted": key.redacted(auth.api_keys.environment()),
        "created_at": timestamp::format(key.created_at),
        "created_by": key.created_by,
        "last_used_at": key.last_used_at.map(timestamp::format),
        "last_used_ip": key.last_used_ip,
        "revoked_at": key.revoked_at.map(timestamp::format),
        "rate_limit_per_minute": key.rate_limit_per_minute,
        "workspace_id": key.workspace_id,
    })
}

/// Finds the workspace and owners of a leaked key.
async fn reveal_owner(auth: &Auth) -> Result<CommandOutput, String> {
    let line = Zeroizing::new(read_line("the key")?);
    let owner = auth.api_keys.find_owner(line.trim()).await.map_err(describe)?;
    let Some(KeyOwner { key, workspace, owners }) = owner else {
        let problem = Some("no API key matches".to_owned());
        return Ok(CommandOutput { value: json!({ "found": false }), problem });
    };
    let value = json!({
        "found": true,
        "key": key_output(auth, &key),
        "workspace": { "id": workspace.id, "name": workspace.name },
        "owners": owners,
    });
    Ok(CommandOutput { value, problem: None })
}

async fn audit(application: &Application, command: AuditCommand) -> Result<CommandOutput, String> {
    let AuditCommand::Verify { workspace, checkpoints } = command;
    let app = application.app();
    let mut checkpoints_by_workspace: BTreeMap<WorkspaceId, Vec<Checkpoint>> = BTreeMap::new();
    for path in checkpoints {
        for checkpoint in checkpoint_file::read(&app.auth.checkpoints, &path)? {
            checkpoints_by_workspace.entry(checkpoint.workspace_id).or_default().push(checkpoint);
        }
    }
    let read_error = |error| format!("cannot read the audit log: {}", describe(error));
    let workspaces = match workspace {
        Some(workspace) => vec![workspace],
        None if checkpoints_by_workspace.is_empty() => {
            app.store.audited_workspaces().await.map_err(read_error)?
        }
        None => checkpoints_by_workspace.keys().copied().collect(),
    };
    if let Some(other) = checkpoints_by_workspace.keys().find(|of| !workspaces.contains(of)) {
        return Err(format!("a checkpoint is of workspace {other}, which --workspace excludes"));
    }
    let (mut results, mut events) = (Vec::new(), 0);
    let began = app.env.clock.monotonic();
    for workspace in workspaces {
        let checkpoints = checkpoints_by_workspace.remove(&workspace).unwrap_or_default();
        let verified =
            verifier::verify(&app.store, workspace, &checkpoints).await.map_err(read_error)?;
        events += verified.events;
        results.push(verified);
    }
    let took = app.env.clock.monotonic().saturating_sub(began);
    let lines = results.iter().filter_map(|verified| {
        let problem = verified.problem?;
        Some(format!("{}: {problem}", verified.workspace_id))
    });
    let lines: Vec<_> = lines.collect();
    let value = json!({
        "verified": lines.is_empty(),
        "events": events,
        "seconds": (took.as_secs_f64() * 1000.0).round() / 1000.0,
        "workspaces": results,
    });
    Ok(CommandOutput {
        value,
        problem: (!lines.is_empty()).then(|| lines.join("\ncall2me-auth: ")),
    })
}

async fn create_client(
    clients: &WorkspaceClients,
    command: OAuthClientsCommand,
) -> Result<Value, String> {
    let OAuthClientsCommand::Create { workspace, name, redirect_uris, scope, resource, public } =
        command;
    let grant_types = if redirect_uris.is_empty() {
        vec![GrantType::ClientCredentials]
    } else {
        vec![GrantType::AuthorizationCode, GrantType::RefreshToken]
    };
    let auth_method =
        if public { ClientAuthMethod::None } else { ClientAuthMethod::ClientSecretBasic };
    let client = CreateClientParams {
        name,
        redirect_uris,
        auth_method,
        grant_types,
        scope,
        client_uri: None,
    };
    let registered = clients.create_as_operator(workspace, client, resource.as_deref()).await;
    let RegisteredClient { client, secret } = registered.map_err(describe)?;
    let grants = client.grant_types.iter().map(|grant| grant.as_str());
    let mut output = json!({
        "client_id": client.client_id(),
        "name": client.name,
        "workspace_id": workspace,
        "redirect_uris": client.redirect_uris,
        "grant_types": grants.collect::<Vec<_>>(),
        "scope": client.scope,
        "resource": client.resource,
    });
    if let Some(secret) = secret {
        output["client_secret"] = secret.reveal().into();
    }
    Ok(output)
}

async fn signing_keys(auth: &Auth, command: SigningKeysCommand) -> Result<Value, String> {
    match command {
        SigningKeysCommand::List => {
            let (keys, current) = auth.signing_keys.list().await.map_err(describe)?;
            let keys = keys.iter().map(|key| {
                let state = match key.retired_at {
                    Some(_) => "retired",
                    None if current.is_signing(key.id) => "signs",
                    None if auth.context.env.clock.now() < key.signs_at => "published",
                    None => "verifies",
                };
                json!({
                    "id": key.id,
                    "purpose": key.purpose.as_str(),
                    "algorithm": key.algorithm.as_str(),
                    "state": state,
                    "created_at": timestamp::format(key.created_at),
                    "signs_at": timestamp::format(key.signs_at),
                    "retired_at": key.retired_at.map(timestamp::format),
                })
            });
            Ok(json!({ "signing_keys": keys.collect::<Vec<_>>() }))
        }
        SigningKeysCommand::Rotate { checkpoints, id_tokens, now } => {
            let purpose = match (checkpoints, id_tokens) {
                (true, _) => KeyPurpose::Checkpoints,
                (_, true) => KeyPurpose::IdTokens,
                _ => KeyPurpose::AccessTokens,
            };
            let activation = if now { Activation::Now } else { Activation::AfterPublication };
            let key = auth.signing_keys.rotate(purpose, activation).await.map_err(describe)?;
            Ok(json!({
                "id": key.id,
                "algorithm": key.algorithm.as_str(),
                "signs_at": timestamp::format(key.signs_at),
            }))
        }
        SigningKeysCommand::Retire { id } => {
            auth.signing_keys.retire(id).await.map_err(describe)?;
            Ok(json!({ "id": id, "state": "retired" }))
        }
    }
}

/// The password to set and, if it was generated, its text to print.
fn password(env: &Env, from_stdin: bool) -> Result<(Password, Option<String>), String> {
    if from_stdin {
        let line = read_line("the password")?;
        return Ok((Password::new(line.trim_end_matches(['\r', '\n']).to_owned()), None));
    }
    let bytes: [u8; 18] = env.entropy.bytes();
    let text = BASE64URL_NOPAD.encode(&bytes);
    Ok((Password::new(text.clone()), Some(text)))
}

fn read_line(what: &str) -> Result<String, String> {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|error| format!("cannot read {what}: {error}"))?;
    Ok(line)
}
