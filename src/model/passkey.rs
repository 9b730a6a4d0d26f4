//! Passkeys: what browsers send about them, verified (Web Authentication Level 3, sections 7.1 and 7.2).
//!
//! A passkey signs in by itself: it takes the device and whoever may unlock it (user verification). Nothing is
//! asked about the make of a device (attestation), so nothing that it says of itself is believed.

mod public_key;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use minicbor::{Decoder, data::Type};
use serde::Deserialize;
use time::OffsetDateTime;
use url::{Host, Url};

pub use self::public_key::ALGORITHMS;
use self::public_key::PublicKey;
use super::id::PasskeyId;

/// Bytes of a credential's id at most (section 7.1, step 25).
const MAX_CREDENTIAL_ID: usize = 1023;
/// Bytes of anything that a browser sends here, at most.
const MAX_LEN: usize = 16 * 1024;

/// Bits of an authenticator's flags (section 6.1).
const USER_PRESENT: u8 = 1;
const USER_VERIFIED: u8 = 1 << 2;
const BACKUP_ELIGIBLE: u8 = 1 << 3;
const BACKED_UP: u8 = 1 << 4;
const HAS_CREDENTIAL: u8 = 1 << 6;
const HAS_EXTENSIONS: u8 = 1 << 7;

/// Why something is not what a passkey of this service sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAPasskey(pub &'static str);

/// Whom passkeys are made for: the host of this service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelyingParty {
    /// The host's name.
    pub id: String,
    /// Where pages are that may use them.
    pub origin: String,
}

impl RelyingParty {
    /// Where the service is reached under a name, and by https unless on this machine: elsewhere browsers have
    /// no passkeys.
    #[must_use]
    pub fn of(public_url: &str) -> Option<Self> {
        let url: Url = public_url.parse().ok()?;
        let Host::Domain(host) = url.host()? else { return None };
        let is_secure = url.scheme() == "https" || host == "localhost";
        let origin = url.origin().ascii_serialization();
        is_secure.then(|| Self { id: host.to_owned(), origin })
    }
}

/// What a browser says that it was asked for.
#[derive(Deserialize)]
struct ClientData {
    #[serde(rename = "type")]
    kind: String,
    challenge: String,
    origin: String,
    #[serde(default, rename = "crossOrigin")]
    cross_origin: bool,
    #[serde(default, rename = "topOrigin")]
    top_origin: Option<String>,
}

/// What is asked of a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceremony {
    /// To make a passkey.
    Registration,
    /// To sign with one.
    Authentication,
}

/// A passkey just made.
#[derive(Debug, PartialEq, Eq)]
pub struct NewPasskey {
    /// What its device knows it by.
    pub credential_id: Vec<u8>,
    /// Its public key, as COSE has it.
    pub public_key: Vec<u8>,
    /// How often it signed.
    pub sign_count: u32,
    /// Whether it may be copied to other devices; that never changes.
    pub is_backup_eligible: bool,
}

/// What a passkey said when it signed.
#[derive(Debug, PartialEq, Eq)]
pub struct Assertion {
    /// How often it signed; always 0 for one that does not count.
    pub sign_count: u32,
    /// Whether it may be copied to other devices.
    pub is_backup_eligible: bool,
}

/// A passkey as its person sees it.
#[derive(Debug, Clone)]
pub struct Passkey {
    /// Its id.
    pub id: PasskeyId,
    /// What the person calls it.
    pub name: String,
    /// Since when.
    pub created_at: OffsetDateTime,
    /// When it last signed in.
    pub last_used_at: Option<OffsetDateTime>,
}

/// The challenge that an answer is to, once the answer is known to be one of a page of this service. Whether
/// the challenge was ours is the caller's to find out.
///
/// # Errors
/// When it is not.
pub fn challenge(
    party: &RelyingParty,
    ceremony: Ceremony,
    client_data: &[u8],
) -> Result<String, NotAPasskey> {
    if client_data.len() > MAX_LEN {
        return Err(NotAPasskey("the answer is too long"));
    }
    let data: ClientData = serde_json::from_slice(client_data)
        .map_err(|_| NotAPasskey("the browser's data is malformed"))?;
    let kind = match ceremony {
        Ceremony::Registration => "webauthn.create",
        Ceremony::Authentication => "webauthn.get",
    };
    if data.kind != kind {
        return Err(NotAPasskey("the answer is to another question"));
    }
    if data.origin != party.origin || data.cross_origin || data.top_origin.is_some() {
        return Err(NotAPasskey("the answer comes from another site"));
    }
    Ok(data.challenge)
}

