//! Pauses before 429 responses. A client that sends its next request at once would otherwise use
//! the cores that other clients need, though nothing is done for its requests.

use std::time::Duration;

use tokio::{sync::Semaphore, time::sleep};

/// Time after which a request over a rate limit is answered.
const PAUSE: Duration = Duration::from_millis(50);

/// The pauses of a node. At most an eighth of its connections wait at once; responses beyond that
/// are not delayed.
pub struct RefusalPauses(Semaphore);

impl RefusalPauses {
    /// Pauses for a node with this number of connections.
    #[must_use]
    pub fn new(max_connections: usize) -> Self {
        Self(Semaphore::new((max_connections / 8).min(Semaphore::MAX_PERMITS)))
    }

    /// Waits before a 429 response. Holds nothing but the connection.
    pub(super) async fn pause(&self) {
        if let Ok(_permit) = self.0.try_acquire() {
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn few_connections_wait_at_once() {
        let pauses = RefusalPauses::new(16);
        let first = pauses.pause();
        let mut waiting = std::pin::pin!(async { tokio::join!(first, pauses.pause()) });
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(pauses.pause().now_or_never().is_some(), "a third one does not wait");
        waiting.await;
        assert!(pauses.pause().now_or_never().is_none());
    }
}
