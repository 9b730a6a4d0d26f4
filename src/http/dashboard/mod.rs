//! The dashboard: server-rendered pages for sign-in, mailed links, OAuth consent and the management
//! of a workspace.
//!
//! Every page works without JavaScript, except passkeys. A session cookie identifies the user
//! ([`browser`]). Every form carries a CSRF token and must come from our own origin ([`form`]); a
//! handler of a form that does not verify the token does not compile. All pages have the same
//! security headers ([`page`]). Access rules, rate limits and audit events are those of the API.

mod api_keys;
mod audit_log;
mod authorization_url;
mod authorize;
pub mod browser;
mod charts;
mod connected_apps;
mod context;
mod device;
pub mod form;
mod format;
mod invitations;
mod layout;
mod live;
mod members;
pub mod page;
mod passkeys;
mod passwords;
mod paths;
mod second_factor;
mod sessions;
mod settings;
mod sign_in;
mod sign_up;
mod workspaces;

use std::sync::LazyLock;

use axum::{
    http::{HeaderMap, HeaderValue, Method},
    response::{Redirect, Response},
};

use super::{
    api::audit_export,
    endpoint::Endpoint,
    extract::{
        Access, AddressLimited, Admin, AdminSession, FirstPartyAdmin, MailedLink, Open, Public,
        ReadOnly, SignIn, SignUp, UserCode, UserSession,
    },
    route_types::PageRoute,
    static_content::StaticContent,
};

macro_rules! pages {
    (@endpoint GET $access:ty, $handler:path) => { Endpoint::new::<$access, _>($handler) };
    (@endpoint POST $access:ty, $handler:path) => { form::form_endpoint::<$access, _>($handler) };
    ($($method:ident $path:literal $access:ty => $handler:path;)*) => {
        vec![$(PageRoute {
            method: Method::$method,
            path: $path,
            access_rule: <$access as Access>::RULE,
            endpoint: pages!(@endpoint $method $access, $handler),
        }),*]
    };
}

