//! The serving node: its statements, its lease and its cache.

use super::{
    action::StatementKind,
    model::{Model, Promise, Violation},
    rules::Rule,
    state::{
        Answer, Database, LEASE, Lease, Lookup, Node, NodeRow, Position, Role, ServerName, State,
        Statement,
    },
};

/// Renewals that a model without a bound watch counts.
pub const MAX_COUNTED_RENEWALS: u8 = 4;

impl Model {
    /// Returns the next statement of a kind that the node sends.
    pub fn statement(&self, next: &mut State, kind: StatementKind) -> Statement {
        let new_registration = next.new_registration();
        let node = &mut next.node;
        let server = node.lease.map(|lease| lease.server);
        let position = node.applied;
        if kind == StatementKind::Registration {
            node.lease = None;
            if node.registration == 0 || self.has(Rule::NewRowForRegistration) {
                node.registration = new_registration;
            }
        }
        let registration = node.registration;
        match kind {
            StatementKind::Registration => Statement::Register { registration },
            StatementKind::Renewal => Statement::Renew { registration, position, server },
            StatementKind::Read => Statement::Read { position },
            StatementKind::Acknowledgement => {
                Statement::Acknowledge { registration, position, server }
            }
            StatementKind::Deregistration => {
                node.is_stopping = true;
                next.budget.node_stops -= 1;
                if self.has(Rule::LeaseEndsBeforeDeregistration) {
                    node.lease = None;
                }
                Statement::Deregister { registration }
            }
        }
    }

    /// Runs a statement on a server. `None` if the server cannot run it.
    pub fn run(
        &self,
        next: &mut State,
        index: usize,
        statement: Statement,
        is_late: bool,
    ) -> Option<Answer> {
        let server = next.servers[index];
        let name = server.name(index);
        if !server.answers() {
            return None;
        }
        let mut database = server.database;
        let answer = match statement {
            Statement::Register { .. }
                if database.is_in_quarantine && self.has(Rule::QuarantineRefusesRegistration) =>
            {
                return Some(Answer::Refused);
            }
            Statement::Register { registration } => {
                // A late registration makes a row that no node uses.
                if !(is_late && self.has(Rule::NewRowForRegistration)) {
                    self.register(&mut database, registration);
                }
                Answer::Registered { server: name, position: database.head() }
            }
            Statement::Renew { registration, position, server } => {
                let is_elsewhere = server.is_some_and(|server| server != name);
                if is_elsewhere && self.has(Rule::NodeOnLeaseServer) {
                    return Some(Answer::WrongServer);
                }
                let renewals = database.row.map_or(0, |row| row.renewals);
                if renewals == MAX_COUNTED_RENEWALS {
                    return None;
                }
                if !self.renew(&mut database, registration, position) {
                    return Some(Answer::Refused);
                }
                self.continue_watch(&mut database, index, next);
                Answer::Renewed { server: name }
            }
            Statement::Read { position } => return Some(self.read(name, &database, position)),
            Statement::Acknowledge { registration, position, server } => {
                let is_elsewhere = server.is_some_and(|server| server != name);
                if is_elsewhere && self.has(Rule::NodeOnLeaseServer) {
                    return Some(Answer::WrongServer);
                }
                let is_known = database.knows(position, self.has(Rule::PredecessorToken));
                if !is_known && self.has(Rule::AcknowledgementToken) {
                    return Some(Answer::Refused);
                }
                let row = database.row.as_mut().filter(|row| row.registration == registration);
                if let Some(row) = row {
                    row.acknowledged = position.generation;
                }
                Answer::Done
            }
            Statement::Mark { registration, renewals, server } => {
                let is_elsewhere = server != name && self.has(Rule::WatchOnOneServer);
                let is_same = |row: &&mut NodeRow| {
                    (row.registration, row.renewals) == (registration, renewals)
                };
                if let Some(row) = database.row.as_mut().filter(is_same).filter(|_| !is_elsewhere) {
                    row.is_expired = true;
                }
                Answer::Done
            }
            Statement::Deregister { registration } => {
                database.row = database.row.filter(|row| row.registration != registration);
                Answer::Done
            }
        };
        match statement {
            // It commits asynchronously: only on this server, also if the server is cut off.
            Statement::Acknowledge { .. } if server.commits() || self.is_synchronous() => {
                next.servers[index].database = database;
            }
            _ if server.commits() => self.commit(next, index, database),
            Statement::Renew { .. } if !self.has(Rule::LeaseAfterCommit) => {}
            _ => return None,
        }
        Some(answer)
    }

    /// Commits on a server, and on its synchronous standby.
    pub fn commit(&self, next: &mut State, index: usize, database: Database) {
        next.servers[index].database = database;
        if index == 0 && self.is_synchronous() && next.servers[1].role == Role::Standby {
            next.servers[1].database = database;
        }
    }

    fn lease_by_server_clock(&self) -> u8 {
        if self.has(Rule::CounterInsteadOfClock) { 0 } else { LEASE }
    }

