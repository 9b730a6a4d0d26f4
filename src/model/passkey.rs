//! Passkeys: verification of registrations and assertions (Web Authentication Level 3, sections 7.1
//! and 7.2).
//!
//! A passkey is sufficient for sign-in, because user verification is required: it proves possession
//! of the device and the ability to unlock it. Attestation is neither requested nor evaluated, so
//! nothing that a device claims about its model is trusted.
//!
//! The challenges are created and checked in `auth::passkeys`.

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

/// Maximum length of a credential id in bytes (section 7.1, step 25).
const MAX_CREDENTIAL_ID: usize = 1023;
/// Maximum length in bytes of every value that a browser sends.
const MAX_LEN: usize = 16 * 1024;

/// Bits of the authenticator data's flags (section 6.1).
const USER_PRESENT: u8 = 1;
const USER_VERIFIED: u8 = 1 << 2;
const BACKUP_ELIGIBLE: u8 = 1 << 3;
const BACKED_UP: u8 = 1 << 4;
const HAS_CREDENTIAL_DATA: u8 = 1 << 6;
const HAS_EXTENSIONS: u8 = 1 << 7;

/// The error for a response that is not a valid response of a passkey of this service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PasskeyError(pub &'static str);

/// The relying party of passkeys: the host of this service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelyingParty {
    /// The relying party id: the host name.
    pub id: String,
    /// The origin of the pages that use passkeys.
    pub origin: String,
}

impl RelyingParty {
    /// Returns the relying party of a public URL. `None` if browsers do not support passkeys there:
    /// the host is an IP address, or the scheme is not https and the host is not `localhost`.
    #[must_use]
    pub fn from_public_url(public_url: &str) -> Option<Self> {
        let url: Url = public_url.parse().ok()?;
        let Host::Domain(host) = url.host()? else { return None };
        let is_secure = url.scheme() == "https" || host == "localhost";
        let origin = url.origin().ascii_serialization();
        is_secure.then(|| Self { id: host.to_owned(), origin })
    }
}

/// The client data (section 5.8.1): the request as the browser saw it.
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

/// The Web Authentication ceremony that a response belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceremony {
    /// Registration of a passkey.
    Registration,
    /// Authentication with a passkey.
    Authentication,
}

/// A newly registered passkey.
#[derive(Debug, PartialEq, Eq)]
pub struct NewPasskey {
    /// The credential id, by which the device knows the passkey.
    pub credential_id: Vec<u8>,
    /// The public key, in COSE format.
    pub public_key: Vec<u8>,
    /// The signature counter.
    pub sign_count: u32,
    /// True if the passkey can be synced to other devices; never changes.
    pub is_backup_eligible: bool,
}

/// A verified assertion of a passkey.
#[derive(Debug, PartialEq, Eq)]
pub struct Assertion {
    /// The signature counter; always 0 if the passkey does not count.
    pub sign_count: u32,
    /// True if the passkey can be synced to other devices.
    pub is_backup_eligible: bool,
}

/// A passkey in the list of its user.
#[derive(Debug, Clone)]
pub struct Passkey {
    /// The passkey's id.
    pub id: PasskeyId,
    /// The name that the user chose.
    pub name: String,
    /// Time of registration.
    pub created_at: OffsetDateTime,
    /// Time of the last sign-in with the passkey.
    pub last_used_at: Option<OffsetDateTime>,
}

/// Verifies the ceremony and the origin of a response, and returns its challenge. The caller must
/// check that this service issued the challenge.
///
/// # Errors
/// [`PasskeyError`] if the client data is malformed, or belongs to another ceremony or origin.
pub fn verify_client_data(
    party: &RelyingParty,
    ceremony: Ceremony,
    client_data: &[u8],
) -> Result<String, PasskeyError> {
    if client_data.len() > MAX_LEN {
        return Err(PasskeyError("the response is too long"));
    }
    let data: ClientData = serde_json::from_slice(client_data)
        .map_err(|_| PasskeyError("the client data is malformed"))?;
    let kind = match ceremony {
        Ceremony::Registration => "webauthn.create",
        Ceremony::Authentication => "webauthn.get",
    };
    if data.kind != kind {
        return Err(PasskeyError("the response has the wrong type"));
    }
    if data.origin != party.origin || data.cross_origin || data.top_origin.is_some() {
        return Err(PasskeyError("the response comes from another site"));
    }
    Ok(data.challenge)
}

