//! Export of the audit log as NDJSON or CSV, or as NDJSON with the hash chain as proof.
//!
//! An export is read and sent in small chunks, so a long log needs no more memory than a short one.
//! Chunks that clients have not read count against the limit of unread responses.
//! An export that fails has no regular end, so clients cannot take it for complete. The format of
//! the proof is in `docs/audit-log.md`.

use std::{error::Error, io, str::FromStr};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, Version, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Serialize;
use uuid::Uuid;

use super::ApiResult;
use crate::{
    http::{
        ApiError, App,
        error::ErrorCode,
        extract::{Authorized, EVENT_FILTERS, LiveAuthorization, Query, ReadOnly},
        unread_responses::{HeldBody, Reader},
    },
    model::{
        audit::{ChainHash, Event, EventFilter},
        id::{EventId, Id},
        principal::Caller,
        timestamp,
    },
    store::{StoreError, audit_chains::SealedEvent},
};

/// Number of events in a chunk of a proof.
const PROOF_CHUNK: usize = 500;

/// The columns of the CSV format.
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

    const fn extension(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

/// Export the audit log
///
/// Returns all events that match the filters, newest first. NDJSON has one event per line in its
/// canonical form (RFC 8785). In CSV, cells that spreadsheets would read as formulas are escaped.
///
/// With `proof=true`, returns the whole log as NDJSON in the order of its hash chain. Each line has
/// the event, its sequence number and the hash of the chain, so that you can verify the log. Use
/// `after_sequence` to continue after a checkpoint.
///
/// An export that fails is cut off: the response has no regular end (HTTP/1.1 chunked encoding).
#[utoipa::path(get, path = "/v1/audit-log/export", tag = "Audit log",
    params(crate::http::dto::parameters::EventFilterParams,
        ("format" = Option<String>, Query, pattern = "^(ndjson|csv)$", description = "The format. The default is ndjson"),
        ("proof" = Option<bool>, Query, description = "Export the whole log with its hash chain"),
        ("after_sequence" = Option<i64>, Query, minimum = 0,
         description = "With proof=true: only events after this sequence number")),
    responses((status = 200, content((String = "application/x-ndjson"), (String = "text/csv")))))]
