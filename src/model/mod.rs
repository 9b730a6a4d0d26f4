//! Plain types: what the service is about, without HTTP and without SQL.
//!
//! A value of one of these types is valid: parsing is the only way to get one from a client.

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
pub mod mail;
pub mod oauth;
pub mod one_time_token;
pub mod page;
pub mod passkey;
pub mod password;
pub mod principal;
pub mod refresh_token;
pub mod rotation;
pub mod scope;
pub mod second_factor;
pub mod session;
pub mod signing_key;
pub mod text;
pub mod timestamp;
pub mod usage;
pub mod user;
pub mod wallet;
pub mod workspace;

/// Why a value from a client was refused: a sentence for its author.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    /// A refusal with its reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
