//! What API keys are used for, added up.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    audit::{Action, ActorType, NewEvent, RequestInfo},
    id::{ApiKeyId, Id, moment},
    scope::Scope,
};

/// What a request asked for, by its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteUse {
    /// The first word of the path behind the version, such as `agents`.
    pub group: &'static str,
    /// What the route asks of its caller.
    pub scope: Scope,
}

/// What makes uses alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind<'a> {
    key_id: Uuid,
    minute: i64,
    route_group: &'static str,
    scope: Scope,
    /// The first digit of the answer's status.
    status_class: u16,
    ip: IpAddr,
    user_agent: &'a str,
}

/// Uses of one key in one minute, by one program from one address, on routes of one group and scope,
/// answered in one way.
#[derive(Debug)]
struct Use<'a> {
    kind: Kind<'a>,
    /// Of the last of them.
    method: &'a str,
    path: &'a str,
    /// The first and the last event.
    first: Uuid,
    last: Uuid,
    requests: u64,
}

impl Serialize for Use<'_> {
    /// The names are those that `count_uses` reads. By hand: flattening goes by way of a map.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { kind, method, path, first, last, requests } = self;
        let Kind { key_id, minute: _, route_group, scope, status_class, ip, user_agent } = kind;
        let mut row = serializer.serialize_struct("Use", 11)?;
        row.serialize_field("key_id", key_id)?;
        row.serialize_field("route_group", route_group)?;
        row.serialize_field("scope", scope)?;
        row.serialize_field("status_class", status_class)?;
        row.serialize_field("ip", ip)?;
        row.serialize_field("user_agent", user_agent)?;
        row.serialize_field("method", method)?;
        row.serialize_field("path", path)?;
        row.serialize_field("first", first)?;
        row.serialize_field("last", last)?;
        row.serialize_field("requests", requests)?;
        row.end()
    }
}

/// What keys did in a batch of events: of each kind of use, how often.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Uses<'a>(Vec<Use<'a>>);

impl<'a> Uses<'a> {
    /// Of these events; those that are no requests of a key do not count.
    #[must_use]
    pub fn of(events: impl Iterator<Item = &'a NewEvent>) -> Self {
        let mut uses: Vec<Use<'a>> = Vec::new();
        let mut known: HashMap<Kind<'a>, usize> = HashMap::new();
        let mut last = 0;
        for event in events {
            let Some((kind, request)) = kind(event) else { continue };
            // Requests of one kind mostly come in a row.
            if uses.get(last).is_none_or(|previous| previous.kind != kind) {
                last = *known.entry(kind).or_insert_with(|| {
                    uses.push(Use {
                        kind,
                        method: &request.method,
                        path: &request.path,
                        first: event.id.uuid(),
                        last: event.id.uuid(),
                        requests: 0,
                    });
                    uses.len() - 1
                });
            }
            let Some(same) = uses.get_mut(last) else { continue };
            same.requests += u64::from(!event.is_use_alone);
            same.first = same.first.min(event.id.uuid());
            if event.id.uuid() > same.last {
                same.last = event.id.uuid();
                (same.method, same.path) = (&request.method, &request.path);
            }
        }
        Self(uses)
    }

    /// As the ledger has them.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The kind of use that an event tells of, if any.
fn kind(event: &NewEvent) -> Option<(Kind<'_>, &RequestInfo)> {
    let (true, Action::Request) = (event.actor.kind == ActorType::ApiKey, event.action) else {
        return None;
    };
    let (key_id, route) = (event.actor.id?, event.route?);
    let (request, outcome) = event.request.as_ref()?;
    let kind = Kind {
        key_id,
        minute: moment(event.id.uuid()).unix_timestamp().div_euclid(60),
        route_group: route.group,
        scope: route.scope,
        status_class: outcome.status / 100,
        ip: request.ip,
        user_agent: request.user_agent.as_deref().unwrap_or_default(),
    };
    Some((kind, request))
}

/// A key that has not been used for so long is told of.
pub const UNUSED_AFTER: Duration = Duration::days(90);

/// How often a key was used in an hour, a day, or in all.
#[derive(Debug, Clone)]
pub struct Spell {
    /// When it begins.
    pub start: OffsetDateTime,
    /// Requests.
    pub requests: i64,
    /// By the first digit of the answer's status.
    pub by_status: BTreeMap<i16, i64>,
    /// By the first word of the path.
    pub by_route: BTreeMap<String, i64>,
}

impl Spell {
    /// One in which nothing happened.
    #[must_use]
    pub fn empty(start: OffsetDateTime) -> Self {
        let by_status = (2..=5).map(|class| (class, 0)).collect();
        Self { start, requests: 0, by_status, by_route: BTreeMap::new() }
    }

