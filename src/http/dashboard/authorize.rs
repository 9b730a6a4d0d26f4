//! The authorization endpoint and its consent page: a user authorizes or denies an OAuth client.
//!
//! The redirect URI of an authorization request is validated before any redirect. An invalid client
//! or redirect URI gets an error page, never a redirect (RFC 6749, section 4.1.2.1). The protocol
//! is in [`crate::oauth`].

use std::net::IpAddr;

use askama::Template;
use axum::{
    extract::State,
    http::Method,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    authorization_url::{authorization_path, expand_request, query_of, sign_in_path},
    browser::{Browser, Visitor},
    form::{ForeignForm, Form},
    format::Sentence,
    layout::Layout,
    page::{form_error, message_page},
};
use crate::{
    auth::caller::SessionCaller,
    http::{
        ApiError, App,
        error::ErrorCode,
        extract::{Authorized, Public, Query, UserSession},
    },
    model::{
        id::{UserId, WorkspaceId},
        oauth::{client::ClientOrigin, parameters::Parameters, redirect_uri},
        scope::{Role, Scope},
    },
    oauth::{
        OAuthError, OAuthErrorCode as OAuthCode,
        authorization::{
            AuthorizationError, AuthorizationRequest, ErrorResponse, Prompt, ValidatedRequest,
        },
    },
};

/// The maximum size of a request by POST, in bytes. It becomes the query of a redirect.
const MAX_QUERY: usize = 16 * 1024;

/// The consent page of an authorization request or a device.
#[derive(Template)]
#[template(path = "consent.html")]
pub(super) struct ConsentPage<'a> {
    pub(super) layout: Layout,
    /// The action of the form.
    pub(super) action: &'static str,
    /// The names and values of the hidden fields.
    pub(super) hidden_fields: Vec<(String, String)>,
    /// The name that the client states.
    pub(super) client_name: &'a str,
    /// A sentence on the origin of the client's registration.
    pub(super) client_origin: String,
    pub(super) destination: Destination,
    /// The display name of the user.
    pub(super) user_name: &'a str,
    pub(super) workspaces: Vec<WorkspaceChoice>,
    pub(super) scopes: Vec<ScopeChoice>,
    /// The resources of the access tokens; empty if it is this service only.
    pub(super) other_resources: String,
    /// True if the workspace requires a second factor and the user has none.
    pub(super) is_second_factor_missing: bool,
    /// The URL of the sign-in for another user, which leads back here.
    pub(super) sign_in_url: String,
    pub(super) problem: Option<String>,
}

/// The recipient of the decision.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// A web server, with its host.
    Host(String),
    /// A program on the user's machine, with its loopback host or URI scheme.
    LocalProgram(String),
    /// A device, with its user code.
    Device(String),
}

/// A workspace that the user can select.
pub(super) struct WorkspaceChoice {
    id: WorkspaceId,
    name: String,
    role: Role,
    is_selected: bool,
}

/// A scope that the user can select.
pub(super) struct ScopeChoice {
    scope: Scope,
    is_selected: bool,
}

