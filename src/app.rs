//! The composition root: creates the components, connects them, starts and stops them.
//!
//! The order of shutdown matters: requests finish, then the audit events are written and sealed,
//! then the node deregisters. Until then other nodes must wait for its lease. Each phase has a
//! token that begins it and a timeout:
//!
//! 1. [`AppState::shutdown`] ends streams, and the server waits for requests in flight;
//! 2. background tasks stop, the metrics listener among them;
//! 3. the audit writer writes its queue, and the events are sealed;
//! 4. the node ends its lease and deregisters.
//!
//! The failure of a critical task begins the same shutdown.

use std::{
    future::{Future, Ready, ready},
    net::IpAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use secrecy::ExposeSecret;
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{AuditLog, AuditWriterTask, Retention, SealCounts, Sealer},
    auth::{
        Auth,
        credential_caches::CredentialCaches,
        master_key::{DiscardedKeys, MasterKeys},
        reencryption::{self, ReencryptionReport},
        restore::{self, RestoreOptions, RestoreReport},
    },
    cache_invalidation::{Fence, Lease, Node, NodeDependencies, NodeTask, ObservedLeases},
    config::Settings,
    database_check,
    env::Env,
    http::{
        self, App, AppState, HttpSettings, LargeBodyPermits, RefusalPauses, UnreadResponses,
        middleware::HttpService,
    },
    idempotency::Idempotency,
    limit::Limits,
    mail::Mailer,
    maintenance::Maintenance,
    metrics::{self, Metrics},
    oauth::OAuth,
    resources::Resources,
    server::{Server, descriptors},
    service_metrics,
    store::{
        APP_ROLE, SchemaMismatch, Store, cache_invalidation::LEASE_TOLERANCE, max_open_connections,
        migrate,
    },
    tasks::{CriticalFailure, TaskGroup},
    telemetry::LogLimiter,
};

/// Timeout of stopping background tasks at shutdown: time to finish the current email.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of writing queued audit events at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(20);

