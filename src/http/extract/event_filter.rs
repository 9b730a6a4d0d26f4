use uuid::Uuid;

use super::Query;
use crate::{
    http::ApiError,
    model::{
        audit::{Action, EventFilter},
        id::{self, ApiKeyId, ClientId, Id, UserId},
    },
};

/// The query parameters that filter audit events.
pub const EVENT_FILTERS: [&str; 11] = [
    "pages",
    "changes",
    "key_id",
    "actor_id",
    "action",
    "method",
    "status",
    "ip",
    "since",
    "until",
    "request_id",
];

impl Query {
    /// Reads the filter of audit events from the parameters in [`EVENT_FILTERS`].
    ///
    /// # Errors
    /// [`ApiError::invalid`] if a parameter is invalid or repeated.
    pub fn event_filter(&self) -> Result<EventFilter, ApiError> {
        let status = self.parse_as::<u16>("status", "an HTTP status")?;
        if status.is_some_and(|status| !(100..=599).contains(&status)) {
            return Err(ApiError::invalid("status", "status must be an HTTP status"));
        }
        Ok(EventFilter {
            excludes_browser_requests: !self.parse_as("pages", "true or false")?.unwrap_or(true),
            excludes_requests: self.parse_as("changes", "true or false")?.unwrap_or(false),
            key_id: self.parse_as("key_id", "the id of a key")?,
            actor_id: self.text("actor_id")?.map(actor_id).transpose()?,
            action: self.text("action")?.map(action).transpose()?,
            method: self.text("method")?.map(method).transpose()?,
            status,
            ip: self.parse_as("ip", "an IP address")?,
            since: self.timestamp("since")?,
            until: self.timestamp("until")?,
            request_id: self.parse_as("request_id", "the id of a request")?,
        })
    }
}

fn actor_id(text: &str) -> Result<Uuid, ApiError> {
    [ApiKeyId::PREFIX, UserId::PREFIX, ClientId::PREFIX]
        .into_iter()
        .find_map(|prefix| id::parse(prefix, text).ok())
        .ok_or_else(|| {
            ApiError::invalid("actor_id", "actor_id must be the id of a key, user or client")
        })
}

fn action(text: &str) -> Result<String, ApiError> {
    Action::from_name(text).map(|action| action.as_str().to_owned()).ok_or_else(|| {
        ApiError::invalid("action", "action must be the name of an action, such as request")
    })
}

fn method(text: &str) -> Result<String, ApiError> {
    axum::http::Method::from_bytes(text.to_ascii_uppercase().as_bytes())
        .map(|method| method.to_string())
        .map_err(|_| ApiError::invalid("method", "method must be an HTTP method, such as GET"))
}
