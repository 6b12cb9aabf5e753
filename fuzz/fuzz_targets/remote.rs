//! The socket of an open store, from both sides: any question to a store, and any answer to who asks.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use thermocline::Cache;
use thermocline::remote::OpenStore;

/// In every value, and in nothing that is asked.
const MARK: &[u8] = b"\xabMARK OF A VALUE";
/// Nobody waits for more than this: both sides end when the other does.
const LONG: Duration = Duration::from_secs(20);

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// To the store, as they are.
    Bytes(&'a [u8]),
    /// To the store, as the body of a frame.
    Question(&'a str),
    /// From what listens: frames, and what follows them.
    Answer { what: u8, frames: Vec<(u8, &'a str)>, rest: &'a [u8] },
}

fn frame(kind: u8, body: &str) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    [&[b'T', b'C', 1, kind][..], &len.to_le_bytes(), body.as_bytes()].concat()
}

/// A directory of this process; those of dead ones go.
fn scratch() -> PathBuf {
    let base = std::env::temp_dir();
    let name = "thermocline-fuzz-remote-";
    for entry in std::fs::read_dir(&base).unwrap().flatten() {
        let of = entry.file_name().to_str().and_then(|n| n.strip_prefix(name).map(str::to_owned));
        if of.is_some_and(|pid| !PathBuf::from("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    base.join(format!("{name}{}", std::process::id()))
}

/// An open store, and its socket.
fn store() -> &'static (Cache, PathBuf) {
    static STORE: OnceLock<(Cache, PathBuf)> = OnceLock::new();
    STORE.get_or_init(|| {
        let dir = scratch().join("store");
        let mut builder = Cache::builder().memory(1 << 20).ssd(&dir, 32 << 20);
        builder.config_mut().optimizer.enabled = false;
        let cache = builder.open().unwrap();
        for no in 0..300u32 {
            cache.put(format!("key/{no}"), [MARK, &no.to_le_bytes()].concat()).unwrap();
        }
        cache.flush().unwrap();
        (cache, dir.join("socket"))
    })
}

/// What a listener answers to the next question, and who asks it.
fn listener() -> &'static (Mutex<Vec<u8>>, OpenStore) {
    static LISTENER: OnceLock<(Mutex<Vec<u8>>, OpenStore)> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let dir = scratch().join("listener");
        std::fs::create_dir_all(&dir).unwrap();
        let socket = UnixListener::bind(dir.join("socket")).unwrap();
        std::thread::spawn(move || {
            for mut stream in socket.incoming().flatten() {
                let mut head = [0; 8];
                // Who only looks who is here asks nothing.
                if stream.read_exact(&mut head).is_ok() {
                    let len = u32::from_le_bytes(*head.last_chunk().unwrap());
                    stream.read_exact(&mut vec![0; len as usize]).unwrap();
                    let answer = listener().0.lock().unwrap().clone();
                    // Who has had enough does not read the rest.
                    let _ = stream.write_all(&answer);
                }
            }
        });
        (Mutex::default(), OpenStore::find([dir]).unwrap())
    })
}

/// The store answers in whole frames, of which the last is an end or a refusal; or not at all, to what is no whole frame.
fn ask(bytes: &[u8]) {
    let (cache, socket) = store();
    let before = cache.stats().counts;
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    // Who is refused by a head need not be read to the end.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let whole = match stream.read_to_end(&mut answer) {
        Ok(_) => true,
        Err(e) => {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}");
            false
        }
    };
    let (mut rest, mut last) = (&answer[..], None);
    while let Some((head, behind)) = rest.split_first_chunk::<8>() {
        assert_eq!(&head[..3], b"TC\x01");
        let len = u32::from_le_bytes(*head.last_chunk().unwrap()) as usize;
        assert!(!whole || behind.len() >= len, "half a frame");
        let body = &behind[..len.min(behind.len())];
        assert!(serde_json::from_slice::<serde_json::Value>(body).is_ok() || !whole);
        (rest, last) = (&behind[body.len()..], Some(head[3]));
    }
    assert!(!whole || rest.is_empty() && matches!(last, None | Some(3 | 4)), "{last:?}");
    assert!(!answer.windows(MARK.len()).any(|w| w == MARK), "a byte of a value");
    assert_eq!(cache.stats().counts, before, "something changed");
}

fn believe(what: u8, frames: &[(u8, &str)], rest: &[u8]) {
    let (answer, store) = listener();
    let mut bytes: Vec<u8> = frames.iter().flat_map(|(kind, body)| frame(kind % 6, body)).collect();
    bytes.extend(rest);
    *answer.lock().unwrap() = bytes;
    match what % 4 {
        0 => drop(store.stat()),
        1 => drop(store.history(7)),
        2 => drop(store.list(b"", |item| {
            assert!(item.key.len() <= 16 << 20);
            ControlFlow::Continue(())
        })),
        _ => drop(store.verify(|_| {})),
    }
}

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input<'_>| {
    match input {
        Input::Bytes(bytes) => ask(bytes),
        Input::Question(body) => ask(&frame(1, body)),
        Input::Answer { what, frames, rest } => believe(what, &frames, rest),
    }
});
