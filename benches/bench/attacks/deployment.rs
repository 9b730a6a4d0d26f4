//! The service that is attacked, with honest tenants, accounts of attackers, and a long audit log.

use std::net::{IpAddr, Ipv4Addr};

use call2me_auth::model::id::{Id as _, WorkspaceId};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::attacker::slow_password;
use crate::{
    client::{Client, format_request, forwarded_from},
    environment::{BenchEnvironment, Server, create_database},
    options::Options,
    process::wait_until_idle,
    seed::{execute_sql, json_string},
};

const DATABASE: &str = "attacks";
const PASSWORD: &str = "a walk in the park with a clock";
/// The default limits, which other parts of the benchmark lift, and the load generators as proxy.
const VARIABLES: [(&str, &str); 4] = [
    ("CALL2ME_AUTH__SERVER__TRUSTED_PROXIES", "127.0.0.0/8"),
    ("CALL2ME_AUTH__RATE_LIMIT__PER_KEY_PER_MINUTE", "600"),
    ("CALL2ME_AUTH__RATE_LIMIT__PER_ADDRESS_PER_MINUTE", "300"),
    ("CALL2ME_AUTH__RATE_LIMIT__SIGN_IN_PER_MINUTE", "10"),
];
/// Honest tenants. Their number keeps each of them far below its rate limits.
const TENANTS: u8 = 30;
/// Accounts that change their password in an attack.
const PASSWORD_CHANGERS: u8 = 4;
/// Keys that search the long audit log. One has too low a rate limit for the attack.
const SEARCHING_KEYS: u8 = 10;
/// The size of a large honest body, in bytes.
pub(super) const LARGE_BODY_BYTES: usize = 256 * 1024;
/// An address without events.
pub(super) const UNUSED_ADDRESS: &str = "203.0.113.99";

/// Inserts `$2` requests into the audit log of the workspace `$1`, evenly over twenty days.
const INSERT_EVENTS: &str = "
    INSERT INTO audit_events (
        id, workspace_id, action, actor_type, actor_name, request_id, method, path, status, ip,
        user_agent, latency_us)
    SELECT uuidv7_lower_bound(now() - number * (interval '20 days' / $2::bigint)), $1, 'request', 'api_key',
           'production', gen_random_uuid(), 'GET', '/v1/agents', 200,
           '198.51.100.0'::inet + (number % 8), 'call2me-python/2.4.1', 400
    FROM generate_series(1, $2::bigint) AS number";

/// An honest client of a workspace of its own.
pub(super) struct Tenant {
    /// The forwarded address, in a /24 of its own.
    pub(super) address: IpAddr,
    /// The body of a sign-in.
    pub(super) login: Value,
    /// A key with the scope `admin`.
    pub(super) key: String,
    pub(super) agent_id: String,
}

/// The service and its data.
pub(super) struct Deployment {
    pub(super) server: Server,
    pub(super) tenants: Vec<Tenant>,
    /// Access tokens of accounts whose password is [`slow_password`].
    pub(super) password_changers: Vec<String>,
    /// Keys of the workspace with the long audit log.
    pub(super) searching_keys: Vec<String>,
    /// The number of events in that audit log.
    pub(super) events: i64,
}

