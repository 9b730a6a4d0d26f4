//! The content of emails.
//!
//! Recipients may never have heard of the service. Each email says what happened, what to do, and
//! what to do if it was not them. Text that users chose (names, user agents) is sanitized, so that
//! an email never carries a foreign link. Subjects contain no such text at all.

use askama::Template;
use secrecy::{ExposeSecret, SecretString};

use crate::model::{
    mail::{EndedSetup, NameList, RemainingAccess, RequestOrigin},
    scope::Role,
};

/// The content of an email: a subject, paragraphs, an optional link, and a closing note.
pub(super) struct EmailContent {
    pub(super) subject: String,
    paragraphs: Vec<String>,
    link: Option<Link>,
    note: String,
}

struct Link {
    label: &'static str,
    url: String,
}

impl Link {
    /// The page on which a user requests a link to reset the password.
    fn to_new_password(public_url: &str) -> Self {
        Self { label: "Choose a new password", url: format!("{public_url}/forgot-password") }
    }
}

#[derive(Template)]
#[template(path = "email.txt", escape = "none")]
struct TextBody<'a> {
    content: &'a EmailContent,
}

#[derive(Template)]
#[template(path = "email.html")]
struct HtmlBody<'a> {
    content: &'a EmailContent,
}

/// Advice for an action that the user did not take; the link below it leads to a new password.
const NEW_PASSWORD_ADVICE: &str =
    "If this was not you, choose a new password immediately with the link below.";
const NO_ACTION_NEEDED: &str = "If this was you, no action is needed.";

/// Returns the URL of a page with a one-time token.
pub(super) fn link_with_token(public_url: &str, page: &str, token: &SecretString) -> String {
    format!("{public_url}/{page}?token={}", token.expose_secret())
}

impl EmailContent {
    pub(super) fn text(&self) -> askama::Result<String> {
        TextBody { content: self }.render()
    }

    pub(super) fn html(&self) -> askama::Result<String> {
        HtmlBody { content: self }.render()
    }

    pub(super) fn reset_password(url: String) -> Self {
        Self {
            subject: "Reset your password".to_owned(),
            paragraphs: vec![
                "We received a request to reset the password of your Call2Me account.".to_owned(),
                "To choose a new password, open the link below. It works once, within one hour. \
                 Choosing a new password signs you out on all devices."
                    .to_owned(),
            ],
            link: Some(Link { label: "Choose a new password", url }),
            note: "If this was not you, ignore this email. Your password does not change."
                .to_owned(),
        }
    }

    pub(super) fn verify_email(url: String) -> Self {
        Self {
            subject: "Verify your email address".to_owned(),
            paragraphs: vec![
                "This email address was used to sign up for Call2Me, a voice AI platform."
                    .to_owned(),
                "To confirm that the address is yours, open the link below. It works once, within \
                 one week."
                    .to_owned(),
                "If you did not sign up, you can remove everything that was set up for your \
                 address on the same page."
                    .to_owned(),
            ],
            link: Some(Link { label: "Verify your email address", url }),
            note: "If you do not want an account, ignore this email.".to_owned(),
        }
    }

    pub(super) fn invitation(url: String, workspace: &str) -> Self {
        let workspace = sanitize(workspace);
        Self {
            subject: "Invitation to a workspace on Call2Me".to_owned(),
            paragraphs: vec![
                format!(
                    "You are invited to join the workspace {workspace} on Call2Me, a voice AI \
                     platform."
                ),
                "To join, accept the invitation with the link below. It works once, within one \
                 week. You do not need an account yet."
                    .to_owned(),
            ],
            link: Some(Link { label: "Accept the invitation", url }),
            note: "If you did not expect this invitation, ignore this email.".to_owned(),
        }
    }

