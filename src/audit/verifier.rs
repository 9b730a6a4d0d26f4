//! Verifies that audit logs are unchanged since they were sealed.
//!
//! The verifier reads the hash chain of a workspace from its start, and the events in the order of
//! their ids. Both orders are nearly the same, so few events wait in memory for their seal. Any
//! change shows as the first sequence number that does not match. Only a checkpoint reveals that
//! the end of the chain was cut off together with its seals. See docs/audit-log.md.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use serde::Serialize;
use serde_json::Value;
use time::{Month, Time};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::model::{
    audit::{
        Action, ChainHash, ChainSegment, Checkpoint, Event, EventDigest, Metadata, PruneRecord,
    },
    id::{EventId, Id, WorkspaceId, creation_time},
};
use crate::store::{Store, StoreError, audit_chains};

/// Number of events that are read at a time.
const PAGE: i64 = 10_000;

/// A mismatch between a log, its hash chain and its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// An event differs from what was sealed.
    Changed {
        /// The event's id.
        event_id: EventId,
        /// Its sequence number.
        sequence: i64,
    },
    /// A sealed event is missing.
    Removed {
        /// The event's id.
        event_id: EventId,
        /// Its sequence number.
        sequence: i64,
    },
    /// An event was never sealed.
    Inserted {
        /// The event's id.
        event_id: EventId,
    },
    /// Seals are missing, and with them the proof of their events.
    SealsRemoved {
        /// The first sequence number without a seal.
        sequence: i64,
    },
    /// A seal does not continue the previous seal.
    SealChanged {
        /// The first sequence number of the seal.
        sequence: i64,
    },
    /// The chain ends before a sequence number that it had reached.
    CutOff {
        /// The first missing sequence number.
        sequence: i64,
    },
    /// The chain has a different hash than the checkpoint: an event up to there and all later seals
    /// were changed.
    Rewritten {
        /// The checkpoint's sequence number.
        sequence: i64,
    },
    /// A checkpoint refers to a part of the chain that retention has dropped.
    CheckpointTooOld {
        /// The checkpoint's sequence number.
        sequence: i64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { event_id, sequence } => {
                write!(f, "{event_id}, number {sequence} of the chain, was changed")
            }
            Self::Removed { event_id, sequence } => {
                write!(f, "{event_id}, number {sequence} of the chain, was removed")
            }
            Self::Inserted { event_id } => {
                write!(f, "{event_id} was inserted: it was never sealed")
            }
            Self::SealsRemoved { sequence } => {
                write!(f, "event number {sequence} of the chain was removed, with its seal")
            }
            Self::SealChanged { sequence } => {
                write!(f, "the seal of event number {sequence} of the chain was changed")
            }
            Self::CutOff { sequence } => {
                write!(f, "the chain was cut off before event number {sequence}")
            }
            Self::Rewritten { sequence } => write!(
                f,
                "the chain does not match the checkpoint: an event up to number {sequence} was \
                 changed, removed or inserted, and the chain was sealed again"
            ),
            Self::CheckpointTooOld { sequence } => write!(
                f,
                "the checkpoint at number {sequence} is older than the retained part of the chain"
            ),
        }
    }
}

/// The result of verifying one workspace.
#[derive(Debug, Clone, Serialize)]
pub struct VerificationReport {
    /// The workspace's id.
    pub workspace_id: WorkspaceId,
    /// The first verified sequence number of the chain.
    pub first_sequence: i64,
    /// The last verified sequence number of the chain.
    pub last_sequence: i64,
    /// The chain's hash at the last sequence number.
    pub hash: ChainHash,
    /// Number of events that were read.
    pub events: u64,
    /// Number of events that are not yet sealed.
    pub unsealed: u64,
    /// Number of sealed events that retention has dropped.
    pub pruned: u64,
    /// The first mismatch.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// The parts of an event that verification needs.
struct EventSummary {
    id: EventId,
    digest: EventDigest,
    /// The statement of retention, if this is its event.
    pruned: Option<PruneRecord>,
}

impl From<&Event<'static>> for EventSummary {
    fn from(event: &Event<'static>) -> Self {
        let pruned = match &*event.metadata {
            Metadata::Object(object) if event.action == Action::LogPruned.as_str() => {
                serde_json::from_value(Value::clone(object)).ok()
            }
            _ => None,
        };
        Self { id: event.id, digest: event.digest(), pruned }
    }
}

