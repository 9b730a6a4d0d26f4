//! Restores in the model: rule 9 of `docs/revocation.md`.

use super::{
    LEASE, MAX_STATES, NONE, check,
    explorer::explore_with,
    find_counterexample, model,
    model::{Credential, Model, Violation},
    rules::{Rule, Rules},
    state::{
        Backup::{self, BaseOnNewTimeline, BaseOnSameTimeline, Dump},
        Budget,
        Nodes::{self, CutOff, Informed, Running, Stopped},
        Replication, Restore,
    },
};

const CREDENTIALS: [Credential; 2] = [Credential::ApiKey, Credential::Session];
const BASE_BACKUPS: [Backup; 2] = [BaseOnNewTimeline, BaseOnSameTimeline];

/// A model of a restore. The node may restart too, unless it has to remember the lost change.
fn restore(backup: Backup, nodes: Nodes, credential: Credential, rules: Rules) -> Model {
    let node_restarts = u8::from(nodes != Informed);
    let restore = Some(Restore { backup, nodes });
    let budget = Budget { node_restarts, restore, ..NONE };
    Model { credential, ..model(Replication::Asynchronous, rules, budget) }
}

fn check_restore(backup: Backup, nodes: Nodes) {
    for credential in CREDENTIALS {
        check(&restore(backup, nodes, credential, Rules::PROTOCOL));
    }
}

/// Finds the shortest counterexample of a restore, without a rule.
fn break_rule(rule: Rule, backup: Backup, nodes: Nodes, credential: Credential) -> Violation {
    println!("Without {rule:?}:");
    let rules = Rules::PROTOCOL.without(rule);
    find_counterexample(&restore(backup, nodes, credential, rules)).violation
}

#[test]
fn restored_dump_revives_nothing() {
    check_restore(Dump, Running);
}

#[test]
fn base_backup_revives_nothing_if_operator_begins_quarantine() {
    for backup in BASE_BACKUPS {
        check_restore(backup, Stopped);
    }
}

#[test]
fn base_backup_revives_nothing_on_node_that_knows_lost_change() {
    for backup in BASE_BACKUPS {
        check_restore(backup, Informed);
    }
}

#[test]
fn base_backup_revives_nothing_on_node_that_was_cut_off() {
    for backup in BASE_BACKUPS {
        check_restore(backup, CutOff);
    }
}

#[test]
fn revocation_is_answered_once_restore_is_finished() {
    for (backup, nodes) in [(Dump, Running), (BaseOnSameTimeline, CutOff)] {
        let model = restore(backup, nodes, Credential::ApiKey, Rules::PROTOCOL);
        explore_with(&model, MAX_STATES, |state| {
            for is_node_alive in [true, false] {
                let ticks = model.ticks_until_answer(state, is_node_alive);
                assert!(ticks.is_some_and(|ticks| ticks <= LEASE), "{ticks:?} {state:?}");
            }
        });
    }
}

/// An asynchronous standby lacks the last generation.
#[test]
fn failover_that_loses_generation_begins_no_quarantine() {
    let budget = Budget { failovers: 1, ..NONE };
    let rules = Rules::PROTOCOL.without(Rule::FailoverExplainsLoss);
    let found = find_counterexample(&model(Replication::Asynchronous, rules, budget));
    assert_eq!(found.violation, Violation::NeedlessQuarantine);
}

#[test]
fn every_rule_of_the_quarantine_is_needed() {
    use Credential::{ApiKey, Session};
    use Violation::{AcceptedByLookup, AcceptedFromCache};
    for (rule, backup, nodes, credential, violation) in [
        (Rule::OtherIdentityQuarantines, Dump, Running, ApiKey, AcceptedByLookup),
        (Rule::QuarantineRefusesRegistration, Dump, Running, ApiKey, AcceptedByLookup),
        (Rule::QuarantineRefusesRenewal, BaseOnSameTimeline, CutOff, ApiKey, AcceptedByLookup),
        (Rule::QuarantineRefusesRequests, BaseOnSameTimeline, CutOff, ApiKey, AcceptedFromCache),
        (Rule::LostGenerationQuarantines, BaseOnNewTimeline, Informed, ApiKey, AcceptedByLookup),
        (Rule::LostGenerationQuarantines, BaseOnSameTimeline, Informed, ApiKey, AcceptedByLookup),
        (Rule::OperatorBeginsQuarantine, BaseOnNewTimeline, Stopped, ApiKey, AcceptedByLookup),
        (Rule::OperatorBeginsQuarantine, BaseOnSameTimeline, Stopped, ApiKey, AcceptedByLookup),
        (Rule::FinishRevokesAgain, Dump, Running, ApiKey, AcceptedByLookup),
        (Rule::FinishEndsSessions, Dump, Running, Session, AcceptedByLookup),
        (Rule::QuarantineOutlastsLeases, Dump, Running, Session, AcceptedFromCache),
        (Rule::QuarantineOutlastsLeases, BaseOnSameTimeline, CutOff, ApiKey, AcceptedFromCache),
        (Rule::FinishMarks, BaseOnSameTimeline, CutOff, ApiKey, AcceptedFromCache),
        (Rule::FinishMarks, BaseOnSameTimeline, CutOff, Session, AcceptedFromCache),
    ] {
        let found = break_rule(rule, backup, nodes, credential);
        assert_eq!(found, violation, "{rule:?} {backup:?} {nodes:?} {credential:?}");
    }
}

// The limits.

/// The node that knows a lost change is not the first one that gets a lease.
#[test]
fn base_backup_under_running_nodes_breaks_promise() {
    for (backup, violation) in [
        (BaseOnNewTimeline, Violation::AcceptedByLookup),
        (BaseOnSameTimeline, Violation::AcceptedFromCache),
    ] {
        let model = restore(backup, Running, Credential::ApiKey, Rules::PROTOCOL);
        assert_eq!(find_counterexample(&model).violation, violation);
    }
}
