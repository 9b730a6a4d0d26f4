use super::Server;

/// Proof that a transaction was committed, which is consumed at the fence.
///
/// [`Fence::wait`](crate::cache_invalidation::Fence::wait) takes it and waits until the change has
/// taken effect on every node:
///
/// ```
/// #![deny(unused_must_use)]
/// use call2me_auth::{
///     cache_invalidation::Fence,
///     store::{Audited, StoreError, Tx},
/// };
///
/// async fn restrict(tx: Tx, audited: Audited, fence: &Fence) -> Result<(), StoreError> {
///     fence.wait(tx.commit(audited).await?).await
/// }
/// ```
///
/// A forgotten fence does not compile:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// use call2me_auth::{
///     cache_invalidation::Fence,
///     store::{Audited, StoreError, Tx},
/// };
///
/// async fn restrict(tx: Tx, audited: Audited, fence: &Fence) -> Result<(), StoreError> {
///     tx.commit(audited).await?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "wait at the fence with it, or state why not with `unfenced`"]
pub struct Committed(Server);

impl Committed {
    pub(super) fn new(server: Server) -> Self {
        Self(server)
    }

    /// Returns the server that has committed.
    #[must_use]
    pub fn server(&self) -> Server {
        self.0
    }

    /// Skips the fence, because the change restricts no access that a node may have cached. The
    /// reason is for readers of the code.
    pub fn unfenced(self, _reason: &'static str) {}
}
