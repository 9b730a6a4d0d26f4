//! Rules for stored documents: required fields, default values, and the JSON that clients get.
//!
//! Fields that the service sets itself are never taken from clients; see
//! [`documents`](super::documents).

use super::{ResourceError, invalid_field};
use crate::model::{
    ValidationError,
    document::{Document, DocumentKind},
    fields::{FieldValue, Fields},
    id::{self, AgentId},
    text, timestamp,
};

/// Validates the text of a field.
type Check = fn(&str) -> Result<(), ValidationError>;

/// Returns the required fields, each with its check.
fn required(kind: DocumentKind) -> &'static [(&'static str, Check)] {
    fn name(field: &str, text: &str) -> Result<(), ValidationError> {
        text::validate_name(field, text).map(drop)
    }
    match kind {
        DocumentKind::Agent => &[("agent_name", |text| name("agent_name", text))],
        DocumentKind::Call => &[("agent_id", check_agent_id), ("to_number", check_number)],
        DocumentKind::KnowledgeBase => &[
            ("knowledge_base_name", |text| name("knowledge_base_name", text)),
            ("name", |text| name("name", text)),
        ],
        DocumentKind::Campaign => {
            &[("name", |text| name("name", text)), ("agent_id", check_agent_id)]
        }
    }
}

/// Returns the fields that only the service sets.
fn service_fields(kind: DocumentKind) -> &'static [&'static str] {
    match kind {
        DocumentKind::Call => &["call_status", "ended_at"],
        DocumentKind::KnowledgeBase => &["sources_count"],
        DocumentKind::Agent | DocumentKind::Campaign => &[],
    }
}

/// Validates a new document and adds its default values.
///
/// # Errors
/// [`ResourceError::Invalid`] for a missing or invalid field.
pub(super) fn complete_document(kind: DocumentKind, body: Fields) -> Result<Fields, ResourceError> {
    let mut body = validate_change(kind, body)?;
    let mut default = |field: &str, value: &str| {
        if !body.contains(field) {
            body.set(field, &value);
        }
    };
    match kind {
        DocumentKind::Agent => default("status", "active"),
        DocumentKind::Call => {
            default("direction", "outbound");
            default("call_status", "registered");
        }
        DocumentKind::KnowledgeBase => count_sources(kind, &mut body),
        DocumentKind::Campaign => default("status", "draft"),
    }
    for (field, _) in required(kind) {
        if !body.contains(field) {
            return Err(ResourceError::invalid(field, format!("{field} is required")));
        }
    }
    Ok(body)
}

/// Validates a change and removes the fields that only the service sets.
///
/// # Errors
/// [`ResourceError::Invalid`] for an invalid field.
pub(super) fn validate_change(
    kind: DocumentKind,
    mut change: Fields,
) -> Result<Fields, ResourceError> {
    for field in service_fields(kind).iter().chain(&[kind.id_field(), "created_at", "updated_at"]) {
        change.remove(field);
    }
    for (field, check) in required(kind) {
        match change.get(field) {
            FieldValue::Absent => {}
            FieldValue::Text(text) => check(&text).map_err(invalid_field(field))?,
            FieldValue::Null | FieldValue::Other => {
                return Err(ResourceError::invalid(field, format!("{field} must be a string")));
            }
        }
    }
    if kind == DocumentKind::KnowledgeBase {
        // The API accepts both field names and returns both.
        change.copy_if_absent("knowledge_base_name", "name");
        change.copy_if_absent("name", "knowledge_base_name");
    }
    Ok(change)
}

/// Counts the texts and URLs of a knowledge base.
pub(super) fn count_sources(kind: DocumentKind, body: &mut Fields) {
    if kind == DocumentKind::KnowledgeBase {
        let lists = ["knowledge_base_texts", "knowledge_base_urls"];
        let count: usize = lists.iter().map(|field| body.count_items(field)).sum();
        body.set("sources_count", &count);
    }
}

/// Returns a document as the JSON object that clients get: its id, the stored fields, and its
/// times.
///
/// The JSON is concatenated as text. This is safe because the stored body contains none of the
/// service's own fields, and it avoids parsing the body again.
#[must_use]
pub fn render(kind: DocumentKind, document: &Document) -> String {
    let stored = document.body.trim();
    let stored = stored.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let stored = stored.unwrap_or_default().trim();
    let comma = if stored.is_empty() { "" } else { "," };
    format!(
        r#"{{"{}":"{}"{comma}{stored},"created_at":"{}","updated_at":"{}"}}"#,
        kind.id_field(),
        id::format(kind.prefix(), document.id),
        timestamp::format(document.created_at),
        timestamp::format(document.updated_at),
    )
}

fn check_agent_id(text: &str) -> Result<(), ValidationError> {
    text.parse::<AgentId>().map(drop).map_err(|_| no_such_agent())
}

/// Checks a phone number in E.164 format: a plus and 7 to 15 digits that do not start with zero.
fn check_number(text: &str) -> Result<(), ValidationError> {
    let digits = text.strip_prefix('+').unwrap_or_default();
    let fits = (7..=15).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0');
    fits.then_some(()).ok_or_else(|| {
        ValidationError::new("to_number must be in E.164 format, such as +14155550100")
    })
}

pub(super) fn no_such_agent() -> ValidationError {
    ValidationError::new("agent_id must be the id of an agent of this workspace")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use time::macros::datetime;

    use super::*;

    fn rendered(kind: DocumentKind, body: &str) -> Value {
        let at = datetime!(2026-01-31 12:00 UTC);
        let id = uuid::Uuid::nil();
        let body = body.to_owned();
        let document = Document { id, agent_id: None, body, created_at: at, updated_at: at };
        serde_json::from_str(&render(kind, &document)).unwrap()
    }

    proptest! {
        #[test]
        fn rendered_document_contains_stored_and_service_fields(
            fields in prop::collection::btree_map("[a-c{}\\\"]{1,4}", "[{}\\[\\],\\\\\"]{0,6}", 0..4),
        ) {
            let stored = serde_json::to_string(&fields).unwrap();
            let mut rendered_json = rendered(DocumentKind::Agent, &stored);
            let rendered_json = rendered_json.as_object_mut().unwrap();
            for field in ["agent_id", "created_at", "updated_at"] {
                prop_assert!(rendered_json.shift_remove(field).is_some());
            }
            prop_assert_eq!(&json!(rendered_json), &json!(fields));
        }
    }

    #[test]
    fn nested_objects_keep_their_braces() {
        let rendered_json = rendered(DocumentKind::Agent, r#"{"a":{"b":{}}}"#);
        assert_eq!(rendered_json["a"], json!({ "b": {} }));
    }
}
