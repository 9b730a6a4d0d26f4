//! Consent: a person lets a client into a workspace, or does not.

use askama::Template;
use axum::{
    extract::{Request, State},
    http::Method,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    browser::Browser,
    form::Form,
    layout::Layout,
    page::{encoded, explained, message},
};
use crate::{
    http::{
        ApiError, App,
        error::Code,
        extract::{self, Authorized, OwnSession, Public, Query},
    },
    model::{
        id::WorkspaceId,
        oauth::{client::Origin, parameters::Parameters, redirect_uri},
        principal::Caller,
        scope::{Role, Scope},
    },
    oauth::{
        Code as OAuthCode, OAuthError,
        authorize::{AuthorizationRequest, NotAsked, Prompt},
    },
};

/// Where clients send people.
pub(super) const HERE: &str = "/oauth/authorize";

/// The longest request that is taken by POST, in bytes: it goes on as a URL.
const MAX_QUERY: usize = 16 * 1024;

/// What the consent page asks, whoever asks for it.
#[derive(Template)]
#[template(path = "consent.html")]
pub(super) struct ConsentPage<'a> {
    pub(super) layout: Layout,
    /// Where the answer is sent.
    pub(super) action: &'static str,
    /// What has to come back with it.
    pub(super) hidden: Vec<(String, String)>,
    /// What the client calls itself.
    pub(super) client: &'a str,
    /// Who made the client known, as far as anybody can tell.
    pub(super) known_by: String,
    /// Where the answer goes.
    pub(super) destination: Destination,
    pub(super) person: &'a str,
    pub(super) workspaces: Vec<Choice>,
    pub(super) scopes: Vec<ScopeChoice>,
    /// What it may do that at, where it is not this service alone.
    pub(super) elsewhere: String,
    /// Whether the workspace asks for a second factor that is not there.
    pub(super) is_incomplete: bool,
    /// Where somebody else may sign in.
    pub(super) sign_in: String,
    pub(super) problem: Option<String>,
}

/// Where the answer goes.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// To a server.
    Host(String),
    /// To a program on the person's own machine.
    Program(String),
    /// To a device that shows this code.
    Device(String),
}

/// A workspace to be chosen.
pub(super) struct Choice {
    id: WorkspaceId,
    name: String,
    role: Role,
    is_chosen: bool,
}

/// A scope to be chosen.
pub(super) struct ScopeChoice {
    scope: Scope,
    is_chosen: bool,
}

impl ScopeChoice {
    /// In words that need no explanation.
    fn words(&self) -> &'static str {
        match self.scope {
            Scope::ReadOnly => {
                "Look at agents, calls, knowledge bases, campaigns, API keys without their secrets, the audit log, and your own name and address"
            }
            Scope::Write => {
                "All of that, and create, change and delete agents, calls, knowledge bases and campaigns"
            }
            Scope::Admin => {
                "All of that, and change the workspace: billing, its look, existing API keys; but not make keys or change members"
            }
        }
    }

    fn name(&self) -> &'static str {
        match self.scope {
            Scope::ReadOnly => "Read",
            Scope::Write => "Read and write",
            Scope::Admin => "Administer",
        }
    }
}

/// A client sends somebody here. An error of the request goes back to it where that is safe, else it is told here.
pub(super) async fn show(
    public: Public,
    State(app): State<App>,
    mut browser: Browser,
    method: Method,
    query: Query,
) -> Result<Response, ApiError> {
    // Whoever merely looks is granted nothing.
    if method != Method::GET {
        return Err(ApiError::new(Code::MethodNotAllowed, "this takes GET or POST"));
    }
    let pairs = query.into_pairs();
    let query = &*query_of(&pairs);
    let request = match asked(&app, &Parameters::new(pairs)).await? {
        Ok(request) => request,
        Err(answer) => return Ok(*answer),
    };
    let caller = browser.caller(&public.request).await?;
    let Some(caller) = caller else {
        if request.prompt == Prompt::None {
            return Ok(told(&app, &request, OAuthCode::LoginRequired, "nobody is signed in"));
        }
        return Ok(to_sign_in(&request, query, false));
    };
    let may_grant = app.oauth.may_grant(&caller, &request).await.map_err(failure)?;
    match request.prompt {
        Prompt::None if !may_grant => {
            let why = "somebody has to sign in anew";
            return Ok(told(&app, &request, OAuthCode::LoginRequired, why));
        }
        _ if !may_grant => return Ok(to_sign_in(&request, query, true)),
        Prompt::Login => return Ok(to_sign_in(&request, query, true)),
        Prompt::Consent => {}
        Prompt::None | Prompt::Unsaid => {
            if app.oauth.is_remembered(&caller, &request).await.map_err(failure)? {
                let (workspace, scope) = (caller.workspace(), request.scope);
                let answer = app.oauth.consent(&caller, &request, workspace, scope).await;
                return answer.map(|to| redirect(&to)).map_err(failure);
            }
            if request.prompt == Prompt::None {
                let why = "somebody has to consent";
                return Ok(told(&app, &request, OAuthCode::ConsentRequired, why));
            }
        }
    }
    browser.is_of(&caller);
    page(&app, browser, &caller, &request, query, None).await
}

