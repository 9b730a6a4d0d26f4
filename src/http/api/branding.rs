//! Routes of the white-label settings of a workspace: a JSON object with any fields.

use axum::{Json, extract::State};

use super::ApiResult;
use crate::{
    http::{
        App,
        extract::{self, Admin, Authorized},
    },
    model::fields::Fields,
};

/// Get the white-label settings
#[utoipa::path(get, path = "/v1/users/me/branding", tag = "Resources",
    responses((status = 200, body = Object)))]
pub async fn get(caller: Authorized<Admin>, State(app): State<App>) -> ApiResult<Json<Fields>> {
    Ok(Json(app.resources.branding(&caller).await?))
}

/// Replace the white-label settings
///
/// Accepts any fields. Fields that are absent from the body are removed.
#[utoipa::path(put, path = "/v1/users/me/branding", tag = "Resources",
    request_body(content = Object, example = json!({"brand_name": "Acme Voice", "primary_color": "#0b7285"})),
    responses((status = 200, body = Object)))]
pub async fn replace(
    caller: Authorized<Admin>,
    State(app): State<App>,
    extract::Json(body): extract::Json<Fields>,
) -> ApiResult<Json<Fields>> {
    app.resources.set_branding(&caller, &body).await?;
    Ok(Json(body))
}
