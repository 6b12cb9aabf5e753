//! Reading access traces.
//!
//! Whatever is in a file, it gives a trace or an error that names the line and what was expected: it never panics,
//! no line is longer than [`MAX_LINE`], and no line of an ARC trace stands for more than [`MAX_RUN`] requests.

use crate::failure::{Failure, open_given};
use crate::interrupt::stopped;
use bytes::Bytes;
use clap::ValueEnum;
use flate2::bufread::MultiGzDecoder;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use thermocline_storage::types::MAX_KEY;

/// Longest line in bytes: a key may have 32,768.
const MAX_LINE: u64 = 40_000;
/// Most blocks that one line of an ARC trace stands for: a request of a disk is not larger.
const MAX_RUN: u64 = 1 << 20;
/// Most requests in all: their numbers are 32 bits.
const MAX_REQUESTS: usize = u32::MAX as usize - 1;
/// Lines between two reports of progress.
const PROGRESS: u64 = 1 << 16;

/// How the lines of a trace are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// ARC: start, count, 0, number; a line stands for count consecutive blocks
    Lis,
    /// Comma-separated with a header that names a column lbn, obj_id, id or key, and perhaps one size
    Csv,
    /// key,size; a header may come first
    KeySize,
    /// A key a line
    Keys,
}

impl Format {
    /// What a line should look like.
    fn expected(self) -> &'static str {
        match self {
            Format::Lis => "four numbers: start, count, 0, number",
            Format::Csv => "a header naming a column lbn, obj_id, id or key, then as many fields a line",
            Format::KeySize => "a key, a comma and a size in bytes",
            Format::Keys => "a key of 1 to 32,768 bytes",
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Lis => "ARC .lis",
            Format::Csv => "CSV with header",
            Format::KeySize => "key,size",
            Format::Keys => "a key a line",
        }
    }
}

/// Requests in their order, by item number.
#[derive(Debug, Default)]
pub struct Trace {
    /// The item of each request; items are numbered in the order in which they are asked for first.
    pub requests: Vec<u32>,
    /// The size of the item in bytes, as each request has it; empty if the trace knows none.
    pub sizes: Vec<u32>,
    /// The key of each item.
    pub keys: Vec<Bytes>,
    numbers: HashMap<Bytes, u32>,
}

impl Trace {
    fn push(&mut self, key: &[u8], size: Option<u32>) {
        let number = match self.numbers.get(key) {
            Some(number) => *number,
            None => {
                let number = self.keys.len() as u32; // at most MAX_REQUESTS
                let key = Bytes::copy_from_slice(key);
                self.keys.push(key.clone());
                self.numbers.insert(key, number);
                number
            }
        };
        self.requests.push(number);
        self.sizes.extend(size);
    }

    fn is_full(&self, limit: usize) -> bool {
        self.requests.len() >= limit.min(MAX_REQUESTS)
    }

    /// Reads a file behind what was read before it, until there are `limit` requests in all. Gives its format; tells
    /// `progress` the requests so far from time to time.
    pub fn read(
        &mut self,
        path: &Path,
        format: Option<Format>,
        limit: usize,
        progress: &dyn Fn(u64),
    ) -> Result<Format, Failure> {
        // As elsewhere `-` is what is piped in.
        let file = open_given(if path.as_os_str() == "-" { Path::new("/dev/stdin") } else { path })?;
        // A pipe may give them one by one.
        let mut magic = Vec::new();
        (&file)
            .take(2)
            .read_to_end(&mut magic)
            .map_err(|e| Failure::usage(format!("{}: line 1: {e}", crate::show::file(path).display())))?;
        let gzip = magic == [0x1f, 0x8b];
        let mut file = BufReader::with_capacity(1 << 16, io::Cursor::new(magic).chain(file));
        let read = if gzip {
            self.lines(
                &mut BufReader::with_capacity(1 << 16, Gzip(MultiGzDecoder::new(file))),
                format,
                limit,
                progress,
            )
        } else {
            self.lines(&mut file, format, limit, progress)
        };
        read.map_err(|wrong| Failure::usage(format!("{}: {wrong}", crate::show::file(path).display())))
    }

