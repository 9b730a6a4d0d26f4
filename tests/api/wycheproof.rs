//! Project Wycheproof's JSON web signatures, through the verifier that serves requests.

use std::time::Duration;

use call2me_auth::auth::{AuthError, authenticate::Authenticated};
use wycheproof_ng_kdf_jose::json_web;

use crate::fixture::TestApp;

/// What the service says to a token, without HTTP in between: that none is refused for its form alone.
async fn verify(app: &TestApp, token: &str) -> Result<Authenticated, AuthError> {
    app.app.auth.authenticate(token, Duration::ZERO).await
}

/// Right ones too: they are signed, but by nobody whom this service knows. And none of their signatures,
/// headers or payloads makes a genuine token of a forged one.
#[tokio::test]
async fn no_vector_passes_nor_any_part_of_it() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let genuine: Vec<_> = dana.access_token.split('.').collect();
    assert!(verify(&app, &dana.access_token).await.is_ok());
    let vectors = json_web::TestSet::load(json_web::TestName::JsonWebSignature).unwrap();
    let (mut tried, mut right) = (0, 0);
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
            let answer = verify(&app, &token).await;
            assert!(
                matches!(answer, Err(AuthError::InvalidCredential(_))),
                "{} ({:?}): {token}: {answer:?}",
                vector.tc_id,
                vector.flags,
            );
        }
        tried += 1;
        right += usize::from(!vector.result.must_fail());
    }
    println!("{tried} vectors, {right} of them right ones");
    assert!(tried > 300 && right > 30, "{tried} vectors, {right} of them right ones");
}
