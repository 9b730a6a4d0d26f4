//! The task that seals: it adds events to the chain of their workspace, and counts what keys did.
//!
//! Events are written in many transactions at once, and become visible in any order. Each leaves an
//! entry in the ledger, which the sealer reads, off the path of requests; the chain, the counts and the
//! end of the entry share one transaction, so that a sealer which dies half-way has done nothing. All
//! nodes have a sealer, one of which works at a time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::{
    env::Env,
    model::{
        audit::{EventDigest, Run},
        id::{EventId, WorkspaceId},
    },
    store::{
        Store, StoreError,
        ledger::{Entry, Sealing},
    },
};

/// How often there is a look at the ledger.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Entries that are settled in one transaction…
const MOST: i32 = 512;
/// …and events in them, about: a run is read as a whole.
const EVENTS: i32 = 4000;
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often all of the ledger is looked at, and not only what is behind the entries of late.
const FULL_LOOK_EVERY: Duration = Duration::from_secs(30);

/// What was sealed.
#[derive(Debug, Default)]
pub struct SealCounts {
    /// Events, by this node.
    pub sealed: AtomicU64,
    /// How long before its seal the oldest event of this node's last look had happened, in milliseconds.
    pub lag_ms: AtomicU64,
}

/// Seals. One for each node.
pub struct Sealer {
    store: Store,
    env: Env,
    counts: Arc<SealCounts>,
    place: Place,
    /// How much is taken at a time: less, once it was too much.
    size: Size,
    /// Whether there may be entries from before there was a ledger.
    has_backlog: bool,
}

/// How much is taken at a time.
#[derive(Debug, Clone, Copy)]
struct Size {
    entries: i32,
    events: i32,
}

impl Size {
    const FULL: Self = Self { entries: MOST, events: EVENTS };

    fn half(self) -> Self {
        Self { entries: (self.entries / 2).max(1), events: (self.events / 2).max(1) }
    }

    fn double(self) -> Self {
        let Self { entries, events } = self;
        Self { entries: (entries * 2).min(MOST), events: (events * 2).min(EVENTS) }
    }
}

/// Where in the ledger a look begins. PostgreSQL walks over what was settled until it is cleaned up, which
/// an old transaction (a backup) may keep it from for hours.
#[derive(Debug, Default)]
struct Place {
    behind: i64,
    /// The last entry settled, and the last that was when all was looked at.
    newest: i64,
    newest_then: i64,
    looked_at_all: Option<Duration>,
}

impl Place {
    /// Entries become visible in any order, but hardly half a minute late; and then the next look at all of
    /// them finds them.
    fn next(&mut self, now: Duration) -> i64 {
        if self.looked_at_all.is_none_or(|then| now >= then + FULL_LOOK_EVERY) {
            self.looked_at_all = Some(now);
            self.behind = std::mem::replace(&mut self.newest_then, self.newest);
            return 0;
        }
        self.behind
    }
}

impl Sealer {
    /// A sealer of this database.
    #[must_use]
    pub fn new(store: Store, env: Env, counts: Arc<SealCounts>) -> Self {
        Self { store, env, counts, place: Place::default(), size: Size::FULL, has_backlog: true }
    }

    /// Seals until it is dropped.
    pub async fn run(mut self) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Err(error) = self.seal_all().await {
                warn!(%error, "cannot seal audit events yet");
                // Most likely the partition of a month that has just begun.
                self.store.create_audit_partitions(self.env.clock.now()).await.ok();
            }
        }
    }

    /// Seals what is to be sealed, unless another node does.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn seal_all(&mut self) -> Result<(), StoreError> {
        // What was there before there was a ledger comes when there is nothing else.
        let mut is_backlog = false;
        loop {
            let behind =
                if is_backlog { i64::MIN } else { self.place.next(self.env.clock.monotonic()) };
            let settled = match self.seal_some(behind).await {
                Ok(Some(settled)) => settled,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // Perhaps it was too much at a time.
                    self.size = self.size.half();
                    return Err(error);
                }
            };
            self.has_backlog &= !(is_backlog && settled == Settled::Nothing);
            is_backlog = match settled {
                Settled::Much => false,
                // What has come meanwhile waits for the next look, and comes together with more.
                Settled::Some | Settled::Nothing if is_backlog || !self.has_backlog => {
                    return Ok(());
                }
                Settled::Some | Settled::Nothing => true,
            };
        }
    }

    /// Seals the oldest entries behind this one. None: another node seals.
    async fn seal_some(&mut self, behind: i64) -> Result<Option<Settled>, StoreError> {
        let Self { store, env, counts, place, size, .. } = self;
        let look = async {
            let Some(sealing) = store.begin_sealing().await? else { return Ok(None) };
            seal_some(env, counts, &mut place.newest, sealing, behind, *size).await.map(Some)
        };
        let settled = Store::within(PATIENCE, look).await?;
        if settled.is_some_and(|settled| settled != Settled::Nothing) {
            *size = size.double();
        }
        Ok(settled)
    }
}

