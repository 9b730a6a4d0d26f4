//! The composition root: creates the components, connects them, starts and stops them.
//!
//! The order of shutdown matters: requests finish, then the audit events are written and sealed,
//! then the node deregisters. Until then other nodes must wait for its lease.

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
    audit::{AuditLog, AuditWriterTask, Retention, SealCounts, Sealer},
    auth::{Auth, caches::CredentialCaches, master_key::MasterKey},
    cache_invalidation::{Fence, Lease, Node, NodeDependencies, NodeTask},
    config::Settings,
    env::Env,
    http::{
        self, App, AppState, HttpSettings, MAX_CONCURRENT_LARGE_BODIES, middleware::HttpService,
    },
    idempotency::Idempotency,
    limit::Limits,
    mail::MailTask,
    metrics::{self, Metrics},
    oauth::OAuth,
    resources::Resources,
    server::Server,
    service_metrics,
    store::{APP_ROLE, Store, StoreError, migrate},
};

/// Timeout of writing queued audit events at shutdown.
const FLUSH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// Timeout of sealing written audit events at shutdown.
const SEAL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// Interval of maintenance: partitions of the audit log, and expired rows.
const MAINTENANCE_INTERVAL: std::time::Duration = std::time::Duration::from_hours(1);

/// Interval of pruning tables that grow fast.
const PRUNE_INTERVAL: std::time::Duration = std::time::Duration::from_mins(1);

/// A service with all its components, ready to serve.
pub struct Application {
    app: App,
    service: HttpService,
    settings: Settings,
    store: Store,
    writer: AuditWriterTask,
    node: NodeTask,
    background_tasks: Vec<JoinHandle<()>>,
}

impl Application {
    /// Creates all components: migrates the database if its role may, connects, and loads the
    /// signing keys.
    ///
    /// # Errors
    /// A message of one line for the operator.
    pub async fn build(settings: Settings, env: Env) -> Result<Self, String> {
        // Boxed: the future has several kilobytes, which every caller would have to hold.
        Box::pin(Self::assemble(settings, env)).await
    }

    async fn assemble(settings: Settings, env: Env) -> Result<Self, String> {
        prepare_schema(&settings).await?;
        let url = settings.database.url.expose_secret();
        let store = Store::connect(url, &settings.database.pool).await?;
        let describe = |error| format!("cannot prepare the audit log: {error}");
        store.create_audit_partitions(env.clock.now()).await.map_err(describe)?;
        let (audit, writer) = AuditWriterTask::start(store.clone(), env.clone(), settings.audit);
        let metrics = Metrics::default();
        let node_id = env.new_uuid();
        let lease = Lease::default();
        let caches = CredentialCaches::start(&store, &env, &lease, settings.cache.max_keys);
        let acknowledged = Arc::new(Notify::new());
        let fence = Fence::new(store.clone(), Arc::clone(&acknowledged), &env, metrics.clone());
        let invalidation_sink = Arc::new(caches.clone());
        let auth =
            Auth::new(&settings, store.clone(), env.clone(), audit.clone(), caches, fence, node_id)
                .await?;
        let limits = Limits::new(settings.rate_limit, settings.redis.as_ref(), &env)?;
        let oauth = OAuth::new(&settings, &auth, &limits)?;
        let public_url = &settings.server.public_url;
        let openapi = http::openapi::build_document(public_url)
            .to_json()
            .map_err(|error| format!("cannot create the OpenAPI document: {error}"))?;
        let background_tasks = vec![
            tokio::spawn(limits.clone().run_eviction()),
            tokio::spawn(run_maintenance(
                store.clone(),
                env.clone(),
                oauth.grants.idle_timeout(),
                settings.audit.usage_retention,
            )),
            tokio::spawn(run_frequent_pruning(store.clone(), env.clone())),
        ];
        let app = Arc::new(AppState {
            auth,
            oauth,
            idempotency: Idempotency::new(
                store.clone(),
                env.clone(),
                MasterKey::new(&settings.keys.encryption_key).idempotency_secrets()?,
            ),
            resources: Resources::new(store.clone(), env.clone(), settings.server.max_body_bytes),
            audit_log: AuditLog::new(store.clone(), &settings.database.pool),
            audit,
            seal_counts: Arc::<SealCounts>::default(),
            shutdown: watch::Sender::new(false),
            limits,
            store: store.clone(),
            env,
            settings: HttpSettings::from(&settings),
            last_database_ping: Mutex::default(),
            large_body_permits: Semaphore::new(MAX_CONCURRENT_LARGE_BODIES),
            openapi,
            metrics,
            lease,
        });
        app.metrics.register_collector(service_metrics::ServiceCollector(Arc::downgrade(&app)));
        let service = http::build_service(&app);
        // Last: if an earlier step fails, no other node waits for the lease of this one.
        let lease_duration = settings.cache.lease_duration;
        let mut node = Node::start(NodeDependencies {
            id: node_id,
            store: store.clone(),
            env: app.env.clone(),
            invalidation_sink,
            audit_watermark: Arc::new(app.audit.clone()),
            lease: app.lease.clone(),
            lease_duration,
            acknowledged,
            metrics: app.metrics.clone(),
        });
        // Without a lease the node serves anyway, and reads every credential from PostgreSQL.
        node.wait_until_joined(lease_duration).await;
        Ok(Self { app, service, settings, store, writer, node, background_tasks })
    }

