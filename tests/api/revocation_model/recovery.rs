//! Liveness: after the last fault, a revocation is answered within bounded time.

use super::{
    action::{Action, StatementKind},
    model::Model,
    state::{LEASE, MAX_GENERATIONS, State},
};

/// Ticks after which a revocation that is not answered counts as blocked.
const MAX_TICKS: u8 = 4 * LEASE;

impl Model {
    /// Returns the ticks until the revocation of the key is answered, if no fault happens any more
    /// and all nodes use the primary. `None` if it is not answered.
    pub fn ticks_until_answer(&self, state: &State, is_node_alive: bool) -> Option<u8> {
        let mut state = *state;
        state.late = None;
        state.node.call = None;
        state.node.lookup = None;
        let primary = state.primary_index();
        let database = &state.servers[primary].database;
        let has_room = usize::from(database.generation) < MAX_GENERATIONS;
        if !has_room && !database.key_is_revoked {
            // The model has no room for another revocation.
            return Some(0);
        }
        for ticks in 0..MAX_TICKS {
            if is_node_alive {
                self.run_node_loop(&mut state, primary);
            }
            self.try_step(&mut state, Action::FinishRestore);
            self.try_step(&mut state, Action::RevokeKey(primary));
            self.try_step(&mut state, Action::Mark(primary));
            self.try_step(&mut state, Action::AnswerRevocation(primary, primary));
            if state.is_answered {
                return Some(ticks);
            }
            self.try_step(&mut state, Action::Tick);
        }
        None
    }

    /// One round of the node's loop: read, acknowledge, renew; register if it is refused.
    fn run_node_loop(&self, state: &mut State, primary: usize) {
        // The first round may end with a refusal, or with the end of the lease of another server.
        for _ in 0..3 {
            let kinds = if state.node.is_registered {
                &[StatementKind::Read, StatementKind::Acknowledgement, StatementKind::Renewal][..]
            } else {
                &[StatementKind::Registration]
            };
            for kind in kinds {
                self.try_step(state, Action::Run(*kind, primary));
                self.try_step(state, Action::ReceiveAnswer);
            }
        }
    }

    fn try_step(&self, state: &mut State, action: Action) {
        if let Some(step) = self.apply(state, action) {
            *state = step.state;
        }
    }
}
