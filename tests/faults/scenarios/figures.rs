use std::{collections::HashMap, fmt, time::Duration};

use uuid::Uuid;

use crate::faults::histories::{History, Reply, Violation, check};

/// The number of violations that a failed test prints.
const PRINTED_VIOLATIONS: usize = 5;

/// The time after which a service answers as before a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    NotMeasured,
    After(Duration),
    /// It did not until the end of the scenario.
    Never,
}

impl From<Option<Duration>> for Recovery {
    fn from(time: Option<Duration>) -> Self {
        time.map_or(Self::Never, Self::After)
    }
}

/// The result of a scenario: one line of the tables in docs/faults.md.
#[derive(Debug)]
pub struct Figures {
    pub title: String,
    /// The number of operations that clients tried.
    pub operations: usize,
    /// Responses that accept a revoked credential.
    pub accepted_after_revocation: usize,
    /// Responses that refuse a good credential.
    pub refused: usize,
    /// Responses that no fault explains, such as a 500.
    pub unexpected: usize,
    /// Acknowledged requests without an event, or with several.
    pub wrong_events: usize,
    /// Credentials that were accepted after their revocation.
    pub revived: usize,
    /// 503 responses, and requests without a response.
    pub unavailable: usize,
    pub recovery: Recovery,
    /// Further figures.
    pub remark: String,
    /// Another rule that was broken.
    pub failure: Option<String>,
    /// The reason why the wrong answers cannot be avoided, if they cannot.
    pub explanation: Option<&'static str>,
    violations: Vec<String>,
}

impl Figures {
    /// Checks a history. `events` has the number of events of each request, if they are compared.
    pub fn of(
        title: impl Into<String>,
        history: &History,
        events: Option<&HashMap<Uuid, i64>>,
        recovery: Recovery,
    ) -> Self {
        let violations = check(history, events);
        let count = |is_kind: fn(&Violation) -> bool| {
            violations.iter().filter(|violation| is_kind(violation)).count()
        };
        let mut revived: Vec<_> = violations
            .iter()
            .filter_map(|violation| match violation {
                Violation::AcceptedAfterRevocation { credential, .. } => Some(*credential),
                _ => None,
            })
            .collect();
        revived.sort();
        revived.dedup();
        Self {
            title: title.into(),
            operations: history.operations.len(),
            accepted_after_revocation: count(|violation| {
                matches!(violation, Violation::AcceptedAfterRevocation { .. })
            }),
            refused: count(|violation| {
                matches!(violation, Violation::RefusedGoodCredential { .. })
            }),
            unexpected: count(|violation| matches!(violation, Violation::UnexpectedStatus { .. })),
            wrong_events: count(|violation| {
                matches!(
                    violation,
                    Violation::MissingEvent { .. } | Violation::DuplicateEvent { .. }
                )
            }),
            revived: revived.len(),
            unavailable: history.count(Reply::is_unknown),
            recovery,
            remark: String::new(),
            failure: None,
            explanation: None,
            violations: violations.iter().map(|violation| violation.describe(history)).collect(),
        }
    }

    /// Adds further figures.
    pub fn with_remark(self, remark: impl Into<String>) -> Self {
        Self { remark: remark.into(), ..self }
    }

    /// States another rule that was broken, if it was.
    pub fn failed(self, failure: Option<String>) -> Self {
        Self { failure, ..self }
    }

    /// States why the wrong answers of this scenario cannot be avoided.
    pub fn explained(self, explanation: &'static str) -> Self {
        Self { explanation: Some(explanation), ..self }
    }

    /// True if no guarantee was broken and the service has recovered.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.failure.is_none() && self.recovery != Recovery::Never
    }

    /// Returns the first violations, one a line.
    pub fn details(&self) -> String {
        let lines = self.violations.iter().take(PRINTED_VIOLATIONS).chain(&self.failure);
        lines.flat_map(|line| ["\n  ", line]).collect()
    }

    /// Prints the figures, and fails the test unless they are clean.
    #[track_caller]
    pub fn assert_clean(&self) {
        println!("{self}");
        assert!(self.is_clean(), "{self}{}", self.details());
    }

    /// Returns the cells of the table, in the order of [`Self::HEAD`].
    pub fn cells(&self) -> [String; 8] {
        let recovery = match self.recovery {
            Recovery::NotMeasured => "–".to_owned(),
            Recovery::After(time) => format!("{:.1} s", time.as_secs_f64()),
            Recovery::Never => "never".to_owned(),
        };
        [
            self.operations.to_string(),
            self.accepted_after_revocation.to_string(),
            self.refused.to_string(),
            self.unexpected.to_string(),
            self.wrong_events.to_string(),
            self.revived.to_string(),
            self.unavailable.to_string(),
            recovery,
        ]
    }

    /// Returns what the table does not say: broken rules, their explanation, and further figures.
    pub fn notes(&self) -> Vec<String> {
        let remark = (!self.remark.is_empty()).then(|| format!("{}.", self.remark));
        let explanation = self.explanation.map(str::to_owned);
        [self.failure.clone(), explanation, remark].into_iter().flatten().collect()
    }

    /// The head of the table.
    pub const HEAD: [&str; 8] = [
        "operations",
        "accepted after 204 (responses)",
        "valid credential refused",
        "other status",
        "events lost or doubled",
        "accepted after 204 (credentials)",
        "503",
        "time to recover",
    ];
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.title)?;
        for (name, cell) in Self::HEAD.iter().zip(self.cells()) {
            write!(f, "; {name}: {cell}")?;
        }
        if self.remark.is_empty() { Ok(()) } else { write!(f, "; {}", self.remark) }
    }
}
