//! Whether the log is as it was sealed.
//!
//! A workspace's chain is read from its beginning, its events in the order of their ids: nearly the
//! same order, so what waits for its counterpart is little. Whatever was done to the log shows at the
//! first place that does not fit; what was cut off the end together with its seals shows against a
//! checkpoint.

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
    audit::{Action, ChainHash, Checkpoint, Event, EventDigest, Metadata, Pruned, Run},
    id::{EventId, Id, WorkspaceId, moment},
};
use crate::store::{Store, StoreError, chains};

/// Events that are read at a time.
const PAGE: i64 = 10_000;

/// What does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// An event is not what was sealed.
    Changed {
        /// Which.
        event_id: EventId,
        /// Its place.
        sequence: i64,
    },
    /// An event that was sealed is gone.
    Removed {
        /// Which.
        event_id: EventId,
        /// Its place.
        sequence: i64,
    },
    /// An event was never sealed.
    Inserted {
        /// Which.
        event_id: EventId,
    },
    /// Seals are gone, and those events with them that have none.
    SealsRemoved {
        /// The first place without one.
        sequence: i64,
    },
    /// A seal does not go on where the one before ends.
    SealChanged {
        /// The first place of the seal.
        sequence: i64,
    },
    /// The chain ends before a place that it had reached.
    CutOff {
        /// The first place that is gone.
        sequence: i64,
    },
    /// At a checkpoint the chain had another hash: something up to there was changed, and all seals behind it.
    Rewritten {
        /// The checkpoint's place.
        sequence: i64,
    },
    /// A checkpoint is of a part of the chain that retention has dropped.
    CheckpointTooOld {
        /// The checkpoint's place.
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
                write!(f, "number {sequence} of the chain was removed, with its seal")
            }
            Self::SealChanged { sequence } => {
                write!(f, "the seal of number {sequence} of the chain was changed")
            }
            Self::CutOff { sequence } => {
                write!(f, "the chain was cut off before its number {sequence}")
            }
            Self::Rewritten { sequence } => write!(
                f,
                "the chain is not that of the checkpoint: an event up to number {sequence} was \
                 changed, removed or inserted, and sealed anew"
            ),
            Self::CheckpointTooOld { sequence } => write!(
                f,
                "the checkpoint at number {sequence} is older than what retention has kept"
            ),
        }
    }
}

/// What was found of one workspace.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Which.
    pub workspace_id: WorkspaceId,
    /// The first and the last place of its chain that were there.
    pub first_sequence: i64,
    /// See there.
    pub last_sequence: i64,
    /// The hash at the last place.
    pub hash: ChainHash,
    /// Events that were read.
    pub events: u64,
    /// Events that were written, but not yet sealed.
    pub unsealed: u64,
    /// Events that retention had dropped.
    pub pruned: u64,
    /// The first thing that does not fit.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// An event as far as it matters here.
struct Read {
    id: EventId,
    digest: EventDigest,
    pruned: Option<Pruned>,
}

impl From<&Event<'static>> for Read {
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

/// Looks whether a workspace's log is as it was sealed, and as these checkpoints of it say.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn verify(
    store: &Store,
    workspace: WorkspaceId,
    checkpoints: &[Checkpoint],
) -> Result<Verified, StoreError> {
    let found = verify_once(store, workspace, checkpoints).await?;
    match found.problem {
        // Retention may have dropped it meanwhile, and told so behind the end that was looked at.
        Some(Problem::Removed { .. } | Problem::SealsRemoved { .. }) => {
            verify_once(store, workspace, checkpoints).await
        }
        _ => Ok(found),
    }
}

