//! The settings of the user, the workspace and its branding.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    context::DashboardContext,
    form::{Form, UploadForm, UserForm},
    layout::{FlashMessage, Layout},
    page::form_error,
};
use crate::{
    http::{
        ApiError, App,
        extract::{Admin, AdminSession, Authorized, ReadOnly, UserSession},
    },
    model::{
        brand::{Brand, Color, Logo},
        fields::Fields,
        password::Password,
        principal::Caller,
        scope::{Role, Scope},
        text, timestamp,
        user::User,
        workspace::{Workspace, WorkspaceChange},
    },
};

/// The path of the page.
const PATH: &str = "/settings";

#[derive(Template)]
#[template(path = "settings.html")]
struct SettingsPage {
    layout: Layout,
    user: User,
    workspace: Workspace,
    rate_limit: u32,
    role: Role,
    can_edit: bool,
    /// True if the sign-in is too long ago, so that changes require the password.
    is_password_required: bool,
    /// The branding: the stored values, or those of a rejected form.
    brand_name: String,
    color: String,
    has_logo: bool,
    problem: Option<String>,
}

/// Displays the settings.
pub(super) async fn show(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    context: DashboardContext,
) -> Result<Response, ApiError> {
    page(&app, &context, &caller, None, None).await
}

/// Changes the user's name.
pub(super) async fn change_profile(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let mut change = Fields::default();
    change.set("full_name", &form.non_empty_text("full_name")?);
    let changed = app.resources.update_current_user(&caller, change).await;
    saved_or_error(&app, &context, &caller, changed.map(drop).map_err(ApiError::from)).await
}

/// Sends the verification email again.
pub(super) async fn resend_verification(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(_form): UserForm,
) -> Result<Response, ApiError> {
    match app.auth.email_verification.resend(&caller).await {
        Ok(()) => Ok(FlashMessage::VerificationEmailSent.redirect_to(PATH)),
        Err(error) => page(&app, &context, &caller, Some(error.into()), None).await,
    }
}

/// Renames the workspace.
pub(super) async fn change_workspace(
    caller: Authorized<Admin>,
    State(app): State<App>,
    context: DashboardContext,
    form: Form,
) -> Result<Response, ApiError> {
    let name = Some(form.text("name")?.to_owned());
    let change = WorkspaceChange { name, ..WorkspaceChange::default() };
    let changed = app.auth.workspaces.update(&caller, change, None).await;
    saved_or_error(&app, &context, &caller, changed.map(drop).map_err(ApiError::from)).await
}

/// Sets whether the workspace requires a second factor of all members.
pub(super) async fn require_second_factor(
    caller: Authorized<Admin>,
    State(app): State<App>,
    context: DashboardContext,
    form: Form,
) -> Result<Response, ApiError> {
    let require_second_factor = form.parse_as("require", "true or false")?;
    let change = WorkspaceChange { require_second_factor, ..WorkspaceChange::default() };
    let password = form.password("password")?;
    let changed = app.auth.workspaces.update(&caller, change, password.as_ref()).await;
    saved_or_error(&app, &context, &caller, changed.map(drop).map_err(ApiError::from)).await
}

/// Changes the name, the colour and the logo of the branding. Other branding fields, which API
/// clients have stored, are kept.
pub(super) async fn change_brand(
    caller: Authorized<Admin>,
    State(app): State<App>,
    context: DashboardContext,
    UploadForm { form, file }: UploadForm,
) -> Result<Response, ApiError> {
    let changed = async {
        let mut settings = app.resources.branding(&caller).await?;
        let name =
            form.non_empty_text(Brand::NAME)?.map(|name| text::validate_name(Brand::NAME, name));
        let name = name.transpose().map_err(|why| ApiError::invalid(Brand::NAME, why.0))?;
        set_or_remove(&mut settings, Brand::NAME, name.as_deref());
        let color = form.parse_as::<Color>(Brand::COLOR, "a colour, such as #0b7285")?;
        set_or_remove(&mut settings, Brand::COLOR, color.map(|color| color.to_string()).as_deref());
        if let Some(bytes) = file {
            let logo = Logo::from_file(&bytes);
            let logo = logo.map_err(|why| ApiError::invalid(Brand::LOGO, format!("logo {why}")))?;
            set_or_remove(&mut settings, Brand::LOGO, Some(logo.as_str()));
        } else if form.non_empty_text("remove_logo")?.is_some() {
            set_or_remove(&mut settings, Brand::LOGO, None);
        }
        Ok(app.resources.set_branding(&caller, &settings).await?)
    };
    match changed.await {
        Ok(()) => Ok(FlashMessage::Saved.redirect_to(PATH)),
        Err(error) => page(&app, &context, &caller, Some(error), Some(&form)).await,
    }
}