/// The passkey that was made.
///
/// # Errors
/// When there is none, or not one for this service.
pub fn registered(
    party: &RelyingParty,
    attestation_object: &[u8],
) -> Result<NewPasskey, NotAPasskey> {
    const MALFORMED: NotAPasskey = NotAPasskey("the device's answer is malformed");
    if attestation_object.len() > MAX_LEN {
        return Err(NotAPasskey("the answer is too long"));
    }
    let mut decoder = Decoder::new(attestation_object);
    let fields = decoder.map().map_err(|_| MALFORMED)?.ok_or(MALFORMED)?;
    let (mut authenticator_data, mut format, mut statement) = (None, None, None);
    for _ in 0..fields {
        let is_new = match decoder.str().map_err(|_| MALFORMED)? {
            "authData" => {
                let data = decoder.bytes().map_err(|_| MALFORMED)?;
                authenticator_data.replace(data).is_none()
            }
            "fmt" => format.replace(decoder.str().map_err(|_| MALFORMED)?).is_none(),
            // What a device says of itself was not asked for, and is not believed.
            "attStmt" if matches!(decoder.datatype(), Ok(Type::Map)) => {
                statement.replace(decoder.skip().map_err(|_| MALFORMED)?).is_none()
            }
            _ => return Err(MALFORMED),
        };
        if !is_new {
            return Err(MALFORMED);
        }
    }
    if decoder.position() != attestation_object.len() || format.is_none() || statement.is_none() {
        return Err(MALFORMED);
    }
    let data = AuthenticatorData::parse(authenticator_data.ok_or(MALFORMED)?)?;
    data.check(party)?;
    let (credential_id, public_key) = data.credential.ok_or(MALFORMED)?;
    if !PublicKey::parse(public_key)?.is_good() {
        return Err(NotAPasskey("the passkey's public key is none"));
    }
    Ok(NewPasskey {
        credential_id: credential_id.to_vec(),
        public_key: public_key.to_vec(),
        sign_count: data.sign_count,
        is_backup_eligible: data.flags & BACKUP_ELIGIBLE != 0,
    })
}

/// What a passkey said, once its signature was right.
///
/// # Errors
/// When it was not, or was for another service.
pub fn asserted(
    party: &RelyingParty,
    public_key: &[u8],
    client_data: &[u8],
    authenticator_data: &[u8],
    signature: &[u8],
) -> Result<Assertion, NotAPasskey> {
    let data = AuthenticatorData::parse(authenticator_data)?;
    data.check(party)?;
    let hash = digest(&SHA256, client_data);
    let signed = [authenticator_data, hash.as_ref()].concat();
    PublicKey::parse(public_key)?.verify(&signed, signature)?;
    Ok(Assertion {
        sign_count: data.sign_count,
        is_backup_eligible: data.flags & BACKUP_ELIGIBLE != 0,
    })
}

/// What a device signs (section 6.1).
struct AuthenticatorData<'a> {
    party_hash: &'a [u8],
    flags: u8,
    sign_count: u32,
    /// The credential's id, and its public key.
    credential: Option<(&'a [u8], &'a [u8])>,
}

impl<'a> AuthenticatorData<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, NotAPasskey> {
        Self::read(bytes).ok_or(NotAPasskey("the device's data is malformed"))
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > MAX_LEN {
            return None;
        }
        let (party_hash, rest) = bytes.split_at_checked(32)?;
        let (&flags, rest) = rest.split_first()?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        let mut credential = None;
        if flags & HAS_CREDENTIAL != 0 {
            let (_aaguid, after) = rest.split_at_checked(16)?;
            let (len, after) = after.split_first_chunk::<2>()?;
            let len = usize::from(u16::from_be_bytes(*len));
            let (id, after) = after.split_at_checked(len)?;
            let key_len = cbor_len(after)?;
            let (key, after) = after.split_at_checked(key_len)?;
            if id.is_empty() || len > MAX_CREDENTIAL_ID {
                return None;
            }
            credential = Some((id, key));
            rest = after;
        }
        if flags & HAS_EXTENSIONS != 0 {
            let len = cbor_len(rest)?;
            rest = rest.get(len..)?;
        }
        let sign_count = u32::from_be_bytes(*count);
        rest.is_empty().then_some(Self { party_hash, flags, sign_count, credential })
    }

    /// Whether it is about this service, and the person was there and unlocked the device.
    fn check(&self, party: &RelyingParty) -> Result<(), NotAPasskey> {
        if self.party_hash != digest(&SHA256, party.id.as_bytes()).as_ref() {
            return Err(NotAPasskey("the passkey is for another site"));
        }
        if self.flags & USER_PRESENT == 0 || self.flags & USER_VERIFIED == 0 {
            return Err(NotAPasskey("the device did not make sure who uses it"));
        }
        if self.flags & BACKED_UP != 0 && self.flags & BACKUP_ELIGIBLE == 0 {
            return Err(NotAPasskey("the device contradicts itself"));
        }
        Ok(())
    }
}

/// How long the value is that begins here: a map.
fn cbor_len(bytes: &[u8]) -> Option<usize> {
    let mut decoder = Decoder::new(bytes);
    if decoder.datatype().ok()? != Type::Map {
        return None;
    }
    decoder.skip().ok()?;
    Some(decoder.position())
}

/// Bytes as browsers read them in JSON.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

/// Bytes as browsers write them in JSON.
///
/// # Errors
/// When they are not.
pub fn bytes(text: &str) -> Result<Vec<u8>, NotAPasskey> {
    if text.len() > MAX_LEN * 2 {
        return Err(NotAPasskey("the answer is too long"));
    }
    BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| NotAPasskey("the answer is malformed"))
}

#[cfg(test)]
mod tests;
