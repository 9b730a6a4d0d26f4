//! The steps that the model interleaves.

use std::fmt;

/// A statement of the serving node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementKind {
    Registration,
    Renewal,
    Read,
    Acknowledgement,
    Deregistration,
}

/// A step. Numbers are indexes of servers: 0 is P1, 1 is P2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Tick,
    /// The node sends a statement, and a server runs it.
    Run(StatementKind, usize),
    ReceiveAnswer,
    LoseAnswer,
    SendLate(StatementKind),
    SendLateMark(usize),
    RunLateStatement(usize),
    /// A request begins, and a server runs its look-up.
    LookUp(usize),
    ReceiveLookup,
    CreateKey(usize),
    RevokeOther(usize),
    RevokeKey(usize),
    Mark(usize),
    /// The fence of a revocation on the first server is passed by a look at the second one.
    AnswerRevocation(usize, usize),
    Replicate,
    FailOver,
    /// P2 is promoted, and has the commit of a renewal that P1 had not acknowledged.
    FailOverWithRenewal,
    RestartServer(usize),
    Restore,
    FinishRestore,
    RestartNode,
    StepClockForward,
    StepClockBack,
    Prune(usize),
}

impl fmt::Display for StatementKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registration => "registration",
            Self::Renewal => "renewal",
            Self::Read => "query of invalidations",
            Self::Acknowledgement => "acknowledgement",
            Self::Deregistration => "deregistration",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = |index: usize| ["P1", "P2"][index];
        match *self {
            Self::Tick => write!(f, "time passes"),
            Self::Run(kind, at) => write!(f, "{} runs the node's {kind}", server(at)),
            Self::ReceiveAnswer => write!(f, "the node receives the answer"),
            Self::LoseAnswer => write!(f, "the answer is lost"),
            Self::SendLate(kind) => {
                write!(f, "the node sends a {kind} and gives up; it is still on the way")
            }
            Self::SendLateMark(at) => write!(
                f,
                "the counter stood still on {}: the revoking node sends a mark and gives up; it is \
                 still on the way",
                server(at)
            ),
            Self::RunLateStatement(at) => write!(f, "{} runs the late statement", server(at)),
            Self::LookUp(at) => {
                write!(f, "a request begins; {} runs its look-up", server(at))
            }
            Self::ReceiveLookup => write!(f, "the node receives the look-up and accepts the key"),
            Self::CreateKey(at) => write!(f, "the key is created on {}", server(at)),
            Self::RevokeOther(at) => write!(f, "another credential is revoked on {}", server(at)),
            Self::RevokeKey(at) => write!(f, "the key is revoked on {}", server(at)),
            Self::Mark(at) => {
                write!(f, "the counter stood still: the node is marked on {}", server(at))
            }
            Self::AnswerRevocation(at, seen) if at == seen => {
                write!(f, "the fence on {} is passed: 204", server(at))
            }
            Self::AnswerRevocation(_, seen) => {
                write!(f, "the fence looks at {} and is passed: 204", server(seen))
            }
            Self::Replicate => write!(f, "P2 receives the commits of P1"),
            Self::FailOver => write!(f, "P2 is promoted"),
            Self::FailOverWithRenewal => {
                write!(f, "P2 is promoted, with a renewal of the node that P1 did not answer")
            }
            Self::RestartServer(at) => write!(f, "{} crashes and starts again", server(at)),
            Self::Restore => write!(f, "the database is restored from the backup on P2"),
            Self::FinishRestore => write!(f, "the operator finishes the restore"),
            Self::RestartNode => write!(f, "the node is killed and starts again"),
            Self::StepClockForward => write!(f, "PostgreSQL's clock goes 1 h ahead"),
            Self::StepClockBack => write!(f, "PostgreSQL's clock goes 1 h back"),
            Self::Prune(index) => write!(f, "the invalidation {} is pruned", index + 1),
        }
    }
}
