//! Deadlines that the clock cannot represent.

use std::time::{Duration, Instant};

/// Stands for a time span that the clock cannot represent.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// `start + span`, or a century after `start` if the clock cannot represent that.
pub(crate) fn saturating_add(start: Instant, span: Duration) -> Instant {
    start.checked_add(span).unwrap_or_else(|| start + CENTURY)
}
