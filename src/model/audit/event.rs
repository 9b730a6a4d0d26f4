//! Events as clients read them, and their canonical form.

use std::{borrow::Cow, fmt};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Action, ActorType, EventDigest, Metadata, NewEvent, Target};
use crate::model::{
    id::{self, EventId, Id, RequestId},
    timestamp,
};

/// An audit event, as lists, exports and streams contain it.
///
/// The fields are sorted by name at every level, so that the JSON is the canonical form (RFC 8785;
/// all numbers are integers). The hash chain covers the SHA-256 of exactly these bytes.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = EventBody)]
pub struct Event<'a> {
    /// The action: `request` for an API request, otherwise the name of the change.
    #[schema(example = "request")]
    pub action: Cow<'a, str>,
    /// The principal that acted.
    pub actor: EventActor<'a>,
    /// The time of the event.
    #[serde(serialize_with = "timestamp::serialize")]
    pub at: OffsetDateTime,
    /// The event's id.
    pub id: EventId,
    /// Additional data, depending on the action.
    #[schema(value_type = Object)]
    pub metadata: Cow<'a, Metadata>,
    /// The HTTP request; all fields are null for actions of the operator on the command line.
    pub request: EventRequest<'a>,
    /// The object that the action changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<EventTarget<'a>>,
}

impl Event<'_> {
    /// Returns true if the event is a browser's request for a page, or with a form.
    #[must_use]
    pub fn is_browser_request(&self) -> bool {
        self.action == Action::Request.as_str()
            && self.actor.kind == ActorType::User.as_str()
            && self.request.path.as_deref().is_some_and(|path| !path.starts_with("/v1/"))
    }
}

/// The actor of an event, with its name at that time.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ActorBody)]
pub struct EventActor<'a> {
    /// The actor's id; null for the types `anonymous` and `system`.
    #[schema(required = true, value_type = Option<String>, example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    pub id: Option<PublicId<'a>>,
    /// The actor's name at that time.
    #[schema(required = true, example = "prod-2026-q2")]
    pub name: Option<Cow<'a, str>>,
    /// The actor's type: `api_key`, `user`, `oauth_client`, `anonymous` or `system`.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    pub kind: Cow<'a, str>,
}

/// The HTTP request of an event.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
#[schema(as = RequestBody)]
pub struct EventRequest<'a> {
    /// The request's id.
    #[schema(required = true)]
    pub id: Option<RequestId>,
    /// The client's address, as trusted proxies forward it.
    #[serde(serialize_with = "serialize_address")]
    #[schema(required = true, value_type = Option<String>, example = "203.0.113.9")]
    pub ip: Option<IpNet>,
    /// Time from the request's head to the response, in microseconds.
    #[schema(required = true, example = 412)]
    pub latency_us: Option<i64>,
    /// The method.
    #[schema(required = true, example = "GET")]
    pub method: Option<Cow<'a, str>>,
    /// The path, without the query string.
    #[schema(required = true, example = "/v1/agents")]
    pub path: Option<Cow<'a, str>>,
    /// The status of the response.
    #[schema(required = true, example = 200)]
    pub status: Option<i16>,
    /// The `User-Agent` header.
    #[schema(required = true, example = "curl/8.5.0")]
    pub user_agent: Option<Cow<'a, str>>,
}

/// The target of an event: the object that the action changed.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = TargetBody)]
pub struct EventTarget<'a> {
    /// The target's id.
    #[schema(value_type = String, example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    pub id: PublicId<'a>,
    /// The target's name at that time.
    #[schema(required = true, example = "prod-2026-q2")]
    pub name: Option<Cow<'a, str>>,
    /// The target's type.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    pub kind: Cow<'a, str>,
}

/// A public id with any prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicId<'a> {
    /// The text before the underscore.
    pub prefix: Cow<'a, str>,
    /// The UUID after the underscore.
    pub id: Uuid,
}

impl fmt::Display for PublicId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&id::format(&self.prefix, self.id))
    }
}

impl Serialize for PublicId<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        id::serialize(&self.prefix, self.id, serializer)
    }
}

/// Serializes an address. A stored network is always a single address; if the row was manipulated,
/// the network itself is serialized, so that the digest changes.
#[expect(clippy::ref_option, reason = "serde calls it with this signature")]
fn serialize_address<S: Serializer>(ip: &Option<IpNet>, serializer: S) -> Result<S::Ok, S::Error> {
    match ip {
        Some(net) if net.prefix_len() == net.max_prefix_len() => {
            serializer.collect_str(&net.addr())
        }
        Some(net) => serializer.collect_str(net),
        None => serializer.serialize_none(),
    }
}

