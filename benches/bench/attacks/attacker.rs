//! The attacks. Each runs on a thread of its own until it is stopped.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use call2me_auth::model::id::ClientId;
use rustix::process::setpriority_process;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::deployment::{Deployment, UNUSED_ADDRESS, victim_email};
use crate::client::{Client, format_request, forwarded_from};

/// A password that a strength estimator can read in many ways: most of its characters can stand for
/// letters.
const LEET_TEXT: &str = "4@8({[<369!1|0$5+7%2";
/// The number of repetitions of the text in a password of at most 256 characters.
const LEET_REPETITIONS: usize = 12;
/// The priority of the threads of attacks: they use the time that the service does not need.
const NICENESS: i32 = 19;
/// The pause of a connection after a failure to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// An attack. It can run several times.
pub(super) struct Attack {
    pub(super) label: &'static str,
    pub(super) connections: u16,
    traffic: Traffic,
}

/// The requests of an attack.
#[derive(Clone)]
enum Traffic {
    /// Complete requests. Each connection sends the next one after the response to the previous
    /// one, and waits for this long after a refusal by a rate limit.
    Requests { format: FormatRequest, pause: Duration },
    /// The beginning of a request. The connection then waits until the service closes it.
    Unfinished(FormatRequest),
}

type FormatRequest = Arc<dyn Fn(Sequence) -> String + Send + Sync>;

/// The numbers of a request.
#[derive(Clone, Copy)]
struct Sequence {
    /// The number of the run of the attack.
    round: u16,
    connection: u16,
    /// The number of the request in this run, over all connections. It wraps.
    request: u16,
}

/// The responses to an attack.
#[derive(Default)]
pub(super) struct AttackResult {
    pub(super) statuses: BTreeMap<u16, u64>,
    /// Connections that were closed without a response, or could not be opened.
    pub(super) unanswered: u64,
    pub(super) seconds: f64,
}

impl AttackResult {
    /// Adds the result of another run.
    pub(super) fn add(&mut self, other: &Self) {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.unanswered += other.unanswered;
        self.seconds += other.seconds;
    }
}

/// Returns the attacks.
pub(super) fn attacks(deployment: &Deployment) -> Vec<Attack> {
    vec![
        strain_strength_estimator(deployment),
        guess_passwords(),
        search_audit_log(deployment),
        stall_bodies(),
        request_tokens(),
    ]
}

/// Returns the password that is slow to estimate.
pub(super) fn slow_password() -> String {
    LEET_TEXT.repeat(LEET_REPETITIONS)
}

/// Registrations and password changes with a password that is slow to estimate. Each connection has
/// an address, which may do so ten times at once and then every six seconds.
fn strain_strength_estimator(deployment: &Deployment) -> Attack {
    let tokens = deployment.password_changers.clone();
    let format = move |sequence: Sequence| {
        let Sequence { round, connection, request } = sequence;
        let password = slow_password();
        let text = if let Some(token) = tokens.get(usize::from(connection)) {
            let body = json!({ "current_password": password, "new_password": password });
            format_request("POST", "/v1/auth/password/change", Some(token), Some(&body))
        } else {
            let email = format!("slow-{round}-{request}@attacker.example");
            let body = json!({ "email": email, "password": password });
            format_request("POST", "/v1/auth/register", None, Some(&body))
        };
        forwarded_from(attacker_site(round, connection), &text)
    };
    let pause = Duration::from_secs(6);
    Attack::new("slow passwords", 8, Traffic::Requests { format: Arc::new(format), pause })
}

/// Wrong passwords for one account, each from another IPv6 /48.
fn guess_passwords() -> Attack {
    let format = |Sequence { round, request, .. }: Sequence| {
        let body = json!({
            "email": victim_email(round),
            "password": format!("a wrong guess with number {request}"),
        });
        let text = format_request("POST", "/v1/auth/login", None, Some(&body));
        forwarded_from(Ipv6Addr::new(0x2001, 0xdb8, request, 0, 0, 0, 0, 1).into(), &text)
    };
    Attack::new("password guesses", 90, Traffic::closed_loop(format))
}

/// Searches for events from an address that has none, in a long audit log.
fn search_audit_log(deployment: &Deployment) -> Attack {
    let keys = deployment.searching_keys.clone();
    let format = move |Sequence { request, .. }: Sequence| {
        let path = format!("/v1/audit-log?ip={UNUSED_ADDRESS}");
        let key = &keys[usize::from(request) % keys.len()];
        forwarded_from(single_address(), &format_request("GET", &path, Some(key), None))
    };
    Attack::new("audit searches", 60, Traffic::closed_loop(format))
}

/// Requests that send one byte of a chunked body, and nothing more.
fn stall_bodies() -> Attack {
    let format = |_: Sequence| {
        let head = "POST /oauth/token HTTP/1.1\r\nHost: 127.0.0.1\r\n\
                    Content-Type: application/x-www-form-urlencoded\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        forwarded_from(single_address(), head) + "1\r\ng\r\n"
    };
    Attack::new("stalled bodies", 140, Traffic::Unfinished(Arc::new(format)))
}