    /// Adds requests.
    pub fn add(&mut self, route: String, status_class: i16, requests: i64) {
        self.requests += requests;
        *self.by_status.entry(status_class).or_default() += requests;
        *self.by_route.entry(route).or_default() += requests;
    }
}

/// An address that used a key.
#[derive(Debug, Clone)]
pub struct KeyAddress {
    /// The address.
    pub ip: IpAddr,
    /// How often.
    pub requests: i64,
    /// When first.
    pub first_used_at: OffsetDateTime,
    /// When last.
    pub last_used_at: OffsetDateTime,
}

/// What a key is used for.
#[derive(Debug)]
pub struct KeyUsage {
    /// Requests, since it was minted.
    pub total_requests: i64,
    /// The first of them.
    pub first_used_at: Option<OffsetDateTime>,
    /// The last of them.
    pub last_used_at: Option<OffsetDateTime>,
    /// All that is kept, in one.
    pub all: Spell,
    /// Hours, the oldest first; those without a use are left out.
    pub by_hour: Vec<Spell>,
    /// Days, likewise.
    pub by_day: Vec<Spell>,
    /// The hundred addresses that used it last.
    pub addresses: Vec<KeyAddress>,
}

/// An active key that has long not been used.
#[derive(Debug)]
pub struct UnusedKey {
    /// The key.
    pub id: ApiKeyId,
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it was minted.
    pub created_at: OffsetDateTime,
    /// When it was last used, if ever.
    pub last_used_at: Option<OffsetDateTime>,
}

/// An active key that may do more than it does.
#[derive(Debug)]
pub struct OverScopedKey {
    /// The key.
    pub id: ApiKeyId,
    /// What it is called.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The most that it was used for.
    pub used_scope: Scope,
    /// Since when that was looked at.
    pub used_since: OffsetDateTime,
    /// When it was last used.
    pub last_used_at: OffsetDateTime,
}

/// Keys that somebody should look at.
#[derive(Debug)]
pub struct Hygiene {
    /// The longest unused first.
    pub unused: Vec<UnusedKey>,
    /// The newest first.
    pub over_scoped: Vec<OverScopedKey>,
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::model::audit::Actor;

    fn request(ip: u8, path: u8, agent: Option<u8>) -> Arc<RequestInfo> {
        Arc::new(RequestInfo {
            id: Uuid::nil().into(),
            method: "GET".into(),
            path: format!("/v1/{path}"),
            ip: [127, 0, 0, ip].into(),
            user_agent: agent.map(|agent| agent.to_string()),
            began: Duration::ZERO,
        })
    }

    fn event(
        key: u8,
        millis: u64,
        ip: u8,
        agent: Option<u8>,
        status: u16,
        group: bool,
    ) -> NewEvent {
        let id = Uuid::from_u64_pair((millis << 16) | 0x7000, 1 << 63);
        let actor = Actor::api_key(Uuid::from_u128(key.into()).into(), &"k".into());
        let mut event = NewEvent::new(id.into(), Uuid::nil().into(), Action::Request, actor)
            .in_request(&request(ip, key, agent), status, Duration::ZERO);
        let group = if group { "agents" } else { "calls" };
        event.route = Some(RouteUse { group, scope: Scope::ReadOnly });
        event
    }

    proptest! {
        #[test]
        fn every_use_is_counted_once_and_told_apart(
            seeds in prop::collection::vec(
                (0_u8..3, 0_u64..180_000, 0_u8..2, prop::option::of(0_u8..2), 200_u16..600, any::<bool>()),
                0..200,
            ),
        ) {
            let events: Vec<_> = seeds
                .iter()
                .map(|(key, millis, ip, agent, status, group)| {
                    event(*key, *millis, *ip, *agent, *status, *group)
                })
                .collect();
            let told = serde_json::to_value(Uses::of(events.iter())).unwrap();
            let told = told.as_array().unwrap();
            let count = |used: &Value| used["requests"].as_u64().unwrap();
            prop_assert_eq!(told.iter().map(count).sum::<u64>(), events.len() as u64);
            for used in told {
                let same = events.iter().filter(|event| {
                    let (kind, _) = kind(event).unwrap();
                    used["key_id"] == kind.key_id.to_string()
                        && used["ip"] == kind.ip.to_string()
                        && used["user_agent"] == kind.user_agent
                        && used["route_group"] == kind.route_group
                        && used["status_class"] == kind.status_class
                        && moment(used["first"].as_str().unwrap().parse().unwrap())
                            .unix_timestamp() / 60 == kind.minute
                });
                let ids: Vec<_> = same.map(|event| event.id.uuid()).collect();
                prop_assert_eq!(ids.len() as u64, count(used));
                prop_assert_eq!(ids.iter().min().unwrap().to_string(), used["first"].as_str().unwrap());
                prop_assert_eq!(ids.iter().max().unwrap().to_string(), used["last"].as_str().unwrap());
            }
        }
    }
}
