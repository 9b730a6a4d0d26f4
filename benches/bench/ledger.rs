//! What the log's proof costs: sealing, verifying, and counting uses exactly, beside a floor of the same run.

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
        usage::RouteUse,
    },
    store::{Line, Store, audit},
};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sqlx::{Arguments as _, Execute as _};

use crate::{
    options::Options,
    process::{cpu_micros, settle},
    stats::{float, median, micros, number},
    table::Table,
    world::{ENCRYPTION_KEY, SERVICE, World, create_database},
    wrk::{self, Traffic},
};

const DATABASE: &str = "ledger";
/// Events of a batch, about as many as gather at full speed.
const BATCH: usize = 600;
/// How often a batch is counted for one sample.
const REPEATS: u32 = 200;
/// Connections of the load that counting is compared with.
const CONNECTIONS: usize = 48;

/// Measures all of it and prints the tables.
pub(crate) async fn measure(options: &Options, world: &World) -> Result<(), String> {
    let events = if options.quick { 50_000 } else { 500_000 };
    counting(options, world).await?;
    create_database(&world.postgres, DATABASE).await?;
    let url = world.postgres.url(DATABASE);
    call2me_auth::store::migrate::migrate(url.expose_secret()).await?;
    let pool = Pool {
        max_connections: 4,
        acquire_timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_mins(1),
    };
    let store = Store::connect(url.expose_secret(), &pool).await?;
    let mut table =
        Table::new(&["what", "events/s", "CPU µs/event", "PostgreSQL µs", "events", "workspaces"]);
    for workspaces in [1, 100] {
        let appended = append(world, &store, events, workspaces).await?;
        table.row(appended.cells("written, with their digests (the floor)", workspaces));
        let sealed = Box::pin(seal(world, &store, events)).await?;
        table.row(sealed.cells("sealed, and uses counted", workspaces));
    }
    let verified = verify(world)?;
    table.row(verified.cells("verified: `admin audit verify`", 101));
    table.print("The log's proof");
    println!(
        "\nEvents are written, and then sealed, by this process, one batch after the other over one connection; verified by \
         the service's own command, all of them. CPU is of the process that does it, and of PostgreSQL."
    );
    store.close().await;
    Ok(())
}

/// What was done, and what it took.
struct Done {
    events: u64,
    took: Duration,
    /// Microseconds of the process and of PostgreSQL.
    cpu: u64,
    postgres_cpu: u64,
}

impl Done {
    fn cells(&self, what: &str, workspaces: usize) -> Vec<String> {
        let each = |micros: u64| number(float(micros) / float(self.events), 2);
        vec![
            what.to_owned(),
            number(float(self.events) / self.took.as_secs_f64(), 0),
            each(self.cpu),
            each(self.postgres_cpu),
            number(float(self.events), 0),
            workspaces.to_string(),
        ]
    }
}

/// Measures work of this process.
async fn timed(
    world: &World,
    events: u64,
    work: impl Future<Output = Result<(), String>>,
) -> Result<Done, String> {
    let (own, postgres) = (std::process::id(), world.postgres.pid());
    // Of this process alone: what it has started is of others.
    let own_cpu = || own_micros(own);
    let before = (own_cpu(), cpu_micros(postgres));
    let clock = &world.env.clock;
    let began = clock.monotonic();
    work.await?;
    let took = clock.monotonic().saturating_sub(began);
    settle(postgres).await;
    let (cpu, postgres_cpu) = (own_cpu() - before.0, cpu_micros(postgres) - before.1);
    Ok(Done { events, took, cpu, postgres_cpu })
}

/// Microseconds of processor time of a process without its children.
fn own_micros(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = fields.get(11..13).unwrap_or_default();
    ticks.iter().filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10_000
}

/// A batch of requests with keys, one after the other.
fn batch(env: &Env, workspaces: &[WorkspaceId], keys: &[ApiKeyId], size: usize) -> Vec<NewEvent> {
    let event =
        |number: usize| {
            let request = Arc::new(RequestInfo {
                id: env.new_id(),
                method: "GET".into(),
                path: "/v1/agents/agent_01jd0zt8q7f7qvs4p2k6x3m9ab".into(),
                ip: [203, 0, 113, 9].into(),
                user_agent: Some("python-httpx/0.27.0".into()),
                began: Duration::ZERO,
            });
            let actor = Actor::api_key(keys[number % keys.len()], &"prod-2026-q2".into());
            let workspace = workspaces[number % workspaces.len()];
            let mut event = NewEvent::new(env.new_id(), workspace, Action::Request, actor)
                .in_request(&request, 200, Duration::from_micros(412));
            event.route = Some(RouteUse { group: "agents", scope: Scope::ReadOnly });
            event
        };
    (0..size).map(event).collect()
}

/// Writes events as the service does.
async fn append(
    world: &World,
    store: &Store,
    events: usize,
    workspaces: usize,
) -> Result<Done, String> {
    let env = &world.env;
    let workspaces: Vec<WorkspaceId> = (0..workspaces).map(|_| env.new_id()).collect();
    let keys: Vec<ApiKeyId> = workspaces.iter().map(|_| env.new_id()).collect();
    let mut line = Line::new(store.clone());
    let batches = events / BATCH;
    let work = async {
        for _ in 0..batches {
            let batch = batch(env, &workspaces, &keys, BATCH);
            let written = line.append_audit_events(batch.iter(), false).await;
            written.map_err(|error| format!("cannot write events: {error}"))?;
        }
        Ok(())
    };
    timed(world, (batches * BATCH) as u64, work).await
}

