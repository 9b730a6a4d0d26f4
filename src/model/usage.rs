//! Usage of API keys: counted requests, and the reports on them.
//!
//! Usage is counted from audit events when they are written, so that the counts and the audit log
//! agree.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    audit::{ActorType, NewEvent, RequestInfo},
    id::{self, ApiKeyId, Id},
    scope::Scope,
};

/// The route of a request, as usage is counted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteUse {
    /// The first path segment after the version, such as `agents`.
    pub group: &'static str,
    /// The scope that the route requires.
    pub scope: Scope,
}

/// The effect of an event on the usage counts of its API key.
#[derive(Debug, Clone, Copy, Default)]
pub enum KeyUse {
    /// No effect.
    #[default]
    None,
    /// A request that used the key.
    Request(RouteUse),
    /// A long-lived request still uses the key. Such an event only updates the time of the last
    /// use, and is not written to the audit log.
    OpenStream(RouteUse),
    /// A request that was rejected before it was a use of the key: from an address that the key
    /// does not allow, or with a disabled key. It only counts as a failure of the key.
    Rejection,
}

impl KeyUse {
    /// True if the event is only counted, and not written to the audit log.
    #[must_use]
    pub const fn is_only_counted(self) -> bool {
        matches!(self, Self::OpenStream(_))
    }
}

/// The outcome of a request, as the verdict of a rotation needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UseOutcome {
    /// The key did its part, also if the request itself was wrong (400, 404, 422 and others).
    Served,
    /// The key was refused (401, 403, 429), or the service failed (5xx).
    Failed,
    /// The client disconnected before the response.
    Unfinished,
    /// The request was rejected before it was a use of the key; see [`KeyUse::Rejection`].
    Rejected,
}

impl UseOutcome {
    /// Returns the outcome of a use with this response status.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            401 | 403 | 429 | 500..=599 => Self::Failed,
            CLIENT_CLOSED_REQUEST => Self::Unfinished,
            _ => Self::Served,
        }
    }

    /// Returns the name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Failed => "failed",
            Self::Unfinished => "unfinished",
            Self::Rejected => "rejected",
        }
    }
}

/// Status in the audit log if the client disconnected before the response (nginx's convention). It
/// is never sent.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The dimensions by which requests are counted. Requests with equal dimensions share a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UsageDimensions<'a> {
    /// The key's id.
    pub key_id: Uuid,
    /// Minutes since 1970.
    pub minute: u64,
    /// The route of the requests.
    pub route: RouteUse,
    /// The first digit of the response status.
    pub status_class: i16,
    /// The outcome.
    pub outcome: UseOutcome,
    /// The client's address.
    pub ip: IpAddr,
    /// The `User-Agent` header; empty if there was none.
    pub user_agent: &'a str,
}

/// The number of requests with equal dimensions.
#[derive(Debug)]
pub struct UsageCount<'a> {
    /// The dimensions of the requests.
    pub dimensions: UsageDimensions<'a>,
    /// The method of the last request.
    pub method: &'a str,
    /// The path of the last request.
    pub path: &'a str,
    /// The id of the first event.
    pub first_event: Uuid,
    /// The id of the last event.
    pub last_event: Uuid,
    /// The number of requests.
    pub requests: i64,
}

