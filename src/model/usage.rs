//! What API keys are used for, added up.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    audit::{Action, ActorType, NewEvent, RequestInfo},
    id::{self, ApiKeyId, Id},
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
pub struct UseKind<'a> {
    /// The key.
    pub key_id: Uuid,
    /// Minutes since 1970.
    pub minute: u64,
    /// What the requests asked for.
    pub route: RouteUse,
    /// The first digit of the answer's status.
    pub status_class: i16,
    /// Where they came from.
    pub ip: IpAddr,
    /// What sent them; empty: it does not say.
    pub user_agent: &'a str,
}

/// Uses of one key in one minute, by one program from one address, on routes of one group and scope,
/// answered in one way.
#[derive(Debug)]
pub struct Use<'a> {
    /// What they have in common.
    pub kind: UseKind<'a>,
    /// Of the last of them.
    pub method: &'a str,
    /// Likewise.
    pub path: &'a str,
    /// The id of the first event.
    pub first: Uuid,
    /// The id of the last event.
    pub last: Uuid,
    /// How many.
    pub requests: i64,
}

impl<'a> Use<'a> {
    /// What keys did in these events: of each kind of use, how often. Events that are no requests of a key do not
    /// count.
    #[must_use]
    pub fn all(events: impl Iterator<Item = &'a NewEvent>) -> Vec<Self> {
        // Growing would take longer than all the rest, where each event is of another kind.
        let (room, _) = events.size_hint();
        let mut uses: Vec<Self> = Vec::with_capacity(room);
        let mut known: HashMap<UseKind<'a>, usize> = HashMap::with_capacity(room);
        let mut last = 0;
        for event in events {
            let Some((kind, request)) = kind(event) else { continue };
            let id = event.id.uuid();
            // Requests of one kind mostly come in a row.
            if uses.get(last).is_none_or(|previous| previous.kind != kind) {
                last = *known.entry(kind).or_insert_with(|| {
                    let (method, path) = (&*request.method, &*request.path);
                    uses.push(Self { kind, method, path, first: id, last: id, requests: 0 });
                    uses.len() - 1
                });
            }
            let Some(same) = uses.get_mut(last) else { continue };
            same.requests += i64::from(!event.is_use_alone);
            same.first = same.first.min(id);
            if id > same.last {
                (same.last, same.method, same.path) = (id, &request.method, &request.path);
            }
        }
        uses
    }
}

/// The kind of use that an event tells of, if any.
fn kind(event: &NewEvent) -> Option<(UseKind<'_>, &RequestInfo)> {
    let (true, Action::Request) = (event.actor.kind == ActorType::ApiKey, event.action) else {
        return None;
    };
    let (key_id, route) = (event.actor.id?, event.route?);
    let (request, outcome) = event.request.as_ref()?;
    let kind = UseKind {
        key_id,
        minute: id::millis(event.id.uuid()) / 60_000,
        route,
        status_class: i16::try_from(outcome.status / 100).unwrap_or_default(),
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
            let told = Use::all(events.iter());
            let sum: i64 = told.iter().map(|told| told.requests).sum();
            prop_assert_eq!(usize::try_from(sum), Ok(events.len()));
            for told in told {
                let same = events.iter().filter(|event| kind(event).unwrap().0 == told.kind);
                let ids: Vec<_> = same.map(|event| event.id.uuid()).collect();
                prop_assert_eq!(usize::try_from(told.requests), Ok(ids.len()));
                prop_assert_eq!(ids.iter().min().unwrap(), &told.first);
                prop_assert_eq!(ids.iter().max().unwrap(), &told.last);
                prop_assert_eq!(id::millis(told.last) / 60_000, told.kind.minute);
            }
        }
    }
}
