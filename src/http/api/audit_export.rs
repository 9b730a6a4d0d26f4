//! The audit log to take along: NDJSON or CSV, or NDJSON that proves itself. Read and sent in small parts, so that a
//! long log takes no more memory than a short one.

use std::{io, str::FromStr};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, Version, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Serialize;
use uuid::Uuid;

use super::Answer;
use crate::{
    http::{
        ApiError, App,
        error::Code,
        extract::{Authorized, EVENT_FILTERS, Query, ReadOnly, Standing},
    },
    model::{
        audit::{ChainHash, Event, EventFilter},
        id::{EventId, Id},
        principal::Caller,
        timestamp,
    },
    store::{StoreError, chains::Sealed},
};

/// The columns of CSV.
const COLUMNS: [&str; 17] = [
    "id",
    "at",
    "action",
    "actor_type",
    "actor_id",
    "actor_name",
    "target_type",
    "target_id",
    "target_name",
    "request_id",
    "method",
    "path",
    "status",
    "ip",
    "user_agent",
    "latency_us",
    "metadata",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Ndjson,
    Csv,
}

impl FromStr for Format {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "ndjson" => Ok(Self::Ndjson),
            "csv" => Ok(Self::Csv),
            _ => Err(()),
        }
    }
}

impl Format {
    const fn media_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    const fn ending(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

/// Export the audit log
///
/// Everything that passes the filters, newest first, as NDJSON (an event a line, in its canonical form) or CSV, whose
/// cells no spreadsheet takes for formulas. With `proof`, NDJSON of the whole log in the order of its hash chain: each line has
/// the event, its place and the chain's hash there, so that anybody can check it; `after_sequence` goes on behind a
/// checkpoint. An export that could not be finished breaks off without the end that HTTP gives to a whole body.
#[utoipa::path(get, path = "/v1/audit-log/export", tag = "Audit log",
    params(crate::http::openapi::EventFilterParams,
        ("format" = Option<String>, Query, pattern = "^(ndjson|csv)$", description = "ndjson, unless said otherwise"),
        ("proof" = Option<bool>, Query, description = "The whole log, with its hash chain"),
        ("after_sequence" = Option<i64>, Query, minimum = 0, description = "With a proof: only what is behind this place")),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv")))))]
pub async fn export(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
    standing: Standing<ReadOnly>,
    version: Version,
) -> Answer<Response> {
    // Which has no other end of a body than that of the connection: half an export would look whole.
    if version == Version::HTTP_10 {
        return Err(ApiError::new(Code::BadRequest, "an export takes HTTP/1.1"));
    }
    let format = query.parse_as("format", "ndjson or csv")?.unwrap_or(Format::Ndjson);
    let is_proof = query.parse_as("proof", "true or false")?.unwrap_or(false);
    let after: Option<i64> = query.parse_as("after_sequence", "a place in the chain")?;
    if after.is_some_and(|after| after < 0 || !is_proof) {
        let message = "after_sequence must be a place in the chain, and goes with proof=true";
        return Err(ApiError::invalid("after_sequence", message));
    }
    let filter = query.event_filter()?;
    let source = if is_proof {
        // None of which goes with a proof.
        for name in EVENT_FILTERS {
            if query.text(name)?.is_some() {
                return Err(ApiError::invalid(
                    name,
                    "a proof is of the whole log: it goes without filters",
                ));
            }
        }
        if format != Format::Ndjson {
            return Err(ApiError::invalid("format", "a proof is NDJSON"));
        }
        Source::Chain { behind: after.unwrap_or(0), until: app.audit_log.end(&caller).await? }
    } else {
        Source::Filtered { filter: Box::new(filter), before: None }
    };
    let name = format!(
        "audit-log-{}-{}.{}",
        caller.workspace(),
        app.env.clock.now().date(),
        format.ending(),
    );
    let caller = Caller::clone(&caller);
    let export = Export { app, caller, standing, format, source, is_begun: false, is_over: false };
    let parts = stream::unfold(export, async |mut export| {
        let part = export.next().await?;
        Some((part.map(Bytes::from), export))
    });
    let mut response = Body::from_stream(parts).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// An export under way.
struct Export {
    app: App,
    caller: Caller,
    standing: Standing<ReadOnly>,
    format: Format,
    source: Source,
    is_begun: bool,
    is_over: bool,
}

/// What is still to come.
enum Source {
    /// What passes a filter, before this event.
    Filtered { filter: Box<EventFilter>, before: Option<Uuid> },
    /// What is behind this place of the chain, up to another.
    Chain { behind: i64, until: i64 },
}

/// A line of a proof.
#[derive(Serialize)]
struct ProofLine<'a> {
    /// Null: it is not there. Where a later event of the chain tells that retention dropped its whole month, its
    /// hash has to be taken as it is.
    event: Option<&'a Event<'static>>,
    event_id: EventId,
    hash: ChainHash,
    sequence: i64,
}

impl Export {
    /// The next part; none: that was all. Asked for only when there is room for it.
    async fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        while !self.is_over {
            match self.part().await {
                Ok(part) if part.is_empty() => {}
                Ok(part) => return Some(Ok(part)),
                // A body that ends here without its end: the client is not to take it for whole.
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(io::Error::other(error)));
                }
            }
        }
        None
    }

    async fn part(&mut self) -> Result<Vec<u8>, StoreError> {
        let log = &self.app.audit_log;
        let mut part = Vec::new();
        match &mut self.source {
            Source::Filtered { filter, before } => {
                let page = log.export(&self.caller, filter, *before).await?;
                self.is_over = !page.more;
                *before = page.items.last().map(|event| event.id.uuid());
                let wanted = page.items.iter().filter(|event| filter.passes(event));
                match self.format {
                    Format::Ndjson => ndjson(&mut part, wanted),
                    Format::Csv => csv(&mut part, wanted, !self.is_begun),
                }
            }
            Source::Chain { behind, until } => {
                let sealed = log.sealed(&self.caller, *behind, *until).await?;
                *behind = sealed.last().map_or(*until, |last| last.sequence);
                self.is_over = *behind >= *until;
                let lines = sealed.iter().map(|Sealed { sequence, id, hash, event }| ProofLine {
                    event: event.as_ref(),
                    event_id: *id,
                    hash: *hash,
                    sequence: *sequence,
                });
                ndjson(&mut part, lines);
            }
        }
        self.is_begun = true;
        if !self.standing.holds().await {
            return Err(StoreError::Aborted);
        }
        Ok(part)
    }
}

