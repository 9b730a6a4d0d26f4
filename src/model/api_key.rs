//! API keys: their form, and the row of one.
//!
//! `sk_call2me_live_` + 30 random base62 characters + 6 of CRC-32: a secret scanner can tell a real
//! key from a look-alike offline, and so can this service, without a look-up.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{
    Invalid,
    id::{ApiKeyId, UserId, WorkspaceId},
    scope::Scope,
};

/// What every key begins with, before the environment's label.
pub const KEY_PREFIX: &str = "sk_call2me_";

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_LEN: usize = 30;
const CHECKSUM_LEN: usize = 6;
/// Characters of the random part shown at either end.
const SHOWN: usize = 4;

/// The label of a deployment in its keys: `live`, `test`, …
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment(String);

impl Environment {
    /// The label.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Environment {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=16).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("must be 1 to 16 lower-case letters or digits"))
        }
    }
}

/// Why a text is no key of this deployment. Found without a look-up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    /// The prefix, the length or the alphabet is wrong.
    #[error("the API key is malformed")]
    Malformed,
    /// The checksum does not match the random part: mistyped, cut or made up.
    #[error("the API key is malformed: its checksum does not match")]
    Checksum,
    /// A real key, of another deployment.
    #[error("this is a key of the environment \"{theirs}\"; keys here are \"{ours}\"")]
    OtherEnvironment {
        /// The label in the key.
        theirs: String,
        /// The label of this deployment.
        ours: String,
    },
}

/// A whole API key. It cannot be printed; it is wiped when dropped.
pub struct ApiKeySecret(SecretString);

impl ApiKeySecret {
    /// A fresh key; `random` fills a slice with random bytes.
    pub fn generate(environment: &Environment, random: impl Fn(&mut [u8])) -> Self {
        let mut key = format!("{KEY_PREFIX}{}_", environment.as_str());
        let start = key.len();
        while key.len() < start + RANDOM_LEN {
            let mut bytes = [0_u8; 32];
            random(&mut bytes);
            // Six bits give 0 to 63; the two that base62 lacks are thrown away, so that every
            // character stays equally likely.
            let letters = bytes.iter().filter_map(|byte| BASE62.get(usize::from(byte >> 2)));
            key.extend(letters.take(start + RANDOM_LEN - key.len()).map(|b| char::from(*b)));
        }
        let checksum = checksum(&key[start..]);
        key.extend(checksum.map(char::from));
        Self(key.into())
    }

    /// Reads what a client sent as a key of this deployment.
    ///
    /// # Errors
    /// When it cannot be one; see [`NotAKey`].
    pub fn parse(text: &str, ours: &Environment) -> Result<Self, NotAKey> {
        let (theirs, rest) = text
            .strip_prefix(KEY_PREFIX)
            .and_then(|rest| rest.split_once('_'))
            .ok_or(NotAKey::Malformed)?;
        if rest.len() != RANDOM_LEN + CHECKSUM_LEN
            || !rest.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Err(NotAKey::Malformed);
        }
        let (random, sum) = rest.split_at(RANDOM_LEN);
        if checksum(random) != sum.as_bytes() {
            return Err(NotAKey::Checksum);
        }
        if theirs != ours.as_str() {
            let theirs = Environment::from_str(theirs).map_err(|_| NotAKey::Malformed)?.0;
            return Err(NotAKey::OtherEnvironment { theirs, ours: ours.0.clone() });
        }
        Ok(Self(text.to_owned().into()))
    }

    /// SHA-256 of the whole key: what is stored, and how it is found again.
    #[must_use]
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha256::digest(self.0.expose_secret()).into())
    }

    /// The ends of the random part, for display.
    #[must_use]
    pub fn shown(&self) -> (String, String) {
        let key = self.0.expose_secret();
        let start = key.len() - RANDOM_LEN - CHECKSUM_LEN;
        let end = key.len() - CHECKSUM_LEN;
        (key[start..start + SHOWN].to_owned(), key[end - SHOWN..end].to_owned())
    }

    /// The key itself, for the one answer that shows it.
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

