use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;

use super::{CredentialId, History, Operation};

/// Stores operations as clients finish them.
pub struct Recorder {
    started: Instant,
    next_credential: AtomicUsize,
    operations: Mutex<Vec<Operation>>,
    paths: Mutex<HashMap<CredentialId, String>>,
}

impl Recorder {
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            next_credential: AtomicUsize::default(),
            operations: Mutex::default(),
            paths: Mutex::default(),
        }
    }

    /// Returns the time since the start, which is the clock of the history.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns a number for a new credential.
    pub fn new_credential(&self) -> CredentialId {
        CredentialId(self.next_credential.fetch_add(1, SeqCst))
    }

    pub fn store(&self, operation: Operation) {
        self.operations.lock().unwrap().push(operation);
    }

    /// Stores the path of a credential in the API.
    pub fn store_path(&self, credential: CredentialId, path: &str) {
        self.paths.lock().unwrap().insert(credential, path.to_owned());
    }

    /// Counts the operations so far that match.
    pub fn count(&self, matches: impl Fn(&Operation) -> bool) -> usize {
        self.operations.lock().unwrap().iter().filter(|operation| matches(operation)).count()
    }

    /// Returns all operations so far.
    pub fn history(&self) -> History {
        let operations = self.operations.lock().unwrap().clone();
        let paths = self.paths.lock().unwrap().clone();
        History { operations, paths, ..History::default() }
    }
}

/// Reads the number of events of each request from the audit log. A request has one event, and a
/// change has another one.
pub async fn read_events(connection: &mut PgConnection) -> HashMap<Uuid, i64> {
    let sql = "SELECT request_id, count(*) FILTER (WHERE action = 'request')
               FROM audit_events WHERE request_id IS NOT NULL GROUP BY request_id";
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(sql).fetch_all(connection).await.unwrap();
    rows.into_iter().collect()
}