    /// Reads lines.
    fn lines(
        &mut self,
        from: &mut impl BufRead,
        format: Option<Format>,
        limit: usize,
        progress: &dyn Fn(u64),
    ) -> Result<Format, String> {
        let had = !self.requests.is_empty();
        let had_sizes = !self.sizes.is_empty();
        let mut lines = Lines { from, line: Vec::new(), number: 0 };
        let mut parser: Option<Parser> = None;
        // A signal leaves a part of a trace, which the caller does not replay.
        while !self.is_full(limit) && !stopped() {
            let number = lines.number + 1;
            if number.is_multiple_of(PROGRESS) {
                progress(self.requests.len() as u64);
            }
            let Some(line) = lines.next().map_err(|e| format!("line {number}: {e}"))? else { break };
            let line = trim(line);
            if line.is_empty() {
                continue;
            }
            let at = |wrong: String| format!("line {number}: {wrong}");
            match &parser {
                Some(parser) => self.line(parser, line, limit).map_err(at)?,
                None => {
                    let (found, is_header) = Parser::find(line, format).map_err(at)?;
                    if !is_header {
                        self.line(&found, line, limit).map_err(at)?;
                    }
                    parser = Some(found);
                }
            }
            if had && had_sizes == self.sizes.is_empty()
                || !self.sizes.is_empty() && self.sizes.len() != self.requests.len()
            {
                return Err("one trace has sizes and the other has none: replay them one by one".into());
            }
        }
        if stopped() {
            return Ok(parser.map_or(Format::Keys, |p| p.format));
        }
        parser.map(|p| p.format).ok_or_else(|| "is empty: a trace has at least one request".into())
    }

    fn line(&mut self, parser: &Parser, line: &[u8], limit: usize) -> Result<(), String> {
        let wrong = || format!("expected {}, found {}", parser.format.expected(), shown(line));
        match parser.format {
            Format::Lis => {
                let (start, count) = lis(line).ok_or_else(wrong)?;
                if count > MAX_RUN {
                    return Err(format!(
                        "{count} blocks in one request are more than {MAX_RUN}: no ARC trace"
                    ));
                }
                for block in start..start.saturating_add(count) {
                    if self.is_full(limit) {
                        break;
                    }
                    self.push(block.to_string().as_bytes(), None);
                }
            }
            Format::Keys => {
                let key = checked(line).ok_or_else(wrong)?;
                // A text of any kind, or a configuration, may begin with a word.
                if parser.guessed && key.iter().any(|b| b.is_ascii_whitespace()) {
                    return Err(format!(
                        "not a trace, it seems: the lines before are keys, and this has spaces: {} (`--format keys`, if \
                         it is a key)",
                        shown(line)
                    ));
                }
                self.push(key, None);
            }
            Format::Csv | Format::KeySize => {
                let fields: Vec<&[u8]> = match parser.format {
                    // A key may have commas of its own.
                    Format::KeySize => {
                        line.rsplitn(2, |b| *b == b',').collect::<Vec<_>>().into_iter().rev().collect()
                    }
                    _ => line.split(|b| *b == b',').collect(),
                };
                if fields.len() != parser.columns {
                    return Err(wrong());
                }
                let field = |at: usize| fields.get(at).map(|f| trim(f)).ok_or_else(wrong);
                let key = checked(field(parser.key)?).ok_or_else(wrong)?;
                let size = match parser.size {
                    Some(at) => {
                        Some(integer(field(at)?).and_then(|n| u32::try_from(n).ok()).ok_or_else(wrong)?)
                    }
                    None => None,
                };
                self.push(key, size);
            }
        }
        Ok(())
    }
}

/// What is known of the lines of a file from its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parser {
    format: Format,
    columns: usize,
    key: usize,
    size: Option<usize>,
    /// Nobody named the format: the first line looks like it, and another may show that the file is none.
    guessed: bool,
}

impl Parser {
    fn plain(format: Format) -> Parser {
        let size = (format == Format::KeySize).then_some(1);
        Parser { format, columns: 2, key: 0, size, guessed: false }
    }

