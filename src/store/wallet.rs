//! Prepaid balances of workspaces, as the sum of their wallet transactions.

use super::{StoreError, Tx};
use crate::model::{
    id::{Id, TransactionId, WorkspaceId},
    page::{ListPage, PageRequest},
    wallet::WalletTransaction,
};

/// Returns a workspace's balance in US cents.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn balance_cents(tx: &mut Tx, workspace: WorkspaceId) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT coalesce(sum(amount_cents), 0)::bigint AS "balance!" FROM wallet_transactions
           WHERE workspace_id = $1"#,
        workspace.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Inserts a wallet transaction.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(
    tx: &mut Tx,
    workspace: WorkspaceId,
    transaction: &WalletTransaction,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO wallet_transactions (id, workspace_id, kind, amount_cents, description, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        transaction.id.uuid(),
        workspace.uuid(),
        transaction.kind,
        transaction.amount_cents,
        transaction.description,
        transaction.created_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Lists the wallet transactions of a workspace, newest first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    page: PageRequest,
) -> Result<ListPage<WalletTransaction>, StoreError> {
    let items = sqlx::query_as!(
        WalletTransaction,
        r#"SELECT id AS "id: TransactionId", kind, amount_cents, description, created_at
           FROM wallet_transactions
           WHERE workspace_id = $1 AND ($2::uuid IS NULL OR id < $2)
           ORDER BY id DESC LIMIT $3 OFFSET $4"#,
        workspace.uuid(),
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(items, page.limit))
}

/// Counts the wallet transactions of a workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count(tx: &mut Tx, workspace: WorkspaceId) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM wallet_transactions WHERE workspace_id = $1"#,
        workspace.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}
