//! What the answers are made of, asked for at most once a second however many look.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::service::{Survey, survey};
use crate::web::points::Timelines;

const FRESH: Duration = Duration::from_secs(1);

pub(super) struct State {
    run_dir: PathBuf,
    last: Mutex<Option<(Instant, Arc<Survey>)>>,
    pub(super) timelines: Timelines,
}

impl State {
    pub(super) fn new(run_dir: PathBuf) -> State {
        State { run_dir, last: Mutex::new(None), timelines: Timelines::default() }
    }

    /// Who comes while the volumes are asked waits for that answer.
    pub(super) async fn seen(&self) -> Arc<Survey> {
        let mut last = self.last.lock().await;
        if let Some((at, seen)) = &*last
            && at.elapsed() < FRESH
        {
            return seen.clone();
        }
        let seen = Arc::new(survey(&self.run_dir).await);
        *last = Some((Instant::now(), seen.clone()));
        seen
    }
}
