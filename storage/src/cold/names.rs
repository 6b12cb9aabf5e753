//! Names of entries in a pack: keys made into paths that every system can extract.
//!
//! Invariants:
//! - a name is relative, has no empty, `.` or `..` component, no backslash, colon or control character, is pure
//!   ASCII, and is at most [`MAX_NAME`] bytes long with components of at most [`MAX_COMPONENT`];
//! - no two names of a pack are equal when case is ignored, and none is a folder of another;
//! - a name without `~` is the key percent-encoded (RFC 3986, 2.1): decoding it gives the key, byte for byte. A
//!   name with `~` ends in `~` and a hash; its key stands in the extra field only.
//!
//! Everything that is not ASCII is encoded too. `unzip` in a locale without UTF-8 writes such a character as six
//! or more, which can make a name too long for the file system, and some file systems fold what differs only in
//! Unicode normalization; plain ASCII extracts to the same tree everywhere.

use crate::record::checksum;
use std::collections::HashSet;
use std::fmt::Write as _;

/// Longest component of a name in bytes.
pub(super) const MAX_COMPONENT: usize = 200;
/// Longest name in bytes.
pub(super) const MAX_NAME: usize = 1000;
/// `~` and 16 hexadecimal digits.
const HASH: usize = 17;

/// Names that Windows gives to devices, with any extension.
const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];
/// Device names that are followed by one digit.
const NUMBERED: [&str; 2] = ["COM", "LPT"];

/// A name given to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// The path in the pack.
    pub(super) path: String,
    /// Decoding the path gives the key.
    pub(super) exact: bool,
}

/// The names given in one pack so far, in lower case.
#[derive(Debug, Default)]
pub(super) struct Names {
    files: HashSet<String>,
    folders: HashSet<String>,
}

impl Names {
    /// A name for `key` that collides with none given before. A key that comes twice gets two names.
    pub(super) fn assign(&mut self, key: &[u8]) -> Name {
        let parts = split(key);
        let plain: Vec<String> = parts.iter().map(|p| escape(p)).collect();
        let fits = plain.iter().all(|c| c.len() <= MAX_COMPONENT);
        let path = plain.join("/");
        if fits && path.len() <= MAX_NAME && self.take(&path) {
            return Name { path, exact: true };
        }
        let (last, folders) = plain.split_last().map_or(("", &[][..]), |(l, f)| (l.as_str(), f));
        // Folders are kept while they are short and no file has their name; otherwise the whole key becomes one
        // component, which collides with no folder because no folder has a `~`.
        let folders_fit = folders.iter().all(|c| c.len() <= MAX_COMPONENT);
        let whole = escape(key);
        let mut seed = 0_u64;
        loop {
            let hash = checksum(seed, key);
            if folders_fit {
                let mut path = folders.join("/");
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(&hashed(last, hash));
                if path.len() <= MAX_NAME && self.take(&path) {
                    return Name { path, exact: false };
                }
            }
            let path = hashed(&whole, hash);
            if self.take(&path) {
                return Name { path, exact: false };
            }
            // The same key again, or two keys with one hash: the next seed tells them apart.
            seed = seed.wrapping_add(1);
        }
    }

    /// Enters a path unless it collides.
    fn take(&mut self, path: &str) -> bool {
        let path = path.to_ascii_lowercase();
        if self.files.contains(&path) || self.folders.contains(&path) {
            return false;
        }
        if folders_of(&path).any(|f| self.files.contains(f)) {
            return false;
        }
        for folder in folders_of(&path) {
            if !self.folders.contains(folder) {
                self.folders.insert(folder.to_owned());
            }
        }
        self.files.insert(path);
        true
    }
}

/// Every folder above a path.
fn folders_of(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(at, _)| path.get(..at))
}

/// The components of a key. A slash with nothing before it or nothing after it separates nothing: it stays in its
/// component and is encoded, so that no component is empty and decoding gives it back.
fn split(key: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut rest = key.iter().copied().peekable();
    while let Some(b) = rest.next() {
        let separates = b == b'/' && !part.is_empty() && rest.peek().is_some_and(|next| *next != b'/');
        if separates {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(b);
        }
    }
    parts.push(part);
    parts
}