/// Timeout of sealing written audit events at shutdown.
const SEAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Timeout of closing the database connections at shutdown. One of them may hang forever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A service with all its components, ready to serve.
pub struct Application {
    app: App,
    service: HttpService,
    settings: Settings,
    store: Store,
    /// The second phase of the shutdown; the next ones stop `writer` and `node`.
    background: TaskGroup,
    writer: AuditWriterTask,
    node: NodeTask,
    discarded_keys: DiscardedKeys,
    failure: CriticalFailure,
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
        let master_keys = MasterKeys::new(&settings.keys);
        prepare_schema(&settings).await?;
        let store = connect(&settings, &master_keys, &env).await?;
        let describe = |error| format!("cannot prepare the audit log: {error}");
        store.create_audit_partitions(env.clock.now()).await.map_err(describe)?;
        let failure = CriticalFailure::default();
        let background = TaskGroup::new(&failure);
        let (audit, writer) =
            AuditWriterTask::start(store.clone(), env.clone(), settings.audit, &failure);
        let metrics = Metrics::default();
        let node_id = env.new_uuid();
        let lease = Lease::default();
        let max_keys = settings.cache.max_keys;
        let caches = CredentialCaches::start(&store, &env, &lease, max_keys, &background);
        let acknowledged = Arc::new(Notify::new());
        let leases = ObservedLeases::default();
        let fence = Fence::new(
            store.clone(),
            Arc::clone(&acknowledged),
            leases.clone(),
            &env,
            metrics.clone(),
        );
        let invalidation_sink = Arc::new(caches.clone());
        let limits = Limits::new(settings.rate_limit, settings.redis.as_ref(), &env)?;
        let auth = Auth::new(
            &settings,
            &master_keys,
            store.clone(),
            env.clone(),
            audit.clone(),
            caches,
            fence,
            limits.clone(),
            node_id,
        )
        .await?;
        let oauth = OAuth::new(&settings, &auth, &limits)?;
        let public_url = settings.server.public_url.clone();
        let write_openapi = move || http::openapi::build_content(&public_url).ok();
        let app = Arc::new(AppState {
            auth,
            oauth,
            idempotency: Idempotency::new(
                store.clone(),
                env.clone(),
                master_keys.idempotency_secrets()?,
            ),
            resources: Resources::new(store.clone(), env.clone(), &settings),
            audit_log: AuditLog::new(store.clone(), &settings.database.pool),
            audit,
            seal_counts: Arc::<SealCounts>::default(),
            shutdown: CancellationToken::new(),
            limits,
            store: store.clone(),
            env,
            settings: HttpSettings::from(&settings),
            last_database_ping: Mutex::default(),
            unavailable_log: LogLimiter::default(),
            large_body_permits: LargeBodyPermits::default(),
            refusal_pauses: RefusalPauses::new(settings.server.max_connections),
            unread_responses: UnreadResponses::new(settings.server.max_body_bytes),
            openapi: LazyLock::new(Box::new(write_openapi)),
            metrics,
            lease,
        });
        app.metrics.register_collector(service_metrics::ServiceCollector(Arc::downgrade(&app)));
        let service = http::build_service(&app);
        // Last: if an earlier step fails, no other node waits for the lease of this one.
        let deps = NodeDependencies {
            id: node_id,
            store: store.clone(),
            env: app.env.clone(),
            invalidation_sink,
            audit_watermark: Arc::new(app.audit.clone()),
            lease: app.lease.clone(),
            lease_duration: settings.cache.lease_duration,
            leases,
            acknowledged,
            metrics: app.metrics.clone(),
        };
        let mut node = Node::start(deps, &failure);
        // Without a lease the node answers 503 to every credential.
        node.wait_until_joined(settings.cache.lease_duration).await;
        let discarded_keys = DiscardedKeys::new(store.clone(), &master_keys)?;
        Ok(Self {
            app,
            service,
            settings,
            store,
            background,
            writer,
            node,
            discarded_keys,
            failure,
        })
    }

    /// Returns the state that handlers share, for commands that use it without HTTP.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// Checks that the clock of this machine is near that of PostgreSQL. The service uses that of
    /// PostgreSQL, but one of the two is wrong, and clients compare the times in tokens with
    /// theirs.
    ///
    /// # Errors
    /// A message for the operator if the clocks differ by more than the setting allows.
    pub fn check_clock(&self) -> Result<(), String> {
        let (skew, max) =
            (self.app.env.database_clock.skew(), self.settings.database.max_clock_skew);
        if skew.unsigned_abs() <= max {
            return Ok(());
        }
        let side = if skew.is_negative() { "behind" } else { "ahead of" };
        Err(format!(
            "the clock of this machine is {} s {side} that of PostgreSQL, more than \
             database.max_clock_skew_seconds ({}): synchronize both clocks",
            skew.unsigned_abs().as_secs_f64().round(),
            max.as_secs(),
        ))
    }

    /// Serves until `stop` completes, then shuts down gracefully: requests in flight finish and
    /// queued audit events are written. A critical task that fails has the same effect.
    ///
    /// # Errors
    /// A message for the operator if a component cannot start, the listener fails, or a critical
    /// task has failed.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), String> {
        let failure = self.failure.clone();
        let outcome = self.run_server(listener, stop).await;
        self.shut_down().await;
        match failure.task() {
            Some(task) => Err(format!("the task \"{task}\" failed: see the log")),
            None => outcome,
        }
    }

    /// Starts the background tasks, and serves until `stop` completes or a critical task fails.
    async fn run_server(
        &self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), String> {
        let mut settings = self.settings.server.clone();
        let database_connections = max_open_connections(&self.settings.database.pool);
        descriptors::fit_connections(&mut settings, database_connections);
        self.app.limits.connect().await;
        self.start_background_tasks().await?;
        let stop = async {
            tokio::select! {
                () = stop => {}
                () = self.failure.wait() => {}
            }
            self.app.shutdown.cancel();
        };
        let served = Server::new(&settings, self.service.clone()).run(listener, stop).await;
        served.map_err(|error| format!("cannot accept connections: {error}"))
    }

    /// Starts the background tasks of a serving node. Commands that only build the components need
    /// none of them.
    async fn start_background_tasks(&self) -> Result<(), String> {
        let (metrics, mailer, retention) =
            (self.bind_metrics().await?, Arc::new(self.mailer()?), self.retention()?);
        let tasks = &self.background;
        tasks.spawn("email", move |stopping| Arc::clone(&mailer).run(stopping));
        if let Some(retention) = retention {
            tasks.spawn("retention", move |stopping| retention.clone().run(stopping));
        }
        if let Some(listener) = metrics {
            // Stops after the API, so that the shutdown can be monitored too.
            let settings = descriptors::metrics_settings(&self.settings.server);
            let server = Server::new(&settings, metrics_service(&self.app.metrics));
            tasks.spawn_critical("metrics listener", |stopping| {
                server.run(listener, stopping.cancelled_owned()).map(drop)
            });
        }
        self.start_periodic_tasks();
        Ok(())
    }

    fn start_periodic_tasks(&self) {
        let (tasks, limits) = (&self.background, self.app.limits.clone());
        tasks.spawn("rate limits", move |stopping| limits.clone().run_eviction(stopping));
        let limits = self.app.limits.clone();
        tasks.spawn("shared rate limits", move |stopping| limits.clone().keep_connected(stopping));
        let keys = Arc::clone(&self.app.auth.signing_keys);
        tasks.spawn("signing keys", move |stopping| {
            stopping.run_until_cancelled_owned(Arc::clone(&keys).run_reload()).map(drop)
        });
        let discarded = self.discarded_keys.clone();
        tasks.spawn("discarded encryption keys", move |stopping| {
            stopping.run_until_cancelled_owned(discarded.clone().run()).map(drop)
        });
        let sealer = self.sealer();
        tasks.spawn("sealer", move |stopping| sealer.clone().run(stopping));
        let (streams, store) = (self.app.audit_log.subscriptions().clone(), self.store.clone());
        tasks.spawn("event streams", move |stopping| streams.clone().run(store.clone(), stopping));
        let store = self.store.clone();
        tasks.spawn("database check", move |stopping| database_check::run(store.clone(), stopping));
        let maintenance = self.maintenance();
        tasks.spawn("maintenance", move |stopping| maintenance.clone().run(stopping));
        let maintenance = self.maintenance();
        tasks.spawn("pruning", move |stopping| maintenance.clone().run_frequent_pruning(stopping));
    }

    fn maintenance(&self) -> Maintenance {
        let (store, env) = (self.store.clone(), self.app.env.clone());
        let usage_retention = self.settings.audit.usage_retention;
        Maintenance::new(store, env, self.app.oauth.grants.idle_timeout(), usage_retention)
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

    fn mailer(&self) -> Result<Mailer, String> {
        Mailer::new(
            self.store.clone(),
            self.app.env.clone(),
            &self.settings.mail,
            &self.settings.server.public_url,
            self.app.auth.context.token_key.clone(),
        )
    }

    /// Binds `server.metrics_address`, if it is set.
    async fn bind_metrics(&self) -> Result<Option<TcpListener>, String> {
        let Some(address) = self.settings.server.metrics_address else { return Ok(None) };
        let listener = TcpListener::bind(address).await;
        listener.map(Some).map_err(|error| format!("cannot serve metrics on {address}: {error}"))
    }

    /// Encrypts everything in the database under `keys.encryption_key`; see
    /// [`crate::auth::reencryption`]. `discard_previous` also ends the validity of all values that
    /// cannot be encrypted again, such as mailed links.
    ///
    /// # Errors
    /// A message of one line for the operator.
    pub async fn reencrypt(&self, discard_previous: bool) -> Result<ReencryptionReport, String> {
        let keys = MasterKeys::new(&self.settings.keys);
        reencryption::reencrypt(self.owner_url()?, &keys, &self.app.env, discard_previous).await
    }

    /// Puts the database in quarantine, and waits until no node has a lease; see
    /// [`crate::auth::restore`].
    ///
    /// # Errors
    /// A message of one line for the operator.
    pub async fn begin_restore(&self) -> Result<(), String> {
        restore::begin(self.owner_url()?).await?;
        self.wait_for_leases().await;
        Ok(())
    }

    /// Revokes again what a backup has revived, and lifts the quarantine, once no node has a lease;
    /// see [`crate::auth::restore`].
    ///
    /// # Errors
    /// A message of one line for the operator.
    pub async fn finish_restore(&self, options: RestoreOptions) -> Result<RestoreReport, String> {
        let owner_url = self.owner_url()?;
        let reason = self.store.check_quarantine().await;
        let reason = reason.map_err(|error| format!("cannot check the quarantine: {error}"))?;
        if reason.is_some() && !options.dry_run {
            self.wait_for_leases().await;
        }
        restore::finish(owner_url, &self.app.env, options).await
    }

    /// Waits until all leases are over. In quarantine, no node gets one.
    async fn wait_for_leases(&self) {
        sleep(self.settings.cache.lease_duration + LEASE_TOLERANCE).await;
    }

    fn owner_url(&self) -> Result<&str, String> {
        owner_url(&self.settings)?.ok_or_else(|| {
            "this command requires the role that owns the tables: set database.owner_url".to_owned()
        })
    }

    /// Stops background tasks, writes queued audit events, deregisters the node and closes the
    /// database connections.
    pub async fn shut_down(self) {
        self.background.stop(BACKGROUND_TIMEOUT).await;
        let mut sealer = self.sealer();
        drop((self.app, self.service));
        let has_written_all = self.writer.finish(FLUSH_TIMEOUT).await;
        // If this times out, another node seals the events.
        timeout(SEAL_TIMEOUT, sealer.seal_all(&CancellationToken::new())).await.ok();
        // After the writer: until then the events of this node are not all visible to others. If
        // some were lost, the node does not deregister, so that others treat it as crashed.
        self.node.finish(has_written_all).await;
        timeout(CLOSE_TIMEOUT, self.store.close()).await.ok();
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

/// Returns the URL of the owner of the tables: `database.owner_url`, or `database.url` unless it is
/// that of the application's role.
fn owner_url(settings: &Settings) -> Result<Option<&str>, String> {
    let url = settings.database.url.expose_secret();
    Ok(match &settings.database.owner_url {
        Some(owner) => Some(owner.expose_secret()),
        None if migrate::login_name(url)? != APP_ROLE => Some(url),
        None => None,
    })
}

/// Migrates with the role of the owner. The application's role may not change the schema.
async fn prepare_schema(settings: &Settings) -> Result<(), String> {
    let url = settings.database.url.expose_secret();
    match owner_url(settings)? {
        Some(owner) => migrate::migrate(owner).await,
        None => check_schema_as_app_role(url).await,
    }
}

/// Checks that the schema is that of this version, with the application's role, which may not
/// change it.
async fn check_schema_as_app_role(url: &str) -> Result<(), String> {
    match migrate::check_schema(url).await? {
        None => Ok(()),
        Some(mismatch @ SchemaMismatch::Older { .. }) => Err(format!(
            "{mismatch}, and the role {APP_ROLE} may not change it: set database.owner_url, or run \
             `call2me-auth migrate` with it"
        )),
        Some(mismatch) => Err(mismatch.to_string()),
    }
}

/// Connects the service. If `database.url` is that of the owner, and there is no other URL, the
/// service creates a login of its own with fewer rights.
async fn connect(
    settings: &Settings,
    master_keys: &MasterKeys,
    env: &Env,
) -> Result<Store, String> {
    let (url, pool) = (settings.database.url.expose_secret(), &settings.database.pool);
    let mut login = None;
    if settings.database.owner_url.is_none()
        && migrate::login_name(url)? != APP_ROLE
        && migrate::is_privileged_login(url).await?
    {
        let own = master_keys.service_logins(&migrate::database_name(url)?)?.into_current();
        migrate::create_service_login(url, &own).await?;
        login = Some(own);
    }
    let (lease, keys) = (settings.cache.lease_duration, master_keys.context_keys()?);
    Store::connect(url, login.as_ref(), pool, lease, keys, &env.database_clock).await
}
