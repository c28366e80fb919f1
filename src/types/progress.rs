//! How a long step says how far it is, without knowing who watches.

/// Who watches a long step: a terminal, a log, or nobody.
pub trait Progress: Sync {
    /// A step begins that will handle `total_bytes` bytes (0 if unknown).
    fn begin(&self, step: &str, total_bytes: u64);

    /// `bytes` more are handled.
    fn advance(&self, bytes: u64);

    /// The step is over.
    fn end(&self);

    /// A fact worth a line.
    fn note(&self, line: &str);
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn note(&self, _: &str) {}
}
