use std::{sync::Arc, time::Duration};

use call2me_auth::{
    env::Env,
    model::id::{Id as _, RequestId},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{Action, CredentialId, Operation, Recorder, Reply};
use crate::{
    faults::fixture::Node,
    fixture::{
        Browser, PASSWORD, TestRequest, TestResponse,
        oauth::{OAuthClient, OAuthExt as _, decode_claims, encode_form},
    },
};

/// The longest time that a client waits for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause between two attempts of one operation.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// An API key, a session or a grant, as its holder knows it.
#[derive(Debug, Clone)]
pub struct Credential {
    pub id: CredentialId,
    /// The key or the access token.
    pub secret: String,
    /// The path whose DELETE revokes it.
    pub path: String,
    refresh: Option<RefreshToken>,
}

/// A refresh token.
#[derive(Debug, Clone)]
struct RefreshToken {
    token: String,
    /// The client of a grant; `None` for a session.
    client: Option<OAuthClient>,
    /// True if the token may have been used: the outcome of a request with it is unknown.
    is_used: bool,
}

/// A client of one node that records its requests.
#[derive(Clone)]
pub struct Client {
    recorder: Arc<Recorder>,
    /// The index of the node.
    node: usize,
    http: reqwest::Client,
    url: String,
}

/// The parties of an operation, before its target is known.
struct Attempt {
    action: Action,
    presented: Option<CredentialId>,
    target: Option<CredentialId>,
    /// False if the request need not have an event of its own.
    has_event: bool,
}

impl Client {
    /// Creates a client of the node with this index.
    pub fn new(recorder: &Arc<Recorder>, index: usize, node: &Node) -> Self {
        let (http, url) = (node.http.clone(), node.url.clone());
        Self { recorder: Arc::clone(recorder), node: index, http, url }
    }

    /// Registers a user with a workspace of this name, before the first fault.
    pub async fn sign_up(&self, workspace: &str) -> Credential {
        let body = json!({
            "email": email_of(workspace), "password": PASSWORD, "workspace_name": workspace,
        });
        let began = self.recorder.now();
        // A busy machine may answer 503, and the user may exist then.
        loop {
            let request = self.request("POST", "/v1/auth/register").json(body.clone());
            match request.send().await {
                response if response.status == 201 => {
                    let id = self.recorder.new_credential();
                    self.store_done(Action::Create, id, began);
                    return self.read_tokens(id, "/v1/auth/sessions", &response.body, None);
                }
                response if response.status == 409 => break,
                response => assert_eq!(response.status, 503, "{}", response.text),
            }
            sleep(RETRY_PAUSE).await;
        }
        loop {
            if let Some(session) = self.sign_in(workspace).await {
                return session;
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Signs in the user of this workspace.
    pub async fn sign_in(&self, workspace: &str) -> Option<Credential> {
        let body = json!({ "email": email_of(workspace), "password": PASSWORD });
        let attempt =
            Attempt { action: Action::Create, presented: None, target: None, has_event: true };
        let request = self.request("POST", "/v1/auth/login").json(body);
        let (id, response) = self.create(attempt, request).await?;
        Some(self.read_tokens(id, "/v1/auth/sessions", &response.body, None))
    }

    /// Creates a key.
    pub async fn create_key(&self, by: &Credential, name: &str) -> Option<Credential> {
        let (presented, target) = (Some(by.id), None);
        let attempt = Attempt { action: Action::Create, presented, target, has_event: true };
        let body = json!({ "name": name, "scope": "write" });
        let request = self.request("POST", "/v1/api-keys").bearer(&by.secret).json(body);
        let (id, response) = self.create(attempt, request).await?;
        let path = format!("/v1/api-keys/{}", text(&response.body, "id"));
        self.recorder.store_path(id, &path);
        Some(Credential { id, secret: text(&response.body, "key"), path, refresh: None })
    }

    /// Obtains a grant on the consent page of a node that works.
    pub async fn obtain_grant(
        &self,
        node: &Node,
        browser: &mut Browser<'_>,
        client: &OAuthClient,
    ) -> Credential {
        let began = self.recorder.now();
        let tokens = node.obtain_tokens(browser, client, &[]).await;
        let id = self.recorder.new_credential();
        self.store_done(Action::Create, id, began);
        self.read_tokens(id, "/v1/oauth/grants", &tokens, Some(client.clone()))
    }

    /// Presents a credential.
    pub async fn use_credential(&self, credential: &Credential) -> Reply {
        let presented = Some(credential.id);
        let attempt = Attempt { action: Action::Use, presented, target: None, has_event: true };
        let request = self.request("GET", "/v1/auth/verify").bearer(&credential.secret);
        self.send(attempt, request).await.0
    }

    /// Lists agents, which reads PostgreSQL.
    pub async fn read(&self, credential: &Credential) -> Reply {
        let presented = Some(credential.id);
        let attempt = Attempt { action: Action::Use, presented, target: None, has_event: true };
        let request = self.request("GET", "/v1/agents").bearer(&credential.secret);
        self.send(attempt, request).await.0
    }

    /// Creates an agent, which writes to PostgreSQL.
    pub async fn write(&self, credential: &Credential) -> Reply {
        let presented = Some(credential.id);
        let attempt = Attempt { action: Action::Create, presented, target: None, has_event: true };
        let body = json!({ "agent_name": "Front desk" });
        let request = self.request("POST", "/v1/agents").bearer(&credential.secret).json(body);
        self.send(attempt, request).await.0
    }

    /// Refreshes a session or grant, and stores its new tokens.
    pub async fn refresh(&self, credential: &mut Credential) -> Reply {
        let refresh = credential.refresh.as_mut().unwrap();
        let id = Some(credential.id);
        let has_event = !refresh.is_used && refresh.client.is_none();
        let attempt = Attempt { action: Action::Refresh, presented: id, target: id, has_event };
        let request = match &refresh.client {
            None => {
                let body = json!({ "refresh_token": refresh.token });
                self.request("POST", "/v1/auth/refresh").json(body)
            }
            Some(client) => {
                let fields = [("grant_type", "refresh_token"), ("refresh_token", &*refresh.token)];
                let form = encode_form(&client.with_client_credentials(&fields));
                self.request("POST", "/oauth/token").body("application/x-www-form-urlencoded", form)
            }
        };
        let (reply, response) = self.send(attempt, request).await;
        refresh.is_used = reply.is_unknown();
        if let Some(response) = response.filter(|_| reply == Reply::Accepted) {
            refresh.token = text(&response.body, "refresh_token");
            credential.secret = text(&response.body, "access_token");
        }
        reply
    }

    /// Revokes a key, or ends a session or grant, with another attempt after each 503. True if it
    /// was acknowledged within `limit`.
    pub async fn revoke(&self, by: &Credential, target: &Credential, limit: Duration) -> bool {
        let started = Instant::now();
        let mut has_event = true;
        while started.elapsed() < limit {
            let attempt = Attempt {
                action: Action::Revoke,
                presented: Some(by.id),
                target: Some(target.id),
                has_event,
            };
            let request = self.request("DELETE", &target.path).bearer(&by.secret);
            let rest = limit.saturating_sub(started.elapsed());
            match self.send_within(rest.min(RESPONSE_TIMEOUT), attempt, request).await.0 {
                Reply::Accepted => return true,
                Reply::Unavailable | Reply::Missing => sleep(RETRY_PAUSE).await,
                // The checker reports it.
                Reply::Refused | Reply::Other(_) => return false,
            }
            // A second revocation changes nothing, so it has no event of its own.
            has_event = false;
        }
        false
    }

    /// Reads the credential of a session or grant. `folder` is the path of all of its kind.
    fn read_tokens(
        &self,
        id: CredentialId,
        folder: &str,
        tokens: &Value,
        client: Option<OAuthClient>,
    ) -> Credential {
        let secret = text(tokens, "access_token");
        let path = format!("{folder}/{}", text(&decode_claims(&secret), "sid"));
        self.recorder.store_path(id, &path);
        let token = text(tokens, "refresh_token");
        let refresh = Some(RefreshToken { token, client, is_used: false });
        Credential { id, secret, path, refresh }
    }

    /// Stores a credential whose refresh token was replaced as one of its own, which is revoked.
    pub fn store_superseded(&self, credential: &Credential) -> Credential {
        let id = self.recorder.new_credential();
        for action in [Action::Create, Action::Revoke] {
            self.store_done(action, id, self.recorder.now());
        }
        Credential { id, ..credential.clone() }
    }

    /// Stores an operation that has succeeded and needs no event of its own.
    fn store_done(&self, action: Action, id: CredentialId, began: Duration) {
        self.recorder.store(Operation {
            action,
            presented: None,
            target: Some(id),
            node: self.node,
            began,
            ended: self.recorder.now(),
            reply: Reply::Accepted,
            request_id: None,
        });
    }

    fn request(&self, method: &str, path: &str) -> TestRequest {
        TestRequest::new(&self.http, &self.url, method, path)
    }

    /// Sends a request that creates a credential.
    async fn create(
        &self,
        attempt: Attempt,
        request: TestRequest,
    ) -> Option<(CredentialId, TestResponse)> {
        let id = self.recorder.new_credential();
        let (reply, response) = self.send(Attempt { target: Some(id), ..attempt }, request).await;
        response.filter(|_| reply == Reply::Accepted).map(|response| (id, response))
    }

    async fn send(&self, attempt: Attempt, request: TestRequest) -> (Reply, Option<TestResponse>) {
        self.send_within(RESPONSE_TIMEOUT, attempt, request).await
    }

    async fn send_within(
        &self,
        limit: Duration,
        attempt: Attempt,
        request: TestRequest,
    ) -> (Reply, Option<TestResponse>) {
        let request_id: RequestId = Env::system().new_id();
        let request = request.header("x-request-id", &request_id.to_string());
        let began = self.recorder.now();
        let response = timeout(limit, request.try_send()).await.ok().and_then(Result::ok);
        let reply = response.as_ref().map_or(Reply::Missing, reply_of);
        let Attempt { action, presented, target, has_event } = attempt;
        self.recorder.store(Operation {
            action,
            presented,
            target,
            node: self.node,
            began,
            ended: self.recorder.now(),
            reply,
            request_id: has_event.then(|| request_id.uuid()),
        });
        (reply, response)
    }
}

impl Credential {
    /// Returns the path of the credential in the API.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the credential for a second request with its refresh token.
    pub fn as_retry(&self) -> Self {
        let mut retry = self.clone();
        retry.refresh.as_mut().unwrap().is_used = true;
        retry
    }

    /// True for sessions and grants.
    pub fn can_refresh(&self) -> bool {
        self.refresh.is_some()
    }
}

fn email_of(workspace: &str) -> String {
    format!("owner@{workspace}.example")
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}")).to_owned()
}

fn reply_of(response: &TestResponse) -> Reply {
    match response.status.as_u16() {
        200..=299 => Reply::Accepted,
        401 => Reply::Refused,
        400 if response.body["error"] == "invalid_grant" => Reply::Refused,
        503 => Reply::Unavailable,
        status => Reply::Other(status),
    }
}
