//! The database is restored to a time before revocations were answered. Nothing that was revoked
//! since then works again: the nodes answer 503 until the operator has finished the restore.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Scale,
    deployment::{Deployment, SETTINGS, wait_for},
    figures::{Figures, Recovery},
};
use crate::faults::{
    fixture::{Server, run_admin_command},
    histories::{Credential, Reply},
};

/// The kind of backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backup {
    /// `pg_dump`, into a new database of the same name.
    Dump,
    /// `pg_basebackup`, with the end of recovery as after a restore from an archive.
    BaseOnNewTimeline,
    /// `pg_basebackup`, started as it is.
    BaseOnSameTimeline,
}

/// The state of the nodes during the restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// They run all the time.
    Running,
    /// They are stopped before and started afterwards.
    Restarted,
}

/// Runs the scenario.
pub async fn run(backup: Backup, nodes: Nodes, scale: Scale) -> Figures {
    let mut server = Server::start_primary().await;
    let mut deployment = Deployment::start(&server, &[]).await;
    let keys = deployment.create_keys(scale.pick(4, 20)).await;
    let tokens = deployment.obtain_tokens(2).await;
    for credential in &tokens {
        deployment.wait_until_cached(credential).await;
    }
    let file = make_backup(backup, &server).await;
    let (revoked, mut superseded) = revoke_some(&deployment, &keys, &tokens).await;
    // The events before the restore are compared with the old data.
    let (_, old_events) = deployment.finish(&[&server]).await;
    if nodes == Nodes::Restarted {
        for node in &mut deployment.nodes {
            assert!(node.stop().await.success());
        }
    }
    let restored_at = deployment.recorder.now();
    // Nodes would not notice it: the history seems to be that of a standby that was promoted.
    let is_failover_like = backup == Backup::BaseOnNewTimeline;
    deployment.set_database_access(!is_failover_like);
    restore_backup(backup, &mut server, &file).await;
    if nodes == Nodes::Restarted && backup != Backup::Dump || is_failover_like {
        run_admin(&server, &["restore", "begin"]).await;
    }
    deployment.set_database_access(true);
    if nodes == Nodes::Restarted {
        let url = server.node_url();
        deployment.restart_nodes(&url, server.port()).await;
    }
    let observed = [&revoked[..], &keys[keys.len() / 2..]].concat();
    deployment
        .observe(&observed, scale.pick(Duration::from_secs(4), Duration::from_secs(15)))
        .await;
    deployment.clients[0].refresh(&mut superseded).await;
    let finished_at = deployment.recorder.now();
    finish_restore(&server, &revoked).await;
    let good = &keys[keys.len() / 2];
    deployment.wait_until_cached(good).await;
    deployment
        .observe(&observed, scale.pick(Duration::from_secs(2), Duration::from_secs(15)))
        .await;
    deployment.clients[0].refresh(&mut superseded).await;
    let (history, events) = deployment.finish_after(old_events, &[&server]).await;
    let answered = history
        .operations
        .iter()
        .filter(|it| it.began > restored_at && it.ended < finished_at && !it.reply.is_unknown())
        .count();
    let title = title(backup, nodes);
    let figures = Figures::of(title, &history, Some(&events), Recovery::NotMeasured);
    figures.with_remark(format!(
        "{} credentials were revoked and one token was replaced after the backup; {answered} \
         requests were decided between the restore and its end",
        revoked.len()
    ))
}

/// Does what the operator does who knows what was revoked.
async fn finish_restore(server: &Server, revoked: &[Credential]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("revoked.txt");
    let ids = revoked.iter().filter_map(|credential| credential.path.rsplit('/').next());
    std::fs::write(&file, ids.collect::<Vec<_>>().join("\n")).unwrap();
    let arguments = ["restore", "finish", "--revocations", file.to_str().unwrap()];
    run_admin(server, &arguments).await;
}

async fn run_admin(server: &Server, arguments: &[&str]) {
    let (url, owner) = (server.node_url(), server.owner_url());
    let settings = [SETTINGS, &[("database.owner_url", owner.as_str())]].concat();
    run_admin_command(&url, arguments, &settings).await.unwrap();
}

async fn make_backup(backup: Backup, server: &Server) -> PathBuf {
    match backup {
        Backup::Dump => server.dump().await,
        Backup::BaseOnNewTimeline | Backup::BaseOnSameTimeline => server.back_up().await,
    }
}

async fn restore_backup(backup: Backup, server: &mut Server, file: &Path) {
    match backup {
        Backup::Dump => server.restore_dump(file).await,
        Backup::BaseOnNewTimeline => server.restore_backup(file, true).await,
        Backup::BaseOnSameTimeline => server.restore_backup(file, false).await,
    }
}

/// Revokes half of the keys, a session and a grant, and returns them. Refreshes another session,
/// and returns its first refresh token as a credential of its own.
async fn revoke_some(
    deployment: &Deployment,
    keys: &[Credential],
    tokens: &[Credential],
) -> (Vec<Credential>, Credential) {
    let [session, refreshed_session, grant, ..] = tokens else {
        unreachable!("two sessions and two grants exist")
    };
    let mut credentials = keys[..keys.len() / 2].to_vec();
    credentials.extend([session.clone(), grant.clone()]);
    for credential in &credentials {
        assert!(deployment.revoke(0, credential).await);
        deployment.use_on_both(credential).await;
    }
    let mut refreshed = refreshed_session.clone();
    // Twice: the direct predecessor of a token may be used again for a while.
    let mut count = 0;
    wait_for("the session is refreshed", async || {
        let reply = deployment.clients[1].refresh(&mut refreshed).await;
        count += usize::from(reply == Reply::Accepted);
        count == 2
    })
    .await;
    (credentials, deployment.clients[1].store_superseded(refreshed_session))
}

fn title(backup: Backup, nodes: Nodes) -> String {
    let backup = match backup {
        Backup::Dump => "pg_dump",
        Backup::BaseOnNewTimeline => "base backup, new timeline",
        Backup::BaseOnSameTimeline => "base backup, same timeline",
    };
    let nodes = match nodes {
        Nodes::Running => "running",
        Nodes::Restarted => "restarted",
    };
    format!("restore to before revocations, {backup}, nodes {nodes}")
}
