//! Whether a key that was rotated can be revoked yet.

use std::net::IpAddr;

use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::id::ApiKeyId;

/// What a key was used for lately.
#[derive(Debug, Clone)]
pub struct KeyTraffic {
    /// The key.
    pub id: ApiKeyId,
    /// What it is called.
    pub name: String,
    /// When it was minted.
    pub created_at: OffsetDateTime,
    /// When it was first used.
    pub first_used_at: Option<OffsetDateTime>,
    /// When it was last used.
    pub last_used_at: Option<OffsetDateTime>,
    /// Whether any request with it was not refused.
    pub has_served: bool,
    /// Requests within the last hour.
    pub requests_last_hour: i64,
    /// Who used it within the last hour, the last first: at most a hundred of them.
    pub clients_last_hour: Vec<KeyClient>,
}

impl KeyTraffic {
    /// Where it was used from within the last hour, the last first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for client in &self.clients_last_hour {
            if !addresses.contains(&client.ip) {
                addresses.push(client.ip);
            }
        }
        addresses
    }
}

/// A program at an address that used a key.
#[derive(Debug, Clone)]
pub struct KeyClient {
    /// The address.
    pub ip: IpAddr,
    /// What it calls itself; empty where it does not.
    pub user_agent: String,
    /// When it last used the key.
    pub last_used_at: OffsetDateTime,
    /// What it last did.
    pub last_method: String,
    /// And where.
    pub last_path: String,
    /// How often it used the key in all.
    pub requests: i64,
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RotationState {
    /// The new key has not served yet.
    Minted,
    /// It has, but the old one serves more.
    Adopted,
    /// The new key serves at least as much as the old one.
    Draining,
    /// The old key has been quiet for long enough.
    Quiet,
}

/// What is known of uses of keys, on all nodes.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Every use before then is counted.
    pub until: OffsetDateTime,
    /// When last there may have been uses that nobody counted: of a node that left without a farewell, or while one
    /// was cut off and turned people away.
    pub doubtful_at: Option<OffsetDateTime>,
}

/// A period in which a key was certainly not used, on any node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuietPeriod {
    /// The last moment at which the key was, or may have been, used.
    pub since: OffsetDateTime,
    /// Every use before this moment is counted.
    pub until: OffsetDateTime,
}

impl QuietPeriod {
    fn length(self) -> Duration {
        (self.until - self.since).max(Duration::ZERO)
    }
}

/// The evidence for an earlier report that called the old key safe to revoke.
///
/// It keeps the verdict from going back when a later report knows less: another node answers, a node is lost, a writer
/// is behind. Only a use of the old key voids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmation {
    /// The live successor of that time, which had served traffic.
    pub successor: Option<ApiKeyId>,
    /// When the old key was not used.
    pub quiet: QuietPeriod,
}

/// A rotation, and whether the old key can be revoked.
#[derive(Debug, Clone)]
pub struct RotationReport {
    /// The key that is to go.
    pub old: KeyTraffic,
    /// Its successor; none: it was not rotated.
    pub new: Option<KeyTraffic>,
    /// How far it is.
    pub state: RotationState,
    /// Whether revoking the old key breaks nobody who was there lately.
    pub safe_to_revoke: bool,
    /// Why, or why not.
    pub reason: String,
    /// For how long the old key has certainly not been used.
    pub quiet_for: Duration,
    /// For how long it has to be unused until it is safe to revoke.
    pub required_quiet: Duration,
    /// The evidence to store with the verdict, if it rests on what this report found out.
    pub confirms: Option<Confirmation>,
}

