//! What the work right of the ring claims of the processors: the writer that is protected comes first.

/// Work of the calling thread that has to keep up, though not at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Takes its share, but interrupts nobody (SCHED_BATCH).
    Steady,
    /// And a tenth of that while others want the processor (nice 10): what waits for it is on a disk.
    Deferrable,
}

/// Sets what the calling thread claims. Where that is refused it stays as it is: nothing but speed depends on it.
pub fn claim(work: Work) {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: sets the calling thread's policy from a structure that outlives the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const param) };
    if work == Work::Deferrable {
        let _ = rustix::process::nice(10);
    }
}
