//! The wallet, to look at.

use super::{ResourceError, Resources};
use crate::{
    model::{
        page::{Items, Page},
        principal::Caller,
        wallet::Transaction,
    },
    store::wallet,
};

impl Resources {
    /// The balance of the caller's workspace, in US cents.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn balance_cents(&self, caller: &Caller) -> Result<i64, ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        Ok(wallet::balance_cents(&mut tx, caller.workspace()).await?)
    }

    /// The movements of its wallet, and how many there are.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn transactions(
        &self,
        caller: &Caller,
        page: Page,
    ) -> Result<(Items<Transaction>, i64), ResourceError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let items = wallet::list(&mut tx, caller.workspace(), page).await?;
        let total = wallet::count(&mut tx, caller.workspace()).await?;
        Ok((items, total))
    }
}
