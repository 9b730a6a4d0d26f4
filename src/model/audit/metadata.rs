use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::model::id::{GrantId, UserId};

/// Maximum length of the JSON text, in bytes. The database refuses texts of more than 64 KiB, in
/// its own format, which has more spaces.
const MAX_BYTES: usize = 32 * 1024;

/// The field which states that lists were shortened.
const TRUNCATED: &str = "truncated";

/// Additional data of an event. Its names are sorted, because the canonical form requires it.
#[derive(Debug, Clone, Default)]
pub enum Metadata {
    /// No additional data.
    #[default]
    None,
    /// A gateway asked about the request (forward-auth). The request itself is not proven: a holder
    /// of a key can ask about requests that were never made.
    ForwardAuth,
    /// An OAuth client acted under a grant.
    Grant {
        /// The grant.
        grant: GrantId,
        /// The user that granted it; `None` for a client credentials grant.
        user: Option<UserId>,
    },
    /// A JSON object; create it with [`Metadata::object`].
    Object(Value),
}

impl Metadata {
    /// Returns true if there is no additional data.
    #[must_use]
    pub fn is_none(&self) -> bool {
        match self {
            Self::None => true,
            Self::ForwardAuth | Self::Grant { .. } => false,
            Self::Object(object) => object.as_object().is_some_and(serde_json::Map::is_empty),
        }
    }

    /// Creates metadata from a JSON object, and sorts its names.
    #[must_use]
    pub fn object(mut object: Value) -> Self {
        object.sort_all_objects();
        Self::Object(object)
    }

    /// Returns the length of the JSON text, in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::None => 0,
            Self::ForwardAuth | Self::Grant { .. } => 128,
            Self::Object(object) => text_length(object),
        }
    }

    /// Shortens the longest lists until the JSON text has at most [`MAX_BYTES`], and then states in
    /// a field `truncated` that it did.
    #[must_use]
    pub(super) fn shortened(mut self) -> Self {
        let mut size = self.size();
        let Self::Object(Value::Object(fields)) = &mut self else { return self };
        let is_truncated = size > MAX_BYTES;
        while size > MAX_BYTES {
            let lists = fields.values_mut().filter_map(Value::as_array_mut);
            let longest = lists.max_by_key(|list| list.iter().map(text_length).sum::<usize>());
            match longest {
                Some(list) if !list.is_empty() => list.truncate(list.len() / 2),
                _ => fields.clear(),
            }
            size = fields.values().map(text_length).sum();
        }
        if is_truncated {
            fields.insert(TRUNCATED.to_owned(), true.into());
            fields.sort_keys();
        }
        self
    }
}

fn text_length(value: &Value) -> usize {
    serde_json::to_string(value).map_or(0, |text| text.len())
}

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.collect_map::<&str, &str, _>([]),
            Self::ForwardAuth => serializer.collect_map([("via", "verify")]),
            Self::Grant { grant, user } => {
                let user = user.map(|user| ("user_id", user.to_string()));
                serializer.collect_map([("grant_id", grant.to_string())].into_iter().chain(user))
            }
            Self::Object(object) => object.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_lists_are_shortened_until_metadata_is_small() {
        let small = json!({ "api_keys": ["a", "b"], "reason": "x" });
        let Metadata::Object(kept) = Metadata::object(small.clone()).shortened() else { panic!() };
        assert_eq!(kept, small);
        let name = |length| json!({ "name": "n".repeat(length) });
        let long = json!({
            "api_keys": vec![name(400); 100], "members": vec![name(10); 3], "reason": "x",
            "zeta": vec![name(400); 100],
        });
        let shortened = Metadata::object(long).shortened();
        assert!(shortened.size() <= MAX_BYTES + 100);
        let Metadata::Object(object) = shortened else { panic!() };
        assert_eq!(
            (object["truncated"].as_bool(), object["reason"].as_str()),
            (Some(true), Some("x"))
        );
        assert_eq!(object["members"].as_array().unwrap().len(), 3);
        for list in ["api_keys", "zeta"] {
            assert!(object[list].as_array().unwrap().len() >= 25, "{list}");
        }
        let mut sorted = object.clone();
        sorted.sort_all_objects();
        assert_eq!(object.to_string(), sorted.to_string());
        let text = Metadata::object(json!({ "text": "x".repeat(MAX_BYTES) })).shortened();
        assert!(text.size() <= MAX_BYTES);
    }
}
