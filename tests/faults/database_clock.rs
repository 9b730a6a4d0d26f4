//! PostgreSQL's clock jumps. It decides neither for how long a revocation waits nor that it fails.

use super::{
    fixture::acquire_test_lock,
    scenarios::{Scale, run_with_cut_off_node, run_with_killed_node},
};

const HOUR: i32 = 3600;

#[tokio::test(flavor = "multi_thread")]
async fn revocation_waits_for_cut_off_node_when_clock_jumps_ahead() {
    let _turn = acquire_test_lock().await;
    run_with_cut_off_node(HOUR, Scale::Test).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_succeeds_after_lost_node_when_clock_jumps_back() {
    let _turn = acquire_test_lock().await;
    run_with_killed_node(-HOUR, Scale::Test).await.assert_clean();
}
