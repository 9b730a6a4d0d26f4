use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
};
use minicbor::Encoder;
use proptest::prelude::*;

use super::{public_key::ES256, *};

const CLIENT_DATA: &[u8] = b"{}";

fn party() -> RelyingParty {
    RelyingParty::from_public_url("https://auth.example").unwrap()
}

/// Returns the authenticator data of a device with signature counter 5, and the bytes that it
/// signs.
fn signed_data() -> (Vec<u8>, Vec<u8>) {
    let hash = digest(&SHA256, b"auth.example");
    let data = [hash.as_ref(), &[USER_PRESENT | USER_VERIFIED], &5_u32.to_be_bytes()].concat();
    let signed = [&data, digest(&SHA256, CLIENT_DATA).as_ref()].concat();
    (data, signed)
}

fn check(key: &[u8], signature: &[u8]) {
    let (data, _) = signed_data();
    let asserted = |key: &[u8], signature: &[u8]| {
        super::verify_assertion(&party(), key, CLIENT_DATA, &data, signature)
    };
    let expected = Assertion { sign_count: 5, is_backup_eligible: false };
    assert_eq!(asserted(key, signature), Ok(expected));
    let mut wrong = signature.to_vec();
    wrong[7] ^= 1;
    assert!(asserted(key, &wrong).is_err());
    assert!(asserted(key, b"").is_err());
}

#[test]
fn ed25519_assertion_is_verified() {
    let pair = Ed25519KeyPair::generate().unwrap();
    let mut key = Encoder::new(Vec::new());
    key.map(4).unwrap().u8(1).unwrap().u8(1).unwrap().u8(3).unwrap().i8(-8).unwrap();
    key.i8(-1).unwrap().u8(6).unwrap();
    key.i8(-2).unwrap().bytes(pair.public_key().as_ref()).unwrap();
    check(&key.into_writer(), pair.sign(&signed_data().1).as_ref());
}

#[test]
fn rsa_assertion_is_verified() {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = pair.public_key();
    let mut key = Encoder::new(Vec::new());
    key.map(4).unwrap().u8(1).unwrap().u8(3).unwrap().u8(3).unwrap().i16(-257).unwrap();
    key.i8(-1).unwrap().bytes(public.modulus().big_endian_without_leading_zero()).unwrap();
    key.i8(-2).unwrap().bytes(public.exponent().big_endian_without_leading_zero()).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    let random = SystemRandom::new();
    pair.sign(&RSA_PKCS1_SHA256, &random, &signed_data().1, &mut signature).unwrap();
    check(&key.into_writer(), &signature);
}

#[test]
fn inconsistent_key_is_rejected() {
    let parse = |pairs: &[(i64, i64)]| {
        let mut key = Encoder::new(Vec::new());
        key.map(pairs.len() as u64).unwrap();
        for (label, value) in pairs {
            key.i64(*label).unwrap().i64(*value).unwrap();
        }
        PublicKey::parse(&key.into_writer())
    };
    for pairs in [
        &[][..],
        &[(1, 2), (3, ES256), (-1, 1)],
        // Another curve, another algorithm and a repeated parameter.
        &[(1, 2), (3, ES256), (-1, 2), (-2, 1), (-3, 1)],
        &[(1, 4), (3, 5)],
        &[(1, 2), (1, 1), (3, ES256)],
    ] {
        assert!(parse(pairs).is_err(), "{pairs:?}");
    }
}

#[test]
fn relying_party_requires_a_host_name_with_https_or_localhost() {
    let of = |url| RelyingParty::from_public_url(url).map(|party| (party.id, party.origin));
    let some = |id: &str, origin: &str| Some((id.to_owned(), origin.to_owned()));
    assert_eq!(of("https://auth.example"), some("auth.example", "https://auth.example"));
    assert_eq!(of("https://a.example:8443"), some("a.example", "https://a.example:8443"));
    assert_eq!(of("http://localhost:8080"), some("localhost", "http://localhost:8080"));
    for none in ["http://auth.example", "https://192.0.2.1", "http://127.0.0.1:80", "", "x"] {
        assert_eq!(of(none), None, "{none}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_rejected_without_panic(bytes: Vec<u8>, flags: u8, rest: Vec<u8>) {
        let hash = digest(&SHA256, b"auth.example");
        let data = [hash.as_ref(), &[flags], &[0; 4], &rest].concat();
        for bytes in [&bytes, &data] {
            prop_assert!(verify_registration(&party(), bytes).is_err());
            prop_assert!(PublicKey::parse(bytes).is_err());
            prop_assert!(verify_assertion(&party(), bytes, bytes, bytes, bytes).is_err());
            AuthenticatorData::parse(bytes).ok();
            verify_client_data(&party(), Ceremony::Registration, bytes).ok();
        }
    }
}