impl RotationReport {
    /// Judges the counts. `confirmed` is the evidence of an earlier verdict.
    #[must_use]
    pub fn new(
        old: KeyTraffic,
        new: Option<KeyTraffic>,
        known: Known,
        confirmed: Option<Confirmation>,
        quiet: Duration,
    ) -> Self {
        let last_use = old.last_used_at.unwrap_or(old.created_at);
        let silent_since = known.doubtful_at.map_or(last_use, |lost| lost.max(last_use));
        let counted = QuietPeriod { since: silent_since, until: known.until };
        let confirmed = confirmed.filter(|confirmed| last_use <= confirmed.quiet.since);
        let quiet_for = confirmed
            .map_or(counted.length(), |confirmed| confirmed.quiet.length().max(counted.length()));
        let is_quiet = quiet_for >= quiet;
        let serves = new.as_ref().is_none_or(|new| {
            new.has_served || confirmed.is_some_and(|known| known.successor == Some(new.id))
        });
        let safe_to_revoke = serves && is_quiet;
        let successor = new.as_ref().map(|new| new.id);
        let is_confirmed = confirmed.is_some_and(|known| {
            known.quiet.length() >= quiet && (successor.is_none() || known.successor == successor)
        });
        let confirms = (safe_to_revoke && !is_confirmed).then(|| Confirmation {
            successor,
            // The evidence that the verdict rests on: the longer of the two.
            quiet: confirmed
                .map(|confirmed| confirmed.quiet)
                .filter(|quiet| quiet.length() > counted.length())
                .unwrap_or(counted),
        });
        let carries_most =
            new.as_ref().is_none_or(|new| new.requests_last_hour >= old.requests_last_hour);
        let state = match (serves, is_quiet) {
            (false, _) => RotationState::Minted,
            (true, true) => RotationState::Quiet,
            (true, false) if carries_most => RotationState::Draining,
            (true, false) => RotationState::Adopted,
        };
        let required_quiet = quiet;
        let (quiet, seconds) = (quiet.whole_seconds(), quiet_for.whole_seconds());
        let reason = match &new {
            Some(new) if !serves && new.first_used_at.is_none() => {
                "the new key has not been used yet".into()
            }
            Some(_) if !serves => "every request with the new key was refused so far".into(),
            _ if is_quiet => match &new {
                Some(_) => {
                    format!("the new key serves, and the old one has been quiet for {seconds} s")
                }
                None => format!("the key has been quiet for {seconds} s"),
            },
            _ if silent_since > last_use => format!(
                "a node was lost or cut off, and uses of the old key may be unknown: quiet for certain \
                 for {seconds} s, and it takes {quiet} s"
            ),
            _ if old.last_used_at.is_none() => format!(
                "the old key has not been used, but was minted only lately: it takes {quiet} s"
            ),
            _ => format!("the old key was in use {seconds} s ago: it takes {quiet} s of quiet"),
        };
        Self { old, new, state, safe_to_revoke, reason, quiet_for, required_quiet, confirms }
    }

