/// The cost of a password hash with argon2id (RFC 9106), on one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordCost {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
}

impl PasswordCost {
    /// OWASP's recommendation: 19 MiB of memory and two passes.
    pub const RECOMMENDED: Self = Self { memory_kib: 19_456, passes: 2 };
}
