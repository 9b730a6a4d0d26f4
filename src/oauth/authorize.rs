//! The authorization request, the consent, and the code (OAuth 2.1, section 4.1).

use secrecy::ExposeSecret;
use serde_json::json;
use time::OffsetDateTime;
use url::form_urlencoded;

use super::{Code, OAuth, OAuthError, scope_of};
use crate::{
    audit,
    auth::{AuthError, sessions::own_session},
    model::{
        audit::Action,
        id::{ClientId, GrantId, WorkspaceId},
        oauth::{
            client::{Client, GrantType},
            grant::{CODE_LIFETIME, NewGrant},
            parameters::Parameters,
            pkce::CodeChallenge,
            redirect_uri::{self, Kind},
        },
        one_time_token::Purpose,
        page::Page,
        principal::Caller,
        refresh_token::RefreshSeed,
        scope::Scope,
        workspace::OwnWorkspace,
    },
    store::{self, Tx},
};

/// Grants of one person to one client in one workspace that are used at a time; then the oldest ends.
const MAX_GRANTS: i64 = 50;

/// Workspaces that a person chooses among.
const MAX_CHOICES: i64 = 100;

const SESSION_ENDED: AuthError = AuthError::InvalidCredential("the session has ended");

/// What a client asks of the person, beside consent (`OpenID` Connect Core, section 3.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    /// Nothing: consent that was given before will do.
    Unsaid,
    /// Nothing at all is to be shown.
    None,
    /// To sign in anew.
    Login,
    /// To consent anew.
    Consent,
}

/// A request that may be answered: its client is known, and its answer goes where the client may be sent it.
#[derive(Debug)]
pub struct AuthorizationRequest {
    /// Who asks.
    pub client: Client,
    /// Where the answer goes.
    pub redirect_uri: String,
    /// What comes back with it.
    pub state: Option<String>,
    /// What for.
    pub scope: Scope,
    /// Against which resources.
    pub resources: Vec<String>,
    /// What binds the code to whoever asked for it.
    pub challenge: CodeChallenge,
    /// What is asked of the person.
    pub prompt: Prompt,
    /// The address that the person will sign in with, perhaps.
    pub login_hint: Option<String>,
}

/// Why a request is not answered with a page that asks.
#[derive(Debug)]
pub enum NotAsked {
    /// Nobody knows where an answer may go: the person is told.
    Stay(OAuthError),
    /// The client is told, at this URL.
    Redirect(String),
}

/// An answer under way to the client.
struct Answer<'a> {
    redirect_uri: &'a str,
    state: Option<&'a str>,
    issuer: &'a str,
}

impl Answer<'_> {
    /// The URL of the answer (RFC 6749, section 4.1.2; RFC 9207, section 2).
    fn with(&self, pairs: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(pairs).extend_pairs(self.state.map(|state| ("state", state)));
        let query = query.append_pair("iss", self.issuer).finish();
        let (uri, sign) =
            (self.redirect_uri, if self.redirect_uri.contains('?') { '&' } else { '?' });
        format!("{uri}{sign}{query}")
    }

    fn error(&self, error: OAuthError) -> NotAsked {
        match error {
            OAuthError::Refused { code, description } => NotAsked::Redirect(
                self.with(&[("error", code.as_str()), ("error_description", &description)]),
            ),
            failed @ OAuthError::Failed(_) => NotAsked::Stay(failed),
        }
    }
}

impl OAuth {
    /// Reads an authorization request.
    ///
    /// # Errors
    /// [`NotAsked`].
    pub async fn authorization_request(
        &self,
        parameters: &Parameters,
    ) -> Result<AuthorizationRequest, NotAsked> {
        let (client, redirect_uri) = self.addressee(parameters).await.map_err(NotAsked::Stay)?;
        let state = parameters.get("state").filter(|_| !parameters.is_repeated("state"));
        let answer = Answer { redirect_uri: &redirect_uri, state, issuer: &self.issuer };
        match self.check_request(&client, parameters) {
            Ok((scope, resources, challenge, prompt)) => Ok(AuthorizationRequest {
                state: state.map(str::to_owned),
                login_hint: parameters.get("login_hint").map(str::to_owned),
                client,
                redirect_uri,
                scope,
                resources,
                challenge,
                prompt,
            }),
            Err(error) => Err(answer.error(error)),
        }
    }

