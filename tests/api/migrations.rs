//! Migrations with logins of different rights, and of databases with another schema.

use std::time::Duration;

use call2me_auth::{
    config::Pool,
    store::{Store, migrate},
};
use sqlx::{AssertSqlSafe, Executor};

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
    Store::connect(url, &options).await
}

#[tokio::test]
async fn superuser_can_migrate_and_serve() {
    let database = cluster().empty_database().await;
    migrate::migrate(&database.url).await.unwrap();
    connect(&database.url).await.unwrap().ping().await.unwrap();
}

/// The migration grants the service's role to a login that may create roles.
#[tokio::test]
async fn login_with_createrole_can_migrate_and_serve() {
    let (_database, url) = database_of_new_login("CREATEROLE").await;
    migrate::migrate(&url).await.unwrap();
    connect(&url).await.unwrap().ping().await.unwrap();
    migrate::migrate(&url).await.unwrap();
}

#[tokio::test]
async fn login_without_createrole_can_migrate_and_serves_after_grant() {
    let (database, url) = database_of_new_login("NOCREATEROLE").await;
    migrate::migrate(&url).await.unwrap();
    let error = connect(&url).await.unwrap_err();
    assert!(error.contains("GRANT call2me_auth_app TO <user>"), "{error}");
    let name = migrate::login_name(&url).unwrap();
    let grant = AssertSqlSafe(format!("GRANT call2me_auth_app TO {name}"));
    database.connect().await.execute(sqlx::raw_sql(grant)).await.unwrap();
    connect(&url).await.unwrap().ping().await.unwrap();
}

/// The checksums of a pre-release version differ from those of this one.
#[tokio::test]
async fn pre_release_schema_is_rejected_in_plain_words() {
    let database = cluster().database().await;
    assert!(migrate::is_schema_current(&database.url).await.unwrap());
    let sql = "UPDATE _sqlx_migrations SET checksum = sha256('pre-release') WHERE version = 1";
    database.connect().await.execute(sql).await.unwrap();
    for error in [
        migrate::migrate(&database.url).await.unwrap_err(),
        migrate::is_schema_current(&database.url).await.unwrap_err(),
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
