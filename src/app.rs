//! The composition root: the parts are made here, put together, started and stopped.

use std::{
    future::{Future, Ready, pending, ready},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use secrecy::ExposeSecret;
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify, Semaphore, watch},
    task::JoinHandle,
    time::{interval, timeout},
};

use crate::{
    audit::{AuditLog, Retention, SealCounts, Sealer, WriterTask},
    auth::{Auth, caches::Caches, secrets::Secrets},
    coherence::{Fence, Lease, Node, NodeTask, Parts},
    config::Settings,
    env::Env,
    http::{self, Api, App, HttpSettings, LARGE_BODIES, middleware::Frame},
    idempotency::Idempotency,
    limit::Limits,
    mail::MailTask,
    metrics::{self, Metrics},
    oauth::OAuth,
    observe,
    resources::Resources,
    server::Server,
    store::{APP_ROLE, Store, StoreError, migrate},
};

/// How long the audit log may take to be written at the end.
const FLUSH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// How long sealing what is written may take at the end.
const SEAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// How often the log's partitions are looked after.
const PARTITIONS_EVERY: std::time::Duration = std::time::Duration::from_hours(1);

/// How often is dropped what gathers fast.
const PRUNE_EVERY: std::time::Duration = std::time::Duration::from_mins(1);

/// A service that is ready to serve.
pub struct Application {
    app: App,
    service: Frame,
    settings: Settings,
    store: Store,
    writer: WriterTask,
    node: NodeTask,
    chores: Vec<JoinHandle<()>>,
}

impl Application {
    /// Makes all parts: migrates where the login may, connects, loads the keys.
    ///
    /// # Errors
    /// With one line for the operator.
    pub async fn build(settings: Settings, env: Env) -> Result<Self, String> {
        // Kilobytes, once: not for every caller's stack.
        Box::pin(Self::assemble(settings, env)).await
    }

    async fn assemble(settings: Settings, env: Env) -> Result<Self, String> {
        prepare_schema(&settings).await?;
        let url = settings.database.url.expose_secret();
        let store = Store::connect(url, &settings.database.pool).await?;
        let away = |error| format!("cannot prepare the audit log: {error}");
        store.create_audit_partitions(env.clock.now()).await.map_err(away)?;
        let (audit, writer) = WriterTask::start(store.clone(), env.clone(), settings.audit);
        let metrics = Metrics::default();
        let node_id = env.new_uuid();
        let lease = Lease::default();
        let caches = Caches::start(&store, &env, &lease, settings.cache.keys);
        let acknowledged = Arc::new(Notify::new());
        let fence = Fence::new(store.clone(), Arc::clone(&acknowledged), &env, metrics.clone());
        let beliefs = Arc::new(caches.clone());
        let auth =
            Auth::new(&settings, store.clone(), env.clone(), audit.clone(), caches, fence, node_id)
                .await?;
        let limits = Limits::new(settings.rate_limit, settings.redis.as_ref(), &env)?;
        let (a, s, e) = (auth.clone(), store.clone(), env.clone());
        let oauth = OAuth::new(&settings, a, s, e, limits.clone())?;
        let public_url = &settings.server.public_url;
        let openapi = http::openapi::document(public_url)
            .to_json()
            .map_err(|error| format!("cannot write the OpenAPI document: {error}"))?;
        let chores = vec![
            tokio::spawn(limits.clone().keep_small()),
            tokio::spawn(look_after_tables(
                store.clone(),
                env.clone(),
                oauth.idle(),
                settings.audit.usage_retention,
            )),
            tokio::spawn(prune_often(store.clone(), env.clone())),
        ];
        let app = Arc::new(Api {
            auth,
            oauth,
            idempotency: Idempotency::new(
                store.clone(),
                env.clone(),
                Secrets::new(&settings.keys.encryption_key).idempotency_secrets()?,
            ),
            resources: Resources::new(store.clone(), env.clone(), settings.server.max_body_bytes),
            audit_log: AuditLog::new(store.clone(), &settings.database.pool),
            audit,
            seals: Arc::<SealCounts>::default(),
            stopping: watch::Sender::new(false),
            limits,
            store: store.clone(),
            env,
            settings: HttpSettings::from(&settings),
            last_ping: Mutex::default(),
            large_bodies: Semaphore::new(LARGE_BODIES),
            openapi,
            metrics,
            lease,
        });
        app.metrics.add(observe::State(Arc::downgrade(&app)));
        let service = http::service(&app);
        // Last: whoever gives up before is not waited for by other nodes.
        let length = settings.cache.lease;
        let mut node = Node::start(Parts {
            id: node_id,
            store: store.clone(),
            env: app.env.clone(),
            beliefs,
            diary: Arc::new(app.audit.clone()),
            lease: app.lease.clone(),
            lease_length: length,
            acknowledged,
            metrics: app.metrics.clone(),
        });
        // Without a lease it serves all the same, and asks PostgreSQL each time.
        node.has_joined(length).await;
        Ok(Self { app, service, settings, store, writer, node, chores })
    }

