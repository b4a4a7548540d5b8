//! A protection's end of the mark of a group: what the service says goes to the collector, and how far that is goes back. When the
//! service says no more, however that comes, the collector gives the mark up.

use std::sync::mpsc::{Sender, channel, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc::unbounded_channel;

use crate::collect::{Command, GroupPart};
use crate::service::protocol::{Response, Talk, parse_order};

pub(super) async fn join(
    mut talk: Talk,
    label: String,
    freeze_timeout: Duration,
    at_rest: bool,
    commands: &Sender<Command>,
) {
    let (orders, ordered) = channel();
    // There are four of them.
    let (told, mut steps) = unbounded_channel();
    let (reply, outcome) = sync_channel(1);
    let tell = Box::new(move |step| {
        // It ends with this connection.
        let _ = told.send(step);
    });
    let group = Some(GroupPart { orders: ordered, tell, at_rest, freeze_timeout });
    if commands.send(Command::Mark { label, reply: Some(reply), group }).is_err() {
        return talk.say(&Response::Error("the protection is ending".into())).await;
    }
    let mut outcome = tokio::task::spawn_blocking(move || outcome.recv());
    loop {
        tokio::select! {
            Some(step) = steps.recv() => talk.say(&Response::of(&step)).await,
            line = talk.line() => match line.as_deref().map(parse_order) {
                Some(Ok(order)) => drop(orders.send(order)),
                Some(Err(why)) => return talk.say(&Response::Error(why)).await,
                None => return,
            },
            outcome = &mut outcome => {
                let response = match outcome {
                    Ok(Ok(Ok(done))) => Response::of(&done),
                    Ok(Ok(Err(why))) => Response::Error(why),
                    _ => Response::Error("the protection ended before the mark was made".into()),
                };
                return talk.say(&response).await;
            }
        }
    }
}
