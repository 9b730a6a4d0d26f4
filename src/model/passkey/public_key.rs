//! The keys of passkeys, as COSE has them (RFC 9052, section 7, and RFC 9053).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use minicbor::{Decoder, data::Type};

use super::NotAPasskey;

/// Algorithms that passkeys may sign with, the best liked first.
pub const ALGORITHMS: [i64; 3] = [ES256, ED_DSA, RS256];
pub(super) const ES256: i64 = -7;
const ED_DSA: i64 = -8;
const RS256: i64 = -257;

/// Bytes of a key, at most: RSA's are the longest.
const MAX_LEN: usize = 2048;

/// A key of COSE (RFC 9052, section 7), of a kind that is taken here.
pub(super) enum PublicKey {
    /// An uncompressed point of P-256.
    Es256(Vec<u8>),
    Ed25519(Vec<u8>),
    Rs256 {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

/// The parameters of a key, by their labels.
#[derive(Default)]
struct Parameters {
    kind: Option<i64>,
    algorithm: Option<i64>,
    /// -1: the curve, or RSA's modulus.
    curve: Option<i64>,
    first: Option<Vec<u8>>,
    /// -2: x, or RSA's exponent. -3: y.
    second: Option<Vec<u8>>,
    third: Option<Vec<u8>>,
}

impl PublicKey {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, NotAPasskey> {
        let bytes = (bytes.len() <= MAX_LEN).then_some(bytes);
        let key = bytes.and_then(Parameters::read).and_then(Self::of);
        key.ok_or(NotAPasskey("the passkey's public key is of no kind that is taken here"))
    }

    fn of(read: Parameters) -> Option<Self> {
        match (read.kind?, read.algorithm?, read.curve) {
            (2, ES256, Some(1)) => {
                let (x, y) = (read.second?, read.third?);
                let fits = x.len() == 32 && y.len() == 32;
                fits.then(|| Self::Es256([&[4], &x[..], &y[..]].concat()))
            }
            (1, ED_DSA, Some(6)) => {
                let x = read.second?;
                (x.len() == 32).then_some(Self::Ed25519(x))
            }
            (3, RS256, None) => Some(Self::Rs256 { n: read.first?, e: read.second? }),
            _ => None,
        }
    }

    /// Whether it could verify anything: a point is on its curve, a modulus neither too small nor too large.
    pub(super) fn is_good(&self) -> bool {
        match self {
            Self::Es256(point) => ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).is_ok(),
            Self::Ed25519(point) => ParsedPublicKey::new(&ED25519, point).is_ok(),
            // An exponent that is even has no inverse.
            Self::Rs256 { n, e } => {
                (256..=1024).contains(&n.len())
                    && n[0] != 0
                    && (1..=4).contains(&e.len())
                    && e[e.len() - 1] & 1 == 1
            }
        }
    }

    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), NotAPasskey> {
        let by = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature)
        };
        let verified = match self {
            Self::Es256(point) => by(&ECDSA_P256_SHA256_ASN1, point),
            Self::Ed25519(point) => by(&ED25519, point),
            Self::Rs256 { n, e } => RsaPublicKeyComponents { n, e }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
        };
        verified.map_err(|_| NotAPasskey("the passkey's signature is wrong"))
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