/// Verifies the attestation object of a registration, and returns the new passkey.
///
/// # Errors
/// [`PasskeyError`] if the object is malformed, belongs to another relying party, lacks user
/// verification or has an unsupported public key.
pub fn verify_registration(
    party: &RelyingParty,
    attestation_object: &[u8],
) -> Result<NewPasskey, PasskeyError> {
    const MALFORMED: PasskeyError = PasskeyError("the attestation object is malformed");
    if attestation_object.len() > MAX_LEN {
        return Err(PasskeyError("the response is too long"));
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
            // Attestation was not requested: the statement is skipped, not evaluated.
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
    if !PublicKey::parse(public_key)?.is_valid() {
        return Err(PasskeyError("the passkey's public key is invalid"));
    }
    Ok(NewPasskey {
        credential_id: credential_id.to_vec(),
        public_key: public_key.to_vec(),
        sign_count: data.sign_count,
        is_backup_eligible: data.flags & BACKUP_ELIGIBLE != 0,
    })
}

/// Verifies the authenticator data and the signature of an authentication, and returns the
/// assertion.
///
/// # Errors
/// [`PasskeyError`] if the data is malformed, belongs to another relying party or lacks user
/// verification, or if the signature is wrong.
pub fn verify_assertion(
    party: &RelyingParty,
    public_key: &[u8],
    client_data: &[u8],
    authenticator_data: &[u8],
    signature: &[u8],
) -> Result<Assertion, PasskeyError> {
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

/// The authenticator data, which the device signs (section 6.1).
struct AuthenticatorData<'a> {
    rp_id_hash: &'a [u8],
    flags: u8,
    sign_count: u32,
    /// The credential's id and public key.
    credential: Option<(&'a [u8], &'a [u8])>,
}

impl<'a> AuthenticatorData<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, PasskeyError> {
        Self::read(bytes).ok_or(PasskeyError("the authenticator data is malformed"))
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() > MAX_LEN {
            return None;
        }
        let (rp_id_hash, rest) = bytes.split_at_checked(32)?;
        let (&flags, rest) = rest.split_first()?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        let mut credential = None;
        if flags & HAS_CREDENTIAL_DATA != 0 {
            let (_aaguid, after) = rest.split_at_checked(16)?;
            let (len, after) = after.split_first_chunk::<2>()?;
            let len = usize::from(u16::from_be_bytes(*len));
            let (id, after) = after.split_at_checked(len)?;
            let key_len = cbor_map_len(after)?;
            let (key, after) = after.split_at_checked(key_len)?;
            if id.is_empty() || len > MAX_CREDENTIAL_ID {
                return None;
            }
            credential = Some((id, key));
            rest = after;
        }
        if flags & HAS_EXTENSIONS != 0 {
            let len = cbor_map_len(rest)?;
            rest = rest.get(len..)?;
        }
        let sign_count = u32::from_be_bytes(*count);
        rest.is_empty().then_some(Self { rp_id_hash, flags, sign_count, credential })
    }

    /// Checks the relying party, user presence, user verification and the backup flags.
    fn check(&self, party: &RelyingParty) -> Result<(), PasskeyError> {
        if self.rp_id_hash != digest(&SHA256, party.id.as_bytes()).as_ref() {
            return Err(PasskeyError("the passkey is for another site"));
        }
        if self.flags & USER_PRESENT == 0 || self.flags & USER_VERIFIED == 0 {
            return Err(PasskeyError("the device did not verify its user"));
        }
        if self.flags & BACKED_UP != 0 && self.flags & BACKUP_ELIGIBLE == 0 {
            return Err(PasskeyError("the device's backup flags contradict each other"));
        }
        Ok(())
    }
}

/// Returns the length in bytes of the CBOR map at the start of `bytes`.
fn cbor_map_len(bytes: &[u8]) -> Option<usize> {
    let mut decoder = Decoder::new(bytes);
    if decoder.datatype().ok()? != Type::Map {
        return None;
    }
    decoder.skip().ok()?;
    Some(decoder.position())
}

/// Encodes bytes in base64url, as browsers expect them in JSON.
#[must_use]
pub fn encode_base64url(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

/// Decodes bytes in base64url, as browsers send them in JSON.
///
/// # Errors
/// [`PasskeyError`] if the text is too long or is not base64url without padding.
pub fn decode_base64url(text: &str) -> Result<Vec<u8>, PasskeyError> {
    if text.len() > MAX_LEN * 2 {
        return Err(PasskeyError("the response is too long"));
    }
    BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| PasskeyError("the response is malformed"))
}

#[cfg(test)]
mod tests;
