//! A limit on the access that API keys of a workspace give within a day.
//!
//! A leaked admin key could otherwise create and widen keys until the list of what it gave takes
//! too long to be read. Users are not limited: after a leak they replace keys.

use time::Duration;

use crate::{
    auth::{AuthError, context::ServiceContext},
    model::principal::Caller,
    store::{self, Tx},
};

/// Maximum number of keys that the API keys of a workspace may create, enable or widen, and of
/// roles that they may raise, within 24 hours. Keys that were revoked and gave nothing do not
/// count.
const MAX_GIVEN_PER_DAY: i64 = 2_000;

/// Checks that a caller may give access to another key or member, if it is an API key. The
/// workspace is locked.
///
/// # Errors
/// [`AuthError::Conflict`] at the limit.
pub(in crate::auth) async fn require_allowance(
    context: &ServiceContext,
    tx: &mut Tx,
    caller: &Caller,
) -> Result<(), AuthError> {
    if caller.principal.api_key().is_none() {
        return Ok(());
    }
    let since = context.env.clock.now() - Duration::DAY;
    if store::given_access::count_by_keys(tx, since, MAX_GIVEN_PER_DAY).await? < MAX_GIVEN_PER_DAY {
        return Ok(());
    }
    Err(AuthError::Conflict(
        "the API keys of the workspace have created or widened 2000 keys today, which is the \
         maximum: sign in to do it, or try again tomorrow",
    ))
}
