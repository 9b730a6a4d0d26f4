//! A service with the demo workspace of `./scripts/dev`, and a shell next to it.

use std::{fs, path::Path};

use serde_json::json;

use super::shell::Shell;
use crate::fixture::{ENCRYPTION_KEY, TestApp};

/// The address of the service in documents.
pub const DOCUMENTED_URL: &str = "http://127.0.0.1:8080";

const EMAIL: &str = "demo@call2me.example";
const PASSWORD: &str = "a walk in the park";

/// A running service whose time stands still unless a command sleeps.
pub struct DemoService {
    pub app: TestApp,
    pub shell: Shell,
}

impl DemoService {
    /// Starts a service with these settings. Its shell also has what the `admin` commands need.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        // Some documented clients read the system's clock.
        let app = TestApp::start_at_system_time(settings).await;
        let mut shell = Shell::start(&[
            ("DATABASE_URL", &app.database.url),
            ("OWNER_URL", &app.database.url),
            ("CALL2ME_AUTH__SERVER__PUBLIC_URL", &app.url),
            ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", ENCRYPTION_KEY),
            ("CALL2ME_AUTH__LOG__FILTER", "error"),
            ("URL", &app.url),
        ])
        .await;
        shell.replace(DOCUMENTED_URL, &app.url);
        shell.clock = Some(app.clock.clone());
        let service = Self { app, shell };
        service.create_workspace().await;
        service
    }

    async fn create_workspace(&self) {
        let user = json!({
            "email": EMAIL, "password": PASSWORD, "full_name": "Dana Demo",
            "workspace_name": "Acme Voice",
        });
        let request = self.app.post("/v1/auth/register").json(user);
        let session = request.send().await.expect_status(201);
        let session = session["access_token"].as_str().unwrap();
        for name in ["Front desk", "Randevu asistanı", "Delivery updates"] {
            let request = self.app.post("/v1/agents").bearer(session);
            request.json(json!({ "agent_name": name })).send().await.expect_status(201);
        }
        let request = self.app.post("/v1/api-keys").bearer(session);
        let request = request.json(json!({ "name": "demo", "scope": "admin" }));
        let key = request.send().await.expect_status(201);
        write_credentials(self.shell.path(), key["key"].as_str().unwrap());
    }
}

/// Writes the file that `dev` writes.
fn write_credentials(folder: &Path, key: &str) {
    fs::create_dir(folder.join(".call2me")).unwrap();
    let text = format!("email = \"{EMAIL}\"\npassword = \"{PASSWORD}\"\napi_key = \"{key}\"\n");
    fs::write(folder.join(".call2me/demo.toml"), text).unwrap();
}