/// Verifies the log of a workspace against its hash chain and these checkpoints.
///
/// # Errors
/// [`StoreError`] if a query fails.
pub async fn verify(
    store: &Store,
    workspace: WorkspaceId,
    checkpoints: &[Checkpoint],
) -> Result<VerificationReport, StoreError> {
    let report = verify_once(store, workspace, checkpoints).await?;
    match report.problem {
        // Retention may have dropped these events during the verification. Its event is then after
        // the end of the chain that was read, so read it again.
        Some(Problem::Removed { .. } | Problem::SealsRemoved { .. }) => {
            verify_once(store, workspace, checkpoints).await
        }
        _ => Ok(report),
    }
}

async fn verify_once(
    store: &Store,
    workspace: WorkspaceId,
    checkpoints: &[Checkpoint],
) -> Result<VerificationReport, StoreError> {
    // Later seals are not verified. They are read only to distinguish new events from inserted
    // ones.
    let head = audit_chains::get_head(&mut store.begin(workspace, None).await?, workspace).await?;
    let until = head.map_or(0, |head| head.sequence);
    let (pages, events) = mpsc::channel(2);
    let reader = tokio::spawn(read_events(store.clone(), workspace, pages));
    let mut verifier = ChainVerifier {
        workspace,
        checkpoints: by_sequence(checkpoints),
        events: EventBuffer { pages: events, unclaimed: HashMap::new(), newest: None },
        missing: MissingEvents::default(),
        changed: None,
        start_hash: ChainHash::genesis(workspace),
        report: VerificationReport {
            workspace_id: workspace,
            first_sequence: 0,
            last_sequence: 0,
            hash: ChainHash::genesis(workspace),
            events: 0,
            unsealed: 0,
            pruned: 0,
            problem: None,
        },
    };
    let broken = verifier.verify_chain(store, until).await?;
    let problem = match verifier.conclude(broken, until, head.map(|head| head.hash)) {
        Some(problem) => Some(problem),
        None => verifier.find_inserted(store, until).await?,
    };
    drop(verifier.events);
    match reader.await {
        Ok(result) => result?,
        Err(_) => return Err(StoreError::Aborted),
    }
    Ok(VerificationReport { problem, ..verifier.report })
}

fn by_sequence(checkpoints: &[Checkpoint]) -> BTreeMap<i64, Vec<ChainHash>> {
    let mut known: BTreeMap<i64, Vec<ChainHash>> = BTreeMap::new();
    for Checkpoint { sequence, hash, .. } in checkpoints {
        known.entry(*sequence).or_default().push(*hash);
    }
    known
}

/// Reads all events of a workspace, oldest first, until the receiver is dropped.
async fn read_events(
    store: Store,
    workspace: WorkspaceId,
    pages: mpsc::Sender<Vec<Event<'static>>>,
) -> Result<(), StoreError> {
    let mut last = Uuid::nil();
    loop {
        // One transaction per page: a long transaction would prevent vacuuming.
        let mut tx = store.begin(workspace, None).await?;
        let page = audit_chains::list_events_after(&mut tx, workspace, last, PAGE).await?;
        drop(tx);
        let Some(newest) = page.last() else { return Ok(()) };
        last = newest.id.uuid();
        if pages.send(page).await.is_err() {
            return Ok(());
        }
    }
}

/// Events that were read and not yet matched with the chain.
struct EventBuffer {
    pages: mpsc::Receiver<Vec<Event<'static>>>,
    unclaimed: HashMap<EventId, EventSummary>,
    newest: Option<EventId>,
}

impl EventBuffer {
    /// Removes and returns the event with this id, reading further pages as needed.
    async fn claim(&mut self, id: EventId) -> Option<EventSummary> {
        while self.newest.is_none_or(|newest| newest < id) {
            let Some(page) = self.pages.recv().await else { break };
            self.newest = page.last().map(|event| event.id).or(self.newest);
            self.unclaimed.extend(page.iter().map(EventSummary::from).map(|read| (read.id, read)));
        }
        self.unclaimed.remove(&id)
    }
}

