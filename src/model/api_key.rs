//! API keys: their format and their stored records.
//!
//! A key is `sk_call2me_live_`, 30 random base62 characters and a CRC-32 checksum in 6 base62
//! characters. With the checksum, secret scanners and this service recognize a malformed key
//! without a database lookup.
//!
//! The key itself is never stored, only its SHA-256; see [`KeyDigest`].

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{
    ValidationError,
    id::{ApiKeyId, UserId, WorkspaceId},
    principal::Creator,
    scope::Scope,
};

/// The prefix of every key, before the environment's label.
pub const KEY_PREFIX: &str = "sk_call2me_";

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_LEN: usize = 30;
const CHECKSUM_LEN: usize = 6;
/// Characters of the random part that are displayed, at either end.
const DISPLAY_LEN: usize = 4;

/// The label of a deployment in its keys, such as `live` or `test`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment(String);

impl Environment {
    /// Returns the label.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Environment {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        let is_valid = (1..=16).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if is_valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValidationError::new("must be 1 to 16 lower-case letters or digits"))
        }
    }
}

/// The error for a text that cannot be a key of this deployment. It needs no database lookup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFormatError {
    /// The prefix, the length or the alphabet is wrong.
    #[error("the API key is malformed")]
    Malformed,
    /// The checksum does not match the random part: the key is mistyped, truncated or made up.
    #[error("the API key is malformed: its checksum does not match")]
    WrongChecksum,
    /// The key is well-formed and belongs to another deployment.
    #[error("this API key belongs to the environment \"{theirs}\"; use a key of \"{ours}\"")]
    WrongEnvironment {
        /// The label in the key.
        theirs: String,
        /// The label of this deployment.
        ours: String,
    },
}

/// A complete API key. `Debug` does not print it; its memory is zeroed on drop.
pub struct ApiKeySecret(SecretString);

impl ApiKeySecret {
    /// Generates a key; `random` fills a slice with random bytes.
    pub fn generate(environment: &Environment, random: impl Fn(&mut [u8])) -> Self {
        let mut key = format!("{KEY_PREFIX}{}_", environment.as_str());
        let start = key.len();
        while key.len() < start + RANDOM_LEN {
            let mut bytes = [0_u8; 32];
            random(&mut bytes);
            // Six bits give 0 to 63. Base62 has no 62 and 63; they are discarded, so that all
            // characters are equally likely.
            let letters = bytes.iter().filter_map(|byte| BASE62.get(usize::from(byte >> 2)));
            key.extend(letters.take(start + RANDOM_LEN - key.len()).map(|b| char::from(*b)));
        }
        let checksum = checksum(&key[start..]);
        key.extend(checksum.map(char::from));
        Self(key.into())
    }

    /// Parses a text as a key of this deployment.
    ///
    /// # Errors
    /// [`KeyFormatError`] if the format, the checksum or the environment is wrong.
    pub fn parse(text: &str, ours: &Environment) -> Result<Self, KeyFormatError> {
        let (theirs, rest) = text
            .strip_prefix(KEY_PREFIX)
            .and_then(|rest| rest.split_once('_'))
            .ok_or(KeyFormatError::Malformed)?;
        if rest.len() != RANDOM_LEN + CHECKSUM_LEN
            || !rest.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Err(KeyFormatError::Malformed);
        }
        let (random, sum) = rest.split_at(RANDOM_LEN);
        if checksum(random) != sum.as_bytes() {
            return Err(KeyFormatError::WrongChecksum);
        }
        if theirs != ours.as_str() {
            let theirs = Environment::from_str(theirs).map_err(|_| KeyFormatError::Malformed)?.0;
            return Err(KeyFormatError::WrongEnvironment { theirs, ours: ours.0.clone() });
        }
        Ok(Self(text.to_owned().into()))
    }

    /// Returns the SHA-256 of the key, under which it is stored and looked up.
    #[must_use]
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha256::digest(self.0.expose_secret()).into())
    }

    /// Returns the first and last characters of the random part, for display.
    #[must_use]
    pub fn display_ends(&self) -> (String, String) {
        let key = self.0.expose_secret();
        let start = key.len() - RANDOM_LEN - CHECKSUM_LEN;
        let end = key.len() - CHECKSUM_LEN;
        (key[start..start + DISPLAY_LEN].to_owned(), key[end - DISPLAY_LEN..end].to_owned())
    }

    /// Returns the key itself, for the single response that contains it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for ApiKeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeySecret(…)")
    }
}

