//! PostgreSQL refuses writes for a moment. Connections that were opened meanwhile do not stay in
//! use.

use super::{
    fixture::acquire_test_lock,
    scenarios::{ReadOnlyTarget, Scale, run_with_read_only_spell},
};

#[tokio::test(flavor = "multi_thread")]
async fn writes_succeed_after_database_was_read_only() {
    let _turn = acquire_test_lock().await;
    run_with_read_only_spell(ReadOnlyTarget::Database, Scale::Test).await.assert_clean();
}