/// Missing events. Retention explains some of them: it drops whole months, and always leaves an
/// event.
#[derive(Default)]
struct MissingEvents {
    /// The first missing event of each month, by sequence number.
    first: BTreeMap<i64, EventId>,
    /// Months with events that still exist.
    kept_months: HashSet<(i32, Month)>,
    count: u64,
    /// The drops that events of the verified chain state.
    pruned: Vec<PruneRecord>,
}

/// Returns the month of an event, from the time in its id.
fn month(id: EventId) -> (i32, Month) {
    let at = creation_time(id.uuid());
    (at.year(), at.month())
}

impl MissingEvents {
    fn add(&mut self, sequence: i64, id: EventId) {
        self.count += 1;
        // Retention drops whole months, so one event per month is enough.
        if self.first.values().all(|known| month(*known) != month(id)) {
            self.first.insert(sequence, id);
        }
    }

    fn add_kept_month(&mut self, id: EventId) {
        self.kept_months.insert(month(id));
    }

    /// Accepts a statement of what retention dropped, if retention could have made it: up to the
    /// start of a month that was not in the future for the event that states it.
    fn accept_pruned(&mut self, stated_by: EventId, pruned: PruneRecord) {
        let is_month = pruned.before.day() == 1 && pruned.before.time() == Time::MIDNIGHT;
        if is_month && pruned.before <= creation_time(stated_by.uuid()) {
            self.pruned.push(pruned);
        }
    }

    /// Returns the first missing event that retention does not explain.
    fn first_unexplained(&self) -> Option<(i64, Problem)> {
        let before = self.pruned.iter().map(|pruned| pruned.before).max();
        let is_explained = |id: EventId| {
            before.is_some_and(|before| creation_time(id.uuid()) < before)
                && !self.kept_months.contains(&month(id))
        };
        let first = self.first.iter().find(|(_, id)| !is_explained(**id));
        first.map(|(sequence, id)| {
            (*sequence, Problem::Removed { event_id: *id, sequence: *sequence })
        })
    }
}

/// The state of verifying one chain.
struct ChainVerifier {
    workspace: WorkspaceId,
    /// Hashes by sequence number. Several checkpoints can have the same number.
    checkpoints: BTreeMap<i64, Vec<ChainHash>>,
    events: EventBuffer,
    missing: MissingEvents,
    /// The first changed event.
    changed: Option<(i64, Problem)>,
    /// The hash before the first seal.
    start_hash: ChainHash,
    report: VerificationReport,
}

impl ChainVerifier {
    /// Verifies all segments up to this sequence number. Returns the problem that breaks the chain.
    async fn verify_chain(
        &mut self,
        store: &Store,
        until: i64,
    ) -> Result<Option<Problem>, StoreError> {
        let mut at = 0;
        while at < until {
            let mut tx = store.begin(self.workspace, None).await?;
            let segments =
                audit_chains::list_segments_after(&mut tx, self.workspace, at, PAGE).await?;
            drop(tx);
            let before = at;
            // Skip segments that were sealed meanwhile.
            for segment in segments.into_iter().filter(|segment| segment.first_sequence <= until) {
                if let Some(problem) = self.verify_segment(&segment).await {
                    return Ok(Some(problem));
                }
                at = segment.last_sequence();
            }
            if at == before {
                break;
            }
        }
        Ok(None)
    }

    async fn verify_segment(&mut self, segment: &ChainSegment) -> Option<Problem> {
        let sequence = segment.first_sequence;
        if self.report.last_sequence == 0 {
            // Earlier segments were dropped by retention or removed; `conclude` decides which.
            self.report.first_sequence = segment.first_sequence;
            self.report.last_sequence = segment.first_sequence - 1;
            let oldest = self.checkpoints.keys().find(|sequence| **sequence > 0);
            if let Some(sequence) =
                oldest.filter(|sequence| **sequence < segment.first_sequence - 1)
            {
                return Some(Problem::CheckpointTooOld { sequence: *sequence });
            }
            if segment.first_sequence > 1 {
                (self.report.hash, self.start_hash) =
                    (segment.previous_hash, segment.previous_hash);
                if let Some(problem) = self.check_checkpoints(segment.first_sequence - 1) {
                    return Some(problem);
                }
            }
        }
        if segment.first_sequence > self.report.last_sequence + 1 {
            return Some(Problem::SealsRemoved { sequence: self.report.last_sequence + 1 });
        }
        if segment.first_sequence <= self.report.last_sequence
            || segment.previous_hash != self.report.hash
        {
            return Some(Problem::SealChanged { sequence });
        }
        for (sequence, (id, hash)) in (segment.first_sequence..).zip(&segment.events) {
            match self.events.claim(*id).await {
                Some(read) => {
                    self.report.events += 1;
                    self.missing.add_kept_month(*id);
                    if self.report.hash.append(read.digest) == *hash {
                        if let Some(pruned) = read.pruned {
                            self.missing.accept_pruned(*id, pruned);
                        }
                    } else {
                        // Continue: a later event of retention may explain earlier missing events.
                        let problem = Problem::Changed { event_id: *id, sequence };
                        self.changed = self.changed.or(Some((sequence, problem)));
                    }
                }
                None => self.missing.add(sequence, *id),
            }
            self.report.hash = *hash;
            self.report.last_sequence = sequence;
            if let Some(problem) = self.check_checkpoints(sequence) {
                return Some(problem);
            }
        }
        None
    }

