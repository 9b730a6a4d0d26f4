//! One key: what it is, and what it is used for.

use std::collections::HashMap;

use askama::Template;
use axum::{extract::State, response::Response};
use time::{Duration, OffsetDateTime};

use super::mint::{networks, page_of};
use crate::{
    auth::{keys::ChangeKey, usage::Reach},
    http::{
        ApiError, App,
        dashboard::{
            charts::{Chart, Pile},
            form::Form,
            layout::{Desk, Done, Layout},
            page::explained,
            words::{Count, Requests, When},
        },
        extract::{Admin, Authorized, PathId, ReadOnly},
    },
    model::{
        api_key::{ApiKey, KeyStatus},
        id::ApiKeyId,
        principal::Caller,
        rotation::RotationReport,
        scope::Scope,
        timestamp,
        usage::{KeyUsage, Spell},
    },
};

/// What the charts show.
const REACH: Reach = Reach { hours: 48, days: 30 };
/// What the parts of a pile are.
const LEGEND: [(&str, &str); 3] =
    [("ok", "succeeded"), ("refused", "refused"), ("failed", "failed")];

#[derive(Template)]
#[template(path = "api_key.html")]
struct KeyPage<'a> {
    layout: Layout,
    now: OffsetDateTime,
    key: &'a ApiKey,
    redacted: String,
    usage: KeyUsage,
    hours: Chart,
    days: Chart,
    /// How far its rotation is.
    rotation: Option<RotationReport>,
    /// The key that it succeeded, if that still lives.
    predecessor: Option<ApiKey>,
    may_change: bool,
    name: String,
    description: String,
    allowed_ips: String,
    problem: Option<String>,
}

impl KeyPage<'_> {
    /// Where it may be used, one a line.
    fn networks(&self) -> String {
        lines_of(self.key)
    }

    fn when(&self, moment: &OffsetDateTime) -> When {
        When::new(*moment, self.now)
    }
}

/// Shows it.
pub(in crate::http::dashboard) async fn show(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    desk: Desk,
    PathId(id): PathId<ApiKeyId>,
) -> Result<Response, ApiError> {
    page(&app, &desk, &caller, id, None).await
}

/// Changes what it is called and where it may be used.
pub(in crate::http::dashboard) async fn change(
    caller: Authorized<Admin>,
    State(app): State<App>,
    desk: Desk,
    PathId(id): PathId<ApiKeyId>,
    form: Form,
) -> Result<Response, ApiError> {
    let description = changed(&form, "description", "was_description")?;
    let change = ChangeKey {
        name: changed(&form, "name", "was_name")?,
        description: description.map(|text| Some(text).filter(|text| !text.trim().is_empty())),
        allowed_ips: changed(&form, "allowed_ips", "was_allowed_ips")?.map(|text| networks(&text)),
    };
    match app.auth.change_key(&caller, id, change).await {
        Ok(_) => Ok(Done::Saved.at(&page_of(id))),
        Err(error) => page(&app, &desk, &caller, id, Some((explained(error.into())?, &form))).await,
    }
}

/// The networks of a key, one a line.
fn lines_of(key: &ApiKey) -> String {
    key.allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A field that is another than it was when the page was made. What was not touched is left as it is by now: somebody
/// else may have changed it meanwhile.
fn changed(form: &Form, name: &'static str, was: &'static str) -> Result<Option<String>, ApiError> {
    // Forms have other ends of lines.
    let plain = |text: &str| text.replace("\r\n", "\n");
    let (given, was) = (form.given(name)?.map(plain), form.given(was)?.map(plain));
    Ok(given.filter(|given| was.is_none_or(|was| was.trim() != given.trim())))
}

async fn page(
    app: &App,
    desk: &Desk,
    caller: &Caller,
    id: ApiKeyId,
    refused: Option<((u16, String), &Form)>,
) -> Result<Response, ApiError> {
    let key = app.auth.get_key(caller, id).await?;
    let usage = app.auth.key_usage(caller, id, REACH).await?;
    let is_active = key.status() == KeyStatus::Active;
    let rotation = match key.rotated_to {
        Some(_) if is_active => Some(app.auth.whom_it_serves(caller, id).await?),
        _ => None,
    };
    let predecessor = match key.rotated_from {
        Some(old) => Some(app.auth.get_key(caller, old).await?),
        None => None,
    };
    let now = app.env.clock.now();
    let (hours, days) = charts(&usage, now);
    // What was filled in, where that was refused.
    let field = |name: &'static str, known: &dyn Fn() -> String| match &refused {
        Some((_, form)) => form.text(name).map(str::to_owned),
        None => Ok(known()),
    };
    let page = KeyPage {
        layout: desk.layout(),
        now,
        redacted: key.redacted(app.auth.environment()),
        usage,
        hours,
        days,
        rotation,
        predecessor: predecessor.filter(|old| old.status() == KeyStatus::Active),
        may_change: is_active && desk.may(Scope::Admin),
        name: field("name", &|| key.name.clone())?,
        description: field("description", &|| key.description.clone().unwrap_or_default())?,
        allowed_ips: field("allowed_ips", &|| lines_of(&key))?,
        problem: refused.as_ref().map(|((_, problem), _)| problem.clone()),
        key: &key,
    };
    Ok(desk.page(refused.map_or(200, |((status, _), _)| status), &page))
}

/// The requests of the last hours, and of the last days.
fn charts(usage: &KeyUsage, now: OffsetDateTime) -> (Chart, Chart) {
    let hours = piles(&usage.by_hour, now, Duration::HOUR, REACH.hours, timestamp::time_of_day);
    let days = piles(&usage.by_day, now, Duration::DAY, REACH.days, timestamp::day_of_the_year);
    let chart = |spells: &[Spell], piles: &[Pile], what: &str| {
        let requests = spells.iter().map(|spell| spell.requests).sum();
        Chart::new(format!("{} in the last {what}", Requests(requests)), LEGEND.to_vec(), piles)
    };
    (
        chart(&usage.by_hour, &hours, &format!("{} hours", REACH.hours)),
        chart(&usage.by_day, &days, &format!("{} days", REACH.days)),
    )
}

/// A pile for each spell, also for those in which nothing happened.
fn piles(
    spells: &[Spell],
    now: OffsetDateTime,
    length: Duration,
    count: u32,
    name: impl Fn(OffsetDateTime) -> String,
) -> Vec<Pile> {
    let known: HashMap<_, _> = spells.iter().map(|spell| (spell.start, spell)).collect();
    let into = now.unix_timestamp().rem_euclid(length.whole_seconds());
    let last = now.unix_timestamp() - into;
    let starts = (0..i64::from(count)).rev().map(|back| last - back * length.whole_seconds());
    let starts = starts.filter_map(|start| OffsetDateTime::from_unix_timestamp(start).ok());
    let pile = |start| {
        let of = |classes: &[i16]| {
            let spell = known.get(&start);
            let counts = classes.iter().filter_map(|class| spell?.by_status.get(class));
            counts.sum::<i64>()
        };
        Pile { time: name(start), parts: vec![of(&[1, 2, 3]), of(&[4]), of(&[5])] }
    };
    starts.map(pile).collect()
}
