//! The rotation of an API key: create a successor, deploy it, wait until the old key is idle,
//! revoke the old key.
//!
//! The progress is a live fragment of the page ([`live`]).

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use time::{Duration, OffsetDateTime};

use super::create::{commit_and_display, display_again};
use crate::{
    auth::AuthError,
    http::{
        ApiError, App,
        dashboard::{
            charts::{Chart, StackedBar},
            context::DashboardContext,
            form::Form,
            format::{Count, HumanDuration, RelativeTime, RequestCount, Sentence},
            layout::Layout,
            live::{self, LiveFragment},
            page::form_error,
        },
        extract::{Authorized, FirstPartyAdmin, LiveAuthorization, PathId, Query, ReadOnly},
    },
    idempotency::IdempotencyOutcome,
    model::{
        api_key::{ApiKey, KeyStatus},
        id::ApiKeyId,
        principal::Caller,
        rotation::{KeyTraffic, RotationReport, RotationState},
        scope::Scope,
        timestamp,
    },
};

/// The period of the chart, in minutes.
const MINUTES: u32 = 60;

#[derive(Template)]
#[template(path = "rotation.html")]
struct RotationPage<'a> {
    layout: Layout,
    key: &'a ApiKey,
    can_rotate: bool,
    /// The progress; `None` before a successor exists, and after the old key was revoked.
    progress: Option<Progress>,
    problem: Option<String>,
}

impl RotationPage<'_> {
    /// Suggests a name for the new key: the old name with the next number, such as `prod-2`.
    fn suggested_name(&self) -> String {
        // Leaves room for the suffix within the 100 characters of a name.
        const MAX_PREFIX_CHARS: usize = 96;
        let (name, number) = match self.key.name.rsplit_once('-') {
            Some((name, number)) if number.len() < 4 => (name, number.parse::<u32>().ok()),
            _ => (&*self.key.name, None),
        };
        match number {
            Some(number) => format!("{name}-{}", number + 1),
            None => {
                format!("{}-2", self.key.name.chars().take(MAX_PREFIX_CHARS).collect::<String>())
            }
        }
    }
}

/// The progress of a rotation: the live fragment of the page.
#[derive(Template)]
#[template(path = "rotation_progress.html")]
struct Progress {
    now: OffsetDateTime,
    report: RotationReport,
    chart: Chart,
    can_revoke: bool,
    /// The time that the old key must be idle before it is safe to revoke.
    required_quiet: Duration,
}

impl Progress {
    fn relative_time(&self, moment: &OffsetDateTime) -> RelativeTime {
        RelativeTime::new(*moment, self.now)
    }

    fn explanation(&self) -> String {
        explain_verdict(&self.report, self.now, self.required_quiet)
    }

    /// Returns the adoption: the new key's share of the requests of the last hour, in percent.
    fn adoption_percent(&self) -> f64 {
        (self.report.adoption() * 100.0).round()
    }

    /// Returns the CSS class of a step: `was` if it is done, `now` if it is current.
    fn step_class(&self, number: u8) -> &'static str {
        let current = match self.report.state {
            RotationState::Minted => 2,
            RotationState::Adopted | RotationState::Draining => 3,
            RotationState::Quiet => 4,
        };
        match number.cmp(&current) {
            std::cmp::Ordering::Less => "was",
            std::cmp::Ordering::Equal => "now",
            std::cmp::Ordering::Greater => "",
        }
    }
}

/// Explains why it is safe or not yet safe to revoke a key.
pub(super) fn explain_verdict(
    report: &RotationReport,
    now: OffsetDateTime,
    quiet: Duration,
) -> String {
    let quiet = HumanDuration(quiet);
    match (report.safe_to_revoke, report.old.last_used_at) {
        (true, _) => {
            let finding = match report.new {
                Some(_) => "The new key is in use. The old key has been idle",
                None => "The key has been idle",
            };
            format!("{finding} for {}.", HumanDuration(report.quiet_for))
        }
        (false, _) if report.new.as_ref().is_some_and(KeyTraffic::is_unused) => {
            "The new key has not been used yet. Deploy it first.".to_owned()
        }
        (false, _) if report.new.as_ref().is_some_and(|new| !new.is_serving()) => {
            Sentence(&report.reason).to_string()
        }
        (false, Some(used)) if now - used < report.quiet_for + Duration::seconds(5) => {
            format!(
                "The key was last used {} ago. It must be idle for {quiet}.",
                HumanDuration(now - used)
            )
        }
        // Another reason, such as a gap in the usage counts.
        (false, _) => Sentence(&report.reason).to_string(),
    }
}