    /// The format of a file whose first line this is, and whether that line is a header.
    fn find(line: &[u8], wanted: Option<Format>) -> Result<(Parser, bool), String> {
        let header = Parser::header(line);
        match wanted {
            Some(Format::Csv) => {
                let expected = || format!("expected {}, found {}", Format::Csv.expected(), shown(line));
                return header.map(|h| (h, true)).ok_or_else(expected);
            }
            Some(Format::KeySize) => return Ok((Parser::plain(Format::KeySize), header.is_some())),
            Some(format) => return Ok((Parser::plain(format), false)),
            None => {}
        }
        if let Some(header) = header {
            return Ok((header, true));
        }
        let words = line.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty()).count();
        let commas = line.iter().filter(|b| **b == b',').count();
        let format = if lis(line).is_some() {
            Format::Lis
        } else if commas == 1
            && line.rsplit(|b| *b == b',').next().is_some_and(|f| integer(trim(f)).is_some())
        {
            Format::KeySize
        } else if commas == 0 && words == 1 && checked(line).is_some() {
            Format::Keys
        } else {
            return Err(format!(
                "not a trace: expected {}; or {}; or {}; or {} without spaces or commas; found {} \
                 (--format says which it is)",
                Format::Lis.expected(),
                Format::Csv.expected(),
                Format::KeySize.expected(),
                Format::Keys.expected(),
                shown(line)
            ));
        };
        Ok((Parser { guessed: true, ..Parser::plain(format) }, false))
    }

    /// A line of column names, one of which is a key's.
    fn header(line: &[u8]) -> Option<Parser> {
        let names: Vec<String> =
            std::str::from_utf8(line).ok()?.split(',').map(|n| n.trim().to_ascii_lowercase()).collect();
        if names.len() < 2 {
            return None;
        }
        let find = |of: &[&str]| of.iter().find_map(|name| names.iter().position(|n| n == name));
        let key = find(&["lbn", "obj_id", "object_id", "key", "id"])?;
        let size = find(&["size", "obj_size", "object_size", "bytes"]);
        Some(Parser { format: Format::Csv, columns: names.len(), key, size, guessed: false })
    }
}

/// What is compressed, with the cure where it cannot be decompressed.
struct Gzip<R>(R);

impl<R: Read> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        self.0.read(buf).map_err(|e| match e.kind() {
            InvalidData | InvalidInput | UnexpectedEof => io::Error::new(
                e.kind(),
                format!("the gzip data are cut short or damaged ({e}): fetch the file again"),
            ),
            _ => e,
        })
    }
}

/// Lines, of bounded length.
struct Lines<'r, R> {
    from: &'r mut R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<'_, R> {
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        self.number += 1;
        let read = self.from.by_ref().take(MAX_LINE).read_until(b'\n', &mut self.line)?;
        if read as u64 == MAX_LINE && self.line.last() != Some(&b'\n') {
            return Err(io::Error::other(format!("longer than {MAX_LINE} bytes: not a trace")));
        }
        Ok((read > 0).then_some(self.line.as_slice()))
    }
}

fn trim(line: &[u8]) -> &[u8] {
    line.trim_ascii()
}

