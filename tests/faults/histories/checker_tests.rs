//! The checker finds planted violations, and accepts all responses of a correct service.

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;
use uuid::Uuid;

use super::{
    Action::{self, Create, Refresh, Revoke, Use},
    CredentialId, History, Operation,
    Reply::{self, Accepted, Missing, Other, Refused, Unavailable},
    Violation, check, recovery_time,
};

const OWNER: CredentialId = CredentialId(0);
const KEY: CredentialId = CredentialId(1);

/// Builds an operation on [`KEY`] from `began` to `ended`, in milliseconds. Changes are made by
/// [`OWNER`].
fn operation(action: Action, began: u64, ended: u64, reply: Reply) -> Operation {
    let (presented, target) = match action {
        Use => (Some(KEY), None),
        Refresh => (Some(KEY), Some(KEY)),
        Create | Revoke => (Some(OWNER), Some(KEY)),
    };
    let [began, ended] = [began, ended].map(Duration::from_millis);
    Operation { action, presented, target, node: 0, began, ended, reply, request_id: None }
}

/// Builds a history in which [`OWNER`] has signed in and [`KEY`] was created within 10 ms.
fn history(operations: impl IntoIterator<Item = Operation>) -> History {
    let sign_in =
        Operation { presented: None, target: Some(OWNER), ..operation(Create, 0, 5, Accepted) };
    let mut all = vec![sign_in, operation(Create, 6, 10, Accepted)];
    all.extend(operations);
    History { operations: all, ..History::default() }
}

fn violations(operations: impl IntoIterator<Item = Operation>) -> Vec<Violation> {
    check(&history(operations), None)
}

#[test]
fn use_after_acknowledged_revocation_is_found() {
    for late in [Use, Refresh] {
        let found =
            violations([operation(Revoke, 20, 30, Accepted), operation(late, 30, 40, Accepted)]);
        let expected = Violation::AcceptedAfterRevocation { credential: KEY, operation: 3 };
        assert_eq!(found, [expected], "{late:?}");
    }
}

#[test]
fn use_that_overlaps_revocation_is_allowed() {
    for reply in [Accepted, Refused, Unavailable] {
        let found = violations([
            operation(Use, 29, 40, reply),
            operation(Revoke, 20, 30, Accepted),
            operation(Use, 31, 40, Refused),
        ]);
        assert_eq!(found, [], "{reply:?}");
    }
}

#[test]
fn failed_revocation_decides_nothing() {
    for unknown in [Unavailable, Missing] {
        let found = violations([
            operation(Revoke, 20, 30, unknown),
            operation(Use, 40, 50, Accepted),
            operation(Use, 60, 70, Refused),
        ]);
        assert_eq!(found, [], "{unknown:?}");
    }
}

#[test]
fn refusal_of_good_credential_is_found() {
    let expected =
        |operation| Violation::RefusedGoodCredential { credential: Some(KEY), operation };
    let found = violations([operation(Use, 20, 30, Refused), operation(Refresh, 20, 30, Refused)]);
    assert_eq!(found, [expected(2), expected(3)]);
    // A refused revocation has changed nothing.
    let found = violations([operation(Revoke, 20, 30, Refused), operation(Use, 40, 50, Refused)]);
    let owner = Violation::RefusedGoodCredential { credential: Some(OWNER), operation: 2 };
    assert_eq!(found, [owner, expected(3)]);
}

#[test]
fn refused_sign_in_is_found() {
    let sign_in = Operation { presented: None, ..operation(Create, 20, 30, Refused) };
    let expected = Violation::RefusedGoodCredential { credential: None, operation: 2 };
    assert_eq!(violations([sign_in]), [expected]);
}

#[test]
fn refusal_before_acknowledged_creation_is_allowed() {
    let history = History {
        operations: vec![operation(Use, 5, 20, Refused), operation(Create, 6, 10, Accepted)],
        ..History::default()
    };
    assert_eq!(check(&history, None), []);
}