/// The same, posted: as if it had been in the URL, so that the browser sends its cookie along.
pub(super) async fn post(
    _: Public,
    State(app): State<App>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let fields = extract::form_fields(&parts.headers, body, &app).await?;
    let query = query_of(&fields.into_pairs());
    if query.len() > MAX_QUERY {
        let what = format!("a request must be at most {MAX_QUERY} bytes");
        return Err(ApiError::new(Code::PayloadTooLarge, what));
    }
    Ok(Redirect::to(&format!("{HERE}?{query}")).into_response())
}

/// The person answers.
pub(super) async fn decide(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    form: Form,
) -> Result<Response, ApiError> {
    let query = form.text("query")?.to_owned();
    let pairs = Query::parse(&query).map(Query::into_pairs).unwrap_or_default();
    let request = match asked(&app, &Parameters::new(pairs)).await? {
        Ok(request) => request,
        Err(answer) => return Ok(*answer),
    };
    let decided = match Decision::of(&form)? {
        Decision::Deny => app.oauth.deny(&caller, &request).await,
        Decision::Allow(workspace, scope) => {
            app.oauth.consent(&caller, &request, workspace, scope).await
        }
    };
    match decided {
        Ok(to) => Ok(redirect(&to)),
        Err(error) => {
            let (status, problem) = explained(failure(error))?;
            let problem = Some((status, problem));
            page(&app, form.browser, &caller, &request, &query, problem).await
        }
    }
}

/// What a person answered.
pub(super) enum Decision {
    /// No.
    Deny,
    /// Yes, there and for that.
    Allow(WorkspaceId, Scope),
}

impl Decision {
    /// Reads it. Whatever is not a clear yes is a no.
    pub(super) fn of(form: &Form) -> Result<Self, ApiError> {
        if form.text("decision")? != "allow" {
            return Ok(Self::Deny);
        }
        let choice = |name, what: &str| ApiError::invalid(name, format!("choose {what}"));
        let workspace = form.text("workspace")?.parse();
        let scope = form.text("scope")?.parse();
        Ok(Self::Allow(
            workspace.map_err(|_| choice("workspace", "a workspace"))?,
            scope.map_err(|_| choice("scope", "what to allow"))?,
        ))
    }
}

/// The request, or what there is to answer without asking anybody.
async fn asked(
    app: &App,
    parameters: &Parameters,
) -> Result<Result<AuthorizationRequest, Box<Response>>, ApiError> {
    match app.oauth.authorization_request(parameters).await {
        Ok(request) => Ok(Ok(request)),
        Err(NotAsked::Redirect(to)) => Ok(Err(Box::new(unasked(&to)))),
        Err(NotAsked::Stay(OAuthError::Failed(error))) => Err(error.into()),
        Err(NotAsked::Stay(refused)) => {
            let (title, why) = ("This link does not work", refused.to_string());
            let text = format!(
                "The program that sent you here made a mistake, and nobody knows where to send you back to: {why}."
            );
            Ok(Err(Box::new(message(400, title, &text, ("/", "Back to the start")))))
        }
    }
}

async fn page(
    app: &App,
    mut browser: Browser,
    caller: &Caller,
    request: &AuthorizationRequest,
    query: &str,
    problem: Option<(u16, String)>,
) -> Result<Response, ApiError> {
    browser.leads_to(&request.redirect_uri);
    browser.brand(app.resources.brand_of(caller.workspace()).await?);
    let (status, problem) = problem.unzip();
    let host = redirect_uri::destination(&request.redirect_uri);
    let is_web = request.redirect_uri.starts_with("https://");
    let page = ConsentPage {
        layout: browser.layout(),
        action: "/oauth/consent",
        hidden: vec![("query".to_owned(), query.to_owned())],
        client: &request.client.name,
        known_by: known_by(&request.client.origin),
        destination: if is_web { Destination::Host(host) } else { Destination::Program(host) },
        person: caller.principal.name(),
        workspaces: workspaces(app, caller).await?,
        scopes: scopes(request.scope),
        elsewhere: elsewhere(app, &request.resources),
        is_incomplete: caller.principal.lacks_second_factor,
        sign_in: sign_in_path(query, request.login_hint.as_deref(), true),
        problem,
    };
    Ok(browser.page(status.unwrap_or(200), &page))
}

