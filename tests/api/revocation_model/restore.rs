//! The restore of a backup, the quarantine that follows, and its end.

use super::{
    model::{Credential, Model},
    rules::Rule,
    state::{Backup, Database, Node, Nodes, Restore, Role, State},
};

impl Model {
    /// Replaces the database by the backup that the standby has. P1 either restarts with it, or is
    /// replaced by P2.
    pub fn restore(&self, next: &mut State) -> Option<()> {
        let Restore { backup, nodes } = next.budget.restore.take()?;
        let [old, standby] = &mut next.servers;
        let is_possible = match nodes {
            Nodes::Running | Nodes::Stopped => true,
            Nodes::Informed => {
                next.node.is_registered && standby.database.has_lost(next.node.applied)
            }
            Nodes::CutOff => standby.database.has_lost(old.database.head()),
        };
        if standby.role != Role::Standby || !is_possible {
            return None;
        }
        let is_in_quarantine = match (backup, nodes) {
            (Backup::Dump, _) => self.has(Rule::OtherIdentityQuarantines),
            (_, Nodes::Stopped) => self.has(Rule::OperatorBeginsQuarantine),
            (_, Nodes::CutOff) => self.has(Rule::LostGenerationQuarantines),
            (_, Nodes::Running | Nodes::Informed) => false,
        };
        let database = Database { is_in_quarantine, ..standby.database };
        let (server, replaced) = match backup {
            Backup::Dump | Backup::BaseOnNewTimeline => (standby, old),
            Backup::BaseOnSameTimeline => (old, standby),
        };
        (replaced.role, replaced.database) = (Role::Down, Database::default());
        server.role = Role::Primary;
        server.starts += u8::from(backup == Backup::BaseOnSameTimeline);
        server.age = 0;
        server.database = database;
        self.watch_again(server);
        if nodes == Nodes::Stopped {
            (next.node, next.late) = (Node::default(), None);
        }
        next.restored = Some(backup);
        Some(())
    }

    /// The node reports that the database has lost its generation, unless it was pruned.
    pub fn report_lost_generation(&self, next: &mut State, index: usize) {
        let is_long = next.restored == Some(Backup::BaseOnNewTimeline);
        let server = &mut next.servers[index];
        let is_other_history = next.node.history != server.name(index).index;
        let is_explained = is_other_history && !is_long && self.has(Rule::FailoverExplainsLoss);
        let is_lost = server.commits() && server.database.has_lost(next.node.applied);
        if is_lost && !is_explained && self.has(Rule::LostGenerationQuarantines) {
            server.database.is_in_quarantine = true;
        }
    }

    /// The operator revokes again what the backup has revived, and lifts the quarantine.
    pub fn finish_restore(&self, next: &mut State) -> Option<()> {
        let index = next.primary_index();
        let token = next.new_token();
        let server = next.servers[index];
        let is_waiting = server.age < self.wait() && self.has(Rule::QuarantineOutlastsLeases);
        let mut database = server.database;
        if !database.is_in_quarantine || is_waiting {
            return None;
        }
        database.is_in_quarantine = false;
        match self.credential {
            Credential::ApiKey => {
                let is_listed = next.is_answered && !database.key_is_revoked;
                if is_listed && self.has(Rule::FinishRevokesAgain) {
                    database.announce(token, true);
                }
            }
            // Without an invalidation: there would be one for each session.
            Credential::Session => {
                database.key_is_revoked |= self.has(Rule::FinishEndsSessions);
                next.is_answered = true;
            }
        }
        if let Some(row) = &mut database.row {
            row.is_expired |= self.has(Rule::FinishMarks);
        }
        self.commit(next, index, database);
        Some(())
    }
}
