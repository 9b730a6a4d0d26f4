//! The audit log: writes, seals, reads and verifies audit events.
//!
//! A change and its event share one transaction: [`insert`](crate::store::audit::insert) returns
//! the [`Audited`](crate::store::Audited) that the commit requires. All other events (reads,
//! refusals, failed sign-ins) go through [`AuditWriter`]: a bounded queue, from which one task
//! writes in batches. An event gets its id before it is queued, so a retried batch never duplicates
//! it.
//!
//! [`Sealer`] appends events to the hash chain of their workspace, [`verifier`] checks the chain,
//! and [`Retention`] drops old months.

mod reader;
mod retention;
mod sealer;
mod stream_subscriptions;
mod unknown_credentials;
pub mod verifier;
mod writer;

pub use reader::AuditLog;
pub use retention::Retention;
pub use sealer::{SealCounts, Sealer};
pub use stream_subscriptions::{StreamSubscription, StreamSubscriptions};
pub use unknown_credentials::UnknownCredentialCounts;
pub use writer::{AuditCounts, AuditPermit, AuditWriter, AuditWriterTask};

use crate::{
    env::Env,
    model::{
        audit::{Action, Metadata, NewEvent},
        id::WorkspaceId,
        principal::{Caller, Credential},
    },
};

/// Creates an event of a caller in its current workspace; `status` is the status of the response.
#[must_use]
pub fn event(env: &Env, caller: &Caller, action: Action, status: u16) -> NewEvent {
    event_in_workspace(env, caller, caller.workspace(), action, status)
}

/// Creates the event of a caller's request; `status` is the status of the response.
#[must_use]
pub fn request_event(env: &Env, caller: &Caller, status: u16) -> NewEvent {
    let mut event = event(env, caller, Action::Request, status);
    if let Credential::Grant { id, user, .. } = &caller.principal.credential {
        let user = user.map(|(user_id, _)| user_id);
        event.metadata = Metadata::Grant { grant: *id, user };
    }
    event
}

/// Creates an event of a caller in another workspace, for users who are in several.
#[must_use]
pub fn event_in_workspace(
    env: &Env,
    caller: &Caller,
    workspace: WorkspaceId,
    action: Action,
    status: u16,
) -> NewEvent {
    let actor = (&*caller.principal).into();
    NewEvent::new(env.new_id(), workspace, action, actor).with_request(
        &caller.request,
        status,
        env.clock.monotonic(),
    )
}
