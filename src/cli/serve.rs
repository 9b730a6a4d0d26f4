//! `call2me-auth serve`: runs the service in production.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::{app::Application, config::Settings, env::Env};

pub(super) async fn run(settings: Settings) -> Result<(), String> {
    let listener = bind(settings.server.address, "server.address").await?;
    let is_unencrypted = settings.server.public_url.starts_with("http://");
    let application = Application::build(settings, Env::system()).await?;
    if let Err(message) = application.check_clock() {
        Box::pin(application.shut_down()).await;
        return Err(message);
    }
    if is_unencrypted {
        // RFC 8414, section 2, and OAuth 2.1, section 1.5, require https. Only a warning, since
        // this may be a trial, or TLS may be added by a proxy later.
        tracing::warn!("server.public_url is not https: passwords and tokens are sent unencrypted");
    }
    let stop = super::stop_signal()?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving");
    }
    // Boxed: the future would hold the application twice.
    Box::pin(application.serve(listener, stop)).await
}

/// Binds the address before anything slow starts, so that an address in use is reported at once.
/// `setting` is the setting or flag that the message suggests to change.
pub(super) async fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("{address} is in use by another process: choose another one with {setting}")
        }
        _ => format!("cannot listen on {address}: {error}"),
    })
}