impl<'a> UsageCount<'a> {
    /// Counts the requests in these events by their dimensions. Events that are not requests with
    /// an API key are ignored.
    #[must_use]
    pub fn count(events: impl Iterator<Item = &'a NewEvent>) -> Vec<Self> {
        // Reserve for the case that all events differ: growing would take longer than the counting.
        let (capacity, _) = events.size_hint();
        let mut uses: Vec<Self> = Vec::with_capacity(capacity);
        let mut indexes: HashMap<UsageDimensions<'a>, usize> = HashMap::with_capacity(capacity);
        let mut last = 0;
        for event in events {
            let Some((kind, request)) = dimensions_of(event) else { continue };
            let id = event.id.uuid();
            // Consecutive requests are often alike: the previous counter is tried first.
            if uses.get(last).is_none_or(|previous| previous.dimensions != kind) {
                last = *indexes.entry(kind).or_insert_with(|| {
                    let (method, path) = (&*request.method, &*request.path);
                    uses.push(Self {
                        dimensions: kind,
                        method,
                        path,
                        first_event: id,
                        last_event: id,
                        requests: 0,
                    });
                    uses.len() - 1
                });
            }
            let Some(counter) = uses.get_mut(last) else { continue };
            counter.requests += i64::from(!event.key_use.is_only_counted());
            counter.first_event = counter.first_event.min(id);
            if id > counter.last_event {
                (counter.last_event, counter.method, counter.path) =
                    (id, &request.method, &request.path);
            }
        }
        uses
    }
}

/// Returns the dimensions and the request of an event, if it is a request with an API key.
fn dimensions_of(event: &NewEvent) -> Option<(UsageDimensions<'_>, &RequestInfo)> {
    if event.actor.kind != ActorType::ApiKey {
        return None;
    }
    let key_id = event.actor.id?;
    let (request, response) = event.request.as_ref()?;
    let (route, outcome) = match event.key_use {
        KeyUse::None => return None,
        KeyUse::Request(route) | KeyUse::OpenStream(route) => {
            (route, UseOutcome::of_status(response.status))
        }
        // A rejection is counted by no route, so that those of a batch share a counter.
        KeyUse::Rejection => (RouteUse { group: "", scope: Scope::ReadOnly }, UseOutcome::Rejected),
    };
    let kind = UsageDimensions {
        key_id,
        minute: id::creation_millis(event.id.uuid()) / 60_000,
        route,
        status_class: i16::try_from(response.status / 100).unwrap_or_default(),
        outcome,
        ip: request.ip,
        user_agent: request.user_agent.as_deref().unwrap_or_default(),
    };
    Some((kind, request))
}

/// The report on key hygiene lists a key that has not been used for this time.
pub const UNUSED_AFTER: Duration = Duration::days(90);

/// The requests of a key in an hour, in a day or in total.
#[derive(Debug, Clone)]
pub struct UsageBucket {
    /// Start of the period.
    pub start: OffsetDateTime,
    /// Number of requests.
    pub requests: i64,
    /// Number of requests by the first digit of the response status.
    pub by_status: BTreeMap<i16, i64>,
    /// Number of requests by route group; see [`RouteUse::group`].
    pub by_route: BTreeMap<String, i64>,
}

impl UsageBucket {
    /// Creates a period without requests.
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

/// A client address of a key.
#[derive(Debug, Clone)]
pub struct KeyAddress {
    /// The address.
    pub ip: IpAddr,
    /// Number of requests.
    pub requests: i64,
    /// Time of the first request.
    pub first_used_at: OffsetDateTime,
    /// Time of the last request.
    pub last_used_at: OffsetDateTime,
}

/// The usage of a key.
#[derive(Debug)]
pub struct KeyUsage {
    /// Number of requests since the key was created.
    pub total_requests: i64,
    /// Time of the first request.
    pub first_used_at: Option<OffsetDateTime>,
    /// Time of the last request.
    pub last_used_at: Option<OffsetDateTime>,
    /// The sum of all counts that are still stored.
    pub all: UsageBucket,
    /// Requests by hour, oldest first; hours without requests are left out.
    pub by_hour: Vec<UsageBucket>,
    /// Requests by day, oldest first; days without requests are left out.
    pub by_day: Vec<UsageBucket>,
    /// The 100 most recent client addresses.
    pub addresses: Vec<KeyAddress>,
}

/// An active key that has not been used for [`UNUSED_AFTER`].
#[derive(Debug)]
pub struct UnusedKey {
    /// The key's id.
    pub id: ApiKeyId,
    /// The key's name.
    pub name: String,
    /// The key's scope.
    pub scope: Scope,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// Time of the last use, if there was one.
    pub last_used_at: Option<OffsetDateTime>,
}

/// An active key with a higher scope than its requests needed.
#[derive(Debug)]
pub struct OverScopedKey {
    /// The key's id.
    pub id: ApiKeyId,
    /// The key's name.
    pub name: String,
    /// The key's scope.
    pub scope: Scope,
    /// The highest scope that a request needed.
    pub used_scope: Scope,
    /// Start of the period that `used_scope` covers.
    pub used_since: OffsetDateTime,
    /// Time of the last use.
    pub last_used_at: OffsetDateTime,
}

/// The report on key hygiene: unused and over-scoped keys.
#[derive(Debug)]
pub struct KeyHygiene {
    /// Unused keys, longest unused first.
    pub unused: Vec<UnusedKey>,
    /// Over-scoped keys, newest first.
    pub over_scoped: Vec<OverScopedKey>,
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::model::audit::{Action, Actor};

