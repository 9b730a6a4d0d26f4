//! The revoking node: revocations, marks and the fence.

use super::{
    model::{Model, Promise, Violation},
    rules::Rule,
    state::{Database, MAX_GENERATIONS, Server, ServerName, State, Statement},
};

impl Model {
    pub fn create_key(&self, next: &mut State, index: usize) -> Option<()> {
        let server = next.servers[index];
        let is_settled = self.is_settled(&server, server.name(index));
        if !server.commits() || (!is_settled && self.has(Rule::CreationSettles)) {
            return None;
        }
        next.budget.keys -= 1;
        let database = Database { key_exists: true, ..server.database };
        self.commit(next, index, database);
        Some(())
    }

    pub fn revoke_key(&self, next: &mut State, index: usize) -> Option<()> {
        let database = next.servers[index].database;
        let is_possible = database.key_exists && !database.key_is_revoked && !next.is_answered;
        if is_possible { self.announce(next, index, true) } else { None }
    }

    /// Commits an invalidation.
    pub fn announce(&self, next: &mut State, index: usize, is_of_key: bool) -> Option<()> {
        let mut database = next.servers[index].database;
        let has_room = usize::from(database.generation) < MAX_GENERATIONS;
        if !has_room || !next.servers[index].commits() {
            return None;
        }
        database.announce(next.new_token(), is_of_key);
        self.commit(next, index, database);
        Some(())
    }

    /// True if the counter of the node has stood still for so long that its lease is over.
    fn is_dead(&self, state: &State, index: usize) -> bool {
        let row = state.servers[index].database.row;
        self.has(Rule::CounterInsteadOfClock) && row.is_some_and(|row| row.still >= self.wait())
    }

    pub fn mark(&self, next: &mut State, index: usize) -> Option<()> {
        let can_mark = self.has(Rule::Mark) && next.servers[index].commits();
        if !can_mark || !self.is_dead(next, index) {
            return None;
        }
        let mut database = next.servers[index].database;
        database.row.as_mut()?.is_expired = true;
        self.commit(next, index, database);
        Some(())
    }

    pub fn send_late_mark(&self, next: &mut State, index: usize) -> Option<()> {
        let server = &next.servers[index];
        let row = server.database.row.filter(|_| self.has(Rule::Mark))?;
        if !self.is_dead(next, index) {
            return None;
        }
        let (registration, renewals) = (row.registration, row.renewals);
        next.budget.late_statements -= 1;
        next.late = Some(Statement::Mark { registration, renewals, server: server.name(index) });
        Some(())
    }

    /// True if all leases of earlier servers are over.
    fn is_settled(&self, server: &Server, name: ServerName) -> bool {
        let is_new_history = name.index != 0 && self.has(Rule::NewHistorySettles);
        !is_new_history || server.age >= self.wait()
    }

    /// Answers a revocation that was committed or repeated on one server, after a look at the nodes
    /// on another one.
    pub fn answer_revocation(
        &self,
        next: &mut State,
        index: usize,
        seen: usize,
    ) -> Option<Promise> {
        let revocation = next.servers[index].database.revocation()?;
        let server = &next.servers[seen];
        let is_elsewhere = index != seen && self.has(Rule::FenceOnOneServer);
        if next.is_answered
            || is_elsewhere
            || !server.answers()
            || (server.database.is_in_quarantine && self.has(Rule::QuarantineRefusesRequests))
            || !self.is_settled(server, server.name(seen))
        {
            return None;
        }
        let is_waiting = server.database.row.is_some_and(|row| {
            let is_over = if !self.has(Rule::CounterInsteadOfClock) {
                row.lease_left == 0
            } else if self.has(Rule::Mark) {
                row.is_expired
            } else {
                self.is_dead(next, seen)
            };
            row.acknowledged < revocation.generation && !is_over
        });
        if is_waiting {
            return None;
        }
        let rows = next.primary().database.invalidations;
        let is_there = rows.iter().any(|row| row.token == revocation.token);
        if is_there {
            next.is_answered = true;
            return Some(Promise::Kept);
        }
        // An asynchronous standby may lack it. The protocol promises nothing for it.
        self.is_synchronous().then_some(Promise::Broken(Violation::LostRevocation))
    }
}