fn ndjson(part: &mut Vec<u8>, lines: impl Iterator<Item = impl Serialize>) {
    for line in lines {
        if serde_json::to_writer(&mut *part, &line).is_ok() {
            part.push(b'\n');
        }
    }
}

fn csv<'a>(
    part: &mut Vec<u8>,
    events: impl Iterator<Item = &'a Event<'static>>,
    with_header: bool,
) {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(part);
    // Writing to memory does not fail.
    if with_header {
        writer.write_record(COLUMNS).ok();
    }
    for event in events {
        let text = |text: Option<&str>| text.map_or_else(String::new, harmless);
        let request = &event.request;
        let target = event.target.as_ref();
        let metadata = serde_json::to_string(&event.metadata).unwrap_or_default();
        let record = [
            event.id.to_string(),
            timestamp::format(event.at),
            harmless(&event.action),
            harmless(&event.actor.kind),
            event.actor.id.as_ref().map(ToString::to_string).unwrap_or_default(),
            text(event.actor.name.as_deref()),
            text(target.map(|target| &*target.kind)),
            target.map(|target| target.id.to_string()).unwrap_or_default(),
            text(target.and_then(|target| target.name.as_deref())),
            request.id.map(|id| id.to_string()).unwrap_or_default(),
            text(request.method.as_deref()),
            text(request.path.as_deref()),
            request.status.map(|status| status.to_string()).unwrap_or_default(),
            request.ip.map(|ip| ip.addr().to_string()).unwrap_or_default(),
            text(request.user_agent.as_deref()),
            request.latency_us.map(|latency| latency.to_string()).unwrap_or_default(),
            if event.metadata.is_none() { String::new() } else { metadata },
        ];
        writer.write_record(record).ok();
    }
    writer.flush().ok();
}

/// A text that no spreadsheet takes for a formula (OWASP, CSV injection).
fn harmless(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"] {
            assert_eq!(harmless(text), format!("'{text}"));
        }
        assert_eq!(harmless("prod=1"), "prod=1");
        assert_eq!(harmless(""), "");
    }
}