fn integer(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

fn lis(line: &[u8]) -> Option<(u64, u64)> {
    let mut numbers = line.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty()).map(integer);
    let (start, count) = (numbers.next()??, numbers.next()??);
    let (_, _) = (numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some((start, count))
}

/// A key that may be one: not too long, and no control characters, which no text has.
fn checked(key: &[u8]) -> Option<&[u8]> {
    let fits = !key.is_empty() && key.len() <= MAX_KEY;
    (fits && !key.iter().any(u8::is_ascii_control)).then_some(key)
}

/// The start of a line, for an error.
fn shown(line: &[u8]) -> String {
    let start = line.get(..40).unwrap_or(line);
    format!("\"{}{}\"", crate::show::key(start), if line.len() > 40 { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8], format: Option<Format>) -> Result<(Trace, Format), String> {
        let mut trace = Trace::default();
        let format = trace.lines(&mut &*text, format, usize::MAX, &|_| ())?;
        Ok((trace, format))
    }

    fn keys(trace: &Trace) -> Vec<&str> {
        trace.requests.iter().map(|r| std::str::from_utf8(&trace.keys[*r as usize]).unwrap()).collect()
    }

    #[test]
    fn every_format_is_found_by_itself() {
        let (t, f) = read(b"5 3 0 0\r\n6 1 0 1\n", None).unwrap();
        assert_eq!((keys(&t), f), (vec!["5", "6", "7", "6"], Format::Lis));
        assert_eq!(t.requests, [0, 1, 2, 1]);
        let (t, f) = read(b"version,time,op,size,lbn\n1,56,2a,512,429\n1,57,2a,1024,430\n", None).unwrap();
        assert_eq!((keys(&t), f, t.sizes.clone()), (vec!["429", "430"], Format::Csv, vec![512, 1024]));
        let (t, f) = read(b"key,size\na,68\nb,0\na,70\n", None).unwrap();
        assert_eq!((keys(&t), f, t.sizes.clone()), (vec!["a", "b", "a"], Format::Csv, vec![68, 0, 70]));
        let (t, f) = read(b"a,68\nb,7\n", None).unwrap();
        assert_eq!((keys(&t), f, t.sizes.clone()), (vec!["a", "b"], Format::KeySize, vec![68, 7]));
        let (t, f) = read(b"\n a \nb\na", None).unwrap();
        assert_eq!((keys(&t), f, t.sizes.len()), (vec!["a", "b", "a"], Format::Keys, 0));
    }

    #[test]
    fn a_format_may_be_said() {
        let (t, _) = read(b"1 2 0 0\n", Some(Format::Keys)).unwrap();
        assert_eq!(keys(&t), ["1 2 0 0"]);
        let (t, _) = read(b"a,b,7\nkey,size,3\n", Some(Format::KeySize)).unwrap();
        assert_eq!((keys(&t), t.sizes.clone()), (vec!["a,b", "key,size"], vec![7, 3]));
        let (t, _) = read(b"key,size\na,7\n", Some(Format::KeySize)).unwrap();
        assert_eq!(keys(&t), ["a"]);
    }

    #[test]
    fn what_is_no_trace_is_refused_by_line() {
        for (text, format, line, expected) in [
            (&b""[..], None, "empty", "request"),
            (b"\n\n", None, "empty", "request"),
            (b"some prose, indeed, here", None, "line 1", "four numbers"),
            (b"\x7fELF\x02\x01\x01", None, "line 1", "\\x7fELF"),
            (b"1 1 0 0\n2 x 0 0\n", None, "line 2", "four numbers"),
            (b"1 9999999999 0 0\n", None, "line 1", "blocks"),
            (b"key,size\na,b\n", None, "line 2", "header"),
            (b"lbn,size\n1\n", None, "line 2", "fields"),
            (b"lbn,size\n1,2,3\n", None, "line 2", "fields"),
            (b"a,1\nb\n", None, "line 2", "comma"),
            (b"a,99999999999\n", None, "line 1", "size"),
            (b"a\nb\0c\n", None, "line 2", "key"),
            (b"a,b\n", Some(Format::Csv), "line 1", "header"),
            (b"abc\n", Some(Format::Lis), "line 1", "four numbers"),
        ] {
            let e = read(text, format).unwrap_err();
            assert!(e.contains(line) && e.contains(expected), "{text:?}: {e}");
        }
        let e = read(&vec![b'x'; 50_000], None).unwrap_err();
        assert!(e.contains("line 1") && e.contains("longer"), "{e}");
    }

    #[test]
    fn traces_of_two_kinds_do_not_mix() {
        let mut trace = Trace::default();
        trace.lines(&mut &b"a,1\n"[..], None, usize::MAX, &|_| ()).unwrap();
        assert!(trace.lines(&mut &b"a\n"[..], None, usize::MAX, &|_| ()).is_err());
        let mut trace = Trace::default();
        trace.lines(&mut &b"a\n"[..], None, usize::MAX, &|_| ()).unwrap();
        assert!(trace.lines(&mut &b"a,1\n"[..], None, usize::MAX, &|_| ()).is_err());
    }

    #[test]
    fn a_limit_holds_within_a_line() {
        let mut trace = Trace::default();
        trace.lines(&mut &b"1 1000 0 0\n1 1000 0 0\n"[..], None, 1500, &|_| ()).unwrap();
        assert_eq!((trace.requests.len(), trace.keys.len()), (1500, 1000));
    }

    #[test]
    fn gzip_is_found_by_its_magic() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        gz.write_all(b"a\nb\na\n").unwrap();
        let mut packed = gz.finish().unwrap();
        std::fs::write(&path, &packed).unwrap();
        let mut trace = Trace::default();
        assert_eq!(trace.read(&path, None, usize::MAX, &|_| ()).unwrap(), Format::Keys);
        assert_eq!(keys(&trace), ["a", "b", "a"]);
        packed.truncate(packed.len() / 2);
        std::fs::write(&path, &packed).unwrap();
        let cut = Trace::default().read(&path, None, usize::MAX, &|_| ()).unwrap_err();
        assert!(cut.message.contains("cut short or damaged"), "{}", cut.message);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300), format in 0usize..5) {
            let formats = [Some(Format::Lis), Some(Format::Csv), Some(Format::KeySize), Some(Format::Keys), None];
            let _ = read(&text, formats[format]);
        }

        #[test]
        fn near_misses_never_panic(text in "[0-9, a-z\n]{0,80}", format in 0usize..5) {
            let formats = [Some(Format::Lis), Some(Format::Csv), Some(Format::KeySize), Some(Format::Keys), None];
            if let Ok((trace, _)) = read(text.as_bytes(), formats[format]) {
                prop_assert!(trace.requests.iter().all(|r| (*r as usize) < trace.keys.len()));
                prop_assert!(trace.sizes.is_empty() || trace.sizes.len() == trace.requests.len());
            }
        }
    }
}