/// Seals what is written.
async fn seal(world: &World, store: &Store, events: usize) -> Result<Done, String> {
    let counts = Arc::<SealCounts>::default();
    let mut sealer = Sealer::new(store.clone(), world.env.clone(), Arc::clone(&counts));
    let work =
        async { sealer.seal_all().await.map_err(|error| format!("cannot seal events: {error}")) };
    let done = Box::pin(timed(world, (events / BATCH * BATCH) as u64, work)).await?;
    let count = counts.sealed.load(std::sync::atomic::Ordering::Relaxed);
    if count == done.events {
        Ok(done)
    } else {
        Err(format!("{count} events were sealed, and not {}", done.events))
    }
}

/// Looks whether all is as it was sealed, as an operator does.
fn verify(world: &World) -> Result<Done, String> {
    let url = world.postgres.url(DATABASE);
    let mut command = Command::new(SERVICE);
    command
        .args(["admin", "audit", "verify"])
        .env("DATABASE_URL", url.expose_secret())
        .env("CALL2ME_AUTH__SERVER__PUBLIC_URL", "http://127.0.0.1:1")
        .env("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY)
        .current_dir(Path::new(env!("CARGO_TARGET_TMPDIR")))
        .stdin(Stdio::null());
    let (postgres, own) = (world.postgres.pid(), std::process::id());
    // Of children that have ended.
    let children = || cpu_micros(own) - own_micros(own);
    let before = (children(), cpu_micros(postgres));
    let output = command.output().map_err(|error| format!("cannot verify: {error}"))?;
    let (cpu, postgres_cpu) =
        (children().saturating_sub(before.0), cpu_micros(postgres).saturating_sub(before.1));
    let answer: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("cannot verify: {}", String::from_utf8_lossy(&output.stderr)))?;
    if answer["verified"] != true {
        return Err(format!("the log does not verify: {answer:#}"));
    }
    let events = answer["events"].as_u64().unwrap_or_default();
    let took = Duration::from_secs_f64(answer["seconds"].as_f64().unwrap_or(f64::NAN));
    Ok(Done { events, took, cpu, postgres_cpu })
}

/// What counting adds to a request, beside what a request takes.
async fn counting(options: &Options, world: &World) -> Result<(), String> {
    let traffic = Traffic::Same { path: "/v1/auth/verify", bearer: world.account.key.clone() };
    let (env, workspaces) = (&world.env, [world.env.new_id()]);
    let one: Vec<ApiKeyId> = vec![env.new_id()];
    let many: Vec<ApiKeyId> = (0..BATCH).map(|_| env.new_id()).collect();
    let batches = [one, many].map(|keys| {
        let counted = batch(env, &workspaces, &keys, BATCH);
        let uncounted = counted.iter().cloned().map(|event| NewEvent { route: None, ..event });
        (uncounted.collect::<Vec<_>>(), counted)
    });
    let (mut requests, mut statements, mut counts, mut digests) =
        (Vec::new(), Vec::new(), [Vec::new(), Vec::new()], Vec::new());
    for round in 0..options.rounds() {
        eprintln!("round {}: counting", round + 1);
        let pid = world.service.process.pid();
        let before = cpu_micros(pid);
        let seconds = options.seconds();
        let outcome =
            wrk::run(world.folder(), world.service.port, &traffic, CONNECTIONS, seconds).await?;
        settle(world.postgres.pid()).await;
        requests.push(float(cpu_micros(pid) - before) / float(outcome.requests));
        for ((uncounted, counted), samples) in batches.iter().zip(&mut counts) {
            let [without, with] = [uncounted, counted].map(|batch| each(env, batch, statement));
            statements.push(without);
            samples.push(with - without);
        }
        let digest = |event: &NewEvent| usize::from(event.public().digest().as_bytes()[0]);
        digests.push(each(env, &batches[0].0, |batch| batch.iter().map(digest).sum()));
    }
    let request = median(requests);
    let mut table = Table::new(&["what", "CPU µs/request", "of a request"]);
    table.row([
        "a request with one warm key, everything on (the floor)".to_owned(),
        number(request, 2),
        "100.0 %".to_owned(),
    ]);
    let [one, many] = counts;
    for (what, samples) in [
        ("of it: the statement that logs it, without uses", statements),
        ("of it: counting uses, of one key", one),
        ("of it: counting uses, each request of another key", many),
        ("of it: the digest that is sealed", digests),
    ] {
        let micros = median(samples);
        let part = format!("{} %", number(micros / request * 100.0, 2));
        table.row([what.to_owned(), number(micros, 3), part]);
    }
    table.print("What counting and sealing add to a request");
    println!(
        "\nMedians of the rounds. A request's CPU is the service's, as in the first table; the others are measured in this \
         process, on batches of {BATCH} events, which the service's writer makes of them off the path of requests."
    );
    Ok(())
}

/// Makes all that PostgreSQL is told of a batch.
fn statement(batch: &[NewEvent]) -> usize {
    let arguments = audit::append(&batch.iter(), false).map(|mut append| append.take_arguments());
    arguments.map_or(0, |arguments| arguments.map_or(0, |some| some.map_or(0, |some| some.len())))
}

/// Microseconds for each event of a batch.
fn each(env: &Env, batch: &[NewEvent], work: impl Fn(&[NewEvent]) -> usize) -> f64 {
    let began = env.clock.monotonic();
    for _ in 0..REPEATS {
        std::hint::black_box(work(std::hint::black_box(batch)));
    }
    micros(env.clock.monotonic().saturating_sub(began))
        / f64::from(REPEATS)
        / float(batch.len() as u64)
}