impl ScopeChoice {
    /// Returns a description of the scope for users.
    fn description(&self) -> &'static str {
        match self.scope {
            Scope::ReadOnly => {
                "View agents, calls, knowledge bases, campaigns, API keys (without their secrets), the audit log, and your name and email address"
            }
            Scope::Write => {
                "All of the above, and create, change and delete agents, calls, knowledge bases and campaigns"
            }
            Scope::Admin => {
                "All of the above, and manage billing, branding and existing API keys (but not create API keys or manage members)"
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

/// Handles an authorization request: redirects to the sign-in or to the client, or displays the
/// consent page.
///
/// An error of the request is sent to the client if its redirect URI is valid and the signed-in
/// user has authorized the client before, otherwise displayed.
pub(super) async fn show(
    public: Public,
    State(app): State<App>,
    Visitor { browser, caller }: Visitor,
    method: Method,
    query: Query,
) -> Result<Response, ApiError> {
    // A HEAD request must not create a grant.
    if method != Method::GET {
        return Err(ApiError::new(ErrorCode::MethodNotAllowed, "use GET or POST"));
    }
    let pairs = expand_request(&app, query.into_pairs()).await?;
    let query = &*query_of(&pairs);
    let (user, ip) = (caller.as_ref().map(SessionCaller::user), public.request.ip);
    let request = match validate(&app, pairs, user, ip).await? {
        Ok(request) => request,
        Err(answer) => return Ok(*answer),
    };
    let Some(caller) = caller else {
        if request.prompt == Prompt::None {
            let description = "the user is not signed in";
            return error_response(&app, &request, user, OAuthCode::LoginRequired, description)
                .await;
        }
        // The sign-in meets `prompt=login`: it must not be required once more.
        let is_login = request.prompt == Prompt::Login;
        return redirect_to_sign_in(&app, &request, query, ip, is_login).await;
    };
    let may_grant = app
        .oauth
        .consent
        .can_grant_without_reauthentication(&caller, &request)
        .await
        .map_err(to_api_error)?;
    match request.prompt {
        Prompt::None if !may_grant => {
            let description = "the user must sign in again";
            return error_response(&app, &request, user, OAuthCode::LoginRequired, description)
                .await;
        }
        _ if !may_grant => return redirect_to_sign_in(&app, &request, query, ip, true).await,
        Prompt::Login => return redirect_to_sign_in(&app, &request, query, ip, true).await,
        Prompt::Consent => {}
        Prompt::None | Prompt::Unspecified => {
            if app.oauth.consent.has_prior_consent(&caller, &request).await.map_err(to_api_error)? {
                let (workspace, scope) = (caller.workspace(), request.scope);
                let answer = app.oauth.consent.approve(&caller, &request, workspace, scope).await;
                return answer.map(|to| redirect_to_client(&to)).map_err(to_api_error);
            }
            if request.prompt == Prompt::None {
                let description = "the user must consent";
                let code = OAuthCode::ConsentRequired;
                return error_response(&app, &request, user, code, description).await;
            }
        }
    }
    page(&app, browser, &caller, &request, query, None).await
}

/// Handles an authorization request by POST: redirects to the same request by GET, so that the
/// browser sends its `SameSite=Lax` session cookie.
pub(super) async fn post(
    public: Public,
    State(app): State<App>,
    ForeignForm(fields): ForeignForm,
) -> Result<Response, ApiError> {
    let query = query_of(&fields.into_pairs());
    if query.len() > MAX_QUERY {
        let what = format!("the request must be at most {MAX_QUERY} bytes");
        return Err(ApiError::new(ErrorCode::PayloadTooLarge, what));
    }
    let path = authorization_path(&app, &query, public.request.ip).await?;
    Ok(Redirect::to(&path).into_response())
}

/// Grants or denies an authorization request, and redirects to the client.
pub(super) async fn decide(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    form: Form,
) -> Result<Response, ApiError> {
    let query = form.text("query")?.to_owned();
    let pairs = Query::parse(&query).map(Query::into_pairs).unwrap_or_default();
    let request = match validate(&app, pairs, Some(caller.user()), caller.request.ip).await? {
        Ok(request) => request,
        Err(answer) => return Ok(*answer),
    };
    let decided = match Decision::from_form(&form)? {
        Decision::Deny => app.oauth.consent.deny(&caller, &request).await,
        Decision::Allow(workspace, scope) => {
            app.oauth.consent.approve(&caller, &request, workspace, scope).await
        }
    };
    match decided {
        Ok(to) => Ok(redirect_to_client(&to)),
        Err(error) => {
            let (status, problem) = form_error(to_api_error(error))?;
            let problem = Some((status, problem));
            page(&app, form.browser, &caller, &request, &query, problem).await
        }
    }
}

/// The decision of the user on a consent page.
pub(super) enum Decision {
    /// Access is denied.
    Deny,
    /// Access to this workspace with this scope is granted.
    Allow(WorkspaceId, Scope),
}

impl Decision {
    /// Reads the decision of a form. Any value except `allow` denies access.
    pub(super) fn from_form(form: &Form) -> Result<Self, ApiError> {
        if form.text("decision")? != "allow" {
            return Ok(Self::Deny);
        }
        let choice = |name, what: &str| ApiError::invalid(name, format!("choose {what}"));
        let workspace = form.text("workspace")?.parse();
        let scope = form.text("scope")?.parse();
        Ok(Self::Allow(
            workspace.map_err(|_| choice("workspace", "a workspace"))?,
            scope.map_err(|_| choice("scope", "the permissions"))?,
        ))
    }
}

/// Validates an authorization request. The inner error is the response to an invalid request.
async fn validate(
    app: &App,
    pairs: Vec<(String, String)>,
    user: Option<UserId>,
    ip: IpAddr,
) -> Result<Result<ValidatedRequest, Box<Response>>, ApiError> {
    let validated = match AuthorizationRequest::parse(&Parameters::new(pairs)) {
        Ok(request) => app.oauth.authorization.validate(request, user, ip).await,
        Err(error) => Err(error.into()),
    };
    match validated {
        Ok(request) => Ok(Ok(request)),
        Err(AuthorizationError::Response(response)) => {
            Ok(Err(Box::new(respond_with_error(&response)?)))
        }
        Err(AuthorizationError::Page(error)) => {
            let text = match error {
                OAuthError::UnknownClient => {
                    "We do not know the app that sent you here, or no longer: a connection that is \
                     not used is deleted. In the app, remove the connection to this service and add \
                     it again."
                        .to_owned()
                }
                error => format!(
                    "The app that sent you here made an invalid request, so we cannot send you back to it: {}.",
                    error.for_client()?.description
                ),
            };
            let (title, link) = ("This link does not work", ("/", "Go to the dashboard"));
            Ok(Err(Box::new(message_page(400, title, &text, link)?)))
        }
    }
}

async fn page(
    app: &App,
    mut browser: Browser,
    caller: &SessionCaller,
    request: &ValidatedRequest,
    query: &str,
    problem: Option<(u16, String)>,
) -> Result<Response, ApiError> {
    browser.allow_forms_to_client();
    browser.set_brand(app.resources.workspace_brand(caller.workspace()).await?);
    let (status, problem) = problem.unzip();
    let host = redirect_uri::destination(request.redirect_uri());
    let is_web = request.redirect_uri().starts_with("https://");
    let page = ConsentPage {
        layout: browser.layout(),
        action: "/oauth/consent",
        hidden_fields: vec![("query".to_owned(), query.to_owned())],
        client_name: &request.client.name,
        client_origin: describe_origin(&request.client.origin),
        destination: if is_web { Destination::Host(host) } else { Destination::LocalProgram(host) },
        user_name: caller.principal.name(),
        workspaces: workspace_choices(app, caller).await?,
        scopes: scope_choices(request.scope),
        other_resources: other_resources(app, &request.resources),
        is_second_factor_missing: caller.principal.lacks_second_factor,
        sign_in_url: sign_in_path(app, request, query, caller.request.ip, true).await?,
        problem,
    };
    browser.render_page(status.unwrap_or(200), &page)
}

/// Returns the workspaces that the user can select. The current workspace is preselected.
pub(super) async fn workspace_choices(
    app: &App,
    caller: &SessionCaller,
) -> Result<Vec<WorkspaceChoice>, ApiError> {
    let own = app.oauth.consent.selectable_workspaces(caller).await.map_err(to_api_error)?;
    let choice = |own: crate::model::workspace::WorkspaceWithRole| WorkspaceChoice {
        is_selected: own.workspace.id == caller.workspace(),
        id: own.workspace.id,
        name: own.workspace.name,
        role: own.role,
    };
    Ok(own.into_iter().map(choice).collect())
}

/// Returns the scopes that the user can select: the requested one and lesser ones.
pub(super) fn scope_choices(requested: Scope) -> Vec<ScopeChoice> {
    let choices = Scope::ALL.into_iter().filter(|scope| *scope <= requested);
    // The admin scope is never preselected: the user must select it.
    let is_chosen = |scope| scope == requested && scope < Scope::Admin;
    choices.map(|scope| ScopeChoice { scope, is_selected: is_chosen(scope) }).collect()
}

/// Returns the resources of the access tokens; empty if it is this service only.
pub(super) fn other_resources(app: &App, resources: &[String]) -> String {
    if app.oauth.metadata.is_own_api(resources) { String::new() } else { resources.join(", ") }
}

/// Returns a sentence on the origin of a client's registration.
pub(super) fn describe_origin(origin: &ClientOrigin) -> String {
    match origin {
        ClientOrigin::SelfRegistered => {
            "It registered itself under this name; we have not verified it.".to_owned()
        }
        ClientOrigin::MetadataDocument(url) => {
            format!("It is identified by the website {}.", redirect_uri::destination(url))
        }
        ClientOrigin::Workspace(_) => {
            "A customer of this service registered it under this name; we have not verified it."
                .to_owned()
        }
    }
}

async fn redirect_to_sign_in(
    app: &App,
    request: &ValidatedRequest,
    query: &str,
    ip: IpAddr,
    again: bool,
) -> Result<Response, ApiError> {
    let path = sign_in_path(app, request, query, ip, again).await?;
    Ok(Redirect::to(&path).into_response())
}

async fn error_response(
    app: &App,
    request: &ValidatedRequest,
    user: Option<UserId>,
    code: OAuthCode,
    description: &'static str,
) -> Result<Response, ApiError> {
    let response = app.oauth.authorization.error_response(request, user, code, description).await;
    respond_with_error(&response.map_err(to_api_error)?)
}

/// Returns an error to the client without interaction of the user.
///
/// Any website can link to this endpoint. So the browser leaves it only by a click if the target is
/// a client that this user has not authorized, which anyone may have registered, or a program on
/// the user's machine, which the browser would ask in our name to start.
fn respond_with_error(response: &ErrorResponse) -> Result<Response, ApiError> {
    let ErrorResponse { error, url, client_name, can_redirect } = response;
    let is_web = url.starts_with("https://") || url.starts_with("http://");
    if *can_redirect && is_web {
        return Ok(redirect_to_client(url));
    }
    let reason = Sentence(&error.description).to_string();
    let text = format!("{client_name} sent you here with a request that failed. {reason}");
    if *can_redirect {
        return message_page(400, "Something went wrong", &text, (url, "Back to the app"));
    }
    let text = format!(
        "{text} You have not authorized this app, and we have not verified it. Continue only if you \
         trust it."
    );
    let label = format!("Continue to {}", redirect_uri::destination(url));
    message_page(400, "Something went wrong", &text, (url, &label))
}

/// Redirects to the client with 303, so that browsers do not post a form again (RFC 9700, section
/// 4.12).
fn redirect_to_client(to: &str) -> Response {
    let mut response = Redirect::to(to).into_response();
    super::page::set_private_headers(&mut response);
    response
}

/// Converts an OAuth error for display on a page.
pub(super) fn to_api_error(error: OAuthError) -> ApiError {
    match error.for_client() {
        Ok(error) => ApiError::new(ErrorCode::BadRequest, error.description),
        Err(error) => error.into(),
    }
}
