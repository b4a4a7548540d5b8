//! What a writer leaves open, the next one seals.

use super::*;

fn zero(writer: &mut Writer<FaultyStore>) {
    writer.append(Timestamp(1), RecordBody::Zero(ByteRange::new(0, 512))).unwrap();
}

fn open(store: &FaultyStore) -> (Writer<FaultyStore>, crate::journal::Recovery) {
    Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)).unwrap()
}

#[test]
fn a_segment_that_was_left_open_is_sealed_and_never_appended_to() {
    let store = FaultyStore::new(4096);
    let mut writer = Writer::create_in(store.clone(), &sample_info(), tiny(SyncPolicy::Mark)).unwrap();
    (0..3).for_each(|_| zero(&mut writer));
    writer.sync().unwrap();
    drop(writer);
    let name = segments(&store).remove(0);
    let left = store.content(&name);
    let (mut writer, recovery) = open(&store);
    assert_eq!((recovery.cut, recovery.closed.as_ref(), recovery.last_lsn), (None, Some(&name), Lsn(3)));
    let sealed = store.content(&name);
    assert!(sealed.len() > left.len() && sealed.starts_with(&left));
    zero(&mut writer);
    writer.sync().unwrap();
    assert!(store.content(&name) == sealed, "only the new segment grows");
    let listed = Journal::open_in(store.clone()).unwrap().segments().unwrap();
    let states: Vec<_> =
        listed.iter().map(|s| (s.first_lsn.0, s.last_lsn.0, s.sealed, s.recovered)).collect();
    assert_eq!(states, [(1, 3, true, true), (4, 4, false, false)]);
    assert_eq!(check(&store).unwrap().records, 4);
}

#[test]
fn a_segment_without_records_is_used_again() {
    let store = FaultyStore::new(4096);
    drop(Writer::create_in(store.clone(), &sample_info(), tiny(SyncPolicy::Mark)).unwrap());
    for _ in 0..5 {
        let (_, recovery) = open(&store);
        assert_eq!((recovery.cut, recovery.closed), (None, None));
    }
    assert_eq!((segments(&store).len(), store.used()), (1, 128 + store.content("volume.toml").len()));
    let (mut writer, _) = open(&store);
    zero(&mut writer);
    writer.sync().unwrap();
    drop(writer);
    for opened in 0..5 {
        assert_eq!(open(&store).1.closed.is_some(), opened == 0);
        assert_eq!(segments(&store).len(), 2);
    }
}

/// For every amount of room: the disk fills up while records are written, opening fails as long as it is full, and all
/// that was acknowledged is there once it is not.
#[test]
fn on_a_full_disk_opening_again_and_again_grows_nothing_and_works_once_there_is_room() {
    let (mut refused, mut opened) = (0, 0);
    for room in (400..6000).step_by(7) {
        let store = FaultyStore::new(64);
        let mut writer = Writer::create_in(store.clone(), &sample_info(), tiny(SyncPolicy::Mark)).unwrap();
        store.set_room(room);
        let (mut records, mut durable) = (Vec::new(), Lsn::ZERO);
        let error = work(&mut writer, &mut Random::new(42), 200, &mut records, &mut durable).unwrap_err();
        assert!(matches!(error, JournalError::NoSpace { .. }), "{error}");
        drop(writer);
        let mut left = None;
        for _ in 0..4 {
            match Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)) {
                Ok(_) => opened += 1,
                Err(JournalError::NoSpace { .. }) => refused += 1,
                Err(error) => panic!("room {room}: {error}"),
            }
            let now = (segments(&store), store.used());
            assert!(
                now.1 <= room && *left.get_or_insert(now.clone()) == now,
                "room {room}: {left:?}, {now:?}"
            );
            assert!(read_all(&store).unwrap().len() as u64 >= durable.0, "room {room}");
        }
        store.set_room(usize::MAX);
        let (_, recovery) = open(&store);
        assert!(recovery.last_lsn >= durable, "room {room}");
        append_on(&store, &records[..recovery.last_lsn.0 as usize]);
    }
    assert!(refused > 100 && opened > 100, "{refused} refused, {opened} opened");
}
