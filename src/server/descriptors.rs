//! The limit on open files, which also limits connections: each takes a descriptor.
//!
//! If clients took all of them, the service could not connect to PostgreSQL any more. So a part is
//! reserved for everything that is not a client.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::config;

/// Descriptors for everything but clients and PostgreSQL: listeners, signals, the log, email, the
/// shared rate limits, client metadata documents and the files of the system's resolver.
const OTHER_DESCRIPTORS: usize = 64;

/// Maximum number of connections of the metrics listener.
const METRICS_CONNECTIONS: usize = 64;

/// Raises the limit on open files as far as the process may, and lowers `server.max_connections` to
/// the number that it allows. `database_connections` is the largest number of connections to
/// PostgreSQL.
pub(crate) fn fit_connections(server: &mut config::Server, database_connections: usize) {
    let Some(limit) = raise_limit() else { return };
    let reserved = OTHER_DESCRIPTORS + METRICS_CONNECTIONS + database_connections;
    let allowed = allowed_connections(limit, reserved);
    if server.max_connections <= allowed {
        return;
    }
    warn!(
        open_files = limit,
        configured = server.max_connections,
        max_connections = allowed,
        "server.max_connections is lowered: raise the limit on open files (LimitNOFILE, ulimit -n)",
    );
    server.max_connections = allowed;
    // A single client must not take all connections.
    server.max_connections_per_address =
        server.max_connections_per_address.min((allowed / 2).max(1));
}

/// Returns the settings of the metrics listener, whose connections are few.
pub(crate) fn metrics_settings(server: &config::Server) -> config::Server {
    let max_connections = server.max_connections.min(METRICS_CONNECTIONS);
    config::Server { max_connections, ..server.clone() }
}

/// The number of connections of clients if `reserved` of `limit` descriptors are for other uses. If
/// the limit is very low, clients get a quarter of it.
fn allowed_connections(limit: usize, reserved: usize) -> usize {
    limit.saturating_sub(reserved).max(limit / 4).max(1)
}

/// Raises the soft limit on open files to the hard one. Returns the limit; `None` if there is none.
fn raise_limit() -> Option<usize> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    // Fails if the hard limit is above that of the system; the soft one then remains.
    let limit = if setrlimit(Resource::Nofile, raised).is_ok() { maximum } else { current };
    limit.and_then(|limit| usize::try_from(limit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_descriptors_is_reserved() {
        for (limit, reserved, expected) in [
            (20_000, 180, 19_820),
            (1024, 180, 844),
            (256, 180, 76),
            (200, 180, 50),
            (64, 180, 16),
            (1, 180, 1),
        ] {
            assert_eq!(allowed_connections(limit, reserved), expected, "{limit}");
        }
    }
}