fn set_or_remove(settings: &mut Fields, name: &str, value: Option<&str>) {
    match value {
        Some(value) => settings.set(name, &value),
        None => drop(settings.remove(name)),
    }
}

/// Removes the user from the workspace.
pub(super) async fn leave(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    form: Form,
) -> Result<Response, ApiError> {
    let left = app.auth.members.leave(&caller, caller.workspace()).await;
    sign_out_or_error(&app, &context, &caller, &form, left.map_err(ApiError::from)).await
}

/// Deletes the workspace.
pub(super) async fn delete_workspace(
    caller: Authorized<AdminSession>,
    State(app): State<App>,
    context: DashboardContext,
    form: Form,
) -> Result<Response, ApiError> {
    let password = Password::new(form.text("password")?.to_owned());
    let deleted = app.auth.workspaces.delete(&caller, &password).await;
    sign_out_or_error(&app, &context, &caller, &form, deleted.map_err(ApiError::from)).await
}

/// Deletes the user's account.
pub(super) async fn delete_account(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let password = Password::new(form.text("password")?.to_owned());
    let deleted = app.auth.accounts.delete(&caller, &password).await;
    sign_out_or_error(&app, &context, &caller, &form, deleted.map_err(ApiError::from)).await
}

/// Signs out after a leave or a deletion, or displays the error.
async fn sign_out_or_error(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    form: &Form,
    outcome: Result<(), ApiError>,
) -> Result<Response, ApiError> {
    match outcome {
        Ok(()) => Ok(form.browser.sign_out_redirect("/sign-in")),
        Err(error) => page(app, context, caller, Some(error), None).await,
    }
}

async fn saved_or_error(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    outcome: Result<(), ApiError>,
) -> Result<Response, ApiError> {
    match outcome {
        Ok(()) => Ok(FlashMessage::Saved.redirect_to(PATH)),
        Err(error) => page(app, context, caller, Some(error), None).await,
    }
}

async fn page(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    error: Option<ApiError>,
    rejected_form: Option<&Form>,
) -> Result<Response, ApiError> {
    let error = match error {
        // Without the required second factor, the user may not see this page.
        Some(error) if caller.principal.lacks_second_factor => return Err(error),
        Some(error) => Some(form_error(error)?),
        None => None,
    };
    let (status, problem) = error.map_or((200, None), |(status, text)| (status, Some(text)));
    let workspace = app.resources.workspace(caller).await?;
    let layout = context.layout();
    let mut page = SettingsPage {
        user: app.resources.current_user(caller).await?,
        rate_limit: app.limits.effective_limit(workspace.rate_limit_per_minute),
        workspace,
        role: context.role(),
        is_password_required: !app.auth.passwords.has_reauthenticated(caller, None).await?,
        can_edit: context.has_scope(Scope::Admin),
        brand_name: layout.brand.name.clone().unwrap_or_default(),
        color: layout.brand.color.map(|color| color.to_string()).unwrap_or_default(),
        has_logo: layout.brand.logo.is_some(),
        layout,
        problem,
    };
    if let Some(form) = rejected_form {
        form.text(Brand::NAME)?.clone_into(&mut page.brand_name);
        form.text(Brand::COLOR)?.clone_into(&mut page.color);
    }
    context.render_page(status, &page)
}
