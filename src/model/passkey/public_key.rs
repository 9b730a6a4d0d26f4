//! Public keys of passkeys, in COSE format (RFC 9052, section 7, and RFC 9053).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use minicbor::{Decoder, data::Type};

use super::PasskeyError;

/// The supported COSE signature algorithms, in order of preference.
pub const ALGORITHMS: [i64; 3] = [ES256, ED_DSA, RS256];
pub(super) const ES256: i64 = -7;
const ED_DSA: i64 = -8;
const RS256: i64 = -257;

/// Maximum length of a key in bytes; RSA keys are the longest.
const MAX_LEN: usize = 2048;

/// A COSE key of a supported type (RFC 9052, section 7).
pub(super) enum PublicKey {
    /// An uncompressed point on P-256.
    Es256(Vec<u8>),
    Ed25519(Vec<u8>),
    Rs256 {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

/// The parameters of a COSE key, by label. The meaning of the negative labels depends on the key
/// type.
#[derive(Default)]
struct Parameters {
    kind: Option<i64>,
    algorithm: Option<i64>,
    /// Label -1 as an integer: the curve.
    curve: Option<i64>,
    /// Label -1 as bytes: the RSA modulus.
    first: Option<Vec<u8>>,
    /// Label -2: the x-coordinate, or the RSA exponent.
    second: Option<Vec<u8>>,
    /// Label -3: the y-coordinate.
    third: Option<Vec<u8>>,
}

impl PublicKey {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, PasskeyError> {
        let bytes = (bytes.len() <= MAX_LEN).then_some(bytes);
        let key = bytes.and_then(Parameters::read).and_then(Self::from_parameters);
        key.ok_or(PasskeyError("the passkey's public key has an unsupported type or algorithm"))
    }

    fn from_parameters(parameters: Parameters) -> Option<Self> {
        match (parameters.kind?, parameters.algorithm?, parameters.curve) {
            (2, ES256, Some(1)) => {
                let (x, y) = (parameters.second?, parameters.third?);
                let has_valid_len = x.len() == 32 && y.len() == 32;
                has_valid_len.then(|| Self::Es256([&[4], &x[..], &y[..]].concat()))
            }
            (1, ED_DSA, Some(6)) => {
                let x = parameters.second?;
                (x.len() == 32).then_some(Self::Ed25519(x))
            }
            (3, RS256, None) => Some(Self::Rs256 { n: parameters.first?, e: parameters.second? }),
            _ => None,
        }
    }

    /// Returns true if the key can verify signatures: its point is on the curve, or its modulus has
    /// an allowed size.
    pub(super) fn is_valid(&self) -> bool {
        match self {
            Self::Es256(point) => ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).is_ok(),
            Self::Ed25519(point) => ParsedPublicKey::new(&ED25519, point).is_ok(),
            // An even exponent has no inverse.
            Self::Rs256 { n, e } => {
                (256..=1024).contains(&n.len())
                    && n[0] != 0
                    && (1..=4).contains(&e.len())
                    && e[e.len() - 1] & 1 == 1
            }
        }
    }

    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), PasskeyError> {
        let verify = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature)
        };
        let verified = match self {
            Self::Es256(point) => verify(&ECDSA_P256_SHA256_ASN1, point),
            Self::Ed25519(point) => verify(&ED25519, point),
            Self::Rs256 { n, e } => RsaPublicKeyComponents { n, e }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
        };
        verified.map_err(|_| PasskeyError("the passkey's signature is invalid"))
    }
}

impl Parameters {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut decoder = Decoder::new(bytes);
        let mut read = Self::default();
        for _ in 0..decoder.map().ok()?? {
            let label = decoder.i64().ok()?;
            let is_bytes = decoder.datatype().ok()? == Type::Bytes;
            let is_new = match label {
                1 => read.kind.replace(decoder.i64().ok()?).is_none(),
                3 => read.algorithm.replace(decoder.i64().ok()?).is_none(),
                -1 if is_bytes => read.first.replace(decoder.bytes().ok()?.to_vec()).is_none(),
                -1 => read.curve.replace(decoder.i64().ok()?).is_none(),
                -2 => read.second.replace(decoder.bytes().ok()?.to_vec()).is_none(),
                -3 => read.third.replace(decoder.bytes().ok()?.to_vec()).is_none(),
                _ => {
                    decoder.skip().ok()?;
                    true
                }
            };
            if !is_new {
                return None;
            }
        }
        (decoder.position() == bytes.len()).then_some(read)
    }
}
