//! What a value is, from its bytes: a bounded look, whatever its length.
//!
//! Invariants: at most 1.5 KiB are looked at; nothing that stands in them makes it fail. What it says decides how a
//! value is compressed and nothing else, so a wrong guess costs time or room and never a value.

use crate::types::ContentType;
use infer::MatcherType;
use std::panic::catch_unwind;

/// Bytes looked at from the beginning.
const HEAD: usize = 1024;

/// Bytes in which a format's signature is looked for.
const SIGNATURE: usize = 320;

/// Bytes looked at from the middle and from the end.
const SPOT: usize = 256;

/// Bytes that are parsed as JSON.
const JSON_LOOK: usize = 128;

/// The content type of these bytes: `Text`, `Json`, `Binary` or `Media`, never `Auto`. Looks at no more than
/// 1.5 KiB, for this is on the path of every put. Empty values are `Binary`.
///
/// Text is asked for first, because the short signatures of some media formats (`BM`, `II*`) are words too.
pub fn detect(bytes: &[u8]) -> ContentType {
    if bytes.is_empty() {
        return ContentType::Binary;
    }
    let head = bytes.get(..HEAD).unwrap_or(bytes);
    if is_text(bytes, head) {
        return if is_json(bytes) { ContentType::Json } else { ContentType::Text };
    }
    let start = bytes.get(..SIGNATURE).unwrap_or(bytes);
    if !may_be_media(start) {
        return ContentType::Binary;
    }
    // The signatures are plain comparisons today; a panic in one of them would still be only a wrong guess.
    match catch_unwind(|| infer::get(start)) {
        Ok(Some(kind)) if is_compressed_format(&kind) => ContentType::Media,
        _ => ContentType::Binary,
    }
}

/// Whether the first byte, or a box of the MP4 family, is that of a format that [`is_compressed_format`] accepts. A
/// hundred signatures are compared only then: it would cost ten times as much as all the rest.
fn may_be_media(start: &[u8]) -> bool {
    let boxed = matches!(start.get(4..8), Some(b"ftyp" | b"moov" | b"mdat"));
    let first = matches!(
        start.first(),
        Some(
            0x00 | 0x04         // ICO, JPEG 2000, JPEG XL, MPEG; LZ4
            | 0x1A | 0x1F       // Matroska; gzip, compress
            | b'!' | b'#'       // Debian package; AMR
            | b'%' | b'('       // PDF; Zstandard
            | b'0' | b'7' | b'8' // WMV; 7-Zip; Photoshop
            | b'A'..=b'D'       // DjVu, DWG; BMP, bzip2, bzip3; Flash, CRX; DSF
            | b'F' | b'G'       // FLV, AIFF, Flash; GIF
            | b'I' | b'L' | b'M' // TIFF, MP3, CR2, CAB; lzip; TIFF, MIDI, M4A, APE, CAB
            | b'O'              // Ogg
            | b'P'..=b'_'       // ZIP, RAR, RIFF, and the skippable frames of Zstandard
            | b'f' | b'w'       // FLAC; WOFF
            | 0x89 | 0xED | 0xFD | 0xFF // PNG; RPM; xz; JPEG, JPEG XL, MP3, AAC
        )
    );
    boxed || first
}

/// Whether a known format is a picture, sound, film or archive, that is, compressed already.
fn is_compressed_format(kind: &infer::Type) -> bool {
    match kind.matcher_type() {
        MatcherType::Image | MatcherType::Audio | MatcherType::Video => true,
        // The office formats of today, and the books, are ZIP files; the older ones are not.
        MatcherType::Doc => !matches!(kind.extension(), "doc" | "xls" | "ppt" | "msi"),
        MatcherType::Book => kind.extension() == "epub",
        MatcherType::Font => matches!(kind.extension(), "woff" | "woff2"),
        // These hold things together without making them smaller.
        MatcherType::Archive => !matches!(
            kind.extension(),
            "tar" | "ar" | "cpio" | "sqlite" | "nes" | "ps" | "rtf" | "eot" | "par2" | "msi" | "dcm"
        ),
        MatcherType::App | MatcherType::Text | MatcherType::Custom => false,
    }
}

/// Whether the beginning, a spot in the middle and the end are UTF-8 without unprintable characters.
fn is_text(bytes: &[u8], head: &[u8]) -> bool {
    if !is_text_stretch(head, false, head.len() < bytes.len()) {
        return false;
    }
    if bytes.len() <= HEAD {
        return true;
    }
    let middle = bytes.len() / 2;
    let spots = [
        (bytes.get(middle..middle.saturating_add(SPOT)), true),
        (bytes.get(bytes.len().saturating_sub(SPOT)..), false),
    ];
    spots.into_iter().all(|(spot, cut)| spot.is_none_or(|s| is_text_stretch(s, true, cut)))
}

