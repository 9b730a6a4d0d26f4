use std::{marker::PhantomData, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};
use secrecy::{ExposeSecret, SecretString};

use super::{Access, Rule};
use crate::{
    auth::{authenticate::Authenticated, check_scope},
    http::{ApiError, App, middleware},
    model::principal::Caller,
};

/// A caller who may do what `A` says, and is looked at again while the answer goes out: it may take longer than
/// the credential lives.
pub struct Standing<A> {
    app: App,
    caller: Caller,
    credential: SecretString,
    access: PhantomData<A>,
}

impl<A: Access> FromRequestParts<App> for Standing<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| ApiError::internal("a guarded route has no guard"))?;
        let credential = middleware::bearer(&parts.headers)?.ok_or_else(ApiError::no_credential)?;
        let (app, credential) = (Arc::clone(app), credential.into());
        Ok(Self { app, caller, credential, access: PhantomData })
    }
}

impl<A: Access> Standing<A> {
    /// Whether the credential is still good for this, here, in the same workspace. As fresh as it would be in a
    /// request that begins now.
    pub async fn holds(&self) -> bool {
        let now = self.app.env.clock.monotonic();
        let known = self.app.auth.authenticate(self.credential.expose_secret(), now).await;
        let Ok(Authenticated::Principal(principal)) = known else { return false };
        let Rule::Protected(requirement) = A::RULE else { return false };
        principal.workspace_id == self.caller.workspace()
            && check_scope::check(requirement, &principal, self.caller.request.ip).is_ok()
    }
}
