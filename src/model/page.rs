//! Pagination: lists are sorted by id, newest first, and read page by page.

use data_encoding::BASE64URL_NOPAD;
use uuid::Uuid;

use super::ValidationError;

/// Items on a page if the client sets no limit.
pub const DEFAULT_LIMIT: i64 = 50;
/// The highest limit that a client may set.
pub const MAX_LIMIT: i64 = 100;
/// The highest offset that a client may set: PostgreSQL reads every skipped item.
pub const MAX_OFFSET: u32 = 100_000;

/// The requested part of a list.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest {
    /// Maximum number of items.
    pub limit: i64,
    /// Only items that are older than the item of this id.
    pub before: Option<Uuid>,
    /// Number of items to skip.
    pub offset: i64,
}

impl Default for PageRequest {
    /// Returns a request for the first page, with the default limit.
    fn default() -> Self {
        Self { limit: DEFAULT_LIMIT, before: None, offset: 0 }
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct ListPage<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// True if another page follows.
    pub has_more: bool,
    /// The id of the last item that was searched, if the search ended there and not with an item of
    /// this page.
    pub searched_to: Option<Uuid>,
}

impl<T> ListPage<T> {
    /// Creates a page from up to `limit + 1` items. An item beyond the limit is dropped; it only
    /// shows that another page follows.
    #[must_use]
    pub fn from_overfetch(mut items: Vec<T>, limit: i64) -> Self {
        let limit = usize::try_from(limit).unwrap_or_default();
        let has_more = items.len() > limit;
        items.truncate(limit);
        Self { items, has_more, searched_to: None }
    }

    /// Returns a page of items that could not be read in time.
    #[must_use]
    pub fn unknown() -> Self {
        Self { items: Vec::new(), has_more: true, searched_to: None }
    }

    /// Returns true if there are no items, on this page or another one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && !self.has_more
    }

    /// Returns the cursor of the next page, or `None` on the last page.
    pub fn next_cursor(&self, id: impl Fn(&T) -> Uuid) -> Option<String> {
        let last = self.searched_to.or_else(|| self.items.last().map(id));
        last.filter(|_| self.has_more).map(encode_cursor)
    }
}

/// Encodes the cursor of the page that follows an item. Cursors are opaque to clients.
#[must_use]
pub fn encode_cursor(last: Uuid) -> String {
    BASE64URL_NOPAD.encode(last.as_bytes())
}

/// Decodes a cursor.
///
/// # Errors
/// [`ValidationError`] if the text is not a cursor of [`encode_cursor`].
pub fn decode_cursor(text: &str) -> Result<Uuid, ValidationError> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| Uuid::from_slice(&bytes).ok())
        .ok_or_else(|| ValidationError::new("cursor must be the next_cursor of an earlier page"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cursor_decodes_to_its_id(bits: u128) {
            let id = Uuid::from_u128(bits);
            prop_assert_eq!(decode_cursor(&encode_cursor(id)), Ok(id));
        }

        #[test]
        fn decoded_text_is_canonical(text in "\\PC*") {
            if let Ok(id) = decode_cursor(&text) {
                prop_assert_eq!(encode_cursor(id), text);
            }
        }
    }
}