    fn request(ip: u8, path: u8, agent: Option<u8>) -> Arc<RequestInfo> {
        Arc::new(RequestInfo {
            id: Uuid::nil().into(),
            method: "GET".into(),
            path: format!("/v1/{path}"),
            ip: [127, 0, 0, ip].into(),
            user_agent: agent.map(|agent| agent.to_string()),
            started_at: Duration::ZERO,
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
            .with_request(&request(ip, key, agent), status, Duration::ZERO);
        let group = if group { "agents" } else { "calls" };
        event.key_use = KeyUse::Request(RouteUse { group, scope: Scope::ReadOnly });
        event
    }

    #[test]
    fn outcome_follows_the_status() {
        for (status, outcome) in [
            (200, UseOutcome::Served),
            (304, UseOutcome::Served),
            (400, UseOutcome::Served),
            (404, UseOutcome::Served),
            (422, UseOutcome::Served),
            (401, UseOutcome::Failed),
            (403, UseOutcome::Failed),
            (429, UseOutcome::Failed),
            (500, UseOutcome::Failed),
            (503, UseOutcome::Failed),
            (499, UseOutcome::Unfinished),
        ] {
            assert_eq!(UseOutcome::of_status(status), outcome, "{status}");
        }
    }

    #[test]
    fn rejection_is_counted_apart_from_uses() {
        let mut rejected = event(1, 7, 1, None, 403, true);
        rejected.key_use = KeyUse::Rejection;
        let used = event(1, 7, 1, None, 403, true);
        let counters = UsageCount::count([&rejected, &used].into_iter());
        let outcomes: Vec<_> = counters.iter().map(|count| count.dimensions.outcome).collect();
        assert_eq!(outcomes, [UseOutcome::Rejected, UseOutcome::Failed]);
    }

    proptest! {
        #[test]
        fn request_is_counted_once_in_its_dimensions(
            seeds in prop::collection::vec(
                (
                    0_u8..3,
                    0_u64..180_000,
                    0_u8..2,
                    prop::option::of(0_u8..2),
                    200_u16..600,
                    any::<bool>(),
                ),
                0..200,
            ),
        ) {
            let events: Vec<_> = seeds
                .iter()
                .map(|(key, millis, ip, agent, status, group)| {
                    event(*key, *millis, *ip, *agent, *status, *group)
                })
                .collect();
            let counters = UsageCount::count(events.iter());
            let sum: i64 = counters.iter().map(|counter| counter.requests).sum();
            prop_assert_eq!(usize::try_from(sum), Ok(events.len()));
            for counter in counters {
                let same =
                    events.iter().filter(|event| dimensions_of(event).unwrap().0 == counter.dimensions);
                let ids: Vec<_> = same.map(|event| event.id.uuid()).collect();
                prop_assert_eq!(usize::try_from(counter.requests), Ok(ids.len()));
                prop_assert_eq!(ids.iter().min().unwrap(), &counter.first_event);
                prop_assert_eq!(ids.iter().max().unwrap(), &counter.last_event);
                prop_assert_eq!(id::creation_millis(counter.last_event) / 60_000, counter.dimensions.minute);
            }
        }
    }
}