    /// Who asks, and where the answer may go.
    async fn addressee(&self, parameters: &Parameters) -> Result<(Client, String), OAuthError> {
        for name in ["client_id", "redirect_uri"] {
            if parameters.is_repeated(name) {
                return Err(OAuthError::request(format!("{name} must not be repeated")));
            }
        }
        let client_id = parameters.get("client_id");
        let client_id = client_id.ok_or_else(|| OAuthError::request("there is no client_id"))?;
        let client = self.resolve_client(client_id).await?;
        let uri = match (parameters.get("redirect_uri"), client.redirect_uris.as_slice()) {
            (Some(given), known) => {
                let is_known = known.iter().any(|known| redirect_uri::is_same(known, given));
                is_known.then(|| given.to_owned())
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        };
        let uri = uri.ok_or_else(|| {
            OAuthError::request("the redirect_uri is none of those that the client has")
        })?;
        Ok((client, uri))
    }

    fn check_request(
        &self,
        client: &Client,
        parameters: &Parameters,
    ) -> Result<(Scope, Vec<String>, CodeChallenge, Prompt), OAuthError> {
        if let Some(fault) = parameters.fault() {
            return Err(OAuthError::request(fault));
        }
        for name in ["request", "request_uri"] {
            if parameters.get(name).is_some() {
                return Err(OAuthError::request(format!("{name} is not supported")));
            }
        }
        match parameters.get("response_type") {
            Some("code") => {}
            Some(_) => {
                let what = "response_type must be code";
                return Err(OAuthError::new(Code::UnsupportedResponseType, what));
            }
            None => return Err(OAuthError::request("there is no response_type")),
        }
        if parameters.get("response_mode").is_some_and(|mode| mode != "query") {
            return Err(OAuthError::request("response_mode must be query"));
        }
        if !client.may(GrantType::AuthorizationCode) {
            let what = "the client is not registered for authorization_code";
            return Err(OAuthError::new(Code::UnauthorizedClient, what));
        }
        if parameters.get("code_challenge_method") != Some("S256") {
            return Err(OAuthError::request("code_challenge_method must be S256"));
        }
        let challenge = parameters.get("code_challenge").and_then(CodeChallenge::parse);
        let challenge = challenge.ok_or_else(|| {
            OAuthError::request("code_challenge must be a SHA-256 in base64url (RFC 7636)")
        })?;
        let scope = client.scope_of(scope_of(parameters)?);
        let resources = self.resources_of(parameters)?;
        Ok((scope, resources, challenge, prompt_of(parameters)?))
    }

    /// The answer that tells the client of an error.
    #[must_use]
    pub fn error_answer(&self, request: &AuthorizationRequest, code: Code, why: &str) -> String {
        self.answer(request).with(&[("error", code.as_str()), ("error_description", why)])
    }

    fn answer<'a>(&'a self, request: &'a AuthorizationRequest) -> Answer<'a> {
        Answer {
            redirect_uri: &request.redirect_uri,
            state: request.state.as_deref(),
            issuer: &self.issuer,
        }
    }

    /// Where the answer to a request would go, whatever else is wrong with it.
    pub async fn redirect_uri_of(&self, parameters: &Parameters) -> Option<String> {
        self.addressee(parameters).await.ok().map(|(_, uri)| uri)
    }

    /// The workspaces that a person may let a client into.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn workspaces_to_choose(
        &self,
        caller: &Caller,
    ) -> Result<Vec<OwnWorkspace>, OAuthError> {
        let (_, user) = own_session(caller)?;
        let mut tx = self.store.begin_personal(user).await?;
        let page = Page { limit: MAX_CHOICES, before: None, offset: 0 };
        Ok(store::workspaces::of_person(&mut tx, user, page).await?.items)
    }

