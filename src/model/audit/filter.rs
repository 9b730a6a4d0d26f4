//! Filters for lists, exports and streams of audit events.

use std::net::IpAddr;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Action, ActorType, Event};
use crate::model::id::{ApiKeyId, Id, RequestId};

/// A filter for events. An event must match all conditions; `None` matches every event.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Excludes requests: only changes match.
    pub excludes_requests: bool,
    /// Excludes requests of browsers for pages and with forms. Requests to the API match.
    pub excludes_browser_requests: bool,
    /// The API key that acted.
    pub key_id: Option<ApiKeyId>,
    /// The actor, of any type.
    pub actor_id: Option<Uuid>,
    /// The action.
    pub action: Option<String>,
    /// The method of the request.
    pub method: Option<String>,
    /// The status of the response.
    pub status: Option<u16>,
    /// The client's address.
    pub ip: Option<IpAddr>,
    /// Start of the period, inclusive.
    pub since: Option<OffsetDateTime>,
    /// End of the period, exclusive.
    pub until: Option<OffsetDateTime>,
    /// The id of the request.
    pub request_id: Option<RequestId>,
}

impl EventFilter {
    /// Returns true unless an index has just the events that match: then a query may have to search
    /// many events for few matches.
    #[must_use]
    pub fn may_search(&self) -> bool {
        let indexed = [
            self.key_id.is_some() || self.actor_id.is_some(),
            self.excludes_requests,
            self.action.as_deref().is_some_and(|action| action != Action::Request.as_str()),
        ];
        indexed.into_iter().filter(|is_used| *is_used).count() > 1
            || (self.action.is_some() && !indexed[2])
            || self.excludes_browser_requests
            || self.method.is_some()
            || self.status.is_some()
            || self.ip.is_some()
            || self.request_id.is_some()
    }

    /// Returns true if an event matches. The query of `store::audit::list` implements the same
    /// conditions in SQL; keep both equal.
    #[must_use]
    pub fn matches(&self, event: &Event<'_>) -> bool {
        let actor = event.actor.id.as_ref().map(|id| id.id);
        let is_key = event.actor.kind == ActorType::ApiKey.as_str();
        let request = &event.request;
        (!self.excludes_requests || event.action != Action::Request.as_str())
            && !(self.excludes_browser_requests && event.is_browser_request())
            && self.key_id.is_none_or(|key| is_key && actor == Some(key.uuid()))
            && self.actor_id.is_none_or(|id| actor == Some(id))
            && self.action.as_deref().is_none_or(|action| event.action == action)
            && self.method.as_deref().is_none_or(|method| request.method.as_deref() == Some(method))
            && self.status.is_none_or(|status| request.status.map(i32::from) == Some(status.into()))
            && self.ip.is_none_or(|ip| request.ip.is_some_and(|net| net.addr() == ip))
            && self.since.is_none_or(|since| event.at >= truncate_to_millis(since))
            && self.until.is_none_or(|until| event.at < truncate_to_millis(until))
            && self.request_id.is_none_or(|id| request.id == Some(id))
    }
}

/// Truncates a time to milliseconds, the precision of event ids.
fn truncate_to_millis(moment: OffsetDateTime) -> OffsetDateTime {
    let nanos = i64::from(moment.nanosecond() % 1_000_000);
    moment - time::Duration::nanoseconds(nanos)
}
