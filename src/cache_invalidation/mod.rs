//! Cache invalidation: keeps the credential caches of all nodes consistent with PostgreSQL.
//!
//! Once the response to a revocation is sent, no node accepts the revoked credential any more. A
//! node uses its cache only while it holds a [`Lease`], which it renews in PostgreSQL; its [`Node`]
//! task receives the invalidations. A request that revokes something waits at the [`Fence`] until
//! every node has acknowledged the invalidation, or its lease has expired. A cached credential is
//! therefore as current as one that was just read, on any number of nodes. A node that is cut off
//! loses its lease, and answers 503. `docs/revocation.md` specifies the protocol.
//!
//! A commit returns a [`Committed`](crate::store::Committed), which only the fence or the reason
//! not to wait there consumes. So a forgotten fence does not compile.
//!
//! The node's loop is in `node.rs`, the SQL in [`crate::store::cache_invalidation`].

mod fence;
mod lease;
mod node;
mod observed_leases;

use crate::model::{invalidation::Invalidation, rotation::NodeWatermark};

pub use fence::Fence;
pub use lease::Lease;
pub use node::{Node, NodeDependencies, NodeTask};
pub use observed_leases::ObservedLeases;

/// The watermark of this node's audit events.
pub trait AuditWatermark: Send + Sync + 'static {
    /// Returns the time up to which this node has written all its audit events.
    fn watermark(&self) -> NodeWatermark;
}

/// Receives invalidations: the node's credential caches.
pub trait InvalidationSink: Send + Sync + 'static {
    /// Removes the named credentials from the cache, and keeps lookups in flight from being cached:
    /// they may have read the state before the change.
    fn invalidate(&self, invalidations: &[Invalidation]);

    /// Clears the cache; lookups in flight are not cached either.
    fn invalidate_all(&self);
}
