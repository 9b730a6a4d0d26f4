//! The wallet of a workspace, read-only.

use super::{ResourceError, Resources};
use crate::{
    model::{
        page::{ListPage, PageRequest},
        principal::Caller,
        wallet::WalletTransaction,
    },
    store::wallet,
};

impl Resources {
    /// Returns the balance of the caller's workspace, in US cents.
    ///
    /// # Errors
    /// [`ResourceError::Store`] if the query fails.
    pub async fn balance_cents(&self, caller: &Caller) -> Result<i64, ResourceError> {
        let mut tx = self.store.begin_for(caller).await?;
        Ok(wallet::balance_cents(&mut tx, caller.workspace()).await?)
    }

    /// Lists the wallet transactions of the caller's workspace, with their total number.
    ///
    /// # Errors
    /// [`ResourceError::Store`] if a query fails.
    pub async fn list_transactions(
        &self,
        caller: &Caller,
        page: PageRequest,
    ) -> Result<(ListPage<WalletTransaction>, i64), ResourceError> {
        let mut tx = self.store.begin_for(caller).await?;
        let items = wallet::list(&mut tx, caller.workspace(), page).await?;
        let total = wallet::count(&mut tx, caller.workspace()).await?;
        Ok((items, total))
    }
}