/// The workspaces that a person may choose, with the present one chosen.
pub(super) async fn workspaces(app: &App, caller: &Caller) -> Result<Vec<Choice>, ApiError> {
    let own = app.oauth.workspaces_to_choose(caller).await.map_err(failure)?;
    let choice = |own: crate::model::workspace::OwnWorkspace| Choice {
        is_chosen: own.workspace.id == caller.workspace(),
        id: own.workspace.id,
        name: own.workspace.name,
        role: own.role,
    };
    Ok(own.into_iter().map(choice).collect())
}

/// What may be chosen of what a client asks for: all of it, or less.
pub(super) fn scopes(asked: Scope) -> Vec<ScopeChoice> {
    let choices = Scope::ALL.into_iter().filter(|scope| *scope <= asked);
    // The most is chosen only by who chooses it.
    let is_chosen = |scope| scope == asked && scope < Scope::Admin;
    choices.map(|scope| ScopeChoice { scope, is_chosen: is_chosen(scope) }).collect()
}

/// The resources that tokens are for, unless that is this service alone.
pub(super) fn elsewhere(app: &App, resources: &[String]) -> String {
    if resources == [app.oauth.resources().own()] { String::new() } else { resources.join(", ") }
}

/// Who made a client known.
pub(super) fn known_by(origin: &Origin) -> String {
    match origin {
        Origin::Registered => {
            "It registered itself under this name, which nobody has checked.".to_owned()
        }
        Origin::Document(url) => {
            format!("It is known by {}.", redirect_uri::destination(url))
        }
        Origin::Workspace(_) => {
            "A customer of this service registered it under this name, which nobody has checked."
                .to_owned()
        }
    }
}

fn to_sign_in(request: &AuthorizationRequest, query: &str, again: bool) -> Response {
    let path = sign_in_path(query, request.login_hint.as_deref(), again);
    Redirect::to(&path).into_response()
}

/// Where to sign in and come back from. Who has done so `again` is not asked for it once more.
fn sign_in_path(query: &str, login_hint: Option<&str>, again: bool) -> String {
    let mut pairs = Query::parse(query).map(Query::into_pairs).unwrap_or_default();
    if again {
        // Consent that is asked for too is asked for still.
        for (_, value) in pairs.iter_mut().filter(|(name, _)| name == "prompt") {
            let is_consent = value.split(' ').any(|asked| asked == "consent");
            if is_consent { "consent" } else { "" }.clone_into(value);
        }
        pairs.retain(|(name, value)| name != "prompt" || !value.is_empty());
    }
    let next = format!("{HERE}?{}", query_of(&pairs));
    let mut path = format!("/sign-in?next={}", encoded(&next));
    if let Some(hint) = login_hint {
        path.push_str("&email=");
        path.extend(encoded(hint));
    }
    if again {
        path.push_str("&again=1");
    }
    path
}

fn query_of(pairs: &[(String, String)]) -> String {
    let pair = |(name, value): &(String, String)| format!("{}={}", encoded(name), encoded(value));
    pairs.iter().map(pair).collect::<Vec<_>>().join("&")
}

fn told(app: &App, request: &AuthorizationRequest, code: OAuthCode, why: &str) -> Response {
    unasked(&app.oauth.error_answer(request, code, why))
}

/// An error back to the client, before anybody has done anything. A program on somebody's machine is started by
/// them: any page could lead here, and the machine would ask in our name.
fn unasked(to: &str) -> Response {
    if to.starts_with("https://") || to.starts_with("http://") {
        return redirect(to);
    }
    let (title, text) = ("This did not work", "The program that sent you here made a mistake.");
    message(400, title, text, (to, "Back to the program"))
}

/// To the client: by 303, so that no browser posts a form once more (RFC 9700, section 4.12).
fn redirect(to: &str) -> Response {
    let mut response = Redirect::to(to).into_response();
    super::page::conceal(&mut response);
    response
}

/// A failure as pages tell it.
pub(super) fn failure(error: OAuthError) -> ApiError {
    match error {
        OAuthError::Failed(error) => error.into(),
        OAuthError::Refused { description, .. } => ApiError::new(Code::BadRequest, description),
    }
}
