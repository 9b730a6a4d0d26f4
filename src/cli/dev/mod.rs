//! `call2me-auth dev`: runs the service with a private PostgreSQL and a demo workspace, for
//! evaluation and development.
//!
//! All data is in one folder (`folder.rs`). The service connects as its own role and cannot become
//! the owner of the tables, as in production.

mod demo;
mod files;
mod folder;
pub mod postgres;

use std::{net::Ipv4Addr, path::PathBuf};

use clap::Args;
use secrecy::ExposeSecret;
use toml::Value;

use self::{demo::Demo, folder::DataFolder, postgres::Postgres};
use super::serve::bind;
use crate::{app::Application, config::RawConfig, env::Env, store};

/// Name of the database in the private PostgreSQL.
const DATABASE: &str = "call2me";

/// The arguments of `call2me-auth dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Port of the API on 127.0.0.1; 0 picks a free port.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Folder of the database, keys and demo credentials.
    #[arg(long, default_value = ".call2me", value_name = "DIR")]
    data_dir: PathBuf,
}

pub(super) async fn run(args: DevArgs, mut raw: RawConfig) -> Result<(), String> {
    let env = Env::system();
    let listener = bind((Ipv4Addr::LOCALHOST, args.port).into(), "--port").await?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let folder = DataFolder::open(&args.data_dir, &env)?;
    let postgres = {
        let (path, password) = (folder.path().to_owned(), folder.database_password().clone());
        let start = move || Postgres::start(&path, &password, true);
        tokio::task::spawn_blocking(start).await.map_err(|error| error.to_string())??
    };
    let maintenance = postgres.url("postgres");
    store::migrate::create_database(maintenance.expose_secret(), DATABASE).await?;
    let owner = postgres.url(DATABASE);
    store::migrate::migrate(owner.expose_secret()).await?;
    // As in production: the service connects as its own role, and cannot become the owner.
    let password = folder.database_password();
    store::migrate::enable_app_role_login(owner.expose_secret(), password).await?;
    let url = postgres.url_for(store::APP_ROLE, DATABASE);
    let public_url = format!("http://{address}");
    for (key, value) in [
        ("database.url", url.expose_secret()),
        ("database.owner_url", owner.expose_secret()),
        ("server.address", &address.to_string()),
        ("server.public_url", &public_url),
        ("keys.encryption_key", folder.encryption_key().expose_secret()),
    ] {
        raw.set(key, Value::String(value.to_owned()), "call2me-auth dev");
    }
    let application = Application::build(super::validate_settings(&raw)?, env.clone()).await?;
    let demo = Demo::prepare(&application, &folder, &env).await?;
    let stop = super::stop_signal()?;
    super::print(&welcome(&public_url, &demo, owner.expose_secret(), &folder));
    let outcome = application.serve(listener, stop).await;
    // Dropping it stops the server, which blocks for a moment.
    tokio::task::spawn_blocking(move || drop(postgres)).await.ok();
    outcome
}

fn welcome(public_url: &str, demo: &Demo, database_url: &str, folder: &DataFolder) -> String {
    let Demo { email, password, api_key } = demo;
    format!(
        "\n\
         call2me-auth is running at  {public_url}\n\
         API reference               {public_url}/docs\n\
         Demo sign-in                {email} / {password}\n\
         API key (admin)             {api_key}\n\
         Database                    {database_url}\n\
         Data folder                 {}\n\
         \n\
         Try it:\n\
         \n  curl -s -H 'Authorization: Bearer {api_key}' {public_url}/v1/agents\n\
         \n\
         Press Ctrl-C to stop. All data is kept.\n\n",
        folder.path().display(),
        password = password.expose_secret(),
        api_key = api_key.expose_secret(),
    )
}
