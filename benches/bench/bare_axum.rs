//! The server to compare with: axum as its documentation starts it, with one route and a constant
//! JSON body of about the size of a `GET /v1/auth/verify` response. It runs in its own process.

use std::net::Ipv4Addr;

use axum::{Json, Router, routing::get};
use serde_json::{Value, json};

/// The argument that makes this binary that server. The port follows.
pub(crate) const SERVER_ARGUMENT: &str = "--bare-axum";

/// Serves until the process is killed.
pub(crate) fn serve() -> Result<(), String> {
    let port = std::env::args().nth(2).and_then(|port| port.parse::<u16>().ok());
    let port = port.ok_or("the port is missing")?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.map_err(|error| format!("cannot listen: {error}"))?;
        let router = Router::new().route("/v1/auth/verify", get(respond));
        axum::serve(listener, router).await.map_err(|error| error.to_string())
    })
}

async fn respond() -> Json<Value> {
    Json(json!({
        "subject": "key_01jd0zt8q7f7qvs4p2k6x3m9ab",
        "workspace_id": "ws_01jd0zt8q7f7qvs4p2k6x3m9ab",
        "scope": "read-only",
        "key_id": "key_01jd0zt8q7f7qvs4p2k6x3m9ab",
    }))
}
