//! Pages of a list: newest first, by id.

use data_encoding::BASE64URL_NOPAD;
use uuid::Uuid;

use super::Invalid;

/// Items on a page unless the client asks otherwise.
pub const DEFAULT_LIMIT: i64 = 50;
/// The most that a client may ask for.
pub const MAX_LIMIT: i64 = 100;
/// The most items that a client may pass over: PostgreSQL reads each of them.
pub const MAX_OFFSET: u32 = 100_000;

/// Which part of a list is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// How many items at most.
    pub limit: i64,
    /// Only items older than this one.
    pub before: Option<Uuid>,
    /// How many items to pass over.
    pub offset: i64,
}

impl Default for Page {
    /// The first, of the usual length.
    fn default() -> Self {
        Self { limit: DEFAULT_LIMIT, before: None, offset: 0 }
    }
}

/// Part of a list.
#[derive(Debug)]
pub struct Items<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// Whether there are more behind them.
    pub more: bool,
}

impl<T> Items<T> {
    /// From up to `limit + 1` items: the one too many only tells that there are more.
    #[must_use]
    pub fn from_excess(mut items: Vec<T>, limit: i64) -> Self {
        let limit = usize::try_from(limit).unwrap_or_default();
        let more = items.len() > limit;
        items.truncate(limit);
        Self { items, more }
    }

    /// The cursor of the next page, if there is one.
    pub fn next_cursor(&self, id: impl Fn(&T) -> Uuid) -> Option<String> {
        self.items.last().filter(|_| self.more).map(|last| write_cursor(id(last)))
    }
}

/// A cursor that goes on behind an item. Opaque to clients.
#[must_use]
pub fn write_cursor(last: Uuid) -> String {
    BASE64URL_NOPAD.encode(last.as_bytes())
}

/// Reads a cursor.
///
/// # Errors
/// When it is none of ours.
pub fn read_cursor(text: &str) -> Result<Uuid, Invalid> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| Uuid::from_slice(&bytes).ok())
        .ok_or_else(|| Invalid::new("cursor must be a next_cursor of an earlier page"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_is_read_back(bits: u128) {
            let id = Uuid::from_u128(bits);
            prop_assert_eq!(read_cursor(&write_cursor(id)), Ok(id));
        }

        #[test]
        fn other_texts_are_refused_without_panic(text in "\\PC*") {
            if let Ok(id) = read_cursor(&text) {
                prop_assert_eq!(write_cursor(id), text);
            }
        }
    }
}