/// SHA-256 of an API key. Not the key, but not for logs either.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// A digest, as the database has it.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes that the database has.
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

/// CRC-32 (IEEE) in base62, most significant digit first.
fn checksum(random: &str) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(random.as_bytes());
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// Whether a key may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyStatus {
    /// It works.
    Active,
    /// It was revoked, for good.
    Revoked,
}

impl FromStr for KeyStatus {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "active" => Ok(Self::Active),
            "revoked" => Ok(Self::Revoked),
            _ => Err(Invalid::new("status must be active or revoked")),
        }
    }
}

/// A key as its workspace sees it: all but the secret.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// The workspace that it belongs to, for ever.
    pub workspace_id: WorkspaceId,
    /// What people call it; need not be unique.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// What it may do; never changes.
    pub scope: Scope,
    /// The first characters of the random part.
    pub display_start: String,
    /// The last characters of the random part.
    pub display_end: String,
    /// The addresses that it may be used from; empty is any.
    pub allowed_ips: Vec<IpNet>,
    /// When it was minted.
    pub created_at: OffsetDateTime,
    /// Who minted it, as a public id; none is the operator.
    pub created_by: Option<String>,
    /// When a request last bore it.
    pub last_used_at: Option<OffsetDateTime>,
    /// Where that request came from.
    pub last_used_ip: Option<IpAddr>,
    /// When it was revoked.
    pub revoked_at: Option<OffsetDateTime>,
    /// Who revoked it, as a public id.
    pub revoked_by: Option<String>,
    /// The key that it succeeded.
    pub rotated_from: Option<ApiKeyId>,
    /// The key that succeeds it.
    pub rotated_to: Option<ApiKeyId>,
}

impl ApiKey {
    /// Whether it may be used.
    #[must_use]
    pub fn status(&self) -> KeyStatus {
        if self.revoked_at.is_some() { KeyStatus::Revoked } else { KeyStatus::Active }
    }

    /// The key as it may be shown: `sk_call2me_live_AbCd…wXyZ`.
    #[must_use]
    pub fn redacted(&self, environment: &Environment) -> String {
        let Self { display_start, display_end, .. } = self;
        format!("{KEY_PREFIX}{}_{display_start}…{display_end}", environment.as_str())
    }
}

/// A key to be stored.
#[derive(Debug)]
pub struct NewApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// What it may do.
    pub scope: Scope,
    /// SHA-256 of the secret.
    pub digest: KeyDigest,
    /// The ends of the random part.
    pub shown: (String, String),
    /// The addresses that it may be used from; empty is any.
    pub allowed_ips: Vec<IpNet>,
    /// When it is minted.
    pub created_at: OffsetDateTime,
    /// Who mints it, as a public id.
    pub created_by: Option<String>,
    /// The person behind it.
    pub creator: Option<UserId>,
    /// The key that it succeeds.
    pub rotated_from: Option<ApiKeyId>,
}

/// What is to change about a key; what is `None` stays.
#[derive(Debug, Default)]
pub struct ApiKeyChange {
    /// The new name.
    pub name: Option<String>,
    /// The new description; an inner `None` removes it.
    pub description: Option<Option<String>>,
    /// The new addresses.
    pub allowed_ips: Option<Vec<IpNet>>,
}

/// What authentication needs of a key: found by digest, before the caller is known.
#[derive(Debug, Clone)]
pub struct KeyRecord {
    /// Its id.
    pub id: ApiKeyId,
    /// Its workspace.
    pub workspace_id: WorkspaceId,
    /// Its name, for the log.
    pub name: Arc<str>,
    /// What it may do.
    pub scope: Scope,
    /// The addresses that it may be used from; empty is any.
    pub allowed_ips: Vec<IpNet>,
    /// The person behind it.
    pub creator: Option<UserId>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Its workspace's own limit, requests a minute.
    pub rate_limit_per_minute: Option<u32>,
}

