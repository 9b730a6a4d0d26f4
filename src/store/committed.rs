/// Proof that a transaction was committed, which is consumed at the fence.
///
/// [`Fence::wait`](crate::cache_invalidation::Fence::wait) takes it and waits until the change has
/// taken effect on every node:
///
/// ```
/// #![deny(unused_must_use)]
/// use call2me_auth::{
///     cache_invalidation::Fence,
///     store::{StoreError, Tx},
/// };
///
/// async fn restrict(tx: Tx, fence: &Fence) -> Result<(), StoreError> {
///     fence.wait(tx.commit().await?).await
/// }
/// ```
///
/// A forgotten fence does not compile:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// use call2me_auth::{
///     cache_invalidation::Fence,
///     store::{StoreError, Tx},
/// };
///
/// async fn restrict(tx: Tx, fence: &Fence) -> Result<(), StoreError> {
///     tx.commit().await?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "wait at the fence with it, or state with `unfenced` why the change restricts no access"]
pub struct Committed(());

impl Committed {
    pub(super) fn new() -> Self {
        Self(())
    }

    /// Skips the fence, because the change restricts no access that a node may have cached. The
    /// reason is for readers of the code.
    pub fn unfenced(self, _reason: &'static str) {}
}
