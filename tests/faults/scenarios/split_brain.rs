//! A standby is promoted while the old primary lives, and one node stays with the old primary.

use std::time::Duration;

use super::{
    Scale,
    deployment::Deployment,
    figures::{Figures, Recovery},
};
use crate::faults::{
    fixture::{Proxy, ProxyMode, Server},
    histories::recovery_time,
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
