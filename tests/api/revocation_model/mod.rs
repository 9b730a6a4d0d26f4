//! A model of the revocation protocol, which `docs/revocation.md` specifies.
//!
//! Two PostgreSQL servers, a node that serves requests with a key, and a node that revokes it take
//! their steps in every order. Each statement may run on any server that answers, late or not at
//! all, and time passes at any moment. The number of steps is not limited, but that of faults is:
//! the tests explore all states that are reachable with them.
//!
//! The explorer is our own, without a library such as stateright: a breadth-first search with the
//! shortest path to each state is 60 lines, and needs no actors, network or web server.
//!
//! Simplifications that lose no behavior: a statement that is not late runs when it is sent, since
//! a later start only shortens its lease; a node sees each counter of renewals as soon as it
//! changes; of several look-ups in flight, one is modeled.

mod action;
mod explorer;
mod faults;
mod model;
mod node;
mod recovery;
mod restore;
mod restore_tests;
mod revoker;
mod rules;
mod state;

use std::cell::Cell;

use explorer::{Counterexample, explore, explore_with, walk_randomly};
use model::{Credential, Model, Violation};
use rules::{Rule, Rules};
use state::{Budget, LEASE, Replication, Role};

/// States of the largest exploration.
const MAX_STATES: usize = 300_000;
/// Number of random paths.
const PATHS: u64 = 3_000;
/// No faults.
const NONE: Budget = Budget {
    failovers: 0,
    node_restarts: 0,
    node_stops: 0,
    server_restarts: 0,
    restore: None,
    late_statements: 0,
    clock_steps: 0,
    prunes: 0,
    other_revocations: 0,
    keys: 0,
};
const FAILOVER: Budget = Budget { failovers: 1, ..NONE };
const BOTH: [Replication; 2] = [Replication::Synchronous, Replication::Asynchronous];

fn model(replication: Replication, rules: Rules, budget: Budget) -> Model {
    Model {
        rules,
        replication,
        old_primary: Role::ReadOnly,
        credential: Credential::ApiKey,
        budget,
    }
}

/// Explores all states, and checks that none breaks a promise.
fn check(model: &Model) {
    let result = explore(model, MAX_STATES);
    println!("{:?}: {} states, depth {}", model.replication, result.states, result.depth);
    if let Some(found) = result.counterexample {
        panic!("{:?}\n{}", model.budget, found.describe());
    }
    assert!(result.is_complete, "more than {MAX_STATES} states");
}

/// Finds the shortest counterexample of a model, and prints it.
fn find_counterexample(model: &Model) -> Counterexample {
    let found = explore(model, MAX_STATES).counterexample.unwrap();
    println!("{:?}\n{}", model.replication, found.describe());
    found
}

/// Finds the shortest counterexample of the protocol without a rule.
fn break_rule(rule: Rule, replication: Replication, budget: Budget) -> Violation {
    println!("Without {rule:?}:");
    find_counterexample(&model(replication, Rules::PROTOCOL.without(rule), budget)).violation
}

// The protocol.

#[test]
fn failover_breaks_no_promise() {
    for replication in BOTH {
        check(&model(replication, Rules::PROTOCOL, FAILOVER));
    }
}

#[test]
fn failover_after_another_revocation_breaks_no_promise() {
    let budget = Budget { other_revocations: 1, ..FAILOVER };
    check(&model(Replication::Synchronous, Rules::PROTOCOL, budget));
}

#[test]
fn late_statements_break_no_promise() {
    let budget = Budget { late_statements: 2, ..NONE };
    check(&model(Replication::Synchronous, Rules::PROTOCOL, budget));
}

#[test]
fn late_statement_during_failover_breaks_no_promise() {
    let budget = Budget { late_statements: 1, ..FAILOVER };
    check(&model(Replication::Synchronous, Rules::PROTOCOL, budget));
}

#[test]
fn restarts_break_no_promise() {
    let budget = Budget { server_restarts: 1, node_restarts: 1, ..NONE };
    for replication in BOTH {
        check(&model(replication, Rules::PROTOCOL, budget));
    }
}

#[test]
fn stop_of_a_node_breaks_no_promise() {
    let budget = Budget { node_stops: 1, ..FAILOVER };
    check(&model(Replication::Synchronous, Rules::PROTOCOL, budget));
}

