//! Tests of single reports, and a model of nodes that use a key, write, publish and crash in any
//! order.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const QUIET: Duration = Duration::minutes(15);

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
}

fn traffic(first: Option<i64>, last: Option<i64>, has_served: bool, requests: i64) -> KeyTraffic {
    KeyTraffic {
        id: Uuid::nil().into(),
        name: "k".into(),
        created_at: at(0),
        first_used_at: first.map(at),
        last_used_at: last.map(at),
        has_served,
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
fn confirmation_holds_until_the_old_key_is_used() {
    let quiet = QuietPeriod { since: at(100), until: at(1000) };
    let confirmed = QuietEvidence { successor: Some(Uuid::nil().into()), quiet };
    let old = |last| traffic(Some(10), Some(last), true, 1);
    let new = |served| traffic(Some(50), Some(60), served, 1);
    let judge = |last, served, until, lost: Option<i64>| {
        let known = UsageWatermark { counted_until: at(until), usage_gap_at: lost.map(at) };
        RotationReport::new(old(last), Some(new(served)), known, Some(confirmed), QUIET)
    };
    // A node with older counts, a lost node, and pruned counts of the successor.
    assert!(judge(100, true, 500, None).safe_to_revoke);
    assert!(judge(100, true, 1100, Some(1050)).safe_to_revoke);
    assert!(judge(100, false, 1100, None).safe_to_revoke);
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

/// A model of the cluster: nodes that use a key, write, publish, report and crash, and the state
/// that PostgreSQL stores.
struct World {
    now: i64,
    nodes: Vec<ModelNode>,
    /// Uses that are written and not yet counted.
    outbox: Vec<i64>,
    last_counted: Option<i64>,
    usage_gap_at: Option<i64>,
    stored: Option<QuietEvidence>,
}

#[derive(Default)]
struct ModelNode {
    unwritten: Vec<i64>,
    watermark: i64,
    /// The watermark that other nodes see.
    published: i64,
    is_lost: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(i64),
    Use(usize),
    Write(usize),
    Publish(usize),
    Count,
    Lose(usize),
    Report(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0_usize..3;
    prop_oneof![
        3 => (1_i64..1200).prop_map(Step::Pass),
        1 => node.clone().prop_map(Step::Use),
        3 => node.clone().prop_map(Step::Write),
        3 => node.clone().prop_map(Step::Publish),
        3 => Just(Step::Count),
        1 => node.clone().prop_map(Step::Lose),
        6 => node.prop_map(Step::Report),
    ]
}

impl World {
    fn new() -> Self {
        let nodes = std::iter::repeat_with(ModelNode::default).take(3).collect();
        let (outbox, stored) = (Vec::new(), None);
        Self { now: 0, nodes, outbox, last_counted: None, usage_gap_at: None, stored }
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
        let uncounted = self.outbox.iter().copied().min().unwrap_or(own);
        let until = own.min(published).min(uncounted);
        let known =
            UsageWatermark { counted_until: at(until), usage_gap_at: self.usage_gap_at.map(at) };
        let old = traffic(self.last_counted, self.last_counted, true, 1);
        let new = traffic(Some(0), Some(0), true, 1);
        let report = RotationReport::new(old, Some(new), known, self.stored, QUIET);
        self.stored = report.new_evidence.or(self.stored);
        report
    }

    fn has_counted_all(&self) -> bool {
        self.outbox.is_empty() && self.nodes.iter().all(|node| node.unwritten.is_empty())
    }

    fn apply(&mut self, step: Step) -> Option<RotationReport> {
        match step {
            Step::Pass(seconds) => self.now += seconds,
            Step::Use(node) if !self.nodes[node].is_lost => {
                // Later than every watermark so far.
                self.now += 1;
                let now = self.now;
                self.nodes[node].unwritten.push(now);
            }
            Step::Write(node) if !self.nodes[node].is_lost => {
                let written = std::mem::take(&mut self.nodes[node].unwritten);
                self.outbox.extend(written);
            }
            Step::Publish(node) if !self.nodes[node].is_lost => {
                self.nodes[node].published = self.written_until(node);
            }
            Step::Count => {
                let counted = std::mem::take(&mut self.outbox);
                self.last_counted = self.last_counted.max(counted.into_iter().max());
            }
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
    fn verdict_without_a_use_is_never_withdrawn(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        let mut is_safe_expected = false;
        for step in steps {
            is_safe_expected &= !matches!(step, Step::Use(_));
            let Some(report) = world.apply(step) else { continue };
            prop_assert!(report.safe_to_revoke || !is_safe_expected, "{step:?}: {}", report.reason);
            // A use that is not counted yet may still withdraw the verdict.
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