    pub(super) fn password_changed(
        public_url: &str,
        origin: &RequestOrigin,
        passkeys: &[String],
        apps: &[String],
        disconnected_apps: &[String],
    ) -> Self {
        let changed = "The password of your Call2Me account was changed. All other sessions were \
                       signed out.";
        let mut paragraphs = vec![changed.to_owned(), origin_line(origin)];
        if !passkeys.is_empty() {
            let names: Vec<String> = passkeys.iter().map(|name| sanitize(name)).collect();
            paragraphs.push(format!(
                "Your passkeys can still sign in: {}. If you do not recognize one of them, remove \
                 it at {public_url}/second-factor, or contact your administrator.",
                names.join(", "),
            ));
        }
        if !apps.is_empty() {
            let names: Vec<String> = apps.iter().map(|name| sanitize(name)).collect();
            paragraphs.push(format!(
                "Your connected apps keep their access: {}. If you do not recognize one of them, \
                 disconnect it at {public_url}/connected-apps.",
                names.join(", "),
            ));
        }
        if !disconnected_apps.is_empty() {
            let names: Vec<String> = disconnected_apps.iter().map(|name| sanitize(name)).collect();
            paragraphs.push(format!(
                "These connected apps no longer have access: {}. If you still use one of them, \
                 connect it again.",
                names.join(", "),
            ));
        }
        paragraphs.push(NEW_PASSWORD_ADVICE.to_owned());
        Self {
            subject: "Your password was changed".to_owned(),
            paragraphs,
            link: Some(Link::to_new_password(public_url)),
            note: NO_ACTION_NEEDED.to_owned(),
        }
    }

    pub(super) fn prior_setup_ended(
        public_url: &str,
        origin: &RequestOrigin,
        ended: &EndedSetup,
    ) -> Self {
        let mut paragraphs = vec![
            "You confirmed the email address of your Call2Me account without signing in. The \
             account may have been created by another person, so everything that was set up \
             before has been removed:"
                .to_owned(),
        ];
        paragraphs.extend(ended_items(ended));
        paragraphs.push(origin_line(origin));
        let advice = if ended.password {
            "To sign in, choose a password with the link below."
        } else {
            "If you did not choose the password of this account, replace it with the link below."
        };
        paragraphs.push(advice.to_owned());
        Self {
            subject: "Your account was reset".to_owned(),
            paragraphs,
            link: Some(Link::to_new_password(public_url)),
            note: "If you still need an API key or a connected app, create or connect it again."
                .to_owned(),
        }
    }

    pub(super) fn second_factor_changed(
        public_url: &str,
        is_totp_enabled: bool,
        origin: &RequestOrigin,
    ) -> Self {
        let (subject, paragraph) = if is_totp_enabled {
            (
                "Two-factor sign-in is on",
                "Two-factor sign-in was turned on for your Call2Me account. From now on, signing \
                 in requires a code from your authenticator app.",
            )
        } else {
            (
                "Two-factor sign-in is off",
                "Two-factor sign-in was turned off for your Call2Me account. From now on, your \
                 password alone is enough to sign in.",
            )
        };
        Self {
            subject: subject.to_owned(),
            paragraphs: vec![
                paragraph.to_owned(),
                origin_line(origin),
                NEW_PASSWORD_ADVICE.to_owned(),
            ],
            link: Some(Link::to_new_password(public_url)),
            note: NO_ACTION_NEEDED.to_owned(),
        }
    }

    pub(super) fn factors_removed() -> Self {
        Self {
            subject: "Your authenticator app and passkeys were removed".to_owned(),
            paragraphs: vec![
                "The operator of this service removed the authenticator app and the passkeys from \
                 your Call2Me account and signed you out on all devices."
                    .to_owned(),
                "From now on, your password alone is enough to sign in. We recommend that you set \
                 up a second factor again."
                    .to_owned(),
            ],
            link: None,
            note: "If you did not request this, contact your administrator.".to_owned(),
        }
    }

