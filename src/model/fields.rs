//! JSON objects that clients store and this service does not interpret.
//!
//! Values stay unparsed text. They are returned exactly as the client sent them, including numbers
//! that no numeric type can hold. A megabyte of small numbers takes a megabyte of memory, while
//! parsed values would take thirty.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// A JSON object: its fields in the client's order. Of a repeated field, the last one counts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fields(IndexMap<String, Box<RawValue>>);

/// The value of a field, as far as this service reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldValue {
    /// The object does not have the field.
    Absent,
    /// The value is `null`.
    Null,
    /// The value is a string.
    Text(String),
    /// The value is a boolean, a number, an array or an object.
    Other,
}

impl Fields {
    /// Returns a field's value.
    #[must_use]
    pub fn get(&self, name: &str) -> FieldValue {
        match self.0.get(name).map(|raw| raw.get()) {
            None => FieldValue::Absent,
            Some("null") => FieldValue::Null,
            Some(raw) => serde_json::from_str(raw).map_or(FieldValue::Other, FieldValue::Text),
        }
    }

    /// Returns a field's value if it is a string.
    #[must_use]
    pub fn get_text(&self, name: &str) -> Option<String> {
        match self.get(name) {
            FieldValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns true if the object has this field, even if it is null.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Sets a field; a new field is appended.
    pub fn set(&mut self, name: &str, value: &impl Serialize) {
        if let Ok(raw) = to_raw_value(value) {
            self.0.insert(name.to_owned(), raw);
        }
    }

    /// Copies the value of one field to another if the other is absent.
    pub fn copy_if_absent(&mut self, from: &str, to: &str) {
        if let (Some(value), false) = (self.0.get(from).cloned(), self.0.contains_key(to)) {
            self.0.insert(to.to_owned(), value);
        }
    }

    /// Removes a field and returns its value.
    pub fn remove(&mut self, name: &str) -> FieldValue {
        let value = self.get(name);
        self.0.shift_remove(name);
        value
    }

    /// Adds all fields of another object; they replace fields of the same name.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Returns the number of items of an array field, or 0 if the field is not an array.
    #[must_use]
    pub fn count_items(&self, name: &str) -> usize {
        let items = self.0.get(name).map(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()));
        items.and_then(Result::ok).map_or(0, |items| items.len())
    }

    /// Returns the object as JSON text.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_values_keep_their_original_text() {
        let text =
            r#"{"b":1e400,"a":-0.0,"n":12345678901234567890123,"l":[1, 2],"s":"\u00e9","z":null}"#;
        let mut fields: Fields = serde_json::from_str(text).unwrap();
        assert_eq!(fields.to_json(), text);
        assert_eq!(fields.get("s"), FieldValue::Text("é".into()));
        assert_eq!((fields.get("z"), fields.get("x")), (FieldValue::Null, FieldValue::Absent));
        assert_eq!((fields.count_items("l"), fields.count_items("b")), (2, 0));
        fields.set("a", &"x");
        fields.copy_if_absent("s", "t");
        assert_eq!(fields.remove("b"), FieldValue::Other);
        assert_eq!(
            fields.to_json(),
            r#"{"a":"x","n":12345678901234567890123,"l":[1, 2],"s":"\u00e9","z":null,"t":"\u00e9"}"#
        );
    }
}
