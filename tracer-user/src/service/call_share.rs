//! Who may look at each system call of the machine. On the rung `syscall` the probes run at every call of every process, once
//! for each protection that has them, whatever the call is for: a few of them do no harm, dozens slow the whole machine down.

use std::path::Path;

use crate::capture::CaptureError;
use crate::service::run_dir::VolumeLock;

/// Each makes each call of the machine about a quarter of a microsecond longer (docs/OPERATIONS.md).
const AT_MOST: usize = 4;

/// Given back when dropped, or when the process ends.
pub(super) struct CallShare {
    _lock: VolumeLock,
}

impl CallShare {
    /// # Errors
    /// When as many as may already do.
    pub(super) fn take(run_dir: &Path) -> Result<CallShare, CaptureError> {
        let share =
            (0..AT_MOST).find_map(|number| VolumeLock::take(run_dir, &format!("origin-{number}")).ok());
        share.map(|_lock| CallShare { _lock }).ok_or(CaptureError::CallsShared { others: AT_MOST })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_look_at_each_call_and_the_next_when_one_of_them_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut shares: Vec<_> = (0..AT_MOST).map(|_| CallShare::take(dir.path()).unwrap()).collect();
        let why = CallShare::take(dir.path()).err().unwrap().to_string();
        assert!(why.contains("4 others") && why.contains("--origin-rung syscall"), "{why}");
        drop(shares.remove(1));
        CallShare::take(dir.path()).unwrap();
    }
}