    /// The new key's part of the last hour's requests with either, from 0 to 1, to four digits.
    #[must_use]
    pub fn adoption(&self) -> f64 {
        let new = self.new.as_ref().map_or(0, |new| new.requests_last_hour);
        let all = new + self.old.requests_last_hour;
        #[expect(clippy::cast_precision_loss, reason = "a ratio, of an hour's requests")]
        let ratio = if all == 0 { 0.0 } else { new as f64 / all as f64 };
        (ratio * 10_000.0).round() / 10_000.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const QUIET: Duration = Duration::minutes(15);

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    fn traffic(
        first: Option<i64>,
        last: Option<i64>,
        has_served: bool,
        requests: i64,
    ) -> KeyTraffic {
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
        let known = Known { until: at(until), doubtful_at: lost.map(at) };
        RotationReport::new(old, Some(new), known, None, QUIET)
    }

    #[test]
    fn a_rotation_goes_from_minted_to_quiet() {
        use RotationState::{Adopted, Draining, Minted, Quiet};
        let old = |last, requests| traffic(Some(10), Some(last), true, requests);
        let unused = || traffic(None, None, false, 0);
        let new = |requests| traffic(Some(1000), Some(2000), true, requests);
        let refused = traffic(Some(1000), Some(2000), false, 5);
        for (report, state, safe, why) in [
            (report(old(990, 9), unused(), 2000, None), Minted, false, "has not been used"),
            (report(old(10, 0), unused(), 9000, None), Minted, false, "has not been used"),
            (report(old(10, 0), refused, 9000, None), Minted, false, "was refused"),
            (report(old(2000, 9), new(3), 2001, None), Adopted, false, "in use 1 s ago"),
            (report(old(2000, 3), new(9), 2899, None), Draining, false, "in use 899 s ago"),
            (report(old(2000, 3), new(9), 2900, None), Quiet, true, "quiet for 900 s"),
            (report(old(2000, 0), new(0), 9000, None), Quiet, true, "quiet for 7000 s"),
            // The count lags behind: what is not known is not quiet.
            (report(old(2000, 3), new(9), 1990, None), Draining, false, "in use 0 s ago"),
            (report(old(2000, 3), new(9), 5000, Some(4200)), Draining, false, "a node was lost"),
            (report(old(2000, 3), new(9), 5100, Some(4200)), Quiet, true, "quiet for 900 s"),
            (
                report(traffic(None, None, false, 0), new(9), 800, None),
                Draining,
                false,
                "minted only lately",
            ),
            (
                report(traffic(None, None, false, 0), new(9), 900, None),
                Quiet,
                true,
                "quiet for 900 s",
            ),
        ] {
            assert_eq!((report.state, report.safe_to_revoke), (state, safe), "{}", report.reason);
            assert!(report.reason.contains(why), "{}", report.reason);
        }
    }

    #[test]
    fn confirmation_holds_until_the_old_key_is_used() {
        let quiet = QuietPeriod { since: at(100), until: at(1000) };
        let confirmed = Confirmation { successor: Some(Uuid::nil().into()), quiet };
        let old = |last| traffic(Some(10), Some(last), true, 1);
        let new = |served| traffic(Some(50), Some(60), served, 1);
        let judge = |last, served, until, lost: Option<i64>| {
            let known = Known { until: at(until), doubtful_at: lost.map(at) };
            RotationReport::new(old(last), Some(new(served)), known, Some(confirmed), QUIET)
        };
        // A node that knows less, one that was lost, counts of the successor that were pruned.
        assert!(judge(100, true, 500, None).safe_to_revoke);
        assert!(judge(100, true, 1100, Some(1050)).safe_to_revoke);
        assert!(judge(100, false, 1100, None).safe_to_revoke);
        assert_eq!(judge(100, true, 1100, None).confirms, None, "it is stored already");
        // A use of the old key.
        assert!(!judge(101, true, 1000, None).safe_to_revoke);
        let again = judge(101, true, 1001, None);
        let quiet = QuietPeriod { since: at(101), until: at(1001) };
        assert_eq!(again.confirms, Some(Confirmation { quiet, ..confirmed }));
    }

    #[test]
    fn confirmation_with_another_successor_proves_quiet_but_not_service() {
        let quiet = QuietPeriod { since: at(100), until: at(1000) };
        let confirmed = Confirmation { successor: None, quiet };
        let known = Known { until: at(500), doubtful_at: None };
        let judge = |served| {
            let old = traffic(Some(10), Some(100), true, 1);
            let new = traffic(Some(50), Some(60), served, 1);
            RotationReport::new(old, Some(new), known, Some(confirmed), QUIET)
        };
        assert!(!judge(false).safe_to_revoke);
        let report = judge(true);
        assert!(report.safe_to_revoke);
        let successor = Some(Uuid::nil().into());
        assert_eq!(report.confirms, Some(Confirmation { successor, quiet }));
    }

    /// Nodes that use a key, write, seal, report and die, with what PostgreSQL keeps of it.
    struct World {
        now: i64,
        nodes: Vec<ModelNode>,
        /// Written and not yet counted.
        outbox: Vec<i64>,
        last_counted: Option<i64>,
        doubtful_at: Option<i64>,
        stored: Option<Confirmation>,
    }

    #[derive(Default)]
    struct ModelNode {
        unwritten: Vec<i64>,
        mark: i64,
        /// The mark as other nodes know it.
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
            Self { now: 0, nodes, outbox, last_counted: None, doubtful_at: None, stored }
        }

        /// As `AuditWriter::written_until`.
        fn written_until(&mut self, node: usize) -> i64 {
            let node = &mut self.nodes[node];
            if node.unwritten.is_empty() {
                node.mark = node.mark.max(self.now);
            }
            node.mark
        }

        /// As `uses_known`, `RotationReport` and `quiet_keys` together.
        fn report(&mut self, node: usize) -> RotationReport {
            let own = self.written_until(node);
            let others = self.nodes.iter().enumerate();
            let others = others.filter(|(other, state)| *other != node && !state.is_lost);
            let published = others.map(|(_, state)| state.published).min().unwrap_or(own);
            let uncounted = self.outbox.iter().copied().min().unwrap_or(own);
            let until = own.min(published).min(uncounted);
            let known = Known { until: at(until), doubtful_at: self.doubtful_at.map(at) };
            let old = traffic(self.last_counted, self.last_counted, true, 1);
            let new = traffic(Some(0), Some(0), true, 1);
            let report = RotationReport::new(old, Some(new), known, self.stored, QUIET);
            self.stored = report.confirms.or(self.stored);
            report
        }

        fn has_counted_all(&self) -> bool {
            self.outbox.is_empty() && self.nodes.iter().all(|node| node.unwritten.is_empty())
        }

        fn take(&mut self, step: Step) -> Option<RotationReport> {
            match step {
                Step::Pass(seconds) => self.now += seconds,
                Step::Use(node) if !self.nodes[node].is_lost => {
                    // Later than anything that was said of this moment.
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
                    self.doubtful_at = Some(self.now);
                }
                Step::Report(node) if !self.nodes[node].is_lost => return Some(self.report(node)),
                _ => {}
            }
            None
        }
    }

    proptest! {
        #[test]
        fn verdict_never_goes_back_without_a_use(
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let mut world = World::new();
            let mut is_promised = false;
            for step in steps {
                is_promised &= !matches!(step, Step::Use(_));
                let Some(report) = world.take(step) else { continue };
                prop_assert!(report.safe_to_revoke || !is_promised, "{step:?}: {}", report.reason);
                // A use that is not counted yet may still take the verdict back.
                is_promised = report.safe_to_revoke && world.has_counted_all();
            }
        }

        #[test]
        fn safe_is_never_said_while_a_use_may_be_unknown(
            last in 0_i64..5000, until in 0_i64..5000, lost in prop::option::of(0_i64..5000),
            unseen in 0_i64..5000,
        ) {
            let report = report(
                traffic(Some(0), Some(last), true, 1),
                traffic(Some(1), Some(1), true, 1),
                until,
                lost,
            );
            // Any use that the counts do not hold yet is later than `until`, or was on the lost node.
            if report.safe_to_revoke && unseen < lost.unwrap_or(0) {
                prop_assert!(until - unseen >= QUIET.whole_seconds());
            }
            prop_assert_eq!(report.safe_to_revoke, report.state == RotationState::Quiet);
            prop_assert!(report.adoption() >= 0.0 && report.adoption() <= 1.0);
        }
    }
}
