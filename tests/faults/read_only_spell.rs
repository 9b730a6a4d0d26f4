//! PostgreSQL refuses writes for a moment. Connections that were opened meanwhile do not stay in
//! use.

use super::{
    fixture::{Node, Server, acquire_test_lock},
    scenarios::{ReadOnlyTarget, Scale, run_with_read_only_spell, wait_for},
};

#[tokio::test(flavor = "multi_thread")]
async fn writes_succeed_after_database_was_read_only() {
    let _turn = acquire_test_lock().await;
    run_with_read_only_spell(ReadOnlyTarget::Database, Scale::Test).await.assert_clean();
}

/// Existing connections answer queries, and commit nothing.
#[tokio::test(flavor = "multi_thread")]
async fn node_is_not_ready_while_postgresql_is_read_only() {
    let _turn = acquire_test_lock().await;
    let server = Server::start_primary().await;
    let node = Node::start("a", &server.node_url(), &[("cache.lease_seconds", "2")]).await;
    for (value, status) in [("off", 200), ("on", 503), ("off", 200)] {
        let sql = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
        server.execute(&sql).await;
        server.execute("SELECT pg_reload_conf()").await;
        wait_for("the readiness changes", async || {
            node.request("GET", "/readyz").send().await.status == status
        })
        .await;
    }
}
