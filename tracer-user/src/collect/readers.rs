//! Threads that read the source, several ranges at once, and hash what is to be compared. They block when there is
//! nothing to do: a pool that spins would take the processor from the very writer that is protected.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::collect::compare::suspects;
use crate::collect::{ReplicaHashes, Source};
use crate::io::AlignedBuf;
use crate::io::priority::{Work, claim};
use crate::model::{ByteRange, ByteRangeSet};

/// Reads under way at once: a single one waits for the device most of its time.
const THREADS: usize = 8;
/// So few are read by the caller itself.
const INLINE_MAX: usize = 2;

/// A range to be read.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub range: ByteRange,
    /// With the replica's hashes.
    pub compare: bool,
}

/// What a range holds.
pub struct Read {
    pub bytes: AlignedBuf,
    /// Where it may differ from the replica.
    pub suspects: ByteRangeSet,
}

type Answer = std::io::Result<Read>;

pub struct Readers<S> {
    source: Arc<S>,
    hashes: Option<Arc<dyn ReplicaHashes>>,
    /// `None` only while it is dropped.
    requests: Option<Sender<(usize, Wanted)>>,
    results: Receiver<(usize, Answer)>,
    threads: Vec<JoinHandle<()>>,
}

impl<S: Source + Send + 'static> Readers<S> {
    pub fn start(source: Arc<S>, hashes: Option<Arc<dyn ReplicaHashes>>) -> std::io::Result<Readers<S>> {
        let (requests, queue) = unbounded::<(usize, Wanted)>();
        let (answers, results) = unbounded();
        let threads = (0..THREADS)
            .map(|number| {
                let (source, hashes) = (source.clone(), hashes.clone());
                let (queue, answers) = (queue.clone(), answers.clone());
                std::thread::Builder::new().name(format!("reader-{number}")).spawn(move || {
                    claim(Work::Steady);
                    for (index, wanted) in queue {
                        if answers.send((index, read(&*source, hashes.as_deref(), wanted))).is_err() {
                            break;
                        }
                    }
                })
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Readers { source, hashes, requests: Some(requests), results, threads })
    }

    /// One result for each range, in their order.
    pub fn read(&self, ranges: &[Wanted]) -> Vec<Answer> {
        let Some(requests) = self.requests.as_ref().filter(|_| ranges.len() > INLINE_MAX) else {
            return ranges
                .iter()
                .map(|wanted| read(&*self.source, self.hashes.as_deref(), *wanted))
                .collect();
        };
        let lost = || Err(std::io::Error::other("a reader thread ended"));
        let mut answers: Vec<Answer> = ranges.iter().map(|_| lost()).collect();
        let sent =
            (0..).zip(ranges).filter(|(index, wanted)| requests.send((*index, **wanted)).is_ok()).count();
        for (index, answer) in self.results.iter().take(sent) {
            answers[index] = answer;
        }
        answers
    }
}

fn read(source: &impl Source, hashes: Option<&dyn ReplicaHashes>, wanted: Wanted) -> Answer {
    let bytes = source.read(wanted.range)?;
    let suspects = match hashes.filter(|_| wanted.compare) {
        Some(hashes) => suspects(wanted.range, &bytes, hashes),
        None => [wanted.range].into_iter().collect(),
    };
    Ok(Read { bytes, suspects })
}

impl<S> Drop for Readers<S> {
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}
