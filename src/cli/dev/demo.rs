//! The demo workspace: a user to sign in as, API keys, and a week of traffic.

use std::{net::Ipv4Addr, sync::Arc};

use data_encoding::BASE64URL_NOPAD;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use toml::Table;

use super::folder::DataFolder;
use crate::{
    app::Application,
    env::{Clock, Env},
    http::AppState,
    model::{
        api_key::{ApiKeySecret, Environment, KeyStatus, NewApiKey},
        audit::{Action, Actor, NewEvent, RequestInfo},
        document::{Document, DocumentKind},
        email::Email,
        fields::Fields,
        id::{AgentId, ApiKeyId, WorkspaceId},
        invitation::Invitation,
        password::Password,
        scope::{Role, Scope},
        usage::{KeyUse, RouteUse},
        user::User,
        wallet::WalletTransaction,
        workspace::Workspace,
    },
    store::{self, AdminTx, Audited, DedicatedConnection, Store, StoreError, Tx},
};

const FILE: &str = "demo.toml";
const EMAIL: &str = "demo@call2me.example";

/// The reason for changes without the rights of an administrator.
const DEMO: &str = "the demo workspace is set up before the service starts";

/// The demo credentials, for the welcome message.
pub(super) struct Demo {
    pub(super) email: String,
    pub(super) password: SecretString,
    pub(super) api_key: SecretString,
}

impl Demo {
    /// Creates the workspace in a new folder. In an existing one, replaces the key if it does not
    /// work any more.
    pub(super) async fn prepare(
        application: &Application,
        folder: &DataFolder,
        env: &Env,
    ) -> Result<Self, String> {
        let app = application.app();
        let environment = app.auth.api_keys.environment();
        let fresh_key = || ApiKeySecret::generate(environment, |bytes| env.entropy.fill(bytes));
        // Write the file first: if the process is killed before the rest, the next start uses the
        // same secrets.
        let mut demo = if let Some(demo) = Self::read(folder)? {
            demo
        } else {
            let bytes: [u8; 12] = env.entropy.bytes();
            let password = BASE64URL_NOPAD.encode(&bytes).into();
            let api_key = fresh_key().reveal().to_owned().into();
            let demo = Self { email: EMAIL.to_owned(), password, api_key };
            demo.write(folder)?;
            demo
        };
        let describe = |error: StoreError| format!("cannot prepare the demo workspace: {error}");
        let email = Email::parse(&demo.email).map_err(|error| error.to_string())?;
        // `None` if the environment label of keys was changed since.
        let key = ApiKeySecret::parse(demo.api_key.expose_secret(), environment).ok();
        let Some(account) = app.store.find_account(&email).await.map_err(describe)? else {
            let password = Password::new(demo.password.expose_secret().to_owned());
            let hash =
                app.auth.passwords.hash(&password).await.map_err(|error| error.to_string())?;
            let seed = Seed::new(app, env);
            let key = key.unwrap_or_else(fresh_key);
            demo.api_key = key.reveal().to_owned().into();
            demo.write(folder)?;
            seed.insert_workspace(&email, &hash, &key).await.map_err(describe)?;
            return Ok(demo);
        };
        let record = match key {
            Some(key) => DedicatedConnection::new(app.store.clone())
                .find_api_keys(&[key.digest()])
                .await
                .map_err(describe)?
                .pop(),
            None => None,
        };
        if record.is_none_or(|(_, key)| key.status != KeyStatus::Active) {
            let workspace = account.last_workspace_id.ok_or("the demo workspace was deleted")?;
            let key = fresh_key();
            let seed = Seed::new(app, env);
            seed.replace_key(workspace, &key).await.map_err(describe)?;
            demo.api_key = key.reveal().to_owned().into();
            demo.write(folder)?;
        }
        Ok(demo)
    }

    fn read(folder: &DataFolder) -> Result<Option<Self>, String> {
        let Some(text) = folder.read(FILE)? else { return Ok(None) };
        let table: Table = text.parse().map_err(|_| format!("{FILE} is damaged"))?;
        let field = |name: &str| {
            let value = table.get(name).and_then(toml::Value::as_str);
            value.map(str::to_owned).ok_or(format!("{FILE} has no {name}"))
        };
        let (email, password) = (field("email")?, field("password")?.into());
        Ok(Some(Self { email, password, api_key: field("api_key")?.into() }))
    }

