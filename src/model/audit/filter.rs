use std::net::IpAddr;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Action, ActorType, Event};
use crate::model::id::{ApiKeyId, Id, RequestId};

/// Which events are wanted; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// What somebody did, and no mere calls of the API.
    pub changes: bool,
    /// Without what people merely looked at or sent in a browser: pages, not the API.
    pub without_pages: bool,
    /// By this key.
    pub key_id: Option<ApiKeyId>,
    /// By this actor, of any kind.
    pub actor_id: Option<Uuid>,
    /// Of this action.
    pub action: Option<String>,
    /// Of requests with this method.
    pub method: Option<String>,
    /// Of requests answered with this status.
    pub status: Option<u16>,
    /// Of requests from this address.
    pub ip: Option<IpAddr>,
    /// From then on.
    pub since: Option<OffsetDateTime>,
    /// Before then.
    pub until: Option<OffsetDateTime>,
    /// Of this request.
    pub request_id: Option<RequestId>,
}

impl EventFilter {
    /// Whether an event is wanted: as PostgreSQL decides in `store::audit::list`.
    #[must_use]
    pub fn passes(&self, event: &Event<'_>) -> bool {
        let actor = event.actor.id.as_ref().map(|id| id.id);
        let is_key = event.actor.kind == ActorType::ApiKey.as_str();
        let request = &event.request;
        (!self.changes || event.action != Action::Request.as_str())
            && !(self.without_pages && event.is_page())
            && self.key_id.is_none_or(|key| is_key && actor == Some(key.uuid()))
            && self.actor_id.is_none_or(|id| actor == Some(id))
            && self.action.as_deref().is_none_or(|action| event.action == action)
            && self.method.as_deref().is_none_or(|method| request.method.as_deref() == Some(method))
            && self.status.is_none_or(|status| request.status.map(i32::from) == Some(status.into()))
            && self.ip.is_none_or(|ip| request.ip.is_some_and(|net| net.addr() == ip))
            && self.since.is_none_or(|since| event.at >= floor(since))
            && self.until.is_none_or(|until| event.at < floor(until))
            && self.request_id.is_none_or(|id| request.id == Some(id))
    }
}

/// To the millisecond, as ids have it.
fn floor(moment: OffsetDateTime) -> OffsetDateTime {
    let nanos = i64::from(moment.nanosecond() % 1_000_000);
    moment - time::Duration::nanoseconds(nanos)
}