/// The SHA-256 of an API key. It is not secret like the key, but `Debug` does not print it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// Creates a digest from the bytes in the database.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, as the database stores them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

/// Returns the CRC-32 (IEEE) in base62, most significant digit first.
fn checksum(random: &str) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(random.as_bytes());
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// The status of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyStatus {
    /// Requests may use the key.
    Active,
    /// Requests with the key are rejected until it is enabled again.
    Disabled,
    /// The key was revoked; this is final.
    Revoked,
}

impl FromStr for KeyStatus {
    type Err = ValidationError;

    fn from_str(text: &str) -> Result<Self, ValidationError> {
        match text {
            "active" => Ok(Self::Active),
            "disabled" => Ok(Self::Disabled),
            "revoked" => Ok(Self::Revoked),
            _ => Err(ValidationError::new("status must be active, disabled or revoked")),
        }
    }
}

impl KeyStatus {
    /// Returns the name in JSON and on pages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Revoked => "revoked",
        }
    }

    /// Returns the status of a key that was disabled or revoked at these times. A revoked key stays
    /// revoked, also if it was disabled before.
    #[must_use]
    pub const fn of_times(
        disabled_at: Option<OffsetDateTime>,
        revoked_at: Option<OffsetDateTime>,
    ) -> Self {
        match (disabled_at, revoked_at) {
            (_, Some(_)) => Self::Revoked,
            (Some(_), None) => Self::Disabled,
            (None, None) => Self::Active,
        }
    }
}

/// The metadata of an API key: everything except the secret.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// The key's id.
    pub id: ApiKeyId,
    /// The workspace that owns the key; never changes.
    pub workspace_id: WorkspaceId,
    /// The key's name; need not be unique.
    pub name: String,
    /// The key's description.
    pub description: Option<String>,
    /// The key's scope; never changes.
    pub scope: Scope,
    /// The first characters of the random part.
    pub display_start: String,
    /// The last characters of the random part.
    pub display_end: String,
    /// The networks from which the key may be used; empty allows all addresses.
    pub allowed_ips: Vec<IpNet>,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// The public id of the principal that created the key; `None` is the operator.
    pub created_by: Option<String>,
    /// Time of the last request with the key.
    pub last_used_at: Option<OffsetDateTime>,
    /// Client address of the last request with the key.
    pub last_used_ip: Option<IpAddr>,
    /// Time at which the key was disabled; `None` if it is enabled.
    pub disabled_at: Option<OffsetDateTime>,
    /// Time of revocation; `None` if the key is not revoked.
    pub revoked_at: Option<OffsetDateTime>,
    /// The public id of the principal that revoked the key; `None` for its holder and the operator.
    pub revoked_by: Option<String>,
    /// The key's predecessor in a rotation.
    pub rotated_from: Option<ApiKeyId>,
    /// The key's successor in a rotation.
    pub rotated_to: Option<ApiKeyId>,
    /// The key's own rate limit in requests per minute; `None` is the workspace's.
    pub rate_limit_per_minute: Option<u32>,
}

impl ApiKey {
    /// Returns the key's status.
    #[must_use]
    pub fn status(&self) -> KeyStatus {
        KeyStatus::of_times(self.disabled_at, self.revoked_at)
    }

