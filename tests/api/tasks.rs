//! Background tasks that panic: the service starts them again, or shuts down.

use crate::fixture::{Database, TestApp, TestClock, eventually};

/// Returns the number of registered nodes.
async fn count_nodes(database: &Database) -> i64 {
    let query = sqlx::query_scalar("SELECT count(*) FROM nodes");
    query.fetch_one(&mut database.connect().await).await.unwrap()
}

#[tokio::test]
async fn panicked_sealer_starts_again() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.clock.panic_in("audit::sealer");
    eventually("the sealer panics", async || (!app.clock.will_panic()).then_some(())).await;
    // Its event is in the outbox when the response arrives.
    app.create_key(&dana, "prod", "write").await;
    app.database.wait_until_sealed().await;
    app.stop().await;
}

#[tokio::test]
async fn panicked_audit_writer_shuts_the_service_down() {
    // The task reads the clock when it starts, and then only after events.
    let clock = TestClock::new();
    clock.panic_in("batches::Writer::run");
    let app = TestApp::start_at(clock).await;
    let (message, database) = app.wait_for_failure().await;
    assert_eq!(message, "the task \"audit writer\" failed: see the log");
    // It has lost no event, so other nodes need not wait for its lease.
    assert_eq!(count_nodes(&database).await, 0);
}

#[tokio::test]
async fn panicked_node_shuts_the_service_down_and_deregisters() {
    let app = TestApp::start().await;
    assert_eq!(count_nodes(&app.database).await, 1);
    app.clock.panic_in("cache_invalidation::node");
    let (message, database) = app.wait_for_failure().await;
    assert_eq!(message, "the task \"node\" failed: see the log");
    assert_eq!(count_nodes(&database).await, 0);
}
