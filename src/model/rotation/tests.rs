//! Tests of single reports, and a model of nodes that use a key, write, publish and crash in any
//! order, while the clock of PostgreSQL changes.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const QUIET: Duration = Duration::minutes(15);

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
}

/// The position of an event at this time, in the first epoch.
fn event_at(seconds: i64) -> EventPosition {
    EventPosition { clock_epoch: 0, id: Uuid::from_u128(seconds.unsigned_abs().into()).into() }
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
        last_used_epoch: 0,
        total_requests: requests,
        last_success: last_event.filter(|_| has_served),
        last_failure: last_event.filter(|_| !has_served),
        status: KeyStatus::Active,
        requests_last_hour: requests,
        clients_last_hour: Vec::new(),
    }
}

fn report(old: KeyTraffic, new: KeyTraffic, until: i64, lost: Option<i64>) -> RotationReport {
    RotationReport::new(old, Some(new), watermark(until, lost), None, QUIET)
}

fn watermark(until: i64, lost: Option<i64>) -> UsageWatermark {
    let (counted_until, usage_gap_at) = (at(until), lost.map(at));
    UsageWatermark { counted_until, usage_gap_at, clock_epoch: None }
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
    let successor = Some(Uuid::nil().into());
    let confirmed = QuietEvidence { successor, total_requests: 7, quiet };
    let old = |last, requests| traffic(Some(10), Some(last), true, requests);
    let new = |served| traffic(Some(50), Some(60), served, 1);
    let judge = |(last, requests), served, until, lost: Option<i64>| {
        let known = watermark(until, lost);
        RotationReport::new(old(last, requests), Some(new(served)), known, Some(confirmed), QUIET)
    };
    let unused = (100, 7);
    // A node with older counts, and a lost node.
    assert!(judge(unused, true, 500, None).safe_to_revoke);
    assert!(judge(unused, true, 1100, Some(1050)).safe_to_revoke);
    // The confirmation says nothing about the new key.
    assert!(!judge(unused, false, 1100, None).safe_to_revoke);
    assert_eq!(judge(unused, true, 1100, None).new_evidence, None, "it is stored already");
    // A use of the old key invalidates the confirmation.
    let used = (101, 8);
    assert!(!judge(used, true, 1000, None).safe_to_revoke);
    let again = judge(used, true, 1001, None);
    let quiet = QuietPeriod { since: at(101), until: at(1001) };
    let evidence = QuietEvidence { quiet, total_requests: 8, ..confirmed };
    assert_eq!(again.new_evidence, Some(evidence));
}

#[test]
fn confirmation_with_another_successor_proves_idle_time_only() {
    let quiet = QuietPeriod { since: at(100), until: at(1000) };
    let confirmed = QuietEvidence { successor: None, total_requests: 1, quiet };
    let judge = |served| {
        let old = traffic(Some(10), Some(100), true, 1);
        let new = traffic(Some(50), Some(60), served, 1);
        RotationReport::new(old, Some(new), watermark(500, None), Some(confirmed), QUIET)
    };
    assert!(!judge(false).safe_to_revoke);
    let report = judge(true);
    assert!(report.safe_to_revoke);
    let successor = Some(Uuid::nil().into());
    assert_eq!(report.new_evidence, Some(QuietEvidence { successor, ..confirmed }));
}

/// The clock was set from 2000 to these times.
#[test]
fn idle_time_counts_from_the_change_of_the_clock() {
    for started_at in [2000 + 3600, 2000 - 1500, 2010, 1990] {
        let epoch = ClockEpoch { number: 1, started_at: at(started_at) };
        let judge = |old: KeyTraffic, idle: i64| {
            let counted_until = at(started_at + idle);
            let known =
                UsageWatermark { counted_until, usage_gap_at: None, clock_epoch: Some(epoch) };
            let new = traffic(Some(5), Some(6), true, 1);
            RotationReport::new(old, Some(new), known, None, QUIET)
        };
        let used = || traffic(Some(10), Some(1999), true, 1);
        for idle in [0, 1, 899] {
            let report = judge(used(), idle);
            assert!(!report.safe_to_revoke, "{started_at} {idle}");
            assert!(report.reason.contains("clock of the database"), "{}", report.reason);
            assert_eq!(report.quiet_for, Duration::seconds(idle));
        }
        assert!(judge(used(), 900).safe_to_revoke, "{started_at}");
        // A use in the new epoch.
        let used_again =
            KeyTraffic { last_used_at: Some(at(started_at + 5)), last_used_epoch: 1, ..used() };
        assert!(!judge(used_again, 904).safe_to_revoke, "{started_at}");
    }
}

