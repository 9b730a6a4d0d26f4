//! The state of the model: two PostgreSQL servers, a node that serves requests with a key, and a
//! node that revokes the key.

/// Duration of a lease in ticks of real time. It is the longest that a node with a slow clock can
/// take for its lease, and the shortest that another node with a fast clock waits for it.
pub const LEASE: u8 = 2;
/// A lease that PostgreSQL's clock does not end, because the clock went back.
pub const FOREVER: u8 = u8::MAX;
/// Maximum number of generations.
pub const MAX_GENERATIONS: usize = 3;

/// A start of a PostgreSQL server. P1 is the server 0, and P2 the server 1 of another timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ServerName {
    pub index: u8,
    pub starts: u8,
}

/// The kind of replication to P2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// A commit is answered when P2 has it.
    Synchronous,
    /// P2 has the commits up to one of them.
    Asynchronous,
}

/// The backup from which the database is restored. The asynchronous standby has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backup {
    /// A dump: another identity, and another history.
    Dump,
    /// A base backup with recovery to a point in time: another history, more than a minute earlier.
    BaseOnNewTimeline,
    /// A base backup or a snapshot that is started as it is: the same history.
    BaseOnSameTimeline,
}

/// The serving node during a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Nodes {
    /// It runs.
    Running,
    /// It runs, and has applied a change that the backup lacks.
    Informed,
    /// It runs, but reaches the restored database only after another node has reported such a
    /// change.
    CutOff,
    /// All nodes are stopped until the operator has begun the quarantine.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Restore {
    pub backup: Backup,
    pub nodes: Nodes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Primary,
    /// Receives the commits of the primary.
    Standby,
    /// A former primary that answers reads and commits nothing.
    ReadOnly,
    /// A former primary that goes on committing. The protocol excludes it.
    Committing,
    Down,
}

/// A generation and its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Position {
    pub generation: u8,
    pub token: u8,
}

/// A row of `invalidations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Invalidation {
    pub token: u8,
    /// It names the key of the model, not another credential.
    pub is_of_key: bool,
    pub is_pruned: bool,
}

/// The row of the serving node in `nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeRow {
    pub registration: u8,
    /// The counter of renewals; it stays 0 if no rule or late statement depends on it.
    pub renewals: u8,
    pub acknowledged: u8,
    pub is_expired: bool,
    /// Ticks since the counter changed, or since a watch of it could begin.
    pub still: u8,
    /// Remaining time of the lease by PostgreSQL's clock.
    pub lease_left: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Database {
    pub invalidations: [Invalidation; MAX_GENERATIONS],
    pub generation: u8,
    pub key_exists: bool,
    pub key_is_revoked: bool,
    pub row: Option<NodeRow>,
    pub is_in_quarantine: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Server {
    pub role: Role,
    pub starts: u8,
    /// Ticks since it began to commit under this name.
    pub age: u8,
    pub database: Database,
}

/// A statement of one of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Statement {
    Register { registration: u8 },
    Renew { registration: u8, position: Position, server: Option<ServerName> },
    Acknowledge { registration: u8, position: Position, server: Option<ServerName> },
    Mark { registration: u8, renewals: u8, server: ServerName },
    Read { position: Position },
    Deregister { registration: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    Registered {
        server: ServerName,
        position: Position,
    },
    Renewed {
        server: ServerName,
    },
    Batch {
        server: ServerName,
        position: Position,
        names_key: bool,
        is_complete: bool,
    },
    Done,
    /// The node is not registered, is marked, or sent an unknown position.
    Refused,
    WrongServer,
}

/// A statement of the node that has run. Its answer is on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Call {
    /// Ticks since the sending.
    pub age: u8,
    pub answer: Answer,
}

/// A look-up that found the key valid. Its answer is on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lookup {
    /// The request began after the revocation was answered.
    pub is_after_answer: bool,
    /// An invalidation was applied since the look-up began.
    pub is_outdated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    pub server: ServerName,
    pub left: u8,
}

/// The node that serves requests with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Node {
    pub is_stopping: bool,
    pub is_registered: bool,
    /// The id of its last registration.
    pub registration: u8,
    pub applied: Position,
    /// The index of the server from which it has read this position.
    pub history: u8,
    /// The server of its last lease.
    pub server: ServerName,
    pub lease: Option<Lease>,
    pub has_cached_key: bool,
    pub call: Option<Call>,
    pub lookup: Option<Lookup>,
}

/// Events that may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    pub failovers: u8,
    pub node_restarts: u8,
    pub node_stops: u8,
    pub server_restarts: u8,
    pub restore: Option<Restore>,
    pub late_statements: u8,
    pub clock_steps: u8,
    pub prunes: u8,
    pub other_revocations: u8,
    pub keys: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub servers: [Server; 2],
    pub node: Node,
    /// A statement whose sender has given up, and that may still run.
    pub late: Option<Statement>,
    /// The revocation of the key was answered with 204.
    pub is_answered: bool,
    /// The backup that replaced the database.
    pub restored: Option<Backup>,
    pub budget: Budget,
}

