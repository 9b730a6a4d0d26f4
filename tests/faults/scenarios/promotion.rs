//! The primary is killed under load and a standby is promoted, several times in a row.

use std::{
    collections::{HashMap, HashSet},
    slice,
    time::Duration,
};

use call2me_auth::model::id;
use tokio::time::sleep;
use uuid::Uuid;

use super::{
    Scale,
    deployment::{Deployment, wait_for},
    figures::{Figures, Recovery},
    load::{CredentialLoad, is_revocation},
};
use crate::faults::{
    fixture::{Proxy, ProxyMode, Server},
    histories::{
        Action, CredentialId, History, Recorder, longest_recovery, read_events, recovery_time,
    },
};

const STANDBY: &str = "standby";
/// The number of sessions, and of grants, that exist before the first failover.
const OLD_CREDENTIALS: usize = 3;

/// The time between the moments at which the nodes find the new primary.
const NODE_DELAY: Duration = Duration::from_secs(1);

/// The times of a failover, on the clock of the history.
struct Failover {
    /// From here on, the standby gets no changes. The same as `killed` if it is synchronous.
    cut: Duration,
    killed: Duration,
    promoted: Duration,
    recovered: Duration,
}

/// Runs failovers under load. With a synchronous standby nothing that was acknowledged is lost.
/// Without one, the last changes before each failover are, and only those.
pub async fn run(is_synchronous: bool, scale: Scale) -> Figures {
    let rounds = scale.pick(1, 8);
    let revocations = scale.pick(8, 40);
    let mut primary = Server::start_primary().await;
    let mut replication = Proxy::start(primary.port()).await;
    let mut standby = primary.start_standby(STANDBY, replication.port()).await;
    if is_synchronous {
        primary.require_standby(STANDBY).await;
    }
    let deployment = Deployment::start(&primary, &[]).await;
    let credentials = deployment.obtain_tokens(OLD_CREDENTIALS).await;
    let load = CredentialLoad::start(&deployment, 3, credentials);
    let recorder = deployment.recorder.clone();
    let mut failovers = Vec::new();
    let mut losses = Losses::default();
    for round in 0..rounds {
        wait_for_revocations(&recorder, revocations).await;
        let cut = recorder.now();
        if !is_synchronous {
            replication.set_mode(ProxyMode::Hang);
            wait_for_revocations(&recorder, 1).await;
        }
        let killed = recorder.now();
        primary.kill().await;
        standby.promote().await;
        let promoted = recorder.now();
        for proxy in &deployment.proxies {
            proxy.redirect(standby.port());
            proxy.cut_connections();
            // Nodes do not find the new primary at the same time.
            sleep(NODE_DELAY).await;
        }
        if !is_synchronous {
            // It starts as another server that no node reaches.
            primary.start().await;
            losses.read(&primary, &standby).await;
        }
        wait_for_revocations(&recorder, revocations / 2).await;
        failovers.push(Failover { cut, killed, promoted, recovered: recorder.now() });
        primary = standby;
        if round + 1 == rounds {
            break;
        }
        replication = Proxy::start(primary.port()).await;
        standby = primary.start_standby(STANDBY, replication.port()).await;
        if is_synchronous {
            primary.require_standby(STANDBY).await;
        }
    }
    let [good, revoked] = load.finish().await;
    deployment.observe(&[good, revoked].concat(), Duration::ZERO).await;
    // An event that an old primary had was written, but it may not be on the new one.
    let earlier = losses.events.clone();
    let (mut history, events) = deployment.finish_after(earlier, &[&primary]).await;
    for failover in failovers.iter().filter(|_| !is_synchronous) {
        losses.mark(&mut history, failover);
    }
    let kept = read_events(&mut primary.connect().await).await;
    let lost_events = losses.events.keys().filter(|request| !kept.contains_key(request)).count();
    let remark = describe(is_synchronous, &history, failovers.len(), lost_events);
    let faults: Vec<_> = failovers.iter().map(|it| (it.killed, it.recovered, true)).collect();
    let longest = longest_recovery(&history, &faults);
    let title = if is_synchronous {
        "promotion of a synchronous standby under load"
    } else {
        "promotion of an asynchronous standby under load"
    };
    Figures::of(title, &history, Some(&events), Recovery::from(longest)).with_remark(remark)
}

async fn wait_for_revocations(recorder: &Recorder, count: usize) {
    let goal = recorder.count(is_revocation) + count;
    wait_for("keys are revoked", async || recorder.count(is_revocation) >= goal).await;
}

