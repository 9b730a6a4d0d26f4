//! The workspaces that a person is in: to go from one to another, or to make one.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    form::{Form, OwnForm},
    layout::{Desk, Layout},
    page::{ITEMS, explained},
    sign_in::HOME,
};
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, OwnSession, PathId, Query},
    },
    idempotency::{Begun, KeptAnswer},
    model::{
        id::{Id, WorkspaceId},
        workspace::OwnWorkspace,
    },
};

#[derive(Template)]
#[template(path = "workspaces.html")]
struct WorkspacesPage<'a> {
    layout: Layout,
    workspaces: Vec<OwnWorkspace>,
    /// The one that the session is in.
    here: WorkspaceId,
    next: Option<String>,
    name: &'a str,
    problem: Option<String>,
}

/// Lists them.
pub(super) async fn show(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    query: Query,
) -> Result<Response, ApiError> {
    page(&caller, &app, &desk, &query, ("", None)).await
}

/// Makes another, and goes there.
pub(super) async fn create(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    query: Query,
    form: Form,
) -> Result<Response, ApiError> {
    let name = form.text("name")?;
    let mut work = match app.idempotency.begin(&caller, form.attempt()?).await? {
        Begun::Work(work) => work,
        // The same form once more, before the session had gone there.
        Begun::Answered(answer) => {
            let made = answer.body.parse().map_err(|_| ApiError::internal("a kept id is none"))?;
            app.auth.switch_workspace(&caller, made).await?;
            return Ok(Redirect::to(HOME).into_response());
        }
    };
    match app.auth.found_workspace(work.tx(), &caller, name).await {
        Ok(made) => {
            let body = made.workspace.id.to_string();
            let answer = KeptAnswer { status: 303, location: HOME.to_owned(), body };
            work.finish(&answer).await?;
            app.auth.switch_workspace(&caller, made.workspace.id).await?;
            Ok(Redirect::to(HOME).into_response())
        }
        Err(error) => {
            drop(work);
            let problem = explained(error.into())?;
            page(&caller, &app, &desk, &query, (name, Some(problem))).await
        }
    }
}

/// Takes the session to one of them.
pub(super) async fn enter(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    PathId(id): PathId<WorkspaceId>,
    _form: OwnForm,
) -> Result<Response, ApiError> {
    if id != caller.workspace() {
        app.auth.switch_workspace(&caller, id).await?;
    }
    Ok(Redirect::to(HOME).into_response())
}

async fn page(
    caller: &Authorized<OwnSession>,
    app: &App,
    desk: &Desk,
    query: &Query,
    (name, problem): (&str, Option<(u16, String)>),
) -> Result<Response, ApiError> {
    let (page, _) = app.auth.own_workspaces(caller, query.page_of(ITEMS)?).await?;
    let next = page.next_cursor(|own| own.workspace.id.uuid());
    let (status, problem) = problem.map_or((200, None), |(status, text)| (status, Some(text)));
    let (layout, here, workspaces) = (desk.layout(), caller.workspace(), page.items);
    Ok(desk.page(status, &WorkspacesPage { layout, workspaces, here, next, name, problem }))
}
