//! Brings what was appended to the disk, from time to time, so that a save does not wait for it.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

#[derive(Default)]
struct Shared {
    /// To be synced.
    dirty: Option<Arc<File>>,
    /// The first failure; after it nothing is known of what is on the disk.
    failed: Option<std::io::Error>,
}

pub struct Syncer {
    shared: Arc<Mutex<Shared>>,
    /// Dropped to end the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// What was handed over is synced every `interval`.
    pub fn start(interval: Duration) -> Syncer {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (stop, stopped) = mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut last = false;
            while !last {
                last = stopped.recv_timeout(interval) != Err(mpsc::RecvTimeoutError::Timeout);
                let dirty = locked(&of_thread).dirty.take();
                let Some(file) = dirty else { continue };
                if let Err(error) = file.sync_data() {
                    locked(&of_thread).failed.get_or_insert(error);
                }
            }
        });
        Syncer { shared, stop: Some(stop), thread: Some(thread) }
    }

    pub fn appended(&self, file: &Arc<File>) {
        locked(&self.shared).dirty.get_or_insert_with(|| Arc::clone(file));
    }

    /// A failure since, which is told once.
    pub fn check(&self) -> std::io::Result<()> {
        locked(&self.shared).failed.take().map_or(Ok(()), Err)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It panics nowhere.
            let _ = thread.join();
        }
    }
}

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
