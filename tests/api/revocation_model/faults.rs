//! The faults: failovers, restarts, pruning, and steps of PostgreSQL's clock.

use super::{
    action::StatementKind,
    model::Model,
    rules::Rule,
    state::{Role, Server, State},
};

impl Model {
    pub fn fail_over(&self, next: &mut State) -> Option<()> {
        if next.servers[1].role != Role::Standby {
            return None;
        }
        next.budget.failovers -= 1;
        next.servers[0].role = self.old_primary;
        let promoted = &mut next.servers[1];
        promoted.role = Role::Primary;
        promoted.age = 0;
        // No node has seen the counter on this server.
        if let Some(row) = &mut promoted.database.row
            && self.has(Rule::WatchOnOneServer)
        {
            row.still = 0;
        }
        self.forget_lost_revocation(next);
        Some(())
    }

    pub fn fail_over_with_renewal(&self, next: &mut State) -> Option<()> {
        if !next.node.is_registered || next.node.call.is_some() {
            return None;
        }
        let before = next.servers[0].database;
        let statement = self.statement(next, StatementKind::Renewal);
        self.run(next, 0, statement, false)?;
        next.servers[0].database = before;
        self.fail_over(next)
    }

    pub fn restart_server(&self, next: &mut State, index: usize) -> Option<()> {
        let standby = next.servers[1];
        let server = &mut next.servers[index];
        if server.role != Role::Primary {
            return None;
        }
        next.budget.server_restarts -= 1;
        server.starts += 1;
        server.age = 0;
        if standby.role == Role::Standby && self.is_synchronous() {
            // Asynchronous commits are lost.
            server.database = standby.database;
        }
        self.watch_again(server);
        Some(())
    }

    pub fn watch_again(&self, server: &mut Server) {
        if let Some(row) = &mut server.database.row
            && self.has(Rule::WatchOnOneServer)
        {
            row.still = 0;
        }
    }

    fn forget_lost_revocation(&self, next: &mut State) {
        if !self.is_synchronous() && !next.primary().database.key_is_revoked {
            next.is_answered = false;
            if let Some(lookup) = &mut next.node.lookup {
                lookup.is_after_answer = false;
            }
        }
    }
}

pub fn step_clock(next: &mut State, lease_left: u8) {
    next.budget.clock_steps -= 1;
    for server in &mut next.servers {
        if let Some(row) = &mut server.database.row {
            row.lease_left = lease_left;
        }
    }
}

pub fn replicate(next: &mut State) -> Option<()> {
    let [primary, standby] = &mut next.servers;
    (standby.role == Role::Standby).then(|| standby.database = primary.database)
}

/// Prunes an invalidation, at any age and in any order: PostgreSQL's clock decides.
pub fn prune(next: &mut State, index: usize) -> Option<()> {
    if index >= usize::from(next.primary().database.generation) {
        return None;
    }
    next.budget.prunes -= 1;
    for server in &mut next.servers {
        let is_there = index < usize::from(server.database.generation);
        server.database.invalidations[index].is_pruned |= is_there;
    }
    Some(())
}