#[test]
fn failure_after_the_clock_was_set_back_withdraws_the_verdict() {
    let new = |failed_in| KeyTraffic {
        last_success: Some(event_at(2000)),
        last_failure: Some(EventPosition { clock_epoch: failed_in, ..event_at(500) }),
        ..traffic(Some(10), Some(2000), true, 1)
    };
    assert!(new(0).is_serving());
    assert!(!new(1).is_serving());
}

/// A model of the cluster: nodes that serve both keys, write, publish, report, crash and join, and
/// the state that PostgreSQL stores. Times are those of a true clock, unless they say otherwise.
struct World {
    now: i64,
    nodes: Vec<ModelNode>,
    clock: ModelClock,
    /// Requests that are written and not yet counted.
    outbox: Vec<ModelRequest>,
    /// The times of the last counted request of each kind, by the clock.
    old_used_at: Option<CountedAt>,
    new_served_at: Option<CountedAt>,
    new_failed_at: Option<CountedAt>,
    /// The number of counted uses of the old key.
    old_uses: i64,
    usage_gap_at: Option<i64>,
    stored: Option<QuietEvidence>,
    /// The requests that were written, counted or not.
    written: Vec<ModelRequest>,
    /// The true time up to which the last report knew all uses.
    counted_until: i64,
}

/// The epoch, and the time in it.
type CountedAt = (i64, i64);

/// The clock of PostgreSQL.
#[derive(Default)]
struct ModelClock {
    /// The time by which it is ahead of the true clock.
    ahead: i64,
    /// The same at the last reading of any node.
    observed_ahead: i64,
    epoch: i64,
    epoch_started_at: i64,
}

#[derive(Default)]
struct ModelNode {
    unwritten: Vec<ModelRequest>,
    /// By the true clock.
    watermark: i64,
    /// The time that other nodes see, by the clock of this node, and its epoch.
    published: CountedAt,
    /// The time by which the clock of this node is ahead of the true clock.
    ahead: i64,
    epoch: i64,
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
    true_time: i64,
    /// By the clock of the node.
    at: i64,
    kind: RequestKind,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(i64),
    Serve(usize, RequestKind),
    Write(usize),
    Publish(usize),
    Count(usize),
    Lose(usize),
    Join(usize),
    ChangeClock(i64),
    ReadClock(usize),
    Report(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0_usize..3;
    let serve = |kind| node.clone().prop_map(move |node| Step::Serve(node, kind));
    let change = prop_oneof![Just(3600), Just(-3600), Just(10), Just(-10), -4000_i64..4000];
    prop_oneof![
        3 => (1_i64..1200).prop_map(Step::Pass),
        1 => serve(RequestKind::OldUse),
        2 => serve(RequestKind::NewSuccess),
        1 => serve(RequestKind::NewFailure),
        3 => node.clone().prop_map(Step::Write),
        3 => node.clone().prop_map(Step::Publish),
        3 => node.clone().prop_map(Step::Count),
        1 => node.clone().prop_map(Step::Lose),
        1 => node.clone().prop_map(Step::Join),
        1 => change.prop_map(Step::ChangeClock),
        3 => node.clone().prop_map(Step::ReadClock),
        6 => node.clone().prop_map(Step::Report),
    ]
}

impl World {
    fn new() -> Self {
        let nodes = std::iter::repeat_with(ModelNode::default).take(3).collect();
        Self {
            now: 0,
            nodes,
            clock: ModelClock::default(),
            outbox: Vec::new(),
            old_used_at: None,
            new_served_at: None,
            new_failed_at: None,
            old_uses: 0,
            usage_gap_at: None,
            stored: None,
            written: Vec::new(),
            counted_until: 0,
        }
    }