    /// Returns the key with its middle left out, for display: `sk_call2me_live_AbCd…wXyZ`.
    #[must_use]
    pub fn redacted(&self, environment: &Environment) -> String {
        let Self { display_start, display_end, .. } = self;
        format!("{KEY_PREFIX}{}_{display_start}…{display_end}", environment.as_str())
    }

    /// Returns true if a change gives the key access that it does not have: it enables the key, or
    /// allows further networks. `disabled` is the new state, if that changes too.
    #[must_use]
    pub fn is_widened_by(&self, change: &ApiKeyChange, disabled: Option<bool>) -> bool {
        let is_enabled = self.disabled_at.is_some() && disabled == Some(false);
        let networks = change.allowed_ips.as_deref();
        is_enabled || networks.is_some_and(|new| !is_within_networks(new, &self.allowed_ips))
    }
}

/// A new key, to be stored.
#[derive(Debug)]
pub struct NewApiKey {
    /// The key's id.
    pub id: ApiKeyId,
    /// The key's name.
    pub name: String,
    /// The key's description.
    pub description: Option<String>,
    /// The key's scope.
    pub scope: Scope,
    /// The SHA-256 of the key.
    pub digest: KeyDigest,
    /// The first and last characters of the random part.
    pub display_ends: (String, String),
    /// The networks from which the key may be used; empty allows all addresses.
    pub allowed_ips: Vec<IpNet>,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// The public id of the principal that creates the key.
    pub created_by: Option<String>,
    /// The user that creates the key, directly or through another credential.
    pub creator: Option<UserId>,
    /// The API key that creates the key.
    pub creator_key: Option<ApiKeyId>,
    /// The key's predecessor in a rotation.
    pub rotated_from: Option<ApiKeyId>,
    /// The key's own rate limit in requests per minute; `None` is the workspace's.
    pub rate_limit_per_minute: Option<u32>,
}

/// A change to a key; `None` leaves a value unchanged.
#[derive(Debug, Default)]
pub struct ApiKeyChange {
    /// The new name.
    pub name: Option<String>,
    /// The new description; an inner `None` removes it.
    pub description: Option<Option<String>>,
    /// The new allowed networks.
    pub allowed_ips: Option<Vec<IpNet>>,
    /// The new rate limit; an inner `None` removes it.
    pub rate_limit_per_minute: Option<Option<u32>>,
    /// The new time at which the key was disabled; an inner `None` enables it.
    pub disabled_at: Option<Option<OffsetDateTime>>,
    /// The credentials behind a change that widens the key: see [`ApiKey::is_widened_by`].
    pub widened_by: Option<Creator>,
}

impl ApiKeyChange {
    /// Returns the names of the changed fields in JSON, without `disabled`, which has events of its
    /// own.
    #[must_use]
    pub fn field_names(&self) -> Vec<&'static str> {
        let Self { name, description, allowed_ips, rate_limit_per_minute, .. } = self;
        let names = [
            name.as_ref().map(|_| "name"),
            description.as_ref().map(|_| "description"),
            allowed_ips.as_ref().map(|_| "allowed_ips"),
            rate_limit_per_minute.map(|_| "rate_limit_per_minute"),
        ];
        names.into_iter().flatten().collect()
    }
}

/// The data of a key that authentication needs. It is looked up by digest, before the caller is
/// known.
#[derive(Debug, Clone)]
pub struct KeyRecord {
    /// The key's id.
    pub id: ApiKeyId,
    /// The key's workspace.
    pub workspace_id: WorkspaceId,
    /// The key's name, for audit events.
    pub name: Arc<str>,
    /// The key's scope.
    pub scope: Scope,
    /// The networks from which the key may be used; empty allows all addresses.
    pub allowed_ips: Vec<IpNet>,
    /// The user that created the key.
    pub creator: Option<UserId>,
    /// The key's status.
    pub status: KeyStatus,
    /// The key's own rate limit in requests per minute; `None` is the workspace's.
    pub rate_limit_per_minute: Option<u32>,
    /// The workspace's own rate limit in requests per minute; `None` is the configured default.
    pub workspace_rate_limit_per_minute: Option<u32>,
}

