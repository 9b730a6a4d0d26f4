/// Proof that a transaction contains the audit event of its change.
///
/// [`Tx::commit`](super::Tx::commit) requires it, and [`insert`](super::audit::insert)
/// returns it:
///
/// ```
/// use call2me_auth::{
///     model::{audit::NewEvent, id::WorkspaceId},
///     store::{Committed, StoreError, Tx, audit},
/// };
///
/// async fn change(
///     mut tx: Tx,
///     workspace: WorkspaceId,
///     event: &NewEvent,
/// ) -> Result<Committed, StoreError> {
///     let audited = audit::insert(&mut tx, workspace, event).await?;
///     tx.commit(audited).await
/// }
/// ```
///
/// A forgotten event does not compile:
///
/// ```compile_fail,E0061
/// use call2me_auth::store::{Committed, StoreError, Tx};
///
/// async fn change(tx: Tx) -> Result<Committed, StoreError> {
///     tx.commit().await
/// }
/// ```
///
/// A change with several events needs the proof of one of them.
#[derive(Debug)]
pub struct Audited(());

impl Audited {
    pub(super) fn new() -> Self {
        Self(())
    }

    /// Allows a commit without an event. The reason is for readers of the code.
    #[must_use]
    pub fn exempt(_reason: &'static str) -> Self {
        Self(())
    }
}
