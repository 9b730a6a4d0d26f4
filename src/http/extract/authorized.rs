use std::{marker::PhantomData, ops::Deref, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};

use super::Query;
use crate::{
    auth::check_scope::{self, AccessRequirement},
    http::{ApiError, App},
    model::{audit::RequestInfo, principal::Caller, scope::Scope},
};

/// An access rule: the condition that a route requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessRule {
    /// No credential.
    Open,
    /// No credential, but a low rate limit: sign-in and similar routes.
    SignIn,
    /// A credential that meets this requirement.
    Protected(AccessRequirement),
}

/// An access rule as a type.
///
/// The route table names the type, and the handler's first parameter must be the type's extractor.
/// If table and handler disagree, the crate does not compile.
pub trait Access: Send + Sync + 'static {
    /// The rule.
    const RULE: AccessRule;
    /// The type of the handler's first parameter.
    type Extractor;
}

macro_rules! access_types {
    ($($(#[$doc:meta])* $name:ident = $rule:expr, $guard:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Access for $name {
            const RULE: AccessRule = $rule;
            type Extractor = $guard;
        }
    )*};
}

access_types! {
    /// No credential.
    Open = AccessRule::Open, Public;
    /// No credential, with the low rate limit of sign-in.
    SignIn = AccessRule::SignIn, Public;
    /// Any valid credential.
    ReadOnly = AccessRule::Protected(AccessRequirement::Scope(Scope::ReadOnly)), Authorized<ReadOnly>;
    /// A credential with the scope `write`.
    Write = AccessRule::Protected(AccessRequirement::Scope(Scope::Write)), Authorized<Write>;
    /// A credential with the scope `admin`.
    Admin = AccessRule::Protected(AccessRequirement::Scope(Scope::Admin)), Authorized<Admin>;
    /// An API key or a session with the scope `write`; an OAuth grant is rejected with any
    /// scope.
    FirstPartyWrite = AccessRule::Protected(AccessRequirement::FirstParty(Scope::Write)), Authorized<FirstPartyWrite>;
    /// An API key or a session with the scope `admin`; an OAuth grant is rejected with any
    /// scope.
    FirstPartyAdmin = AccessRule::Protected(AccessRequirement::FirstParty(Scope::Admin)), Authorized<FirstPartyAdmin>;
    /// A session of a user, with any role.
    UserSession = AccessRule::Protected(AccessRequirement::UserSession), Authorized<UserSession>;
}

/// A caller that meets the access rule `A`.
///
/// The fields are private, so a value proves that the check ran.
#[derive(Debug)]
pub struct Authorized<A> {
    caller: Caller,
    access: PhantomData<A>,
}

impl<A> Deref for Authorized<A> {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl<A: Access> FromRequestParts<App> for Authorized<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| {
            ApiError::internal("a protected route is not wrapped by the access layer")
        })?;
        let AccessRule::Protected(requirement) = A::RULE else {
            return Err(ApiError::internal("an open route uses the Authorized extractor"));
        };
        check_scope::check_access(requirement, &caller.principal, caller.request.ip)?;
        Query::from_uri(&parts.uri)?;
        Ok(Self { caller, access: PhantomData })
    }
}

/// A request to an open route, with or without a credential.
#[derive(Debug)]
pub struct Public {
    /// The request's id, method, path and client address.
    pub request: Arc<RequestInfo>,
}

impl FromRequestParts<App> for Public {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let request = parts.extensions.get::<Arc<RequestInfo>>().cloned();
        let request =
            request.ok_or_else(|| ApiError::internal("the request has no RequestInfo"))?;
        Query::from_uri(&parts.uri)?;
        Ok(Self { request })
    }
}

/// Implemented by handlers with the extractor of `A` as their first parameter.
pub trait RequiresAccess<A, Args> {}

macro_rules! impl_for_handlers {
    ($($arg:ident)*) => {
        impl<A, F, Fut, $($arg),*> RequiresAccess<A, (Fut, $($arg,)*)> for F
        where
            A: Access,
            F: Fn(A::Extractor, $($arg),*) -> Fut,
        {
        }
    };
}

impl_for_handlers!();
impl_for_handlers!(T1);
impl_for_handlers!(T1 T2);
impl_for_handlers!(T1 T2 T3);
impl_for_handlers!(T1 T2 T3 T4);
