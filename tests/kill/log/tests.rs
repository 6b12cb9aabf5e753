//! What is made of a log: what the judge has to blame, and what it must not.

use super::Entry::{Done, Evicted, Flush, Found, Listen, Put, Read, Refused, Remove};
use super::*;
use thermocline_testing::history::{Absence, Promise, Violation};

const KEYS: u32 = 3;

/// What happened, and how it ended if it is something that ends.
type Step = (Entry, Option<Entry>);

/// Writes a log and has it judged: its reads, and that `found` was there of key 1 after the kill, where nothing may be
/// absent of which nobody was told.
fn judged(steps: &[Step], keep_all: bool, promise: Promise, found: Option<Value>) -> Result<(), Violation> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = Log::open(&path);
    log.say(Entry::Opening);
    for (entry, end) in steps {
        match (entry, end) {
            (Evicted(_), _) => log.say(*entry),
            (begins, None) => _ = log.begin(*begins),
            (begins, Some(end)) => log.end(log.begin(*begins), *end),
        }
    }
    let (history, mut sum) = (History::default(), Sum::default());
    replay(&path, KEYS, keep_all, &history, &mut sum);
    history.check(|_| Absence::Told)?;
    history.check_crash(promise, |_| Absence::Told, |k| found.filter(|_| k == key(1)))
}

const WRITTEN: [Step; 2] = [(Put(1, 7), Some(Done)), (Flush, Some(Done))];
const PROMISES: [Promise; 2] = [Promise::Durable, Promise::FromFlush];

fn after(first: &[Step], more: &[Step]) -> Vec<Step> {
    [first, more].concat()
}

#[test]
fn what_was_flushed_and_is_absent_is_blamed_where_there_is_room_for_everything() {
    // What was let go of before the put does not excuse its loss, nor does another key's, nor a put that was refused.
    let before = after(&[(Listen, Some(Done)), (Evicted(1), None), (Evicted(NAMELESS), None)], &WRITTEN);
    let other = after(&WRITTEN, &[(Evicted(2), None), (Remove(0), Some(Done))]);
    let refused = after(&WRITTEN, &[(Put(1, 8), Some(Refused))]);
    for steps in [WRITTEN.to_vec(), before, other, refused] {
        for promise in PROMISES {
            let violation = judged(&steps, true, promise, None).unwrap_err();
            assert_eq!(violation.key, key(1), "{steps:?}: {violation}");
        }
    }
    // By a read before the kill as well, whatever is there after it.
    let read = after(&WRITTEN, &[(Read(1), Some(Found(0)))]);
    assert!(judged(&read, true, Promise::FromFlush, Some(7)).is_err());
}

#[test]
fn what_comes_back_is_blamed_whether_there_is_room_or_not() {
    for keep_all in [true, false] {
        let removed = after(&WRITTEN, &[(Remove(1), Some(Done)), (Flush, Some(Done))]);
        let replaced = after(&WRITTEN, &[(Put(1, 8), Some(Done)), (Flush, Some(Done))]);
        for steps in [removed, replaced] {
            assert!(judged(&steps, keep_all, Promise::FromFlush, Some(7)).is_err(), "{keep_all} {steps:?}");
        }
        assert!(judged(&WRITTEN, keep_all, Promise::FromFlush, Some(9)).is_err(), "nobody wrote it");
    }
}

#[test]
fn nothing_is_blamed_where_nothing_was_promised() {
    let blames = |steps: &[Step], keep_all, promise, found| {
        if let Err(e) = judged(steps, keep_all, promise, found) {
            panic!("{keep_all} {promise:?} {found:?} {steps:?}: {e}");
        }
    };
    for promise in PROMISES {
        blames(&WRITTEN, true, promise, Some(7));
        // What went after the last word, nobody was there to tell.
        blames(&WRITTEN, false, promise, None);
        // It was removed, or that was under way; it was let go of; it was never put, or that was under way.
        let absent: [&[Step]; 6] = [
            &after(&WRITTEN, &[(Remove(1), Some(Done))]),
            &after(&WRITTEN, &[(Remove(1), None)]),
            &after(&WRITTEN, &[(Remove(1), Some(Refused))]),
            &after(&WRITTEN, &[(Evicted(1), None)]),
            &[(Put(1, 7), None), (Flush, None)],
            &[(Put(1, 7), Some(Refused)), (Flush, Some(Done))],
        ];
        absent.iter().for_each(|steps| blames(steps, true, promise, None));
        let either = after(&WRITTEN, &[(Put(1, 8), None)]);
        [7, 8].into_iter().for_each(|found| blames(&either, true, promise, Some(found)));
    }
    // Without a flush, or before one that ended, nothing need be there.
    let loose: [&[Step]; 3] = [
        &[(Put(1, 7), Some(Done))],
        &[(Put(1, 7), Some(Done)), (Flush, None)],
        &[(Put(1, 7), Some(Done)), (Flush, Some(Refused))],
    ];
    loose.iter().for_each(|steps| blames(steps, true, Promise::FromFlush, None));
}
