//! Migrations with logins of different rights, and of databases with another schema.

use std::time::Duration;

use call2me_auth::{
    config::Pool,
    env::Env,
    model::{email::Email, key_ring::KeyRing},
    store::{ContextKey, ServiceLogin, Store, migrate},
};
use secrecy::ExposeSecret;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::fixture::{Database, cluster};

/// Creates an empty database that belongs to a new login with these role attributes. Returns the
/// database and the login's URL.
async fn database_of_new_login(attributes: &str) -> (Database, String) {
    let database = cluster().empty_database().await;
    let name = database.url.rsplit('/').next().unwrap();
    let sql = format!(
        "CREATE ROLE owner_of_{name} LOGIN PASSWORD 'owner' NOSUPERUSER {attributes};
         ALTER DATABASE {name} OWNER TO owner_of_{name}"
    );
    database.connect().await.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    let url = database.url.replace("postgres:test@", &format!("owner_of_{name}:owner@"));
    (database, url)
}

async fn connect(url: &str) -> Result<Store, String> {
    let timeout = Duration::from_secs(10);
    let options = Pool { max_connections: 2, acquire_timeout: timeout, statement_timeout: timeout };
    let key = ContextKey::new([7; 32].into());
    let clock = Env::system().database_clock;
    Store::connect(url, None, &options, timeout, key.into(), &clock).await
}

/// Connects with a login that the owner creates for the service.
async fn connect_with_own_login(url: &str) -> Result<Store, String> {
    assert!(migrate::is_privileged_login(url).await?);
    let login = ServiceLogin::derive(&[7; 32], &migrate::database_name(url)?);
    // A second node finds the login.
    for _ in 0..2 {
        migrate::create_service_login(url, &login).await?;
    }
    let timeout = Duration::from_secs(10);
    let options = Pool { max_connections: 2, acquire_timeout: timeout, statement_timeout: timeout };
    let (key, clock) = (ContextKey::new([7; 32].into()), Env::system().database_clock);
    Store::connect(url, Some(&login), &options, timeout, key.into(), &clock).await
}

