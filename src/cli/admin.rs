//! `call2me-auth admin`: what the operator does without a session. Answers are JSON.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Subcommand;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Failure;
use crate::{
    app::Application,
    audit::verifier,
    auth::{
        Auth,
        keys::{KeyOwner, MintKey},
        login::NewAccount,
    },
    config::Settings,
    env::Env,
    model::{
        audit::{Checkpoint, SignedCheckpoint},
        id::{SigningKeyId, WorkspaceId},
        oauth::client::{AuthMethod, GrantType},
        password::Password,
        scope::Scope,
        signing_key::KeyPurpose,
        timestamp,
    },
    oauth::{OAuth, registration::Registered, workspace_clients::NewClient},
};

/// What the operator can do.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// People.
    #[command(subcommand)]
    Users(UsersCommand),
    /// Workspaces.
    #[command(subcommand)]
    Workspaces(WorkspacesCommand),
    /// API keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// OAuth clients.
    #[command(subcommand)]
    OauthClients(OAuthClientsCommand),
    /// The keys that sign access tokens and checkpoints of audit logs.
    #[command(subcommand)]
    SigningKeys(SigningKeysCommand),
    /// The audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// About the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Look whether all events are as they were sealed. The exit code is 0 if they are; 1 if not, and then
    /// the first event of each workspace that was changed, removed, inserted or cut off is named.
    Verify {
        /// Look at this workspace alone.
        #[arg(long)]
        workspace: Option<WorkspaceId>,
        /// A checkpoint to hold the log against, as `GET /v1/audit-log/checkpoint` gave it, and then at its
        /// workspace alone; may be repeated.
        #[arg(long = "checkpoint", value_name = "FILE")]
        checkpoints: Vec<PathBuf>,
    },
}

/// About people.
#[derive(Debug, Subcommand)]
pub enum UsersCommand {
    /// Make an account and its first workspace.
    Create {
        /// The address to sign in with.
        #[arg(long)]
        email: String,
        /// The person's name.
        #[arg(long)]
        full_name: Option<String>,
        /// The name of the workspace.
        #[arg(long)]
        workspace_name: Option<String>,
        /// Read the password from standard input; without this a random one is made and printed.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Take authenticator and passkeys away from somebody who has lost them, and end all sessions: the password alone
    /// signs in then.
    RemoveSecondFactor {
        /// The address of the account.
        #[arg(long)]
        email: String,
    },
}

/// About workspaces.
#[derive(Debug, Subcommand)]
pub enum WorkspacesCommand {
    /// Make a workspace for somebody who has an account.
    Create {
        /// What it is called.
        #[arg(long)]
        name: String,
        /// The address of its owner.
        #[arg(long)]
        owner: String,
    },
}

/// About keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Mint a key. The secret is printed here and never again.
    Create {
        /// The workspace that it is for.
        #[arg(long)]
        workspace: WorkspaceId,
        /// What it is called.
        #[arg(long)]
        name: String,
        /// What it may do: read-only, write or admin.
        #[arg(long, default_value = "write")]
        scope: Scope,
    },
    /// Tell whose a key is that was found somewhere. It is read from standard input, so that it stays in no
    /// shell's history, and is neither stored nor logged. The exit code is 1 where it is nobody's.
    RevealOwner,
}

/// About OAuth clients.
#[derive(Debug, Subcommand)]
pub enum OAuthClientsCommand {
    /// Make a client. Its secret is printed here and never again.
    Create {
        /// The workspace that it belongs to.
        #[arg(long)]
        workspace: WorkspaceId,
        /// What people read when they consent.
        #[arg(long)]
        name: String,
        /// Where codes may be sent; may be repeated. Without any it acts for itself alone.
        #[arg(long = "redirect-uri")]
        redirect_uris: Vec<String>,
        /// The most that it is granted: read-only, write or admin.
        #[arg(long, default_value = "write")]
        scope: Scope,
        /// One of oauth.resources, which it is: it may introspect tokens for that of all workspaces.
        #[arg(long)]
        resource: Option<String>,
        /// Make a public client, without a secret.
        #[arg(long)]
        public: bool,
    },
}

/// About the keys that sign access tokens and checkpoints of audit logs.
#[derive(Debug, Subcommand)]
pub enum SigningKeysCommand {
    /// All of them, and which one signs.
    List,
    /// Make another one, which signs on every node within ten seconds. Tokens of the others stay good.
    Rotate {
        /// One that signs checkpoints of audit logs.
        #[arg(long)]
        checkpoints: bool,
    },
    /// Retire one that signs tokens: those that it signed are worth nothing within ten seconds. Wait as long as an access
    /// token lives after rotating, or people have to refresh theirs at once.
    Retire {
        /// Its `kid`.
        id: SigningKeyId,
    },
}