    fn check_checkpoints(&self, sequence: i64) -> Option<Problem> {
        let known = self.checkpoints.get(&sequence)?;
        let is_other = known.iter().any(|hash| *hash != self.report.hash);
        is_other.then_some(Problem::Rewritten { sequence })
    }

    /// Returns the first problem up to the end of the chain, or up to the point where it breaks.
    fn conclude(
        &mut self,
        broken: Option<Problem>,
        until: i64,
        head: Option<ChainHash>,
    ) -> Option<Problem> {
        let first = self.missing.first_unexplained().into_iter().chain(self.changed);
        if let Some((_, problem)) = first.min_by_key(|(sequence, _)| *sequence) {
            return Some(problem);
        }
        if broken.is_some() {
            return broken;
        }
        self.report.pruned = self.missing.count;
        let first = self.report.first_sequence;
        // Seals are dropped later than retention's event states, so the chain may start before it.
        let is_dropped = |pruned: &PruneRecord| {
            pruned.sequence + 1 > first
                || (pruned.sequence + 1 == first && pruned.hash == self.start_hash)
        };
        if first > 1 && !self.missing.pruned.iter().any(is_dropped) {
            return Some(Problem::SealsRemoved { sequence: 1 });
        }
        let last = self.report.last_sequence;
        let checkpoint = self.checkpoints.keys().next_back().copied().unwrap_or(0);
        if last < until.max(checkpoint) {
            return Some(Problem::CutOff { sequence: last + 1 });
        }
        if head.is_some_and(|hash| hash != self.report.hash) {
            return Some(Problem::SealChanged { sequence: last });
        }
        None
    }

    /// Returns the first remaining event that was never sealed and is not about to be sealed.
    async fn find_inserted(
        &mut self,
        store: &Store,
        until: i64,
    ) -> Result<Option<Problem>, StoreError> {
        while let Some(page) = self.events.pages.recv().await {
            let summaries = page.iter().map(EventSummary::from).map(|read| (read.id, read));
            self.events.unclaimed.extend(summaries);
        }
        let mut left: Vec<_> = self.events.unclaimed.keys().copied().collect();
        left.sort_unstable();
        self.report.unsealed = left.len() as u64;
        self.report.events += left.len() as u64;
        if left.is_empty() {
            return Ok(None);
        }
        // Query unsealed events before seals: an event that is sealed in between is in the second
        // result.
        let mut known: HashSet<EventId> = HashSet::new();
        let mut tx = store.begin(self.workspace, None).await?;
        known.extend(audit_chains::list_unsealed_events(&mut tx, self.workspace).await?);
        let head = audit_chains::get_head(&mut tx, self.workspace).await?;
        let (mut at, until) = (until, head.map_or(0, |head| head.sequence));
        while at < until {
            let segments =
                audit_chains::list_segments_after(&mut tx, self.workspace, at, PAGE).await?;
            let Some(last) = segments.last() else { break };
            at = last.last_sequence();
            // A seal after the end of the chain was not created by the sealer.
            let sealed = segments.iter().filter(|segment| segment.last_sequence() <= until);
            known.extend(sealed.flat_map(|segment| &segment.events).map(|(id, _)| *id));
        }
        let inserted = left.into_iter().find(|id| !known.contains(id));
        Ok(inserted.map(|event_id| Problem::Inserted { event_id }))
    }
}
