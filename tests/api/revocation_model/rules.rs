//! The rules of the protocol. Each one can be followed or broken.

/// A rule of docs/revocation.md, and the behavior without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A look-up runs on the server that granted the lease. Broken: on any server.
    LookupOnLeaseServer,
    /// A look-up is sent under a lease only. Broken: also without one.
    LookupUnderLease,
    /// A look-up that began before an invalidation is not cached. Broken: it is.
    OutdatedLookupNotCached,
    /// A lease starts when its renewal has committed. Broken: when the statement has run.
    LeaseAfterCommit,
    /// A lease runs from the sending of the renewal. Broken: from the answer.
    LeaseFromSending,
    /// A node names the token of its generation when it reads or renews. Broken: it sends a number.
    GenerationToken,
    /// An acknowledgement names the token too. Broken: it sends a number.
    AcknowledgementToken,
    /// An invalidation names the token of its predecessor. Broken: a generation is known as long as
    /// its own row is kept.
    PredecessorToken,
    /// A node that misses an invalidation clears its cache. Broken: it skips what is missing.
    GapClears,
    /// A node that gets a lease in another history clears its cache. Broken: it keeps the cache.
    NewHistoryClears,
    /// All statements of a fence run on the server of the commit. Broken: on any server.
    FenceOnOneServer,
    /// The fence waits until the counter of renewals stands still. Broken: by PostgreSQL's clock.
    CounterInsteadOfClock,
    /// A counter is watched on one server. Broken: the watch goes on after a change of servers.
    WatchOnOneServer,
    /// Nodes wait from the arrival of an answer. Broken: from the sending of its query.
    WaitFromArrival,
    /// Nodes wait longer than a lease, because clocks differ. Broken: as long as a lease.
    Tolerance,
    /// A dead node is marked before the answer, and cannot renew. Broken: it is not marked.
    Mark,
    /// Each registration has a row of its own. Broken: it overwrites the row of the node.
    NewRowForRegistration,
    /// A new history answers no fence until all earlier leases are over. Broken: it does.
    NewHistorySettles,
    /// A key is created only in a settled history. Broken: at once.
    CreationSettles,
    /// A node ends its lease before it deregisters. Broken: afterwards.
    LeaseEndsBeforeDeregistration,
    /// A node renews and acknowledges on the server of its lease, until that is over. Broken: on
    /// any server.
    NodeOnLeaseServer,
    /// In quarantine no node registers. Broken: it does.
    QuarantineRefusesRegistration,
    /// In quarantine no node renews. Broken: it does.
    QuarantineRefusesRenewal,
    /// In quarantine no request is answered. Broken: revocations are.
    QuarantineRefusesRequests,
    /// A database with another identity is in quarantine. Broken: it is not.
    OtherIdentityQuarantines,
    /// A lost generation that no failover explains begins the quarantine. Broken: it does not.
    LostGenerationQuarantines,
    /// A failover explains that another history lacks the last minute. Broken: nothing does.
    FailoverExplainsLoss,
    /// The operator begins the quarantine before the first node starts. Broken: nodes just start.
    OperatorBeginsQuarantine,
    /// The quarantine ends after all leases from before it. Broken: at any time.
    QuarantineOutlastsLeases,
    /// The end of the quarantine revokes again what was revoked after the backup. Broken: it does
    /// not.
    FinishRevokesAgain,
    /// The end of the quarantine ends all sessions. Broken: it does not.
    FinishEndsSessions,
    /// The end of the quarantine marks all nodes. Broken: they renew, with the cache that they had.
    FinishMarks,
}

/// The rules that are followed.
#[derive(Debug, Clone, Copy)]
pub struct Rules(u32);

impl Rules {
    /// All rules, with those that the protocol leaves out.
    pub const ALL: Self = Self(u32::MAX);

    /// The protocol of docs/revocation.md.
    pub const PROTOCOL: Self =
        Self::ALL.without(Rule::CreationSettles).without(Rule::NodeOnLeaseServer);

    /// The protocol before failovers were considered: it knew one server, and believed its clock.
    pub const FIRST_PROTOCOL: Self = Self::PROTOCOL
        .without(Rule::LookupOnLeaseServer)
        .without(Rule::LookupUnderLease)
        .without(Rule::GenerationToken)
        .without(Rule::AcknowledgementToken)
        .without(Rule::NewHistoryClears)
        .without(Rule::FenceOnOneServer)
        .without(Rule::CounterInsteadOfClock)
        .without(Rule::WatchOnOneServer)
        .without(Rule::Mark)
        .without(Rule::NewRowForRegistration)
        .without(Rule::NewHistorySettles)
        .without(Rule::LostGenerationQuarantines);

    pub const fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u32))
    }

    pub const fn with(self, rule: Rule) -> Self {
        Self(self.0 | (1 << rule as u32))
    }

    pub const fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u32) != 0
    }
}
