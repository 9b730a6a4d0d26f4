//! Reading the audit log when it is long: each filter of `GET /v1/audit-log`, over HTTP.

mod fill;

use call2me_auth::model::id::{ApiKeyId, RequestId, UserId};
use serde_json::Value;

use self::fill::{Filled, RARE_ADDRESS};
use crate::{
    client::{Client, request},
    options::Options,
    process::settle,
    seed,
    stats::{float, median, millis, number, percentile},
    table::Table,
    world::{World, create_database},
};

const DATABASE: &str = "audit_log";
/// How often each question is asked.
const TIMES: usize = 20;
/// A question that has taken so many microseconds in total is asked no more.
const ENOUGH: f64 = 60e6;
/// The page that is asked for by a cursor, and events on each of those before it.
const DEEP_PAGE: usize = 200;
const DEEP_LIMIT: usize = 100;

/// A question, and what was measured of it.
struct Question {
    what: String,
    request: String,
    latencies: Vec<f64>,
    /// Events in the last answer.
    events: usize,
    failed: u64,
}

/// Fills a log and prints the table.
pub(crate) async fn measure(options: &Options, world: &World) -> Result<(), String> {
    let rows = match (options.quick, options.full) {
        (_, true) => 10_000_000,
        (true, _) => 100_000,
        _ => 1_000_000,
    };
    create_database(&world.postgres, DATABASE).await?;
    let server = world.service(DATABASE, "audit-log", &[]).await?;
    let account = seed::account(server.port).await?;
    let mut connection = world.connect(DATABASE).await?;
    let filled = fill::fill(&mut connection, rows).await?;
    settle(world.postgres.pid()).await;
    let mut client = Client::connect(server.port).await.map_err(|error| error.to_string())?;
    let mut questions = questions(&filled, &account.jwt);
    questions.push(deep(&mut client, &account.jwt).await?);
    for time in 1..=TIMES {
        eprintln!("round {time}: the audit log");
        for question in &mut questions {
            ask(&mut client, question).await?;
        }
    }
    print(&filled, &questions);
    Ok(())
}

fn question(what: &str, query: &str, jwt: &str) -> Question {
    let request = request("GET", &format!("/v1/audit-log{query}"), Some(jwt), None);
    Question { what: what.to_owned(), request, latencies: Vec::new(), events: 0, failed: 0 }
}

fn questions(filled: &Filled, jwt: &str) -> Vec<Question> {
    let Filled { busy_key, rare_key, person, newest_request, oldest_request, .. } = *filled;
    let Filled { busy_address, since, until, .. } = filled;
    let all = [
        ("the first page", String::new()),
        ("`key_id`: 30 % of all", format!("?key_id={}", ApiKeyId::from(busy_key))),
        ("`key_id`: 0.001 % of all", format!("?key_id={}", ApiKeyId::from(rare_key))),
        ("`actor_id`: a person, 0.5 % of all", format!("?actor_id={}", UserId::from(person))),
        ("`status=403`: 2 % of all", "?status=403".to_owned()),
        ("`ip`: one of eight", format!("?ip={busy_address}")),
        ("`ip`: 0.001 % of all", format!("?ip={RARE_ADDRESS}")),
        ("`action=api_key.created`: 0.01 % of all", "?action=api_key.created".to_owned()),
        ("`since`, `until`: an hour, ten days ago", format!("?since={since}&until={until}")),
        ("`request_id`: the newest", format!("?request_id={}", RequestId::from(newest_request))),
        ("`request_id`: the oldest", format!("?request_id={}", RequestId::from(oldest_request))),
    ];
    all.iter().map(|(what, query)| question(what, query, jwt)).collect()
}

/// Follows the cursors as a client does.
async fn deep(client: &mut Client, jwt: &str) -> Result<Question, String> {
    let (mut page, mut query) = (1, format!("?limit={DEEP_LIMIT}"));
    while page < DEEP_PAGE {
        let next = question("", &query, jwt);
        let body = client.timed(&next.request).await?.0.json()?;
        let Some(cursor) = body["next_cursor"].as_str() else { break };
        query = format!("?limit={DEEP_LIMIT}&cursor={cursor}");
        page += 1;
    }
    Ok(question(&format!("`cursor`: page {page} of {DEEP_LIMIT} each"), &query, jwt))
}

async fn ask(client: &mut Client, question: &mut Question) -> Result<(), String> {
    if question.latencies.iter().sum::<f64>() > ENOUGH {
        return Ok(());
    }
    let (answer, micros) = client.timed(&question.request).await?;
    question.latencies.push(micros);
    match answer.json() {
        Ok(body) => question.events = body["events"].as_array().map_or(0, Vec::<Value>::len),
        Err(line) => {
            question.failed += 1;
            eprintln!("{}: {line}", question.what);
        }
    }
    Ok(())
}

fn print(filled: &Filled, questions: &[Question]) {
    let mut table =
        Table::new(&["events wanted", "on the page", "p50 ms", "max ms", "of", "failed"]);
    for Question { what, latencies, events, failed, .. } in questions {
        table.row([
            what.clone(),
            events.to_string(),
            millis(median(latencies.iter().copied())),
            millis(percentile(latencies, 100)),
            latencies.len().to_string(),
            failed.to_string(),
        ]);
    }
    let count = |rows: i64| number(float(u64::try_from(rows).unwrap_or_default()), 0);
    table.print(&format!("`GET /v1/audit-log` with {} events", count(filled.rows)));
    println!(
        "\n{} rows, in partitions: {}; {} of them are of the workspace that is asked for: {} MiB of table, \
         {} MiB of indexes, filled in {} s. Over one connection, one question after the other, {TIMES} \
         times in turn; one that has taken a minute in all is asked no more. Pages of 50 events but \
         where told. The oldest request is the first of the workspace, 20 days ago. 503 is a failure: \
         a statement may take 10 s.",
        count(filled.rows),
        filled.partitions,
        count(filled.own_rows),
        number(filled.table_mib, 0),
        number(filled.indexes_mib, 0),
        number(filled.seconds, 0),
    );
}
