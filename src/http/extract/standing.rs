use std::{marker::PhantomData, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};
use secrecy::{ExposeSecret, SecretString};

use super::{Access, Rule};
use crate::{
    auth::{authenticate::Authenticated, check_scope},
    http::{
        ApiError, App,
        dashboard::browser::session_cookie,
        middleware::{self, ByCookie},
    },
    model::principal::Caller,
};

/// A caller who may do what `A` says, and is looked at again while the answer goes out: it may take longer than
/// the credential lives.
pub struct Standing<A> {
    app: App,
    caller: Caller,
    shown: Shown,
    access: PhantomData<A>,
}

/// What the caller has shown.
enum Shown {
    Bearer(SecretString),
    Cookie(SecretString),
}

impl<A: Access> FromRequestParts<App> for Standing<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| ApiError::internal("a guarded route has no guard"))?;
        let shown = match parts.extensions.get::<ByCookie>() {
            Some(ByCookie) => {
                session_cookie(app, &parts.headers).map(|it| Shown::Cookie(it.into()))
            }
            None => middleware::bearer(&parts.headers)?.map(|it| Shown::Bearer(it.into())),
        };
        let shown = shown.ok_or_else(ApiError::no_credential)?;
        Ok(Self { app: Arc::clone(app), caller, shown, access: PhantomData })
    }
}

impl<A: Access> Standing<A> {
    /// Whether the credential is still good for this, here, in the same workspace. As fresh as it would be in a
    /// request that begins now.
    pub async fn holds(&self) -> bool {
        let (auth, now) = (&self.app.auth, self.app.env.clock.monotonic());
        let principal = match &self.shown {
            Shown::Bearer(credential) => {
                match auth.authenticate(credential.expose_secret(), now).await {
                    Ok(Authenticated::Principal(principal)) => principal,
                    _ => return false,
                }
            }
            Shown::Cookie(cookie) => {
                let known = auth.look_at_cookie(cookie.expose_secret(), now).await;
                let Ok(principal) = known else { return false };
                principal
            }
        };
        let Rule::Protected(requirement) = A::RULE else { return false };
        principal.workspace_id == self.caller.workspace()
            && check_scope::check(requirement, &principal, self.caller.request.ip).is_ok()
    }
}