    pub(super) fn passkey_changed(public_url: &str, is_new: bool, origin: &RequestOrigin) -> Self {
        let (subject, paragraph) = if is_new {
            (
                "Your account has a new passkey",
                "A passkey was added to your Call2Me account. It can sign in without your \
                 password.",
            )
        } else {
            (
                "A passkey was removed from your account",
                "A passkey was removed from your Call2Me account. It can no longer sign in.",
            )
        };
        Self {
            subject: subject.to_owned(),
            paragraphs: vec![paragraph.to_owned(), origin_line(origin)],
            link: Some(Link {
                label: "Review your passkeys",
                url: format!("{public_url}/second-factor"),
            }),
            note: "If this was not you, change your password and remove every passkey that you \
                   do not recognize. If you cannot remove it, contact your administrator."
                .to_owned(),
        }
    }

    pub(super) fn recovery_codes_renewed(public_url: &str, origin: &RequestOrigin) -> Self {
        Self {
            subject: "You have new recovery codes".to_owned(),
            paragraphs: vec![
                "New recovery codes were created for your Call2Me account. The previous codes no \
                 longer work."
                    .to_owned(),
                origin_line(origin),
                NEW_PASSWORD_ADVICE.to_owned(),
            ],
            link: Some(Link::to_new_password(public_url)),
            note: NO_ACTION_NEEDED.to_owned(),
        }
    }

    pub(super) fn new_sign_in(public_url: &str, origin: &RequestOrigin) -> Self {
        Self {
            subject: "New sign-in to your account".to_owned(),
            paragraphs: vec![
                "Your Call2Me account was used to sign in from a new location or with a new \
                 browser or program."
                    .to_owned(),
                origin_line(origin),
                "If this was not you, sign out that session and change your password.".to_owned(),
            ],
            link: Some(Link {
                label: "Review your sessions",
                url: format!("{public_url}/sessions"),
            }),
            note: NO_ACTION_NEEDED.to_owned(),
        }
    }

    pub(super) fn admin_key_created(
        key: &str,
        workspace: &str,
        by: &str,
        origin: &RequestOrigin,
    ) -> Self {
        let [key, workspace, by] = [key, workspace, by].map(sanitize);
        Self {
            subject: "An admin API key was created".to_owned(),
            paragraphs: vec![
                format!("{by} created the API key {key} in the workspace {workspace} on Call2Me."),
                "The key has full administrator access and does not expire.".to_owned(),
                origin_line(origin),
                "All owners of the workspace receive this email.".to_owned(),
            ],
            link: None,
            note: "If you expected this key, no action is needed. Otherwise, revoke it on the API \
                   keys page of the dashboard."
                .to_owned(),
        }
    }

    pub(super) fn admin_client_created(
        client: &str,
        workspace: &str,
        by: &str,
        origin: &RequestOrigin,
    ) -> Self {
        let [client, workspace, by] = [client, workspace, by].map(sanitize);
        Self {
            subject: "An OAuth client with admin access was created".to_owned(),
            paragraphs: vec![
                format!(
                    "{by} created the OAuth client {client} in the workspace {workspace} on \
                     Call2Me."
                ),
                "The client can get full administrator access, and does not expire.".to_owned(),
                origin_line(origin),
                "All owners of the workspace receive this email.".to_owned(),
            ],
            link: None,
            note: "If you expected this client, no action is needed. Otherwise, delete it \
                   (DELETE /v1/oauth/clients/id), and revoke the API key that created it."
                .to_owned(),
        }
    }

    pub(super) fn admin_invited(
        public_url: &str,
        email: &str,
        workspace: &str,
        by: &str,
        origin: &RequestOrigin,
    ) -> Self {
        let [workspace, by] = [workspace, by].map(sanitize);
        Self {
            subject: "An API key invited an administrator".to_owned(),
            paragraphs: vec![
                format!(
                    "The API key {by} invited {} to the workspace {workspace} on Call2Me, as an \
                     administrator.",
                    sanitize_address(email),
                ),
                origin_line(origin),
                "All owners of the workspace receive this email.".to_owned(),
            ],
            link: Some(Link { label: "Review members", url: format!("{public_url}/members") }),
            note: "If you expected this invitation, no action is needed. Otherwise, withdraw it, \
                   and revoke the API key."
                .to_owned(),
        }
    }