fn describe(
    is_synchronous: bool,
    history: &History,
    failovers: usize,
    lost_events: usize,
) -> String {
    let revocations = history.operations.iter().filter(|it| is_revocation(it)).count();
    let [keys, sessions, grants] = history.count_kinds();
    let counts = format!(
        "{failovers} failovers; {revocations} revocations of {keys} keys, {sessions} sessions and \
         {grants} grants"
    );
    if is_synchronous {
        return counts;
    }
    let lost = history.undecided.len();
    format!(
        "{counts}; lost with the old primaries, as documented: changes of {lost} credentials and \
         {lost_events} events"
    )
}

/// Changes that the promoted servers lack, because the old primaries died before they sent them.
#[derive(Default)]
struct Losses {
    /// The number of events of each request on the old primaries.
    events: HashMap<Uuid, i64>,
    /// Keys that exist or are revoked on an old primary, and not on the new one.
    keys: HashSet<Uuid>,
}

impl Losses {
    /// Compares an old primary with the promoted one.
    async fn read(&mut self, old: &Server, new: &Server) {
        let (mut old, mut new) = (old.connect().await, new.connect().await);
        self.events.extend(read_events(&mut old).await);
        let sql = "SELECT id, revoked_at IS NOT NULL FROM api_keys";
        let mut keys = Vec::new();
        for connection in [&mut old, &mut new] {
            let rows: Vec<(Uuid, bool)> = sqlx::query_as(sql).fetch_all(connection).await.unwrap();
            keys.push(rows.into_iter().collect::<HashMap<_, _>>());
        }
        let is_lost = |(id, was_revoked): &(&Uuid, &bool)| {
            keys[1].get(id).is_none_or(|is_revoked| **was_revoked && !is_revoked)
        };
        self.keys.extend(keys[0].iter().filter(is_lost).map(|(id, _)| id));
    }

    /// Marks the credentials whose state is unknown since a failover: the keys that differ, and the
    /// sessions and grants that changed while the standby was cut off.
    fn mark(&self, history: &mut History, failover: &Failover) {
        let lost: Vec<CredentialId> = history
            .operations
            .iter()
            .filter(|operation| operation.action != Action::Use)
            .filter(|operation| {
                operation.ended >= failover.cut && operation.began <= failover.promoted
            })
            .filter_map(|operation| operation.target)
            .filter(|credential| self.is_lost(history, *credential))
            .collect();
        for credential in lost {
            history.undecided.entry(credential).or_insert(failover.killed);
        }
    }

    fn is_lost(&self, history: &History, credential: CredentialId) -> bool {
        match history.paths.get(&credential).and_then(|path| path.strip_prefix("/v1/api-keys/")) {
            Some(key) => self.keys.contains(&id::parse("key", key).unwrap()),
            None => true,
        }
    }
}

/// The generation of the invalidations falls with the promotion and rises to the same number again,
/// while a node that has applied the lost one is cut off.
pub async fn run_with_lost_generation(scale: Scale) -> Figures {
    let mut primary = Server::start_primary().await;
    let replication = Proxy::start(primary.port()).await;
    let standby = primary.start_standby(STANDBY, replication.port()).await;
    let deployment = Deployment::start(&primary, &[]).await;
    let keys = deployment.create_keys(4).await;
    let [lost, revoked, good @ ..] = &keys[..] else { unreachable!("four keys exist") };
    replication.set_mode(ProxyMode::Hang);
    assert!(deployment.revoke(0, lost).await);
    let [a, b] = &deployment.proxies[..] else { unreachable!("each node has a proxy") };
    b.set_mode(ProxyMode::Refuse);
    let fault = deployment.recorder.now();
    primary.kill().await;
    standby.promote().await;
    deployment.redirect(&standby);
    a.cut_connections();
    let is_committed = async {
        let mut connection = standby.connect().await;
        let sql = "SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL";
        wait_for("the revocation is committed", async || {
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut connection).await.unwrap() > 0
        })
        .await;
        b.set_mode(ProxyMode::Pass);
    };
    tokio::join!(deployment.revoke(0, revoked), is_committed);
    let observed = [slice::from_ref(revoked), good].concat();
    deployment
        .observe(&observed, scale.pick(Duration::from_secs(3), Duration::from_secs(30)))
        .await;
    let has_recovered = deployment.wait_until_recovered().await;
    primary.start().await;
    let (mut history, events) = deployment.finish(&[&primary, &standby]).await;
    history.undecided.insert(lost.id, fault);
    let recovery = recovery_time(&history, fault, Duration::MAX).filter(|_| has_recovered);
    let title = "promotion of an asynchronous standby that lacks a revocation";
    Figures::of(title, &history, Some(&events), Recovery::from(recovery))
        .with_remark("one revocation is lost, as documented; the next one must hold")
}