    fn register(&self, database: &mut Database, registration: u8) {
        let same = database.row.filter(|row| row.registration == registration);
        let renewals = same.map_or(0, |row| row.renewals + 1);
        database.row = Some(NodeRow {
            registration,
            renewals,
            acknowledged: database.generation,
            is_expired: false,
            still: 0,
            lease_left: self.lease_by_server_clock(),
        });
    }

    /// Renews the lease in the row of the node. False if the node is refused.
    fn renew(&self, database: &mut Database, registration: u8, position: Position) -> bool {
        let is_known = database.knows(position, self.has(Rule::PredecessorToken));
        let Some(row) = database.row.as_mut().filter(|row| row.registration == registration) else {
            return false;
        };
        let is_marked = row.is_expired && self.has(Rule::Mark);
        let is_in_quarantine =
            database.is_in_quarantine && self.has(Rule::QuarantineRefusesRenewal);
        if is_marked || is_in_quarantine || (!is_known && self.has(Rule::GenerationToken)) {
            return false;
        }
        row.renewals += 1;
        row.still = 0;
        row.acknowledged = position.generation;
        row.lease_left = self.lease_by_server_clock();
        true
    }

    /// Without a watch for each server, a counter that reaches the number that was seen on P1 seems
    /// to stand still since then.
    fn continue_watch(&self, database: &mut Database, index: usize, state: &State) {
        let seen = state.servers[0].database.row;
        if let (1, Some(row), Some(seen)) = (index, &mut database.row, seen)
            && !self.has(Rule::WatchOnOneServer)
            && (row.registration, row.renewals) == (seen.registration, seen.renewals)
        {
            row.still = seen.still;
        }
    }

    fn read(&self, server: ServerName, database: &Database, position: Position) -> Answer {
        let rows = database.since(position.generation);
        let names_key = rows.clone().any(|row| row.is_of_key);
        let missing = database.generation.checked_sub(position.generation);
        let is_complete = missing.is_some_and(|missing| rows.count() == usize::from(missing));
        let is_unknown = !database.knows(position, self.has(Rule::PredecessorToken));
        if is_unknown && self.has(Rule::GenerationToken) {
            return Answer::Refused;
        }
        let is_complete = is_complete || !self.has(Rule::GapClears);
        Answer::Batch { server, position: database.head(), names_key, is_complete }
    }

    pub fn receive(&self, node: &mut Node, age: u8, answer: Answer) {
        let age = if self.has(Rule::LeaseFromSending) { age } else { 0 };
        let lease = |server| Some(Lease { server, left: LEASE - age }).filter(|_| age < LEASE);
        match answer {
            Answer::Registered { server, position } => {
                node.clear_cache();
                node.is_registered = true;
                node.applied = position;
                node.history = server.index;
                node.server = server;
                node.lease = lease(server);
            }
            Answer::Renewed { server } => {
                let is_new_history = node.server.index != server.index;
                if is_new_history && self.has(Rule::NewHistoryClears) {
                    node.clear_cache();
                }
                node.server = server;
                node.lease = lease(server);
            }
            Answer::Batch { server, position, names_key, is_complete } => {
                node.applied = position;
                node.history = server.index;
                if names_key || !is_complete {
                    node.clear_cache();
                }
            }
            Answer::Refused => {
                node.clear_cache();
                node.lease = None;
                node.is_registered = false;
                node.applied = Position::default();
            }
            Answer::WrongServer => node.lease = None,
            Answer::Done if node.is_stopping => node.lease = None,
            Answer::Done => {}
        }
    }

    /// A request begins, and its look-up runs on a server. A look-up that finds the key revoked has
    /// no effect in the model.
    pub fn look_up(&self, next: &mut State, index: usize) -> Option<Promise> {
        let is_valid_key = next.primary().database.is_key_valid();
        let node = &mut next.node;
        let server = &next.servers[index];
        let is_hit = node.has_cached_key && node.lease.is_some();
        let is_elsewhere = node.lease.is_some_and(|lease| lease.server != server.name(index));
        if is_hit
            || !server.answers()
            || (node.lease.is_none() && self.has(Rule::LookupUnderLease))
            || (is_elsewhere && self.has(Rule::LookupOnLeaseServer))
        {
            return None;
        }
        if server.database.is_key_valid() {
            node.lookup = Some(Lookup { is_after_answer: next.is_answered, is_outdated: false });
            return Some(Promise::Kept);
        }
        let is_unknown = !server.database.key_exists && is_valid_key;
        is_unknown.then_some(Promise::Broken(Violation::RefusedNewKey))
    }

    pub fn receive_lookup(&self, next: &mut State) -> Option<Promise> {
        let lookup = next.node.lookup.take()?;
        if !lookup.is_outdated || !self.has(Rule::OutdatedLookupNotCached) {
            next.node.has_cached_key = true;
        }
        Some(Promise::broken_if(lookup.is_after_answer, Violation::AcceptedByLookup))
    }
}

impl Node {
    fn clear_cache(&mut self) {
        self.has_cached_key = false;
        if let Some(lookup) = &mut self.lookup {
            lookup.is_outdated = true;
        }
    }
}
