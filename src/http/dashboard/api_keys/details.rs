//! The page of an API key: its properties and its usage.

use std::collections::HashMap;

use askama::Template;
use axum::{extract::State, response::Response};
use time::{Duration, OffsetDateTime};

use super::create::{RATE_LIMIT_FIELD, key_path, parse_networks, parse_rate_limit};
use crate::{
    auth::{api_keys::UpdateKeyParams, api_keys::usage::UsageWindow},
    http::{
        ApiError, App,
        dashboard::{
            charts::{Chart, StackedBar},
            context::DashboardContext,
            form::Form,
            format::{Count, RelativeTime, RequestCount},
            layout::{FlashMessage, Layout},
            page::form_error,
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
        usage::{KeyUsage, UsageBucket},
    },
};

/// The period of the charts.
const CHART_RANGE: UsageWindow = UsageWindow { hours: 48, days: 30 };
/// The CSS class and the name of each segment of a bar: responses 1xx to 3xx, 4xx, and 5xx.
const LEGEND: [(&str, &str); 3] =
    [("ok", "succeeded"), ("refused", "client errors"), ("failed", "server errors")];

#[derive(Template)]
#[template(path = "api_key.html")]
struct KeyPage<'a> {
    layout: Layout,
    now: OffsetDateTime,
    key: &'a ApiKey,
    redacted: String,
    usage: KeyUsage,
    hourly_chart: Chart,
    daily_chart: Chart,
    /// The progress of the rotation, if the key has a successor.
    rotation: Option<RotationReport>,
    /// The predecessor, if it is still active.
    predecessor: Option<ApiKey>,
    can_edit: bool,
    name: String,
    description: String,
    allowed_ips: String,
    rate_limit: String,
    problem: Option<String>,
}

impl KeyPage<'_> {
    /// Returns the rate limit as the form shows it.
    fn stored_rate_limit(&self) -> String {
        rate_limit_text(self.key)
    }

    /// Returns the allowed networks, one a line.
    fn allowed_networks(&self) -> String {
        networks_text(self.key)
    }

    fn relative_time(&self, moment: &OffsetDateTime) -> RelativeTime {
        RelativeTime::new(*moment, self.now)
    }
}

/// Displays the key.
pub(in crate::http::dashboard) async fn show(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<ApiKeyId>,
) -> Result<Response, ApiError> {
    page(&app, &context, &caller, id, None).await
}

/// Changes the name, the description, the allowed networks and the rate limit of the key.
pub(in crate::http::dashboard) async fn update(
    caller: Authorized<Admin>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<ApiKeyId>,
    form: Form,
) -> Result<Response, ApiError> {
    let description = changed_field(&form, "description", "was_description")?;
    let change = UpdateKeyParams {
        name: changed_field(&form, "name", "was_name")?,
        description: description.map(|text| Some(text).filter(|text| !text.trim().is_empty())),
        allowed_ips: changed_field(&form, "allowed_ips", "was_allowed_ips")?
            .map(|text| parse_networks(&text)),
        rate_limit_per_minute: changed_field(&form, RATE_LIMIT_FIELD, "was_rate_limit_per_minute")?
            .map(|_| parse_rate_limit(&form))
            .transpose()?,
        disabled: None,
    };
    match app.auth.api_keys.update(&caller, id, change).await {
        Ok(_) => Ok(FlashMessage::Saved.redirect_to(&key_path(id))),
        Err(error) => {
            page(&app, &context, &caller, id, Some((form_error(error.into())?, &form))).await
        }
    }
}

/// Disables the key.
pub(in crate::http::dashboard) async fn disable(
    caller: Authorized<Admin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    context: DashboardContext,
    form: Form,
) -> Result<Response, ApiError> {
    set_disabled(&app, &context, &caller, id, true, &form).await
}

/// Enables the key again.
pub(in crate::http::dashboard) async fn enable(
    caller: Authorized<Admin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    context: DashboardContext,
    form: Form,
) -> Result<Response, ApiError> {
    set_disabled(&app, &context, &caller, id, false, &form).await
}

async fn set_disabled(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    id: ApiKeyId,
    disabled: bool,
    form: &Form,
) -> Result<Response, ApiError> {
    let change = UpdateKeyParams { disabled: Some(disabled), ..UpdateKeyParams::default() };
    let message = if disabled { FlashMessage::KeyDisabled } else { FlashMessage::KeyEnabled };
    match app.auth.api_keys.update(caller, id, change).await {
        Ok(_) => Ok(message.redirect_to(&key_path(id))),
        Err(error) => page(app, context, caller, id, Some((form_error(error.into())?, form))).await,
    }
}

/// Returns the rate limit of a key as the form shows it: empty for the workspace's.
fn rate_limit_text(key: &ApiKey) -> String {
    key.rate_limit_per_minute.map(|limit| limit.to_string()).unwrap_or_default()
}