/// Parses networks in CIDR notation; a bare address is a network of one address.
///
/// # Errors
/// [`ValidationError`] if a text is neither a network nor an address, or if there are more than
/// 100.
pub fn parse_networks(texts: &[String]) -> Result<Vec<IpNet>, ValidationError> {
    if texts.len() > 100 {
        return Err(ValidationError::new("allowed_ips must have at most 100 networks"));
    }
    let network = |text: &String| {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(|net| unmap_ipv4(net).trunc())
            .map_err(|_| {
                ValidationError::new(
                    "allowed_ips must be CIDR networks such as 203.0.113.0/24 or 2001:db8::/32",
                )
            })
    };
    texts.iter().map(network).collect()
}

/// True if every address of the networks `inner` is in one of the networks `outer`. An empty list
/// stands for all addresses.
#[must_use]
pub fn is_within_networks(inner: &[IpNet], outer: &[IpNet]) -> bool {
    if outer.is_empty() {
        return true;
    }
    // Aggregated, because two adjacent networks contain the network that spans both.
    let outer: Vec<_> = outer.iter().copied().map(unmap_ipv4).collect();
    let outer = IpNet::aggregate(&outer);
    !inner.is_empty()
        && inner.iter().copied().map(unmap_ipv4).all(|net| outer.iter().any(|of| of.contains(&net)))
}