    pub(super) fn key_revoked(
        public_url: &str,
        key: &str,
        workspace: &str,
        by: &str,
        origin: Option<&RequestOrigin>,
        remaining: &RemainingAccess,
    ) -> Self {
        let [key, workspace, by] = [key, workspace, by].map(sanitize);
        let mut paragraphs = vec![format!(
            "The API key {key} of the workspace {workspace} on Call2Me was revoked by {by}. It no \
             longer works."
        )];
        paragraphs.extend(origin.map(origin_line));
        paragraphs.extend(remaining_access(remaining, "The key"));
        paragraphs.push("All owners of the workspace receive this email.".to_owned());
        Self {
            subject: "An API key was revoked".to_owned(),
            paragraphs,
            link: Some(Link { label: "Review API keys", url: format!("{public_url}/api-keys") }),
            note: "If the key was leaked, look in the audit log for requests that you do not \
                   recognize."
                .to_owned(),
        }
    }

    pub(super) fn member_lost_access(
        public_url: &str,
        (member, role): (&str, Option<Role>),
        workspace: &str,
        by: &str,
        origin: &RequestOrigin,
        remaining: &RemainingAccess,
    ) -> Self {
        let [workspace, by] = [workspace, by].map(sanitize);
        let member = sanitize_address(member);
        let (subject, change) = match role.map(Role::as_str) {
            None => (
                "A member was removed from a workspace",
                format!("{by} removed {member} from the workspace {workspace} on Call2Me."),
            ),
            Some(role) => (
                "A member of a workspace has a lower role",
                format!(
                    "{by} changed the role of {member} in the workspace {workspace} on Call2Me to \
                     {role}."
                ),
            ),
        };
        let mut paragraphs = vec![change, origin_line(origin)];
        paragraphs.extend(remaining_access(remaining, "The member"));
        paragraphs.push("All owners of the workspace receive this email.".to_owned());
        Self {
            subject: subject.to_owned(),
            paragraphs,
            link: Some(Link { label: "Review API keys", url: format!("{public_url}/api-keys") }),
            note: "Revoke each key that the member may still have.".to_owned(),
        }
    }

    pub(super) fn password_guesses(public_url: &str, origin: &RequestOrigin) -> Self {
        Self {
            subject: "Attempts to guess your password".to_owned(),
            paragraphs: vec![
                "There were many attempts to sign in to your Call2Me account with a wrong \
                 password, from networks that you have not used before. They did not succeed, and \
                 further attempts are slowed down."
                    .to_owned(),
                format!("The last attempt: {}", origin_line(origin)),
                "If this was not you, choose a password that you use nowhere else, and set up \
                 two-factor authentication or a passkey."
                    .to_owned(),
            ],
            link: Some(Link {
                label: "Review your sign-in methods",
                url: format!("{public_url}/second-factor"),
            }),
            note: "If this was you, no action is needed. You get this email at most once a day."
                .to_owned(),
        }
    }

    pub(super) fn account_deleted(origin: &RequestOrigin) -> Self {
        Self {
            subject: "Your account was deleted".to_owned(),
            paragraphs: vec![
                "Your Call2Me account was deleted, and with it all workspaces in which you were \
                 the only member."
                    .to_owned(),
                origin_line(origin),
            ],
            link: None,
            note: "If this was you, no action is needed. If this was not you, contact support \
                   immediately."
                .to_owned(),
        }
    }

    pub(super) fn session_ended(public_url: &str, origin: &RequestOrigin) -> Self {
        Self {
            subject: "We ended one of your sessions".to_owned(),
            paragraphs: vec![
                "A sign-in token of your Call2Me account was used twice. Either the token was \
                 stolen, or one of your programs kept an old copy."
                    .to_owned(),
                "As a precaution, we ended the session. To continue, sign in again.".to_owned(),
                origin_line(origin),
            ],
            link: Some(Link {
                label: "Review your sessions",
                url: format!("{public_url}/sessions"),
            }),
            note: "If you do not recognize this device, change your password.".to_owned(),
        }
    }
}

