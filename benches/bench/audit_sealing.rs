//! Cost of the hash chain of the audit log: sealing, verification and exact usage counts, next to a
//! baseline of the same run.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use call2me_auth::{
    audit::{SealCounts, Sealer},
    config::Pool,
    env::Env,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        id::{ApiKeyId, WorkspaceId},
        scope::Scope,
        usage::{KeyUse, RouteUse},
    },
    store::{ContextKey, DedicatedConnection, ServiceLogin, Store, audit},
};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sqlx::{Arguments as _, Execute as _};
use tokio_util::sync::CancellationToken;

use crate::{
    environment::{BenchEnvironment, ENCRYPTION_KEY, create_database},
    options::Options,
    process::{cpu_micros, wait_until_idle},
    stats::{duration_micros, format_number, median, to_f64},
    table::Table,
    wrk::{self, Traffic},
};

const DATABASE: &str = "sealing";
/// Events in a batch, about as many as gather at full load.
const BATCH: usize = 600;
/// The number of times that a batch is processed for one sample.
const REPEATS: u32 = 200;
/// Connections of the load that is the baseline of the usage counts.
const CONNECTIONS: usize = 48;

/// Measures everything and prints the tables.
pub(crate) async fn measure(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    let events = if options.quick { 50_000 } else { 500_000 };
    measure_counting(options, world).await?;
    create_database(&world.postgres, DATABASE).await?;
    let url = world.postgres.url(DATABASE);
    call2me_auth::store::migrate::migrate(url.expose_secret()).await?;
    let pool = Pool {
        max_connections: 4,
        acquire_timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_mins(1),
    };
    // Any key and login: nothing else uses this database.
    let login = ServiceLogin::derive(&[1; 32], DATABASE);
    call2me_auth::store::migrate::create_service_login(url.expose_secret(), &login).await?;
    let key = ContextKey::new([1; 32].into());
    let store = Store::connect(
        url.expose_secret(),
        Some(&login),
        &pool,
        Duration::from_secs(5),
        key.into(),
        &world.env.database_clock,
    )
    .await?;
    let mut table = Table::new(&[
        "operation",
        "events/s",
        "CPU µs/event",
        "PostgreSQL µs",
        "events",
        "workspaces",
    ]);
    for workspaces in [1, 100] {
        let appended = measure_appending(world, &store, events, workspaces).await?;
        table.push_row(appended.cells("written, with digests (baseline)", workspaces));
        let sealed = Box::pin(measure_sealing(world, &store, events)).await?;
        table.push_row(sealed.cells("sealed, and usage counted", workspaces));
    }
    let verified = measure_verification(world)?;
    table.push_row(verified.cells("verified: `admin audit verify`", 101));
    table.print("Hash chain of the audit log");
    println!(
        "\nThis process writes and then seals the events, batch by batch over one connection. The service's own command \
         verifies all of them. CPU time is that of the process that does the work, and of PostgreSQL."
    );
    store.close().await;
    Ok(())
}

/// A measurement of some work.
struct Measurement {
    events: u64,
    elapsed: Duration,
    /// The CPU time of the process and of PostgreSQL, in microseconds.
    cpu: u64,
    postgres_cpu: u64,
}

impl Measurement {
    fn cells(&self, label: &str, workspaces: usize) -> Vec<String> {
        let per_event = |micros: u64| format_number(to_f64(micros) / to_f64(self.events), 2);
        vec![
            label.to_owned(),
            format_number(to_f64(self.events) / self.elapsed.as_secs_f64(), 0),
            per_event(self.cpu),
            per_event(self.postgres_cpu),
            format_number(to_f64(self.events), 0),
            workspaces.to_string(),
        ]
    }
}

/// Measures work of this process.
async fn measure_work(
    world: &BenchEnvironment,
    events: u64,
    work: impl Future<Output = Result<(), String>>,
) -> Result<Measurement, String> {
    let (own, postgres) = (std::process::id(), world.postgres.pid());
    // This process alone, without the CPU time of its children.
    let own_cpu = || own_cpu_micros(own);
    let before = (own_cpu(), cpu_micros(postgres));
    let clock = &world.env.clock;
    let started = clock.monotonic();
    work.await?;
    let elapsed = clock.monotonic().saturating_sub(started);
    wait_until_idle(postgres).await;
    let (cpu, postgres_cpu) = (own_cpu() - before.0, cpu_micros(postgres) - before.1);
    Ok(Measurement { events, elapsed, cpu, postgres_cpu })
}

