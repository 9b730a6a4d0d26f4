//! A standby is promoted. No node accepts a credential whose revocation was answered, on either
//! server. These are the short forms of scenarios of `./scripts/faults`.

use super::{
    fixture::acquire_test_lock,
    scenarios::{
        OldPrimary, Scale, run_with_lost_generation, run_with_promotions, run_with_several_hosts,
        run_with_split_brain, run_with_switchover,
    },
};

/// The primary is killed under load, with keys, sessions and grants.
#[tokio::test(flavor = "multi_thread")]
async fn promotion_of_synchronous_standby_loses_nothing() {
    let _turn = acquire_test_lock().await;
    run_with_promotions(true, Scale::Test).await.assert_clean();
}

/// Connections that nodes keep lead to the old primary.
#[tokio::test(flavor = "multi_thread")]
async fn lookups_leave_old_primary() {
    let _turn = acquire_test_lock().await;
    run_with_switchover(OldPrimary::ReadOnly, Scale::Test).await.assert_clean();
}

/// The new primary gives the number of a lost invalidation to another one.
#[tokio::test(flavor = "multi_thread")]
async fn revocation_after_lost_invalidation_reaches_every_node() {
    let _turn = acquire_test_lock().await;
    run_with_lost_generation(Scale::Test).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn node_on_isolated_primary_accepts_no_revoked_key() {
    let _turn = acquire_test_lock().await;
    run_with_split_brain(true, Scale::Test).await.assert_clean();
}

/// A node that went back and forth between both servers would answer 503.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_several_hosts_use_promoted_server() {
    let _turn = acquire_test_lock().await;
    run_with_several_hosts(Scale::Test).await.assert_clean();
}
