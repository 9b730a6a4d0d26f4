//! A workspace's prepaid balance.

use time::OffsetDateTime;

use super::id::TransactionId;

/// A movement of a wallet.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// Its id.
    pub id: TransactionId,
    /// `top_up`, `charge` or `refund`.
    pub kind: String,
    /// US cents; negative for a charge.
    pub amount_cents: i64,
    /// What for.
    pub description: String,
    /// When.
    pub created_at: OffsetDateTime,
}
