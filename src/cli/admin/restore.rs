//! `call2me-auth admin restore`: the quarantine after a restore of the database, and its end.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

use super::{checkpoint_file, describe};
use crate::{
    app::Application,
    auth::restore::{RestoreKind, RestoreOptions},
    model::{id::WorkspaceId, restore::RevocationList},
};

/// Commands for a restore of the database.
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Put the database in quarantine: every node answers 503 until the restore is finished. Run it
    /// after a base backup was restored, before nodes start; a restored dump is in quarantine by
    /// itself.
    Begin,
    /// Print whether the database is in quarantine, and why.
    Status,
    /// Revoke again what was revoked after the backup, end all sessions, and lift the quarantine.
    /// One transaction: if it fails, nothing is changed, and it can be repeated.
    Finish(FinishArgs),
}

/// The arguments of `restore finish`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(group(ArgGroup::new("kind").required(true).multiple(true)))]
pub struct FinishArgs {
    /// File with what was revoked after the backup: ids, one on each line, or an audit export
    /// (NDJSON). Write an export as `ws_…=FILE`: only then the removals of members in it are
    /// repeated. May be repeated.
    #[arg(long, value_name = "[WORKSPACE=]FILE", group = "kind")]
    revocations: Vec<RevocationFile>,
    /// Nothing was revoked after the backup. Sessions, links and codes end nevertheless.
    #[arg(long, group = "kind", conflicts_with_all = ["revocations", "nothing_was_lost"])]
    nothing_was_revoked: bool,
    /// The database was moved while all nodes were stopped, as to another version of PostgreSQL.
    /// Nothing ends.
    #[arg(long, group = "kind", conflicts_with = "revocations")]
    nothing_was_lost: bool,
    /// File with checkpoints from before the restore, to count the events that the audit log lacks.
    /// May be repeated.
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// Do not disconnect apps whose refresh token rotates. A refresh token that was replaced after
    /// the backup is valid again then.
    #[arg(long)]
    keep_oauth_grants: bool,
    /// Change nothing, and print what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// A file of revocations and, for an audit export, its workspace.
#[derive(Debug, Clone)]
struct RevocationFile {
    workspace: Option<WorkspaceId>,
    path: PathBuf,
}

impl From<OsString> for RevocationFile {
    fn from(argument: OsString) -> Self {
        let parts = argument.to_str().and_then(|text| text.split_once('='));
        match parts.and_then(|(workspace, path)| Some((workspace.parse().ok()?, path))) {
            Some((workspace, path)) => Self { workspace: Some(workspace), path: path.into() },
            None => Self { workspace: None, path: argument.into() },
        }
    }
}

pub(super) async fn run(
    application: &Application,
    command: RestoreCommand,
) -> Result<Value, String> {
    match command {
        RestoreCommand::Begin => {
            application.begin_restore().await?;
            status(application).await
        }
        RestoreCommand::Status => status(application).await,
        RestoreCommand::Finish(args) => {
            let report = application.finish_restore(options(application, args)?).await?;
            serde_json::to_value(report).map_err(|error| error.to_string())
        }
    }
}

async fn status(application: &Application) -> Result<Value, String> {
    let reason = application.app().store.check_quarantine().await.map_err(describe)?;
    Ok(json!({ "in_quarantine": reason.is_some(), "reason": reason }))
}

fn options(application: &Application, args: FinishArgs) -> Result<RestoreOptions, String> {
    let FinishArgs { revocations, nothing_was_lost, keep_oauth_grants, dry_run, .. } = args;
    let mut checkpoints = Vec::new();
    for path in args.checkpoints {
        let verifier = &application.app().auth.checkpoints;
        checkpoints.extend(checkpoint_file::read(verifier, &path)?);
    }
    let mut list = RevocationList::default();
    for RevocationFile { workspace, path } in revocations {
        let at = path.display();
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|error| format!("cannot read {at}: {error}"))?;
        let count = list.add_file(&text, workspace).map_err(|error| format!("{at}: {error}"))?;
        if count == 0 {
            return Err(format!(
                "{at} is empty: if nothing was revoked, say --nothing-was-revoked"
            ));
        }
    }
    let kind =
        if nothing_was_lost { RestoreKind::Move } else { RestoreKind::Backup(Box::new(list)) };
    Ok(RestoreOptions { kind, checkpoints, keep_oauth_grants, dry_run })
}
