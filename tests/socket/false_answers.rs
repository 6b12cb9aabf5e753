//! What answers may be anybody's program: nothing of it is believed.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What listens and answers with nonsense is an error, not a panic, nor a wait for ever.
#[test]
fn who_asks_believes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let answers: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"nonsense nonsense".to_vec(),
        b"TC\x09\x03\x02\0\0\0{}".to_vec(),
        [b"TC\x01\x03".as_slice(), &u32::MAX.to_le_bytes()].concat(),
        b"TC\x01\x03\x02\0\0\0{".to_vec(),
        b"TC\x01\x03\x02\0\0\0{{".to_vec(),
        b"TC\x01\x01\x02\0\0\0{}".to_vec(),
        b"TC\x01\x04\x02\0\0\0{}".to_vec(),
        b"TC\x01\x03\x02\0\0\0{}".to_vec(),
        b"TC\x01\x03\x1f\0\0\0{\"unread\":0,\"next\":{\"shard\":0}}".to_vec(),
        b"TC\x01\x02\x0e\0\0\0{\"finding\":{}}".to_vec(),
    ];
    let count = answers.len();
    let server = std::thread::spawn(move || {
        for answer in answers {
            // `find` connects once, to see who it is; then the question.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 8];
            stream.read_exact(&mut head).unwrap();
            let mut body = vec![0; u32::from_le_bytes(head[4..].try_into().unwrap()) as usize];
            stream.read_exact(&mut body).unwrap();
            let _ = stream.write_all(&answer);
        }
    });
    for no in 0..count {
        let store = OpenStore::find([dir.path()]).unwrap();
        let failed = if no == count - 1 {
            store.verify(|_| {}).map(drop)
        } else {
            store.list(b"", |_| ControlFlow::Continue(())).map(drop)
        };
        let failed = failed.expect_err(&format!("answer {no}"));
        // Two that are whole frames, and of which nothing but what they say is wrong.
        if no == count - 2 {
            assert!(failed.to_string().contains("a page is before the one before"), "{failed}");
        } else if no == count - 1 {
            assert!(failed.to_string().contains("a finding is none"), "{failed}");
        }
    }
    server.join().unwrap();
}

fn frame(kind: u8, json: &str) -> Vec<u8> {
    [&[b'T', b'C', 1, kind], (json.len() as u32).to_le_bytes().as_slice(), json.as_bytes()].concat()
}

/// A server that answers each question with the next of these, the last of them again and again where that is so, until it is
/// not listened to any more.
fn false_server(dir: &Path, answers: Vec<(Vec<u8>, bool)>) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(dir.join("socket")).unwrap();
    std::thread::spawn(move || {
        for (answer, again) in answers {
            // `find` connects once, to see who it is; then the question.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 8];
            stream.read_exact(&mut head).unwrap();
            let mut body = vec![0; u32::from_le_bytes(head[4..].try_into().unwrap()) as usize];
            stream.read_exact(&mut body).unwrap();
            while stream.write_all(&answer).is_ok() && again {}
        }
    })
}

