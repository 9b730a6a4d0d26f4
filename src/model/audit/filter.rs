use std::net::IpAddr;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::model::id::{ApiKeyId, RequestId};

/// Which events are wanted; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
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
