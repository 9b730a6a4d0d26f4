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

/// An event as everybody sees it: in lists, exports and streams.
///
/// Its fields stand in the order of their names, at every depth, so that what is written of it is its
/// canonical form (RFC 8785; numbers are integers): these very bytes are what the chain's digests are of.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = EventBody)]
pub struct Event<'a> {
    /// `request` for a call of the API, else what happened.
    #[schema(example = "request")]
    pub action: Cow<'a, str>,
    /// Who did it.
    pub actor: EventActor<'a>,
    /// When.
    #[serde(serialize_with = "timestamp::serialize")]
    pub at: OffsetDateTime,
    /// Its id.
    pub id: EventId,
    /// More about it.
    #[schema(value_type = Object)]
    pub metadata: Cow<'a, Metadata>,
    /// All null for what the operator does on the command line.
    pub request: EventRequest<'a>,
    /// What it was done to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<EventTarget<'a>>,
}

impl Event<'_> {
    /// Whether a person asked for a page, or sent a form, in a browser.
    #[must_use]
    pub fn is_page(&self) -> bool {
        self.action == Action::Request.as_str()
            && self.actor.kind == ActorType::User.as_str()
            && self.request.path.as_deref().is_some_and(|path| !path.starts_with("/v1/"))
    }
}

/// Who did it, under the name of that time.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ActorBody)]
pub struct EventActor<'a> {
    /// None where nobody is known, and of the operator.
    #[schema(required = true, value_type = Option<String>, example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    pub id: Option<PublicId<'a>>,
    /// What it was called.
    #[schema(required = true, example = "prod-2026-q2")]
    pub name: Option<Cow<'a, str>>,
    /// `api_key`, `user`, `oauth_client`, `anonymous` or `system`.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    pub kind: Cow<'a, str>,
}

/// The request that it happened in.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
#[schema(as = RequestBody)]
pub struct EventRequest<'a> {
    /// Its id.
    #[schema(required = true)]
    pub id: Option<RequestId>,
    /// Where it came from, seen through trusted proxies.
    #[serde(serialize_with = "address")]
    #[schema(required = true, value_type = Option<String>, example = "203.0.113.9")]
    pub ip: Option<IpNet>,
    /// Microseconds from the request's head to its answer.
    #[schema(required = true, example = 412)]
    pub latency_us: Option<i64>,
    /// Its method.
    #[schema(required = true, example = "GET")]
    pub method: Option<Cow<'a, str>>,
    /// Without the query string.
    #[schema(required = true, example = "/v1/agents")]
    pub path: Option<Cow<'a, str>>,
    /// The status of its answer.
    #[schema(required = true, example = 200)]
    pub status: Option<i16>,
    /// What the client calls itself.
    #[schema(required = true, example = "curl/8.5.0")]
    pub user_agent: Option<Cow<'a, str>>,
}

/// What it was done to.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = TargetBody)]
pub struct EventTarget<'a> {
    /// Its id.
    #[schema(value_type = String, example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    pub id: PublicId<'a>,
    /// What it was called.
    #[schema(required = true, example = "prod-2026-q2")]
    pub name: Option<Cow<'a, str>>,
    /// What kind of thing.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    pub kind: Cow<'a, str>,
}

/// An id of any prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicId<'a> {
    /// What stands before the underscore.
    pub prefix: Cow<'a, str>,
    /// What stands behind it.
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

/// An address; as the network that it never is but where somebody changed it.
#[expect(clippy::ref_option, reason = "serde hands it over so")]
fn address<S: Serializer>(ip: &Option<IpNet>, serializer: S) -> Result<S::Ok, S::Error> {
    match ip {
        Some(net) if net.prefix_len() == net.max_prefix_len() => {
            serializer.collect_str(&net.addr())
        }
        Some(net) => serializer.collect_str(net),
        None => serializer.serialize_none(),
    }
}

impl Event<'_> {
    /// The bytes that the chain vouches for.
    ///
    /// # Errors
    /// Never: it is made of texts and numbers.
    pub fn canonical(&self) -> Result<Vec<u8>, serde_json::Error> {
        // Most are not longer.
        let mut bytes = Vec::with_capacity(640);
        serde_json::to_writer(&mut bytes, self)?;
        Ok(bytes)
    }

    /// SHA-256 of the canonical form.
    #[must_use]
    pub fn digest(&self) -> EventDigest {
        EventDigest::of(&self.canonical().unwrap_or_default())
    }
}

impl NewEvent {
    /// The event as it will be seen.
    #[must_use]
    pub fn public(&self) -> Event<'_> {
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
            at: id::moment(id.uuid()),
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
    fn what_is_written_is_canonical() {
        let request = RequestInfo {
            id: Uuid::from_u128(7).into(),
            method: "POST".into(),
            path: "/v1/\u{1}\"é\u{7f}\n".into(),
            ip: "203.0.113.9".parse().unwrap(),
            user_agent: Some("curl/8".into()),
            began: Duration::ZERO,
        };
        let id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
        let actor = Actor::api_key(Uuid::from_u128(3).into(), &"prod".into());
        let event = NewEvent::new(id.into(), Uuid::nil().into(), Action::ApiKeyCreated, actor)
            .in_request(&Arc::new(request), 201, Duration::from_micros(412))
            .on(crate::model::id::ApiKeyId::from(Uuid::from_u128(4)), "new".to_owned())
            .with(json!({ "z": { "b": 1, "a": [{ "d": 2, "c": 3 }] }, "a": "x" }));
        let bytes = event.public().canonical().unwrap();
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