pub(super) async fn run(command: AdminCommand, settings: Settings) -> Result<(), Failure> {
    let env = Env::system();
    let application = Application::build(settings, env.clone()).await?;
    let outcome = execute(&application, &env, command).await;
    application.shut_down().await;
    let Answer { value, problem } = outcome?;
    super::print(&format!("{value:#}\n"));
    problem.map_or(Ok(()), |line| Err(Failure { line, code: 1 }))
}

/// What a command has to tell.
struct Answer {
    value: Value,
    /// A line, where it was to look whether something is as it should be and it is not.
    problem: Option<String>,
}

async fn execute(
    application: &Application,
    env: &Env,
    command: AdminCommand,
) -> Result<Answer, String> {
    let auth = &application.app().auth;
    let value: Result<Value, String> = match command {
        AdminCommand::Audit(command) => return audit(application, command).await,
        AdminCommand::Keys(KeysCommand::RevealOwner) => return reveal_owner(auth).await,
        AdminCommand::Users(UsersCommand::Create {
            email,
            full_name,
            workspace_name,
            password_stdin,
        }) => {
            let (password, made) = password(env, password_stdin)?;
            let account = NewAccount { email, password, full_name, workspace_name };
            let (user, workspace) = auth.create_account(account).await.map_err(brief)?;
            let mut answer = json!({
                "user": { "id": user.id, "email": user.email, "full_name": user.full_name },
                "workspace": { "id": workspace.id, "name": workspace.name },
            });
            if let Some(made) = made {
                answer["password"] = made.into();
            }
            Ok(answer)
        }
        AdminCommand::Users(UsersCommand::RemoveSecondFactor { email }) => {
            auth.remove_factors_as_operator(&email).await.map_err(brief)?;
            Ok(json!({ "email": email, "second_factor": null }))
        }
        AdminCommand::Workspaces(WorkspacesCommand::Create { name, owner }) => {
            let workspace = auth.create_workspace(&name, &owner).await.map_err(brief)?;
            Ok(json!({ "workspace": { "id": workspace.id, "name": workspace.name } }))
        }
        AdminCommand::SigningKeys(command) => signing_keys(auth, command).await,
        AdminCommand::OauthClients(command) => {
            create_client(&application.app().oauth, command).await
        }
        AdminCommand::Keys(KeysCommand::Create { workspace, name, scope }) => {
            let wanted = MintKey { name, description: None, scope, allowed_ips: Vec::new() };
            let minted = auth.mint_key_as_operator(workspace, wanted).await.map_err(brief)?;
            Ok(json!({
                "id": minted.key.id,
                "name": minted.key.name,
                "scope": minted.key.scope,
                "workspace_id": workspace,
                "key": minted.secret.reveal(),
            }))
        }
    };
    Ok(Answer { value: value?, problem: None })
}

/// Whose a key is that was found somewhere.
async fn reveal_owner(auth: &Auth) -> Result<Answer, String> {
    let line = Zeroizing::new(read_line("the key")?);
    let found = auth.reveal_owner(line.trim()).await.map_err(brief)?;
    let Some(KeyOwner { key, workspace, owners }) = found else {
        let problem = Some("nobody has this key".to_owned());
        return Ok(Answer { value: json!({ "found": false }), problem });
    };
    let value = json!({
        "found": true,
        "key": {
            "id": key.id,
            "name": key.name,
            "scope": key.scope,
            "status": key.status(),
            "redacted": key.redacted(auth.environment()),
            "created_at": timestamp::format(key.created_at),
            "created_by": key.created_by,
            "last_used_at": key.last_used_at.map(timestamp::format),
            "last_used_ip": key.last_used_ip,
            "revoked_at": key.revoked_at.map(timestamp::format),
        },
        "workspace": { "id": workspace.id, "name": workspace.name },
        "owners": owners,
    });
    Ok(Answer { value, problem: None })
}