/// Displays the progress of the rotation, or the form that starts one.
pub(in crate::http::dashboard) async fn show(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<ApiKeyId>,
) -> Result<Response, ApiError> {
    page(&app, &context, &caller, id, None).await
}

/// Creates the successor.
pub(in crate::http::dashboard) async fn rotate(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<ApiKeyId>,
    form: Form,
) -> Result<Response, ApiError> {
    let name = form.non_empty_text("name")?.map(str::to_owned);
    let mut work = match app.idempotency.begin(&caller, form.attempt()?).await? {
        IdempotencyOutcome::New(work) => work,
        IdempotencyOutcome::Replayed(answer) => {
            return display_again(&app, &context, &caller, &answer).await;
        }
    };
    match app.auth.api_keys.rotate(work.tx(), &caller, id, name).await {
        Ok(minted) => commit_and_display(&app, &context, &caller, work, minted).await,
        Err(error) => {
            drop(work);
            page(&app, &context, &caller, id, Some(form_error(error.into())?)).await
        }
    }
}

/// Streams the progress as Server-Sent Events.
pub(in crate::http::dashboard) async fn stream(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    authorization: LiveAuthorization<ReadOnly>,
    PathId(id): PathId<ApiKeyId>,
    query: Query,
) -> Result<Response, ApiError> {
    if live::is_other_workspace(&caller, &query)? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    live::stream_fragment(app, &caller, authorization, ProgressFragment(id)).await
}

/// The progress of a key's rotation, as a live fragment.
struct ProgressFragment(ApiKeyId);

impl LiveFragment for ProgressFragment {
    async fn render(&self, app: &App, caller: &Caller) -> Result<Option<String>, ApiError> {
        let can_revoke = caller.principal.scope >= Scope::Admin;
        let key = match app.auth.api_keys.get(caller, self.0).await {
            Ok(key) => key,
            Err(AuthError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let progress = progress(app, caller, &key, can_revoke).await?;
        Ok(progress.and_then(|progress| progress.render().ok()))
    }
}

async fn page(
    app: &App,
    context: &DashboardContext,
    caller: &Caller,
    id: ApiKeyId,
    error: Option<(u16, String)>,
) -> Result<Response, ApiError> {
    let key = app.auth.api_keys.get(caller, id).await?;
    let can_rotate = context.has_scope(Scope::Admin);
    let progress = progress(app, caller, &key, can_rotate).await?;
    let (status, problem) = error.map_or((200, None), |(status, text)| (status, Some(text)));
    let layout = context.layout();
    let page = RotationPage { layout, key: &key, can_rotate, progress, problem };
    context.render_page(status, &page)
}

/// Returns the progress; `None` without a successor, or if the old key is revoked.
async fn progress(
    app: &App,
    caller: &Caller,
    key: &ApiKey,
    can_revoke: bool,
) -> Result<Option<Progress>, ApiError> {
    if key.status() == KeyStatus::Revoked {
        return Ok(None);
    }
    let id = key.id;
    let report = app.auth.api_keys.rotation_report(caller, id).await?;
    let Some(new) = &report.new else { return Ok(None) };
    let uses = app.auth.api_keys.usage_by_minute(caller, &[id, new.id], MINUTES).await?;
    let now = app.env.clock.now();
    let requests =
        |key: ApiKeyId, minute: usize| uses.get(&key).and_then(|row| row.get(minute)).copied();
    let bar = |minute: u32| {
        let index = usize::try_from(minute).unwrap_or_default();
        let start = now - Duration::minutes(i64::from(MINUTES - 1 - minute));
        let parts = vec![requests(id, index).unwrap_or(0), requests(new.id, index).unwrap_or(0)];
        StackedBar { label: timestamp::format_time_of_day(start), segments: parts }
    };
    let bars: Vec<_> = (0..MINUTES).map(bar).collect();
    let legend = vec![("old", "old key"), ("new", "new key")];
    let label = format!(
        "{} with the old key and {} with the new key in the last hour",
        RequestCount(report.old.requests_last_hour),
        RequestCount(new.requests_last_hour),
    );
    let chart = Chart::new(label, legend, &bars);
    let quiet = app.auth.api_keys.required_quiet_period();
    Ok(Some(Progress { now, report, chart, can_revoke, required_quiet: quiet }))
}