/// Whether a stretch is text; where it was cut out of a longer one, a character may be cut at that end.
fn is_text_stretch(stretch: &[u8], cut_before: bool, cut_after: bool) -> bool {
    let is_continuation = |b: &u8| b & 0xC0 == 0x80;
    let skip = if cut_before { stretch.iter().take(3).take_while(|b| is_continuation(b)).count() } else { 0 };
    let stretch = stretch.get(skip..).unwrap_or_default();
    let text = match std::str::from_utf8(stretch) {
        Ok(text) => text,
        // No `error_len`: the bytes end within a character.
        Err(e) if cut_after && e.error_len().is_none() => {
            match stretch.get(..e.valid_up_to()).map(std::str::from_utf8) {
                Some(Ok(text)) => text,
                _ => return false,
            }
        }
        Err(_) => return false,
    };
    // Of the control characters, text has white space and the escape of terminal colours.
    // Without a branch, so that the compiler looks at many at a time.
    let unprintable = |b: u8| {
        ((b < 0x20) | (b == 0x7F)) & (b != b'\t') & (b != b'\n') & (b != b'\r') & (b != 0x0C) & (b != 0x1B)
    };
    !text.bytes().fold(false, |found, b| found | unprintable(b))
}

/// Whether text is JSON, one document or several in a row: it begins with an object or an array, its first 128 bytes are
/// well formed as far as they go, and it ends in a bracket. A lone number or word is text.
fn is_json(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let start = bytes.iter().take(SPOT).position(|b| !is_space(*b));
    let Some(body) = start.and_then(|n| bytes.get(n..)) else { return false };
    if !matches!(body.first(), Some(b'{' | b'[')) {
        return false;
    }
    let end = body.iter().rev().take(SPOT).find(|b| !is_space(**b));
    if !matches!(end, Some(b'}' | b']')) {
        return false;
    }
    let look = body.get(..JSON_LOOK).unwrap_or(body);
    is_json_prefix(look, look.len() == body.len())
}

const fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r')
}

/// What may come next in JSON.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    /// A value.
    Value,
    /// A value or the end of the array just opened.
    ValueOrEnd,
    /// The name of a member.
    Name,
    /// A name or the end of the object just opened.
    NameOrEnd,
    /// The colon after a name.
    Colon,
    /// A comma or the end of what is open; between documents, another document.
    After,
}

/// Whether bytes are the beginning of JSON documents, or, with `whole`, complete ones (RFC 8259, with the numbers
/// and words only looked at by their characters). Nesting costs one byte of memory a level, at most `JSON_LOOK`.
fn is_json_prefix(bytes: &[u8], whole: bool) -> bool {
    let mut open: Vec<u8> = Vec::new();
    let mut next = Next::Value;
    let mut rest = bytes.iter();
    while let Some(&b) = rest.next() {
        if is_space(b) {
            continue;
        }
        next = match (next, b) {
            (Next::Value | Next::ValueOrEnd, b'{' | b'[') => {
                open.push(b);
                if b == b'{' { Next::NameOrEnd } else { Next::ValueOrEnd }
            }
            (Next::After, b'{' | b'[') if open.is_empty() => {
                open.push(b);
                if b == b'{' { Next::NameOrEnd } else { Next::ValueOrEnd }
            }
            (Next::NameOrEnd, b'}') | (Next::ValueOrEnd, b']') => {
                open.pop();
                Next::After
            }
            (Next::After, b'}') if open.last() == Some(&b'{') => {
                open.pop();
                Next::After
            }
            (Next::After, b']') if open.last() == Some(&b'[') => {
                open.pop();
                Next::After
            }
            (Next::After, b',') => match open.last() {
                Some(b'{') => Next::Name,
                Some(_) => Next::Value,
                None => return false,
            },
            (Next::Name | Next::NameOrEnd, b'"') => match skip_string(&mut rest) {
                true => Next::Colon,
                false => return !whole,
            },
            (Next::Colon, b':') => Next::Value,
            (Next::Value | Next::ValueOrEnd, b'"') => match skip_string(&mut rest) {
                true => Next::After,
                false => return !whole,
            },
            (Next::Value | Next::ValueOrEnd, b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                skip_word(&mut rest);
                Next::After
            }
            _ => return false,
        };
    }
    !whole || (open.is_empty() && next == Next::After)
}

/// Skips to behind the closing quote; false if there is none.
fn skip_string(rest: &mut std::slice::Iter<'_, u8>) -> bool {
    while let Some(&b) = rest.next() {
        match b {
            b'"' => return true,
            b'\\' => {
                rest.next();
            }
            _ => {}
        }
    }
    false
}

/// Skips the rest of a number, `true`, `false` or `null`.
fn skip_word(rest: &mut std::slice::Iter<'_, u8>) {
    let n = rest
        .as_slice()
        .iter()
        .take_while(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'E' | b'+' | b'-' | b'.'))
        .count();
    if n > 0 {
        rest.nth(n - 1);
    }
}
