//! Time to end a session, in every way that exists, with a check that it has ended. Also the time
//! of failed sign-ins, which must be the same for unknown email addresses.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    client::{Client, format_request},
    environment::{BenchEnvironment, create_database},
    options::Options,
    seed::{json_string, post_json},
    stats::{format_millis, format_number, median, percentile},
    table::Table,
};

const DATABASE: &str = "sessions";
const PASSWORD: &str = "a walk in the park with a clock";
const VERIFY_PATH: &str = "/v1/auth/verify";
/// Sessions that are ended in each way, in each round.
const SESSIONS: usize = 8;
/// Failed sign-ins of each kind, in each round.
const FAILED: usize = 40;

/// A way to end a session. Each is one request, answered once no node accepts the session any more.
#[derive(Clone, Copy)]
enum Ending {
    SignOut,
    One,
    Others,
    Password,
    Reuse,
    Removed,
    Workspace,
    Account,
}

const ENDINGS: [(Ending, &str); 8] = [
    (Ending::SignOut, "sign-out"),
    (Ending::One, "one session, ended from another"),
    (Ending::Others, "all other sessions"),
    (Ending::Password, "password change (two password hashes)"),
    (Ending::Reuse, "reuse of an old refresh token"),
    (Ending::Removed, "removal from the workspace"),
    (Ending::Workspace, "deletion of the workspace (with a password)"),
    (Ending::Account, "deletion of the account (with a password)"),
];

/// The measurements of one way.
#[derive(Default)]
struct Sample {
    /// The latency of each request, in microseconds.
    latencies: Vec<f64>,
    /// Requests with the ended session that got 401.
    rejected: u64,
    /// Successful requests with the ended session. There must be none.
    successes: u64,
    /// Unexpected responses.
    failed: u64,
}

/// A user with two sessions. For [`Ending::Removed`], also a member of the owner's workspace.
struct SessionUser {
    id: String,
    /// The access token of the session that sends the request.
    requesting_token: String,
    /// The access token of the session that ends, and its first refresh token.
    ended_token: String,
    refresh: String,
}

/// Measures and prints both tables.
pub(crate) async fn measure(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    create_database(&world.postgres, DATABASE).await?;
    // Both nodes are of one deployment, so they have the same issuer of tokens.
    let issuer = [("CALL2ME_AUTH__SERVER__PUBLIC_URL", "http://127.0.0.1")];
    let first = world.start_another_service(DATABASE, "sessions-a", &issuer).await?;
    let second = world.start_another_service(DATABASE, "sessions-b", &issuer).await?;
    let mut nodes = Vec::new();
    for port in [first.port, second.port] {
        nodes.push(Client::connect(port).await.map_err(|error| error.to_string())?);
    }
    let mut connection = world.connect(DATABASE).await?;
    let owner = register(&mut nodes[0], "owner").await?;
    let mut samples: [Sample; ENDINGS.len()] = Default::default();
    let (mut unknown, mut wrong) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds() {
        eprintln!("round {round}: ends of sessions");
        for ((ending, _), sample) in ENDINGS.iter().zip(&mut samples) {
            for number in 0..SESSIONS {
                let name = format!("{round}-{}-{number}", *ending as u8);
                let user = create_user(&mut nodes, &mut connection, &owner, *ending, &name).await?;
                end_session(&mut nodes, &owner, *ending, &user, sample).await?;
            }
        }
        eprintln!("round {round}: failed sign-ins");
        for number in 0..FAILED {
            let unregistered = format!("nobody-{round}-{number}");
            unknown.push(sign_in(&mut nodes[0], &unregistered, PASSWORD, 401).await?);
            wrong.push(sign_in(&mut nodes[0], "owner", "a wrong one of some length", 401).await?);
            // A successful sign-in resets the throttling of failed attempts.
            sign_in(&mut nodes[0], "owner", PASSWORD, 200).await?;
        }
    }
    print(&samples);
    print_failed(&unknown, &wrong);
    Ok(())
}

fn address(name: &str) -> String {
    format!("{name}@call2me.example")
}

async fn register(client: &mut Client, name: &str) -> Result<Value, String> {
    let body = json!({ "email": address(name), "password": PASSWORD });
    post_json(client, "/v1/auth/register", None, &body).await
}

/// Signs in and returns the latency in microseconds.
async fn sign_in(
    client: &mut Client,
    name: &str,
    password: &str,
    status: u16,
) -> Result<f64, String> {
    let body = json!({ "email": address(name), "password": password });
    let (answer, micros) =
        client.send_timed(&format_request("POST", "/v1/auth/login", None, Some(&body))).await?;
    if answer.status == status {
        Ok(micros)
    } else {
        Err(format!("a sign-in got {} instead of {status}", answer.status))
    }
}

