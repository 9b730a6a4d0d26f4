//! The audit log: events are inserted and never changed.
//!
//! An event and its entry in the audit outbox are written by one statement, so the sealer misses
//! none.

use std::borrow::Cow;

use ipnet::IpNet;
use serde_json::Value;
use sqlx::{
    PgConnection, Postgres,
    postgres::{PgArguments, PgBindIterExt as _},
    query::Query,
    types::Json,
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Audited, DedicatedConnection, Store, StoreError, Tx};
use crate::model::{
    audit::{
        Action, ActorType, Event, EventActor, EventFilter, EventRequest, EventTarget, Metadata,
        NewEvent, Outcome, PublicId, Target,
    },
    id::{self, EventId, Id, RequestId, WorkspaceId},
    page::{ListPage, PageRequest},
    usage::UsageCount,
};

/// Number of events that one statement inserts. They share an entry of the outbox, which is sealed
/// at once.
const EVENT_BATCH: usize = 1000;

/// Builds the statement that inserts events of any workspaces, together with their outbox entry.
/// `None` if there are no events. If `is_retry` is true, the batch may already be stored; the
/// statement then skips it. If it is false, the batch must not be stored yet.
pub fn build_append_query<'a>(
    batch: &(impl Iterator<Item = &'a NewEvent> + Clone),
    is_retry: bool,
) -> Option<Query<'static, Postgres, PgArguments>> {
    let oldest = batch.clone().map(|event| event.id).min()?;
    let uses = UsageCount::count(batch.clone());
    let kinds = || uses.iter().map(|uses| uses.dimensions);
    let events = || batch.clone().filter(|event| !event.key_use.is_only_counted());
    let targets = || events().map(|event| event.target.as_ref());
    let requests = || events().map(|event| event.request.as_ref().map(|(request, _)| request));
    let outcomes = || events().map(|event| event.request.as_ref().map(|(_, outcome)| outcome));
    let status = |outcome: &Outcome| i16::try_from(outcome.status).ok();
    let digests: Vec<u8> =
        events().flat_map(|event| *event.to_event().digest().as_bytes()).collect();
    Some(sqlx::query!(
        "SELECT FROM append_audit_events(
            $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
            $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32)",
        events().map(|event| event.id.uuid()).bind_iter() as _,
        events().map(|event| event.workspace_id.uuid()).bind_iter() as _,
        events().map(|event| event.action.as_str()).bind_iter() as _,
        events().map(|event| event.actor.kind.as_str()).bind_iter() as _,
        events().map(|event| event.actor.id).bind_iter() as _,
        events().map(|event| event.actor.name.as_deref()).bind_iter() as _,
        targets().map(|target| Some(target?.kind)).bind_iter() as _,
        targets().map(|target| Some(target?.id)).bind_iter() as _,
        targets().map(|target| target?.name.as_deref()).bind_iter() as _,
        requests().map(|request| Some(request?.id.uuid())).bind_iter() as _,
        requests().map(|request| Some(&*request?.method)).bind_iter() as _,
        requests().map(|request| Some(&*request?.path)).bind_iter() as _,
        outcomes().map(|outcome| status(outcome?)).bind_iter() as _,
        requests().map(|request| Some(IpNet::from(request?.ip))).bind_iter() as _,
        requests().map(|request| request?.user_agent.as_deref()).bind_iter() as _,
        outcomes().map(|outcome| Some(outcome?.latency_us)).bind_iter() as _,
        events().map(|event| Json(&event.metadata)).bind_iter() as _,
        digests,
        id::creation_time(oldest.uuid()),
        kinds().map(|kind| kind.key_id).bind_iter() as _,
        kinds().map(|kind| kind.route.group).bind_iter() as _,
        kinds().map(|kind| kind.route.scope.as_str()).bind_iter() as _,
        kinds().map(|kind| kind.status_class).bind_iter() as _,
        kinds().map(|kind| kind.outcome.as_str()).bind_iter() as _,
        kinds().map(|kind| IpNet::from(kind.ip)).bind_iter() as _,
        kinds().map(|kind| kind.user_agent).bind_iter() as _,
        uses.iter().map(|uses| uses.method).bind_iter() as _,
        uses.iter().map(|uses| uses.path).bind_iter() as _,
        uses.iter().map(|uses| uses.first_event).bind_iter() as _,
        uses.iter().map(|uses| uses.last_event).bind_iter() as _,
        uses.iter().map(|uses| uses.requests).bind_iter() as _,
        is_retry,
    ))
}

