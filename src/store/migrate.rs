//! Schema setup: migrations at startup, and new monthly partitions of the audit log.

use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection, migrate::Migrator, postgres::PgConnectOptions};
use time::OffsetDateTime;

use super::{
    APP_ROLE, ServiceLogin, Store, StoreError, brief, hosts,
    schema_version::{AppliedMigrations, SchemaMismatch},
};

/// All migrations, compiled into the binary.
pub(super) static MIGRATOR: Migrator = sqlx::migrate!();

/// The error for a schema that the migrations of this version cannot extend.
const PRE_RELEASE_SCHEMA: &str = "this database has the schema of a pre-release version of \
                                  call2me-auth, which cannot be migrated; create a new database";

/// Applies pending migrations. Nodes that start at the same time take turns.
///
/// # Errors
/// A one-line message for the operator.
pub async fn migrate(owner_url: &str) -> Result<(), String> {
    let mut connection = connect(owner_url).await?;
    let outcome = apply_migrations(&mut connection).await;
    connection.close().await.ok();
    outcome
}

async fn apply_migrations(connection: &mut PgConnection) -> Result<(), String> {
    if let Some(mismatch @ SchemaMismatch::Newer { .. }) = find_mismatch(connection).await? {
        return Err(mismatch.to_string());
    }
    let outcome = MIGRATOR.run_direct(None, connection, false).await;
    outcome.map_err(|error| format!("cannot migrate the database: {error}"))
}

/// Creates a database in an embedded cluster, unless it exists.
///
/// # Errors
/// A one-line message for the operator.
pub async fn create_database(maintenance_url: &str, name: &str) -> Result<(), String> {
    let mut connection = connect(maintenance_url).await?;
    // The name is a constant of this service, not user input, and is quoted.
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE \"{name}\""));
    let created = sqlx::raw_sql(create).execute(&mut connection).await;
    connection.close().await.ok();
    match created {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P04") => Ok(()),
        Err(error) => Err(format!("cannot create the database: {}", brief(&error))),
        Ok(_) => Ok(()),
    }
}

/// Enables login with a password for [`APP_ROLE`], as an embedded cluster needs it.
///
/// # Errors
/// A one-line message for the operator.
pub async fn enable_app_role_login(owner_url: &str, password: &SecretString) -> Result<(), String> {
    let mut connection = connect(owner_url).await?;
    let password = password.expose_secret().replace('\'', "''");
    let alter = sqlx::AssertSqlSafe(format!("ALTER ROLE {APP_ROLE} LOGIN PASSWORD '{password}'"));
    let altered = sqlx::raw_sql(alter).execute(&mut connection).await;
    connection.close().await.ok();
    altered
        .map(drop)
        .map_err(|error| format!("cannot enable login for the role {APP_ROLE}: {}", brief(&error)))
}

/// Creates a login of the service, a member of [`APP_ROLE`], unless it exists. Otherwise restores
/// its password and settings: every role may change its own, and so may SQL that is injected.
///
/// # Errors
/// A one-line message for the operator.
pub async fn create_service_login(owner_url: &str, login: &ServiceLogin) -> Result<(), String> {
    let mut connection = connect(owner_url).await?;
    // The name and the verifier contain no quotes. Nodes that start at the same time take turns.
    let (name, verifier) = (&login.name, login.scram_verifier());
    let create = sqlx::AssertSqlSafe(format!(
        "BEGIN;
         SELECT pg_advisory_xact_lock(hashtext('{name}'));
         DO $$ BEGIN
             IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
                 CREATE ROLE {name} LOGIN PASSWORD '{verifier}' NOSUPERUSER NOCREATEDB
                     NOCREATEROLE NOBYPASSRLS;
                 GRANT {APP_ROLE} TO {name};
             ELSE
                 ALTER ROLE {name} PASSWORD '{verifier}';
                 ALTER ROLE {name} RESET ALL;
                 EXECUTE format('ALTER ROLE {name} IN DATABASE %I RESET ALL', current_database());
             END IF;
         EXCEPTION
             -- Another owner created it, and may have set its attributes on purpose.
             WHEN insufficient_privilege THEN
                 IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
                     RAISE;
                 END IF;
         END $$;
         COMMIT"
    ));
    let created = sqlx::raw_sql(create).execute(&mut connection).await;
    connection.close().await.ok();
    match created {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => {
            Err(format!(
                "database.url logs in as the owner of the tables or as a superuser, and may not \
                 create a login with fewer rights: let {APP_ROLE} log in, with its URL in \
                 database.url and this one in database.owner_url"
            ))
        }
        Err(error) => Err(format!("cannot create the login of the service: {}", brief(&error))),
        Ok(_) => Ok(()),
    }
}

