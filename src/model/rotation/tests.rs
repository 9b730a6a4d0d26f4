//! Tests of single reports, and a model of nodes that use a key, write, publish and crash in any
//! order.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const QUIET: Duration = Duration::minutes(15);

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
}

/// The id of an event at this time.
fn event_at(seconds: i64) -> EventId {
    Uuid::from_u128(seconds.unsigned_abs().into()).into()
}

/// The usage of a key. If it has been used, its last request was served, or all were refused.
fn traffic(first: Option<i64>, last: Option<i64>, has_served: bool, requests: i64) -> KeyTraffic {
    let last_event = last.map(event_at);
    KeyTraffic {
        id: Uuid::nil().into(),
        name: "k".into(),
        created_at: at(0),
        first_used_at: first.map(at),
        last_used_at: last.map(at),
        last_success: last_event.filter(|_| has_served),
        last_failure: last_event.filter(|_| !has_served),
        status: KeyStatus::Active,
        requests_last_hour: requests,
        clients_last_hour: Vec::new(),
    }
}

fn report(old: KeyTraffic, new: KeyTraffic, until: i64, lost: Option<i64>) -> RotationReport {
    let known = UsageWatermark { counted_until: at(until), usage_gap_at: lost.map(at) };
    RotationReport::new(old, Some(new), known, None, QUIET)
}

#[test]
fn state_and_reason_follow_the_counts() {
    use RotationState::{Adopted, Draining, Minted, Quiet};
    let old = |last, requests| traffic(Some(10), Some(last), true, requests);
    let unused = || traffic(None, None, false, 0);
    let new = |requests| traffic(Some(1000), Some(2000), true, requests);
    let refused = traffic(Some(1000), Some(2000), false, 5);
    for (report, state, safe, reason) in [
        (report(old(990, 9), unused(), 2000, None), Minted, false, "has not been used"),
        (report(old(10, 0), unused(), 9000, None), Minted, false, "has not been used"),
        (report(old(10, 0), refused, 9000, None), Minted, false, "has been refused"),
        (report(old(2000, 9), new(3), 2001, None), Adopted, false, "last used 1 s ago"),
        (report(old(2000, 3), new(9), 2899, None), Draining, false, "last used 899 s ago"),
        (report(old(2000, 3), new(9), 2900, None), Quiet, true, "idle for 900 s"),
        (report(old(2000, 0), new(0), 9000, None), Quiet, true, "idle for 7000 s"),
        // The counts lag: a period that is not counted yet is not idle time.
        (report(old(2000, 3), new(9), 1990, None), Draining, false, "last used 0 s ago"),
        (report(old(2000, 3), new(9), 5000, Some(4200)), Draining, false, "a node was lost"),
        (report(old(2000, 3), new(9), 5100, Some(4200)), Quiet, true, "idle for 900 s"),
        (
            report(traffic(None, None, false, 0), new(9), 800, None),
            Draining,
            false,
            "created only recently",
        ),
        (report(traffic(None, None, false, 0), new(9), 900, None), Quiet, true, "idle for 900 s"),
    ] {
        assert_eq!((report.state, report.safe_to_revoke), (state, safe), "{}", report.reason);
        assert!(report.reason.contains(reason), "{}", report.reason);
    }
}

