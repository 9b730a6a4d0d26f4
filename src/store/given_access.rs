//! Access that members and keys gave to others, directly and through those that got access in this
//! way before they gave it.
//!
//! The rows of a workspace are read once, and followed here: a list costs as much as it has rows.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
};

use time::OffsetDateTime;
use uuid::Uuid;

use super::{StoreError, Tx};
use crate::model::id::{ApiKeyId, Id as _};

/// Maximum number of rows that a report reads. It takes a quarter of a second.
const MAX_ROWS: i64 = 100_000;

/// Access that was given to a member or a key.
struct Row {
    given_to: Uuid,
    /// At least one of them: a user, directly or through a key, and that key.
    by_user_id: Option<Uuid>,
    by_key_id: Option<Uuid>,
    /// True if they created the key.
    is_creation: bool,
    /// The first and the last change that gave it, in the order of all changes.
    first_change: i64,
    last_change: i64,
}

/// The access that was given in a workspace.
pub(super) struct GivenAccess(Vec<Row>);

/// Returns a key and its descendants: the keys that it created, directly or through keys that it
/// created. Of the revoked ones, those that gave something.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_key_and_descendants(tx: &mut Tx, key: ApiKeyId) -> Result<Vec<Uuid>, StoreError> {
    Ok(GivenAccess(list_rows(tx, Some(true), None).await?).key_and_descendants(key.uuid()))
}

async fn list_rows(
    tx: &mut Tx,
    is_creation: Option<bool>,
    limit: Option<i64>,
) -> Result<Vec<Row>, StoreError> {
    Ok(sqlx::query_as!(
        Row,
        r#"SELECT given_to AS "given_to!", by_user_id, by_key_id, is_creation AS "is_creation!",
                  first_change AS "first_change!", last_change AS "last_change!"
           FROM list_given_access($1, $2)"#,
        is_creation,
        limit,
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Counts the access that the keys of the transaction's workspace gave since a time, up to `limit`.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_by_keys(
    tx: &mut Tx,
    since: OffsetDateTime,
    limit: i64,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count_access_given_by_keys($1, $2) AS "count!""#,
        since,
        limit,
    )
    .fetch_one(tx.conn())
    .await?)
}

impl GivenAccess {
    /// Reads the access that was given in the transaction's workspace, with the creation of keys if
    /// `includes_creations`. `None` if there are more than 100,000 rows.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub(super) async fn read(
        tx: &mut Tx,
        includes_creations: bool,
    ) -> Result<Option<Self>, StoreError> {
        let is_creation = if includes_creations { None } else { Some(false) };
        let rows = list_rows(tx, is_creation, Some(MAX_ROWS + 1)).await?;
        let is_complete = i64::try_from(rows.len()).is_ok_and(|count| count <= MAX_ROWS);
        Ok(is_complete.then_some(Self(rows)))
    }

    /// Returns the members and keys that got access from a key or a user, also through others.
    ///
    /// This is the algorithm of Dijkstra, with changes in place of distances: each member and key
    /// is visited once, with the earliest change that gave it access. What it gave before does not
    /// count.
    pub(super) fn given_by(&self, source: Uuid) -> Vec<Uuid> {
        let givers = |row: &Row| [row.by_user_id, row.by_key_id];
        let given_by = self.group_by(|row| givers(row).into_iter().flatten());
        let mut visited = HashSet::new();
        let mut next = BinaryHeap::from([Reverse((0, source))]);
        while let Some(Reverse((since, giver))) = next.pop() {
            if !visited.insert(giver) {
                continue;
            }
            for row in given_by.get(&giver).into_iter().flatten() {
                if row.last_change >= since && !visited.contains(&row.given_to) {
                    next.push(Reverse((row.first_change.max(since), row.given_to)));
                }
            }
        }
        visited.remove(&source);
        visited.into_iter().collect()
    }

    /// Returns a key and the keys that it created, also through keys that it created.
    pub(super) fn key_and_descendants(&self, key: Uuid) -> Vec<Uuid> {
        let created_by = self.group_by(|row| row.by_key_id.filter(|_| row.is_creation));
        let mut keys = vec![key];
        let mut position = 0;
        // A key is created once, so none is added twice.
        while let Some(creator) = keys.get(position) {
            let created = created_by.get(creator).into_iter().flatten();
            keys.extend(created.map(|row| row.given_to));
            position += 1;
        }
        keys
    }

    fn group_by<I: IntoIterator<Item = Uuid>>(
        &self,
        givers: impl Fn(&Row) -> I,
    ) -> HashMap<Uuid, Vec<&Row>> {
        let mut groups: HashMap<Uuid, Vec<&Row>> = HashMap::new();
        for row in &self.0 {
            for giver in givers(row) {
                groups.entry(giver).or_default().push(row);
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(by: u128, to: u128, first_change: i64, last_change: i64) -> Row {
        let (given_to, by_key_id) = (Uuid::from_u128(to), Some(Uuid::from_u128(by)));
        Row { given_to, by_user_id: None, by_key_id, is_creation: false, first_change, last_change }
    }

    fn sorted(ids: Vec<Uuid>) -> Vec<u128> {
        let mut ids: Vec<_> = ids.into_iter().map(|id| id.as_u128()).collect();
        ids.sort_unstable();
        ids
    }

    fn given_by_1(rows: Vec<Row>) -> Vec<u128> {
        sorted(GivenAccess(rows).given_by(Uuid::from_u128(1)))
    }

    #[test]
    fn access_that_was_given_later_is_followed() {
        assert_eq!(given_by_1(vec![row(1, 2, 5, 5), row(2, 3, 6, 6)]), [2, 3]);
        assert_eq!(given_by_1(vec![row(1, 2, 5, 5), row(2, 3, 1, 7)]), [2, 3]);
        assert!(given_by_1(vec![row(2, 3, 5, 5), row(3, 1, 6, 6)]).is_empty());
    }

    #[test]
    fn access_that_was_given_before_is_not_followed() {
        assert_eq!(given_by_1(vec![row(1, 2, 5, 5), row(2, 3, 1, 4)]), [2]);
        // Also if the giver got access later than by its first change.
        assert_eq!(given_by_1(vec![row(1, 2, 9, 9), row(2, 3, 1, 9), row(3, 4, 8, 8)]), [2, 3]);
    }

    #[test]
    fn earliest_way_counts() {
        let rows = vec![row(1, 2, 9, 9), row(1, 3, 1, 1), row(3, 2, 2, 2), row(2, 4, 3, 3)];
        assert_eq!(given_by_1(rows), [2, 3, 4]);
    }

    #[test]
    fn access_by_user_and_key_counts_for_both() {
        let by_user_id = Some(Uuid::from_u128(1));
        assert_eq!(given_by_1(vec![Row { by_user_id, ..row(7, 2, 1, 1) }]), [2]);
    }
    #[test]
    fn descendants_are_created_by_key_or_its_descendants() {
        let created = |by, to| Row { is_creation: true, ..row(by, to, 1, 1) };
        let rows =
            vec![created(2, 3), created(1, 2), created(7, 8), row(2, 7, 1, 1), created(3, 4)];
        let keys = GivenAccess(rows).key_and_descendants(Uuid::from_u128(1));
        assert_eq!(sorted(keys), [1, 2, 3, 4]);
    }
}
