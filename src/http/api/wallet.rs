//! Routes that read the wallet of a workspace. Amounts are in US dollars.

use axum::{Json, extract::State};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    http::{
        App,
        extract::{Admin, Authorized, Query},
    },
    model::{
        id::{Id, TransactionId},
        wallet::WalletTransaction,
    },
};

/// The balance of a wallet.
#[derive(Serialize, ToSchema)]
pub struct BalanceBody {
    #[schema(example = 41.5)]
    balance_usd: f64,
}

/// Get the wallet balance
#[utoipa::path(get, path = "/v1/wallet/balance", tag = "Resources",
    responses((status = 200, body = BalanceBody)))]
pub async fn balance(
    caller: Authorized<Admin>,
    State(app): State<App>,
) -> ApiResult<Json<BalanceBody>> {
    let cents = app.resources.balance_cents(&caller).await?;
    Ok(Json(BalanceBody { balance_usd: dollars(cents) }))
}

/// A wallet transaction.
#[derive(Serialize, ToSchema)]
pub struct TransactionBody {
    id: TransactionId,
    /// `top_up`, `charge` or `refund`.
    #[serde(rename = "type")]
    #[schema(example = "top_up")]
    kind: String,
    /// The amount in US dollars. Charges are negative.
    #[schema(example = 50.0)]
    amount_usd: f64,
    #[schema(example = "Card ending in 4242")]
    description: String,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
}

impl From<WalletTransaction> for TransactionBody {
    fn from(transaction: WalletTransaction) -> Self {
        let WalletTransaction { id, kind, amount_cents, description, created_at } = transaction;
        Self { id, kind, amount_usd: dollars(amount_cents), description, created_at }
    }
}

/// A page of wallet transactions.
#[derive(Serialize, ToSchema)]
pub struct TransactionsBody {
    transactions: Vec<TransactionBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List wallet transactions
#[utoipa::path(get, path = "/v1/wallet/transactions", tag = "Resources",
    params(crate::http::dto::parameters::PageParams), responses((status = 200, body = TransactionsBody)))]
pub async fn transactions(
    caller: Authorized<Admin>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<TransactionsBody>> {
    let (page, total) = app.resources.list_transactions(&caller, query.page()?).await?;
    let next_cursor = page.next_cursor(|transaction| transaction.id.uuid());
    let transactions = page.items.into_iter().map(TransactionBody::from).collect();
    Ok(Json(TransactionsBody { transactions, total, next_cursor }))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 90 trillion dollars")]
fn dollars(cents: i64) -> f64 {
    cents as f64 / 100.0
}