/// Returns a paragraph for each kind of thing that has ended.
fn ended_items(ended: &EndedSetup) -> impl Iterator<Item = String> {
    let flags = [
        (ended.password, "The password".to_owned()),
        (ended.totp, "The authenticator app and its recovery codes".to_owned()),
        (ended.sessions > 0, format!("Sessions: {}", ended.sessions)),
    ];
    let lists = [
        ("Passkeys", &ended.passkeys),
        ("Connected apps", &ended.apps),
        ("API keys", &ended.api_keys),
        ("OAuth clients", &ended.oauth_clients),
        ("Invitations", &ended.invitations),
        ("Members", &ended.members),
    ];
    let lists = lists.map(|(label, list)| (list.total > 0, format!("{label}: {}", listed(list))));
    flags.into_iter().chain(lists).filter(|(has_ended, _)| *has_ended).map(|(_, text)| text)
}

fn listed(list: &NameList) -> String {
    let names: Vec<String> = list.names.iter().map(|name| sanitize(name)).collect();
    format!("{}{}", names.join(", "), more_than_listed(list))
}

/// Says how many names there are besides those of the list.
fn more_than_listed(list: &NameList) -> String {
    match list.total.saturating_sub(list.names.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

/// Returns sentences about the access that a creator leaves behind.
fn remaining_access(remaining: &RemainingAccess, creator: &str) -> Vec<String> {
    let RemainingAccess {
        api_keys,
        oauth_clients,
        client_secrets,
        redirect_uris,
        members,
        widened_api_keys,
        has_more,
    } = remaining;
    let names =
        |names: &[String]| names.iter().map(|name| sanitize(name)).collect::<Vec<_>>().join(", ");
    let mut sentences = Vec::new();
    if !api_keys.is_empty() {
        let names = names(api_keys);
        sentences.push(format!("{creator} had created API keys that still work: {names}."));
    }
    if !oauth_clients.is_empty() {
        let names = names(oauth_clients);
        sentences.push(format!("{creator} had created OAuth clients that still work: {names}."));
    }
    for (list, text) in [
        (client_secrets, "had added secrets to these OAuth clients, which still work"),
        (redirect_uris, "had added redirect URIs to these OAuth clients"),
        (
            widened_api_keys,
            "had enabled or widened these API keys, or given access to their creators. They still work",
        ),
    ] {
        if list.total > 0 {
            sentences.push(format!("{creator} {text}: {}.", listed(list)));
        }
    }
    if members.total > 0 {
        let names: Vec<_> = members.names.iter().map(|name| sanitize_address(name)).collect();
        let more = more_than_listed(members);
        let names = names.join(", ");
        sentences.push(format!(
            "{creator} had invited these members, or set their role: {names}{more}."
        ));
    }
    if *has_more && sentences.is_empty() {
        sentences.push(format!("{creator} had given access that could not be listed in time."));
    } else if *has_more {
        sentences.push("There are more. The audit log and the API list them.".to_owned());
    }
    sentences
}

/// Limits an email address to its usual characters. Mail programs make no web link of an address.
fn sanitize_address(email: &str) -> String {
    let is_allowed = |c: &char| c.is_alphanumeric() || "@._+-".contains(*c);
    email.chars().filter(is_allowed).take(254).collect()
}

/// Returns the time, IP address and client of an action.
fn origin_line(origin: &RequestOrigin) -> String {
    let client = origin.user_agent.as_deref().unwrap_or("unknown");
    // Fractions of a second do not help a reader.
    let at = origin.at.split('.').next().unwrap_or_default().replace('T', " ");
    format!("Time: {at} UTC. IP address: {}. Browser or program: {}.", origin.ip, sanitize(client))
}

/// Limits foreign text to 80 characters and removes those from which mail programs could make a
/// link.
fn sanitize(text: &str) -> String {
    let is_allowed = |c: &char| c.is_alphanumeric() || " /()_;,'&-".contains(*c);
    text.chars().filter(is_allowed).take(80).collect()
}