    fn write(&self, folder: &DataFolder) -> Result<(), String> {
        let mut table = Table::new();
        table.insert("email".to_owned(), self.email.clone().into());
        table.insert("password".to_owned(), self.password.expose_secret().into());
        table.insert("api_key".to_owned(), self.api_key.expose_secret().into());
        folder.write(FILE, &table.to_string())
    }
}

/// A clock that stands still at a time in the past, for ids that sort as if they were created then.
struct FixedClock(OffsetDateTime);

impl Clock for FixedClock {
    fn now(&self) -> OffsetDateTime {
        self.0
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

struct Seed<'a> {
    store: &'a Store,
    env: &'a Env,
    environment: &'a Environment,
    now: OffsetDateTime,
}

impl<'a> Seed<'a> {
    fn new(app: &'a AppState, env: &'a Env) -> Self {
        let environment = app.auth.api_keys.environment();
        Self { store: &app.store, env, environment, now: env.clock.now() }
    }

    /// An environment with a clock that stands at this time before now.
    fn env_before_now(&self, ago: Duration) -> Env {
        Env { clock: Arc::new(FixedClock(self.now - ago)), ..self.env.clone() }
    }

    async fn insert_workspace(
        &self,
        email: &Email,
        hash: &SecretString,
        key: &ApiKeySecret,
    ) -> Result<(), StoreError> {
        let created = self.env_before_now(Duration::days(90));
        let workspace = Workspace {
            id: created.new_id(),
            name: "Acme Voice".to_owned(),
            rate_limit_per_minute: None,
            require_second_factor: false,
            created_at: created.clock.now(),
        };
        let owner = new_user(&created, email, "Dana Demo");
        let mut tx = self.store.begin_joining(workspace.id, owner.id).await?;
        store::users::insert(&mut tx, &owner, email, hash, workspace.id).await?;
        // Invitations and passkeys require it.
        store::users::set_email_verified(&mut tx, owner.id, owner.created_at).await?;
        store::workspaces::create(&mut tx, &workspace).await?;
        let mut admin = AdminTx::exempt(&mut tx, DEMO);
        let agents = self.insert_resources(&mut admin, workspace.id).await?;
        self.insert_calls(&mut admin, workspace.id, &agents).await?;
        self.insert_wallet(&mut admin, workspace.id).await?;
        let (_, audited) =
            self.insert_key(&mut admin, workspace.id, &owner, "demo", Scope::Admin, key, 0).await?;
        let mut keys = Vec::new();
        for (name, scope, days) in [
            ("zapier-production", Scope::Write, 60),
            ("reporting", Scope::ReadOnly, 45),
            ("legacy-crm", Scope::Write, 88),
        ] {
            // These secrets are never shown.
            let secret =
                ApiKeySecret::generate(self.environment, |bytes| self.env.entropy.fill(bytes));
            let (id, _) = self
                .insert_key(&mut admin, workspace.id, &owner, name, scope, &secret, days)
                .await?;
            keys.push((id, name));
        }
        let (legacy, _) = keys[2];
        let revoked_at = self.now - Duration::days(20);
        let by = owner.id.to_string();
        store::api_keys::revoke(&mut admin, workspace.id, legacy, revoked_at, Some(&by)).await?;
        self.insert_members(&mut admin, workspace.id, &owner, hash).await?;
        tx.commit(audited).await?.unfenced("the service has not started");
        DedicatedConnection::new(self.store.clone())
            .append_audit_events(self.traffic_events(workspace.id, &keys[..2]).iter(), false)
            .await
    }

    async fn replace_key(
        &self,
        workspace: WorkspaceId,
        secret: &ApiKeySecret,
    ) -> Result<(), StoreError> {
        let mut tx = self.store.begin(workspace, None).await?;
        let key = self.new_key(None, "demo", Scope::Admin, secret, 0);
        store::api_keys::insert(&mut AdminTx::exempt(&mut tx, DEMO), workspace, &key).await?;
        let event =
            NewEvent::new(self.env.new_id(), workspace, Action::ApiKeyCreated, Actor::system())
                .with_target(key.id, key.name);
        let audited = store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit(audited).await?.unfenced("a new key, which no node has cached");
        Ok(())
    }