#[test]
fn pruned_invalidations_break_no_promise() {
    let budget = Budget { prunes: 2, other_revocations: 2, ..NONE };
    check(&model(Replication::Synchronous, Rules::PROTOCOL, budget));
}

#[test]
fn steps_of_the_database_clock_break_no_promise() {
    let budget = Budget { clock_steps: 2, other_revocations: 1, ..NONE };
    check(&model(Replication::Synchronous, Rules::PROTOCOL, budget));
}

#[test]
fn random_paths_with_many_faults_break_no_promise() {
    let faults = Budget {
        failovers: 1,
        node_restarts: 2,
        node_stops: 1,
        server_restarts: 2,
        late_statements: 3,
        clock_steps: 2,
        prunes: 2,
        other_revocations: 2,
        ..NONE
    };
    for replication in BOTH {
        let protocol = model(replication, Rules::PROTOCOL, faults);
        let found = walk_randomly(&protocol, PATHS, 100);
        assert!(found.is_none(), "{}", found.unwrap().describe());
        let first_protocol = model(replication, Rules::FIRST_PROTOCOL, faults);
        assert!(walk_randomly(&first_protocol, PATHS, 100).is_some(), "the paths find nothing");
    }
}

#[test]
fn revocation_is_answered_once_faults_are_over() {
    let budgets = [
        FAILOVER,
        Budget { server_restarts: 1, node_restarts: 1, ..NONE },
        Budget { clock_steps: 1, ..NONE },
    ];
    for budget in budgets {
        let model = model(Replication::Synchronous, Rules::PROTOCOL, budget);
        explore_with(&model, MAX_STATES, |state| {
            for is_node_alive in [true, false] {
                let ticks = model.ticks_until_answer(state, is_node_alive);
                assert!(ticks.is_some_and(|ticks| ticks <= LEASE), "{ticks:?} {state:?}");
            }
        });
    }
}

// The faults of the first protocol, each through the rule that prevents it.

/// Connections to the old primary outlive the failover.
#[test]
fn lookup_on_old_primary_breaks_promise() {
    let found = break_rule(Rule::LookupOnLeaseServer, Replication::Synchronous, FAILOVER);
    assert_eq!(found, Violation::AcceptedFromCache);
}

/// The failover loses a generation, and its number is assigned again.
#[test]
fn generation_without_token_breaks_promise() {
    let rules = Rules::PROTOCOL.without(Rule::GenerationToken);
    let model = model(Replication::Asynchronous, rules, FAILOVER);
    let found = find_counterexample(&Model { old_primary: Role::Down, ..model });
    assert_eq!(found.violation, Violation::AcceptedFromCache);
}

/// A node that reaches only the old primary has no lease, and believes its look-ups.
#[test]
fn lookup_without_lease_breaks_promise() {
    let found = break_rule(Rule::LookupUnderLease, Replication::Synchronous, FAILOVER);
    assert_eq!(found, Violation::AcceptedByLookup);
}

/// PostgreSQL's clock goes ahead, and a lease seems to be over.
#[test]
fn lease_by_database_clock_breaks_promise() {
    let budget = Budget { clock_steps: 1, ..NONE };
    let found = break_rule(Rule::CounterInsteadOfClock, Replication::Synchronous, budget);
    assert_eq!(found, Violation::AcceptedFromCache);
}

/// PostgreSQL's clock goes back, and the lease of a dead node seems to last.
#[test]
fn lease_by_database_clock_blocks_revocations() {
    let budget = Budget { clock_steps: 1, ..NONE };
    let rules = Rules::PROTOCOL.without(Rule::CounterInsteadOfClock);
    let model = model(Replication::Synchronous, rules, budget);
    let is_blocked = Cell::new(false);
    explore_with(&model, MAX_STATES, |state| {
        is_blocked.set(is_blocked.get() || model.ticks_until_answer(state, false).is_none());
    });
    assert!(is_blocked.get());
}

#[test]
fn first_protocol_breaks_promises() {
    let clock_step = Budget { clock_steps: 1, ..NONE };
    for (replication, budget) in [
        (Replication::Synchronous, FAILOVER),
        (Replication::Asynchronous, FAILOVER),
        (Replication::Synchronous, clock_step),
    ] {
        find_counterexample(&model(replication, Rules::FIRST_PROTOCOL, budget));
    }
}

