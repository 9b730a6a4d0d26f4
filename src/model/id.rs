//! Ids: a prefix, `_`, and a UUIDv7 in 26 characters of base32 (the `TypeID` specification).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Invalid;

/// Crockford's alphabet in lower case, as `TypeID` has it.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters after the underscore: 26 × 5 bits hold 128, the first two of which are zero.
const SUFFIX_LEN: usize = 26;

/// Something that has an id of its own prefix.
pub trait Id: Copy + From<Uuid> {
    /// What stands before the underscore.
    const PREFIX: &'static str;

    /// The bare UUID, as the database has it.
    fn uuid(self) -> Uuid;
}

/// Writes an id of any prefix.
#[must_use]
pub fn format(prefix: &str, id: Uuid) -> String {
    let mut text = String::with_capacity(prefix.len() + 1 + SUFFIX_LEN);
    text.push_str(prefix);
    text.push('_');
    text.push_str(str::from_utf8(&suffix(id)).unwrap_or_default());
    text
}

/// What stands behind the underscore.
fn suffix(id: Uuid) -> [u8; SUFFIX_LEN] {
    let mut bits = id.as_u128();
    let mut suffix = [0; SUFFIX_LEN];
    for digit in suffix.iter_mut().rev() {
        *digit = ALPHABET[usize::from(bits.to_le_bytes()[0] & 31)];
        bits >>= 5;
    }
    suffix
}

/// The longest text of an id that needs no memory of its own.
const SHORT: usize = 48;

/// Serializes an id of any prefix: several times for each event of the log, so without an allocation.
///
/// # Errors
/// When the serializer fails.
pub fn serialize<S: Serializer>(prefix: &str, id: Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = [0; SHORT];
    let len = prefix.len() + 1 + SUFFIX_LEN;
    let Some(room) = text.get_mut(..len) else {
        return serializer.serialize_str(&format(prefix, id));
    };
    let (head, tail) = room.split_at_mut(prefix.len());
    head.copy_from_slice(prefix.as_bytes());
    tail[0] = b'_';
    tail[1..].copy_from_slice(&suffix(id));
    serializer.serialize_str(str::from_utf8(room).unwrap_or_default())
}

/// Reads an id of one prefix.
///
/// # Errors
/// When the prefix is another, or the rest is not 26 characters of base32 that fit 128 bits.
pub fn parse(prefix: &str, text: &str) -> Result<Uuid, Invalid> {
    let refuse = || Invalid::new(format!("must be an id that starts with {prefix}_"));
    let suffix = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
        .filter(|suffix| suffix.len() == SUFFIX_LEN && suffix.as_bytes()[0] <= b'7')
        .ok_or_else(refuse)?;
    let mut bits = 0_u128;
    for byte in suffix.bytes() {
        let digit = ALPHABET.iter().position(|letter| *letter == byte).ok_or_else(refuse)?;
        bits = (bits << 5) | u128::try_from(digit).map_err(|_| refuse())?;
    }
    Ok(Uuid::from_u128(bits))
}

/// The millisecond that a UUIDv7 was made in (RFC 9562, section 5.7).
#[must_use]
pub fn moment(id: Uuid) -> OffsetDateTime {
    // 48 bits of milliseconds reach beyond what a timestamp can tell: no id of ours does.
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis(id)) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The moment in an id, in milliseconds since 1970.
#[must_use]
pub const fn millis(id: Uuid) -> u64 {
    id.as_u64_pair().0 >> 16
}

/// How the OpenAPI document describes an id of a prefix.
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
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
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
    /// A workspace: the tenant.
    WorkspaceId = "ws";
    /// A person.
    UserId = "user";
    /// An API key.
    ApiKeyId = "key";
    /// A person's session; the `sid` of its access tokens.
    SessionId = "session";
    /// An event of the audit log.
    EventId = "event";
    /// A request.
    RequestId = "req";
    /// A voice agent.
    AgentId = "agent";
    /// A phone call.
    CallId = "call";
    /// A knowledge base.
    KnowledgeBaseId = "kb";
    /// A campaign.
    CampaignId = "campaign";
    /// An invitation to a workspace.
    InvitationId = "invite";
    /// A passkey of a person.
    PasskeyId = "passkey";
    /// A movement of a workspace's wallet.
    TransactionId = "txn";
    /// A key that signs access tokens; the `kid` of the JWKS.
    SigningKeyId = "sig";
    /// An OAuth client; mostly its `client_id` too.
    ClientId = "client";
    /// What somebody lets an OAuth client do; the `sid` of its access tokens.
    GrantId = "grant";
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(bits: u128) {
            let id = WorkspaceId::from(Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().len(), 3 + 26);
        }

        #[test]
        fn order_is_kept(a: u128, b: u128) {
            let [x, y] = [a, b].map(|bits| EventId::from(Uuid::from_u128(bits)).to_string());
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn anything_else_is_refused(text in "\\PC*") {
            if let Ok(id) = text.parse::<WorkspaceId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn the_published_example_of_typeid_is_read() {
        let id = parse("prefix", "prefix_01h455vb4pex5vsknk084sn02q").unwrap();
        assert_eq!(id.to_string(), "01890a5d-ac96-774b-bcce-b302099a8057");
    }

    #[test]
    fn near_misses_are_refused() {
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
