//! Threads that read the source, several ranges at once. They block when there is nothing to do: a pool that spins
//! would take the processor from the very writer that is protected.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::collect::Source;
use crate::io::AlignedBuf;
use crate::model::ByteRange;

/// Reads under way at once: a single one waits for the device most of its time.
const THREADS: usize = 8;
/// So few are read by the caller itself.
const INLINE_MAX: usize = 2;

type Bytes = std::io::Result<AlignedBuf>;

pub struct Readers<S> {
    source: Arc<S>,
    /// `None` only while it is dropped.
    requests: Option<Sender<(usize, ByteRange)>>,
    results: Receiver<(usize, Bytes)>,
    threads: Vec<JoinHandle<()>>,
}

impl<S: Source + Send + 'static> Readers<S> {
    pub fn start(source: Arc<S>) -> std::io::Result<Readers<S>> {
        let (requests, queue) = unbounded::<(usize, ByteRange)>();
        let (answers, results) = unbounded();
        let threads = (0..THREADS)
            .map(|number| {
                let (source, queue, answers) = (source.clone(), queue.clone(), answers.clone());
                std::thread::Builder::new().name(format!("reader-{number}")).spawn(move || {
                    for (index, range) in queue {
                        if answers.send((index, source.read(range))).is_err() {
                            break;
                        }
                    }
                })
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Readers { source, requests: Some(requests), results, threads })
    }

    /// One result for each range, in their order.
    pub fn read(&self, ranges: &[ByteRange]) -> Vec<Bytes> {
        let Some(requests) = self.requests.as_ref().filter(|_| ranges.len() > INLINE_MAX) else {
            return ranges.iter().map(|range| self.source.read(*range)).collect();
        };
        let lost = || Err(std::io::Error::other("a reader thread ended"));
        let mut read: Vec<Bytes> = ranges.iter().map(|_| lost()).collect();
        let sent =
            (0..).zip(ranges).filter(|(index, range)| requests.send((*index, **range)).is_ok()).count();
        for (index, bytes) in self.results.iter().take(sent) {
            read[index] = bytes;
        }
        read
    }
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
