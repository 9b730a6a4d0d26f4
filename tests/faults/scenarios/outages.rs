//! Faults on one PostgreSQL server: it is killed, its connections are, a node is suspended, a table
//! is locked.

use std::time::Duration;

use rustix::process::Signal;
use sqlx::{Connection as _, Executor as _};
use tokio::time::sleep;

use super::{
    Scale,
    deployment::{Deployment, wait_for},
    figures::{Figures, Recovery},
    load::{CredentialLoad, is_revocation},
};
use crate::faults::{fixture::Server, histories::longest_recovery};

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// PostgreSQL is killed and started again.
    Killed,
    /// All connections are terminated, several times.
    Terminated,
    /// A node is suspended for longer than its lease.
    SuspendedNode,
    /// The table of API keys is locked.
    LockedTable,
}

impl Outage {
    fn title(self) -> &'static str {
        match self {
            Self::Killed => "PostgreSQL is killed",
            Self::Terminated => "connections are terminated",
            Self::SuspendedNode => "a node is suspended for longer than its lease",
            Self::LockedTable => "the table of API keys is locked",
        }
    }

    async fn cause(self, server: &mut Server, deployment: &Deployment, scale: Scale) {
        match self {
            Self::Killed => {
                server.kill().await;
                sleep(Duration::from_millis(500)).await;
                server.start().await;
            }
            Self::Terminated => {
                for _ in 0..scale.pick(5, 20) {
                    server
                        .execute(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                             WHERE usename = 'call2me_auth_app' AND random() < 0.5",
                        )
                        .await;
                    sleep(Duration::from_millis(200)).await;
                }
            }
            Self::SuspendedNode => {
                deployment.nodes[1].signal(Signal::STOP);
                sleep(scale.pick(Duration::from_secs(4), Duration::from_secs(8))).await;
                deployment.nodes[1].signal(Signal::CONT);
            }
            Self::LockedTable => {
                let mut connection = server.connect().await;
                let mut transaction = connection.begin().await.unwrap();
                transaction.execute("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await.unwrap();
                sleep(scale.pick(Duration::from_secs(3), Duration::from_secs(20))).await;
                transaction.rollback().await.unwrap();
            }
        }
    }
}

/// Runs the scenario under load, several times in a row.
pub async fn run(outage: Outage, scale: Scale) -> Figures {
    let mut server = Server::start_primary().await;
    let deployment = Deployment::start(&server, &[]).await;
    let credentials = deployment.obtain_tokens(2).await;
    let load = CredentialLoad::start(&deployment, 3, credentials);
    let recorder = deployment.recorder.clone();
    let mut faults = Vec::new();
    for _ in 0..scale.pick(1, 3) {
        let goal = recorder.count(is_revocation) + 10;
        wait_for("keys are revoked", async || recorder.count(is_revocation) >= goal).await;
        let fault = recorder.now();
        outage.cause(&mut server, &deployment, scale).await;
        let has_recovered = deployment.wait_until_recovered().await;
        faults.push((fault, recorder.now(), has_recovered));
    }
    let [good, revoked] = load.finish().await;
    deployment.observe(&[good, revoked].concat(), Duration::ZERO).await;
    let (history, events) = deployment.finish(&[&server]).await;
    let longest = longest_recovery(&history, &faults);
    let revocations = history.operations.iter().filter(|it| is_revocation(it)).count();
    Figures::of(outage.title(), &history, Some(&events), Recovery::from(longest))
        .with_remark(format!("{revocations} revocations"))
}