impl DedicatedConnection {
    /// Inserts events of any workspaces, as [`build_append_query`] describes.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails. Either all events are then stored, or none.
    pub async fn append_audit_events(
        &mut self,
        events: impl Iterator<Item = &NewEvent> + Clone,
        is_retry: bool,
    ) -> Result<(), StoreError> {
        let Some(append) = build_append_query(&events, is_retry) else { return Ok(()) };
        self.run(async move |connection| append.execute(connection).await.map(drop)).await
    }
}

impl Store {
    /// Deletes counts of unknown credentials that are older than 30 days.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_unknown_credential_counts(&self) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_unknown_credential_counts() AS "done""#)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }

    /// Adds to the counts of requests with an unknown credential. Each count is for one address and
    /// one minute.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn add_unknown_credential_counts(
        &self,
        counts: &[(IpNet, OffsetDateTime, i64)],
    ) -> Result<(), StoreError> {
        let addresses: Vec<_> = counts.iter().map(|(address, ..)| *address).collect();
        let minutes: Vec<_> = counts.iter().map(|(_, minute, _)| *minute).collect();
        let attempts: Vec<_> = counts.iter().map(|(.., attempts)| *attempts).collect();
        sqlx::query!(
            "INSERT INTO unknown_credential_counts AS known (address, minute, attempts)
             SELECT * FROM unnest($1::inet[], $2::timestamptz[], $3::bigint[])
             ORDER BY 2, 1
             ON CONFLICT (minute, address) DO UPDATE SET attempts = least(known.attempts + excluded.attempts, 1000000000000000)",
            &addresses as _,
            &minutes,
            &attempts,
        )
        .execute(&self.pools.background())
        .await?;
        Ok(())
    }
}

/// Inserts an event in the transaction of the change that it records: both are committed, or
/// neither.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(
    tx: &mut Tx,
    workspace: WorkspaceId,
    event: &NewEvent,
) -> Result<Audited, StoreError> {
    let request = event.request.as_ref().map(|(request, _)| request);
    let outcome = event.request.as_ref().map(|(_, outcome)| outcome);
    let target = event.target.as_ref();
    let digest = event.to_event().digest();
    sqlx::query!(
        "WITH event AS (
             INSERT INTO audit_events (
                 id, workspace_id, action, actor_type, actor_id, actor_name, target_type, target_id,
                 target_name, request_id, method, path, status, ip, user_agent, latency_us, metadata)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17))
         INSERT INTO audit_outbox (oldest_event_at, workspace_ids, event_ids, digests)
         VALUES ($18, ARRAY[$2::uuid], ARRAY[$1::uuid], $19)",
        event.id.uuid(),
        workspace.uuid(),
        event.action.as_str(),
        event.actor.kind.as_str(),
        event.actor.id,
        event.actor.name.as_deref(),
        target.map(|target| target.kind),
        target.map(|target| target.id),
        target.and_then(|target| target.name.as_deref()),
        request.map(|request| request.id.uuid()),
        request.map(|request| &*request.method),
        request.map(|request| request.path.as_str()),
        outcome.and_then(|outcome| i16::try_from(outcome.status).ok()),
        request.map(|request| IpNet::from(request.ip)) as _,
        request.and_then(|request| request.user_agent.as_deref()),
        outcome.map(|outcome| outcome.latency_us),
        Json(&event.metadata) as _,
        id::creation_time(event.id.uuid()),
        &digest.as_bytes()[..],
    )
    .execute(tx.conn())
    .await?;
    Ok(Audited::new())
}

