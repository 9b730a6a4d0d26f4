//! The user's workspaces: list, create and switch.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    context::DashboardContext,
    form::{Form, UserForm},
    layout::Layout,
    page::{PAGE_SIZE, form_error},
    paths::HOME,
};
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, PathId, Query, UserSession},
    },
    idempotency::{IdempotencyOutcome, StoredResponse},
    model::{
        id::{Id, WorkspaceId},
        workspace::WorkspaceWithRole,
    },
};

#[derive(Template)]
#[template(path = "workspaces.html")]
struct WorkspacesPage<'a> {
    layout: Layout,
    workspaces: Vec<WorkspaceWithRole>,
    /// The session's current workspace.
    current_workspace: WorkspaceId,
    next: Option<String>,
    name: &'a str,
    problem: Option<String>,
}

/// Lists the user's workspaces.
pub(super) async fn show(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    query: Query,
) -> Result<Response, ApiError> {
    page(&caller, &app, &context, &query, ("", None)).await
}

/// Creates a workspace and switches the session to it.
pub(super) async fn create(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    query: Query,
    form: Form,
) -> Result<Response, ApiError> {
    let name = form.text("name")?;
    let mut work = match app.idempotency.begin(&caller, form.attempt()?).await? {
        IdempotencyOutcome::New(work) => work,
        // The form was sent twice: the workspace exists, but the session may not have switched yet.
        IdempotencyOutcome::Replayed(answer) => {
            let id = answer
                .body
                .parse()
                .map_err(|_| ApiError::internal("invalid stored workspace id"))?;
            app.auth.sessions.switch_workspace(&caller, id).await?;
            return Ok(Redirect::to(HOME).into_response());
        }
    };
    match app.auth.workspaces.create(work.tx(), &caller, name).await {
        Ok((created, audited)) => {
            let body = created.workspace.id.to_string();
            let answer = StoredResponse { status: 303, location: HOME.to_owned(), body };
            work.commit(&answer, audited)
                .await?
                .unfenced("a new workspace, which no node has cached");
            app.auth.sessions.switch_workspace(&caller, created.workspace.id).await?;
            Ok(Redirect::to(HOME).into_response())
        }
        Err(error) => {
            drop(work);
            let problem = form_error(error.into())?;
            page(&caller, &app, &context, &query, (name, Some(problem))).await
        }
    }
}

/// Switches the session to another workspace.
pub(super) async fn switch(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    PathId(id): PathId<WorkspaceId>,
    _form: UserForm,
) -> Result<Response, ApiError> {
    if id != caller.workspace() {
        app.auth.sessions.switch_workspace(&caller, id).await?;
    }
    Ok(Redirect::to(HOME).into_response())
}

async fn page(
    caller: &Authorized<UserSession>,
    app: &App,
    context: &DashboardContext,
    query: &Query,
    (name, problem): (&str, Option<(u16, String)>),
) -> Result<Response, ApiError> {
    let (page, _) = app.auth.workspaces.list_own(caller, query.page_with_limit(PAGE_SIZE)?).await?;
    let next = page.next_cursor(|own| own.workspace.id.uuid());
    let (status, problem) = problem.map_or((200, None), |(status, text)| (status, Some(text)));
    let (layout, here, workspaces) = (context.layout(), caller.workspace(), page.items);
    context.render_page(
        status,
        &WorkspacesPage { layout, workspaces, current_workspace: here, next, name, problem },
    )
}