    /// Models `AuditWriter::watermark`.
    fn watermark(&mut self, node: usize) -> CountedAt {
        let node = &mut self.nodes[node];
        if node.unwritten.is_empty() {
            node.watermark = node.watermark.max(self.now);
        }
        (node.epoch, node.watermark + node.ahead)
    }

    /// Models `store::usage::usage_watermark`.
    fn usage_watermark(&mut self, node: usize) -> UsageWatermark {
        let started_at = self.clock.epoch_started_at;
        let (own_epoch, own) = self.watermark(node);
        let others = self.nodes.iter().enumerate();
        let others = others.filter(|(other, state)| *other != node && !state.is_lost);
        let published = others.map(|(_, state)| match state.published {
            (epoch, until) if epoch == own_epoch => until,
            _ => started_at,
        });
        let present = self.now + self.clock.ahead;
        let uncounted = self.outbox.iter().map(|request| match request.at {
            at if at > present => started_at,
            at => at,
        });
        let mut until = published.chain(uncounted).fold(own, i64::min);
        if own_epoch != self.clock.epoch {
            until = until.min(started_at);
        }
        let node_now = self.now + self.nodes[node].ahead;
        let epoch = ClockEpoch { number: self.clock.epoch, started_at: at(started_at) };
        let usage_gap_at = self.usage_gap_at.filter(|lost| *lost <= node_now).map(at);
        UsageWatermark { counted_until: at(until), usage_gap_at, clock_epoch: Some(epoch) }
    }

    /// Models `RotationReport` and `quiet_confirmations` together.
    fn report(&mut self, node: usize) -> RotationReport {
        let known = self.usage_watermark(node);
        let counted_until = (known.counted_until - OffsetDateTime::UNIX_EPOCH).whole_seconds();
        self.counted_until = counted_until - self.nodes[node].ahead;
        let position = |(clock_epoch, time): CountedAt| {
            // Ids compare like times, which may be negative here.
            let id = Uuid::from_u128(u128::try_from(time + 1_000_000_000).unwrap()).into();
            EventPosition { clock_epoch, id }
        };
        let (used_epoch, used_at) = self.old_used_at.unzip();
        let old = KeyTraffic {
            last_used_epoch: used_epoch.unwrap_or_default(),
            total_requests: self.old_uses,
            ..traffic(used_at, used_at, true, 1)
        };
        let new = KeyTraffic {
            last_success: self.new_served_at.map(position),
            last_failure: self.new_failed_at.map(position),
            ..traffic(Some(0), Some(0), true, 1)
        };
        let report = RotationReport::new(old, Some(new), known, self.stored, QUIET);
        self.stored = report.new_evidence.or(self.stored);
        report
    }

    fn has_counted_all(&self) -> bool {
        self.outbox.is_empty() && self.nodes.iter().all(|node| node.unwritten.is_empty())
    }

    /// Models `append_chain_segments` and `add_key_usage`.
    fn count(&mut self, node: usize) {
        if self.nodes[node].is_lost || self.nodes[node].epoch != self.clock.epoch {
            return;
        }
        let (epoch, started_at) = (self.clock.epoch, self.clock.epoch_started_at);
        let node_now = self.now + self.nodes[node].ahead;
        for ModelRequest { at, kind, .. } in std::mem::take(&mut self.outbox) {
            let time = match kind {
                _ if (started_at..=node_now).contains(&at) => at,
                RequestKind::NewSuccess => started_at,
                RequestKind::OldUse | RequestKind::NewFailure => node_now,
            };
            let last = match kind {
                RequestKind::OldUse => &mut self.old_used_at,
                RequestKind::NewSuccess => &mut self.new_served_at,
                RequestKind::NewFailure => &mut self.new_failed_at,
            };
            self.old_uses += i64::from(kind == RequestKind::OldUse);
            *last = (*last).max(Some((epoch, time)));
        }
    }

