//! What mails say.

use askama::Template;
use secrecy::{ExposeSecret, SecretString};

use crate::model::mail::Origin;

/// A mail's text: paragraphs, perhaps a link, and a note.
pub(super) struct Letter {
    pub(super) subject: String,
    paragraphs: Vec<String>,
    link: Option<Link>,
    note: String,
}

struct Link {
    label: &'static str,
    url: String,
}

#[derive(Template)]
#[template(path = "letter.txt", escape = "none")]
struct Text<'a> {
    letter: &'a Letter,
}

#[derive(Template)]
#[template(path = "letter.html")]
struct Html<'a> {
    letter: &'a Letter,
}

/// The address of a page, with the token that it takes.
pub(super) fn link(public_url: &str, page: &str, token: &SecretString) -> String {
    format!("{public_url}/{page}?token={}", token.expose_secret())
}

impl Letter {
    pub(super) fn text(&self) -> askama::Result<String> {
        Text { letter: self }.render()
    }

    pub(super) fn html(&self) -> askama::Result<String> {
        Html { letter: self }.render()
    }

    pub(super) fn reset_password(url: String) -> Self {
        Self {
            subject: "Reset your password".to_owned(),
            paragraphs: vec![
                "Somebody asked to reset the password of the account with this address.".to_owned(),
                "The link works once, within an hour. It ends all your sessions.".to_owned(),
            ],
            link: Some(Link { label: "Choose a new password", url }),
            note: "If it was not you, do nothing: your password stays as it is.".to_owned(),
        }
    }

    pub(super) fn verify_email(url: String) -> Self {
        Self {
            subject: "Verify your e-mail address".to_owned(),
            paragraphs: vec!["Please confirm that this address is yours.".to_owned()],
            link: Some(Link { label: "Verify the address", url }),
            note: "If you did not sign up, do nothing.".to_owned(),
        }
    }

    pub(super) fn invitation(url: String, workspace: &str) -> Self {
        let workspace = harmless(workspace);
        Self {
            subject: format!("Invitation to the workspace {workspace}"),
            paragraphs: vec![
                format!("You are invited to join the workspace {workspace}."),
                "The link works once, within a week.".to_owned(),
            ],
            link: Some(Link { label: "Accept the invitation", url }),
            note: "If you do not know who invites you, do nothing.".to_owned(),
        }
    }

    pub(super) fn password_changed(
        public_url: &str,
        origin: &Origin,
        passkeys: &[String],
        apps: &[String],
    ) -> Self {
        let changed = "The password of your account was changed, and other sessions were ended.";
        let mut paragraphs = vec![changed.to_owned(), told(origin)];
        if !passkeys.is_empty() {
            let names: Vec<String> = passkeys.iter().map(|name| harmless(name)).collect();
            paragraphs.push(format!(
                "Your passkeys go on signing in: {}. If one of them is not yours, take it away at {public_url}/second-factor, or ask whoever runs this service to.",
                names.join(", "),
            ));
        }
        if !apps.is_empty() {
            let names: Vec<String> = apps.iter().map(|name| harmless(name)).collect();
            paragraphs.push(format!(
                "The apps that are connected go on: {}. If you did not connect one of them, disconnect it at {public_url}/connected-apps.",
                names.join(", "),
            ));
        }
        Self {
            subject: "Your password was changed".to_owned(),
            paragraphs,
            link: Some(Link {
                label: "If it was not you, choose a new one now",
                url: format!("{public_url}/forgot-password"),
            }),
            note: "If it was you, there is nothing to do.".to_owned(),
        }
    }

    pub(super) fn second_factor(public_url: &str, is_on: bool, origin: &Origin) -> Self {
        let (subject, paragraph) = if is_on {
            (
                "Two-factor sign-in is on",
                "From now on, signing in takes a code of your authenticator.",
            )
        } else {
            ("Two-factor sign-in is off", "From now on, your password alone signs in.")
        };
        Self {
            subject: subject.to_owned(),
            paragraphs: vec![paragraph.to_owned(), told(origin)],
            link: Some(Link {
                label: "If it was not you, choose a new password now",
                url: format!("{public_url}/forgot-password"),
            }),
            note: "If it was you, there is nothing to do.".to_owned(),
        }
    }

