use std::{collections::HashMap, fmt, time::Duration};

use uuid::Uuid;

use super::{Action, CredentialId, History, Operation, Reply};

/// A response that breaks a guarantee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// The credential was accepted, although its revocation had been answered before.
    AcceptedAfterRevocation { credential: CredentialId, operation: usize },
    /// The credential was refused, although it had been issued and no revocation had begun.
    RefusedGoodCredential { credential: Option<CredentialId>, operation: usize },
    /// A status that no fault explains, such as 500.
    UnexpectedStatus { status: u16, operation: usize },
    /// The request was answered with success, and has no event.
    MissingEvent { request: Uuid, operation: usize },
    /// The request has several events of its own.
    DuplicateEvent { request: Uuid, operation: usize },
}

impl Violation {
    fn operation(&self) -> usize {
        match *self {
            Self::AcceptedAfterRevocation { operation, .. }
            | Self::RefusedGoodCredential { operation, .. }
            | Self::UnexpectedStatus { operation, .. }
            | Self::MissingEvent { operation, .. }
            | Self::DuplicateEvent { operation, .. } => operation,
        }
    }

    /// Returns a line that names the operation.
    pub fn describe(&self, history: &History) -> String {
        let operation = &history.operations[self.operation()];
        format!("{self} by {operation}")
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AcceptedAfterRevocation { credential, .. } => {
                write!(f, "{credential:?} was accepted after its revocation")
            }
            Self::RefusedGoodCredential { credential, .. } => {
                write!(f, "{credential:?} was refused, and is good")
            }
            Self::UnexpectedStatus { status, .. } => write!(f, "unexpected status {status}"),
            Self::MissingEvent { request, .. } => write!(f, "no event of request {request}"),
            Self::DuplicateEvent { request, .. } => write!(f, "two events of request {request}"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, presented, target, node, began, ended, reply, .. } = self;
        write!(f, "{action:?} of {target:?} with {presented:?} on node {node}: {reply:?}, ")?;
        write!(f, "{} to {} ms", began.as_millis(), ended.as_millis())
    }
}

/// The life of one credential, as its operations show it.
#[derive(Debug, Clone, Copy)]
struct Life {
    /// The earliest end of an acknowledged creation.
    created_by: Duration,
    /// The earliest begin of a revocation that may have been done.
    revoked_from: Duration,
    /// The earliest end of an acknowledged revocation.
    revoked_by: Duration,
}

impl Default for Life {
    fn default() -> Self {
        Self { created_by: Duration::MAX, revoked_from: Duration::MAX, revoked_by: Duration::MAX }
    }
}

/// Finds all violations. `events` has the number of events of each request; `None` if the audit
/// log is not to be checked.
pub fn check(history: &History, events: Option<&HashMap<Uuid, i64>>) -> Vec<Violation> {
    let lives = read_lives(history);
    let mut violations = Vec::new();
    for (index, operation) in history.operations.iter().enumerate() {
        violations.extend(check_reply(history, &lives, index, operation));
        if let Some(events) = events {
            violations.extend(check_event(events, index, operation));
        }
    }
    violations
}

fn read_lives(history: &History) -> HashMap<CredentialId, Life> {
    let mut lives: HashMap<CredentialId, Life> = HashMap::new();
    for operation in &history.operations {
        let Some(target) = operation.target else { continue };
        let life = lives.entry(target).or_default();
        let is_acknowledged = operation.reply == Reply::Accepted;
        match operation.action {
            Action::Create if is_acknowledged => {
                life.created_by = life.created_by.min(operation.ended);
            }
            Action::Revoke if is_acknowledged || operation.reply.is_unknown() => {
                life.revoked_from = life.revoked_from.min(operation.began);
                if is_acknowledged {
                    life.revoked_by = life.revoked_by.min(operation.ended);
                }
            }
            _ => {}
        }
    }
    lives
}

fn check_reply(
    history: &History,
    lives: &HashMap<CredentialId, Life>,
    index: usize,
    operation: &Operation,
) -> Option<Violation> {
    let is_decided =
        |id: Option<CredentialId>| id.is_none_or(|id| history.is_decided(id, operation));
    let credential = operation.presented;
    if !is_decided(credential) || !is_decided(operation.target) {
        return None;
    }
    let life = credential.map(|id| lives.get(&id).copied().unwrap_or_default());
    match operation.reply {
        Reply::Accepted => credential
            .filter(|_| life.is_some_and(|life| life.revoked_by <= operation.began))
            .map(|credential| Violation::AcceptedAfterRevocation { credential, operation: index }),
        Reply::Refused => life
            .is_none_or(|life| {
                life.created_by <= operation.began && life.revoked_from > operation.ended
            })
            .then_some(Violation::RefusedGoodCredential { credential, operation: index }),
        Reply::Other(status) => Some(Violation::UnexpectedStatus { status, operation: index }),
        Reply::Unavailable | Reply::Missing => None,
    }
}

fn check_event(
    events: &HashMap<Uuid, i64>,
    index: usize,
    operation: &Operation,
) -> Option<Violation> {
    let request = operation.request_id?;
    match events.get(&request) {
        None if operation.reply == Reply::Accepted => {
            Some(Violation::MissingEvent { request, operation: index })
        }
        Some(2..) => Some(Violation::DuplicateEvent { request, operation: index }),
        _ => None,
    }
}

/// Returns the longest time to recover from faults. Each has its begin, the end of its part of the
/// history, and whether the service has recovered by then. `None` if it did not from one of them.
pub fn longest_recovery(
    history: &History,
    faults: &[(Duration, Duration, bool)],
) -> Option<Duration> {
    let times = faults.iter().map(|(fault, until, has_recovered)| {
        recovery_time(history, *fault, *until).filter(|_| *has_recovered)
    });
    times.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// Returns the time from a fault until each node answered each kind of operation again, up to
/// `until`. `None` if a kind of operation failed to the end. Kinds without an operation are left
/// out.
pub fn recovery_time(history: &History, fault: Duration, until: Duration) -> Option<Duration> {
    let mut last: HashMap<(usize, bool), (Duration, Option<Duration>)> = HashMap::new();
    for operation in &history.operations {
        if operation.ended < fault || operation.began >= until {
            continue;
        }
        let kind = (operation.node, operation.action == Action::Use);
        let (failed_until, succeeded_at) = last.entry(kind).or_default();
        if operation.reply.is_unknown() {
            *failed_until = (*failed_until).max(operation.ended);
        } else {
            *succeeded_at = (*succeeded_at).max(Some(operation.ended));
        }
    }
    let mut recovered = Duration::ZERO;
    for (failed_until, succeeded_at) in last.into_values() {
        if succeeded_at.is_none_or(|time| time < failed_until) && failed_until > Duration::ZERO {
            return None;
        }
        recovered = recovered.max(failed_until.saturating_sub(fault));
    }
    Some(recovered)
}