pub async fn export(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
    authorization: LiveAuthorization<ReadOnly>,
    version: Version,
) -> ApiResult<Response> {
    // In HTTP/1.0, only the end of the connection ends a body: half an export would look complete.
    if version == Version::HTTP_10 {
        return Err(ApiError::new(ErrorCode::BadRequest, "an export requires HTTP/1.1"));
    }
    let format = query.parse_as("format", "ndjson or csv")?.unwrap_or(Format::Ndjson);
    let is_proof = query.parse_as("proof", "true or false")?.unwrap_or(false);
    let after: Option<i64> =
        query.parse_as("after_sequence", "a sequence number of the hash chain")?;
    if after.is_some_and(|after| after < 0 || !is_proof) {
        let message =
            "after_sequence must be a sequence number of the hash chain and requires proof=true";
        return Err(ApiError::invalid("after_sequence", message));
    }
    let filter = query.event_filter()?;
    let source = if is_proof {
        // A filtered chain could not be verified.
        for name in EVENT_FILTERS {
            if query.text(name)?.is_some() {
                return Err(ApiError::invalid(
                    name,
                    "a proof covers the whole log; remove the filters",
                ));
            }
        }
        if format != Format::Ndjson {
            return Err(ApiError::invalid("format", "format must be ndjson for a proof"));
        }
        Source::Chain { after: after.unwrap_or(0), until: app.audit_log.chain_end(&caller).await? }
    } else {
        Source::Filtered { filter: Box::new(filter), before: None }
    };
    let name = format!(
        "audit-log-{}-{}.{}",
        caller.workspace(),
        app.env.clock.now().date(),
        format.extension(),
    );
    let caller = Caller::clone(&caller);
    let export = Export {
        app,
        caller,
        authorization,
        format,
        source,
        has_started: false,
        is_finished: false,
        unsent: None,
    };
    let chunks = stream::unfold(export, async |mut export| Some((export.next().await?, export)));
    let mut response = Body::from_stream(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// An export in progress.
struct Export {
    app: App,
    caller: Caller,
    authorization: LiveAuthorization<ReadOnly>,
    format: Format,
    source: Source,
    has_started: bool,
    is_finished: bool,
    /// The rest of the events that were read last.
    unsent: Option<HeldBody>,
}

/// The events that remain to be exported.
enum Source {
    /// The events that match a filter, older than the event `before`.
    Filtered { filter: Box<EventFilter>, before: Option<Uuid> },
    /// The events of the chain with sequence numbers after `after`, up to and including `until`.
    Chain { after: i64, until: i64 },
}

/// A line of a proof.
#[derive(Serialize)]
struct ProofLine<'a> {
    /// Null if the event is missing. That is legitimate only if a later event of the chain states
    /// that retention dropped its whole month; a verifier then takes `hash` as it is.
    event: Option<&'a Event<'static>>,
    event_id: EventId,
    hash: ChainHash,
    sequence: i64,
}

impl Export {
    /// Returns the next part of a chunk, or `None` at the end. Polled only when the client can take
    /// more (back-pressure). An error cuts the body off, so the client cannot take it for complete.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            match self.unsent.as_mut().and_then(HeldBody::next_frame) {
                Some(Ok(frame)) => return Some(Ok(frame)),
                Some(Err(error)) => return Some(Err(self.fail(error))),
                None if self.is_finished => return None,
                None => {}
            }
            match self.read_chunk().await {
                Ok(chunk) => {
                    let reader = Reader::Workspace(self.caller.workspace());
                    self.unsent = Some(self.app.unread_responses.hold(reader, &chunk));
                }
                Err(error) => return Some(Err(self.fail(error))),
            }
        }
    }

    /// Ends the export with an error.
    fn fail(&mut self, error: impl Error + Send + Sync + 'static) -> io::Error {
        self.is_finished = true;
        self.unsent = None;
        io::Error::other(error)
    }

    /// Reads the next events. The chunk is empty if none of them matches the filter.
    async fn read_chunk(&mut self) -> Result<Vec<u8>, StoreError> {
        let log = &self.app.audit_log;
        let mut chunk = Vec::new();
        match &mut self.source {
            Source::Filtered { filter, before } => {
                let page = log.export_page(&self.caller, filter, *before).await?;
                self.is_finished = !page.has_more;
                *before = page.items.last().map(|event| event.id.uuid());
                let matching = page.items.iter().filter(|event| filter.matches(event));
                match self.format {
                    Format::Ndjson => write_ndjson(&mut chunk, matching),
                    Format::Csv => write_csv(&mut chunk, matching, !self.has_started),
                }
            }
            Source::Chain { after, until } => {
                let sealed =
                    log.list_sealed_events(&self.caller, *after, *until, PROOF_CHUNK).await?;
                *after = sealed.last().map_or(*until, |last| last.sequence);
                self.is_finished = *after >= *until;
                let lines =
                    sealed.iter().map(|SealedEvent { sequence, id, hash, event }| ProofLine {
                        event: event.as_ref(),
                        event_id: *id,
                        hash: *hash,
                        sequence: *sequence,
                    });
                write_ndjson(&mut chunk, lines);
            }
        }
        self.has_started = true;
        // Check after the read: the credential may have been revoked meanwhile.
        if !self.authorization.is_valid().await {
            return Err(StoreError::Aborted);
        }
        Ok(chunk)
    }
}

fn write_ndjson(chunk: &mut Vec<u8>, lines: impl Iterator<Item = impl Serialize>) {
    for line in lines {
        if serde_json::to_writer(&mut *chunk, &line).is_ok() {
            chunk.push(b'\n');
        }
    }
}

fn write_csv<'a>(
    chunk: &mut Vec<u8>,
    events: impl Iterator<Item = &'a Event<'static>>,
    with_header: bool,
) {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(chunk);
    // Writing to memory cannot fail.
    if with_header {
        writer.write_record(COLUMNS).ok();
    }
    for event in events {
        let text = |text: Option<&str>| text.map_or_else(String::new, escape_formula);
        let request = &event.request;
        let target = event.target.as_ref();
        let metadata = serde_json::to_string(&event.metadata).unwrap_or_default();
        let record = [
            event.id.to_string(),
            timestamp::format(event.at),
            escape_formula(&event.action),
            escape_formula(&event.actor.kind),
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

/// Prefixes a text that spreadsheets would read as a formula with an apostrophe (OWASP, CSV
/// injection).
fn escape_formula(text: &str) -> String {
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
    fn csv_cell_that_looks_like_a_formula_is_escaped() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"] {
            assert_eq!(escape_formula(text), format!("'{text}"));
        }
        assert_eq!(escape_formula("prod=1"), "prod=1");
        assert_eq!(escape_formula(""), "");
    }
}