impl Event<'_> {
    /// Returns the canonical form, whose digest the hash chain covers.
    ///
    /// # Errors
    /// None in practice: an event contains only texts and numbers.
    pub fn canonical_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        // Most events fit in this capacity.
        let mut bytes = Vec::with_capacity(640);
        serde_json::to_writer(&mut bytes, self)?;
        Ok(bytes)
    }

    /// Returns the SHA-256 of the canonical form.
    #[must_use]
    pub fn digest(&self) -> EventDigest {
        EventDigest::of(&self.canonical_bytes().unwrap_or_default())
    }
}

impl NewEvent {
    /// Returns the event as clients will read it.
    #[must_use]
    pub fn to_event(&self) -> Event<'_> {
        let Self { id, action, actor, target, request, metadata, .. } = self;
        let request = request.as_ref().map(|(request, outcome)| EventRequest {
            id: Some(request.id),
            ip: Some(request.ip.into()),
            latency_us: Some(outcome.latency_us),
            method: Some((&*request.method).into()),
            path: Some(request.path.as_str().into()),
            status: outcome.status.try_into().ok(),
            user_agent: request.user_agent.as_deref().map(Cow::from),
        });
        Event {
            action: action.as_str().into(),
            actor: EventActor {
                id: actor.kind.id_prefix().zip(actor.id).map(public_id),
                name: actor.name.as_deref().map(Cow::from),
                kind: actor.kind.as_str().into(),
            },
            at: id::creation_time(id.uuid()),
            id: *id,
            metadata: Cow::Borrowed(metadata),
            request: request.unwrap_or_default(),
            target: target.as_ref().map(|target| EventTarget {
                id: public_id((target.kind, target.id)),
                name: target.name.as_deref().map(Cow::from),
                kind: Target::type_name(target.kind).into(),
            }),
        }
    }
}

fn public_id((prefix, id): (&'static str, Uuid)) -> PublicId<'static> {
    PublicId { prefix: prefix.into(), id }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use serde_json::{Value, json};

    use super::*;
    use crate::model::audit::{Action, Actor, RequestInfo};

    fn sorted(value: &Value) -> Value {
        let mut sorted = value.clone();
        sorted.sort_all_objects();
        sorted
    }

    #[test]
    fn serialized_event_is_canonical() {
        let request = RequestInfo {
            id: Uuid::from_u128(7).into(),
            method: "POST".into(),
            path: "/v1/\u{1}\"é\u{7f}\n".into(),
            ip: "203.0.113.9".parse().unwrap(),
            user_agent: Some("curl/8".into()),
            started_at: Duration::ZERO,
        };
        let id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
        let actor = Actor::api_key(Uuid::from_u128(3).into(), &"prod".into());
        let event = NewEvent::new(id.into(), Uuid::nil().into(), Action::ApiKeyCreated, actor)
            .with_request(&Arc::new(request), 201, Duration::from_micros(412))
            .with_target(crate::model::id::ApiKeyId::from(Uuid::from_u128(4)), "new".to_owned())
            .with_metadata(json!({ "z": { "b": 1, "a": [{ "d": 2, "c": 3 }] }, "a": "x" }));
        let bytes = event.to_event().canonical_bytes().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text, serde_json::to_string(&sorted(&value)).unwrap());
        assert_eq!(
            text,
            concat!(
                r#"{"action":"api_key.created","#,
                r#""actor":{"id":"key_00000000000000000000000003","name":"prod","type":"api_key"},"#,
                r#""at":"2024-06-10T02:35:18.400000Z","id":"event_01j0000000e008000000000001","#,
                r#""metadata":{"a":"x","z":{"a":[{"c":3,"d":2}],"b":1}},"#,
                r#""request":{"id":"req_00000000000000000000000007","ip":"203.0.113.9","#,
                r#""latency_us":412,"method":"POST","path":"/v1/\u0001\"é"#,
                "\u{7f}",
                r#"\n","status":201,"user_agent":"curl/8"},"#,
                r#""target":{"id":"key_00000000000000000000000004","name":"new","type":"api_key"}}"#,
            )
        );
    }
}