    /// Whether the person has let the client do as much before, in the workspace that they are in and by way of
    /// the same redirect URI, and nobody has to be asked: an answer to a program on somebody's machine may be any
    /// program's (RFC 8252, section 8.6).
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn is_remembered(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
    ) -> Result<bool, OAuthError> {
        let kind = redirect_uri::check(&request.redirect_uri, &self.native_schemes);
        let is_elsewhere = kind == Ok(Kind::Web) && !redirect_uri::is_here(&request.redirect_uri);
        if !is_elsewhere || caller.principal.lacks_second_factor {
            return Ok(false);
        }
        let (_, user) = own_session(caller)?;
        let workspace = caller.workspace();
        let wanted = request.scope.min(caller.principal.scope);
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let (client, uri) = (request.client.id, &request.redirect_uri);
        let since = self.env.clock.now() - self.idle;
        let granted =
            store::oauth_grants::remembered(&mut tx, workspace, user, client, uri, since).await?;
        Ok(granted.iter().any(|(scope, resources)| {
            *scope >= wanted && request.resources.iter().all(|wanted| resources.contains(wanted))
        }))
    }

    /// Whether the person may grant as much as a client asks for without signing in anew: who lets something run
    /// the workspace has just shown who they are.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn may_grant(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
    ) -> Result<bool, OAuthError> {
        let wanted = request.scope.min(caller.principal.scope);
        Ok(wanted < Scope::Admin || self.auth.is_confirmed(caller, None).await?)
    }

    /// Lets a client into a workspace, to do no more than this; answers where its code is to be sent.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] where the person may not.
    pub async fn consent(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
        workspace: WorkspaceId,
        scope: Scope,
    ) -> Result<String, OAuthError> {
        let wanted = Wanted {
            client: &request.client,
            scope: scope.min(request.scope),
            resources: &request.resources,
            code: Some((request.redirect_uri.clone(), request.challenge)),
            begin_by: self.env.clock.now() + CODE_LIFETIME,
        };
        let (tx, grant, has_ended) = self.let_in(caller, workspace, wanted).await?;
        tx.commit().await?;
        if has_ended {
            self.auth.fence().wait().await?;
        }
        let code = self.auth.token_key().derive(Purpose::AuthorizationCode, uuid_of(grant));
        Ok(self.answer(request).with(&[("code", code.expose_secret())]))
    }

    /// Does not let a client in; answers where it is to be told.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn deny(
        &self,
        caller: &Caller,
        request: &AuthorizationRequest,
    ) -> Result<String, OAuthError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        self.note_denial(&mut tx, caller, &request.client).await?;
        tx.commit().await?;
        Ok(self.error_answer(request, Code::AccessDenied, "the person did not consent"))
    }

    /// The log tells that somebody did not let a client in.
    pub(super) async fn note_denial(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        client: &Client,
    ) -> Result<(), OAuthError> {
        let event = audit::event(&self.env, caller, Action::GrantDenied, 303)
            .on(client.id, client.name.clone())
            .with(json!({ "client_id": client.client_id() }));
        Ok(store::audit::insert(tx, caller.workspace(), &event).await?)
    }

    /// Makes a grant, in a transaction that is to commit; answers also whether it ended others, which is to be
    /// waited for. Nobody grants above their own role.
    pub(super) async fn let_in(
        &self,
        caller: &Caller,
        workspace: WorkspaceId,
        wanted: Wanted<'_>,
    ) -> Result<(Tx, GrantId, bool), OAuthError> {
        let Wanted { client, scope, resources, code, begin_by } = wanted;
        let (session, user) = own_session(caller)?;
        let is_confirmed = scope < Scope::Admin || self.auth.is_confirmed(caller, None).await?;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        let role = store::members::pin_role(&mut tx, workspace, user).await?;
        let role = role.ok_or(AuthError::Forbidden("you are no member of this workspace"))?;
        // The cookie was good when the request began.
        let lives = store::sessions::created_at(&mut tx, user, session).await?.is_some();
        if !lives {
            return Err(SESSION_ENDED.into());
        }
        let scope = scope.min(role.scope());
        if scope == Scope::Admin && !is_confirmed {
            return Err(AuthError::Forbidden(
                "who lets something administer a workspace signs in anew before: follow \"Somebody else?\", and sign in",
            )
            .into());
        }
        let now = self.env.clock.now();
        let client_id = store::oauth_clients::store_document(&mut tx, client, now).await?;
        let grant = NewGrant {
            id: self.env.new_id(),
            client_id,
            workspace_id: workspace,
            by: Some((user, session)),
            scope,
            resources: resources.to_vec(),
            code,
            created_at: now,
            begin_by,
            seed: RefreshSeed::new(self.env.entropy.bytes()),
        };
        store::oauth_grants::insert(&mut tx, &grant).await?;
        if store::oauth_grants::lacks_second_factor(&mut tx, grant.id).await? {
            return Err(AuthError::Forbidden(
                "this workspace asks for a second factor: set one up first",
            )
            .into());
        }
        let ended = self.end_excess(&mut tx, caller, &grant, user).await?;
        let event = audit::event_in(&self.env, caller, workspace, Action::GrantCreated, 303)
            .on(client_id, client.name.clone())
            .with(json!({
                "client_id": client.client_id(),
                "grant_id": grant.id,
                "scope": grant.scope,
                "resources": grant.resources,
                "redirect_uri": grant.code.as_ref().map(|(uri, _)| uri),
            }));
        store::audit::insert(&mut tx, workspace, &event).await?;
        Ok((tx, grant.id, ended))
    }

    /// Who lets a client in again and again does not keep all of it.
    async fn end_excess(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        grant: &NewGrant,
        user: crate::model::id::UserId,
    ) -> Result<bool, OAuthError> {
        let (workspace, client): (_, ClientId) = (grant.workspace_id, grant.client_id);
        let now = self.env.clock.now();
        let ended =
            store::oauth_grants::end_excess(tx, workspace, user, client, MAX_GRANTS - 1, now)
                .await?;
        for id in &ended {
            let event = audit::event_in(&self.env, caller, workspace, Action::GrantEnded, 303)
                .on(*id, None)
                .with(json!({ "reason": "superseded" }));
            store::audit::insert(tx, workspace, &event).await?;
        }
        Ok(!ended.is_empty())
    }
}

