//! A workspace's prepaid balance.

use time::OffsetDateTime;

use super::id::TransactionId;

/// A transaction of a wallet.
#[derive(Debug, Clone)]
pub struct WalletTransaction {
    /// The transaction's id.
    pub id: TransactionId,
    /// The kind: `top_up`, `charge` or `refund`.
    pub kind: String,
    /// The amount in US cents; negative for a charge.
    pub amount_cents: i64,
    /// The text that describes the transaction.
    pub description: String,
    /// Time of the transaction.
    pub created_at: OffsetDateTime,
}
