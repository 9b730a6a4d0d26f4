//! A standby is promoted while the old primary lives. The proxies send only new connections to the
//! new primary, so connections that nodes keep stay on the old one.

use std::time::Duration;

use super::{
    Scale,
    deployment::{Deployment, RECOVERY_LIMIT},
    figures::{Figures, Recovery},
};
use crate::faults::{
    fixture::{Proxy, ProxyMode, Server},
    histories::recovery_time,
};

const STANDBY: &str = "standby";

/// The state of the old primary after the switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldPrimary {
    /// It refuses writes.
    ReadOnly,
    /// Its commits wait forever for its synchronous standby.
    CutOff,
}

/// Runs the scenario. All connections that nodes have opened stay open.
pub async fn run(old_primary: OldPrimary, scale: Scale) -> Figures {
    let primary = Server::start_primary().await;
    let replication = Proxy::start(primary.port()).await;
    let standby = primary.start_standby(STANDBY, replication.port()).await;
    primary.require_standby(STANDBY).await;
    let deployment = Deployment::start(&primary, &[]).await;
    let keys = deployment.create_keys(scale.pick(4, 20)).await;
    let (revoked, good) = keys.split_at(keys.len() / 2);
    match old_primary {
        OldPrimary::ReadOnly => {
            primary.execute("ALTER SYSTEM SET default_transaction_read_only = on").await;
            primary.execute("SELECT pg_reload_conf()").await;
        }
        OldPrimary::CutOff => replication.set_mode(ProxyMode::Refuse),
    }
    let fault = deployment.recorder.now();
    standby.promote().await;
    deployment.redirect(&standby);
    for (number, key) in revoked.iter().enumerate() {
        deployment.revoke(number % 2, key).await;
        deployment.use_on_both(key).await;
    }
    deployment.observe(&keys, scale.pick(Duration::from_secs(3), Duration::from_secs(30))).await;
    let has_recovered = deployment.wait_until_recovered().await;
    deployment.observe(good, Duration::from_millis(500)).await;
    let (history, events) = deployment.finish(&[&standby]).await;
    let until = fault + RECOVERY_LIMIT * 10;
    let recovery = has_recovered.then(|| recovery_time(&history, fault, until)).flatten();
    let title = match old_primary {
        OldPrimary::ReadOnly => "switchover, the old primary is read-only",
        OldPrimary::CutOff => "switchover, the old primary is cut off from its synchronous standby",
    };
    Figures::of(title, &history, Some(&events), Recovery::from(recovery))
}
