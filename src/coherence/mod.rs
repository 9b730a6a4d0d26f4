//! Cache coherence: what one node changes, no node believes any longer when the answer goes out.
//!
//! A node may use what it has cached only while it holds a [`Lease`], which it renews in PostgreSQL,
//! and its [`Node`] is told of what changed. Whoever revokes something waits at the [`Fence`] until
//! each node has acknowledged, or its lease is over. So a cached credential is as good as one that was
//! just looked up, on any number of nodes, and also when one of them is cut off: without a lease it
//! asks PostgreSQL for every credential, or answers 503.

mod fence;
mod lease;
mod node;

use time::OffsetDateTime;

use crate::model::invalidation::Invalidation;

pub use fence::Fence;
pub use lease::Lease;
pub use node::{Node, NodeTask, Parts};

/// What a node logs.
pub trait Diary: Send + Sync + 'static {
    /// The moment before which everything is written.
    fn written_until(&self) -> OffsetDateTime;
}

/// What a node has cached of credentials.
pub trait Beliefs: Send + Sync + 'static {
    /// Forgets what these name, and whatever is being looked up at the moment: it may have been read
    /// before the change.
    fn forget(&self, invalidations: &[Invalidation]);

    /// Forgets everything.
    fn forget_all(&self);
}
