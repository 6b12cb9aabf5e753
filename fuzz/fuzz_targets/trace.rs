//! The command's reader of traces: any bytes, in any format or one that it finds by itself, packed or not, give a trace
//! that makes sense or an error with a message, for memory that the input is worth.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::io::{Seek, SeekFrom, Write};
use thermocline_fuzz::bound::bounded;

/// The command's own file: it is no library, and is not to become one for this.
#[path = "../../src/bin/thermocline/replay/trace.rs"]
#[allow(dead_code, reason = "the command uses all of it")]
mod trace;

/// What that file wants of the rest of the command.
mod failure {
    use std::fs::File;
    use std::path::Path;

    #[derive(Debug)]
    pub struct Failure(pub String);

    impl Failure {
        pub fn usage(what: String) -> Failure {
            Failure(what)
        }
    }

    pub fn open_given(path: &Path) -> Result<File, Failure> {
        File::open(path).map_err(|e| Failure(e.to_string()))
    }
}

mod interrupt {
    pub fn stopped() -> bool {
        false
    }
}

mod show {
    pub fn key(key: &[u8]) -> String {
        key.escape_ascii().to_string()
    }

    pub fn file(path: &std::path::Path) -> &std::path::Path {
        path
    }
}

use trace::{Format, Trace};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    format: u8,
    limit: u16,
    /// Packed with gzip before it is read.
    pack: bool,
    bytes: &'a [u8],
}

fn read(path: &std::path::Path, format: Option<Format>, limit: usize) -> Result<(Trace, Format), String> {
    let mut trace = Trace::default();
    let format = trace.read(path, format, limit, &|_| ()).map_err(|f| f.0)?;
    Ok((trace, format))
}

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input<'_>| {
    thread_local!(static FILE: (std::path::PathBuf, std::fs::File) = {
        let path = std::env::temp_dir().join(format!("thermocline-fuzz-trace-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        (path, file)
    });
    FILE.with(|(path, file)| {
        let mut file = file;
        let formats = [Format::Lis, Format::Csv, Format::KeySize, Format::Keys];
        let wanted = formats.get(usize::from(input.format) % 5).copied();
        let mut bytes = input.bytes.to_vec();
        if input.pack {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(&bytes).unwrap();
            bytes = packer.finish().unwrap();
        }
        file.set_len(0).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&bytes).unwrap();
        let limit = usize::from(input.limit);
        // Numbers, sizes and keys of at most so many requests, and of each line at most its length as a key; a packed
        // file may be a thousand times as long.
        let most = (2 << 20) + limit * 400 + 2 * 1032 * bytes.len();
        match bounded(most, || read(path, wanted, limit)) {
            Ok((trace, format)) => {
                assert!(wanted.is_none_or(|w| w == format));
                assert!(trace.requests.len() <= limit);
                assert!(trace.requests.iter().all(|r| (*r as usize) < trace.keys.len()));
                assert!(trace.sizes.is_empty() || trace.sizes.len() == trace.requests.len());
                assert!(trace.keys.iter().all(|k| !k.is_empty() && k.len() <= 32_768));
                let distinct: std::collections::HashSet<_> = trace.keys.iter().collect();
                assert_eq!(distinct.len(), trace.keys.len(), "each key has one number");
                // The keys, one a line, are the same trace.
                if !trace.requests.is_empty() {
                    let lines: Vec<u8> = trace
                        .requests
                        .iter()
                        .flat_map(|r| trace.keys[*r as usize].iter().copied().chain([b'\n']))
                        .collect();
                    file.set_len(0).unwrap();
                    file.seek(SeekFrom::Start(0)).unwrap();
                    file.write_all(&lines).unwrap();
                    if !lines.starts_with(&[0x1f, 0x8b]) {
                        let (again, _) = read(path, Some(Format::Keys), limit).unwrap();
                        assert_eq!((again.requests, again.keys), (trace.requests, trace.keys));
                    }
                }
            }
            Err(why) => assert!(!why.is_empty()),
        }
    });
});
