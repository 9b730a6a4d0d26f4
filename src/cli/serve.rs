//! `call2me-auth serve`.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::{app::Application, config::Settings, env::Env};

pub(super) async fn run(settings: Settings) -> Result<(), String> {
    let listener = listen(settings.server.address, "server.address").await?;
    let travels_in_the_clear = settings.server.public_url.starts_with("http://");
    let application = Application::build(settings, Env::system()).await?;
    if travels_in_the_clear {
        // RFC 8414, section 2; OAuth 2.1, section 1.5. A proxy may be to come, or this a trial.
        tracing::warn!(
            "server.public_url is not https: passwords, tokens and consent travel in the clear"
        );
    }
    let stop = super::stop_signal()?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving");
    }
    application.serve(listener, stop).await
}

/// Binds the address before anything slow starts, so that one in use is reported at once. `setting` names what to
/// change then.
pub(super) async fn listen(address: SocketAddr, setting: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("{address} is in use by another process: choose another one with {setting}")
        }
        _ => format!("cannot listen on {address}: {error}"),
    })
}