/// The route table of all pages. Forms that allow guessing have the low rate limit of attempts.
#[must_use]
#[rustfmt::skip]
pub fn route_table() -> Vec<PageRoute> {
    pages! {
        GET    "/"                              Open       => redirect_home;
        GET    "/assets/dashboard.js"           AddressLimited => dashboard_script;
        GET    "/assets/passkeys.js"            AddressLimited => passkeys_script;
        GET    "/sign-in"                       Open       => sign_in::show;
        POST   "/sign-in"                       SignIn     => sign_in::submit;
        POST   "/sign-in/second-factor"         SignIn     => sign_in::submit_code;
        POST   "/sign-in/passkey"               SignIn     => passkeys::sign_in;
        POST   "/sign-out"                      UserSession => sessions::sign_out;
        GET    "/sign-up"                       Open       => sign_up::show;
        POST   "/sign-up"                       SignUp     => sign_up::submit;
        GET    "/workspaces"                    UserSession => workspaces::show;
        POST   "/workspaces"                    UserSession => workspaces::create;
        POST   "/workspaces/{id}/enter"         UserSession => workspaces::switch;
        GET    "/forgot-password"               Open       => passwords::show_forgot;
        POST   "/forgot-password"               SignUp     => passwords::request_reset;
        GET    "/reset-password"                Open       => passwords::show_reset;
        POST   "/reset-password"                MailedLink => passwords::reset;
        GET    "/verify-email"                  Open       => passwords::show_verify;
        POST   "/verify-email"                  MailedLink => passwords::verify;
        GET    "/accept-invitation"             Open       => invitations::show;
        POST   "/accept-invitation"             MailedLink => invitations::accept;
        GET    "/oauth/authorize"               Open       => authorize::show;
        POST   "/oauth/authorize"               Open       => authorize::post;
        POST   "/oauth/consent"                 UserSession => authorize::decide;
        GET    "/api-keys"                      ReadOnly   => api_keys::list;
        GET    "/api-keys/new"                  FirstPartyAdmin => api_keys::create::show;
        POST   "/api-keys"                      FirstPartyAdmin => api_keys::create::create;
        GET    "/api-keys/{id}"                 ReadOnly   => api_keys::details::show;
        POST   "/api-keys/{id}"                 Admin      => api_keys::details::update;
        POST   "/api-keys/{id}/disable"         Admin      => api_keys::details::disable;
        POST   "/api-keys/{id}/enable"          Admin      => api_keys::details::enable;
        GET    "/api-keys/{id}/rotation"        ReadOnly   => api_keys::rotation::show;
        GET    "/api-keys/{id}/rotation/stream" ReadOnly   => api_keys::rotation::stream;
        POST   "/api-keys/{id}/rotate"          FirstPartyAdmin => api_keys::rotation::rotate;
        GET    "/api-keys/{id}/revoke"          Admin      => api_keys::revocation::show;
        POST   "/api-keys/{id}/revoke"          Admin      => api_keys::revocation::revoke;
        GET    "/audit-log"                     ReadOnly   => audit_log::show;
        GET    "/audit-log/stream"              ReadOnly   => audit_log::stream;
        GET    "/audit-log/export"              ReadOnly   => audit_export::export;
        GET    "/audit-log/{id}"                ReadOnly   => audit_log::details;
        GET    "/connected-apps"                UserSession => connected_apps::show;
        POST   "/connected-apps/{id}/end"       UserSession => connected_apps::disconnect;
        GET    "/device"                        Open       => device::show;
        POST   "/device"                        UserCode   => device::submit;
        POST   "/device/consent"                UserCode   => device::decide;
        GET    "/members"                       Admin      => members::show;
        POST   "/members/{user_id}/role"        FirstPartyAdmin => members::change_role;
        POST   "/members/{user_id}/remove"      FirstPartyAdmin => members::remove;
        POST   "/members/invite"                FirstPartyAdmin => members::invite;
        POST   "/members/invitations/{id}/withdraw" FirstPartyAdmin => members::withdraw;
        GET    "/settings"                      ReadOnly   => settings::show;
        POST   "/settings/profile"              UserSession => settings::change_profile;
        POST   "/settings/verify-email"         UserSession => settings::resend_verification;
        POST   "/settings/workspace"            Admin      => settings::change_workspace;
        POST   "/settings/second-factor"        Admin      => settings::require_second_factor;
        POST   "/settings/brand"                Admin      => settings::change_brand;
        POST   "/settings/leave"                UserSession => settings::leave;
        POST   "/settings/delete-workspace"     AdminSession => settings::delete_workspace;
        POST   "/settings/delete-account"       UserSession => settings::delete_account;
        GET    "/second-factor"                 UserSession => second_factor::show;
        POST   "/second-factor/set-up"          UserSession => second_factor::set_up;
        POST   "/second-factor/confirm"         UserSession => second_factor::confirm;
        POST   "/second-factor/recovery-codes"  UserSession => second_factor::renew_recovery_codes;
        POST   "/second-factor/password"        UserSession => second_factor::change_password;
        POST   "/second-factor/remove"          UserSession => second_factor::remove;
        POST   "/second-factor/passkeys/new"    UserSession => passkeys::start_registration;
        POST   "/second-factor/passkeys"        UserSession => passkeys::add;
        POST   "/second-factor/passkeys/{id}/remove" UserSession => passkeys::remove;
        GET    "/sessions"                      UserSession => sessions::show;
        POST   "/sessions/end-others"           UserSession => sessions::end_others;
        POST   "/sessions/{id}/end"             UserSession => sessions::end;
    }
}

async fn redirect_home(_public: Public) -> Redirect {
    Redirect::to(paths::HOME)
}

async fn dashboard_script(_public: Public, request: HeaderMap) -> Response {
    static CONTENT: LazyLock<StaticContent> =
        LazyLock::new(|| script(include_str!("assets/dashboard.js")));
    CONTENT.respond(&request)
}

async fn passkeys_script(_public: Public, request: HeaderMap) -> Response {
    static CONTENT: LazyLock<StaticContent> =
        LazyLock::new(|| script(include_str!("assets/passkeys.js")));
    CONTENT.respond(&request)
}

fn script(text: &'static str) -> StaticContent {
    let media_type = HeaderValue::from_static("text/javascript; charset=utf-8");
    StaticContent::new(media_type, "public, max-age=3600", text)
}
