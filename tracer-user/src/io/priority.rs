//! What our work claims of the processors: the writer that is protected comes first, but where it is a matter of microseconds.

/// Work of the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A moment's work, to be done at once: before all that is not of this kind (SCHED_RR). For nothing that takes long.
    Prompt,
    /// Has to keep up, though not at once. Takes its share, but interrupts nobody (SCHED_BATCH).
    Steady,
    /// And a tenth of that while others want the processor (nice 10): what waits for it is on a disk.
    Deferrable,
}

/// Sets what the calling thread claims. Where that is refused it stays as it is: nothing but speed depends on it.
pub fn claim(work: Work) {
    let (policy, sched_priority) = match work {
        Work::Prompt => (libc::SCHED_RR, 1),
        Work::Steady | Work::Deferrable => (libc::SCHED_BATCH, 0),
    };
    let param = libc::sched_param { sched_priority };
    // SAFETY: sets the calling thread's policy from a structure that outlives the call.
    unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
    if work == Work::Deferrable {
        let _ = rustix::process::nice(10);
    }
}
