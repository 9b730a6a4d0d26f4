//! The command line: parses the arguments, reads the configuration and runs the command.
//!
//! An error is one line on standard error and a nonzero exit code; see [`CommandError`].

pub mod admin;
pub mod dev;
mod serve;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use secrecy::ExposeSecret;

use crate::{
    config::{ConfigFiles, Profile, RawConfig, Settings},
    http::openapi,
    store::migrate,
    telemetry,
};

/// The authentication service of a voice-AI platform.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Folder of `default.toml` and `<profile>.toml`; by default `config`, if it exists.
    #[arg(long, global = true, value_name = "DIR")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run with a private PostgreSQL and a demo workspace, for evaluation and development.
    Dev(dev::DevArgs),
    /// Run in production.
    Serve,
    /// Migrate the database schema to this version.
    Migrate,
    /// Print the OpenAPI document.
    Openapi,
    /// Print the configuration and the source of each setting, with secrets redacted.
    Config,
    /// Administer users, workspaces, keys, clients and the audit log.
    #[command(subcommand)]
    Admin(admin::AdminCommand),
}

/// The error of a command, to print before the process exits.
#[derive(Debug)]
pub struct CommandError {
    /// The message for the operator, one line.
    pub message: String,
    /// The process's exit code.
    pub code: u8,
}

impl From<String> for CommandError {
    /// Wraps an error that the operator can fix, such as an invalid setting, a port in use or an
    /// unavailable database; the exit code is 2.
    fn from(line: String) -> Self {
        Self { message: line, code: 2 }
    }
}

/// Runs the command of the process's arguments.
///
/// # Errors
/// [`CommandError`] with a message for the operator and the exit code.
pub fn run() -> Result<(), CommandError> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<(), CommandError> {
    let profile = match cli.command {
        Command::Dev(_) => Profile::Development,
        _ => Profile::Production,
    };
    let files = cli
        .config
        .as_deref()
        .map_or(ConfigFiles::Optional(Path::new("config")), ConfigFiles::Required);
    let raw = RawConfig::read(profile, files, std::env::vars_os());
    match cli.command {
        Command::Dev(args) => {
            raw.check_sources().map_err(|problems| problems.to_string())?;
            Ok(Box::pin(dev::run(args, raw)).await?)
        }
        Command::Serve => Ok(serve::run(validate_settings(&raw)?).await?),
        Command::Migrate => {
            let database = raw.check_database().map_err(|problems| problems.to_string())?;
            let url = database.owner_url.as_ref().unwrap_or(&database.url);
            Ok(migrate::migrate(url.expose_secret()).await?)
        }
        Command::Openapi => {
            raw.check_sources().map_err(|problems| problems.to_string())?;
            let url = raw.text("server.public_url").unwrap_or("http://127.0.0.1:8080");
            let json =
                openapi::build_document(url).to_pretty_json().map_err(|error| error.to_string())?;
            print(&format!("{json}\n"));
            Ok(())
        }
        Command::Config => {
            print(&raw.describe());
            Ok(validate_settings(&raw).map(drop)?)
        }
        Command::Admin(command) => Box::pin(admin::run(command, validate_settings(&raw)?)).await,
    }
}

fn validate_settings(raw: &RawConfig) -> Result<Settings, String> {
    let settings = raw.check().map_err(|problems| problems.to_string())?;
    telemetry::init(&settings.log);
    Ok(settings)
}

/// Writes to standard output. A closed pipe is not an error.
fn print(text: &str) {
    use std::io::Write as _;
    std::io::stdout().write_all(text.as_bytes()).ok();
}

/// Installs handlers for SIGINT and SIGTERM. The returned future completes on the first signal.
///
/// Call it before the service announces that it is running: from then on a signal must lead to a
/// graceful shutdown.
///
/// # Errors
/// A message for the operator if a handler cannot be installed.
fn stop_signal() -> Result<impl Future<Output = ()>, String> {
    use tokio::signal::unix::{SignalKind, signal};
    let install =
        |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut terminate = install(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