async fn verify_once(
    store: &Store,
    workspace: WorkspaceId,
    checkpoints: &[Checkpoint],
) -> Result<Verified, StoreError> {
    // What is sealed from here on is not looked at, but to tell it from what never was.
    let head = chains::head(&mut store.begin(workspace, None).await?, workspace).await?;
    let until = head.map_or(0, |head| head.sequence);
    let (pages, events) = mpsc::channel(2);
    let reader = tokio::spawn(read(store.clone(), workspace, pages));
    let mut walk = Walk {
        workspace,
        checkpoints: by_place(checkpoints),
        events: Events { pages: events, unclaimed: HashMap::new(), newest: None },
        missing: Missing::default(),
        changed: None,
        begin: ChainHash::genesis(workspace),
        found: Verified {
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
    let broken = walk.chain(store, until).await?;
    let problem = match walk.end(broken, until, head.map(|head| head.hash)) {
        Some(problem) => Some(problem),
        None => walk.leftovers(store, until).await?,
    };
    drop(walk.events);
    match reader.await {
        Ok(read) => read?,
        Err(_) => return Err(StoreError::Aborted),
    }
    Ok(Verified { problem, ..walk.found })
}

fn by_place(checkpoints: &[Checkpoint]) -> BTreeMap<i64, Vec<ChainHash>> {
    let mut known: BTreeMap<i64, Vec<ChainHash>> = BTreeMap::new();
    for Checkpoint { sequence, hash, .. } in checkpoints {
        known.entry(*sequence).or_default().push(*hash);
    }
    known
}

/// Reads all events of a workspace, the oldest first, until nobody takes them any more.
async fn read(
    store: Store,
    workspace: WorkspaceId,
    pages: mpsc::Sender<Vec<Event<'static>>>,
) -> Result<(), StoreError> {
    let mut last = Uuid::nil();
    loop {
        // A transaction for each page: an old one keeps PostgreSQL from cleaning up.
        let mut tx = store.begin(workspace, None).await?;
        let page = chains::events_behind(&mut tx, workspace, last, PAGE).await?;
        drop(tx);
        let Some(newest) = page.last() else { return Ok(()) };
        last = newest.id.uuid();
        if pages.send(page).await.is_err() {
            return Ok(());
        }
    }
}

/// The events that were read and not yet asked for.
struct Events {
    pages: mpsc::Receiver<Vec<Event<'static>>>,
    unclaimed: HashMap<EventId, Read>,
    newest: Option<EventId>,
}

impl Events {
    /// The event with this id, if it is there.
    async fn claim(&mut self, id: EventId) -> Option<Read> {
        while self.newest.is_none_or(|newest| newest < id) {
            let Some(page) = self.pages.recv().await else { break };
            self.newest = page.last().map(|event| event.id).or(self.newest);
            self.unclaimed.extend(page.iter().map(Read::from).map(|read| (read.id, read)));
        }
        self.unclaimed.remove(&id)
    }
}

/// Events that are not there, of which retention may have taken some: by whole months, and never without a word.
#[derive(Default)]
struct Missing {
    /// The first of each month, by place.
    first: BTreeMap<i64, EventId>,
    /// Months of which events are there.
    kept: HashSet<(i32, Month)>,
    count: u64,
    /// What retention dropped, as far as the chain itself tells.
    pruned: Vec<Pruned>,
}

/// The month that an event happened in.
fn month(id: EventId) -> (i32, Month) {
    let at = moment(id.uuid());
    (at.year(), at.month())
}

impl Missing {
    fn note(&mut self, sequence: i64, id: EventId) {
        self.count += 1;
        // Those of one month go together.
        if self.first.values().all(|known| month(*known) != month(id)) {
            self.first.insert(sequence, id);
        }
    }

    fn keep(&mut self, id: EventId) {
        self.kept.insert(month(id));
    }

    /// Takes an event's word for what retention dropped, if it is one that retention leaves: of what was a whole month
    /// by then.
    fn believe(&mut self, told_by: EventId, pruned: Pruned) {
        let is_month = pruned.before.day() == 1 && pruned.before.time() == Time::MIDNIGHT;
        if is_month && pruned.before <= moment(told_by.uuid()) {
            self.pruned.push(pruned);
        }
    }

    /// The first that retention did not take.
    fn unexplained(&self) -> Option<(i64, Problem)> {
        let before = self.pruned.iter().map(|pruned| pruned.before).max();
        let is_explained = |id: EventId| {
            before.is_some_and(|before| moment(id.uuid()) < before)
                && !self.kept.contains(&month(id))
        };
        let first = self.first.iter().find(|(_, id)| !is_explained(**id));
        first.map(|(sequence, id)| {
            (*sequence, Problem::Removed { event_id: *id, sequence: *sequence })
        })
    }
}

struct Walk {
    workspace: WorkspaceId,
    /// By place; there may be several of one.
    checkpoints: BTreeMap<i64, Vec<ChainHash>>,
    events: Events,
    missing: Missing,
    /// The first event that was changed.
    changed: Option<(i64, Problem)>,
    /// The hash that the chain begins with.
    begin: ChainHash,
    found: Verified,
}

impl Walk {
    /// From the first seal to that of this place.
    async fn chain(&mut self, store: &Store, until: i64) -> Result<Option<Problem>, StoreError> {
        let mut at = 0;
        while at < until {
            let mut tx = store.begin(self.workspace, None).await?;
            let runs = chains::runs_behind(&mut tx, self.workspace, at, PAGE).await?;
            drop(tx);
            let before = at;
            // Not those that were sealed meanwhile.
            for run in runs.into_iter().filter(|run| run.first <= until) {
                if let Some(problem) = self.run(&run).await {
                    return Ok(Some(problem));
                }
                at = run.last();
            }
            if at == before {
                break;
            }
        }
        Ok(None)
    }

    async fn run(&mut self, run: &Run) -> Option<Problem> {
        let sequence = run.first;
        if self.found.last_sequence == 0 {
            // What was before is dropped, or was never there: `end` tells which.
            self.found.first_sequence = run.first;
            self.found.last_sequence = run.first - 1;
            let oldest = self.checkpoints.keys().find(|sequence| **sequence > 0);
            if let Some(sequence) = oldest.filter(|sequence| **sequence < run.first - 1) {
                return Some(Problem::CheckpointTooOld { sequence: *sequence });
            }
            if run.first > 1 {
                (self.found.hash, self.begin) = (run.previous, run.previous);
                if let Some(problem) = self.checkpoint(run.first - 1) {
                    return Some(problem);
                }
            }
        }
        if run.first > self.found.last_sequence + 1 {
            return Some(Problem::SealsRemoved { sequence: self.found.last_sequence + 1 });
        }
        if run.first <= self.found.last_sequence || run.previous != self.found.hash {
            return Some(Problem::SealChanged { sequence });
        }
        for (sequence, (id, hash)) in (run.first..).zip(&run.events) {
            match self.events.claim(*id).await {
                Some(read) => {
                    self.found.events += 1;
                    self.missing.keep(*id);
                    if self.found.hash.then(read.digest) == *hash {
                        if let Some(pruned) = read.pruned {
                            self.missing.believe(*id, pruned);
                        }
                    } else {
                        // What is missing before it may yet be explained behind it.
                        let problem = Problem::Changed { event_id: *id, sequence };
                        self.changed = self.changed.or(Some((sequence, problem)));
                    }
                }
                None => self.missing.note(sequence, *id),
            }
            self.found.hash = *hash;
            self.found.last_sequence = sequence;
            if let Some(problem) = self.checkpoint(sequence) {
                return Some(problem);
            }
        }
        None
    }

    fn checkpoint(&self, sequence: i64) -> Option<Problem> {
        let known = self.checkpoints.get(&sequence)?;
        let is_other = known.iter().any(|hash| *hash != self.found.hash);
        is_other.then_some(Problem::Rewritten { sequence })
    }

    /// The first thing that does not fit up to the end of the chain, or to where it breaks.
    fn end(
        &mut self,
        broken: Option<Problem>,
        until: i64,
        head: Option<ChainHash>,
    ) -> Option<Problem> {
        let first = self.missing.unexplained().into_iter().chain(self.changed);
        if let Some((_, problem)) = first.min_by_key(|(sequence, _)| *sequence) {
            return Some(problem);
        }
        if broken.is_some() {
            return broken;
        }
        self.found.pruned = self.missing.count;
        let first = self.found.first_sequence;
        // Its seals are dropped later than it is told.
        let is_dropped = |pruned: &Pruned| {
            pruned.sequence + 1 > first
                || (pruned.sequence + 1 == first && pruned.hash == self.begin)
        };
        if first > 1 && !self.missing.pruned.iter().any(is_dropped) {
            return Some(Problem::SealsRemoved { sequence: 1 });
        }
        let last = self.found.last_sequence;
        let checkpoint = self.checkpoints.keys().next_back().copied().unwrap_or(0);
        if last < until.max(checkpoint) {
            return Some(Problem::CutOff { sequence: last + 1 });
        }
        if head.is_some_and(|hash| hash != self.found.hash) {
            return Some(Problem::SealChanged { sequence: last });
        }
        None
    }

    /// Whether events are left that were never sealed.
    async fn leftovers(
        &mut self,
        store: &Store,
        until: i64,
    ) -> Result<Option<Problem>, StoreError> {
        while let Some(page) = self.events.pages.recv().await {
            self.events.unclaimed.extend(page.iter().map(Read::from).map(|read| (read.id, read)));
        }
        let mut left: Vec<_> = self.events.unclaimed.keys().copied().collect();
        left.sort_unstable();
        self.found.unsealed = left.len() as u64;
        self.found.events += left.len() as u64;
        if left.is_empty() {
            return Ok(None);
        }
        // In this order: what is sealed between the two looks is found by the second.
        let mut known: HashSet<EventId> = HashSet::new();
        let mut tx = store.begin(self.workspace, None).await?;
        known.extend(chains::unsealed(&mut tx, self.workspace).await?);
        let head = chains::head(&mut tx, self.workspace).await?;
        let (mut at, until) = (until, head.map_or(0, |head| head.sequence));
        while at < until {
            let runs = chains::runs_behind(&mut tx, self.workspace, at, PAGE).await?;
            let Some(last) = runs.last() else { break };
            at = last.last();
            // No seal behind the end is the sealer's.
            let sealed = runs.iter().filter(|run| run.last() <= until);
            known.extend(sealed.flat_map(|run| &run.events).map(|(id, _)| *id));
        }
        let inserted = left.into_iter().find(|id| !known.contains(id));
        Ok(inserted.map(|event_id| Problem::Inserted { event_id }))
    }
}
