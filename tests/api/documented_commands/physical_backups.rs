//! Base backups and pgBackRest: a server with the paths of the document in a folder of the test.

use std::{fs, path::Path};

use call2me_auth::cli::dev::postgres::{Binaries, ProcessUser};

use super::{page::Page, shell::Shell};
use crate::fixture::{ENCRYPTION_KEY, free_port};

/// What the document calls `/var`. Its programs run as the user of the server.
const SERVER_FUNCTIONS: &str = r#"
as_postgres() {
  local command
  command=$(type -P "$1")
  shift
  if [ "$(id -u)" = 0 ]; then
    chown -R postgres: "$SERVER"
    setpriv --reuid=postgres --regid=postgres --clear-groups "$command" "$@"
  else
    "$command" "$@"
  fi
}
pg_ctlcluster() {
  as_postgres pg_ctl -D "$SERVER/lib/postgresql/15/main" -w -l "$SERVER/log" -o "-p $PGPORT -c unix_socket_directories=" "$3" >/dev/null 3>&- 4<&-
}
pg_basebackup() { as_postgres pg_basebackup "$@"; }
pgbackrest() { as_postgres pgbackrest "$@"; }

status_of() { # credential
  curl -s -o body.txt -w '%{http_code}' -H "Authorization: Bearer $1" "http://$node_address/v1/agents"
}
post() { # path, body
  curl -s -H 'Content-Type: application/json' -d "$2" "http://$node_address$1"
}
field() { grep -o "\"$1\":\"[^\"]*" | head -n 1 | cut -d '"' -f 4; }

# Creates what the backup contains.
sign_up() {
  call2me-auth serve
  ANSWER=$(post /v1/auth/register '{"email":"dana@acme.example","password":"a walk in the park"}')
  WORKSPACE=$(grep -o 'ws_[0-9a-z]*' <<<"$ANSWER" | head -n 1)
  use_session
}
sign_in() {
  ANSWER=$(post /v1/auth/login '{"email":"dana@acme.example","password":"a walk in the park"}')
  use_session
}
use_session() {
  SESSION=$(field access_token <<<"$ANSWER")
  REFRESH=$(field refresh_token <<<"$ANSWER")
  KEY=$(call2me-auth admin keys create --workspace "$WORKSPACE" --name good | grep -o 'sk_call2me_[0-9A-Za-z_]*')
  REVOKED=$(call2me-auth admin keys create --workspace "$WORKSPACE" --name revoked)
  REVOKED_ID=$(grep -o 'key_[0-9a-z]*' <<<"$REVOKED" | head -n 1)
  REVOKED=$(grep -o 'sk_call2me_[0-9A-Za-z_]*' <<<"$REVOKED")
}
revoke_something() {
  call2me-auth admin keys revoke "$REVOKED_ID"
  echo "$REVOKED_ID" >revoked.txt
  [ "$(status_of "$REVOKED")" = 401 ]
  # Twice: the direct predecessor of a token may be used again for a while.
  LATER=$(post /v1/auth/refresh "{\"refresh_token\":\"$REFRESH\"}" | field refresh_token)
  post /v1/auth/refresh "{\"refresh_token\":\"$LATER\"}" | grep -q access_token
}
check_quarantine() {
  call2me-auth serve
  [ "$(status_of "$KEY")" = 503 ]
  [ "$(status_of "$REVOKED")" = 503 ]
  post /v1/auth/refresh "{\"refresh_token\":\"$REFRESH\"}" | grep -q unavailable
  curl -s "http://$node_address/readyz" | grep -q 'admin restore finish'
}
check_nothing_is_revived() {
  until [ "$(status_of "$KEY")" = 200 ]; do command sleep 0.1; done
  [ "$(status_of "$REVOKED")" = 401 ]
  [ "$(status_of "$SESSION")" = 401 ]
  post /v1/auth/refresh "{\"refresh_token\":\"$REFRESH\"}" | grep -q invalid_refresh_token
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn physical_backups_commands_work() {
    let folder = tempfile::tempdir().unwrap();
    let server = folder.path().join("var");
    fs::create_dir_all(server.join("lib/postgresql/15")).unwrap();
    let user = ProcessUser::for_folder(folder.path()).unwrap();
    let binaries = Binaries::find(folder.path()).unwrap();
    let data = server.join("lib/postgresql/15/main");
    binaries.init_cluster(&server, &data, &user, &"test".into(), true).unwrap();
    let mut shell = start_shell(&server, &binaries).await;
    let mut page = Page::read("docs/physical-backups.md");
    let settings = page.take("ini");
    fs::write(server.join("pgbackrest.conf"), shell.localize(&settings)).unwrap();
    shell.run("pg_ctlcluster 15 main start; createdb call2me").await;
    shell.run("CALL2ME_AUTH__DATABASE__OWNER_URL=$OWNER_URL call2me-auth migrate").await;
    shell
        .run("psql -q -d \"$OWNER_URL\" -c \"ALTER ROLE call2me_auth_app LOGIN PASSWORD 'test'\"")
        .await;
    shell.run("sign_up").await;
    page.run_through("check_nothing_is_revived", &mut shell).await;
    // For the second restore. The session of the first one has ended.
    shell.run("sign_in").await;
    page.run(&mut shell).await;
    shell.run("stop_nodes; pg_ctlcluster 15 main stop").await;
}

async fn start_shell(server: &Path, binaries: &Binaries) -> Shell {
    let port = free_port().to_string();
    let url = |role| format!("postgres://{role}:test@127.0.0.1:{port}/call2me");
    let programs = binaries.program("psql").parent().unwrap().display().to_string();
    let mut shell = Shell::start(&[
        ("SERVER", &server.display().to_string()),
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &port),
        ("PGUSER", "postgres"),
        ("PGPASSWORD", "test"),
        ("OWNER_URL", &url("postgres")),
        ("PGBACKREST_CONFIG", &server.join("pgbackrest.conf").display().to_string()),
        ("PGBACKREST_LOCK_PATH", &server.join("lock").display().to_string()),
        ("PGBACKREST_LOG_LEVEL_FILE", "off"),
        ("PGBACKREST_PG1_PORT", &port),
        ("CALL2ME_AUTH__DATABASE__URL", &url("call2me_auth_app")),
        ("CALL2ME_AUTH__SERVER__PUBLIC_URL", "http://127.0.0.1:1"),
        ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY),
        ("CALL2ME_AUTH__SESSIONS__REGISTRATION", "open"),
    ])
    .await;
    for folder in ["lib/postgresql", "lib/pgbackrest", "backups"] {
        shell.replace(&format!("/var/{folder}"), &server.join(folder).display().to_string());
    }
    shell.run(&format!("PATH=$PATH:{programs}\n{SERVER_FUNCTIONS}")).await;
    shell
}