    /// What handlers share; for the command line, which does some of the same.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Serves until `stop` is ready, then finishes what is under way and writes the log.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), String> {
        // Here, and not where the parts are made: the command line, which limits nobody, makes them too.
        self.app.limits.connect().await;
        self.chores.push(tokio::spawn(self.app.limits.clone().keep_connected()));
        self.chores.push(tokio::spawn(self.app.auth.clone().keep_signing_keys()));
        self.chores.push(tokio::spawn(self.sealer().run()));
        if let Some(retention) = self.retention()? {
            self.chores.push(tokio::spawn(retention.run()));
        }
        let followers = self.app.audit_log.followers().clone();
        self.chores.push(tokio::spawn(followers.run(self.store.clone())));
        let service = self.service.clone();
        let answer = move |peer, request| service.clone().call(peer, request);
        let server = Server::new(&self.settings.server, answer);
        let (metrics, mail) = match self.begin().await {
            Ok(begun) => begun,
            Err(problem) => {
                self.shut_down().await;
                return Err(problem);
            }
        };
        let metrics = metrics.map(|listener| {
            let server = Server::new(&self.settings.server, metrics_service(&self.app.metrics));
            tokio::spawn(server.run(listener, pending()))
        });
        let app = Arc::clone(&self.app);
        let stop = async move {
            stop.await;
            // Answers that would go on for ever.
            app.stopping.send_replace(true);
        };
        let outcome = server.run(listener, stop).await;
        // Last of all: the end is worth watching too.
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        mail.finish().await;
        self.shut_down().await;
        outcome.map_err(|error| format!("cannot accept connections: {error}"))
    }

    /// What drops old events, if anything is to.
    fn retention(&self) -> Result<Option<Retention>, String> {
        let Some(kept_for) = self.settings.audit.retention else { return Ok(None) };
        let database = &self.settings.database;
        let owner = match &database.owner_url {
            Some(owner) => owner,
            None if migrate::login_name(database.url.expose_secret())? != APP_ROLE => &database.url,
            None => {
                return Err("audit.retention_days takes the owner of the tables: set \
                            database.owner_url"
                    .to_owned());
            }
        };
        let (store, env) = (self.store.clone(), self.app.env.clone());
        Ok(Some(Retention::new(store, env, owner.clone(), kept_for)))
    }

    fn sealer(&self) -> Sealer {
        Sealer::new(self.store.clone(), self.app.env.clone(), Arc::clone(&self.app.seals))
    }

    /// What a service does that the command line does not.
    async fn begin(&self) -> Result<(Option<TcpListener>, MailTask), String> {
        let metrics = self.metrics_address().await?;
        let mail = MailTask::start(
            self.store.clone(),
            self.app.env.clone(),
            &self.settings.mail,
            &self.settings.server.public_url,
            self.app.auth.token_key().clone(),
        )?;
        Ok((metrics, mail))
    }

    /// Where metrics are served, if anywhere.
    async fn metrics_address(&self) -> Result<Option<TcpListener>, String> {
        let Some(address) = self.settings.server.metrics_address else { return Ok(None) };
        let listener = TcpListener::bind(address).await;
        listener.map(Some).map_err(|error| format!("cannot serve metrics on {address}: {error}"))
    }

    /// Writes what waits and closes the connections.
    pub async fn shut_down(self) {
        for chore in &self.chores {
            chore.abort();
        }
        let mut sealer = self.sealer();
        drop((self.app, self.service));
        let is_all_written = self.writer.finish(FLUSH_TIMEOUT).await;
        // Others do it where this one cannot.
        timeout(SEAL_TIMEOUT, sealer.seal_all()).await.ok();
        // Behind the writer: until then other nodes do not know of all that happened here. Without a farewell where
        // they never will.
        self.node.finish(is_all_written).await;
        self.store.close().await;
    }
}

/// Serves the metrics, whatever is asked for.
fn metrics_service(
    metrics: &Metrics,
) -> impl Fn(IpAddr, Request) -> Ready<Response> + Clone + Send + Sync + 'static {
    let metrics = metrics.clone();
    move |_, _| {
        ready(match metrics.render() {
            Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        })
    }
}

/// Migrates with the owner's login, or with the only one if it is not the application's role.
async fn prepare_schema(settings: &Settings) -> Result<(), String> {
    let url = settings.database.url.expose_secret();
    match &settings.database.owner_url {
        Some(owner) => migrate::migrate(owner.expose_secret()).await,
        None if migrate::login_name(url)? != APP_ROLE => migrate::migrate(url).await,
        None if migrate::is_current(url).await? => Ok(()),
        None => Err(format!(
            "the database's schema is not of this version, and {APP_ROLE} may not change it: \
             set database.owner_url, or run `call2me-auth migrate` with it"
        )),
    }
}

async fn prune_often(store: Store, env: Env) {
    let mut ticks = interval(PRUNE_EVERY);
    loop {
        ticks.tick().await;
        if let Err(error) = store.prune_invalidations().await {
            tracing::warn!(%error, "cannot drop old invalidations");
        }
        if let Err(error) = store.prune_usage_minutes(env.clock.now()).await {
            tracing::warn!(%error, "cannot drop what keys were used for by the minute");
        }
    }
}

async fn look_after_tables(store: Store, env: Env, idle: Duration, usage: Duration) {
    let mut ticks = interval(PARTITIONS_EVERY);
    loop {
        ticks.tick().await;
        let now = env.clock.now();
        let tell = |what: &str, done: Result<(), StoreError>| {
            if let Err(error) = done {
                tracing::warn!(%error, "cannot {what}");
            }
        };
        tell("make partitions of the log ahead", store.create_audit_partitions(now).await);
        tell("drop counts of unknown credentials", store.prune_unknown_credential_counts().await);
        tell("drop tokens of links", store.prune_one_time_tokens(now).await);
        tell("drop counts of wrong passwords", store.prune_wrong_passwords(now).await);
        tell("drop challenges", store.prune_mfa_challenges(now).await);
        tell("drop passkeys' challenges", store.prune_passkey_challenges(now).await);
        tell("drop kept answers", store.prune_answers(now).await);
        tell("drop what keys were used for", store.prune_key_usage(now - usage).await);
        tell("drop invitations", store.prune_invitations(now).await);
        tell("drop old grants and unused OAuth clients", store.prune_oauth(now, idle).await);
    }
}