/// Returns the allowed networks of a key, one a line.
fn networks_text(key: &ApiKey) -> String {
    key.allowed_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Returns the value of a field that the user has changed. `old_name` is the hidden field with the
/// value when the page was rendered.
///
/// An unchanged field is not saved: another user may have changed it since.
fn changed_field(
    form: &Form,
    name: &'static str,
    old_name: &'static str,
) -> Result<Option<String>, ApiError> {
    // Browsers send line breaks as CR LF.
    let normalize = |text: &str| text.replace("\r\n", "\n");
    let new = form.optional_text(name)?.map(normalize);
    let old = form.optional_text(old_name)?.map(normalize);
    Ok(new.filter(|new| old.is_none_or(|old| old.trim() != new.trim())))
}

async fn page(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    id: ApiKeyId,
    rejected: Option<((u16, String), &Form)>,
) -> Result<Response, ApiError> {
    let key = app.auth.api_keys.get(caller, id).await?;
    let usage = app.auth.api_keys.usage(caller, id, CHART_RANGE).await?;
    let is_revoked = key.status() == KeyStatus::Revoked;
    let rotation = match key.rotated_to {
        Some(_) if !is_revoked => Some(app.auth.api_keys.rotation_report(caller, id).await?),
        _ => None,
    };
    let predecessor = match key.rotated_from {
        Some(id) => Some(app.auth.api_keys.get(caller, id).await?),
        None => None,
    };
    let now = app.env.clock.now();
    let (hours, days) = charts(&usage, now);
    // After a rejected form, keep what the user entered.
    let field = |name: &'static str, stored: &dyn Fn() -> String| match &rejected {
        Some((_, form)) => form.text(name).map(str::to_owned),
        None => Ok(stored()),
    };
    let page = KeyPage {
        layout: context.layout(),
        now,
        redacted: key.redacted(app.auth.api_keys.environment()),
        usage,
        hourly_chart: hours,
        daily_chart: days,
        rotation,
        predecessor: predecessor.filter(|key| key.status() != KeyStatus::Revoked),
        can_edit: !is_revoked && context.has_scope(Scope::Admin),
        name: field("name", &|| key.name.clone())?,
        description: field("description", &|| key.description.clone().unwrap_or_default())?,
        allowed_ips: field("allowed_ips", &|| networks_text(&key))?,
        rate_limit: field(RATE_LIMIT_FIELD, &|| rate_limit_text(&key))?,
        problem: rejected.as_ref().map(|((_, problem), _)| problem.clone()),
        key: &key,
    };
    context.render_page(rejected.map_or(200, |((status, _), _)| status), &page)
}

/// Returns the charts of the requests per hour and per day.
fn charts(usage: &KeyUsage, now: OffsetDateTime) -> (Chart, Chart) {
    let hours = stacked_bars(
        &usage.by_hour,
        now,
        Duration::HOUR,
        CHART_RANGE.hours,
        timestamp::format_time_of_day,
    );
    let days = stacked_bars(
        &usage.by_day,
        now,
        Duration::DAY,
        CHART_RANGE.days,
        timestamp::format_day_and_month,
    );
    let chart = |spells: &[UsageBucket], bars: &[StackedBar], period: &str| {
        let requests = spells.iter().map(|spell| spell.requests).sum();
        Chart::new(
            format!("{} in the last {period}", RequestCount(requests)),
            LEGEND.to_vec(),
            bars,
        )
    };
    (
        chart(&usage.by_hour, &hours, &format!("{} hours", CHART_RANGE.hours)),
        chart(&usage.by_day, &days, &format!("{} days", CHART_RANGE.days)),
    )
}

/// Returns a bar for each period, including periods without requests.
fn stacked_bars(
    spells: &[UsageBucket],
    now: OffsetDateTime,
    period: Duration,
    count: u32,
    label: impl Fn(OffsetDateTime) -> String,
) -> Vec<StackedBar> {
    let by_start: HashMap<_, _> = spells.iter().map(|spell| (spell.start, spell)).collect();
    let elapsed = now.unix_timestamp().rem_euclid(period.whole_seconds());
    let last_start = now.unix_timestamp() - elapsed;
    let starts = (0..i64::from(count)).rev();
    let starts = starts.map(|periods| last_start - periods * period.whole_seconds());
    let starts = starts.filter_map(|start| OffsetDateTime::from_unix_timestamp(start).ok());
    let bar = |start| {
        let requests = |classes: &[i16]| {
            let spell = by_start.get(&start);
            let counts = classes.iter().filter_map(|class| spell?.by_status.get(class));
            counts.sum::<i64>()
        };
        let parts = vec![requests(&[1, 2, 3]), requests(&[4]), requests(&[5])];
        StackedBar { label: label(start), segments: parts }
    };
    starts.map(bar).collect()
}
