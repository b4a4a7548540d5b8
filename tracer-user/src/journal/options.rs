use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a journal is written; none of it changes how it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// A segment is sealed before it grows past this. One frame always fits.
    pub segment_bytes_max: u64,
    /// Records are gathered up to this many bytes, then compressed and written as one frame. A larger record gets a
    /// frame of its own. Values above 8 MiB count as 8 MiB.
    pub frame_bytes_max: usize,
    pub sync: SyncPolicy,
    /// 0 stores frames as they are.
    pub zstd_level: i32,
}

impl Default for JournalOptions {
    fn default() -> Self {
        JournalOptions {
            segment_bytes_max: 256 << 20,
            frame_bytes_max: 1 << 20,
            sync: SyncPolicy::default(),
            zstd_level: 1,
        }
    }
}

/// When records become durable without being asked to. Marks are always synced, by whoever makes them calling
/// [`Writer::sync`](crate::journal::Writer::sync).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Only with a mark.
    Mark,
    /// With every frame.
    Always,
    /// At most this long after they were appended.
    Interval(Duration),
}

impl Default for SyncPolicy {
    fn default() -> Self {
        SyncPolicy::Interval(Duration::from_secs(1))
    }
}

impl fmt::Display for SyncPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SyncPolicy::Mark => "mark",
            SyncPolicy::Always => "always",
            SyncPolicy::Interval(_) => "interval",
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a sync policy is mark, always or interval, not {0:?}")]
pub struct BadSyncPolicy(String);

impl FromStr for SyncPolicy {
    type Err = BadSyncPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "mark" => Ok(SyncPolicy::Mark),
            "always" => Ok(SyncPolicy::Always),
            "interval" => Ok(SyncPolicy::default()),
            _ => Err(BadSyncPolicy(text.to_owned())),
        }
    }
}
