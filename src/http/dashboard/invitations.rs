//! The acceptance of an invitation, by the signed-in user or as a new user.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    browser::Visitor,
    form::VisitorForm,
    layout::Layout,
    page::{MessagePage, encode_query_value, form_error},
};
use crate::{
    auth::{
        AuthError,
        invitations::{InvitationPreview, NewMember},
    },
    http::{
        ApiError, App,
        extract::{Public, Query},
    },
};

#[derive(Template)]
#[template(path = "accept_invitation.html")]
struct AcceptPage<'a> {
    layout: Layout,
    token: &'a str,
    invitation: &'a InvitationPreview,
    /// The display name of the signed-in user.
    user_name: Option<&'a str>,
    full_name: &'a str,
    /// The URL of the sign-in, which leads back to the invitation.
    sign_in_url: String,
    problem: Option<String>,
}

/// Displays the invitation.
pub(super) async fn show(
    _public: Public,
    State(app): State<App>,
    Visitor { mut browser, caller }: Visitor,
    query: Query,
) -> Result<Response, ApiError> {
    let token = query.text("token")?.unwrap_or_default();
    let invited = match app.auth.invitations.preview(token).await {
        Ok(invited) => invited,
        Err(error) => {
            let (status, text) = form_error(error.into())?;
            let title = "This invitation link does not work";
            return browser.render_page(
                status,
                &MessagePage { layout: browser.layout(), title, text: &text, link: None },
            );
        }
    };
    browser.set_brand(app.resources.workspace_brand(invited.workspace_id).await?);
    let page = AcceptPage {
        layout: browser.layout(),
        token,
        invitation: &invited,
        user_name: caller.as_ref().map(|caller| &**caller.principal.name()),
        full_name: "",
        sign_in_url: sign_in_url(&invited, token),
        problem: None,
    };
    browser.render_page(200, &page)
}

/// Accepts the invitation and signs in to its workspace.
pub(super) async fn accept(
    public: Public,
    State(app): State<App>,
    VisitorForm { caller, form }: VisitorForm,
) -> Result<Response, ApiError> {
    let (browser, token) = (&form.browser, form.text("token")?);
    let accepted = if let Some(caller) = &caller {
        // The session moves to the workspace and keeps its cookie.
        app.auth.invitations.accept(caller, token).await.map(|_| Redirect::to("/").into_response())
    } else {
        let password = form.password("password")?;
        let full_name = form.non_empty_text("full_name")?.map(str::to_owned);
        let new = NewMember { password, full_name };
        let accepted =
            app.auth.invitations.accept_with_new_account(token, &new, &public.request).await;
        accepted.map(|credentials| browser.sign_in_redirect(&credentials.cookie, "/"))
    };
    let error = match accepted {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    if matches!(error, AuthError::SignInRequired) {
        let invited = app.auth.invitations.preview(token).await?;
        return Ok(Redirect::to(&sign_in_url(&invited, token)).into_response());
    }
    let (status, problem) = form_error(error.into())?;
    // The invitation may have become invalid: then this fails, too.
    let invited = app.auth.invitations.preview(token).await?;
    let page = AcceptPage {
        layout: browser.layout(),
        token,
        invitation: &invited,
        user_name: caller.as_ref().map(|caller| &**caller.principal.name()),
        full_name: form.text("full_name")?,
        sign_in_url: sign_in_url(&invited, token),
        problem: Some(problem),
    };
    browser.render_page(status, &page)
}

fn sign_in_url(invited: &InvitationPreview, token: &str) -> String {
    let next = format!("/accept-invitation?token={}", encode_query_value(token));
    format!(
        "/sign-in?next={}&email={}",
        encode_query_value(&next),
        encode_query_value(&invited.email)
    )
}