/// Another user's process may be asked, by root, and says what it likes: none of that is for the terminal to obey.
#[test]
fn what_is_said_has_nothing_in_it_that_a_terminal_obeys() {
    let dir = tempfile::tempdir().unwrap();
    let evil = "\\u001b]52;c;x\\u0007\\u009b2J\\u202e";
    let finding = format!(
        "{{\"finding\":{{\"tier\":\"ssd\",\"path\":\"/a{evil}\",\"key\":null,\"why\":\"{evil}\",\"lost\":true}}}}"
    );
    let end = "{\"items\":1,\"bytes\":1,\"containers\":1,\"unwritten\":0}";
    let figures = format!("{{\"{evil}\":[\"{evil}\"]}}");
    let server = false_server(
        dir.path(),
        vec![
            (frame(4, &format!("{{\"error\":\"{evil}\"}}")), false),
            ([frame(2, &finding), frame(3, end)].concat(), false),
            (frame(3, &figures), false),
            (frame(4, &format!("{{\"error\":\"{evil}\"}}")), false),
        ],
    );
    let ask = || OpenStore::find([dir.path()]).unwrap();
    let harmless = |text: &str| {
        assert!(text.contains("\\x1b]52;c;x\\x07\\xc2\\x9b2J\\xe2\\x80\\xae"), "{text:?}");
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{text:?}");
    };
    harmless(&ask().stat().unwrap_err().to_string());
    let report = ask().verify(|_| {}).unwrap();
    harmless(&report.findings[0].why);
    harmless(report.findings[0].path.to_str().unwrap());
    let figures = ask().stat().unwrap();
    let (name, value) = figures.as_object().unwrap().iter().next().unwrap();
    harmless(name);
    harmless(value[0].as_str().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    let ran = command.args(["top", "--json"]).arg(dir.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(code(&ran), Some(3));
    harmless(&err(&ran));
    server.join().unwrap();
}

/// An answer without an end takes neither time nor memory without one.
#[test]
fn who_is_sent_more_than_there_can_be_does_not_take_it() {
    let dir = tempfile::tempdir().unwrap();
    let item = format!(
        "{{\"key\":\"{}\",\"tier\":\"ssd\",\"content_type\":\"binary\",\"bytes\":1,\"expires_at_ms\":null,\"version\":1}}",
        "00".repeat(1 << 19)
    );
    let items = frame(2, &format!("{{\"items\":[{item}]}}"));
    let finding = frame(
        2,
        &format!(
            "{{\"finding\":{{\"tier\":\"ssd\",\"path\":\"\",\"key\":null,\"why\":\"{}\",\"lost\":true}}}}",
            "x".repeat(15 << 20)
        ),
    );
    let nothing = frame(2, "{}");
    let server = false_server(
        dir.path(),
        vec![(nothing.clone(), true), (nothing, true), (items, true), (finding, true)],
    );
    let ask = || OpenStore::find([dir.path()]).unwrap();
    let began = Instant::now();
    let failed = [
        ask().stat().map(drop),
        ask().history(1).map(drop),
        ask().list(b"", |_| ControlFlow::Continue(())).map(drop),
        ask().verify(|_| {}).map(drop),
    ];
    for failed in failed {
        assert!(matches!(failed, Err(Error::Nonsense { .. })), "{failed:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    server.join().unwrap();
}

/// A part whose values take many times the bytes that they come with; pages of which none has an item, each behind the one
/// before; and a verification that gets a record further with every frame.
#[test]
fn who_is_told_for_ever_that_it_goes_on_does_not_wait_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let many = frame(2, &format!("{{\"items\":[{}[]]}}", "[],".repeat(5 << 20)));
    let done: Vec<u8> =
        (0..5_000).flat_map(|done| frame(2, &format!("{{\"done\":{done},\"of\":{}}}", u64::MAX))).collect();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let server = std::thread::spawn({
        let over = over.clone();
        move || {
            let mut asked: u64 = 0;
            for stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return asked;
                }
                let mut head = [0; 8];
                // Whoever looks who it is asks nothing.
                if (&stream).read_exact(&mut head).is_err() {
                    continue;
                }
                let mut body = vec![0; u32::from_le_bytes(head[4..].try_into().unwrap()) as usize];
                (&stream).read_exact(&mut body).unwrap();
                let next = frame(3, &format!("{{\"unread\":{},\"next\":{{\"shard\":{asked}}}}}", u64::MAX));
                let answer = match asked {
                    0 => &many,
                    1 => &done,
                    _ => &next,
                };
                let _ = (&stream).write_all(answer);
                asked += 1;
            }
            asked
        }
    });
    let store = OpenStore::find([dir.path()]).unwrap();
    let began = Instant::now();
    let list = || store.list(b"", |_| ControlFlow::Continue(())).map(drop);
    let failed = [list(), store.verify(|_| {}).map(drop), list()];
    let said = failed.map(|failed| failed.unwrap_err().to_string());
    assert!(said[0].contains("too many values"), "{}", said[0]);
    assert!(said[1].contains("no end of how far"), "{}", said[1]);
    assert!(said[2].contains("no end of pages"), "{}", said[2]);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    over.store(true, Ordering::SeqCst);
    drop(UnixStream::connect(dir.path().join("socket")).unwrap());
    let asked = server.join().unwrap();
    assert!((1_000..5_000).contains(&asked), "{asked}");
}
