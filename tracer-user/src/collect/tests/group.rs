//! A volume without a file system as a member of a group.

use super::*;
use crate::collect::{GroupOrder, GroupPart, GroupStep};

struct Coordinator {
    orders: Sender<GroupOrder>,
    steps: Receiver<GroupStep>,
    outcome: Receiver<Result<MarkDone, String>>,
}

const LABEL: &str = "group:shop/now";
const THAW: GroupOrder = GroupOrder::Thaw { time: Timestamp(7) };

fn joined() -> (Bench, Coordinator) {
    let mut bench = Bench::new(100, 1000);
    bench.turn_until("a mark", |b| !b.marks.is_empty());
    let (orders, ordered) = channel();
    let (told, steps) = channel();
    let (reply, outcome) = sync_channel(1);
    let part = GroupPart {
        orders: ordered,
        tell: Box::new(move |step| told.send(step).unwrap_or_default()),
        at_rest: false,
        freeze_timeout: Duration::from_secs(1),
    };
    let mark = Command::Mark { label: LABEL.into(), reply: Some(reply), group: Some(part) };
    bench.commands.send(mark).unwrap();
    (bench, Coordinator { orders, steps, outcome })
}

impl Coordinator {
    fn awaits(&self, bench: &mut Bench, wanted: GroupStep) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            bench.turn();
            match self.steps.try_recv() {
                Ok(step) => return assert_eq!(step, wanted),
                Err(_) => assert!(Instant::now() < deadline, "not reached: {wanted:?}"),
            }
        }
    }

    fn until_drained(&self, bench: &mut Bench) {
        self.awaits(bench, GroupStep::Prepared { freezes: false });
        self.orders.send(GroupOrder::Freeze).unwrap();
        self.awaits(bench, GroupStep::Frozen);
        self.awaits(bench, GroupStep::Drained);
    }
}

fn write(bench: &Bench, block: usize, fill: u8) {
    bench.disk.disk().submit(1, block, fill);
    bench.disk.disk().complete(0, true);
}

/// Its journal is held for nothing any more.
fn another_mark_is_made(mut bench: Bench) {
    write(&bench, 9, 9);
    bench.ask("another");
    bench.turn_until("a mark", |b| b.marks.len() > 1);
    assert_eq!((&bench.marks[1].label[..], bench.marks[1].class), ("another", PointClass::Crash));
    assert!(bench.marks.len() == 2 && bench.wrong.is_empty());
}

#[test]
fn the_mark_of_a_group_is_of_the_time_all_stood_still_and_made_when_all_are_known_to_have() {
    let (mut bench, coordinator) = joined();
    write(&bench, 3, 3);
    coordinator.until_drained(&mut bench);
    let then = bench.disk.disk().bytes.clone();
    coordinator.orders.send(THAW).unwrap();
    coordinator.awaits(&mut bench, GroupStep::Held);
    // Not of that instant any more.
    write(&bench, 4, 4);
    (0..50).for_each(|_| bench.turn());
    assert_eq!(bench.marks.len(), 1, "not all have held yet");
    coordinator.orders.send(GroupOrder::Commit).unwrap();
    bench.turn_until("a mark", |b| b.marks.len() == 2);
    assert_eq!((&bench.marks[1].label[..], bench.marks[1].class), (LABEL, PointClass::Crash));
    assert!(bench.durable == then, "the mark is of another instant");
    bench.turn_until("what came later", |b| b.image == b.disk.disk().bytes);
    // It is owed until a mark says it.
    assert!(!bench.disk.disk().current.is_empty());
}

#[test]
fn what_is_written_before_all_stand_still_is_in_no_mark_of_a_group() {
    let (mut bench, coordinator) = joined();
    coordinator.until_drained(&mut bench);
    write(&bench, 4, 4);
    // Dropped with it: the answer is there by then.
    let _ = coordinator.orders.send(THAW);
    let deadline = Instant::now() + Duration::from_secs(5);
    let why = loop {
        bench.turn();
        match coordinator.outcome.try_recv() {
            Ok(outcome) => break outcome.unwrap_err(),
            Err(_) => assert!(Instant::now() < deadline),
        }
    };
    assert!(why.contains("it was written"), "{why}");
    assert!(coordinator.steps.try_recv().is_err());
    another_mark_is_made(bench);
}

#[test]
fn a_member_that_hears_no_more_makes_no_mark() {
    for steps in 0..4 {
        let (mut bench, coordinator) = joined();
        match steps {
            0 => {}
            1 => coordinator.awaits(&mut bench, GroupStep::Prepared { freezes: false }),
            _ => coordinator.until_drained(&mut bench),
        }
        if steps == 3 {
            coordinator.orders.send(THAW).unwrap();
            coordinator.awaits(&mut bench, GroupStep::Held);
        }
        drop(coordinator.orders);
        another_mark_is_made(bench);
    }
}
