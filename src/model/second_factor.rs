//! A second factor: codes of an authenticator (TOTP, RFC 6238; HOTP, RFC 4226) and recovery codes.
//!
//! Both are derived from the factor's id under a key that the database does not hold.

use std::fmt;

use aws_lc_rs::{constant_time, hmac};
use data_encoding::BASE32_NOPAD;
use secrecy::SecretString;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Seconds that a code is shown for.
pub const STEP_SECONDS: i64 = 30;
/// Recovery codes of a factor.
pub const RECOVERY_CODES: u8 = 10;
/// Bytes of a recovery code: 16 characters.
const RECOVERY_LEN: usize = 10;
/// Bytes of a secret, as many as HMAC-SHA-1 gives (RFC 4226, section 4, R6).
const SECRET_LEN: usize = 20;

/// The key that factors are derived under.
#[derive(Clone)]
pub struct SecondFactorKey(hmac::Key);

/// The secret that a person's authenticator shares.
pub struct TotpSecret(Zeroizing<[u8; SECRET_LEN]>);

impl SecondFactorKey {
    /// A key of 32 secret bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The secret of a factor.
    #[must_use]
    pub fn secret(&self, factor: Uuid) -> TotpSecret {
        TotpSecret(Zeroizing::new(self.derive(b"totp", factor, &[0])))
    }

    /// The recovery codes of a factor, as a person writes them down: its first ones, or those of a later
    /// round.
    #[must_use]
    pub fn recovery_codes(&self, factor: Uuid, round: u32) -> Vec<SecretString> {
        let code = |number| {
            let text = self.recovery_code(factor, round, number);
            let text = BASE32_NOPAD.encode(&text).to_lowercase();
            [&text[..4], &text[4..8], &text[8..12], &text[12..]].join("-").into()
        };
        (0..RECOVERY_CODES).map(code).collect()
    }

    /// Which recovery code a text is. Case and separators do not matter.
    #[must_use]
    pub fn find_recovery_code(&self, factor: Uuid, round: u32, text: &str) -> Option<u8> {
        let letters = text.chars().filter(|c| !matches!(c, '-' | ' ')).take(64);
        let letters: Zeroizing<String> =
            Zeroizing::new(letters.map(|c| c.to_ascii_uppercase()).collect());
        let bytes = Zeroizing::new(BASE32_NOPAD.decode(letters.as_bytes()).ok()?);
        // All are compared, whichever it is.
        let equals = |number: &u8| {
            let code = self.recovery_code(factor, round, *number);
            constant_time::verify_slices_are_equal(&code, &bytes).is_ok()
        };
        (0..RECOVERY_CODES).filter(equals).reduce(|_, found| found)
    }

    fn recovery_code(&self, factor: Uuid, round: u32, number: u8) -> [u8; RECOVERY_LEN] {
        match round {
            0 => self.derive(b"recovery", factor, &[number]),
            _ => self.derive(
                b"recovery round",
                factor,
                &[&[number][..], &round.to_be_bytes()].concat(),
            ),
        }
    }

    fn derive<const LEN: usize>(&self, purpose: &[u8], factor: Uuid, which: &[u8]) -> [u8; LEN] {
        // For each purpose the rest has a fixed length, so no two inputs give the same text.
        let mac = hmac::sign(&self.0, &[purpose, factor.as_bytes(), which].concat());
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&mac.as_ref()[..LEN]);
        bytes
    }
}

impl TotpSecret {
    /// As people type it into an authenticator.
    #[must_use]
    pub fn to_base32(&self) -> SecretString {
        BASE32_NOPAD.encode(&*self.0).into()
    }

    /// The step whose code this is: the current one, the one before or the one after, for clocks differ
    /// (RFC 6238, section 5.2); and none up to the last one that was accepted.
    #[must_use]
    pub fn matching_step(&self, code: &str, unix_seconds: i64, last_step: i64) -> Option<i64> {
        let now = unix_seconds / STEP_SECONDS;
        let equals = |step: &i64| {
            let right = self.code(*step);
            constant_time::verify_slices_are_equal(right.as_bytes(), code.as_bytes()).is_ok()
        };
        (now - 1..=now + 1).filter(equals).filter(|step| *step > last_step).reduce(|_, found| found)
    }

    /// The code of a step, six digits (RFC 4226, section 5.3).
    fn code(&self, step: i64) -> Zeroizing<String> {
        // SHA-1, since that is what authenticators know; HMAC does not rest on its collisions.
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &*self.0);
        let mac = hmac::sign(&key, &step.to_be_bytes());
        let mac = mac.as_ref();
        let offset = usize::from(mac.last().copied().unwrap_or_default() & 0xf);
        let mut word = [0; 4];
        word.copy_from_slice(&mac[offset..offset + 4]);
        let number = (u32::from_be_bytes(word) & 0x7fff_ffff) % 1_000_000;
        Zeroizing::new(format!("{number:06}"))
    }
}

impl fmt::Debug for SecondFactorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecondFactorKey(…)")
    }
}

impl fmt::Debug for TotpSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TotpSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    /// RFC 6238, appendix B, the last six of eight digits.
    #[test]
    fn the_vectors_of_the_rfc_hold() {
        let secret = TotpSecret(Zeroizing::new(*b"12345678901234567890"));
        for (at, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(secret.matching_step(code, at, 0), Some(at / 30), "{at}");
        }
    }

    proptest! {
        #[test]
        fn a_code_works_a_step_early_or_late_and_once(id: u128, at in 1_000_i64..4_000_000_000) {
            let secret = SecondFactorKey::new(&[7; 32]).secret(Uuid::from_u128(id));
            let step = at / 30;
            let code = secret.code(step);
            for around in [at - 30, at, at + 30] {
                prop_assert!(secret.matching_step(&code, around, 0).is_some());
                let again = secret.matching_step(&code, around, step + 1);
                prop_assert_eq!(again, None);
            }
            prop_assert_eq!(secret.matching_step(&code[..5], at, 0), None);
            prop_assert_eq!(secret.matching_step("", at, 0), None);
        }

        #[test]
        fn a_recovery_code_is_found_however_it_is_written(id: u128, other: u128, round: u16, n in 0_usize..10) {
            let (key, id) = (SecondFactorKey::new(&[7; 32]), Uuid::from_u128(id));
            let round = u32::from(round);
            let codes = key.recovery_codes(id, round);
            let code = codes[n].expose_secret();
            let found = Some(u8::try_from(n).unwrap());
            prop_assert_eq!(key.find_recovery_code(id, round, code), found);
            prop_assert_eq!(key.find_recovery_code(id, round, &code.to_uppercase().replace('-', " ")), found);
            prop_assert_eq!(key.find_recovery_code(id, round, &code[1..]), None);
            prop_assert_eq!(key.find_recovery_code(id, round + 1, code), None);
            prop_assume!(Uuid::from_u128(other) != id);
            prop_assert_eq!(key.find_recovery_code(Uuid::from_u128(other), round, code), None);
        }
    }
}
