use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex};

use crate::collect::Entry;

/// The journal's queue as long as there is one.
#[derive(Clone, Default)]
pub struct JournalSlot(Arc<Mutex<Option<SyncSender<Entry>>>>);

impl JournalSlot {
    pub fn set(&self, queue: Option<SyncSender<Entry>>) {
        *self.0.lock().expect("nobody panics with the queue locked") = queue;
    }

    /// Gives the entry back when it can't be taken now.
    pub fn offer(&self, entry: Entry) -> Option<Entry> {
        let mut slot = self.0.lock().expect("nobody panics with the queue locked");
        let Some(queue) = slot.as_ref() else { return Some(entry) };
        match queue.try_send(entry) {
            Ok(()) => None,
            Err(TrySendError::Full(entry)) => Some(entry),
            Err(TrySendError::Disconnected(entry)) => {
                *slot = None;
                Some(entry)
            }
        }
    }

    pub fn is_set(&self) -> bool {
        self.0.lock().expect("nobody panics with the queue locked").is_some()
    }
}
