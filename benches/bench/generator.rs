//! A load generator for patterns that `wrk` does not support: a fixed rate, or a loop while
//! something else runs. Every load has its own thread.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    client::Client,
    stats::{self, duration_micros},
};

/// The pace at which requests are sent.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// This many requests per second, even if earlier ones have no response yet.
    PerSecond(u32),
    /// The next request as soon as the previous one has its response.
    ClosedLoop,
}

/// A load.
pub(crate) struct Load {
    /// The port of the server.
    pub(crate) port: u16,
    /// The requests. They are sent in order, and then again from the first.
    pub(crate) requests: Vec<String>,
    /// The pace.
    pub(crate) pace: Pace,
    /// The number of connections.
    pub(crate) connections: u32,
    /// The duration. Without one, each request is sent once.
    pub(crate) duration: Option<Duration>,
}

/// The result of a load.
#[derive(Default)]
pub(crate) struct LoadResult {
    /// The latency of each response, in microseconds.
    pub(crate) latencies: Vec<f64>,
    /// The number of responses by status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Requests without a response.
    pub(crate) unanswered: u64,
    /// The duration in seconds.
    pub(crate) seconds: f64,
}

impl LoadResult {
    /// Returns the responses per second.
    pub(crate) fn rate(&self) -> f64 {
        stats::to_f64(self.statuses.values().sum()) / self.seconds
    }

    /// Counts the requests that did not end with this status.
    pub(crate) fn count_other_than(&self, status: u16) -> u64 {
        let others = self.statuses.iter().filter(|(other, _)| **other != status);
        others.map(|(_, count)| count).sum::<u64>() + self.unanswered
    }

    /// Adds the result of another load, except for its duration.
    pub(crate) fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.unanswered += other.unanswered;
    }
}

impl Load {
    /// Starts the load on a new thread.
    pub(crate) fn start(self) -> JoinHandle<Result<LoadResult, String>> {
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(self.run())
        })
    }

    /// Starts the load and waits for its end.
    pub(crate) async fn run_to_end(self) -> Result<LoadResult, String> {
        join_load(self.start()).await
    }

    async fn run(self) -> Result<LoadResult, String> {
        let load = Arc::new(self);
        let start = Instant::now();
        let mut workers = JoinSet::new();
        for number in 0..load.connections {
            workers.spawn(worker(load.clone(), number, start));
        }
        let mut all = LoadResult::default();
        while let Some(result) = workers.join_next().await {
            all.add(result.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?);
        }
        all.seconds = start.elapsed().as_secs_f64();
        Ok(all)
    }
}

/// Waits for a load that was started.
pub(crate) async fn join_load(
    load: JoinHandle<Result<LoadResult, String>>,
) -> Result<LoadResult, String> {
    load.await.map_err(|error| error.to_string())?
}

/// Runs one connection. If a request could not be sent when it was due, because the previous one
/// had no response yet, its latency counts from when it was due. A delay of our own timer does not
/// count.
async fn worker(load: Arc<Load>, number: u32, start: Instant) -> std::io::Result<LoadResult> {
    let mut client = Client::connect(load.port).await?;
    let mut result = LoadResult::default();
    let interval = match load.pace {
        Pace::PerSecond(rate) => Duration::from_secs(1) * load.connections / rate,
        Pace::ClosedLoop => Duration::ZERO,
    };
    let mut due = start + interval * number / load.connections;
    let mut next = usize::try_from(number).unwrap_or_default();
    let step = usize::try_from(load.connections).unwrap_or(1);
    loop {
        match load.duration {
            Some(lasting) if due.max(Instant::now()) >= start + lasting => break,
            None if next >= load.requests.len() => break,
            _ => {}
        }
        let sent_at = if interval.is_zero() || due > Instant::now() {
            sleep_until(due).await;
            Instant::now()
        } else {
            due
        };
        match client.send(&load.requests[next % load.requests.len()]).await {
            Ok(answer) => {
                *result.statuses.entry(answer.status).or_default() += 1;
                result.latencies.push(duration_micros(sent_at.elapsed()));
            }
            Err(_) => result.unanswered += 1,
        }
        due += interval;
        next += step;
    }
    Ok(result)
}
