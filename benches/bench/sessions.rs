//! How long it takes to end a session, in every way that there is, and whether it is over then; and that
//! a sign-in which fails takes as long for an address that nobody has.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    client::{Client, request},
    options::Options,
    seed::{post, text},
    stats::{median, millis, number, percentile},
    table::Table,
    world::{World, create_database},
};

const DATABASE: &str = "sessions";
const PASSWORD: &str = "a walk in the park with a clock";
const VERIFY: &str = "/v1/auth/verify";
/// Sessions that are ended in each way, in each round.
const SESSIONS: usize = 8;
/// Failed sign-ins of each kind, in each round.
const FAILED: usize = 40;

/// What is done. Each is one request, answered once no node believes the session any more.
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
    (Ending::One, "one's session, ended from another"),
    (Ending::Others, "all others, ended from one"),
    (Ending::Password, "another password (which is hashed twice)"),
    (Ending::Reuse, "an old refresh token, used again"),
    (Ending::Removed, "removal from the workspace"),
    (Ending::Workspace, "deletion of the workspace (with a password)"),
    (Ending::Account, "deletion of the account (with a password)"),
];

/// What came of one way.
#[derive(Default)]
struct Sample {
    /// Microseconds of each.
    took: Vec<f64>,
    /// Answers to the session after it that were 401.
    refused: u64,
    /// The same that were a success: none is to be.
    successes: u64,
    /// Answers that ought to have been others.
    failed: u64,
}

/// Somebody with two sessions, who is also a member of somebody else's workspace.
struct Victim {
    id: String,
    /// Where the ending is asked for.
    asking: String,
    /// The session that ends, and its first refresh token.
    doomed: String,
    refresh: String,
}

/// Measures and prints both tables.
pub(crate) async fn measure(options: &Options, world: &World) -> Result<(), String> {
    create_database(&world.postgres, DATABASE).await?;
    // One deployment, so one issuer of tokens.
    let issuer = [("CALL2ME_AUTH__SERVER__PUBLIC_URL", "http://127.0.0.1")];
    let first = world.service(DATABASE, "sessions-a", &issuer).await?;
    let second = world.service(DATABASE, "sessions-b", &issuer).await?;
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
                let victim = victim(&mut nodes, &mut connection, &owner, *ending, &name).await?;
                end(&mut nodes, &owner, *ending, &victim, sample).await?;
            }
        }
        eprintln!("round {round}: failed sign-ins");
        for number in 0..FAILED {
            let nobody = format!("nobody-{round}-{number}");
            unknown.push(sign_in(&mut nodes[0], &nobody, PASSWORD, 401).await?);
            wrong.push(sign_in(&mut nodes[0], "owner", "a wrong one of some length", 401).await?);
            // Else guesses would have to wait.
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
    post(client, "/v1/auth/register", None, &body).await
}

/// A sign-in; answers how many microseconds it took.
async fn sign_in(
    client: &mut Client,
    name: &str,
    password: &str,
    status: u16,
) -> Result<f64, String> {
    let body = json!({ "email": address(name), "password": password });
    let (answer, micros) =
        client.timed(&request("POST", "/v1/auth/login", None, Some(&body))).await?;
    if answer.status == status {
        Ok(micros)
    } else {
        Err(format!("a sign-in was answered {} instead of {status}", answer.status))
    }
}

/// Somebody new, whose sessions every node has seen.
async fn victim(
    nodes: &mut [Client],
    connection: &mut PgConnection,
    owner: &Value,
    ending: Ending,
    name: &str,
) -> Result<Victim, String> {
    let made = register(&mut nodes[0], name).await?;
    let id = text(&made["user"]["id"])?;
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
    let pair = post(&mut nodes[0], "/v1/auth/login", None, &login).await?;
    let (asking, doomed) = (text(&made["access_token"])?, text(&pair["access_token"])?);
    for client in nodes {
        // The first looks it up, the second shows that it is believed.
        for _ in 0..2 {
            let answer = client.timed(&request("GET", VERIFY, Some(&doomed), None)).await?.0;
            if answer.status != 200 {
                return Err(format!("a fresh session was answered {}", answer.status));
            }
        }
    }
    Ok(Victim { id, asking, doomed, refresh: text(&pair["refresh_token"])? })
}

