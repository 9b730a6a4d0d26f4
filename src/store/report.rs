//! Queries whose failure must not undo a change, such as the names of what a revocation leaves.

use super::{StoreError, Tx};

impl Tx {
    /// Begins a report: queries on which the transaction does not depend, with a timeout of a
    /// second for each. [`Self::end_report`] ends it.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn begin_report(&mut self) -> Result<(), StoreError> {
        let sql = "SAVEPOINT report; SET LOCAL statement_timeout = '1s'";
        sqlx::raw_sql(sql).execute(self.conn()).await?;
        Ok(())
    }

    /// Ends a report, and continues the transaction. Returns the result of the report; `None` if a
    /// query took too long.
    ///
    /// # Errors
    /// [`StoreError`] if another error ended the report, or the query fails.
    pub async fn end_report<T>(
        &mut self,
        report: Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let report = match report {
            Err(error) if error.is_statement_timeout() => None,
            report => Some(report?),
        };
        // This also ends the timeout.
        let sql = "ROLLBACK TO SAVEPOINT report; RELEASE SAVEPOINT report";
        sqlx::raw_sql(sql).execute(self.conn()).await?;
        Ok(report)
    }
}
