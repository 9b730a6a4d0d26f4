//! The hosts of a database URL, and the one of them that accepts writes.
//!
//! A URL may name several hosts, as in libpq:
//! `postgres://user@one:5432,two:5432/auth?target_session_attrs=read-write`.

use std::{str::FromStr, time::Duration};

use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::Server;

/// The only values of `target_session_attrs` that the service can work with.
const PRIMARY_ATTRIBUTES: [&str; 3] = ["any", "read-write", "primary"];

/// Timeout of an attempt to connect to one of several hosts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of the other hosts once one has answered that it accepts writes.
const OTHER_HOSTS_TIMEOUT: Duration = Duration::from_millis(250);

/// Returns the options for each host of a database URL.
///
/// # Errors
/// A message if the URL is malformed.
pub(super) fn parse(url: &str) -> Result<Vec<PgConnectOptions>, String> {
    let malformed = || "the database URL is malformed".to_owned();
    let (scheme, rest) = url.split_once("://").ok_or_else(malformed)?;
    let (address, query) = match rest.split_once('?') {
        Some((address, query)) => (address, Some(query)),
        None => (rest, None),
    };
    let mut parameters = Vec::new();
    for parameter in query.unwrap_or_default().split('&') {
        match parameter.split_once('=') {
            Some(("target_session_attrs", value)) if PRIMARY_ATTRIBUTES.contains(&value) => {}
            Some(("target_session_attrs", _)) => {
                return Err("the database URL must have target_session_attrs=read-write".to_owned());
            }
            _ => parameters.push(parameter),
        }
    }
    let (authority, database) = match address.split_once('/') {
        Some((authority, database)) => (authority, format!("/{database}")),
        None => (address, String::new()),
    };
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let parameters = parameters.join("&");
    let options = hosts.split(',').map(|host| {
        PgConnectOptions::from_str(&format!("{scheme}://{user}{host}{database}?{parameters}"))
            .map_err(|_| malformed())
    });
    options.collect()
}

/// Connects to all hosts at once, and returns the one that accepts writes. If several do, an old
/// primary was not stopped before a standby was promoted: the promoted one has a newer timeline.
///
/// # Errors
/// The error of one of the hosts, if none of them does.
pub(super) async fn find_primary(
    hosts: &[PgConnectOptions],
    within: Duration,
) -> Result<(PgConnectOptions, Server), sqlx::Error> {
    let mut attempts = JoinSet::new();
    for host in hosts {
        let host = host.clone();
        attempts.spawn(async move {
            let server = timeout(within, identify(&host)).await;
            (host, server.unwrap_or(Err(sqlx::Error::PoolTimedOut)))
        });
    }
    let mut last_error = sqlx::Error::PoolTimedOut;
    let mut primaries = Vec::new();
    let mut deadline = Instant::now() + within + OTHER_HOSTS_TIMEOUT;
    while let Ok(Some(Ok((host, server)))) = timeout_at(deadline, attempts.join_next()).await {
        match server {
            Ok(server) => {
                deadline = deadline.min(Instant::now() + OTHER_HOSTS_TIMEOUT);
                primaries.push((host, server));
            }
            Err(error) => last_error = error,
        }
    }
    let newest = primaries.into_iter().max_by_key(|(_, server)| server.history().timeline);
    newest.ok_or(last_error)
}

async fn identify(host: &PgConnectOptions) -> Result<Server, sqlx::Error> {
    let mut connection = host.connect().await?;
    let server = Server::of(&mut connection).await?;
    connection.close().await.ok();
    Ok(server)
}

/// Connects to the host that accepts writes.
///
/// # Errors
/// The error of one of the hosts, if none of them does.
pub(super) async fn connect(hosts: &[PgConnectOptions]) -> Result<PgConnection, sqlx::Error> {
    match hosts {
        [host] => host.connect().await,
        hosts => find_primary(hosts, CONNECT_TIMEOUT).await?.0.connect().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Vec<String> {
        let hosts = parse(url).unwrap();
        hosts.iter().map(|host| format!("{}:{}", host.get_host(), host.get_port())).collect()
    }

    #[test]
    fn url_may_name_several_hosts() {
        assert_eq!(hosts("postgres://u:p@one:1,two:2/auth"), ["one:1", "two:2"]);
        let url = "postgresql://u@one,[::1]:6/auth?sslmode=disable&target_session_attrs=read-write";
        assert_eq!(hosts(url), ["one:5432", "[::1]:6"]);
        let [one, two] = &parse(url).unwrap()[..] else { panic!() };
        assert_eq!([one.get_database(), two.get_database()], [Some("auth"); 2]);
        assert_eq!(two.get_username(), "u");
    }

    #[test]
    fn url_with_one_host_is_unchanged() {
        assert_eq!(hosts("postgres://u:p%40,x@one/auth?application_name=a,b"), ["one:5432"]);
        let socket = parse("postgres://u@localhost:5/auth?host=/run/pg").unwrap();
        assert_eq!(socket[0].get_socket().unwrap().to_str(), Some("/run/pg"));
    }

    #[test]
    fn url_for_standby_is_rejected() {
        let url = "postgres://u@one,two/auth?target_session_attrs=standby";
        assert!(parse(url).unwrap_err().contains("target_session_attrs=read-write"));
        assert!(parse("no url").is_err());
    }
}