/// How much was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Nothing,
    /// All that there was.
    Some,
    /// As much as is taken at a time: there may be more.
    Much,
}

/// Seals the oldest entries behind this one.
async fn seal_some(
    env: &Env,
    counts: &SealCounts,
    newest: &mut i64,
    mut sealing: Sealing,
    behind: i64,
    size: Size,
) -> Result<Settled, StoreError> {
    let entries = sealing.entries_behind(behind, size.entries, size.events).await?;
    let Some(last) = entries.iter().map(|entry| entry.id).max() else {
        return Ok(Settled::Nothing);
    };
    let mut runs: BTreeMap<WorkspaceId, Run> = BTreeMap::new();
    for (workspace, _) in entries.iter().flat_map(|entry| &entry.events) {
        runs.entry(*workspace).or_insert_with(|| Run::genesis(*workspace));
    }
    for end in sealing.ends_of(runs.keys().copied()).await? {
        runs.insert(end.workspace_id, end);
    }
    let mut sealed: u64 = 0;
    for entry in &entries {
        let digests = match &entry.digests {
            Some(digests) => digests.clone(),
            None => digests_of(&mut sealing, &entry.events).await?,
        };
        for ((workspace, id), digest) in entry.events.iter().zip(digests) {
            if let Some(run) = runs.get_mut(workspace) {
                run.push(*id, digest);
                sealed += 1;
            }
        }
    }
    let runs: Vec<_> = runs.into_values().collect();
    let now = env.clock.now();
    sealing.seal(now, &entries, &runs).await?;
    *newest = last.max(*newest);
    counts.sealed.fetch_add(sealed, Relaxed);
    counts.lag_ms.store(lag(&entries, now), Relaxed);
    let is_full = i32::try_from(entries.len()).is_ok_and(|entries| entries >= size.entries)
        || i32::try_from(sealed).is_ok_and(|events| events >= size.events);
    Ok(if is_full { Settled::Much } else { Settled::Some })
}

/// The digests of events as they are stored.
async fn digests_of(
    sealing: &mut Sealing,
    events: &[(WorkspaceId, EventId)],
) -> Result<Vec<EventDigest>, StoreError> {
    let stored = sealing.events(events).await?;
    let digests: HashMap<_, _> = stored.iter().map(|event| (event.id, event.digest())).collect();
    let of = |id: &EventId| digests.get(id).copied().unwrap_or(EventDigest::GONE);
    Ok(events.iter().map(|(_, id)| of(id)).collect())
}

fn lag(entries: &[Entry], now: OffsetDateTime) -> u64 {
    let oldest = entries.iter().map(|entry| entry.since).min().unwrap_or(now);
    (now - oldest).whole_milliseconds().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_begins_behind_what_was_settled_half_a_minute_ago() {
        let mut place = Place::default();
        let at = Duration::from_secs;
        assert_eq!(place.next(at(0)), 0);
        place.newest = 10;
        assert_eq!(place.next(at(29)), 0);
        assert_eq!(place.next(at(30)), 0, "all of it");
        place.newest = 20;
        assert_eq!(place.next(at(31)), 0, "10 was settled, but only just");
        assert_eq!(place.next(at(60)), 0, "all of it");
        assert_eq!(place.next(at(61)), 10);
        assert_eq!(place.next(at(90)), 0, "all of it");
        assert_eq!(place.next(at(91)), 20);
    }
}