    pub(super) fn factors_taken_away() -> Self {
        Self {
            subject: "Your authenticator and passkeys were taken away".to_owned(),
            paragraphs: vec![
                "Whoever runs this service took your authenticator and your passkeys away, and ended your sessions."
                    .to_owned(),
                "From now on, your password alone signs in, until you set something up again.".to_owned(),
            ],
            link: None,
            note: "If you did not ask for it, ask them why.".to_owned(),
        }
    }

    pub(super) fn passkey(public_url: &str, is_new: bool, origin: &Origin) -> Self {
        let (subject, paragraph) = if is_new {
            (
                "You have a new passkey",
                "A passkey was made for your account. It signs in by itself.",
            )
        } else {
            ("A passkey was taken away", "A passkey of your account does not sign in any more.")
        };
        Self {
            subject: subject.to_owned(),
            paragraphs: vec![paragraph.to_owned(), told(origin)],
            link: Some(Link {
                label: "See your passkeys",
                url: format!("{public_url}/second-factor"),
            }),
            note: "If it was not you, change your password and take the passkey away; where that is refused, ask whoever runs this service to.".to_owned(),
        }
    }

    pub(super) fn recovery_codes_renewed(public_url: &str, origin: &Origin) -> Self {
        Self {
            subject: "You have new recovery codes".to_owned(),
            paragraphs: vec![
                "New recovery codes were made for your account; the ones before do not work any more."
                    .to_owned(),
                told(origin),
            ],
            link: Some(Link {
                label: "If it was not you, choose a new password now",
                url: format!("{public_url}/forgot-password"),
            }),
            note: "If it was you, there is nothing to do.".to_owned(),
        }
    }

    pub(super) fn new_device(public_url: &str, origin: &Origin) -> Self {
        Self {
            subject: "New sign-in to your account".to_owned(),
            paragraphs: vec![
                "Somebody signed in to your account from a place or with a program that is new."
                    .to_owned(),
                told(origin),
            ],
            link: Some(Link { label: "See your sessions", url: format!("{public_url}/sessions") }),
            note: "If it was not you, end that session and change your password.".to_owned(),
        }
    }

    pub(super) fn admin_key(key: &str, workspace: &str, by: &str, origin: &Origin) -> Self {
        let [key, workspace, by] = [key, workspace, by].map(harmless);
        Self {
            subject: format!("An admin API key was made in {workspace}"),
            paragraphs: vec![
                format!(
                    "{by} made the API key {key} in the workspace {workspace}. It may do all that an \
                     admin may, and does not expire."
                ),
                told(origin),
            ],
            link: None,
            note: "If nobody should have, revoke it. All owners are told.".to_owned(),
        }
    }

    pub(super) fn account_deleted(origin: &Origin) -> Self {
        Self {
            subject: "Your account was deleted".to_owned(),
            paragraphs: vec![
                "Your account is gone, and so are workspaces that were yours alone.".to_owned(),
                told(origin),
            ],
            link: None,
            note: "If it was not you, tell support now.".to_owned(),
        }
    }

    pub(super) fn session_reuse(public_url: &str, origin: &Origin) -> Self {
        Self {
            subject: "We ended one of your sessions".to_owned(),
            paragraphs: vec![
                "A sign-in token of yours was used a second time. Either a copy of it was stolen, or a \
                 program of yours kept an old one. To be safe, the session was ended."
                    .to_owned(),
                told(origin),
            ],
            link: Some(Link { label: "See your sessions", url: format!("{public_url}/sessions") }),
            note: "If you do not know this device, change your password.".to_owned(),
        }
    }
}

/// When and from where.
fn told(origin: &Origin) -> String {
    let client = origin.user_agent.as_deref().unwrap_or("an unknown client");
    // To the second is enough for a person.
    let at = origin.at.split('.').next().unwrap_or_default().replace('T', " ");
    format!("When: {at} UTC. From: {}, with {}.", origin.ip, harmless(client))
}

/// Somebody else's words: short, and nothing in them that a mail program makes a link of.
fn harmless(text: &str) -> String {
    let is_harmless = |c: &char| c.is_alphanumeric() || " /()_;,'&-".contains(*c);
    text.chars().filter(is_harmless).take(80).collect()
}
