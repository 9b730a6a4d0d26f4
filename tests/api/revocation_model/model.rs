//! The model: its steps, and the promises that it checks after each step.

use super::{
    action::{Action, StatementKind},
    faults::{prune, replicate, step_clock},
    node::MAX_COUNTED_RENEWALS,
    rules::{Rule, Rules},
    state::{
        Answer, Budget, Call, Database, FOREVER, LEASE, Node, Replication, Role, Server, State,
        Statement,
    },
};

/// A broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A request that began after the 204 was accepted from the cache.
    AcceptedFromCache,
    /// A request that began after the 204 was accepted by a look-up.
    AcceptedByLookup,
    /// The primary does not have a revocation that was answered with 204.
    LostRevocation,
    /// The node accepts a key that its primary does not have.
    AcceptedUnknownKey,
    /// A request with a key that exists was answered as one with an unknown key.
    RefusedNewKey,
    /// A node that missed nothing was refused, and cleared its cache.
    NeedlessRefusal,
    /// A database that was not restored is in quarantine.
    NeedlessQuarantine,
}

/// The kind of the credential that the model calls the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// The operator lists it if it was revoked after the backup.
    ApiKey,
    /// It ends when the operator finishes a restore.
    Session,
}

/// The rules and the faults to explore.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    pub rules: Rules,
    pub replication: Replication,
    /// The role of P1 after a failover.
    pub old_primary: Role,
    pub credential: Credential,
    pub budget: Budget,
}

/// The effect of a step on the promises.
pub enum Promise {
    Kept,
    Broken(Violation),
}

impl Promise {
    pub fn broken_if(is_broken: bool, violation: Violation) -> Self {
        if is_broken { Self::Broken(violation) } else { Self::Kept }
    }
}

/// The state after a step.
pub struct Step {
    pub state: State,
    pub violation: Option<Violation>,
}

impl Model {
    pub fn initial(&self) -> State {
        let database = Database { key_exists: self.budget.keys == 0, ..Database::default() };
        let server = |role| Server { role, starts: 0, age: LEASE, database };
        State {
            servers: [server(Role::Primary), server(Role::Standby)],
            node: Node::default(),
            late: None,
            is_answered: false,
            restored: None,
            budget: self.budget,
        }
    }

    pub fn is_synchronous(&self) -> bool {
        self.replication == Replication::Synchronous
    }

    pub fn has(&self, rule: Rule) -> bool {
        self.rules.has(rule)
    }

    /// The ticks that nodes wait for a lease that another node may have.
    pub fn wait(&self) -> u8 {
        match (self.has(Rule::WaitFromArrival), self.has(Rule::Tolerance)) {
            (true, true) => LEASE,
            (true, false) => LEASE - 1,
            // The query was sent a lease ago.
            (false, _) => 0,
        }
    }

