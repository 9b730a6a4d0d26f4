//! The audit log: how events come to be written, sealed, read and checked.
//!
//! A change and its event share the transaction of the change (`store::audit::insert`). Everything
//! else (reads, refusals, failed sign-ins) goes through [`AuditWriter`]: a bounded queue, written in
//! batches by one task. Ids are made before an event is queued, so a batch that is retried counts once.

mod follower;
mod reader;
mod retention;
mod sealer;
mod unknown;
pub mod verifier;
mod writer;

pub use follower::{Follower, Followers};
pub use reader::AuditLog;
pub use retention::Retention;
pub use sealer::{SealCounts, Sealer};
pub use unknown::UnknownCredentials;
pub use writer::{AuditCounts, AuditWriter, Permit, WriterTask};

use crate::{
    env::Env,
    model::{
        audit::{Action, NewEvent},
        id::WorkspaceId,
        principal::Caller,
    },
};

/// An event of what a caller does in its own workspace, answered with this status.
#[must_use]
pub fn event(env: &Env, caller: &Caller, action: Action, status: u16) -> NewEvent {
    event_in(env, caller, caller.workspace(), action, status)
}

/// The same in another workspace, where a person is in several.
#[must_use]
pub fn event_in(
    env: &Env,
    caller: &Caller,
    workspace: WorkspaceId,
    action: Action,
    status: u16,
) -> NewEvent {
    let actor = (&*caller.principal).into();
    NewEvent::new(env.new_id(), workspace, action, actor).in_request(
        &caller.request,
        status,
        env.clock.monotonic(),
    )
}
