//! PostgreSQL's clock jumps.
//!
//! Tests shift it for the functions of the schema that handle leases. `./scripts/faults` shifts it
//! for all processes of the server, with libfaketime.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    Scale,
    deployment::{Deployment, REVOCATION_LIMIT},
    figures::{Figures, Recovery},
};
use crate::faults::{
    fixture::{ProxyMode, Server},
    histories::{Reply, longest_recovery},
};

const HOUR: i32 = 3600;
/// A lease of which enough is left when a node is cut off.
const LEASE: (&str, &str) = ("cache.lease_seconds", "4");
const PAUSE: Duration = Duration::from_millis(50);

/// A PostgreSQL server whose clock can be shifted.
pub struct ShiftedServer {
    pub server: Server,
    /// The file that libfaketime reads, if it is used.
    file: Option<PathBuf>,
}

/// Finds libfaketime.
pub fn find_libfaketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

impl ShiftedServer {
    /// Starts a server. In a test, only functions that handle leases read the shifted clock.
    pub async fn start(scale: Scale) -> Self {
        if scale == Scale::Test {
            let server = Server::start_primary().await;
            server.execute(SHIFTED_FUNCTIONS).await;
            return Self { server, file: None };
        }
        let library = find_libfaketime().unwrap();
        let mut file = PathBuf::new();
        let server = Server::start_primary_with(|folder| {
            file = folder.join("clock");
            write_shift(&file, 0);
            [
                format!("LD_PRELOAD={}", library.display()),
                format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
                "FAKETIME_NO_CACHE=1".to_owned(),
                "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
                "NO_FAKE_STAT=1".to_owned(),
            ]
            .into()
        })
        .await;
        Self { server, file: Some(file) }
    }

    /// Shifts the clock by this many seconds from the real time.
    pub async fn shift(&self, seconds: i32) {
        if let Some(file) = &self.file {
            return write_shift(file, seconds);
        }
        let sql = format!("UPDATE shifted_clock.shift SET seconds = {seconds}");
        self.server.execute(&sql).await;
    }
}

/// Replaces the file at once, because every process reads it all the time.
fn write_shift(file: &Path, seconds: i32) {
    let new = file.with_extension("new");
    fs::write(&new, format!("{seconds:+}\n")).unwrap();
    fs::rename(&new, file).unwrap();
}

/// Shadows the clock for the functions that read or write leases. `pg_catalog` would come first if
/// their search path did not name it. Others compare the clock with one that a node has read.
const SHIFTED_FUNCTIONS: &str = "
    CREATE SCHEMA shifted_clock;
    GRANT USAGE ON SCHEMA shifted_clock TO PUBLIC;
    CREATE TABLE shifted_clock.shift (seconds integer NOT NULL);
    GRANT SELECT ON shifted_clock.shift TO PUBLIC;
    INSERT INTO shifted_clock.shift VALUES (0);
    CREATE FUNCTION shifted_clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
        'SELECT pg_catalog.clock_timestamp() + seconds * interval ''1 second''
         FROM shifted_clock.shift';
    CREATE FUNCTION shifted_clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS
        'SELECT pg_catalog.now() + seconds * interval ''1 second'' FROM shifted_clock.shift';
    DO $$
    DECLARE
        routine regprocedure;
    BEGIN
        FOR routine IN
            SELECT oid FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace
              AND prosrc ~ 'clock_timestamp|now\\(' AND prosrc ~ '\\mnodes\\M'
              AND EXISTS (SELECT FROM unnest(proconfig) AS setting
                          WHERE setting LIKE 'search_path=%')
        LOOP
            EXECUTE format('ALTER ROUTINE %s SET search_path = shifted_clock, pg_catalog, public,
                            pg_temp', routine);
        END LOOP;
    END
    $$";

/// The clock jumps while a node is cut off and holds a lease. A revocation must wait for that lease
/// all the same.
pub async fn run_with_cut_off_node(seconds: i32, scale: Scale) -> Figures {
    let shifted = ShiftedServer::start(scale).await;
    let deployment = Deployment::start(&shifted.server, &[LEASE]).await;
    let rounds = scale.pick(1, if seconds.abs() < HOUR { 10 } else { 3 });
    let keys = deployment.create_keys(rounds + 1).await;
    let (revoked, good) = keys.split_at(rounds);
    let mut shift = 0;
    let mut faults = Vec::new();
    let mut first_wait = None;
    for key in revoked {
        let fault = deployment.recorder.now();
        deployment.proxies[1].set_mode(ProxyMode::Hang);
        shift += seconds;
        shifted.shift(shift).await;
        let started = Instant::now();
        deployment.revoke(0, key).await;
        first_wait = first_wait.or(Some(started.elapsed()));
        // Until the lease of the node that is cut off has expired.
        while deployment.clients[1].use_credential(key).await == Reply::Accepted {
            sleep(PAUSE).await;
        }
        deployment.proxies[1].set_mode(ProxyMode::Pass);
        let has_recovered = deployment.wait_until_recovered().await;
        faults.push((fault, deployment.recorder.now(), has_recovered));
    }
    deployment.observe(&keys, Duration::ZERO).await;
    deployment.observe(good, Duration::ZERO).await;
    let (history, events) = deployment.finish(&[&shifted.server]).await;
    let recovery = longest_recovery(&history, &faults);
    let wait = first_wait.unwrap_or_default().as_secs_f64();
    Figures::of(title(seconds, "a node is cut off"), &history, Some(&events), recovery.into())
        .with_remark(format!("{rounds} revocations; the first took {wait:.1} s"))
}

/// The clock jumps after a node was killed. Revocations must not wait for the node for as long as
/// the jump.
pub async fn run_with_killed_node(seconds: i32, scale: Scale) -> Figures {
    let shifted = ShiftedServer::start(scale).await;
    let mut deployment = Deployment::start(&shifted.server, &[LEASE]).await;
    let keys = deployment.create_keys(2).await;
    // A killed node loses the events that it has not written.
    deployment.finish(&[&shifted.server]).await;
    deployment.nodes[1].kill().await;
    let fault = deployment.recorder.now();
    shifted.shift(seconds).await;
    let is_revoked = deployment.revoke(0, &keys[0]).await;
    let took = deployment.recorder.now().saturating_sub(fault);
    deployment.clients[0].use_credential(&keys[0]).await;
    deployment.clients[0].use_credential(&keys[1]).await;
    let (history, events) = deployment.finish(&[&shifted.server]).await;
    let recovery = if is_revoked { Recovery::After(took) } else { Recovery::Never };
    Figures::of(title(seconds, "a node was killed"), &history, Some(&events), recovery)
        .with_remark(format!("one revocation, within {} s", REVOCATION_LIMIT.as_secs()))
}

fn title(seconds: i32, situation: &str) -> String {
    let (amount, unit) = if seconds % HOUR == 0 { (seconds / HOUR, "h") } else { (seconds, "s") };
    format!("PostgreSQL's clock {amount:+} {unit}, {situation}")
}