/// Ends a session through the first node, and tries it at once on all, on the last node first.
async fn end(
    nodes: &mut [Client],
    owner: &Value,
    ending: Ending,
    victim: &Victim,
    sample: &mut Sample,
) -> Result<(), String> {
    let Victim { id, asking, doomed, refresh } = victim;
    let password = json!({ "password": PASSWORD });
    let (question, expected) = match ending {
        Ending::SignOut => (request("POST", "/v1/auth/logout", Some(doomed), None), 204),
        Ending::One => {
            let path = format!("/v1/auth/sessions/{}", session_of(doomed)?);
            (request("DELETE", &path, Some(asking), None), 204)
        }
        Ending::Others => (request("DELETE", "/v1/auth/sessions", Some(asking), None), 204),
        Ending::Password => {
            let new = json!({ "current_password": PASSWORD, "new_password": "another walk, another clock" });
            (request("POST", "/v1/auth/password/change", Some(asking), Some(&new)), 204)
        }
        Ending::Reuse => {
            let old = json!({ "refresh_token": refresh });
            let next = post(&mut nodes[0], "/v1/auth/refresh", None, &old).await?;
            let next = json!({ "refresh_token": next["refresh_token"] });
            post(&mut nodes[0], "/v1/auth/refresh", None, &next).await?;
            (request("POST", "/v1/auth/refresh", None, Some(&old)), 401)
        }
        Ending::Removed => {
            let token = text(&owner["access_token"])?;
            (request("DELETE", &format!("/v1/members/{id}"), Some(&token), None), 204)
        }
        Ending::Workspace => {
            (request("DELETE", "/v1/workspace", Some(doomed), Some(&password)), 204)
        }
        Ending::Account => (request("DELETE", "/v1/users/me", Some(asking), Some(&password)), 204),
    };
    let (answer, micros) = nodes[0].timed(&question).await?;
    if answer.status != expected {
        sample.failed += 1;
        return Ok(());
    }
    sample.took.push(micros);
    for client in nodes.iter_mut().rev() {
        match client.timed(&request("GET", VERIFY, Some(doomed), None)).await?.0.status {
            401 => sample.refused += 1,
            200..300 => sample.successes += 1,
            _ => sample.failed += 1,
        }
    }
    Ok(())
}

/// The session of an access token: its claim `sid`.
fn session_of(token: &str) -> Result<String, String> {
    let claims = token.split('.').nth(1).unwrap_or_default();
    let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).map_err(|error| error.to_string())?;
    let claims: Value = serde_json::from_slice(&claims).map_err(|error| error.to_string())?;
    text(&claims["sid"])
}

fn print(samples: &[Sample]) {
    let mut table = Table::new(&[
        "what ends a session",
        "times",
        "p50 ms",
        "p99 ms",
        "tried after",
        "refused",
        "successes",
        "failed",
    ]);
    for ((_, name), sample) in ENDINGS.iter().zip(samples) {
        table.row([
            (*name).to_owned(),
            sample.took.len().to_string(),
            millis(median(sample.took.iter().copied())),
            millis(percentile(&sample.took, 99)),
            (sample.refused + sample.successes).to_string(),
            sample.refused.to_string(),
            sample.successes.to_string(),
            sample.failed.to_string(),
        ]);
    }
    table.print("What ends a session, and how fast");
    println!(
        "\nTwo nodes, each of which has the session in memory. One request through the first node, \
         until its answer; then the session's access token is tried at once, on the other node first: \
         every success is one too many."
    );
}

fn print_failed(unknown: &[f64], wrong: &[f64]) {
    let mut table = Table::new(&["a failed sign-in", "times", "p50 ms", "of unknown", "p99 ms"]);
    let of_unknown = |own: &[f64]| median(own.iter().copied()) / median(unknown.iter().copied());
    for (name, own) in [("an unknown address", unknown), ("a wrong password", wrong)] {
        table.row([
            name.to_owned(),
            own.len().to_string(),
            millis(median(own.iter().copied())),
            number(of_unknown(own), 3) + " ×",
            millis(percentile(own, 99)),
        ]);
    }
    table.print("Whether an address is known cannot be told from the time");
}
