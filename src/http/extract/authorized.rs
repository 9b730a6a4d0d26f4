use std::{marker::PhantomData, ops::Deref, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};

use super::Query;
use crate::{
    auth::check_scope::{self, Requirement},
    http::{ApiError, App},
    model::{audit::RequestInfo, principal::Caller, scope::Scope},
};

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Nothing.
    Open,
    /// Nothing, but that guesses be few: sign-in and the like.
    SignIn,
    /// A credential that may do this.
    Protected(Requirement),
}

/// A rule as a type: named in the route table and, by its guard, in the handler's signature. The
/// compiler refuses a table that says another than the handler.
pub trait Access: Send + Sync + 'static {
    /// The rule.
    const RULE: Rule;
    /// The handler's first parameter.
    type Guard;
}

macro_rules! accesses {
    ($($(#[$doc:meta])* $name:ident = $rule:expr, $guard:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Access for $name {
            const RULE: Rule = $rule;
            type Guard = $guard;
        }
    )*};
}

accesses! {
    /// Anybody.
    Open = Rule::Open, Public;
    /// Anybody, but rarely.
    SignIn = Rule::SignIn, Public;
    /// Any credential that works.
    ReadOnly = Rule::Protected(Requirement::Scope(Scope::ReadOnly)), Authorized<ReadOnly>;
    /// A credential that may change resources.
    Write = Rule::Protected(Requirement::Scope(Scope::Write)), Authorized<Write>;
    /// A credential that may run the workspace.
    Admin = Rule::Protected(Requirement::Scope(Scope::Admin)), Authorized<Admin>;
    /// A key or a person who may change resources: not an OAuth client, whatever its scope.
    FirstPartyWrite = Rule::Protected(Requirement::FirstParty(Scope::Write)), Authorized<FirstPartyWrite>;
    /// A key or a person who may run the workspace: not an OAuth client, whatever its scope.
    FirstPartyAdmin = Rule::Protected(Requirement::FirstParty(Scope::Admin)), Authorized<FirstPartyAdmin>;
    /// A person's own session, of any role.
    OwnSession = Rule::Protected(Requirement::OwnSession), Authorized<OwnSession>;
}

/// A caller who may do what `A` says. The field is private: holding one proves that the check ran.
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
        let caller = caller.ok_or_else(|| ApiError::internal("a guarded route has no guard"))?;
        let Rule::Protected(requirement) = A::RULE else {
            return Err(ApiError::internal("a route without a rule has a guard"));
        };
        check_scope::check(requirement, &caller.principal, caller.request.ip)?;
        Query::of(&parts.uri)?;
        Ok(Self { caller, access: PhantomData })
    }
}

/// A request of anybody.
#[derive(Debug)]
pub struct Public {
    /// The request.
    pub request: Arc<RequestInfo>,
}

impl FromRequestParts<App> for Public {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let request = parts.extensions.get::<Arc<RequestInfo>>().cloned();
        let request = request.ok_or_else(|| ApiError::internal("a request has no id"))?;
        Query::of(&parts.uri)?;
        Ok(Self { request })
    }
}

/// Holds of handlers whose first parameter is the guard of `A`.
pub trait GuardedBy<A, Args> {}

macro_rules! guarded_by {
    ($($arg:ident)*) => {
        impl<A, F, Fut, $($arg),*> GuardedBy<A, (Fut, $($arg,)*)> for F
        where
            A: Access,
            F: Fn(A::Guard, $($arg),*) -> Fut,
        {
        }
    };
}

guarded_by!();
guarded_by!(T1);
guarded_by!(T1 T2);
guarded_by!(T1 T2 T3);
guarded_by!(T1 T2 T3 T4);