    /// Returns the state that handlers share, for commands that use it without HTTP.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Serves until `stop` completes, then shuts down gracefully: requests in flight finish and
    /// queued audit events are written.
    ///
    /// # Errors
    /// A message for the operator if a component cannot start, or the listener fails.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), String> {
        // Not in `build`: admin commands build the components too, but need no rate limits and none
        // of these tasks.
        self.app.limits.connect().await;
        self.background_tasks.push(tokio::spawn(self.app.limits.clone().keep_connected()));
        self.background_tasks
            .push(tokio::spawn(Arc::clone(&self.app.auth.signing_keys).run_reload()));
        self.background_tasks.push(tokio::spawn(self.sealer().run()));
        if let Some(retention) = self.retention()? {
            self.background_tasks.push(tokio::spawn(retention.run()));
        }
        let followers = self.app.audit_log.subscriptions().clone();
        self.background_tasks.push(tokio::spawn(followers.run(self.store.clone())));
        let service = self.service.clone();
        let handle = move |peer, request| service.clone().call(peer, request);
        let server = Server::new(&self.settings.server, handle);
        let (metrics, mail) = match self.start_metrics_and_mail().await {
            Ok(started) => started,
            Err(error) => {
                self.shut_down().await;
                return Err(error);
            }
        };
        let metrics = metrics.map(|listener| {
            let server = Server::new(&self.settings.server, metrics_service(&self.app.metrics));
            tokio::spawn(server.run(listener, pending()))
        });
        let app = Arc::clone(&self.app);
        let stop = async move {
            stop.await;
            // Ends streamed responses, which would never end by themselves.
            app.shutdown.send_replace(true);
        };
        let outcome = server.run(listener, stop).await;
        // After the API, so that the shutdown can be monitored too.
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        mail.finish().await;
        self.shut_down().await;
        outcome.map_err(|error| format!("cannot accept connections: {error}"))
    }

    /// The task that deletes old audit events, if `audit.retention_days` is set.
    fn retention(&self) -> Result<Option<Retention>, String> {
        let Some(retention) = self.settings.audit.retention else { return Ok(None) };
        let database = &self.settings.database;
        let owner = match &database.owner_url {
            Some(owner) => owner,
            None if migrate::login_name(database.url.expose_secret())? != APP_ROLE => &database.url,
            None => {
                return Err("audit.retention_days requires the role that owns the tables: set \
                            database.owner_url"
                    .to_owned());
            }
        };
        let (store, env) = (self.store.clone(), self.app.env.clone());
        Ok(Some(Retention::new(store, env, owner.clone(), retention)))
    }

    fn sealer(&self) -> Sealer {
        Sealer::new(self.store.clone(), self.app.env.clone(), Arc::clone(&self.app.seal_counts))
    }

    /// Binds the metrics listener and starts sending email.
    async fn start_metrics_and_mail(&self) -> Result<(Option<TcpListener>, MailTask), String> {
        let metrics = self.bind_metrics().await?;
        let mail = MailTask::start(
            self.store.clone(),
            self.app.env.clone(),
            &self.settings.mail,
            &self.settings.server.public_url,
            self.app.auth.context.token_key.clone(),
        )?;
        Ok((metrics, mail))
    }

    /// Binds `server.metrics_address`, if it is set.
    async fn bind_metrics(&self) -> Result<Option<TcpListener>, String> {
        let Some(address) = self.settings.server.metrics_address else { return Ok(None) };
        let listener = TcpListener::bind(address).await;
        listener.map(Some).map_err(|error| format!("cannot serve metrics on {address}: {error}"))
    }

    /// Stops background tasks, writes queued audit events, deregisters the node and closes the
    /// database connections.
    pub async fn shut_down(self) {
        for task in &self.background_tasks {
            task.abort();
        }
        let mut sealer = self.sealer();
        drop((self.app, self.service));
        let has_written_all = self.writer.finish(FLUSH_TIMEOUT).await;
        // If this times out, another node seals the events.
        timeout(SEAL_TIMEOUT, sealer.seal_all()).await.ok();
        // After the writer: until then the events of this node are not all visible to others. If
        // some were lost, the node does not deregister, so that others treat it as crashed.
        self.node.finish(has_written_all).await;
        self.store.close().await;
    }
}