/// Returns the CPU time of a process without its children, in microseconds.
fn own_cpu_micros(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = fields.get(11..13).unwrap_or_default();
    ticks.iter().filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10_000
}

/// Builds a batch of requests that use the keys in turn.
fn build_batch(
    env: &Env,
    workspaces: &[WorkspaceId],
    keys: &[ApiKeyId],
    size: usize,
) -> Vec<NewEvent> {
    let event = |number: usize| {
        let request = Arc::new(RequestInfo {
            id: env.new_id(),
            method: "GET".into(),
            path: "/v1/agents/agent_01jd0zt8q7f7qvs4p2k6x3m9ab".into(),
            ip: [203, 0, 113, 9].into(),
            user_agent: Some("python-httpx/0.27.0".into()),
            started_at: Duration::ZERO,
        });
        let actor = Actor::api_key(keys[number % keys.len()], &"prod-2026-q2".into());
        let workspace = workspaces[number % workspaces.len()];
        let mut event = NewEvent::new(env.new_id(), workspace, Action::Request, actor)
            .with_request(&request, 200, Duration::from_micros(412));
        let route = RouteUse { group: "agents", scope: Scope::ReadOnly };
        event.key_use = KeyUse::Request(route);
        event
    };
    (0..size).map(event).collect()
}

/// Writes events as the service does.
async fn measure_appending(
    world: &BenchEnvironment,
    store: &Store,
    events: usize,
    workspaces: usize,
) -> Result<Measurement, String> {
    let env = &world.env;
    let workspaces: Vec<WorkspaceId> = (0..workspaces).map(|_| env.new_id()).collect();
    let keys: Vec<ApiKeyId> = workspaces.iter().map(|_| env.new_id()).collect();
    let mut connection = DedicatedConnection::new(store.clone());
    let batches = events / BATCH;
    let work = async {
        for _ in 0..batches {
            let batch = build_batch(env, &workspaces, &keys, BATCH);
            let written = connection.append_audit_events(batch.iter(), false).await;
            written.map_err(|error| format!("cannot write events: {error}"))?;
        }
        Ok(())
    };
    measure_work(world, (batches * BATCH) as u64, work).await
}

/// Seals the events that were written.
async fn measure_sealing(
    world: &BenchEnvironment,
    store: &Store,
    events: usize,
) -> Result<Measurement, String> {
    let counts = Arc::<SealCounts>::default();
    let mut sealer = Sealer::new(store.clone(), world.env.clone(), Arc::clone(&counts));
    let running = CancellationToken::new();
    let work = async {
        sealer.seal_all(&running).await.map_err(|error| format!("cannot seal events: {error}"))
    };
    let measurement = Box::pin(measure_work(world, (events / BATCH * BATCH) as u64, work)).await?;
    let count = counts.sealed.load(std::sync::atomic::Ordering::Relaxed);
    if count == measurement.events {
        Ok(measurement)
    } else {
        Err(format!("{count} events were sealed instead of {}", measurement.events))
    }
}

/// Verifies the audit log as an operator does.
fn measure_verification(world: &BenchEnvironment) -> Result<Measurement, String> {
    let url = world.postgres.url(DATABASE);
    let mut command = Command::new(&world.binary);
    command
        .args(["admin", "audit", "verify"])
        .env("DATABASE_URL", url.expose_secret())
        .env("CALL2ME_AUTH__SERVER__PUBLIC_URL", "http://127.0.0.1:1")
        .env("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY)
        .current_dir(Path::new(env!("CARGO_TARGET_TMPDIR")))
        .stdin(Stdio::null());
    let (postgres, own) = (world.postgres.pid(), std::process::id());
    // The CPU time of children that have exited.
    let children = || cpu_micros(own) - own_cpu_micros(own);
    let before = (children(), cpu_micros(postgres));
    let output = command.output().map_err(|error| format!("cannot verify: {error}"))?;
    let (cpu, postgres_cpu) =
        (children().saturating_sub(before.0), cpu_micros(postgres).saturating_sub(before.1));
    let answer: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("cannot verify: {}", String::from_utf8_lossy(&output.stderr)))?;
    if answer["verified"] != true {
        return Err(format!("the audit log does not verify: {answer:#}"));
    }
    let events = answer["events"].as_u64().unwrap_or_default();
    let elapsed = Duration::from_secs_f64(answer["seconds"].as_f64().unwrap_or(f64::NAN));
    Ok(Measurement { events, elapsed, cpu, postgres_cpu })
}