#[test]
fn old_key_is_not_safe_to_revoke_until_new_key_has_recovered() {
    use KeyStatus::{Active, Disabled};
    let judge = |success: Option<i64>, failure: Option<i64>, status| {
        let new = KeyTraffic {
            last_success: success.map(event_at),
            last_failure: failure.map(event_at),
            status,
            ..traffic(Some(1000), Some(2000), true, 5)
        };
        let report = report(traffic(Some(10), Some(20), true, 0), new, 9000, None);
        assert_eq!(report.safe_to_revoke, report.state == RotationState::Quiet);
        (report.safe_to_revoke, report.reason)
    };
    for (success, failure, status, is_safe, reason) in [
        (Some(7), None, Active, true, "is in use"),
        (Some(7), Some(6), Active, true, "is in use"),
        (Some(7), Some(8), Active, false, "have failed since its last success"),
        (None, Some(8), Active, false, "has been refused so far"),
        (None, None, Active, false, "has not been used yet"),
        (Some(7), None, Disabled, false, "is disabled"),
    ] {
        let (safe, text) = judge(success, failure, status);
        assert_eq!(safe, is_safe, "{text}");
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn confirmation_holds_until_the_old_key_is_used() {
    let quiet = QuietPeriod { since: at(100), until: at(1000) };
    let confirmed = QuietEvidence { successor: Some(Uuid::nil().into()), quiet };
    let old = |last| traffic(Some(10), Some(last), true, 1);
    let new = |served| traffic(Some(50), Some(60), served, 1);
    let judge = |last, served, until, lost: Option<i64>| {
        let known = UsageWatermark { counted_until: at(until), usage_gap_at: lost.map(at) };
        RotationReport::new(old(last), Some(new(served)), known, Some(confirmed), QUIET)
    };
    // A node with older counts, and a lost node.
    assert!(judge(100, true, 500, None).safe_to_revoke);
    assert!(judge(100, true, 1100, Some(1050)).safe_to_revoke);
    // The confirmation says nothing about the new key.
    assert!(!judge(100, false, 1100, None).safe_to_revoke);
    assert_eq!(judge(100, true, 1100, None).new_evidence, None, "it is stored already");
    // A use of the old key invalidates the confirmation.
    assert!(!judge(101, true, 1000, None).safe_to_revoke);
    let again = judge(101, true, 1001, None);
    let quiet = QuietPeriod { since: at(101), until: at(1001) };
    assert_eq!(again.new_evidence, Some(QuietEvidence { quiet, ..confirmed }));
}

#[test]
fn confirmation_with_another_successor_proves_idle_time_only() {
    let quiet = QuietPeriod { since: at(100), until: at(1000) };
    let confirmed = QuietEvidence { successor: None, quiet };
    let known = UsageWatermark { counted_until: at(500), usage_gap_at: None };
    let judge = |served| {
        let old = traffic(Some(10), Some(100), true, 1);
        let new = traffic(Some(50), Some(60), served, 1);
        RotationReport::new(old, Some(new), known, Some(confirmed), QUIET)
    };
    assert!(!judge(false).safe_to_revoke);
    let report = judge(true);
    assert!(report.safe_to_revoke);
    let successor = Some(Uuid::nil().into());
    assert_eq!(report.new_evidence, Some(QuietEvidence { successor, quiet }));
}

/// A model of the cluster: nodes that serve both keys, write, publish, report and crash, and the
/// state that PostgreSQL stores.
struct World {
    now: i64,
    nodes: Vec<ModelNode>,
    /// Requests that are written and not yet counted.
    outbox: Vec<ModelRequest>,
    /// The times of the last counted request of each kind.
    old_used_at: Option<i64>,
    new_served_at: Option<i64>,
    new_failed_at: Option<i64>,
    usage_gap_at: Option<i64>,
    stored: Option<QuietEvidence>,
}

#[derive(Default)]
struct ModelNode {
    unwritten: Vec<ModelRequest>,
    watermark: i64,
    /// The watermark that other nodes see.
    published: i64,
    is_lost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestKind {
    OldUse,
    NewSuccess,
    NewFailure,
}

#[derive(Debug, Clone, Copy)]
struct ModelRequest {
    at: i64,
    kind: RequestKind,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(i64),
    Serve(usize, RequestKind),
    Write(usize),
    Publish(usize),
    Count,
    Lose(usize),
    Report(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0_usize..3;
    let serve = |kind| node.clone().prop_map(move |node| Step::Serve(node, kind));
    prop_oneof![
        3 => (1_i64..1200).prop_map(Step::Pass),
        1 => serve(RequestKind::OldUse),
        2 => serve(RequestKind::NewSuccess),
        1 => serve(RequestKind::NewFailure),
        3 => node.clone().prop_map(Step::Write),
        3 => node.clone().prop_map(Step::Publish),
        3 => Just(Step::Count),
        1 => node.clone().prop_map(Step::Lose),
        6 => node.clone().prop_map(Step::Report),
    ]
}

impl World {
    fn new() -> Self {
        let nodes = std::iter::repeat_with(ModelNode::default).take(3).collect();
        Self {
            now: 0,
            nodes,
            outbox: Vec::new(),
            old_used_at: None,
            new_served_at: None,
            new_failed_at: None,
            usage_gap_at: None,
            stored: None,
        }
    }

    /// Models `AuditWriter::written_until`.
    fn written_until(&mut self, node: usize) -> i64 {
        let node = &mut self.nodes[node];
        if node.unwritten.is_empty() {
            node.watermark = node.watermark.max(self.now);
        }
        node.watermark
    }

    /// Models `usage_watermark`, `RotationReport` and `quiet_confirmations` together.
    fn report(&mut self, node: usize) -> RotationReport {
        let own = self.written_until(node);
        let others = self.nodes.iter().enumerate();
        let others = others.filter(|(other, state)| *other != node && !state.is_lost);
        let published = others.map(|(_, state)| state.published).min().unwrap_or(own);
        let uncounted = self.outbox.iter().map(|request| request.at).min().unwrap_or(own);
        let until = own.min(published).min(uncounted);
        let known =
            UsageWatermark { counted_until: at(until), usage_gap_at: self.usage_gap_at.map(at) };
        let old = traffic(self.old_used_at, self.old_used_at, true, 1);
        let new = KeyTraffic {
            last_success: self.new_served_at.map(event_at),
            last_failure: self.new_failed_at.map(event_at),
            ..traffic(Some(0), Some(0), true, 1)
        };
        let report = RotationReport::new(old, Some(new), known, self.stored, QUIET);
        self.stored = report.new_evidence.or(self.stored);
        report
    }

    fn has_counted_all(&self) -> bool {
        self.outbox.is_empty() && self.nodes.iter().all(|node| node.unwritten.is_empty())
    }

    fn count(&mut self) {
        for ModelRequest { at, kind } in std::mem::take(&mut self.outbox) {
            let last = match kind {
                RequestKind::OldUse => &mut self.old_used_at,
                RequestKind::NewSuccess => &mut self.new_served_at,
                RequestKind::NewFailure => &mut self.new_failed_at,
            };
            *last = (*last).max(Some(at));
        }
    }

    fn apply(&mut self, step: Step) -> Option<RotationReport> {
        match step {
            Step::Pass(seconds) => self.now += seconds,
            Step::Serve(node, kind) if !self.nodes[node].is_lost => {
                // Later than every watermark so far.
                self.now += 1;
                let request = ModelRequest { at: self.now, kind };
                self.nodes[node].unwritten.push(request);
            }
            Step::Write(node) if !self.nodes[node].is_lost => {
                let written = std::mem::take(&mut self.nodes[node].unwritten);
                self.outbox.extend(written);
            }
            Step::Publish(node) if !self.nodes[node].is_lost => {
                self.nodes[node].published = self.written_until(node);
            }
            Step::Count => self.count(),
            Step::Lose(node) => {
                self.nodes[node] = ModelNode { is_lost: true, ..ModelNode::default() };
                self.usage_gap_at = Some(self.now);
            }
            Step::Report(node) if !self.nodes[node].is_lost => return Some(self.report(node)),
            _ => {}
        }
        None
    }
}

proptest! {
    #[test]
    fn verdict_is_withdrawn_only_after_use_of_old_key_or_failure_of_new_key(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        let mut is_safe_expected = false;
        for step in steps {
            is_safe_expected &= !matches!(
                step,
                Step::Serve(_, RequestKind::OldUse | RequestKind::NewFailure)
            );
            let Some(report) = world.apply(step) else { continue };
            prop_assert!(report.safe_to_revoke || !is_safe_expected, "{step:?}: {}", report.reason);
            prop_assert!(!report.safe_to_revoke || world.new_served_at > world.new_failed_at);
            // A request that is not counted yet may still withdraw the verdict.
            is_safe_expected = report.safe_to_revoke && world.has_counted_all();
        }
    }

    #[test]
    fn verdict_is_not_safe_while_a_use_may_be_uncounted(
        last in 0_i64..5000, until in 0_i64..5000, lost in prop::option::of(0_i64..5000),
        uncounted_use in 0_i64..5000,
    ) {
        let report = report(
            traffic(Some(0), Some(last), true, 1),
            traffic(Some(1), Some(1), true, 1),
            until,
            lost,
        );
        // A use that is not counted is later than `until`, or was on the lost node.
        if report.safe_to_revoke && uncounted_use < lost.unwrap_or(0) {
            prop_assert!(until - uncounted_use >= QUIET.whole_seconds());
        }
        prop_assert_eq!(report.safe_to_revoke, report.state == RotationState::Quiet);
        prop_assert!(report.adoption() >= 0.0 && report.adoption() <= 1.0);
    }
}
