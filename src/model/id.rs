//! Public ids: a prefix, `_`, and a UUIDv7 in 26 characters of base32 (the `TypeID` specification).
//!
//! Each kind of object has its own type and prefix, so that an id of one kind is never accepted as
//! an id of another. The text form sorts like the UUIDs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

use super::ValidationError;

/// Crockford's base32 alphabet in lower case, as `TypeID` specifies it.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters after the underscore: 26 × 5 = 130 bits, of which the first two are zero.
const SUFFIX_LEN: usize = 26;

/// An id type with its own prefix.
pub trait Id: Copy + From<Uuid> {
    /// The text before the underscore.
    const PREFIX: &'static str;

    /// Returns the UUID without prefix, as the database stores it.
    fn uuid(self) -> Uuid;
}

/// Formats an id with a prefix.
#[must_use]
pub fn format(prefix: &str, id: Uuid) -> String {
    let mut text = String::with_capacity(prefix.len() + 1 + SUFFIX_LEN);
    text.push_str(prefix);
    text.push('_');
    text.push_str(str::from_utf8(&encode_suffix(id)).unwrap_or_default());
    text
}

/// Returns the characters after the underscore.
fn encode_suffix(id: Uuid) -> [u8; SUFFIX_LEN] {
    let mut bits = id.as_u128();
    let mut suffix = [0; SUFFIX_LEN];
    for digit in suffix.iter_mut().rev() {
        *digit = ALPHABET[usize::from(bits.to_le_bytes()[0] & 31)];
        bits >>= 5;
    }
    suffix
}

/// The longest id text, in bytes, that is serialized without a heap allocation.
const STACK_LEN: usize = 48;

/// Serializes an id with a prefix.
///
/// It usually does not allocate, because each audit event serializes several ids.
///
/// # Errors
/// The serializer's error.
pub fn serialize<S: Serializer>(prefix: &str, id: Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = [0; STACK_LEN];
    let len = prefix.len() + 1 + SUFFIX_LEN;
    let Some(buffer) = text.get_mut(..len) else {
        return serializer.serialize_str(&format(prefix, id));
    };
    let (head, tail) = buffer.split_at_mut(prefix.len());
    head.copy_from_slice(prefix.as_bytes());
    tail[0] = b'_';
    tail[1..].copy_from_slice(&encode_suffix(id));
    serializer.serialize_str(str::from_utf8(buffer).unwrap_or_default())
}

/// Parses an id with this prefix.
///
/// # Errors
/// [`ValidationError`] if the prefix differs, or the rest is not 26 base32 characters that fit in
/// 128 bits.
pub fn parse(prefix: &str, text: &str) -> Result<Uuid, ValidationError> {
    let invalid = || ValidationError::new(format!("must be an id that starts with {prefix}_"));
    let suffix = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
        .filter(|suffix| suffix.len() == SUFFIX_LEN && suffix.as_bytes()[0] <= b'7')
        .ok_or_else(invalid)?;
    let mut bits = 0_u128;
    for byte in suffix.bytes() {
        let digit = ALPHABET.iter().position(|letter| *letter == byte).ok_or_else(invalid)?;
        bits = (bits << 5) | u128::try_from(digit).map_err(|_| invalid())?;
    }
    Ok(Uuid::from_u128(bits))
}

/// Returns the time at which a UUIDv7 was created, in milliseconds precision (RFC 9562,
/// section 5.7).
#[must_use]
pub fn creation_time(id: Uuid) -> OffsetDateTime {
    // 48 bits of milliseconds exceed the range of `OffsetDateTime`, but no id of this service does.
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(creation_millis(id)) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Returns the time in a UUIDv7, in milliseconds since 1970.
#[must_use]
pub const fn creation_millis(id: Uuid) -> u64 {
    id.as_u64_pair().0 >> 16
}

/// Returns the OpenAPI schema of an id with this prefix.
fn schema(prefix: &str) -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
    use utoipa::openapi::{ObjectBuilder, schema::Type};
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^{prefix}_[0-7][0-9a-hjkmnp-tv-z]{{25}}$")))
        .examples([format!("{prefix}_01jd0zt8q7f7qvs4p2k6x3m9ab")])
        .into()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl Id for $name {
            const PREFIX: &'static str = $prefix;

            fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&format(Self::PREFIX, self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ValidationError;

            fn from_str(text: &str) -> Result<Self, ValidationError> {
                parse(Self::PREFIX, text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serialize(Self::PREFIX, self.0, serializer)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                schema(Self::PREFIX)
            }
        }

        impl utoipa::ToSchema for $name {}

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// The id of a workspace.
    WorkspaceId = "ws";
    /// The id of a user.
    UserId = "user";
    /// The id of an API key.
    ApiKeyId = "key";
    /// The id of a user's session; the `sid` of its access tokens.
    SessionId = "session";
    /// The id of an audit event.
    EventId = "event";
    /// The id of a request.
    RequestId = "req";
    /// The id of a voice agent.
    AgentId = "agent";
    /// The id of a phone call.
    CallId = "call";
    /// The id of a knowledge base.
    KnowledgeBaseId = "kb";
    /// The id of a campaign.
    CampaignId = "campaign";
    /// The id of an invitation to a workspace.
    InvitationId = "invite";
    /// The id of a user's passkey.
    PasskeyId = "passkey";
    /// The id of a transaction in a workspace's wallet.
    TransactionId = "txn";
    /// The id of a signing key; its `kid`.
    SigningKeyId = "sig";
    /// The id of an OAuth client; also its `client_id`, except for client metadata documents.
    ClientId = "client";
    /// The id of an OAuth grant; the `sid` of its access tokens.
    GrantId = "grant";
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn formatted_id_parses_back(bits: u128) {
            let id = WorkspaceId::from(Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().len(), 3 + 26);
        }

        #[test]
        fn text_order_matches_uuid_order(a: u128, b: u128) {
            let [x, y] = [a, b].map(|bits| EventId::from(Uuid::from_u128(bits)).to_string());
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn parsed_text_is_canonical(text in "\\PC*") {
            if let Ok(id) = text.parse::<WorkspaceId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn typeid_specification_example_is_parsed() {
        let id = parse("prefix", "prefix_01h455vb4pex5vsknk084sn02q").unwrap();
        assert_eq!(id.to_string(), "01890a5d-ac96-774b-bcce-b302099a8057");
    }

    #[test]
    fn malformed_id_is_rejected() {
        for text in [
            "",
            "ws",
            "ws_",
            "WS_01h455vb4pex5vsknk084sn02q",
            "ws_01H455VB4PEX5VSKNK084SN02Q",
            "ws_81h455vb4pex5vsknk084sn02q",
            "ws_01h455vb4pex5vsknk084sn02",
            "ws_01h455vb4pex5vsknk084sn02qq",
            "ws_01h455vb4pex5vsknk084sn02u",
            "user_01h455vb4pex5vsknk084sn02q",
            " ws_01h455vb4pex5vsknk084sn02q",
        ] {
            assert!(text.parse::<WorkspaceId>().is_err(), "{text}");
        }
    }
}