#[tokio::test]
async fn superuser_migrates_and_creates_login_of_service() {
    let database = cluster().empty_database().await;
    migrate::migrate(&database.url).await.unwrap();
    let error = connect(&database.url).await.unwrap_err();
    assert!(error.starts_with("the login postgres is a superuser"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    connect_with_own_login(&database.url).await.unwrap().ping().await.unwrap();
    // `RESET ROLE` in injected SQL leads to a login without rights of its own.
    let login = ServiceLogin::derive(&[7; 32], &migrate::database_name(&database.url).unwrap());
    let sql = "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb FROM pg_roles
               WHERE rolname = $1";
    let mut connection = database.connect().await;
    let has_rights: bool =
        sqlx::query_scalar(sql).bind(&login.name).fetch_one(&mut connection).await.unwrap();
    assert!(!has_rights);
    let bypassing = format!("ALTER ROLE {} BYPASSRLS", login.name);
    connection.execute(sqlx::raw_sql(AssertSqlSafe(bypassing))).await.unwrap();
    let error = connect_with_own_login(&database.url).await.unwrap_err();
    assert!(error.starts_with(&format!("the login {} is a superuser", login.name)), "{error}");
}

/// SQL that is injected into a request leaves nothing behind that later requests on the same
/// connection would meet.
#[tokio::test]
async fn service_role_creates_no_temporary_objects() {
    let superuser = cluster().empty_database().await;
    let (owned, owner_url) = database_of_new_login("CREATEROLE").await;
    for (database, url) in [(&superuser, &superuser.url), (&owned, &owner_url)] {
        migrate::migrate(url).await.unwrap();
        let login = ServiceLogin::derive(&[7; 32], &migrate::database_name(url).unwrap());
        migrate::create_service_login(url, &login).await.unwrap();
        for role in ["call2me_auth_app", &login.name] {
            let mut connection = database.connect().await;
            let set_role = format!("SET ROLE {role}");
            connection.execute(AssertSqlSafe(set_role)).await.unwrap();
            for sql in [
                "CREATE TEMP TABLE api_keys (id uuid)",
                "CREATE TEMP VIEW users AS SELECT 1 AS id",
                "CREATE FUNCTION pg_temp.spy() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
                "CREATE TABLE public.api_keys2 (id uuid)",
                "CREATE SCHEMA spy",
            ] {
                let error = connection.execute(sql).await.unwrap_err();
                let code = error.as_database_error().unwrap().code().unwrap().into_owned();
                assert_eq!(code, "42501", "{role}: {sql}: {error}");
            }
        }
    }
}

/// By default PostgreSQL looks up names in the schema of the role's name first.
#[tokio::test]
async fn service_reads_no_table_of_another_schema() {
    let database = cluster().empty_database().await;
    migrate::migrate(&database.url).await.unwrap();
    let sql = "CREATE SCHEMA call2me_auth_app;
               CREATE FUNCTION call2me_auth_app.find_account_by_email(text)
                   RETURNS SETOF public.users LANGUAGE plpgsql
                   AS $$ BEGIN RAISE EXCEPTION 'shadowed'; END $$;
               GRANT USAGE ON SCHEMA call2me_auth_app TO PUBLIC";
    database.connect().await.execute(sqlx::raw_sql(sql)).await.unwrap();
    let store = connect_with_own_login(&database.url).await.unwrap();
    let email = Email::parse("dana@acme.example").unwrap();
    assert!(store.find_account(&email).await.unwrap().is_none());
}

/// A role may change its own password and settings.
#[tokio::test]
async fn login_of_service_is_restored_when_a_node_starts() {
    let (_database, url) = database_of_new_login("CREATEROLE").await;
    migrate::migrate(&url).await.unwrap();
    connect_with_own_login(&url).await.unwrap();
    let name = migrate::database_name(&url).unwrap();
    let login = ServiceLogin::derive(&[7; 32], &name);
    let own_url = {
        let (_, host) = url.rsplit_once('@').unwrap();
        format!("postgres://{}:{}@{host}", login.name, login.password.expose_secret())
    };
    let mut injected = PgConnection::connect(&own_url).await.unwrap();
    let sql = format!(
        "ALTER ROLE {role} SET statement_timeout = 1;
         ALTER ROLE {role} IN DATABASE {name} SET lock_timeout = 1;
         ALTER ROLE {role} PASSWORD 'x'",
        role = login.name
    );
    injected.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    assert!(PgConnection::connect(&own_url).await.is_err());
    connect_with_own_login(&url).await.unwrap().ping().await.unwrap();
    let mut restored = PgConnection::connect(&own_url).await.unwrap();
    for setting in ["statement_timeout", "lock_timeout"] {
        let sql = format!("SELECT current_setting('{setting}')");
        let value: String =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut restored).await.unwrap();
        assert_eq!(value, "0", "{setting}");
    }
}

/// The migration grants the service's role to a login that may create roles.
#[tokio::test]
async fn login_with_createrole_migrates_and_creates_login_of_service() {
    let (_database, url) = database_of_new_login("CREATEROLE").await;
    migrate::migrate(&url).await.unwrap();
    let error = connect(&url).await.unwrap_err();
    assert!(error.contains("owns the tables"), "{error}");
    connect_with_own_login(&url).await.unwrap().ping().await.unwrap();
    migrate::migrate(&url).await.unwrap();
}

#[tokio::test]
async fn owner_without_createrole_needs_separate_login() {
    let (_database, url) = database_of_new_login("NOCREATEROLE").await;
    migrate::migrate(&url).await.unwrap();
    let error = connect_with_own_login(&url).await.unwrap_err();
    assert!(error.contains("let call2me_auth_app log in"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

/// A node must have all keys that the data of the database may need.
#[tokio::test]
async fn node_that_lacks_an_encryption_key_is_refused() {
    let database = cluster().empty_database().await;
    migrate::migrate(&database.url).await.unwrap();
    connect_with_own_login(&database.url).await.unwrap();
    let login = ServiceLogin::derive(&[7; 32], &migrate::database_name(&database.url).unwrap());
    let timeout = Duration::from_secs(10);
    let options = Pool { max_connections: 2, acquire_timeout: timeout, statement_timeout: timeout };
    let clock = Env::system().database_clock;
    let connect = async |current: u8, previous: &[u8]| {
        let key = |byte: &u8| ContextKey::new([*byte; 32].into());
        let ring = KeyRing::new(key(&current), previous.iter().map(key).collect());
        Store::connect(&database.url, Some(&login), &options, timeout, ring, &clock).await
    };
    // A key that no node has: nothing is stored.
    for previous in [&[][..], &[9], &[9, 10]] {
        let error = connect(8, previous).await.unwrap_err();
        assert!(error.contains("data of another encryption key (id "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    // Before the rotation, a node may have the new key to read. Afterwards it needs the old one.
    connect(7, &[8]).await.unwrap().ping().await.unwrap();
    connect(8, &[9, 7]).await.unwrap().ping().await.unwrap();
    connect(7, &[8]).await.unwrap().ping().await.unwrap();
    for (current, previous) in [(7, &[][..]), (8, &[]), (8, &[9])] {
        connect(current, previous).await.unwrap_err();
    }
}

/// The checksums of a pre-release version differ from those of this one.
#[tokio::test]
async fn pre_release_schema_is_rejected_in_plain_words() {
    let database = cluster().database().await;
    assert_eq!(migrate::check_schema(&database.url).await, Ok(None));
    let sql = "UPDATE _sqlx_migrations SET checksum = sha256('pre-release') WHERE version = 1";
    database.connect().await.execute(sql).await.unwrap();
    for error in [
        migrate::migrate(&database.url).await.unwrap_err(),
        migrate::check_schema(&database.url).await.unwrap_err(),
    ] {
        assert!(error.contains("pre-release version of call2me-auth"), "{error}");
        assert!(error.ends_with("create a new database") && !error.contains('\n'), "{error}");
    }
}

/// A function that runs as the owner is for the service's role alone, and looks up names only in
/// schemas in which other roles cannot create objects.
#[tokio::test]
async fn definer_functions_are_restricted_to_service_role() {
    let mut connection = cluster().database().await.connect().await;
    let sql = "SELECT proname::text,
                      proconfig @> ARRAY['search_path=public, pg_temp'] AS has_search_path,
                      has_function_privilege('public', oid, 'EXECUTE') AS is_public
               FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef";
    let functions: Vec<(String, Option<bool>, bool)> =
        sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
    assert!(functions.len() > 40);
    for (name, has_search_path, is_public) in functions {
        assert_eq!(has_search_path, Some(true), "{name} needs SET search_path");
        assert!(!is_public, "{name} needs REVOKE ALL … FROM PUBLIC");
    }
}
