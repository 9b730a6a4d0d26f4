//! Files of keys from which the load chooses, and the same keys in the database.

use std::path::PathBuf;

use crate::{
    client::format_request,
    environment::BenchEnvironment,
    generator::{Load, Pace},
    options::Options,
    seed,
};

/// The maximum requests per second for which there are keys.
const FRESH_PER_SECOND: usize = 25_000;
const UNKNOWN_PER_SECOND: usize = 60_000;

/// The key files.
pub(crate) struct KeyFiles {
    /// Keys that the service has cached, their number, and requests that use each of them once.
    pub(crate) warm: PathBuf,
    pub(crate) warm_count: usize,
    warm_up: Vec<String>,
    /// Keys that the service has not seen, and their number per round.
    pub(crate) fresh: PathBuf,
    pub(crate) fresh_per_round: usize,
    /// Keys with a valid checksum that are in no database, and their number per round.
    pub(crate) unknown: PathBuf,
    pub(crate) unknown_per_round: usize,
}

impl KeyFiles {
    /// Creates the files and stores the keys.
    pub(crate) async fn create(
        options: &Options,
        world: &BenchEnvironment,
    ) -> Result<Self, String> {
        eprintln!("creating keys");
        let seconds = usize::try_from(options.seconds()).unwrap_or(1);
        let warm_count = if options.quick { 10_000 } else { 100_000 };
        let (fresh_per_round, unknown_per_round) =
            (seconds * FRESH_PER_SECOND, seconds * UNKNOWN_PER_SECOND);
        let file = |name| world.folder().join(name);
        let all = Self {
            warm: file("warm.keys"),
            warm_count,
            warm_up: Vec::new(),
            fresh: file("fresh.keys"),
            fresh_per_round,
            unknown: file("unknown.keys"),
            unknown_per_round,
        };
        let unknown = seed::generate_keys(&world.env, unknown_per_round * options.rounds())?;
        seed::write_keys(&all.unknown, &unknown)?;
        let mut connection = world.connect("main").await?;
        let workspace = world.account.workspace_id;
        let fresh = seed::generate_keys(&world.env, fresh_per_round * options.rounds())?;
        seed::write_keys(&all.fresh, &fresh)?;
        seed::store_keys(&mut connection, &world.env, workspace, &fresh).await?;
        let warm = seed::generate_keys(&world.env, warm_count)?;
        seed::write_keys(&all.warm, &warm)?;
        seed::store_keys(&mut connection, &world.env, workspace, &warm).await?;
        let verify_request = |key: &str| format_request("GET", "/v1/auth/verify", Some(key), None);
        Ok(Self { warm_up: warm.iter().map(|key| verify_request(key.reveal())).collect(), ..all })
    }

    /// Uses each of the warm keys once.
    pub(crate) async fn warm_up(&self, port: u16) -> Result<(), String> {
        send_each_once(port, self.warm_up.clone()).await
    }
}

/// Sends each request once over many connections. Every response must be 200.
pub(crate) async fn send_each_once(port: u16, requests: Vec<String>) -> Result<(), String> {
    let load = Load { port, requests, pace: Pace::ClosedLoop, connections: 48, duration: None };
    match load.run_to_end().await?.count_other_than(200) {
        0 => Ok(()),
        failed => Err(format!("{failed} keys were rejected at their first use")),
    }
}