/// Returns the name of the database in a URL.
///
/// # Errors
/// A message if the URL is malformed.
pub fn database_name(url: &str) -> Result<String, String> {
    let url = first_host(url)?;
    Ok(url.get_database().unwrap_or_else(|| url.get_username()).to_owned())
}

/// Returns true if the login of a URL is a superuser, bypasses row-level security, or owns the
/// tables.
///
/// # Errors
/// A one-line message for the operator.
pub async fn is_privileged_login(url: &str) -> Result<bool, String> {
    let mut connection = connect(url).await?;
    let is_privileged = sqlx::query_scalar!(
        r#"SELECT rolsuper OR rolbypassrls OR pg_has_role(
                      (SELECT relowner FROM pg_class WHERE oid = 'workspaces'::regclass), 'MEMBER')
               AS "is_privileged!"
           FROM pg_roles WHERE rolname = current_user"#
    )
    .fetch_one(&mut connection)
    .await;
    connection.close().await.ok();
    is_privileged.map_err(|error| format!("cannot query PostgreSQL: {}", brief(&error)))
}

/// Returns the user name in a database URL.
///
/// # Errors
/// A message if the URL is malformed.
pub fn login_name(url: &str) -> Result<String, String> {
    Ok(first_host(url)?.get_username().to_owned())
}

/// All hosts of a URL have the same user and database.
fn first_host(url: &str) -> Result<PgConnectOptions, String> {
    hosts::parse(url)?.into_iter().next().ok_or_else(|| "the database URL names no host".to_owned())
}

/// Checks that the schema has the migrations of this version, and no others. Returns the mismatch,
/// if there is one.
///
/// # Errors
/// A one-line message for the operator.
pub async fn check_schema(url: &str) -> Result<Option<SchemaMismatch>, String> {
    let mut connection = connect(url).await?;
    let mismatch = find_mismatch(&mut connection).await;
    connection.close().await.ok();
    mismatch
}

async fn find_mismatch(connection: &mut PgConnection) -> Result<Option<SchemaMismatch>, String> {
    if !check_schema_origin(connection).await? {
        let expected = MIGRATOR.iter().map(|migration| migration.version).max();
        let expected = expected.unwrap_or_default();
        return Ok(Some(SchemaMismatch::Older { found: 0, expected }));
    }
    let applied = AppliedMigrations::read(connection).await;
    let applied = applied.map_err(|error| cannot_read_version(&error))?;
    Ok(applied.check_equal().err())
}

fn cannot_read_version(error: &sqlx::Error) -> String {
    format!("cannot read the schema version: {}", brief(error))
}

/// Checks that the first migration was that of this version. Released migrations never change, so
/// another one belongs to a pre-release version. Returns false if no migration was applied yet.
async fn check_schema_origin(connection: &mut PgConnection) -> Result<bool, String> {
    let is_migrated =
        sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "any!""#)
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| format!("cannot query PostgreSQL: {}", brief(&error)))?;
    if !is_migrated {
        return Ok(false);
    }
    let applied: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT checksum FROM _sqlx_migrations ORDER BY version LIMIT 1")
            .fetch_optional(connection)
            .await
            .map_err(|error| cannot_read_version(&error))?;
    let first = MIGRATOR.iter().min_by_key(|migration| migration.version);
    match (applied, first) {
        (Some(applied), Some(first)) if applied != *first.checksum => {
            Err(PRE_RELEASE_SCHEMA.to_owned())
        }
        (applied, _) => Ok(applied.is_some()),
    }
}

pub(super) async fn connect(url: &str) -> Result<PgConnection, String> {
    hosts::connect(&hosts::parse(url)?)
        .await
        .map_err(|error| format!("cannot connect to PostgreSQL: {}", brief(&error)))
}

impl Store {
    /// Creates the audit log partitions for the month of `now` and the next two, unless they exist.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails, or if one is missing that is not within three months of
    /// the time of PostgreSQL.
    pub async fn create_audit_partitions(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(
            "SELECT create_present_audit_partition($1::timestamptz + month * interval '1 month')
             FROM generate_series(0, 2) AS month",
            now,
        )
        .fetch_all(&self.pools.background())
        .await?;
        Ok(())
    }
}