/// Registers a user with a session that every node has cached.
async fn create_user(
    nodes: &mut [Client],
    connection: &mut PgConnection,
    owner: &Value,
    ending: Ending,
    name: &str,
) -> Result<SessionUser, String> {
    let registered = register(&mut nodes[0], name).await?;
    let id = json_string(&registered["user"]["id"])?;
    let mut login = json!({ "email": address(name), "password": PASSWORD });
    if matches!(ending, Ending::Removed) {
        sqlx::query(
            "INSERT INTO memberships
             SELECT s.workspace_id, u.id, 'member', now() FROM users u, sessions s, users o
             WHERE u.email = $1 AND s.user_id = o.id AND o.email = $2 LIMIT 1",
        )
        .bind(address(name))
        .bind(address("owner"))
        .execute(connection)
        .await
        .map_err(|error| error.to_string())?;
        login["workspace_id"] = owner["workspace"]["id"].clone();
    }
    let pair = post_json(&mut nodes[0], "/v1/auth/login", None, &login).await?;
    let (requesting_token, ended_token) =
        (json_string(&registered["access_token"])?, json_string(&pair["access_token"])?);
    for client in nodes {
        // The first request looks the session up; the second shows that it is accepted.
        for _ in 0..2 {
            let answer = client
                .send_timed(&format_request("GET", VERIFY_PATH, Some(&ended_token), None))
                .await?
                .0;
            if answer.status != 200 {
                return Err(format!("a new session got {}", answer.status));
            }
        }
    }
    Ok(SessionUser {
        id,
        requesting_token,
        ended_token,
        refresh: json_string(&pair["refresh_token"])?,
    })
}

/// Ends a session through the first node and tries it at once on all nodes, on the last node first.
async fn end_session(
    nodes: &mut [Client],
    owner: &Value,
    ending: Ending,
    user: &SessionUser,
    sample: &mut Sample,
) -> Result<(), String> {
    let SessionUser { id, requesting_token, ended_token, refresh } = user;
    let password = json!({ "password": PASSWORD });
    let (end_request, expected) = match ending {
        Ending::SignOut => {
            (format_request("POST", "/v1/auth/logout", Some(ended_token), None), 204)
        }
        Ending::One => {
            let path = format!("/v1/auth/sessions/{}", session_of(ended_token)?);
            (format_request("DELETE", &path, Some(requesting_token), None), 204)
        }
        Ending::Others => {
            (format_request("DELETE", "/v1/auth/sessions", Some(requesting_token), None), 204)
        }
        Ending::Password => {
            let new = json!({ "current_password": PASSWORD, "new_password": "another walk, another clock" });
            (
                format_request(
                    "POST",
                    "/v1/auth/password/change",
                    Some(requesting_token),
                    Some(&new),
                ),
                200,
            )
        }
        Ending::Reuse => {
            let old = json!({ "refresh_token": refresh });
            let next = post_json(&mut nodes[0], "/v1/auth/refresh", None, &old).await?;
            let next = json!({ "refresh_token": next["refresh_token"] });
            post_json(&mut nodes[0], "/v1/auth/refresh", None, &next).await?;
            (format_request("POST", "/v1/auth/refresh", None, Some(&old)), 401)
        }
        Ending::Removed => {
            let token = json_string(&owner["access_token"])?;
            (format_request("DELETE", &format!("/v1/members/{id}"), Some(&token), None), 204)
        }
        Ending::Workspace => {
            (format_request("DELETE", "/v1/workspace", Some(ended_token), Some(&password)), 204)
        }
        Ending::Account => {
            (format_request("DELETE", "/v1/users/me", Some(requesting_token), Some(&password)), 204)
        }
    };
    let (answer, micros) = nodes[0].send_timed(&end_request).await?;
    if answer.status != expected {
        sample.failed += 1;
        return Ok(());
    }
    sample.latencies.push(micros);
    for client in nodes.iter_mut().rev() {
        match client
            .send_timed(&format_request("GET", VERIFY_PATH, Some(ended_token), None))
            .await?
            .0
            .status
        {
            401 => sample.rejected += 1,
            200..300 => sample.successes += 1,
            _ => sample.failed += 1,
        }
    }
    Ok(())
}

/// Returns the session of an access token: its `sid` claim.
fn session_of(token: &str) -> Result<String, String> {
    let claims = token.split('.').nth(1).unwrap_or_default();
    let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).map_err(|error| error.to_string())?;
    let claims: Value = serde_json::from_slice(&claims).map_err(|error| error.to_string())?;
    json_string(&claims["sid"])
}

fn print(samples: &[Sample]) {
    let mut table = Table::new(&[
        "session ended by",
        "times",
        "p50 ms",
        "p99 ms",
        "tries after",
        "rejected",
        "successes",
        "failed",
    ]);
    for ((_, name), sample) in ENDINGS.iter().zip(samples) {
        table.push_row([
            (*name).to_owned(),
            sample.latencies.len().to_string(),
            format_millis(median(sample.latencies.iter().copied())),
            format_millis(percentile(&sample.latencies, 99)),
            (sample.rejected + sample.successes).to_string(),
            sample.rejected.to_string(),
            sample.successes.to_string(),
            sample.failed.to_string(),
        ]);
    }
    table.print("Time to end a session");
    println!(
        "\nTwo nodes, both of which have cached the session. The time is that of one request through the \
         first node. Then the session's access token is tried at once, on the other node first; no try \
         may succeed."
    );
}

fn print_failed(unknown: &[f64], wrong: &[f64]) {
    let mut table = Table::new(&["failed sign-in", "times", "p50 ms", "vs. unknown", "p99 ms"]);
    let of_unknown = |own: &[f64]| median(own.iter().copied()) / median(unknown.iter().copied());
    for (name, own) in [("unknown email address", unknown), ("wrong password", wrong)] {
        table.push_row([
            name.to_owned(),
            own.len().to_string(),
            format_millis(median(own.iter().copied())),
            format_number(of_unknown(own), 3) + " ×",
            format_millis(percentile(own, 99)),
        ]);
    }
    table.print("Failed sign-ins take the same time for known and unknown email addresses");
}
