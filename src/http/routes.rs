//! The route table: method, path, access rule and handler of every API route.
//!
//! The access rule is a type, and the handler's first parameter must be the extractor of that
//! type. A table whose rule differs from the handler does not compile, and neither does a handler
//! without such an extractor: see [`Endpoint::new`]. Tests compare the table with the OpenAPI
//! document and try every route with every kind of credential. The rules are in
//! [`super::extract`].

use axum::{http::Method, routing::MethodRouter};

use super::{
    App,
    api::{
        api_keys, audit_export, audit_log, audit_stream, auth, branding,
        documents::{agents, calls, campaigns, knowledge_base},
        invitations, key_revocation, key_rotation, key_usage, members, mfa, oauth_clients,
        oauth_grants, passkeys, passwords, sessions, users, verify, wallet, workspace, workspaces,
    },
    endpoint::Endpoint,
    extract::{
        Access, AddressLimited, Admin, AdminSession, ClientRegistration, DeviceAuthorization,
        FirstPartyAdmin, FirstPartyWrite, MailedLink, Open, ReadOnly, SignIn, SignUp, UserSession,
        Write,
    },
    oauth,
    route_types::Route,
    well_known,
};

macro_rules! routes {
    (@method ANY) => { None };
    (@method $method:ident) => { Some(Method::$method) };
    ($($method:ident $path:literal $access:ty => $handler:path;)*) => {
        vec![$({
            let (schemas, paths, _) = utoipa_axum::routes!($handler);
            // `utoipa_axum::routes!` also builds a router. This fixes the type of its state.
            drop::<MethodRouter<App>>(axum::routing::get($handler));
            Route {
                method: routes!(@method $method),
                operation_id: stringify!($handler).replace("::", "_").replace(' ', ""),
                path: $path,
                access_rule: <$access as Access>::RULE,
                endpoint: Endpoint::new::<$access, _>($handler),
                paths,
                schemas,
            }
        }),*]
    };
}