#[test]
fn unexpected_status_is_found() {
    let found = violations([operation(Use, 20, 30, Other(500)), operation(Use, 20, 30, Missing)]);
    assert_eq!(found, [Violation::UnexpectedStatus { status: 500, operation: 2 }]);
}

#[test]
fn undecided_credential_is_not_judged_from_its_loss_on() {
    let mut history = history([
        operation(Revoke, 20, 30, Accepted),
        operation(Use, 40, 50, Accepted),
        operation(Use, 60, 70, Accepted),
    ]);
    history.undecided.insert(KEY, Duration::from_millis(55));
    let expected = Violation::AcceptedAfterRevocation { credential: KEY, operation: 3 };
    assert_eq!(check(&history, None), [expected]);
}

#[test]
fn missing_and_duplicate_events_are_found() {
    let [one, none, two, failed] = [1, 2, 3, 4].map(Uuid::from_u128);
    let with =
        |request, reply| Operation { request_id: Some(request), ..operation(Use, 20, 30, reply) };
    let history = history([
        with(one, Accepted),
        with(none, Accepted),
        with(two, Accepted),
        with(failed, Unavailable),
    ]);
    let events = HashMap::from([(one, 1), (two, 2)]);
    let expected = [
        Violation::MissingEvent { request: none, operation: 3 },
        Violation::DuplicateEvent { request: two, operation: 4 },
    ];
    assert_eq!(check(&history, Some(&events)), expected);
}

#[test]
fn recovery_ends_with_last_failure_of_each_node() {
    let at = |node, action, ended, reply| Operation {
        node,
        ..operation(action, ended - 5, ended, reply)
    };
    let mut history = history([
        at(0, Use, 100, Unavailable),
        at(0, Use, 200, Accepted),
        at(1, Revoke, 300, Missing),
        at(1, Use, 310, Accepted),
    ]);
    let [fault, until] = [50, 1000].map(Duration::from_millis);
    assert_eq!(recovery_time(&history, fault, until), None, "no revocation has succeeded");
    history.operations.push(at(1, Revoke, 400, Accepted));
    assert_eq!(recovery_time(&history, fault, until), Some(Duration::from_millis(250)));
    let later = Duration::from_millis(305);
    assert_eq!(recovery_time(&history, later, until), Some(Duration::ZERO));
}

/// Requests of a service that decides each at one moment between its begin and its end.
fn correct_operations() -> impl Strategy<Value = Vec<Operation>> {
    let request = (any::<bool>(), 0_u64..20, 0_u64..20, 0_u8..4);
    proptest::collection::vec(request, 1..40).prop_map(|requests| {
        let mut is_revoked = false;
        let decide = |(moment, (is_revocation, before, after, fate))| {
            let moment: u64 = moment;
            let is_done = fate != 0;
            let action = if is_revocation { Revoke } else { Use };
            let reply = match (is_done, is_revocation, is_revoked, fate) {
                (false, ..) | (.., 1) => Unavailable,
                (true, false, true, _) => Refused,
                _ => Accepted,
            };
            is_revoked |= is_revocation && is_done;
            operation(action, moment.saturating_sub(before).max(10), moment + after, reply)
        };
        (11..).step_by(3).zip(requests).map(decide).collect()
    })
}

proptest! {
    // Proptest finds no folder for the cases of a module outside of `tests/api`.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn correct_history_has_no_violation(operations in correct_operations()) {
        prop_assert_eq!(violations(operations), []);
    }

    #[test]
    fn planted_use_is_found(operations in correct_operations(), delay in 0_u64..50) {
        let revoked = operations
            .iter()
            .filter(|operation| (operation.action, operation.reply) == (Revoke, Accepted))
            .map(|operation| u64::try_from(operation.ended.as_millis()).unwrap())
            .min();
        prop_assume!(revoked.is_some());
        let began = revoked.unwrap() + delay;
        let mut operations = operations;
        operations.push(operation(Use, began, began + 5, Accepted));
        let expected =
            Violation::AcceptedAfterRevocation { credential: KEY, operation: operations.len() + 1 };
        prop_assert_eq!(violations(operations), [expected]);
    }
}
