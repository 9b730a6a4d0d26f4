//! A standby is promoted while the old primary lives. One node stays with the old primary, or both
//! nodes have both servers in their URL.

use std::time::Duration;

use super::{
    Scale,
    deployment::Deployment,
    figures::{Figures, Recovery},
};
use crate::faults::{
    fixture::{Proxy, ProxyMode, Server},
    histories::{Reply, recovery_time},
};

const STANDBY: &str = "standby";

/// Runs the scenario. If the old primary has a synchronous standby, it can commit nothing once it
/// is cut off. Otherwise it goes on.
pub async fn run(is_synchronous: bool, scale: Scale) -> Figures {
    let primary = Server::start_primary().await;
    let replication = Proxy::start(primary.port()).await;
    let standby = primary.start_standby(STANDBY, replication.port()).await;
    if is_synchronous {
        primary.require_standby(STANDBY).await;
    }
    let deployment = Deployment::start(&primary, &[]).await;
    let keys = deployment.create_keys(scale.pick(4, 12)).await;
    let (revoked, good) = keys.split_at(keys.len() / 2);
    let [a, b] = &deployment.proxies[..] else { unreachable!("each node has a proxy") };
    replication.set_mode(ProxyMode::Refuse);
    standby.promote().await;
    a.redirect(standby.port());
    a.cut_connections();
    for key in revoked {
        deployment.revoke(0, key).await;
        deployment.use_on_both(key).await;
    }
    deployment.observe(&keys, scale.pick(Duration::from_secs(3), Duration::from_secs(20))).await;
    let healed = deployment.recorder.now();
    b.redirect(standby.port());
    b.cut_connections();
    let has_recovered = deployment.wait_until_recovered().await;
    deployment.observe(good, Duration::from_millis(500)).await;
    let servers = if is_synchronous { vec![&standby] } else { vec![&primary, &standby] };
    let (history, events) = deployment.finish(&servers).await;
    let recovery = recovery_time(&history, healed, Duration::MAX).filter(|_| has_recovered);
    let title = if is_synchronous {
        "split brain, with a synchronous standby"
    } else {
        "split brain, with an asynchronous standby"
    };
    let figures = Figures::of(title, &history, Some(&events), Recovery::from(recovery))
        .with_remark(
            "the time to recover is that of the node on the old primary, once it is moved",
        );
    if is_synchronous {
        return figures;
    }
    figures.explained(
        "an old primary that needs no standby goes on committing, and nodes that only reach it \
         cannot know of the new one. Replicate synchronously, or stop the old primary before the \
         promotion.",
    )
}

/// Runs a scenario in which nodes reach both servers, and must use the promoted one.
pub async fn run_with_several_hosts(scale: Scale) -> Figures {
    let primary = Server::start_primary().await;
    let replication = Proxy::start(primary.port()).await;
    let standby = primary.start_standby(STANDBY, replication.port()).await;
    primary.require_standby(STANDBY).await;
    let [old, new] = [&primary, &standby].map(|server| format!("127.0.0.1:{}", server.port()));
    let urls = [format!("{old},{new}"), format!("{new},{old}")]
        .map(|hosts| primary.node_url().replace(&old, &hosts));
    let deployment = Deployment::start_without_proxies(&urls).await;
    let keys = deployment.create_keys(scale.pick(4, 12)).await;
    let (revoked, good) = keys.split_at(keys.len() / 2);
    replication.set_mode(ProxyMode::Refuse);
    replication.cut_connections();
    let fault = deployment.recorder.now();
    // Their events are being committed on the old primary, which waits for its standby for ever.
    deployment.observe(good, Duration::from_millis(200)).await;
    standby.promote().await;
    for (number, key) in revoked.iter().enumerate() {
        deployment.revoke(number % 2, key).await;
        deployment.use_on_both(key).await;
    }
    let has_recovered = deployment.wait_until_recovered().await;
    let until = deployment.recorder.now();
    let time = scale.pick(Duration::from_secs(3), Duration::from_secs(20));
    let before = deployment.recorder.history().count(Reply::is_unknown);
    deployment.observe(&keys, time).await;
    for key in good {
        deployment.revoke(0, key).await;
    }
    let (history, events) = deployment.finish(&[&standby]).await;
    let later = history.count(Reply::is_unknown) - before;
    let recovery = recovery_time(&history, fault, until).filter(|_| has_recovered);
    let title = "split brain, with both servers in the URL of the nodes";
    Figures::of(title, &history, Some(&events), Recovery::from(recovery))
        .failed((later > 0).then(|| format!("{later} requests got 503 after the recovery")))
}