impl State {
    /// The server that all nodes are to use.
    pub fn primary(&self) -> &Server {
        &self.servers[self.primary_index()]
    }

    pub fn primary_index(&self) -> usize {
        usize::from(self.servers[1].role == Role::Primary)
    }

    /// Returns the smallest id of a registration that is not in use.
    pub fn new_registration(&self) -> u8 {
        let rows = self.servers.iter().filter_map(|server| server.database.row);
        let late = match self.late {
            Some(
                Statement::Register { registration }
                | Statement::Renew { registration, .. }
                | Statement::Acknowledge { registration, .. }
                | Statement::Mark { registration, .. },
            ) => Some(registration),
            _ => None,
        };
        let used = rows.map(|row| row.registration).chain(late).collect::<Vec<_>>();
        (1..=u8::MAX).find(|id| !used.contains(id)).unwrap()
    }

    /// Returns the smallest token that is not in use.
    pub fn new_token(&self) -> u8 {
        let rows = self.servers.iter().flat_map(|server| server.database.invalidations);
        let call = self.node.call.and_then(|call| match call.answer {
            Answer::Registered { position, .. } => Some(position.token),
            _ => None,
        });
        let late = self.late.and_then(|statement| match statement {
            Statement::Renew { position, .. } | Statement::Acknowledge { position, .. } => {
                Some(position.token)
            }
            _ => None,
        });
        let kept = [Some(self.node.applied.token), call, late].into_iter().flatten();
        let used = rows.map(|row| row.token).chain(kept).collect::<Vec<_>>();
        (1..=u8::MAX).find(|token| !used.contains(token)).unwrap()
    }
}

impl Server {
    /// Returns its name, if it is the server of this index.
    pub fn name(&self, index: usize) -> ServerName {
        ServerName { index: u8::from(index == 1), starts: self.starts }
    }

    /// True if it answers queries of nodes.
    pub fn answers(&self) -> bool {
        !matches!(self.role, Role::Standby | Role::Down)
    }

    /// True if it answers commits now, or if it can be promoted.
    pub fn may_commit(&self) -> bool {
        self.commits() || self.role == Role::Standby
    }

    /// True if it answers commits.
    pub fn commits(&self) -> bool {
        matches!(self.role, Role::Primary | Role::Committing)
    }
}

impl Database {
    /// The newest generation.
    pub fn head(&self) -> Position {
        let generation = self.generation;
        Position { generation, token: self.token(generation) }
    }

    fn token(&self, generation: u8) -> u8 {
        usize::from(generation).checked_sub(1).map_or(0, |index| self.invalidations[index].token)
    }

    /// True if the position is in the history of the database. `by_predecessor`: each invalidation
    /// names the token of its predecessor.
    pub fn knows(&self, position: Position, by_predecessor: bool) -> bool {
        let generation = position.generation;
        if generation >= self.generation {
            return position == self.head();
        }
        let next = usize::from(generation);
        let row = if by_predecessor { Some(next) } else { next.checked_sub(1) };
        let is_kept = row.is_some_and(|index| !self.invalidations[index].is_pruned);
        is_kept && self.token(generation) == position.token
    }

    /// True if the position is not in the history of the database, and not only pruned.
    pub fn has_lost(&self, position: Position) -> bool {
        let next = self.invalidations.get(usize::from(position.generation));
        !self.knows(position, true) && !next.is_some_and(|row| row.is_pruned)
    }

    /// The invalidations after a generation that are not pruned.
    pub fn since(&self, generation: u8) -> impl Iterator<Item = &Invalidation> + Clone {
        let end = usize::from(self.generation);
        let start = usize::from(generation).min(end);
        self.invalidations[start..end].iter().filter(|row| !row.is_pruned)
    }

    /// True if the key exists and is not revoked.
    pub fn is_key_valid(&self) -> bool {
        self.key_exists && !self.key_is_revoked
    }

    /// Adds the next invalidation.
    pub fn announce(&mut self, token: u8, is_of_key: bool) {
        self.invalidations[usize::from(self.generation)] =
            Invalidation { token, is_of_key, is_pruned: false };
        self.generation += 1;
        self.key_is_revoked |= is_of_key;
    }

    /// The position of the revocation of the key.
    pub fn revocation(&self) -> Option<Position> {
        let index = self.invalidations.iter().position(|row| row.is_of_key)?;
        let generation = u8::try_from(index).ok()? + 1;
        Some(Position { generation, token: self.token(generation) })
    }
}