// The other rules.

#[test]
fn every_rule_of_leases_and_caches_is_needed() {
    for (rule, replication) in [
        (Rule::OutdatedLookupNotCached, Replication::Synchronous),
        (Rule::LeaseAfterCommit, Replication::Synchronous),
        (Rule::LeaseFromSending, Replication::Synchronous),
        (Rule::NewHistoryClears, Replication::Synchronous),
        (Rule::NewHistoryClears, Replication::Asynchronous),
        (Rule::AcknowledgementToken, Replication::Asynchronous),
    ] {
        assert_eq!(break_rule(rule, replication, FAILOVER), Violation::AcceptedFromCache);
    }
    let budget = Budget { prunes: 2, other_revocations: 2, ..NONE };
    let found = break_rule(Rule::GapClears, Replication::Synchronous, budget);
    assert_eq!(found, Violation::AcceptedFromCache);
    let budget = Budget { node_stops: 1, ..NONE };
    let found = break_rule(Rule::LeaseEndsBeforeDeregistration, Replication::Synchronous, budget);
    assert_eq!(found, Violation::AcceptedFromCache);
}

#[test]
fn every_rule_of_the_fence_is_needed() {
    for (rule, replication) in [
        (Rule::FenceOnOneServer, Replication::Synchronous),
        (Rule::WaitFromArrival, Replication::Synchronous),
        (Rule::Tolerance, Replication::Synchronous),
        (Rule::Mark, Replication::Synchronous),
        (Rule::NewHistorySettles, Replication::Asynchronous),
        (Rule::WatchOnOneServer, Replication::Asynchronous),
    ] {
        assert_eq!(break_rule(rule, replication, FAILOVER), Violation::AcceptedFromCache);
    }
}

/// A registration that PostgreSQL runs after its node gave it up acknowledges what the node has not
/// applied.
#[test]
fn late_registration_in_the_row_of_the_node_breaks_promise() {
    let budget = Budget { late_statements: 1, ..NONE };
    let found = break_rule(Rule::NewRowForRegistration, Replication::Synchronous, budget);
    assert_eq!(found, Violation::AcceptedFromCache);
}

/// The row of a generation is pruned, or never was, when its successor appears.
#[test]
fn generation_that_is_known_by_its_row_alone_clears_caches_needlessly() {
    let budget = Budget { other_revocations: 1, ..NONE };
    let found = break_rule(Rule::PredecessorToken, Replication::Synchronous, budget);
    assert_eq!(found, Violation::NeedlessRefusal);
}

/// Where a new history settles, a node may renew and acknowledge on any server. Where it does not,
/// synchronous replication is enough only if the node may not.
#[test]
fn node_may_renew_anywhere_because_histories_settle() {
    let rules = Rules::PROTOCOL.without(Rule::NewHistorySettles);
    find_counterexample(&model(Replication::Synchronous, rules, FAILOVER));
    let rules = rules.with(Rule::NodeOnLeaseServer);
    check(&model(Replication::Synchronous, rules, FAILOVER));
}

// The limits.

/// A node whose lease is from the old primary looks up a key that was created on the new one.
#[test]
fn new_key_may_be_unknown_until_history_settles() {
    let budget = Budget { keys: 1, ..FAILOVER };
    let found = find_counterexample(&model(Replication::Synchronous, Rules::PROTOCOL, budget));
    assert_eq!(found.violation, Violation::RefusedNewKey);
    let rules = Rules::PROTOCOL.with(Rule::CreationSettles);
    for replication in BOTH {
        check(&model(replication, rules, budget));
    }
    let rules = rules.without(Rule::NewHistoryClears);
    let found = find_counterexample(&model(Replication::Asynchronous, rules, budget));
    assert_eq!(found.violation, Violation::AcceptedUnknownKey);
}

/// An old primary without synchronous replication goes on, with the nodes that reach it.
#[test]
fn old_primary_that_commits_breaks_promise() {
    let model = model(Replication::Asynchronous, Rules::PROTOCOL, FAILOVER);
    let found = find_counterexample(&Model { old_primary: Role::Committing, ..model });
    assert_eq!(found.violation, Violation::AcceptedFromCache);
}