impl Deployment {
    /// Starts the service and fills its database. Each of the `rounds` attacks another account.
    pub(super) async fn start(
        options: &Options,
        world: &BenchEnvironment,
        rounds: u16,
    ) -> Result<Self, String> {
        create_database(&world.postgres, DATABASE).await?;
        let server = world.start_another_service(DATABASE, "attacked", &VARIABLES).await?;
        let mut client = Client::connect(server.port).await.map_err(|error| error.to_string())?;
        let mut tenants = Vec::new();
        for number in 0..TENANTS {
            tenants.push(create_tenant(&mut client, number).await?);
        }
        for round in 0..rounds {
            register(&mut client, victim_address(round), &victim_email(round), PASSWORD).await?;
        }
        let mut password_changers = Vec::new();
        for number in 0..PASSWORD_CHANGERS {
            let address = Ipv4Addr::new(100, 127, number, 1).into();
            let email = format!("changer-{number}@attacker.example");
            let registered = register(&mut client, address, &email, &slow_password()).await?;
            password_changers.push(json_string(&registered["access_token"])?);
        }
        let searcher = Ipv4Addr::new(100, 127, 255, 1).into();
        let registered =
            register(&mut client, searcher, "searcher@attacker.example", PASSWORD).await?;
        let mut searching_keys = Vec::new();
        for number in 0..SEARCHING_KEYS {
            searching_keys.push(create_key(&mut client, searcher, &registered, number).await?);
        }
        let events = if options.quick { 100_000 } else { 1_000_000 };
        fill_audit_log(&mut world.connect(DATABASE).await?, &registered, events).await?;
        wait_until_idle(world.postgres.pid()).await;
        Ok(Self { server, tenants, password_changers, searching_keys, events })
    }
}

/// Returns the email address of the account whose password is guessed.
pub(super) fn victim_email(round: u16) -> String {
    format!("victim-{round}@honest.example")
}

fn victim_address(round: u16) -> IpAddr {
    let [high, low] = round.to_be_bytes();
    Ipv4Addr::new(198, 19, high, low).into()
}

async fn create_tenant(client: &mut Client, number: u8) -> Result<Tenant, String> {
    let address = Ipv4Addr::new(198, 18, number, 1).into();
    let email = format!("tenant-{number}@honest.example");
    let registered = register(client, address, &email, PASSWORD).await?;
    let key = create_key(client, address, &registered, number).await?;
    let agent = json!({ "agent_name": "Agent", "voice_id": "v_1", "language": "en" });
    let agent = post(client, address, "/v1/agents", Some(&key), &agent).await?;
    Ok(Tenant {
        address,
        login: json!({ "email": email, "password": PASSWORD }),
        key,
        agent_id: json_string(&agent["agent_id"])?,
    })
}

async fn register(
    client: &mut Client,
    address: IpAddr,
    email: &str,
    password: &str,
) -> Result<Value, String> {
    let body = json!({ "email": email, "password": password });
    post(client, address, "/v1/auth/register", None, &body).await
}

/// Creates a key in the workspace of a user that has just registered.
async fn create_key(
    client: &mut Client,
    address: IpAddr,
    registered: &Value,
    number: u8,
) -> Result<String, String> {
    let token = json_string(&registered["access_token"])?;
    let body = json!({ "name": format!("bench {number}"), "scope": "admin" });
    json_string(&post(client, address, "/v1/api-keys", Some(&token), &body).await?["key"])
}

/// Posts JSON from an address. Any response but a success is an error.
async fn post(
    client: &mut Client,
    address: IpAddr,
    path: &str,
    bearer: Option<&str>,
    body: &Value,
) -> Result<Value, String> {
    let request = forwarded_from(address, &format_request("POST", path, bearer, Some(body)));
    client.send(&request).await.map_err(|error| error.to_string())?.json()
}

/// Fills the audit log of the workspace of a user that has just registered.
async fn fill_audit_log(
    connection: &mut PgConnection,
    registered: &Value,
    events: i64,
) -> Result<(), String> {
    let workspace: WorkspaceId = json_string(&registered["workspace"]["id"])?
        .parse()
        .map_err(|_| "an id is malformed".to_owned())?;
    let workspace: Uuid = workspace.uuid();
    eprintln!("writing {events} audit events");
    execute_sql(connection, "SELECT create_audit_partition(now() - interval '20 days')").await?;
    sqlx::query(INSERT_EVENTS)
        .bind(workspace)
        .bind(events)
        .execute(&mut *connection)
        .await
        .map_err(|error| format!("cannot write events: {error}"))?;
    // Vacuums as autovacuum would do later, so that it does not start during the measurements.
    execute_sql(connection, "VACUUM (ANALYZE) audit_events").await?;
    execute_sql(connection, "CHECKPOINT").await
}