async fn audit(application: &Application, command: AuditCommand) -> Result<Answer, String> {
    let AuditCommand::Verify { workspace, checkpoints } = command;
    let app = application.app();
    let mut known: BTreeMap<WorkspaceId, Vec<Checkpoint>> = BTreeMap::new();
    for path in checkpoints {
        let at = path.display();
        let text = std::fs::read(&path).map_err(|error| format!("cannot read {at}: {error}"))?;
        let signed: SignedCheckpoint = serde_json::from_slice(&text)
            .map_err(|error| format!("{at} is no checkpoint: {error}"))?;
        let checkpoint =
            app.auth.verify_checkpoint(&signed).map_err(|error| format!("{at}: {error}"))?;
        known.entry(checkpoint.workspace_id).or_default().push(checkpoint);
    }
    let away = |error| format!("cannot read the audit log: {}", brief(error));
    let workspaces = match workspace {
        Some(workspace) => vec![workspace],
        None if known.is_empty() => app.store.audited_workspaces().await.map_err(away)?,
        None => known.keys().copied().collect(),
    };
    if let Some(other) = known.keys().find(|of| !workspaces.contains(of)) {
        return Err(format!("there is a checkpoint of {other}, which is not to be looked at"));
    }
    let (mut found, mut events) = (Vec::new(), 0);
    let began = app.env.clock.monotonic();
    for workspace in workspaces {
        let checkpoints = known.remove(&workspace).unwrap_or_default();
        let verified = verifier::verify(&app.store, workspace, &checkpoints).await.map_err(away)?;
        events += verified.events;
        found.push(verified);
    }
    let took = app.env.clock.monotonic().saturating_sub(began);
    let lines = found.iter().filter_map(|verified| {
        let problem = verified.problem?;
        Some(format!("{}: {problem}", verified.workspace_id))
    });
    let lines: Vec<_> = lines.collect();
    let value = json!({
        "verified": lines.is_empty(),
        "events": events,
        "seconds": (took.as_secs_f64() * 1000.0).round() / 1000.0,
        "workspaces": found,
    });
    Ok(Answer { value, problem: (!lines.is_empty()).then(|| lines.join("\ncall2me-auth: ")) })
}

async fn create_client(oauth: &OAuth, command: OAuthClientsCommand) -> Result<Value, String> {
    let OAuthClientsCommand::Create { workspace, name, redirect_uris, scope, resource, public } =
        command;
    let grant_types = if redirect_uris.is_empty() {
        vec![GrantType::ClientCredentials]
    } else {
        vec![GrantType::AuthorizationCode, GrantType::RefreshToken]
    };
    let auth_method = if public { AuthMethod::None } else { AuthMethod::ClientSecretBasic };
    let wanted =
        NewClient { name, redirect_uris, auth_method, grant_types, scope, client_uri: None };
    let made = oauth.create_client_as_operator(workspace, wanted, resource.as_deref()).await;
    let Registered { client, secret } = made.map_err(brief)?;
    let grants = client.grant_types.iter().map(|grant| grant.as_str());
    let mut answer = json!({
        "client_id": client.client_id(),
        "name": client.name,
        "workspace_id": workspace,
        "redirect_uris": client.redirect_uris,
        "grant_types": grants.collect::<Vec<_>>(),
        "scope": client.scope,
        "resource": client.resource,
    });
    if let Some(secret) = secret {
        answer["client_secret"] = secret.reveal().into();
    }
    Ok(answer)
}

async fn signing_keys(auth: &Auth, command: SigningKeysCommand) -> Result<Value, String> {
    match command {
        SigningKeysCommand::List => {
            let (keys, current) = auth.list_signing_keys().await.map_err(brief)?;
            let keys = keys.iter().map(|key| {
                let state = match key.retired_at {
                    Some(_) => "retired",
                    None if current.signs(&key.id.to_string()) => "signs",
                    None => "verifies",
                };
                json!({
                    "id": key.id,
                    "purpose": key.purpose.as_str(),
                    "state": state,
                    "created_at": timestamp::format(key.created_at),
                    "retired_at": key.retired_at.map(timestamp::format),
                })
            });
            Ok(json!({ "signing_keys": keys.collect::<Vec<_>>() }))
        }
        SigningKeysCommand::Rotate { checkpoints } => {
            let purpose =
                if checkpoints { KeyPurpose::Checkpoints } else { KeyPurpose::AccessTokens };
            Ok(json!({ "id": auth.rotate_signing_key(purpose).await.map_err(brief)? }))
        }
        SigningKeysCommand::Retire { id } => {
            auth.retire_signing_key(id).await.map_err(brief)?;
            Ok(json!({ "id": id, "state": "retired" }))
        }
    }
}

/// The password to set and, if it was made here, its text to print.
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

fn brief(error: impl std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
