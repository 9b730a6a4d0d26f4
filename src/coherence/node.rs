//! A node's part: it renews its lease, hears what changed, forgets it and says so.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{info, warn};
use uuid::Uuid;

use super::{Beliefs, Diary, Lease};
use crate::{
    env::Env,
    metrics::Metrics,
    store::{
        Store, StoreError,
        coherence::{Listener, Wake},
    },
};

/// The shortest pause between two tries while PostgreSQL is away…
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// …and the longest.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a node is made of.
pub struct Parts {
    /// What it is called among nodes.
    pub id: Uuid,
    /// PostgreSQL.
    pub store: Store,
    /// Time.
    pub env: Env,
    /// What it has cached.
    pub beliefs: Arc<dyn Beliefs>,
    /// What it logs.
    pub diary: Arc<dyn Diary>,
    /// Its right to believe what it has cached.
    pub lease: Lease,
    /// How long that lasts.
    pub lease_length: Duration,
    /// Where the fence's waiters wait.
    pub acknowledged: Arc<Notify>,
    /// What the operator can watch.
    pub metrics: Metrics,
}

/// One node.
pub struct Node {
    parts: Parts,
    /// The generation up to which this node has heard everything.
    applied: i64,
    /// When the lease was last renewed, since the node began to take part.
    renewed: Option<Instant>,
    /// How often in a row the listener heard nothing until the next renewal.
    silences: u32,
    part: watch::Sender<bool>,
}

/// A node that takes part.
pub struct NodeTask {
    stop: oneshot::Sender<bool>,
    done: JoinHandle<()>,
    part: watch::Receiver<bool>,
}

impl NodeTask {
    /// Ready once the node has a lease, or time is over.
    pub async fn has_joined(&mut self, within: Duration) {
        timeout(within, self.part.wait_for(|part| *part)).await.ok();
    }

    /// Takes the node out. It must not use what it has cached any more. Without a farewell others wait until its lease is
    /// over, and know that it may have taken something with it.
    pub async fn finish(self, with_farewell: bool) {
        self.stop.send(with_farewell).ok();
        self.done.await.ok();
    }
}

impl Node {
    /// Starts a node.
    #[must_use]
    pub fn start(parts: Parts) -> NodeTask {
        let (stop, stopped) = oneshot::channel();
        let (part, joined) = watch::channel(false);
        let node = Self { parts, applied: -1, renewed: None, silences: 0, part };
        NodeTask { stop, done: tokio::spawn(node.run(stopped)), part: joined }
    }

    async fn run(mut self, stopped: oneshot::Receiver<bool>) {
        let with_farewell = tokio::select! {
            () = self.insist() => true,
            with_farewell = stopped => with_farewell.unwrap_or(true),
        };
        self.parts.lease.end();
        if !with_farewell {
            return;
        }
        // Or others would wait for the lease to run out.
        timeout(FAREWELL, self.parts.store.unregister_node(self.parts.id)).await.ok();
    }

    /// Takes part, whatever happens.
    async fn insist(&mut self) {
        let mut pause = MIN_PAUSE;
        loop {
            let Err(error) = self.take_part().await else { return };
            // The lease runs on meanwhile: nothing is lost so far.
            warn!(%error, "cannot hear what other nodes change");
            if self.renewed.is_none() {
                // Not one connection that died, but PostgreSQL or the way to it.
                self.parts.store.reconnect();
                pause = (pause * 2).min(MAX_PAUSE);
            } else {
                pause = MIN_PAUSE;
            }
            sleep(pause).await;
        }
    }

    /// Hears and renews until something fails.
    async fn take_part(&mut self) -> Result<(), StoreError> {
        (self.silences, self.renewed) = (0, None);
        // Listening first: what is announced from here on is heard, what was before is read.
        let mut listener = self.soon(self.parts.store.listen()).await?;
        loop {
            let moved = self.catch_up().await?;
            if self.renewed.is_none_or(|at| at.elapsed() >= self.renew_every()) {
                let now = Instant::now();
                self.renew().await?;
                self.renewed = Some(now);
            } else if moved {
                self.soon(self.parts.store.acknowledge(self.parts.id, self.applied)).await?;
            }
            self.hear(&mut listener).await?;
        }
    }

    /// Reads what was announced and forgets it; true if there was anything.
    async fn catch_up(&mut self) -> Result<bool, StoreError> {
        if self.applied < 0 {
            return Ok(false);
        }
        let news = self.soon(self.parts.store.news_since(self.applied)).await?;
        match news.invalidations {
            Some(invalidations) if invalidations.is_empty() => {}
            Some(invalidations) => {
                self.parts.beliefs.forget(&invalidations);
                for lag in &news.lags {
                    self.parts.metrics.revocation_lag.observe(lag.as_secs_f64());
                }
            }
            None => self.parts.beliefs.forget_all(),
        }
        let moved = news.head != self.applied;
        self.applied = news.head;
        Ok(moved)
    }

    /// Renews the lease, or takes part anew.
    async fn renew(&mut self) -> Result<(), StoreError> {
        let length = self.parts.lease_length;
        let sent = self.parts.env.clock.monotonic();
        let written = self.parts.diary.written_until();
        let known = self.applied >= 0
            && self
                .soon(self.parts.store.renew_lease(self.parts.id, self.applied, length, written))
                .await?;
        let sent = if known { sent } else { self.register().await? };
        self.parts.lease.extend(sent + length);
        if self.part.send_replace(true) && !known {
            info!("taking part again, with nothing cached");
        }
        Ok(())
    }

    /// Registers the node; when that was sent.
    async fn register(&mut self) -> Result<Duration, StoreError> {
        self.parts.lease.end();
        let sent = self.parts.env.clock.monotonic();
        let written = self.parts.diary.written_until();
        let register =
            self.parts.store.register_node(self.parts.id, self.parts.lease_length, written);
        self.applied = self.soon(register).await?;
        // After it: what was looked up before may have changed before, and nobody would tell.
        self.parts.beliefs.forget_all();
        Ok(sent)
    }

    /// Waits until there is something to do. Every renewal is heard by all nodes, its own among them,
    /// so silence shows that the listener's connection is dead.
    async fn hear(&mut self, listener: &mut Listener) -> Result<(), StoreError> {
        let until = Instant::now() + self.renew_every();
        self.silences += 1;
        loop {
            let Ok(wake) = timeout_at(until, listener.next()).await else { break };
            self.silences = 0;
            match wake? {
                Wake::Acknowledgements => self.parts.acknowledged.notify_waiters(),
                Wake::Invalidations => return Ok(()),
            }
        }
        if self.silences > 2 { Err(StoreError::late()) } else { Ok(()) }
    }

    fn renew_every(&self) -> Duration {
        self.parts.lease_length / 3
    }

    /// In time for the next try before the lease is over.
    async fn soon<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        Store::within(self.renew_every(), work).await
    }
}
