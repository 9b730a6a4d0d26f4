//! Load of our own, where `wrk` has no way to give it: at a fixed rate, or in a loop beside something
//! else. Every load has a thread to itself.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    client::Client,
    stats::{self, micros},
};

/// When requests are sent.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// So many a second, whether or not earlier ones have been answered.
    PerSecond(u32),
    /// The next as soon as the last was answered.
    Loop,
}

/// A load.
pub(crate) struct Load {
    /// Where to.
    pub(crate) port: u16,
    /// What is sent, one after the other, and then from the first again.
    pub(crate) requests: Vec<String>,
    /// When.
    pub(crate) pace: Pace,
    /// Over how many connections.
    pub(crate) connections: u32,
    /// How long; with none, until each request was sent once.
    pub(crate) lasting: Option<Duration>,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Taken {
    /// Microseconds of each answer.
    pub(crate) latencies: Vec<f64>,
    /// How many answers had which status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Requests without an answer.
    pub(crate) broken: u64,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
}

impl Taken {
    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        stats::float(self.statuses.values().sum()) / self.seconds
    }

    /// What did not end with this status.
    pub(crate) fn other_than(&self, status: u16) -> u64 {
        let others = self.statuses.iter().filter(|(other, _)| **other != status);
        others.map(|(_, count)| count).sum::<u64>() + self.broken
    }

    /// Adds what came of another load; its time is not added.
    pub(crate) fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.broken += other.broken;
    }
}

impl Load {
    /// Begins, on a thread of its own.
    pub(crate) fn start(self) -> JoinHandle<Result<Taken, String>> {
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(self.run())
        })
    }

    /// Begins, and waits for the end.
    pub(crate) async fn finish(self) -> Result<Taken, String> {
        taken(self.start()).await
    }

    async fn run(self) -> Result<Taken, String> {
        let load = Arc::new(self);
        let start = Instant::now();
        let mut workers = JoinSet::new();
        for number in 0..load.connections {
            workers.spawn(worker(load.clone(), number, start));
        }
        let mut all = Taken::default();
        while let Some(done) = workers.join_next().await {
            all.add(done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?);
        }
        all.seconds = start.elapsed().as_secs_f64();
        Ok(all)
    }
}

/// Waits for a load that was started.
pub(crate) async fn taken(load: JoinHandle<Result<Taken, String>>) -> Result<Taken, String> {
    load.await.map_err(|error| error.to_string())?
}

/// One connection. Where a request could not be sent when it was due, because the one before had not
/// been answered, its latency counts from when it was due; where our own timer was late, it does not.
async fn worker(load: Arc<Load>, number: u32, start: Instant) -> std::io::Result<Taken> {
    let mut client = Client::connect(load.port).await?;
    let mut taken = Taken::default();
    let between = match load.pace {
        Pace::PerSecond(rate) => Duration::from_secs(1) * load.connections / rate,
        Pace::Loop => Duration::ZERO,
    };
    let mut due = start + between * number / load.connections;
    let mut next = usize::try_from(number).unwrap_or_default();
    let step = usize::try_from(load.connections).unwrap_or(1);
    loop {
        match load.lasting {
            Some(lasting) if due.max(Instant::now()) >= start + lasting => break,
            None if next >= load.requests.len() => break,
            _ => {}
        }
        let from = if between.is_zero() || due > Instant::now() {
            sleep_until(due).await;
            Instant::now()
        } else {
            due
        };
        match client.send(&load.requests[next % load.requests.len()]).await {
            Ok(answer) => {
                *taken.statuses.entry(answer.status).or_default() += 1;
                taken.latencies.push(micros(from.elapsed()));
            }
            Err(_) => taken.broken += 1,
        }
        due += between;
        next += step;
    }
    Ok(taken)
}
