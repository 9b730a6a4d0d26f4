//! Routes that need no credential; their requests count against the client's address.

use axum::{extract::Request, http::StatusCode};

use super::{AccessLayer, LimitedResult};
use crate::{
    http::{
        ApiError, bearer::check_single_authorization, endpoint::EndpointResult,
        extract::AccessRule, middleware::rate_limit_response, surface::Surface,
    },
    limit::{AttemptKind, Decision},
    model::audit::RequestInfo,
};

impl AccessLayer {
    /// Serves a request to a route that needs no credential.
    pub(super) async fn serve_public(&self, info: &RequestInfo, request: Request) -> LimitedResult {
        let decision = self.app.limits.charge_address(info.ip).await;
        if let Err(error) = check_single_authorization(request.headers()) {
            return (Err(error.into()), decision);
        }
        match rate_limit_response::rejection(&decision) {
            None => match self.rule {
                AccessRule::Attempt(kind) => self.serve_attempt(kind, info, request).await,
                _ => (self.run_endpoint(info, request).await, decision),
            },
            // Nothing is done for a sign-in over the limit, and no page is rendered.
            Some(refusal) if self.rule != AccessRule::Open || self.is_page() => {
                (Err(refusal.into()), decision)
            }
            Some(refusal) if !self.ceiling.charge(&request) => (Err(refusal.into()), decision),
            Some(refusal) => self.serve_over_limit(info, request, refusal, decision).await,
        }
    }

    /// Serves a sign-in or similar request. Its response reports the bucket of the attempts and not
    /// the address's general one, since the former rejects first.
    async fn serve_attempt(
        &self,
        kind: AttemptKind,
        info: &RequestInfo,
        request: Request,
    ) -> LimitedResult {
        let limits = &self.app.limits;
        let decision = limits.charge_attempt(kind, info.ip).await;
        if let Some(refusal) = rate_limit_response::rejection(&decision) {
            return (Err(refusal.into()), decision);
        }
        let result = self.run_endpoint(info, request).await;
        if kind.is_refunded_on_success() && has_succeeded(&result) {
            return (result, limits.refund_attempt(kind, info.ip).await);
        }
        (result, decision)
    }

    /// Serves a request from an address over its limit. Open routes, such as token refresh, carry a
    /// credential in the request. A valid one passes even if other clients behind the same address
    /// exceed the limit: only an error is replaced by the 429.
    async fn serve_over_limit(
        &self,
        info: &RequestInfo,
        request: Request,
        refusal: ApiError,
        decision: Decision,
    ) -> LimitedResult {
        let result = self.run_endpoint(info, request).await;
        let is_rejected = has_no_valid_credential(&result, self.surface);
        (if is_rejected { Err(refusal.into()) } else { result }, decision)
    }
}

/// True if an attempt was no wrong guess: it succeeded, or only a second factor is missing.
fn has_succeeded(result: &EndpointResult) -> bool {
    match result {
        Ok(response) => {
            !response.status().is_client_error() && !response.status().is_server_error()
        }
        Err(error) => error.is_second_factor_due(),
    }
}

/// True if the result of an open route shows that the client had no valid credential.
fn has_no_valid_credential(result: &EndpointResult, surface: Surface) -> bool {
    let Err(error) = result else { return false };
    match surface {
        Surface::OAuth => error.status().is_client_error() && !error.is_rate_limit_exempt(),
        _ => error.status() == StatusCode::UNAUTHORIZED,
    }
}