/// Token requests of clients that do not exist, from one address.
fn request_tokens() -> Attack {
    let format = |Sequence { round, request, .. }: Sequence| {
        let id = ClientId::from(Uuid::from_u128(u128::from(round) << 16 | u128::from(request)));
        let body = format!("grant_type=refresh_token&refresh_token=none&client_id={id}");
        let head = format!(
            "POST /oauth/token HTTP/1.1\r\nHost: 127.0.0.1\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        forwarded_from(single_address(), &(head + &body))
    };
    Attack::new("token requests", 16, Traffic::closed_loop(format))
}

/// Returns the address of a connection, in a /24 of its own.
fn attacker_site(round: u16, connection: u16) -> IpAddr {
    let [high, low] = (round * 8 + connection).to_be_bytes();
    Ipv4Addr::new(100, 64 + high, low, 1).into()
}

/// Returns the address of attacks that have only one.
fn single_address() -> IpAddr {
    Ipv4Addr::new(192, 0, 2, 1).into()
}

impl Traffic {
    fn closed_loop(format: impl Fn(Sequence) -> String + Send + Sync + 'static) -> Self {
        Self::Requests { format: Arc::new(format), pause: Duration::ZERO }
    }
}

/// An attack that runs.
pub(super) struct RunningAttack {
    stop: CancellationToken,
    thread: thread::JoinHandle<Result<(), String>>,
    start: Instant,
    result: Arc<Mutex<AttackResult>>,
}

impl Attack {
    fn new(label: &'static str, connections: u16, traffic: Traffic) -> Self {
        Self { label, connections, traffic }
    }

    /// Starts the attack on a port of this machine.
    pub(super) fn start(&self, port: u16, round: u16) -> Result<RunningAttack, String> {
        let stop = CancellationToken::new();
        let sender = Arc::new(AttackSender {
            port,
            round,
            traffic: self.traffic.clone(),
            next_request: AtomicU16::new(0),
            result: Arc::default(),
        });
        let (result, start) = (Arc::clone(&sender.result), Instant::now());
        let (stopping, connections) = (stop.clone(), self.connections);
        let run = move || {
            // On Linux this applies to the calling thread only.
            setpriority_process(None, NICENESS).map_err(|error| error.to_string())?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            runtime.block_on(async {
                let mut workers = JoinSet::new();
                for connection in 0..connections {
                    workers.spawn(Arc::clone(&sender).run(connection));
                }
                // Requests in flight are dropped with their connections.
                stopping.cancelled().await;
            });
            Ok(())
        };
        let thread = thread::Builder::new().name("attack".to_owned()).spawn(run);
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(RunningAttack { stop, thread, start, result })
    }
}

impl RunningAttack {
    /// Stops the attack and waits for the end of its thread.
    pub(super) async fn stop(self) -> Result<AttackResult, String> {
        self.stop.cancel();
        let seconds = self.start.elapsed().as_secs_f64();
        let thread = self.thread;
        let joined = spawn_blocking(move || thread.join()).await;
        let joined = joined.map_err(|error| error.to_string())?;
        joined.map_err(|_| "an attack panicked".to_owned())??;
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(AttackResult { seconds, ..std::mem::take(&mut result) })
    }
}

/// The connections of a running attack.
struct AttackSender {
    port: u16,
    round: u16,
    traffic: Traffic,
    next_request: AtomicU16,
    result: Arc<Mutex<AttackResult>>,
}

impl AttackSender {
    /// Runs one connection; opens a new one whenever it is closed.
    async fn run(self: Arc<Self>, connection: u16) {
        loop {
            let ended = match &self.traffic {
                Traffic::Requests { format, pause } => {
                    self.send_requests(connection, format, *pause).await
                }
                Traffic::Unfinished(format) => self.send_unfinished(connection, format).await,
            };
            if ended.is_err() {
                self.count(None);
                sleep(RECONNECT_PAUSE).await;
            }
        }
    }

    fn sequence(&self, connection: u16) -> Sequence {
        let request = self.next_request.fetch_add(1, Relaxed);
        Sequence { round: self.round, connection, request }
    }

    /// Counts a response, or a connection without one.
    fn count(&self, status: Option<u16>) {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        match status {
            Some(status) => *result.statuses.entry(status).or_default() += 1,
            None => result.unanswered += 1,
        }
    }

    /// Sends requests over one connection until it fails.
    async fn send_requests(
        &self,
        connection: u16,
        format: &FormatRequest,
        pause: Duration,
    ) -> std::io::Result<()> {
        let mut client = Client::connect(self.port).await?;
        loop {
            let response = client.send(&format(self.sequence(connection))).await?;
            self.count(Some(response.status));
            if response.status == 429 && !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }

    /// Sends the beginning of a request, and reads until the service closes the connection.
    async fn send_unfinished(
        &self,
        connection: u16,
        format: &FormatRequest,
    ) -> std::io::Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        stream.write_all(format(self.sequence(connection)).as_bytes()).await?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await?;
        // The status line is `HTTP/1.1 400 Bad Request`.
        let status = response.get(9..12).and_then(|text| std::str::from_utf8(text).ok());
        self.count(status.and_then(|text| text.parse().ok()));
        Ok(())
    }
}