/// Returns all routes of the API, OAuth and health checks. Pages are in
/// [`dashboard::route_table`](super::dashboard::route_table).
#[must_use]
#[rustfmt::skip]
#[expect(clippy::too_many_lines, reason = "a line for each route")]
pub fn route_table() -> Vec<Route> {
    routes! {
        POST   "/v1/auth/register"              SignUp     => auth::register;
        POST   "/v1/auth/login"                 SignIn     => auth::login;
        POST   "/v1/auth/refresh"               Open       => auth::refresh;
        POST   "/v1/auth/logout"                UserSession => auth::logout;
        GET    "/v1/auth/sessions"              UserSession => sessions::list;
        DELETE "/v1/auth/sessions"              UserSession => sessions::end_others;
        DELETE "/v1/auth/sessions/{id}"         UserSession => sessions::end;
        POST   "/v1/auth/switch-workspace"      UserSession => sessions::switch_workspace;
        POST   "/v1/auth/password/change"       UserSession => passwords::change;
        POST   "/v1/auth/password/forgot"       SignUp     => passwords::forgot;
        POST   "/v1/auth/password/reset"        MailedLink => passwords::reset;
        POST   "/v1/auth/verify-email"          MailedLink => passwords::verify_email;
        POST   "/v1/auth/verify-email/send"     UserSession => passwords::send_verification;
        POST   "/v1/auth/mfa/verify"            SignIn     => mfa::verify;
        POST   "/v1/auth/mfa/totp"              UserSession => mfa::enroll;
        POST   "/v1/auth/mfa/totp/confirm"      UserSession => mfa::confirm;
        DELETE "/v1/auth/mfa/totp"              UserSession => mfa::remove;
        POST   "/v1/auth/mfa/recovery-codes"    UserSession => mfa::renew_recovery_codes;
        POST   "/v1/auth/passkeys/options"      UserSession => passkeys::options;
        POST   "/v1/auth/passkeys"              UserSession => passkeys::add;
        GET    "/v1/auth/passkeys"              UserSession => passkeys::list;
        DELETE "/v1/auth/passkeys/{id}"         UserSession => passkeys::remove;
        POST   "/v1/auth/login/passkey/options" SignIn     => passkeys::login_options;
        POST   "/v1/auth/login/passkey"         SignIn     => passkeys::login;
        GET    "/v1/auth/me"                    ReadOnly   => auth::me;
        ANY    "/v1/auth/verify"                ReadOnly   => verify::verify;
        ANY    "/v1/auth/verify/"               ReadOnly   => verify::verify_root;
        ANY    "/v1/auth/verify/{*path}"        ReadOnly   => verify::verify_path;
        ANY    "/v1/auth/require/{scope}"       ReadOnly   => verify::require;
        ANY    "/v1/auth/require/{scope}/"      ReadOnly   => verify::require_root;
        ANY    "/v1/auth/require/{scope}/{*path}" ReadOnly => verify::require_path;

        GET    "/v1/workspace"                  ReadOnly   => workspace::get;
        PATCH  "/v1/workspace"                  Admin      => workspace::update;
        DELETE "/v1/workspace"                  AdminSession => workspace::delete;
        GET    "/v1/workspaces"                 UserSession => workspaces::list;
        POST   "/v1/workspaces"                 UserSession => workspaces::create;
        POST   "/v1/workspaces/{id}/leave"      UserSession => workspaces::leave;
        GET    "/v1/members"                    Admin      => members::list;
        PATCH  "/v1/members/{user_id}"          FirstPartyAdmin => members::update;
        DELETE "/v1/members/{user_id}"          FirstPartyAdmin => members::remove;
        POST   "/v1/invitations"                FirstPartyAdmin => invitations::create;
        GET    "/v1/invitations"                Admin      => invitations::list;
        DELETE "/v1/invitations/{id}"           FirstPartyAdmin => invitations::withdraw;
        POST   "/v1/invitations/accept"         MailedLink => invitations::accept;

        POST   "/v1/api-keys"                   FirstPartyAdmin => api_keys::create;
        GET    "/v1/api-keys"                   ReadOnly   => api_keys::list;
        GET    "/v1/api-keys/hygiene"           ReadOnly   => key_usage::hygiene;
        GET    "/v1/api-keys/{id}"              ReadOnly   => api_keys::get;
        PATCH  "/v1/api-keys/{id}"              Admin      => api_keys::update;
        DELETE "/v1/api-keys/{id}"              Admin      => key_revocation::revoke;
        PATCH  "/v1/api-keys/{id}/revoke"       Admin      => key_revocation::revoke_and_get;
        POST   "/v1/api-keys/revoke"            AddressLimited => key_revocation::revoke_by_holder;
        GET    "/v1/api-keys/{id}/descendants"  ReadOnly   => key_revocation::descendants;
        POST   "/v1/api-keys/{id}/rotate"       FirstPartyAdmin => key_rotation::rotate;
        GET    "/v1/api-keys/{id}/rotation"     ReadOnly   => key_rotation::rotation;
        GET    "/v1/api-keys/{id}/usage"        ReadOnly   => key_usage::usage;

        GET    "/v1/oauth/clients"              Admin      => oauth_clients::list;
        POST   "/v1/oauth/clients"              FirstPartyAdmin => oauth_clients::create;
        GET    "/v1/oauth/clients/{id}"         Admin      => oauth_clients::get;
        PATCH  "/v1/oauth/clients/{id}"         FirstPartyAdmin => oauth_clients::update;
        DELETE "/v1/oauth/clients/{id}"         FirstPartyAdmin => oauth_clients::delete;
        POST   "/v1/oauth/clients/{id}/secret"  FirstPartyAdmin => oauth_clients::rotate_secret;
        GET    "/v1/oauth/grants"               UserSession => oauth_grants::list;
        DELETE "/v1/oauth/grants/{id}"          UserSession => oauth_grants::end;

        GET    "/v1/audit-log"                  ReadOnly   => audit_log::list;
        GET    "/v1/audit-log/stream"           ReadOnly   => audit_stream::stream;
        GET    "/v1/audit-log/export"           ReadOnly   => audit_export::export;
        GET    "/v1/audit-log/checkpoint"       ReadOnly   => audit_log::checkpoint;

        GET    "/v1/agents"                     ReadOnly   => agents::list;
        POST   "/v1/agents"                     Write      => agents::create;
        GET    "/v1/agents/{id}"                ReadOnly   => agents::get;
        PATCH  "/v1/agents/{id}"                Write      => agents::update;
        DELETE "/v1/agents/{id}"                Write      => agents::delete;

        GET    "/v1/calls"                      ReadOnly   => calls::list;
        POST   "/v1/calls"                      Write      => calls::create;
        GET    "/v1/calls/{id}"                 ReadOnly   => calls::get;
        PATCH  "/v1/calls/{id}"                 Write      => calls::update;
        DELETE "/v1/calls/{id}"                 Write      => calls::delete;
        POST   "/v1/calls/{id}/end"             Write      => calls::end;

        GET    "/v1/knowledge-base"             ReadOnly   => knowledge_base::list;
        POST   "/v1/knowledge-base"             Write      => knowledge_base::create;
        GET    "/v1/knowledge-base/{id}"        ReadOnly   => knowledge_base::get;
        PATCH  "/v1/knowledge-base/{id}"        Write      => knowledge_base::update;
        DELETE "/v1/knowledge-base/{id}"        Write      => knowledge_base::delete;

        GET    "/v1/campaigns"                  ReadOnly   => campaigns::list;
        POST   "/v1/campaigns"                  Write      => campaigns::create;
        GET    "/v1/campaigns/{id}"             ReadOnly   => campaigns::get;
        PATCH  "/v1/campaigns/{id}"             Write      => campaigns::update;
        DELETE "/v1/campaigns/{id}"             Write      => campaigns::delete;

        GET    "/v1/wallet/balance"             Admin      => wallet::balance;
        GET    "/v1/wallet/transactions"        Admin      => wallet::transactions;

        GET    "/v1/users/me"                   ReadOnly   => users::get;
        PATCH  "/v1/users/me"                   FirstPartyWrite => users::update;
        DELETE "/v1/users/me"                   UserSession => users::delete;
        GET    "/v1/users/me/branding"          Admin      => branding::get;
        PUT    "/v1/users/me/branding"          Admin      => branding::replace;
        GET    "/v1/users/me/tenant/members"    Admin      => members::tenant_members;

        GET    "/.well-known/jwks.json"         Open       => well_known::jwks;
        GET    "/.well-known/audit-checkpoint-keys.json" Open => well_known::checkpoint_jwks;
        GET    "/.well-known/oauth-authorization-server" Open => oauth::server_metadata;
        GET    "/.well-known/oauth-protected-resource" Open => oauth::resource_metadata;
        POST   "/oauth/token"                   Open       => oauth::token;
        POST   "/oauth/register"                ClientRegistration => oauth::register;
        POST   "/oauth/device_authorization"    DeviceAuthorization => oauth::device_authorization;
        POST   "/oauth/revoke"                  Open       => oauth::revoke;
        POST   "/oauth/introspect"              Open       => oauth::introspect;
        GET    "/health"                        Open       => well_known::health;
        GET    "/livez"                         Open       => well_known::livez;
        GET    "/readyz"                        Open       => well_known::readyz;
        GET    "/openapi.json"                  AddressLimited => well_known::openapi;
    }
}