/// Returns the metrics for every path.
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

/// Migrates with the role of `database.owner_url`; without it, with that of `database.url` unless
/// it is the application's role, which may not change the schema.
async fn prepare_schema(settings: &Settings) -> Result<(), String> {
    let url = settings.database.url.expose_secret();
    match &settings.database.owner_url {
        Some(owner) => migrate::migrate(owner.expose_secret()).await,
        None if migrate::login_name(url)? != APP_ROLE => migrate::migrate(url).await,
        None if migrate::is_schema_current(url).await? => Ok(()),
        None => Err(format!(
            "the database schema is not up to date, and the role {APP_ROLE} may not change it: \
             set database.owner_url, or run `call2me-auth migrate` with it"
        )),
    }
}

async fn run_frequent_pruning(store: Store, env: Env) {
    let mut ticks = interval(PRUNE_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(error) = store.prune_invalidations().await {
            tracing::warn!(%error, "cannot delete old cache invalidations");
        }
        if let Err(error) = store.prune_usage_minutes(env.clock.now()).await {
            tracing::warn!(%error, "cannot delete old key usage by the minute");
        }
    }
}

async fn run_maintenance(store: Store, env: Env, grant_idle: Duration, usage_retention: Duration) {
    let mut ticks = interval(MAINTENANCE_INTERVAL);
    loop {
        ticks.tick().await;
        let now = env.clock.now();
        let log_error = |action: &str, result: Result<(), StoreError>| {
            if let Err(error) = result {
                tracing::warn!(%error, "cannot {action}");
            }
        };
        log_error("create partitions of the audit log", store.create_audit_partitions(now).await);
        log_error(
            "delete old counts of unknown credentials",
            store.prune_unknown_credential_counts().await,
        );
        log_error("delete old one-time tokens", store.prune_one_time_tokens(now).await);
        log_error("delete old counts of failed sign-ins", store.prune_wrong_passwords(now).await);
        log_error("delete old second-factor challenges", store.prune_mfa_challenges(now).await);
        log_error("delete old passkey challenges", store.prune_passkey_challenges(now).await);
        log_error("delete old idempotency keys", store.prune_idempotency_keys(now).await);
        log_error("delete old key usage", store.prune_key_usage(now - usage_retention).await);
        log_error("delete old invitations", store.prune_invitations(now).await);
        log_error(
            "delete old grants and unused OAuth clients",
            store.prune_oauth(now, grant_idle).await,
        );
    }
}
