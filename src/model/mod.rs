//! Domain types, without HTTP and without SQL.
//!
//! Every value of these types is valid: client input becomes one only by parsing.
//!
//! [`principal`] holds the identity behind a request, [`audit`] the audit events, [`oauth`] the
//! types of OAuth 2.1.

pub mod address;
pub mod api_key;
pub mod audit;
pub mod brand;
pub mod document;
pub mod email;
pub mod fields;
pub mod id;
pub mod invalidation;
pub mod invitation;
pub mod key_descendants;
pub mod key_ring;
pub mod mail;
pub mod oauth;
pub mod one_time_token;
pub mod page;
pub mod passkey;
pub mod password;
pub mod principal;
pub mod refresh_token;
pub mod restore;
pub mod rotation;
pub mod scope;
pub mod second_factor;
pub mod session;
pub mod session_cookie;
pub mod sign_in_throttling;
pub mod signing_key;
pub mod text;
pub mod timestamp;
pub mod usage;
pub mod user;
pub mod wallet;
pub mod workspace;

/// The error for an invalid value from a client. Its message says what the value must be, and is
/// shown to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValidationError(pub String);

impl ValidationError {
    /// Creates an error with this message.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