    async fn insert_members(
        &self,
        tx: &mut AdminTx<'_>,
        workspace: WorkspaceId,
        owner: &User,
        hash: &SecretString,
    ) -> Result<(), StoreError> {
        for (address, name, role, days) in [
            ("priya@call2me.example", "Priya Nair", Role::Member, 80),
            ("omar@call2me.example", "Omar Haddad", Role::Viewer, 30),
        ] {
            let Ok(email) = Email::parse(address) else { continue };
            let then = self.env_before_now(Duration::days(days));
            let user = new_user(&then, &email, name);
            tx.set_joining(workspace, user.id).await?;
            store::users::insert(tx, &user, &email, hash, workspace).await?;
            let invitation = Invitation {
                id: then.new_id(),
                email: user.email,
                role,
                invited_by: owner.id.to_string(),
                created_at: user.created_at,
                expires_at: user.created_at + Duration::days(7),
            };
            store::invitations::insert(tx, workspace, &invitation, &email, None).await?;
            store::invitations::accept(tx, &invitation, user.created_at).await?;
        }
        Ok(())
    }

    fn new_key(
        &self,
        owner: Option<&User>,
        name: &str,
        scope: Scope,
        secret: &ApiKeySecret,
        days: i64,
    ) -> NewApiKey {
        let then = self.env_before_now(Duration::days(days));
        NewApiKey {
            id: then.new_id(),
            name: name.to_owned(),
            description: None,
            scope,
            digest: secret.digest(),
            display_ends: secret.display_ends(),
            allowed_ips: Vec::new(),
            created_at: then.clock.now(),
            created_by: owner.map(|owner| owner.id.to_string()),
            creator: owner.map(|owner| owner.id),
            creator_key: None,
            rotated_from: None,
            rate_limit_per_minute: None,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a row of the table above")]
    async fn insert_key(
        &self,
        tx: &mut AdminTx<'_>,
        workspace: WorkspaceId,
        owner: &User,
        name: &str,
        scope: Scope,
        secret: &ApiKeySecret,
        days: i64,
    ) -> Result<(ApiKeyId, Audited), StoreError> {
        let key = self.new_key(Some(owner), name, scope, secret, days);
        store::api_keys::insert(tx, workspace, &key).await?;
        // The partitions of the audit log do not reach back for months.
        let event_env = self.env_before_now(Duration::days(days.min(20)));
        let event =
            NewEvent::new(event_env.new_id(), workspace, Action::ApiKeyCreated, Actor::user(owner))
                .with_target(key.id, key.name)
                .with_metadata(json!({ "scope": scope }));
        let audited = store::audit::insert(tx, workspace, &event).await?;
        Ok((key.id, audited))
    }

    async fn insert_resources(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
    ) -> Result<Vec<AgentId>, StoreError> {
        let mut agents = Vec::new();
        for (name, language, days) in [
            ("Front desk", "en-US", 85),
            ("Randevu asistanı", "tr-TR", 60),
            ("Delivery updates", "de-DE", 12),
        ] {
            let body = json!({
                "agent_name": name,
                "language": language,
                "voice_id": "elevenlabs-CFzl8WvPQ92EKMBs2hpS",
                "response_engine": { "type": "call2me-llm", "llm_model": "openrouter/auto" },
                "status": "active",
            });
            let id = self
                .insert_document(tx, workspace, DocumentKind::Agent, None, body, days * 24)
                .await?;
            agents.push(AgentId::from(id));
        }
        let knowledge = json!({
            "knowledge_base_name": "Opening hours and prices",
            "name": "Opening hours and prices",
            "knowledge_base_texts": [{ "title": "Hours", "text": "Monday to Friday, 9 to 18." }],
            "knowledge_base_urls": ["https://acme.example/prices"],
            "sources_count": 2,
        });
        self.insert_document(tx, workspace, DocumentKind::KnowledgeBase, None, knowledge, 84 * 24)
            .await?;
        let campaign = json!({
            "name": "Spring reminders",
            "agent_id": agents[1],
            "from_number": "+14155550199",
            "status": "draft",
        });
        self.insert_document(
            tx,
            workspace,
            DocumentKind::Campaign,
            Some(agents[1]),
            campaign,
            6 * 24,
        )
        .await?;
        Ok(agents)
    }

    async fn insert_calls(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        agents: &[AgentId],
    ) -> Result<(), StoreError> {
        for number in 0_i64..24 {
            let agent = agents[usize::try_from(number).unwrap_or(0) % agents.len()];
            let body = json!({
                "agent_id": agent,
                "to_number": format!("+1415555{:04}", 100 + number * 7),
                "from_number": "+14155550199",
                "direction": "outbound",
                "call_status": "ended",
                "duration_ms": 40_000 + number * 7_300,
                "topic": "Appointment reminder",
            });
            self.insert_document(
                tx,
                workspace,
                DocumentKind::Call,
                Some(agent),
                body,
                1 + number * 7,
            )
            .await?;
        }
        Ok(())
    }

    async fn insert_document(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        kind: DocumentKind,
        agent_id: Option<AgentId>,
        body: Value,
        hours: i64,
    ) -> Result<uuid::Uuid, StoreError> {
        let then = self.env_before_now(Duration::hours(hours));
        let at = then.clock.now();
        let document = Document {
            id: then.new_uuid(),
            agent_id,
            body: body.to_string(),
            created_at: at,
            updated_at: at,
        };
        store::documents::insert(tx, workspace, kind, &document).await?;
        Ok(document.id)
    }

    async fn insert_wallet(&self, tx: &mut Tx, workspace: WorkspaceId) -> Result<(), StoreError> {
        for (days, kind, amount_cents, description) in [
            (88, "top_up", 10_000, "Card ending in 4242"),
            (60, "charge", -3_412, "Calls in the first month"),
            (30, "charge", -4_127, "Calls in the second month"),
            (12, "top_up", 5_000, "Card ending in 4242"),
            (1, "charge", -1_230, "Calls of the week"),
        ] {
            let then = self.env_before_now(Duration::days(days));
            let transaction = WalletTransaction {
                id: then.new_id(),
                kind: kind.to_owned(),
                amount_cents,
                description: description.to_owned(),
                created_at: then.clock.now(),
            };
            store::wallet::insert(tx, workspace, &transaction).await?;
        }
        Ok(())
    }

    /// The audit events of a week of API requests by these keys.
    fn traffic_events(&self, workspace: WorkspaceId, keys: &[(ApiKeyId, &str)]) -> Vec<NewEvent> {
        let clients = ["Zapier", "python-httpx/0.27.0"];
        let requests = [
            ("GET", "/v1/agents", "agents", Scope::ReadOnly, 200),
            ("POST", "/v1/calls", "calls", Scope::Write, 201),
            ("GET", "/v1/calls", "calls", Scope::ReadOnly, 200),
            ("POST", "/v1/calls", "calls", Scope::Write, 422),
            ("GET", "/v1/wallet/balance", "wallet", Scope::Admin, 403),
        ];
        let event = |number: i64| {
            let index = usize::try_from(number).unwrap_or(0);
            let then = self.env_before_now(Duration::minutes(3 + number * 25));
            let (id, name) = keys[index % keys.len()];
            // Mostly reads, and a few rejected requests. The read-only key has the odd numbers.
            let kind = [0, 0, 1, 0, 2, 0, 1, 0, 2, 0, 3, 0, 2, 4][index % 14];
            let (method, path, group, scope, status) = requests[kind];
            let request = RequestInfo {
                id: then.new_id(),
                method: method.into(),
                path: path.to_owned(),
                ip: Ipv4Addr::new(203, 0, 113, 10 + u8::try_from(index % 3).unwrap_or(0)).into(),
                user_agent: Some(clients[index % clients.len()].to_owned()),
                started_at: std::time::Duration::ZERO,
            };
            let latency =
                std::time::Duration::from_micros(400 + (number.unsigned_abs() * 97) % 2_000);
            let actor = Actor::api_key(id, &name.into());
            let mut event = NewEvent::new(then.new_id(), workspace, Action::Request, actor)
                .with_request(&Arc::new(request), status, latency);
            event.key_use = KeyUse::Request(RouteUse { group, scope });
            event
        };
        (0..400).map(event).collect()
    }
}

fn new_user(env: &Env, email: &Email, name: &str) -> User {
    User {
        id: env.new_id(),
        email: email.as_str().to_owned(),
        full_name: Some(name.to_owned()),
        profile: Fields::default(),
        created_at: env.clock.now(),
        email_verified_at: None,
        reclaimable_until: None,
    }
}
