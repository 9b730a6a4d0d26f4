//! The audit event of a request in flight, recorded also if the client disconnects.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::AccessLayer;
use crate::{
    audit::{self, AuditPermit},
    http::{
        ApiError,
        endpoint::{EndpointResult, status_of},
        error::EndpointError,
        surface::Surface,
    },
    model::{
        audit::{Metadata, NewEvent},
        principal::Caller,
        usage::{CLIENT_CLOSED_REQUEST, KeyUse},
    },
};

const SERVICE_UNAVAILABLE: u16 = 503;

/// The audit event of a request in flight. It is always recorded. If the request is dropped, the
/// status is 499, or 503 if its deadline has passed.
pub(super) struct PendingEvent<'a> {
    layer: &'a AccessLayer,
    caller: &'a Caller,
    key_use: KeyUse,
    is_late: &'a AtomicBool,
    permit: Option<AuditPermit>,
}

impl<'a> PendingEvent<'a> {
    pub(super) fn new(
        layer: &'a AccessLayer,
        caller: &'a Caller,
        key_use: KeyUse,
        is_late: &'a AtomicBool,
        permit: AuditPermit,
    ) -> Self {
        Self { layer, caller, key_use, is_late, permit: Some(permit) }
    }

    /// Records the event and returns the result, or 503 if the event could not be committed.
    pub(super) async fn complete(mut self, result: EndpointResult) -> EndpointResult {
        let Some(permit) = self.permit.take() else { return result };
        let event = self.event(status_of(&result).as_u16());
        if permit.record(event).await { result } else { Err(event_not_committed()) }
    }

    fn event(&self, status: u16) -> NewEvent {
        let mut event = audit::request_event(&self.layer.app.env, self.caller, status);
        event.key_use = self.key_use;
        // Of forward-auth, the event describes the request that the gateway received.
        if matches!(self.layer.surface, Surface::Gateway) {
            event.metadata = Metadata::ForwardAuth;
        }
        event
    }
}

impl Drop for PendingEvent<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let is_late = self.is_late.load(Relaxed);
            let status = if is_late { SERVICE_UNAVAILABLE } else { CLIENT_CLOSED_REQUEST };
            permit.send(self.event(status));
        }
    }
}

/// Answers 503: the change was made, but its audit event is not committed yet.
pub(super) fn event_not_committed() -> EndpointError {
    ApiError::unavailable("the audit event was not committed in time").into()
}
