//! The fields of a JSON object that a client stores and nobody here knows.
//!
//! Values stay text: what was sent comes back to the letter, great numbers and all, and a megabyte of
//! small numbers takes a megabyte, where parsed values would take thirty.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// Fields in the order of the client; of a repeated one the last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fields(IndexMap<String, Box<RawValue>>);

/// A field's value, as far as anybody here looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// It is not there.
    Absent,
    /// It is null.
    Null,
    /// It is a string.
    Text(String),
    /// It is anything else.
    Other,
}

impl Fields {
    /// A field's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Field {
        match self.0.get(name).map(|raw| raw.get()) {
            None => Field::Absent,
            Some("null") => Field::Null,
            Some(raw) => serde_json::from_str(raw).map_or(Field::Other, Field::Text),
        }
    }

    /// A field's value, if it is a string.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        match self.get(name) {
            Field::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether there is such a field.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Sets a field; a new one goes to the end.
    pub fn set(&mut self, name: &str, value: &impl Serialize) {
        if let Ok(raw) = to_raw_value(value) {
            self.0.insert(name.to_owned(), raw);
        }
    }

    /// Gives one field the value of another, if it has none itself.
    pub fn copy_if_absent(&mut self, from: &str, to: &str) {
        if let (Some(value), false) = (self.0.get(from).cloned(), self.0.contains_key(to)) {
            self.0.insert(to.to_owned(), value);
        }
    }

    /// Takes a field away.
    pub fn remove(&mut self, name: &str) -> Field {
        let value = self.get(name);
        self.0.shift_remove(name);
        value
    }

    /// Takes over all fields of another object.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many items a field has, if it is a list.
    #[must_use]
    pub fn count_items(&self, name: &str) -> usize {
        let items = self.0.get(name).map(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()));
        items.and_then(Result::ok).map_or(0, |items| items.len())
    }

    /// The object as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_as_they_were_sent() {
        let text =
            r#"{"b":1e400,"a":-0.0,"n":12345678901234567890123,"l":[1, 2],"s":"\u00e9","z":null}"#;
        let mut fields: Fields = serde_json::from_str(text).unwrap();
        assert_eq!(fields.to_json(), text);
        assert_eq!(fields.get("s"), Field::Text("é".into()));
        assert_eq!((fields.get("z"), fields.get("x")), (Field::Null, Field::Absent));
        assert_eq!((fields.count_items("l"), fields.count_items("b")), (2, 0));
        fields.set("a", &"x");
        fields.copy_if_absent("s", "t");
        assert_eq!(fields.remove("b"), Field::Other);
        assert_eq!(
            fields.to_json(),
            r#"{"a":"x","n":12345678901234567890123,"l":[1, 2],"s":"\u00e9","z":null,"t":"\u00e9"}"#
        );
    }
}
