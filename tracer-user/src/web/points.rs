//! Points of a volume, from its journal. Read anew only after another mark: a journal may be long.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::journal::{Journal, Listing};
use crate::model::MarkId;

/// A journal on a disk that hangs is not waited for longer.
const READ_TIME: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(super) struct Timelines {
    known: Mutex<HashMap<String, Known>>,
    /// One journal is read at a time.
    reading: tokio::sync::Mutex<()>,
}

struct Known {
    journal: PathBuf,
    newest: Option<MarkId>,
    listing: Arc<Listing>,
}

impl Timelines {
    /// Or why not, for people.
    pub(super) async fn of(
        &self,
        name: &str,
        journal: PathBuf,
        newest: Option<MarkId>,
    ) -> Result<Arc<Listing>, String> {
        let _one = self.reading.lock().await;
        if let Some(known) = self.known(name, &journal, newest) {
            return Ok(known);
        }
        let dir = journal.clone();
        let read = tokio::task::spawn_blocking(move || Listing::of(&Journal::open(&dir)?));
        let listing = match tokio::time::timeout(READ_TIME, read).await {
            Ok(Ok(Ok(listing))) => Arc::new(listing),
            Ok(Ok(Err(error))) => return Err(format!("{:#}", anyhow::Error::from(error))),
            Ok(Err(_)) => return Err("the journal could not be read".into()),
            Err(_) => return Err(format!("the journal was not read within {READ_TIME:?}")),
        };
        let known = Known { journal, newest, listing: listing.clone() };
        self.known.lock().expect("nobody panics with it locked").insert(name.to_owned(), known);
        Ok(listing)
    }

    fn known(&self, name: &str, journal: &PathBuf, newest: Option<MarkId>) -> Option<Arc<Listing>> {
        let known = self.known.lock().expect("nobody panics with it locked");
        let found = known.get(name)?;
        (found.journal == *journal && found.newest == newest).then(|| found.listing.clone())
    }

    /// Forgets volumes that are protected no more.
    pub(super) fn keep(&self, names: &[&str]) {
        let mut known = self.known.lock().expect("nobody panics with it locked");
        known.retain(|name, _| names.contains(&name.as_str()));
    }
}
