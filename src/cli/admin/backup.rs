//! `call2me-auth admin backup`: checks what a backup of the database depends on.

use std::{fmt::Write as _, path::PathBuf};

use clap::Subcommand;
use data_encoding::HEXLOWER;
use serde_json::json;

use super::{CommandOutput, describe};
use crate::{
    app::Application,
    model::timestamp,
    store::{APP_ROLE, backup::BackupState},
};

/// Commands for backups.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Check that a backup of the database can be restored, and list what to keep beside it. The
    /// exit code is 1 if there is a problem.
    Check {
        /// File to write a signed checkpoint of the audit log of each workspace to, for `admin
        /// restore finish` and `admin audit verify`. Keep it apart from the database.
        #[arg(long, value_name = "FILE")]
        checkpoints: Option<PathBuf>,
    },
}

pub(super) async fn run(
    application: &Application,
    command: BackupCommand,
) -> Result<CommandOutput, String> {
    let BackupCommand::Check { checkpoints } = command;
    let store = &application.app().store;
    let failed = |error| format!("cannot check the database: {}", describe(error));
    let quarantine = store.check_quarantine().await.map_err(failed)?;
    let state = store.inspect_backup().await.map_err(failed)?;
    let keys = store.list_encryption_keys().await.map_err(failed)?;
    let problems = find_problems(&state, quarantine.as_deref());
    let written = match &checkpoints {
        Some(path) => Some(write_checkpoints(application, path).await?),
        None => None,
    };
    let BackupState { schema_version, owner, login, database, last_archived_at, .. } = &state;
    let value = json!({
        "database": database,
        "schema_version": schema_version,
        "wal_archiving": {
            "enabled": state.archives_wal,
            "last_archived_at": last_archived_at.map(timestamp::format),
        },
        "keep_beside_the_backup": {
            "version": env!("CARGO_PKG_VERSION"),
            "encryption_key_ids": keys.iter().map(|id| HEXLOWER.encode(id)).collect::<Vec<_>>(),
            "roles": { "owner": owner, "application": APP_ROLE, "login": login },
            "checkpoints": written,
        },
        "problems": problems,
    });
    Ok(CommandOutput { value, problem: (!problems.is_empty()).then(|| problems.join("; ")) })
}

fn find_problems(state: &BackupState, quarantine: Option<&str>) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(reason) = quarantine {
        problems.push(format!("{reason}: run `call2me-auth admin restore finish` first"));
    }
    if !state.has_partitions {
        problems.push("partitions of the audit log are missing: start a node".to_owned());
    }
    if state.archiving_fails {
        problems.push(
            "PostgreSQL cannot archive its write-ahead log: see its log and pg_stat_archiver"
                .to_owned(),
        );
    }
    problems
}

/// Writes a checkpoint of each workspace, one on each line. Returns their number.
async fn write_checkpoints(application: &Application, path: &PathBuf) -> Result<usize, String> {
    let app = application.app();
    let mut text = String::new();
    let workspaces = app.store.audited_workspaces().await.map_err(describe)?;
    for workspace in &workspaces {
        let signed = app.auth.checkpoints.create_as_operator(*workspace).await;
        let line = serde_json::to_string(&signed.map_err(describe)?);
        writeln!(text, "{}", line.map_err(describe)?).ok();
    }
    std::fs::write(path, text)
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(workspaces.len())
}
