//! Patroni replaces the primary under load. One node reaches it through HAProxy, the other one with
//! a URL that names all servers.

use std::{collections::HashMap, time::Duration};

use tokio::time::sleep;

use super::{
    Scale,
    deployment::{Deployment, wait_for},
    figures::{Figures, Recovery},
    load::{CredentialLoad, is_revocation},
};
use crate::faults::{
    fixture::PatroniCluster,
    histories::{History, Recorder, longest_recovery},
};

/// The time in which an old primary without Patroni runs beside the new one.
const SPLIT_TIME: Duration = Duration::from_secs(10);

/// The reason for which Patroni replaces the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatroniFault {
    /// An operator asks for it.
    Switchover,
    /// Patroni and PostgreSQL of the primary are killed.
    Failover,
    /// Patroni of the primary is killed. Its PostgreSQL goes on beside the new primary.
    PatroniKilled,
}

impl PatroniFault {
    fn title(self) -> &'static str {
        match self {
            Self::Switchover => "switchover with Patroni",
            Self::Failover => "the primary and its Patroni are killed",
            Self::PatroniKilled => "Patroni of the primary is killed, and its PostgreSQL goes on",
        }
    }

    fn rounds(self, scale: Scale) -> usize {
        match self {
            Self::Switchover => scale.pick(1, 3),
            Self::Failover | Self::PatroniKilled => 1,
        }
    }

    async fn cause(self, cluster: &mut PatroniCluster, primary: usize) {
        match self {
            Self::Switchover => cluster.switch_over().await,
            Self::Failover => cluster.kill_member(primary).await,
            Self::PatroniKilled => cluster.kill_patroni(primary),
        }
        cluster.wait_for_other_primary(primary).await;
        if self == Self::PatroniKilled {
            sleep(SPLIT_TIME).await;
        }
    }
}

/// Runs the scenario. Nothing that was acknowledged is lost.
pub async fn run(fault: PatroniFault, scale: Scale) -> Figures {
    let mut cluster = PatroniCluster::start().await;
    cluster.create_database().await;
    let haproxy = cluster.start_haproxy().await;
    let urls = [haproxy.url.clone(), cluster.node_url()];
    let deployment = Deployment::start_without_proxies(&urls).await;
    let credentials = deployment.obtain_tokens(2).await;
    let load = CredentialLoad::start(&deployment, 3, credentials);
    let recorder = deployment.recorder.clone();
    let mut faults = Vec::new();
    for _ in 0..fault.rounds(scale) {
        cluster.wait_until_complete().await;
        wait_for_revocations(&recorder, scale.pick(8, 20)).await;
        let primary = cluster.find("leader").await.unwrap();
        let started = recorder.now();
        fault.cause(&mut cluster, primary).await;
        let has_recovered = deployment.wait_until_recovered().await;
        faults.push((started, recorder.now(), has_recovered));
        wait_for_revocations(&recorder, scale.pick(4, 10)).await;
    }
    let [good, revoked] = load.finish().await;
    deployment.observe(&[good, revoked].concat(), Duration::ZERO).await;
    let connections = vec![cluster.connect().await];
    let (history, events) = deployment.finish_on(HashMap::new(), connections).await;
    let revocations = history.operations.iter().filter(|it| is_revocation(it)).count();
    let [through_haproxy, direct] = [0, 1].map(|node| {
        let longest = longest_recovery(&operations_on(&history, node), &faults);
        longest.map_or("never".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
    });
    let remark = format!(
        "{revocations} revocations; time to recover of the node behind HAProxy: \
         {through_haproxy}, of the node with all servers in its URL: {direct}"
    );
    let longest = longest_recovery(&history, &faults);
    Figures::of(fault.title(), &history, Some(&events), Recovery::from(longest)).with_remark(remark)
}

async fn wait_for_revocations(recorder: &Recorder, count: usize) {
    let goal = recorder.count(is_revocation) + count;
    wait_for("keys are revoked", async || recorder.count(is_revocation) >= goal).await;
}

fn operations_on(history: &History, node: usize) -> History {
    let operations = history.operations.iter().filter(|operation| operation.node == node);
    History { operations: operations.cloned().collect(), ..History::default() }
}