    /// Models `Store::synchronize_clock`. A node that joins has no clock to compare with.
    fn read_clock(&mut self, node: usize, is_joining: bool) {
        let present = self.now + self.clock.ahead;
        let state = &mut self.nodes[node];
        let has_noticed = !is_joining && state.ahead != self.clock.ahead;
        let is_behind = self.clock.ahead < self.clock.observed_ahead;
        let is_unknown = is_joining && self.clock.ahead != self.clock.observed_ahead;
        // The epoch of another node began at a time of another clock.
        let was_elsewhere =
            !is_joining && state.epoch != self.clock.epoch && self.clock.epoch_started_at > present;
        if has_noticed || is_behind || is_unknown || was_elsewhere {
            self.clock.epoch += 1;
            self.clock.epoch_started_at = present;
        }
        self.clock.observed_ahead = self.clock.ahead;
        (state.ahead, state.epoch) = (self.clock.ahead, self.clock.epoch);
    }

    fn serve(&mut self, node: usize, kind: RequestKind) {
        // Later than every watermark so far.
        self.now += 1;
        let at = self.now + self.nodes[node].ahead;
        self.nodes[node].unwritten.push(ModelRequest { true_time: self.now, at, kind });
    }

    /// Returns the true time of the last request of this kind up to a true time. Requests that were
    /// lost with their node do not count.
    fn last(&self, kind: RequestKind, until: i64) -> i64 {
        let unwritten = self.nodes.iter().flat_map(|node| &node.unwritten);
        let requests = self.written.iter().chain(unwritten);
        let requests = requests.filter(|request| request.kind == kind);
        requests.map(|request| request.true_time).filter(|time| *time <= until).max().unwrap_or(0)
    }

    fn apply(&mut self, step: Step) -> Option<RotationReport> {
        let is_lost = |world: &Self, node: usize| world.nodes[node].is_lost;
        match step {
            Step::Pass(seconds) => self.now += seconds,
            Step::Serve(node, kind) if !is_lost(self, node) => self.serve(node, kind),
            Step::Write(node) if !is_lost(self, node) => {
                let written = std::mem::take(&mut self.nodes[node].unwritten);
                self.written.extend(&written);
                self.outbox.extend(written);
            }
            Step::Publish(node) if !is_lost(self, node) => {
                self.nodes[node].published = self.watermark(node);
            }
            Step::Count(node) => self.count(node),
            Step::Lose(node) => {
                self.nodes[node] = ModelNode { is_lost: true, ..ModelNode::default() };
                self.usage_gap_at = Some(self.now + self.clock.ahead);
            }
            Step::Join(node) if is_lost(self, node) => {
                self.nodes[node] = ModelNode { watermark: self.now, ..ModelNode::default() };
                self.read_clock(node, true);
                self.nodes[node].published = self.watermark(node);
            }
            Step::ChangeClock(by) => self.clock.ahead += by,
            Step::ReadClock(node) if !is_lost(self, node) => self.read_clock(node, false),
            Step::Report(node) if !is_lost(self, node) => return Some(self.report(node)),
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
            // A request that is not counted yet may still withdraw the verdict.
            is_safe_expected = report.safe_to_revoke && world.has_counted_all();
        }
    }

    #[test]
    fn verdict_is_right_whenever_the_clock_changes(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        for step in steps {
            let had_evidence = world.stored.is_some();
            let Some(report) = world.apply(step) else { continue };
            if !report.safe_to_revoke {
                continue;
            }
            let last = |kind, until| world.last(kind, until);
            if !had_evidence {
                // All uses before this time are counted; one at this time may not be.
                let until = world.counted_until;
                let idle = until - last(RequestKind::OldUse, until - 1);
                prop_assert!(idle >= QUIET.whole_seconds(), "{step:?}: {}", report.reason);
            }
            if world.has_counted_all() {
                let idle = world.now - last(RequestKind::OldUse, world.now);
                prop_assert!(idle >= QUIET.whole_seconds(), "{step:?}: {}", report.reason);
                let [success, failure] = [RequestKind::NewSuccess, RequestKind::NewFailure]
                    .map(|kind| last(kind, world.now));
                prop_assert!(success > failure, "{step:?}: {}", report.reason);
            }
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