/// Measures the CPU time that usage counts add to a request, next to that of the whole request.
async fn measure_counting(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    let traffic =
        Traffic::SameRequest { path: "/v1/auth/verify", bearer: world.account.key.clone() };
    let (env, workspaces) = (&world.env, [world.env.new_id()]);
    let one: Vec<ApiKeyId> = vec![env.new_id()];
    let many: Vec<ApiKeyId> = (0..BATCH).map(|_| env.new_id()).collect();
    let batches = [one, many].map(|keys| {
        let counted = build_batch(env, &workspaces, &keys, BATCH);
        let uncounted =
            counted.iter().cloned().map(|event| NewEvent { key_use: KeyUse::None, ..event });
        (uncounted.collect::<Vec<_>>(), counted)
    });
    let (mut request_samples, mut statement_samples, mut counting_samples, mut digest_samples) =
        (Vec::new(), Vec::new(), [Vec::new(), Vec::new()], Vec::new());
    for round in 0..options.rounds() {
        eprintln!("round {}: counting", round + 1);
        let pid = world.service.process.pid();
        let before = cpu_micros(pid);
        let seconds = options.seconds();
        let outcome =
            wrk::run(world.folder(), world.service.port, &traffic, CONNECTIONS, seconds).await?;
        wait_until_idle(world.postgres.pid()).await;
        request_samples.push(to_f64(cpu_micros(pid) - before) / to_f64(outcome.requests));
        for ((uncounted, counted), samples) in batches.iter().zip(&mut counting_samples) {
            let [without, with] =
                [uncounted, counted].map(|batch| micros_per_event(env, batch, build_statement));
            statement_samples.push(without);
            samples.push(with - without);
        }
        let digest = |event: &NewEvent| usize::from(event.to_event().digest().as_bytes()[0]);
        digest_samples
            .push(micros_per_event(env, &batches[0].0, |batch| batch.iter().map(digest).sum()));
    }
    let request = median(request_samples);
    let mut table = Table::new(&["operation", "CPU µs/request", "of a request"]);
    table.push_row([
        "request with one warm key, everything on (baseline)".to_owned(),
        format_number(request, 2),
        "100.0 %".to_owned(),
    ]);
    let [one, many] = counting_samples;
    for (label, samples) in [
        ("part of it: the log statement, without usage counts", statement_samples),
        ("part of it: usage counts of one key", one),
        ("part of it: usage counts, another key per request", many),
        ("part of it: the digest for the hash chain", digest_samples),
    ] {
        let micros = median(samples);
        let part = format!("{} %", format_number(micros / request * 100.0, 2));
        table.push_row([label.to_owned(), format_number(micros, 3), part]);
    }
    table.print("Cost of usage counts and sealing per request");
    println!(
        "\nMedians of the rounds. The CPU time of a request is that of the service, as in the first table. The others are measured \
         in this process, on batches of {BATCH} events; the service's writer builds such batches outside of requests."
    );
    Ok(())
}

/// Builds the arguments of the statement that stores a batch, and returns their number.
fn build_statement(batch: &[NewEvent]) -> usize {
    let arguments =
        audit::build_append_query(&batch.iter(), false).map(|mut append| append.take_arguments());
    arguments.map_or(0, |arguments| arguments.map_or(0, |some| some.map_or(0, |some| some.len())))
}

/// Returns the microseconds per event of a batch.
fn micros_per_event(env: &Env, batch: &[NewEvent], work: impl Fn(&[NewEvent]) -> usize) -> f64 {
    let started = env.clock.monotonic();
    for _ in 0..REPEATS {
        std::hint::black_box(work(std::hint::black_box(batch)));
    }
    duration_micros(env.clock.monotonic().saturating_sub(started))
        / f64::from(REPEATS)
        / to_f64(batch.len() as u64)
}
