//! Second factors: TOTP codes of an authenticator app (RFC 6238, RFC 4226) and recovery codes.
//!
//! TOTP secrets and recovery codes are derived from the factor's random key, which the database
//! holds encrypted. Their management is in `auth::second_factors`, and their use at a sign-in in
//! `auth::sign_in`; passkeys are in [`super::passkey`].

use std::fmt;

use aws_lc_rs::{constant_time, hmac};
use data_encoding::BASE32_NOPAD;
use secrecy::SecretString;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Duration of a TOTP time step in seconds.
pub const STEP_SECONDS: i64 = 30;
/// Number of recovery codes of a factor.
pub const RECOVERY_CODES: u8 = 10;
/// Bytes of a recovery code, which is displayed in 16 characters.
const RECOVERY_CODE_LEN: usize = 10;
/// Bytes of a TOTP secret: the output length of HMAC-SHA-1 (RFC 4226, section 4, R6).
const SECRET_LEN: usize = 20;

/// The key of one factor, from which its TOTP secret and recovery codes are derived.
#[derive(Clone)]
pub struct SecondFactorKey(hmac::Key);

/// The TOTP secret that a user's authenticator app shares with this service.
pub struct TotpSecret(Zeroizing<[u8; SECRET_LEN]>);

impl SecondFactorKey {
    /// Creates a key from 32 secret bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// Returns the TOTP secret of a factor.
    #[must_use]
    pub fn totp_secret(&self, factor: Uuid) -> TotpSecret {
        TotpSecret(Zeroizing::new(self.derive(b"totp", factor, &[0])))
    }

    /// Returns the recovery codes of a factor, formatted for the user. Round 0 is the first set;
    /// each renewal starts the next round.
    #[must_use]
    pub fn recovery_codes(&self, factor: Uuid, round: u32) -> Vec<SecretString> {
        let code = |number| {
            let text = self.recovery_code(factor, round, number);
            let text = BASE32_NOPAD.encode(&text).to_lowercase();
            [&text[..4], &text[4..8], &text[8..12], &text[12..]].join("-").into()
        };
        (0..RECOVERY_CODES).map(code).collect()
    }

    /// Returns the number of the recovery code that equals a text, if any. Case, spaces and hyphens
    /// are ignored.
    #[must_use]
    pub fn find_recovery_code(&self, factor: Uuid, round: u32, text: &str) -> Option<u8> {
        let letters = text.chars().filter(|c| !matches!(c, '-' | ' ')).take(64);
        let letters: Zeroizing<String> =
            Zeroizing::new(letters.map(|c| c.to_ascii_uppercase()).collect());
        let bytes = Zeroizing::new(BASE32_NOPAD.decode(letters.as_bytes()).ok()?);
        // Compare with all codes, so that the time does not depend on which one matches.
        let equals = |number: &u8| {
            let code = self.recovery_code(factor, round, *number);
            constant_time::verify_slices_are_equal(&code, &bytes).is_ok()
        };
        (0..RECOVERY_CODES).filter(equals).reduce(|_, found| found)
    }

    fn recovery_code(&self, factor: Uuid, round: u32, number: u8) -> [u8; RECOVERY_CODE_LEN] {
        match round {
            0 => self.derive(b"recovery", factor, &[number]),
            _ => self.derive(
                b"recovery round",
                factor,
                &[&[number][..], &round.to_be_bytes()].concat(),
            ),
        }
    }

    fn derive<const LEN: usize>(&self, purpose: &[u8], factor: Uuid, index: &[u8]) -> [u8; LEN] {
        // For each purpose the rest has a fixed length, so every input is different.
        let mac = hmac::sign(&self.0, &[purpose, factor.as_bytes(), index].concat());
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&mac.as_ref()[..LEN]);
        bytes
    }
}

impl TotpSecret {
    /// Returns the secret in base32, as users enter it in an authenticator app.
    #[must_use]
    pub fn to_base32(&self) -> SecretString {
        BASE32_NOPAD.encode(&*self.0).into()
    }

    /// Returns the time step of a code, or `None` if the code is wrong.
    ///
    /// The current, the previous and the next step are valid, because clocks differ (RFC 6238,
    /// section 5.2). Steps up to `last_step`, the last accepted one, are not: a code works once.
    #[must_use]
    pub fn matching_step(&self, code: &str, unix_seconds: i64, last_step: i64) -> Option<i64> {
        let now = unix_seconds / STEP_SECONDS;
        let equals = |step: &i64| {
            let expected = self.code(*step);
            constant_time::verify_slices_are_equal(expected.as_bytes(), code.as_bytes()).is_ok()
        };
        (now - 1..=now + 1).filter(equals).filter(|step| *step > last_step).reduce(|_, found| found)
    }

    /// Returns the six-digit code of a time step (RFC 4226, section 5.3).
    fn code(&self, step: i64) -> Zeroizing<String> {
        // Authenticator apps support only SHA-1. Its collisions do not affect HMAC.
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
    fn rfc_6238_test_vectors_match() {
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
        fn code_is_accepted_within_one_step_and_only_once(
            id: u128, at in 1_000_i64..4_000_000_000,
        ) {
            let secret = SecondFactorKey::new(&[7; 32]).totp_secret(Uuid::from_u128(id));
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
        fn recovery_code_matches_in_any_spelling(
            id: u128, other: u128, round: u16, n in 0_usize..10,
        ) {
            let (key, id) = (SecondFactorKey::new(&[7; 32]), Uuid::from_u128(id));
            let round = u32::from(round);
            let codes = key.recovery_codes(id, round);
            let code = codes[n].expose_secret();
            let number = Some(u8::try_from(n).unwrap());
            prop_assert_eq!(key.find_recovery_code(id, round, code), number);
            let respelled = code.to_uppercase().replace('-', " ");
            prop_assert_eq!(key.find_recovery_code(id, round, &respelled), number);
            prop_assert_eq!(key.find_recovery_code(id, round, &code[1..]), None);
            prop_assert_eq!(key.find_recovery_code(id, round + 1, code), None);
            prop_assume!(Uuid::from_u128(other) != id);
            prop_assert_eq!(key.find_recovery_code(Uuid::from_u128(other), round, code), None);
        }
    }
}
