//! Rights, tables or functions are missing for a while, as in the middle of a restore or after a
//! migration to another version.

use std::time::Duration;

use tokio::time::sleep;

use super::{Scale, deployment::Deployment, figures::Figures, load::CredentialLoad};
use crate::faults::fixture::Server;

/// A damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The right to write events.
    Right,
    /// The table of events.
    EventTable,
    /// The function that writes events.
    Function,
    /// The table of API keys.
    KeyTable,
}

impl Damage {
    /// Returns the title, the statement that causes the damage, and the one that repairs it.
    fn statements(self) -> [&'static str; 3] {
        match self {
            Self::Right => [
                "the right to write events is missing",
                "REVOKE EXECUTE ON FUNCTION append_audit_events FROM call2me_auth_app",
                "GRANT EXECUTE ON FUNCTION append_audit_events TO call2me_auth_app",
            ],
            Self::EventTable => [
                "the table of events is missing",
                "ALTER TABLE audit_events RENAME TO audit_events_away",
                "ALTER TABLE audit_events_away RENAME TO audit_events",
            ],
            Self::Function => [
                "the function that writes events is missing",
                "ALTER FUNCTION append_audit_events RENAME TO append_audit_events_away",
                "ALTER FUNCTION append_audit_events_away RENAME TO append_audit_events",
            ],
            Self::KeyTable => [
                "the table of API keys is missing",
                "ALTER TABLE api_keys RENAME TO api_keys_away",
                "ALTER TABLE api_keys_away RENAME TO api_keys",
            ],
        }
    }
}

/// Runs the scenario under load.
pub async fn run(damage: Damage, scale: Scale) -> Figures {
    let server = Server::start_primary().await;
    let deployment = Deployment::start(&server, &[]).await;
    let load = CredentialLoad::start(&deployment, 3, Vec::new());
    sleep(Duration::from_secs(1)).await;
    let [title, cause, repair] = damage.statements();
    let fault = deployment.recorder.now();
    server.execute(cause).await;
    sleep(scale.pick(Duration::from_secs(3), Duration::from_secs(10))).await;
    server.execute(repair).await;
    load.finish_scenario(title, &deployment, &server, fault).await
}
