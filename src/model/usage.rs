//! What API keys are used for, added up.

use std::{collections::HashMap, net::IpAddr};

use serde::Serialize;
use uuid::Uuid;

use super::{
    audit::{Action, ActorType, NewEvent, RequestInfo},
    id::{Id, WorkspaceId, moment},
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
struct Kind<'a> {
    key_id: Uuid,
    #[serde(skip)]
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
#[derive(Debug, Serialize)]
struct Use<'a> {
    #[serde(flatten)]
    kind: Kind<'a>,
    #[serde(serialize_with = "bare")]
    workspace_id: WorkspaceId,
    /// Of the last of them.
    method: &'a str,
    path: &'a str,
    /// The first and the last event.
    first: Uuid,
    last: Uuid,
    requests: u64,
}

fn bare<S: serde::Serializer>(id: &WorkspaceId, serializer: S) -> Result<S::Ok, S::Error> {
    id.uuid().serialize(serializer)
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
                        workspace_id: event.workspace_id,
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
            same.requests += 1;
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
