//! The content of the database before the measurements.

use std::{fs, io::Write as _, path::Path};

use call2me_auth::{
    env::Env,
    model::{
        api_key::{ApiKeySecret, Environment},
        id::{Id as _, WorkspaceId},
    },
};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::client::{Client, format_request};

/// Keys per statement.
const BATCH: usize = 10_000;
/// The number of users that sign in concurrently.
pub(crate) const USER_COUNT: u32 = 8;
const PASSWORD: &str = "a walk in the park with a clock";

/// A user and their data.
pub(crate) struct Account {
    /// Sign-in bodies, each of another user: two sign-ins of one user would wait for each other.
    pub(crate) logins: Vec<Value>,
    /// An access token of the user.
    pub(crate) jwt: String,
    /// A key of the user's workspace with the scope `admin`.
    pub(crate) key: String,
    /// The user's workspace.
    pub(crate) workspace_id: Uuid,
}

/// Registers the users, and creates a key and five agents for one of them.
pub(crate) async fn create_account(port: u16) -> Result<Account, String> {
    let mut client = Client::connect(port).await.map_err(|error| error.to_string())?;
    let mut logins = Vec::new();
    let mut registered = Value::Null;
    for number in 1..=USER_COUNT {
        let login =
            json!({ "email": format!("bench{number}@call2me.example"), "password": PASSWORD });
        registered = post_json(&mut client, "/v1/auth/register", None, &login).await?;
        logins.push(login);
    }
    let workspace = json_string(&registered["workspace"]["id"])?;
    let workspace: WorkspaceId = workspace.parse().map_err(|_| "an id is malformed".to_owned())?;
    let jwt = json_string(&registered["access_token"])?;
    let body = json!({ "name": "bench", "scope": "admin" });
    let created = post_json(&mut client, "/v1/api-keys", Some(&jwt), &body).await?;
    for number in 1..=5 {
        let agent = json!({ "agent_name": format!("Agent {number}"), "language": "en",
                            "voice_id": "v_1", "greeting": "Good morning, what can I do for you?" });
        post_json(&mut client, "/v1/agents", Some(&jwt), &agent).await?;
    }
    let key = json_string(&created["key"])?;
    Ok(Account { logins, jwt, key, workspace_id: workspace.uuid() })
}

/// Posts JSON. Any response but a success is an error.
pub(crate) async fn post_json(
    client: &mut Client,
    path: &str,
    bearer: Option<&str>,
    body: &Value,
) -> Result<Value, String> {
    let post_request = format_request("POST", path, bearer, Some(body));
    client.send(&post_request).await.map_err(|error| error.to_string())?.json()
}

/// Returns the text in a response.
pub(crate) fn json_string(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| "a response lacks a text".to_owned())
}

/// Generates keys as the service does.
pub(crate) fn generate_keys(env: &Env, count: usize) -> Result<Vec<ApiKeySecret>, String> {
    let live: Environment = "live".parse().map_err(|_| "a label is malformed".to_owned())?;
    Ok((0..count).map(|_| ApiKeySecret::generate(&live, |bytes| env.entropy.fill(bytes))).collect())
}

/// Writes keys to a file, one per line.
pub(crate) fn write_keys(path: &Path, keys: &[ApiKeySecret]) -> Result<(), String> {
    let write = || {
        let mut file = std::io::BufWriter::new(fs::File::create(path)?);
        for key in keys {
            writeln!(file, "{}", key.reveal())?;
        }
        file.flush()
    };
    write().map_err(|error: std::io::Error| format!("cannot write {}: {error}", path.display()))
}

/// Stores keys of a workspace, as superuser.
pub(crate) async fn store_keys(
    connection: &mut PgConnection,
    env: &Env,
    workspace: Uuid,
    keys: &[ApiKeySecret],
) -> Result<(), String> {
    for batch in keys.chunks(BATCH) {
        let ids: Vec<Uuid> = batch.iter().map(|_| env.new_uuid()).collect();
        let digests: Vec<Vec<u8>> =
            batch.iter().map(|key| key.digest().as_bytes().to_vec()).collect();
        let (starts, ends): (Vec<String>, Vec<String>) =
            batch.iter().map(ApiKeySecret::display_ends).unzip();
        sqlx::query(
            "INSERT INTO api_keys
                 (id, workspace_id, name, scope, digest, display_start, display_end, created_at)
             SELECT id, $1, 'bench', 'read-only', digest, display_start, display_end, now()
             FROM unnest($2::uuid[], $3::bytea[], $4::text[], $5::text[])
                  AS new (id, digest, display_start, display_end)",
        )
        .bind(workspace)
        .bind(ids)
        .bind(digests)
        .bind(starts)
        .bind(ends)
        .execute(&mut *connection)
        .await
        .map_err(|error| format!("cannot store keys: {error}"))?;
    }
    execute_sql(connection, "ANALYZE api_keys").await?;
    execute_sql(connection, "CHECKPOINT").await
}

/// Runs a constant SQL statement.
pub(crate) async fn execute_sql(
    connection: &mut PgConnection,
    sql: &'static str,
) -> Result<(), String> {
    let done = sqlx::raw_sql(sql).execute(connection).await;
    done.map(drop).map_err(|error| format!("PostgreSQL rejected a statement: {error}"))
}