/// What is to be granted.
pub(super) struct Wanted<'a> {
    pub(super) client: &'a Client,
    pub(super) scope: Scope,
    pub(super) resources: &'a [String],
    pub(super) code: Option<(String, CodeChallenge)>,
    pub(super) begin_by: OffsetDateTime,
}

fn uuid_of(grant: GrantId) -> uuid::Uuid {
    crate::model::id::Id::uuid(grant)
}

fn prompt_of(parameters: &Parameters) -> Result<Prompt, OAuthError> {
    let asked: Vec<_> = parameters.get("prompt").unwrap_or_default().split(' ').collect();
    let asks = |name: &str| asked.contains(&name);
    match asked.as_slice() {
        ["none"] => Ok(Prompt::None),
        _ if asks("none") => Err(OAuthError::request("prompt=none goes with nothing else")),
        _ if asks("login") || asks("select_account") => Ok(Prompt::Login),
        _ if asks("consent") => Ok(Prompt::Consent),
        _ => Ok(Prompt::Unsaid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_keep_what_the_redirect_uri_has() {
        let answer = |redirect_uri, state| {
            Answer { redirect_uri, state, issuer: "https://a.example" }.with(&[("code", "x&y")])
        };
        let iss = "iss=https%3A%2F%2Fa.example";
        assert_eq!(
            answer("https://c.example/cb", None),
            format!("https://c.example/cb?code=x%26y&{iss}")
        );
        assert_eq!(
            answer("https://c.example/cb?a=b", Some("s t#")),
            format!("https://c.example/cb?a=b&code=x%26y&state=s+t%23&{iss}")
        );
        assert_eq!(
            answer("com.example.app:/cb", None),
            format!("com.example.app:/cb?code=x%26y&{iss}")
        );
    }

    #[test]
    fn prompts_are_read() {
        let of = |prompt: &str| {
            prompt_of(&Parameters::new(vec![("prompt".to_owned(), prompt.to_owned())])).ok()
        };
        assert_eq!(of(""), Some(Prompt::Unsaid));
        assert_eq!(of("create"), Some(Prompt::Unsaid));
        assert_eq!(of("none"), Some(Prompt::None));
        assert_eq!(of("none login"), None);
        assert_eq!(of("consent login"), Some(Prompt::Login));
        assert_eq!(of("select_account"), Some(Prompt::Login));
        assert_eq!(of("consent"), Some(Prompt::Consent));
    }
}