/// One component, encoded.
fn escape(part: &[u8]) -> String {
    let mut out = String::with_capacity(part.len());
    let last = part.len().saturating_sub(1);
    let device = is_device(part);
    for (at, &b) in part.iter().enumerate() {
        let awkward = (at == 0 && (matches!(b, b' ' | b'.' | b'-') || device))
            || (at == last && matches!(b, b' ' | b'.'));
        if is_plain(b) && !awkward {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// Whether a byte stands for itself on every file system and in every shell-free tool.
const fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(b, b'-' | b'_' | b'.' | b'+' | b',' | b'=' | b'@' | b'(' | b')' | b'!' | b'&' | b' ')
}

/// Whether Windows takes the component for a device, whatever its extension.
fn is_device(part: &[u8]) -> bool {
    let stem = part.split(|b| *b == b'.').next().unwrap_or_default().trim_ascii_end();
    let named = |name: &str, of: &[u8]| of.eq_ignore_ascii_case(name.as_bytes());
    DEVICES.iter().any(|d| named(d, stem))
        || stem
            .split_last()
            .is_some_and(|(digit, front)| digit.is_ascii_digit() && NUMBERED.iter().any(|d| named(d, front)))
}

/// An encoded component, cut where needed, with a hash behind it.
fn hashed(component: &str, hash: u64) -> String {
    let mut end = component.len().min(MAX_COMPONENT - HASH);
    // An escape is not cut in two.
    for back in 1..=2 {
        if end < component.len() && component.as_bytes().get(end.wrapping_sub(back)) == Some(&b'%') {
            end -= back;
        }
    }
    format!("{}~{hash:016x}", component.get(..end).unwrap_or_default())
}

/// The key that an exact name stands for; `None` if it is not a well-formed encoding.
pub(super) fn decode(path: &[u8]) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(&b) = rest.next() {
        if b == b'%' {
            let high = hex(*rest.next()?)?;
            let low = hex(*rest.next()?)?;
            key.push(high << 4 | low);
        } else {
            key.push(b);
        }
    }
    Some(key)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(key: &[u8]) -> Name {
        Names::default().assign(key)
    }

    fn path(key: &[u8]) -> String {
        name(key).path
    }

    #[test]
    fn ordinary_keys_are_their_own_names() {
        assert_eq!(path(b"thumb/42.jpg"), "thumb/42.jpg");
        assert_eq!(path(b"a b/c+d=(1)"), "a b/c+d=(1)");
    }

    #[test]
    fn awkward_keys_are_encoded() {
        for (key, want) in [
            (&b"/etc/passwd"[..], "%2Fetc/passwd"),
            (b"../../x", "%2E%2E/%2E%2E/x"),
            (b"http://h/p?q", "http%3A%2F/h/p%3Fq"),
            (b"a//b/", "a%2F/b%2F"),
            (b"/", "%2F"),
            (b"C:\\x", "C%3A%5Cx"),
            (b"con.txt", "%63on.txt"),
            (b"x/LPT1", "x/%4CPT1"),
            (b"-rf", "%2Drf"),
            (b"x. ", "x.%20"),
            (b"a~b", "a%7Eb"),
            ("é".as_bytes(), "%C3%A9"),
            (b"\0\n", "%00%0A"),
        ] {
            let n = name(key);
            assert_eq!(n.path, want);
            assert!(n.exact);
            assert_eq!(decode(n.path.as_bytes()).unwrap(), key);
        }
    }

    #[test]
    fn collisions_end_in_a_hash() {
        let mut names = Names::default();
        assert!(names.assign(b"a/b").exact);
        let folder = names.assign(b"a");
        assert!(!folder.exact && folder.path.starts_with("a~"), "{folder:?}");
        let case = names.assign(b"A/B");
        assert!(!case.exact && case.path.starts_with("A/B~"), "{case:?}");
        assert!(names.assign(b"f").exact);
        let below = names.assign(b"F/x");
        assert!(!below.exact && below.path.starts_with("F%2Fx~"), "{below:?}");
        let twice = names.assign(b"f");
        let thrice = names.assign(b"f");
        assert!(!twice.exact && twice.path != thrice.path);
    }

    #[test]
    fn long_keys_are_cut_between_escapes() {
        for n in 0..4 {
            let mut key = vec![b'x'; 180 + n];
            key.extend([0xff; 100]);
            let Name { path, exact } = name(&key);
            assert!(!exact && path.len() <= MAX_COMPONENT);
            let (front, _) = path.rsplit_once('~').unwrap();
            assert!(decode(front.as_bytes()).is_some_and(|k| key.starts_with(&k)), "{path}");
        }
        let deep = "d/".repeat(800) + "x";
        assert!(path(deep.as_bytes()).len() <= MAX_NAME);
    }

    fn awkward() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(prop::sample::select(b"aAbB/.~ %-\\:\x00\xff".to_vec()), 1..8),
            prop::collection::vec(any::<u8>(), 1..40),
            prop::collection::vec(prop::sample::select(b"x/.".to_vec()), 150..2500),
            prop::sample::select(vec!["con", "NUL.x", "com1", "lpt9/aux", "..", ".", "é/É"])
                .prop_map(|s| s.as_bytes().to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn names_keep_the_invariants(keys in prop::collection::vec(awkward(), 1..40)) {
            let mut names = Names::default();
            let given: Vec<Name> = keys.iter().map(|k| names.assign(k)).collect();
            let mut seen = HashSet::new();
            for (key, n) in keys.iter().zip(&given) {
                prop_assert!(n.path.len() <= MAX_NAME);
                prop_assert!(n.path.bytes().all(|b| b == b'/' || b == b'%' || b == b'~' || is_plain(b)));
                for c in n.path.split('/') {
                    prop_assert!(!c.is_empty() && c.len() <= MAX_COMPONENT, "{}", n.path);
                    prop_assert!(!c.starts_with(['.', ' ', '-']) && !c.ends_with(['.', ' ']), "{}", n.path);
                    prop_assert!(!is_device(c.as_bytes()), "{}", n.path);
                }
                if n.exact {
                    let decoded = decode(n.path.as_bytes());
                    prop_assert_eq!(decoded.as_deref(), Some(key.as_slice()));
                    prop_assert!(!n.path.contains('~'));
                }
                prop_assert!(seen.insert(n.path.to_ascii_lowercase()), "{} twice", n.path);
            }
            for n in &given {
                let low = n.path.to_ascii_lowercase();
                prop_assert!(folders_of(&low).all(|f| !seen.contains(f)), "{} lies below a file", n.path);
            }
        }
    }
}