/// Inserts an event of any workspace in the transaction of the change that it records, as
/// [`insert`] does. The transaction does not get the context of that workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert_elsewhere(tx: &mut Tx, event: &NewEvent) -> Result<Audited, StoreError> {
    insert_in_bulk(tx.conn(), std::slice::from_ref(event)).await?;
    Ok(Audited::new())
}

/// Inserts events of any workspaces in the transaction of the changes that they record, as
/// [`insert_elsewhere`] does. `None` if there are no events: then nothing is proven.
///
/// # Errors
/// [`StoreError`] if a query fails.
pub async fn insert_all(tx: &mut Tx, events: &[NewEvent]) -> Result<Option<Audited>, StoreError> {
    insert_in_bulk(tx.conn(), events).await?;
    Ok((!events.is_empty()).then(Audited::new))
}

/// Inserts events of any workspaces, [`EVENT_BATCH`] with each statement.
pub(super) async fn insert_in_bulk(
    connection: &mut PgConnection,
    events: &[NewEvent],
) -> Result<(), StoreError> {
    for batch in events.chunks(EVENT_BATCH) {
        if let Some(append) = build_append_query(&batch.iter(), false) {
            append.execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// Maximum number of events that a list with a filter searches for its page.
const MAX_SEARCHED: i64 = 20_000;

/// Lists the events of a workspace that match the filter, newest first.
///
/// If no index has the events that match, it searches only the next `MAX_SEARCHED` ones. The next
/// page continues there.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    filter: &EventFilter,
    page: PageRequest,
) -> Result<ListPage<Event<'static>>, StoreError> {
    // Each combination of filters needs its own plan: one plan for all is a hundred times as slow.
    // The rows come from an index in their order. Without these settings, and where statistics are
    // missing, PostgreSQL would sort the whole log for each page.
    sqlx::query!(
        r#"SELECT set_config('plan_cache_mode', 'force_custom_plan', true) AS plan,
                  set_config('enable_sort', 'off', true) AS sort,
                  set_config('enable_bitmapscan', 'off', true) AS bitmap"#
    )
    .fetch_one(tx.conn())
    .await?;
    let searched_to = find_search_end(tx, workspace, filter, page).await?;
    let rows = sqlx::query_as!(
        EventRow,
        r#"SELECT id AS "id: EventId", action, actor_type, actor_id, actor_name, target_type,
                  target_id, target_name, request_id AS "request_id: RequestId", method, path, status,
                  ip AS "ip: IpNet", user_agent, latency_us, metadata AS "metadata: Json<Value>"
           FROM audit_events
           WHERE workspace_id = $1
             AND ($2::uuid IS NULL OR id < $2)
             AND ($3::uuid IS NULL OR (actor_id = $3 AND actor_type = 'api_key'))
             AND ($4::uuid IS NULL OR actor_id = $4)
             AND ($5::text IS NULL OR action = $5)
             AND ($6::text IS NULL OR method = $6)
             AND ($7::smallint IS NULL OR status = $7)
             AND ($8::inet IS NULL OR ip = $8)
             AND ($9::timestamptz IS NULL OR id >= uuidv7_lower_bound($9))
             AND ($10::timestamptz IS NULL OR id < uuidv7_lower_bound($10))
             AND ($11::uuid IS NULL OR request_id = $11)
             AND (NOT $12::boolean OR action <> 'request')
             AND NOT ($13::boolean AND action = 'request' AND actor_type = 'user'
                      AND path IS NOT NULL AND path NOT LIKE '/v1/%')
             AND ($16::uuid IS NULL OR id >= $16)
           ORDER BY id DESC LIMIT $14 OFFSET $15"#,
        workspace.uuid(),
        page.before,
        filter.key_id.map(Id::uuid),
        filter.actor_id,
        filter.action,
        filter.method,
        filter.status.and_then(|status| i16::try_from(status).ok()),
        filter.ip.map(IpNet::from) as _,
        filter.since,
        filter.until,
        filter.request_id.map(Id::uuid),
        filter.excludes_requests,
        filter.excludes_browser_requests,
        page.limit + 1,
        page.offset,
        searched_to,
    )
    .fetch_all(tx.conn())
    .await?;
    let events = ListPage::from_overfetch(rows.into_iter().map(Event::from).collect(), page.limit);
    Ok(match searched_to {
        Some(_) if !events.has_more => ListPage { has_more: true, searched_to, ..events },
        _ => events,
    })
}

/// Returns the id of the event at which the search for a page ends, or `None` if it needs no end:
/// without a filter, or if fewer events are left.
///
/// It counts the events that PostgreSQL reads: those of the actor or, if requests are excluded, the
/// changes, which have an index, otherwise all.
async fn find_search_end(
    tx: &mut Tx,
    workspace: WorkspaceId,
    filter: &EventFilter,
    page: PageRequest,
) -> Result<Option<Uuid>, StoreError> {
    if !filter.may_search() {
        return Ok(None);
    }
    let actor = filter.key_id.map(Id::uuid).or(filter.actor_id);
    let is_change = filter.excludes_requests
        || filter.action.as_deref().is_some_and(|action| action != Action::Request.as_str());
    Ok(sqlx::query_scalar!(
        r#"SELECT id FROM audit_events
           WHERE workspace_id = $1
             AND ($2::uuid IS NULL OR id < $2)
             AND ($3::uuid IS NULL OR actor_id = $3)
             AND (NOT $4::boolean OR action <> 'request')
             AND ($5::timestamptz IS NULL OR id >= uuidv7_lower_bound($5))
             AND ($6::timestamptz IS NULL OR id < uuidv7_lower_bound($6))
           ORDER BY id DESC LIMIT 1 OFFSET $7"#,
        workspace.uuid(),
        page.before,
        actor,
        is_change,
        filter.since,
        filter.until,
        MAX_SEARCHED + page.offset,
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// A row of `audit_events`.
pub(super) struct EventRow {
    pub(super) id: EventId,
    pub(super) action: String,
    pub(super) actor_type: String,
    pub(super) actor_id: Option<Uuid>,
    pub(super) actor_name: Option<String>,
    pub(super) target_type: Option<String>,
    pub(super) target_id: Option<Uuid>,
    pub(super) target_name: Option<String>,
    pub(super) request_id: Option<RequestId>,
    pub(super) method: Option<String>,
    pub(super) path: Option<String>,
    pub(super) status: Option<i16>,
    pub(super) ip: Option<IpNet>,
    pub(super) user_agent: Option<String>,
    pub(super) latency_us: Option<i64>,
    pub(super) metadata: Json<Value>,
}

impl From<EventRow> for Event<'static> {
    /// Uses every column, also of a row that this service does not write. The event's digest must
    /// change with any change to the row.
    fn from(row: EventRow) -> Self {
        let actor_id = row.actor_id.map(|id| {
            let known = ActorType::from_name(&row.actor_type).and_then(ActorType::id_prefix);
            let prefix = known.map_or_else(|| row.actor_type.clone().into(), Cow::from);
            PublicId { prefix, id }
        });
        let has_target =
            row.target_type.is_some() || row.target_id.is_some() || row.target_name.is_some();
        let target_type = row.target_type.unwrap_or_default();
        let target = has_target.then(|| EventTarget {
            kind: Target::type_name(&target_type).to_owned().into(),
            id: PublicId { prefix: target_type.into(), id: row.target_id.unwrap_or_default() },
            name: row.target_name.map(Cow::from),
        });
        Self {
            action: row.action.into(),
            actor: EventActor {
                id: actor_id,
                name: row.actor_name.map(Cow::from),
                kind: row.actor_type.into(),
            },
            at: id::creation_time(row.id.uuid()),
            id: row.id,
            metadata: Cow::Owned(Metadata::object(row.metadata.0)),
            request: EventRequest {
                id: row.request_id,
                ip: row.ip,
                latency_us: row.latency_us,
                method: row.method.map(Cow::from),
                path: row.path.map(Cow::from),
                status: row.status,
                user_agent: row.user_agent.map(Cow::from),
            },
            target,
        }
    }
}