/// Converts a network of IPv4-mapped IPv6 addresses to IPv4, because client addresses are compared
/// in their IPv4 form.
fn unmap_ipv4(net: IpNet) -> IpNet {
    match (net, net.addr().to_canonical()) {
        (IpNet::V6(v6), IpAddr::V4(v4)) if v6.prefix_len() >= 96 => {
            Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(net, IpNet::V4)
        }
        _ => net,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn live() -> Environment {
        "live".parse().unwrap()
    }

    /// Generates a key from these bytes in place of random ones, followed by zeros.
    fn key_from(bytes: Vec<u8>) -> String {
        let rest = std::cell::RefCell::new(bytes.into_iter());
        let key = ApiKeySecret::generate(&live(), |slice| {
            slice.fill_with(|| rest.borrow_mut().next().unwrap_or_default());
        });
        key.reveal().to_owned()
    }

    proptest! {
        #[test]
        fn generated_key_has_the_documented_format_and_parses(bytes: Vec<u8>) {
            let key = key_from(bytes);
            let form = &key["sk_call2me_live_".len()..];
            prop_assert!(key.starts_with("sk_call2me_live_"));
            prop_assert_eq!(form.len(), 36);
            prop_assert!(form.bytes().all(|b| b.is_ascii_alphanumeric()));
            let read = ApiKeySecret::parse(&key, &live()).unwrap();
            let digest: [u8; 32] = Sha256::digest(&key).into();
            prop_assert_eq!(read.digest().0, digest);
            prop_assert_eq!(read.display_ends(), (form[..4].to_owned(), form[26..30].to_owned()));
        }

        #[test]
        fn key_with_one_wrong_character_fails_the_checksum(
            bytes: Vec<u8>, at in 16_usize..52, to in 0_usize..62,
        ) {
            let mut key = key_from(bytes).into_bytes();
            prop_assume!(key[at] != BASE62[to]);
            key[at] = BASE62[to];
            let text = String::from_utf8(key).unwrap();
            prop_assert_eq!(ApiKeySecret::parse(&text, &live()).unwrap_err(), KeyFormatError::WrongChecksum);
        }

        #[test]
        fn arbitrary_text_is_rejected(text in "(sk_call2me_)?(live_)?\\PC*") {
            prop_assert!(ApiKeySecret::parse(&text, &live()).is_err());
        }

        #[test]
        fn key_of_another_environment_is_rejected_with_its_label(bytes: Vec<u8>) {
            let key = key_from(bytes);
            let test = "test".parse().unwrap();
            let refused = ApiKeySecret::parse(&key, &test).unwrap_err();
            prop_assert!(refused.to_string().contains("\"live\""));
        }
    }

    #[test]
    fn checksum_is_crc32_in_base62() {
        // The standard's check value: the CRC-32 of "123456789" is 0xCBF43926 = 3421780262.
        let mut value = 0_u64;
        for digit in checksum("123456789") {
            value = value * 62 + BASE62.iter().position(|b| *b == digit).unwrap() as u64;
        }
        assert_eq!(value, 0xCBF4_3926);
        assert_eq!(checksum(""), *b"000000");
    }

    #[test]
    fn debug_output_does_not_contain_the_key() {
        let key = ApiKeySecret::parse(&key_from(vec![7; 64]), &live()).unwrap();
        assert!(!format!("{key:?} {:?}", key.digest()).contains(&key.reveal()[16..20]));
    }

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        parse_networks(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn networks_are_compared_by_their_addresses() {
        for (inner, outer, is_within) in [
            (&["203.0.113.9"][..], &["203.0.113.0/24"][..], true),
            (&["203.0.113.0/24"], &["203.0.113.0/24"], true),
            (&["203.0.112.0/23"], &["203.0.113.0/24"], false),
            (&["203.0.113.9", "198.51.100.1"], &["203.0.113.0/24"], false),
            (&["10.0.0.0/8"], &["10.0.0.0/9", "10.128.0.0/9"], true),
            (&["2001:db8:1::/48"], &["2001:db8::/32"], true),
            (&["2001:db8::/31"], &["2001:db8::/32"], false),
            (&["::ffff:203.0.113.9"], &["203.0.113.0/24"], true),
            (&["203.0.113.9"], &["::ffff:203.0.113.0/120"], true),
            (&["::ffff:203.0.112.0/119"], &["203.0.113.0/24"], false),
            // IPv6 networks contain no IPv4 addresses, and the reverse.
            (&["203.0.113.9"], &["::/0"], false),
            (&["2001:db8::1"], &["0.0.0.0/0"], false),
            // An empty list stands for all addresses.
            (&[], &["0.0.0.0/0", "::/0"], false),
            (&["2001:db8::1"], &[], true),
            (&[], &[], true),
        ] {
            let checked = is_within_networks(&networks(inner), &networks(outer));
            assert_eq!(checked, is_within, "{inner:?} in {outer:?}");
        }
    }

    proptest! {
        /// No address of a contained network is outside.
        #[test]
        fn contained_networks_allow_no_further_address(
            inner in prop::collection::vec((any::<u8>(), 0_u8..=8), 1..4),
            outer in prop::collection::vec((any::<u8>(), 0_u8..=8), 1..4),
            offset: u32,
        ) {
            // Few networks, so that many pairs are contained.
            let net = |(octet, prefix)| {
                IpNet::new(IpAddr::from([octet, 0, 0, 0]), prefix).unwrap().trunc()
            };
            let inner: Vec<_> = inner.into_iter().map(net).collect();
            let outer: Vec<_> = outer.into_iter().map(net).collect();
            let is_within = is_within_networks(&inner, &outer);
            for net in inner.into_iter().filter(|_| is_within) {
                let IpNet::V4(net) = net else { continue };
                let bits = offset & net.hostmask().to_bits() | net.network().to_bits();
                let address = IpAddr::V4(bits.into());
                prop_assert!(outer.iter().any(|net| net.contains(&address)), "{address}");
            }
        }
    }

    #[test]
    fn networks_are_parsed_and_truncated() {
        let read =
            parse_networks(&["10.1.2.3/8".into(), "::1".into(), "::ffff:10.1.2.3/120".into()])
                .unwrap();
        assert_eq!(
            read.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.0/8", "::1/128", "10.1.2.0/24"]
        );
        assert!(parse_networks(&["10.0.0.0/33".into()]).is_err());
    }
}
