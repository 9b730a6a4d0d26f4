//! Project Wycheproof's JSON Web Signature vectors, with the verifier that serves requests.

use std::time::Duration;

use call2me_auth::auth::{AuthError, authenticator::AuthenticationOutcome};
use wycheproof_ng_kdf_jose::json_web;

use crate::fixture::TestApp;

/// Authenticates a token without HTTP, which would reject some tokens for their form alone.
async fn verify(app: &TestApp, token: &str) -> Result<AuthenticationOutcome, AuthError> {
    app.app.auth.authenticator.authenticate(token, Duration::ZERO).await
}

/// Valid vectors are rejected too, because the service does not know their keys. So are
/// combinations of their headers, payloads or signatures with those of a genuine token.
#[tokio::test]
async fn no_wycheproof_vector_or_part_of_it_is_accepted() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let genuine: Vec<_> = dana.access_token.split('.').collect();
    assert!(verify(&app, &dana.access_token).await.is_ok());
    let vectors = json_web::TestSet::load(json_web::TestName::JsonWebSignature).unwrap();
    let (mut checked, mut valid) = (0, 0);
    for vector in vectors.test_groups.iter().flat_map(|group| &group.tests) {
        let Some(jws) = &vector.jws else { continue };
        let text = jws.as_str().map_or_else(|| jws.to_string(), str::to_owned);
        let mut forged = vec![text.clone()];
        if let [header, payload, signature] = text.split('.').collect::<Vec<_>>()[..] {
            forged.push([header, genuine[1], genuine[2]].join("."));
            forged.push([genuine[0], payload, genuine[2]].join("."));
            forged.push([genuine[0], payload, signature].join("."));
            forged.push([genuine[0], genuine[1], signature].join("."));
            forged.push([header, genuine[1], signature].join("."));
        }
        for token in forged {
            let result = verify(&app, &token).await;
            assert!(
                matches!(result, Err(AuthError::InvalidCredential(_))),
                "{} ({:?}): {token}: {result:?}",
                vector.tc_id,
                vector.flags,
            );
        }
        checked += 1;
        valid += usize::from(!vector.result.must_fail());
    }
    println!("{checked} vectors, {valid} of them valid");
    assert!(checked > 300 && valid > 30, "{checked} vectors, {valid} of them valid");
}