/// Reads networks in CIDR notation; a bare address is a network of one.
///
/// # Errors
/// When one is neither, or there are more than 100.
pub fn parse_networks(texts: &[String]) -> Result<Vec<IpNet>, Invalid> {
    if texts.len() > 100 {
        return Err(Invalid::new("allowed_ips must be at most 100 networks"));
    }
    let network = |text: &String| {
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map(|net| unmapped(net).trunc())
            .map_err(|_| {
                Invalid::new(
                    "allowed_ips must be CIDR networks such as 203.0.113.0/24 or 2001:db8::/32",
                )
            })
    };
    texts.iter().map(network).collect()
}

/// A network of IPv4 addresses that are written as IPv6, as what it is: clients are known by their
/// IPv4 addresses.
fn unmapped(net: IpNet) -> IpNet {
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

    /// Fills slices from a list of bytes, then with zeros.
    fn key_of(bytes: Vec<u8>) -> String {
        let rest = std::cell::RefCell::new(bytes.into_iter());
        let key = ApiKeySecret::generate(&live(), |slice| {
            slice.fill_with(|| rest.borrow_mut().next().unwrap_or_default());
        });
        key.reveal().to_owned()
    }

    proptest! {
        #[test]
        fn a_fresh_key_has_the_published_form_and_is_read(bytes: Vec<u8>) {
            let key = key_of(bytes);
            let form = &key["sk_call2me_live_".len()..];
            prop_assert!(key.starts_with("sk_call2me_live_"));
            prop_assert_eq!(form.len(), 36);
            prop_assert!(form.bytes().all(|b| b.is_ascii_alphanumeric()));
            let read = ApiKeySecret::parse(&key, &live()).unwrap();
            let digest: [u8; 32] = Sha256::digest(&key).into();
            prop_assert_eq!(read.digest().0, digest);
            prop_assert_eq!(read.shown(), (form[..4].to_owned(), form[26..30].to_owned()));
        }

        #[test]
        fn one_wrong_character_is_noticed(bytes: Vec<u8>, at in 16_usize..52, to in 0_usize..62) {
            let mut key = key_of(bytes).into_bytes();
            prop_assume!(key[at] != BASE62[to]);
            key[at] = BASE62[to];
            let text = String::from_utf8(key).unwrap();
            prop_assert_eq!(ApiKeySecret::parse(&text, &live()).unwrap_err(), NotAKey::Checksum);
        }

        #[test]
        fn nothing_else_is_a_key(text in "(sk_call2me_)?(live_)?\\PC*") {
            prop_assert!(ApiKeySecret::parse(&text, &live()).is_err());
        }

        #[test]
        fn a_key_of_another_environment_is_told_apart(bytes: Vec<u8>) {
            let key = key_of(bytes);
            let test = "test".parse().unwrap();
            let refused = ApiKeySecret::parse(&key, &test).unwrap_err();
            prop_assert!(refused.to_string().contains("\"live\""));
        }
    }

    #[test]
    fn the_checksum_is_crc32_in_base62() {
        // CRC-32 of "123456789" is the standard's check value 0xCBF43926 = 3421780262.
        let mut value = 0_u64;
        for digit in checksum("123456789") {
            value = value * 62 + BASE62.iter().position(|b| *b == digit).unwrap() as u64;
        }
        assert_eq!(value, 0xCBF4_3926);
        assert_eq!(checksum(""), *b"000000");
    }

    #[test]
    fn a_secret_does_not_print() {
        let key = ApiKeySecret::parse(&key_of(vec![7; 64]), &live()).unwrap();
        assert!(!format!("{key:?} {:?}", key.digest()).contains(&key.reveal()[16..20]));
    }

    #[test]
    fn networks_are_read_and_truncated() {
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
