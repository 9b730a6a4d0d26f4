//! Access rules as types, and the extractors that check them.

use std::{ops::Deref, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};

use super::Query;
use crate::{
    auth::{
        AuthError,
        caller::{AdminCaller, SessionCaller},
        check_scope::{self, AccessRequirement},
    },
    http::{ApiError, App},
    limit::AttemptKind,
    model::{audit::RequestInfo, principal::Caller, scope::Scope},
};

/// An access rule: the condition that a route requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessRule {
    /// No credential.
    Open,
    /// No credential, and no exemption from the rate limit of the client's address.
    AddressLimited,
    /// No credential, but a low rate limit: sign-in and similar routes.
    Attempt(AttemptKind),
    /// A credential that meets this requirement.
    Protected(AccessRequirement),
}

impl AccessRule {
    /// The scope that the rule requires; `None` if it requires no particular one.
    #[must_use]
    pub const fn scope(self) -> Option<Scope> {
        match self {
            Self::Protected(requirement) => requirement.scope(),
            Self::Open | Self::AddressLimited | Self::Attempt(_) => None,
        }
    }
}

/// An access rule as a type.
///
/// The route table names the type, and the handler's first parameter must be the type's extractor.
/// If table and handler disagree, the crate does not compile: an
/// [`Endpoint`](crate::http::endpoint::Endpoint) cannot be made of them.
pub trait Access: Send + Sync + 'static {
    /// The rule.
    const RULE: AccessRule;
    /// The type of the handler's first parameter.
    type Extractor: FromRequestParts<App, Rejection = ApiError> + Send;
}

/// The access rule of a route that requires a credential.
pub trait ProtectedAccess: Access {
    /// The requirement.
    const REQUIREMENT: AccessRequirement;
    /// What the check proves about the caller.
    type Caller: Narrow;
}

/// A caller type that a [`Caller`] becomes once the requirement is met.
pub trait Narrow: Deref<Target = Caller> + Sized {
    /// Converts a caller that meets the requirement.
    ///
    /// # Errors
    /// [`AuthError`] if the caller is of another kind.
    fn narrow(caller: Caller) -> Result<Self, AuthError>;
}

/// A caller with some scope; nothing is known about the kind of its credential.
#[derive(Debug)]
pub struct AnyCaller(Caller);

impl Deref for AnyCaller {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.0
    }
}

impl Narrow for AnyCaller {
    fn narrow(caller: Caller) -> Result<Self, AuthError> {
        Ok(Self(caller))
    }
}

impl Narrow for SessionCaller {
    fn narrow(caller: Caller) -> Result<Self, AuthError> {
        Self::new(caller)
    }
}

impl Narrow for AdminCaller {
    fn narrow(caller: Caller) -> Result<Self, AuthError> {
        Self::new(caller)
    }
}

macro_rules! open_access {
    ($($(#[$doc:meta])* $name:ident = $rule:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Access for $name {
            const RULE: AccessRule = $rule;
            type Extractor = Public;
        }
    )*};
}

macro_rules! protected_access {
    ($($(#[$doc:meta])* $name:ident = $requirement:expr => $caller:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Access for $name {
            const RULE: AccessRule = AccessRule::Protected(Self::REQUIREMENT);
            type Extractor = Authorized<$name>;
        }

        impl ProtectedAccess for $name {
            const REQUIREMENT: AccessRequirement = $requirement;
            type Caller = $caller;
        }
    )*};
}

open_access! {
    /// No credential.
    Open = AccessRule::Open;
    /// No credential. Requests over the limit of the client's address are rejected in every case.
    AddressLimited = AccessRule::AddressLimited;
    /// No credential, with the low rate limit of sign-ins.
    SignIn = AccessRule::Attempt(AttemptKind::SignIn);
    /// No credential, with the low rate limit of mailed links.
    MailedLink = AccessRule::Attempt(AttemptKind::MailedLink);
    /// No credential, with the low rate limit of user codes.
    UserCode = AccessRule::Attempt(AttemptKind::UserCode);
    /// No credential, with the low rate limit of registrations of users.
    SignUp = AccessRule::Attempt(AttemptKind::SignUp);
    /// No credential, with the rate limit of registrations of OAuth clients.
    ClientRegistration = AccessRule::Attempt(AttemptKind::ClientRegistration);
    /// No credential, with the rate limit of device authorizations.
    DeviceAuthorization = AccessRule::Attempt(AttemptKind::DeviceAuthorization);
}

protected_access! {
    /// Any valid credential.
    ReadOnly = AccessRequirement::Scope(Scope::ReadOnly) => AnyCaller;
    /// A credential with the scope `write`.
    Write = AccessRequirement::Scope(Scope::Write) => AnyCaller;
    /// A credential with the scope `admin`.
    Admin = AccessRequirement::Scope(Scope::Admin) => AnyCaller;
    /// An API key or a session with the scope `write`; an OAuth grant is rejected with any scope.
    FirstPartyWrite = AccessRequirement::FirstParty(Scope::Write) => AnyCaller;
    /// An API key or a session with the scope `admin`; an OAuth grant is rejected with any scope.
    FirstPartyAdmin = AccessRequirement::FirstParty(Scope::Admin) => AdminCaller;
    /// A session of a user, with any role.
    UserSession = AccessRequirement::UserSession => SessionCaller;
    /// A session of a user with the scope `admin`.
    AdminSession = AccessRequirement::AdminSession => SessionCaller;
}

/// A caller that meets the access rule `A`.
///
/// The field is private, so a value proves that the check ran.
#[derive(Debug)]
pub struct Authorized<A: ProtectedAccess> {
    caller: A::Caller,
}

impl<A: ProtectedAccess> Deref for Authorized<A> {
    type Target = A::Caller;

    fn deref(&self) -> &A::Caller {
        &self.caller
    }
}

impl<A: ProtectedAccess> FromRequestParts<App> for Authorized<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| {
            ApiError::internal("a protected route is not wrapped by the access layer")
        })?;
        check_scope::check_access(A::REQUIREMENT, &caller.principal, caller.request.ip)?;
        Query::from_uri(&parts.uri)?;
        Ok(Self { caller: A::Caller::narrow(caller)? })
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