    /// Returns the steps to try in a state.
    pub fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = vec![Action::Tick];
        match state.node.call {
            None if state.node.is_stopping => {}
            None => {
                let kinds = if state.node.is_registered {
                    &[
                        StatementKind::Renewal,
                        StatementKind::Read,
                        StatementKind::Acknowledgement,
                        StatementKind::Deregistration,
                    ][..]
                } else {
                    &[StatementKind::Registration]
                };
                for kind in kinds.iter().copied() {
                    let run = |index| Action::Run(kind, index);
                    actions.extend([run(0), run(1), Action::SendLate(kind)]);
                }
            }
            Some(_) => actions.extend([Action::ReceiveAnswer, Action::LoseAnswer]),
        }
        match state.node.lookup {
            None => actions.extend([Action::LookUp(0), Action::LookUp(1)]),
            Some(_) => actions.push(Action::ReceiveLookup),
        }
        if state.late.is_some() {
            actions.extend([Action::RunLateStatement(0), Action::RunLateStatement(1)]);
        }
        for index in [0, 1] {
            if state.servers[index].answers() {
                actions.extend([
                    Action::CreateKey(index),
                    Action::RevokeOther(index),
                    Action::RevokeKey(index),
                    Action::Mark(index),
                    Action::SendLateMark(index),
                    Action::AnswerRevocation(index, 0),
                    Action::AnswerRevocation(index, 1),
                    Action::RestartServer(index),
                ]);
            }
        }
        actions.extend([
            Action::Replicate,
            Action::FailOver,
            Action::FailOverWithRenewal,
            Action::Restore,
            Action::FinishRestore,
            Action::RestartNode,
            Action::StepClockForward,
            Action::StepClockBack,
            Action::Prune(0),
            Action::Prune(1),
        ]);
        actions.retain(|action| self.is_allowed(state, *action));
        actions
    }

    /// True if the budget and the kind of replication allow a step.
    fn is_allowed(&self, state: &State, action: Action) -> bool {
        let budget = &state.budget;
        match action {
            Action::FailOver => budget.failovers > 0,
            Action::FailOverWithRenewal => budget.failovers > 0 && self.is_synchronous(),
            Action::RestartNode => budget.node_restarts > 0,
            Action::Run(StatementKind::Deregistration, _) => budget.node_stops > 0,
            Action::RestartServer(_) => budget.server_restarts > 0,
            Action::Restore => budget.restore.is_some() && !self.is_synchronous(),
            Action::SendLate(StatementKind::Read | StatementKind::Deregistration) => false,
            Action::SendLate(_) | Action::SendLateMark(_) => {
                budget.late_statements > 0 && state.late.is_none()
            }
            Action::StepClockForward | Action::StepClockBack => budget.clock_steps > 0,
            Action::Prune(_) => budget.prunes > 0,
            Action::RevokeOther(_) => budget.other_revocations > 0,
            Action::CreateKey(_) => budget.keys > 0,
            Action::Replicate => !self.is_synchronous(),
            _ => true,
        }
    }

    /// Runs a step; `None` if it is not possible, or changes nothing.
    pub fn apply(&self, state: &State, action: Action) -> Option<Step> {
        let mut next = *state;
        let violation = match self.run_action(&mut next, action)? {
            Promise::Kept => None,
            Promise::Broken(violation) => Some(violation),
        };
        self.normalize(&mut next);
        if next == *state && violation.is_none() {
            return None;
        }
        let violation = violation.or_else(|| self.broken_promise(&next));
        Some(Step { state: next, violation })
    }

    fn run_action(&self, next: &mut State, action: Action) -> Option<Promise> {
        match action {
            Action::Tick => tick(next),
            Action::Run(kind, index) => return self.run_statement(next, kind, index),
            Action::ReceiveAnswer => {
                let Call { age, answer } = next.node.call.take()?;
                self.receive(&mut next.node, age, answer);
            }
            Action::LoseAnswer => next.node.call = None,
            Action::SendLate(kind) => {
                next.late = Some(self.statement(next, kind));
                next.budget.late_statements -= 1;
            }
            Action::SendLateMark(index) => self.send_late_mark(next, index)?,
            Action::RunLateStatement(index) => {
                let statement = next.late?;
                self.run(next, index, statement, true)?;
                next.late = None;
            }
            Action::LookUp(index) => return self.look_up(next, index),
            Action::ReceiveLookup => return self.receive_lookup(next),
            Action::CreateKey(index) => self.create_key(next, index)?,
            Action::RevokeOther(index) => {
                next.budget.other_revocations -= 1;
                self.announce(next, index, false)?;
            }
            Action::RevokeKey(index) => self.revoke_key(next, index)?,
            Action::Mark(index) => self.mark(next, index)?,
            Action::AnswerRevocation(index, seen) => {
                return self.answer_revocation(next, index, seen);
            }
            Action::Replicate => replicate(next)?,
            Action::FailOver => self.fail_over(next)?,
            Action::FailOverWithRenewal => self.fail_over_with_renewal(next)?,
            Action::RestartServer(index) => self.restart_server(next, index)?,
            Action::Restore => self.restore(next)?,
            Action::FinishRestore => self.finish_restore(next)?,
            Action::RestartNode => {
                next.budget.node_restarts -= 1;
                next.node = Node::default();
            }
            Action::StepClockForward => step_clock(next, 0),
            Action::StepClockBack => step_clock(next, FOREVER),
            Action::Prune(index) => prune(next, index)?,
        }
        Some(Promise::Kept)
    }

    fn run_statement(
        &self,
        next: &mut State,
        kind: StatementKind,
        index: usize,
    ) -> Option<Promise> {
        let before = *next;
        let statement = self.statement(next, kind);
        let answer = self.run(next, index, statement, false)?;
        if answer == Answer::Refused {
            self.report_lost_generation(next, index);
        }
        let is_lease = matches!(answer, Answer::Registered { .. } | Answer::Renewed { .. });
        if is_lease || kind == StatementKind::Deregistration {
            next.node.call = Some(Call { age: 0, answer });
        } else {
            self.receive(&mut next.node, 0, answer);
        }
        let is_needless = answer == Answer::Refused && missed_nothing(&before);
        Some(Promise::broken_if(is_needless, Violation::NeedlessRefusal))
    }

    /// Drops what has no effect any more, so that fewer states differ.
    fn normalize(&self, next: &mut State) {
        // A mark that runs late has to know if there was a renewal.
        let max_renewals = match next.late {
            _ if !self.has(Rule::WatchOnOneServer) => MAX_COUNTED_RENEWALS,
            Some(Statement::Mark { .. }) => 1,
            _ => 0,
        };
        for server in &mut next.servers {
            if let Some(row) = &mut server.database.row {
                if next.is_answered {
                    (row.acknowledged, row.still) = (0, 0);
                }
                row.renewals = row.renewals.min(max_renewals);
            }
        }
        let node = &mut next.node;
        // No report depends on the history of a generation that no server has lost.
        let may_report =
            |server: &Server| server.may_commit() && server.database.has_lost(node.applied);
        if node.history != 0 && !next.servers.iter().any(may_report) {
            node.history = 0;
        }
        if self.has(Rule::OutdatedLookupNotCached) {
            node.lookup =
                node.lookup.filter(|lookup| lookup.is_after_answer || !lookup.is_outdated);
        }
    }

    fn broken_promise(&self, state: &State) -> Option<Violation> {
        let database = &state.primary().database;
        if database.is_in_quarantine && state.restored.is_none() {
            return Some(Violation::NeedlessQuarantine);
        }
        if self.is_synchronous() && state.is_answered && !database.key_is_revoked {
            return Some(Violation::LostRevocation);
        }
        let node = &state.node;
        let lease = node.lease.filter(|_| node.has_cached_key)?;
        if state.is_answered {
            return Some(Violation::AcceptedFromCache);
        }
        let server = state.servers[usize::from(lease.server.index)];
        let is_current = server.role == Role::Primary && server.starts == lease.server.starts;
        (is_current && !server.database.key_exists).then_some(Violation::AcceptedUnknownKey)
    }
}

fn tick(next: &mut State) {
    let node = &mut next.node;
    node.lease = node.lease.filter(|lease| lease.left > 1);
    if let Some(lease) = &mut node.lease {
        lease.left -= 1;
    }
    if let Some(call) = &mut node.call {
        call.age = LEASE.min(call.age + 1);
    }
    for server in &mut next.servers {
        if server.commits() {
            server.age = LEASE.min(server.age + 1);
        }
        if let Some(row) = &mut server.database.row {
            row.still = LEASE.min(row.still + 1);
            if row.lease_left != FOREVER {
                row.lease_left = row.lease_left.saturating_sub(1);
            }
        }
    }
}

/// True if the history has always been the same and holds all that the node may have missed.
fn missed_nothing(state: &State) -> bool {
    let [primary, standby] = &state.servers;
    let database = &primary.database;
    let missing = database.generation.saturating_sub(state.node.applied.generation);
    standby.role == Role::Standby
        && primary.starts == 0
        && database.since(state.node.applied.generation).count() == usize::from(missing)
        && database
            .row
            .is_some_and(|row| row.registration == state.node.registration && !row.is_expired)
}
