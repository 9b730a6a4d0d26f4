//! The demo workspace: somebody to sign in as, a key, and a week of traffic to look at.

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
    http::Api,
    model::{
        api_key::{ApiKeySecret, Environment, NewApiKey},
        audit::{Action, Actor, NewEvent, RequestInfo},
        document::{Document, Kind},
        email::Email,
        fields::Fields,
        id::{AgentId, ApiKeyId, WorkspaceId},
        password::Password,
        scope::{Role, Scope},
        usage::RouteUse,
        user::User,
        wallet::Transaction,
        workspace::Workspace,
    },
    store::{self, Line, Store, StoreError, Tx},
};

const FILE: &str = "demo.toml";
const EMAIL: &str = "demo@call2me.example";

/// What the welcome prints.
pub(super) struct Demo {
    pub(super) email: String,
    pub(super) password: SecretString,
    pub(super) api_key: SecretString,
}

impl Demo {
    /// Makes the workspace on a fresh folder; on a used one makes sure that the key still works.
    pub(super) async fn prepare(
        application: &Application,
        folder: &DataFolder,
        env: &Env,
    ) -> Result<Self, String> {
        let app = application.app();
        let environment = app.auth.environment();
        let fresh_key = || ApiKeySecret::generate(environment, |bytes| env.entropy.fill(bytes));
        // The file comes first: if the rest is cut off, the next start finds the secrets here.
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
        let away = |error: StoreError| format!("cannot prepare the demo workspace: {error}");
        let email = Email::parse(&demo.email).map_err(|why| why.to_string())?;
        // None where the deployment's label has changed since.
        let key = ApiKeySecret::parse(demo.api_key.expose_secret(), environment).ok();
        let Some(account) = app.store.find_sign_in(&email).await.map_err(away)? else {
            let password = Password::new(demo.password.expose_secret().to_owned());
            let hash = app.auth.hash_password(&password).await.map_err(|why| why.to_string())?;
            let seed = Seed::new(app, env);
            let key = key.unwrap_or_else(fresh_key);
            demo.api_key = key.reveal().to_owned().into();
            demo.write(folder)?;
            seed.plant(&email, &hash, &key).await.map_err(away)?;
            return Ok(demo);
        };
        let known = match key {
            Some(key) => Line::new(app.store.clone())
                .find_api_keys(&[key.digest()])
                .await
                .map_err(away)?
                .pop(),
            None => None,
        };
        if known.is_none_or(|(_, key)| key.revoked) {
            let workspace = account.last_workspace_id.ok_or("the demo workspace is gone")?;
            let key = fresh_key();
            let seed = Seed::new(app, env);
            seed.replace_key(workspace, &key).await.map_err(away)?;
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
            value.map(str::to_owned).ok_or(format!("{FILE} lacks {name}"))
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

/// A clock that stands at a moment of the past, for ids that sort as if made then.
struct Past(OffsetDateTime);

impl Clock for Past {
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
    fn new(app: &'a Api, env: &'a Env) -> Self {
        let environment = app.auth.environment();
        Self { store: &app.store, env, environment, now: env.clock.now() }
    }

    /// As it was so long ago.
    fn ago(&self, ago: Duration) -> Env {
        Env { clock: Arc::new(Past(self.now - ago)), entropy: Arc::clone(&self.env.entropy) }
    }

    async fn plant(
        &self,
        email: &Email,
        hash: &SecretString,
        key: &ApiKeySecret,
    ) -> Result<(), StoreError> {
        let founded = self.ago(Duration::days(90));
        let workspace = Workspace {
            id: founded.new_id(),
            name: "Acme Voice".to_owned(),
            rate_limit_per_minute: None,
            require_second_factor: false,
            created_at: founded.clock.now(),
        };
        let owner = person(&founded, email, "Dana Demo");
        let mut tx = self.store.begin(workspace.id, Some(owner.id)).await?;
        store::users::insert(&mut tx, &owner, email, hash, workspace.id).await?;
        store::workspaces::insert(&mut tx, &workspace).await?;
        let joined = owner.created_at;
        store::members::insert(&mut tx, workspace.id, owner.id, Role::Owner, joined).await?;
        let agents = self.resources(&mut tx, workspace.id).await?;
        self.calls(&mut tx, workspace.id, &agents).await?;
        self.wallet(&mut tx, workspace.id).await?;
        self.key(&mut tx, workspace.id, &owner, "demo", Scope::Admin, key, 0).await?;
        let mut users = Vec::new();
        for (name, scope, days) in [
            ("zapier-production", Scope::Write, 60),
            ("reporting", Scope::ReadOnly, 45),
            ("legacy-crm", Scope::Write, 88),
        ] {
            // Nobody ever sees these.
            let secret =
                ApiKeySecret::generate(self.environment, |bytes| self.env.entropy.fill(bytes));
            let id = self.key(&mut tx, workspace.id, &owner, name, scope, &secret, days).await?;
            users.push((id, name));
        }
        let (legacy, _) = users[2];
        let retired = self.now - Duration::days(20);
        let by = owner.id.to_string();
        store::api_keys::revoke(&mut tx, workspace.id, legacy, retired, Some(&by)).await?;
        self.colleagues(&mut tx, workspace.id, hash).await?;
        tx.commit().await?;
        Line::new(self.store.clone())
            .append_audit_events(self.traffic(workspace.id, &users[..2]).iter(), false)
            .await
    }

    async fn replace_key(
        &self,
        workspace: WorkspaceId,
        secret: &ApiKeySecret,
    ) -> Result<(), StoreError> {
        let mut tx = self.store.begin(workspace, None).await?;
        let key = self.new_key(None, "demo", Scope::Admin, secret, 0);
        store::api_keys::insert(&mut tx, workspace, &key).await?;
        let event =
            NewEvent::new(self.env.new_id(), workspace, Action::ApiKeyCreated, Actor::system())
                .on(key.id, key.name);
        store::audit::insert(&mut tx, workspace, &event).await?;
        tx.commit().await
    }

    async fn colleagues(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        hash: &SecretString,
    ) -> Result<(), StoreError> {
        for (address, name, role, days) in [
            ("priya@call2me.example", "Priya Nair", Role::Member, 80),
            ("omar@call2me.example", "Omar Haddad", Role::Viewer, 30),
        ] {
            let Ok(email) = Email::parse(address) else { continue };
            let then = self.ago(Duration::days(days));
            let user = person(&then, &email, name);
            tx.act_for(user.id).await?;
            store::users::insert(tx, &user, &email, hash, workspace).await?;
            store::members::insert(tx, workspace, user.id, role, user.created_at).await?;
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
        let then = self.ago(Duration::days(days));
        NewApiKey {
            id: then.new_id(),
            name: name.to_owned(),
            description: None,
            scope,
            digest: secret.digest(),
            shown: secret.shown(),
            allowed_ips: Vec::new(),
            created_at: then.clock.now(),
            created_by: owner.map(|owner| owner.id.to_string()),
            creator: owner.map(|owner| owner.id),
            rotated_from: None,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a row of the table above, spelt out")]
    async fn key(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        owner: &User,
        name: &str,
        scope: Scope,
        secret: &ApiKeySecret,
        days: i64,
    ) -> Result<ApiKeyId, StoreError> {
        let key = self.new_key(Some(owner), name, scope, secret, days);
        store::api_keys::insert(tx, workspace, &key).await?;
        // The partitions of the log do not reach back for months.
        let told = self.ago(Duration::days(days.min(20)));
        let event =
            NewEvent::new(told.new_id(), workspace, Action::ApiKeyCreated, Actor::user(owner))
                .on(key.id, key.name)
                .with(json!({ "scope": scope }));
        store::audit::insert(tx, workspace, &event).await?;
        Ok(key.id)
    }

    async fn resources(
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
            let id = self.document(tx, workspace, Kind::Agent, None, body, days * 24).await?;
            agents.push(AgentId::from(id));
        }
        let knowledge = json!({
            "knowledge_base_name": "Opening hours and prices",
            "name": "Opening hours and prices",
            "knowledge_base_texts": [{ "title": "Hours", "text": "Monday to Friday, 9 to 18." }],
            "knowledge_base_urls": ["https://acme.example/prices"],
            "sources_count": 2,
        });
        self.document(tx, workspace, Kind::KnowledgeBase, None, knowledge, 84 * 24).await?;
        let campaign = json!({
            "name": "Spring reminders",
            "agent_id": agents[1],
            "from_number": "+14155550199",
            "status": "draft",
        });
        self.document(tx, workspace, Kind::Campaign, Some(agents[1]), campaign, 6 * 24).await?;
        Ok(agents)
    }

    async fn calls(
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
            self.document(tx, workspace, Kind::Call, Some(agent), body, 1 + number * 7).await?;
        }
        Ok(())
    }

    async fn document(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        kind: Kind,
        agent_id: Option<AgentId>,
        body: Value,
        hours: i64,
    ) -> Result<uuid::Uuid, StoreError> {
        let then = self.ago(Duration::hours(hours));
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

    async fn wallet(&self, tx: &mut Tx, workspace: WorkspaceId) -> Result<(), StoreError> {
        for (days, kind, amount_cents, description) in [
            (88, "top_up", 10_000, "Card ending in 4242"),
            (60, "charge", -3_412, "Calls in the first month"),
            (30, "charge", -4_127, "Calls in the second month"),
            (12, "top_up", 5_000, "Card ending in 4242"),
            (1, "charge", -1_230, "Calls of the week"),
        ] {
            let then = self.ago(Duration::days(days));
            let transaction = Transaction {
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

    /// A week of calls of the API by the keys.
    fn traffic(&self, workspace: WorkspaceId, keys: &[(ApiKeyId, &str)]) -> Vec<NewEvent> {
        let clients = ["Zapier", "python-httpx/0.27.0"];
        let requests = [
            ("GET", "/v1/agents", "agents", Scope::ReadOnly, 200),
            ("POST", "/v1/calls", "calls", Scope::Write, 201),
            ("GET", "/v1/calls", "calls", Scope::ReadOnly, 200),
            ("POST", "/v1/calls", "calls", Scope::Write, 422),
            ("GET", "/v1/wallet/balance", "wallet", Scope::Admin, 403),
        ];
        let event = |number: i64| {
            let place = usize::try_from(number).unwrap_or(0);
            let then = self.ago(Duration::minutes(3 + number * 25));
            let (id, name) = keys[place % keys.len()];
            // Mostly reads; now and then something is refused.
            let kind = [0, 1, 2, 0, 2, 0, 1, 0, 2, 0, 3, 0, 2, 4][place % 14];
            let (method, path, group, scope, status) = requests[kind];
            let request = RequestInfo {
                id: then.new_id(),
                method: method.into(),
                path: path.to_owned(),
                ip: Ipv4Addr::new(203, 0, 113, 10 + u8::try_from(place % 3).unwrap_or(0)).into(),
                user_agent: Some(clients[place % clients.len()].to_owned()),
                began: std::time::Duration::ZERO,
            };
            let took = std::time::Duration::from_micros(400 + (number.unsigned_abs() * 97) % 2_000);
            let actor = Actor::api_key(id, &name.into());
            let mut event = NewEvent::new(then.new_id(), workspace, Action::Request, actor)
                .in_request(&Arc::new(request), status, took);
            event.route = Some(RouteUse { group, scope });
            event
        };
        (0..400).map(event).collect()
    }
}

fn person(env: &Env, email: &Email, name: &str) -> User {
    User {
        id: env.new_id(),
        email: email.as_str().to_owned(),
        full_name: Some(name.to_owned()),
        profile: Fields::default(),
        created_at: env.clock.now(),
        email_verified_at: None,
    }
}
