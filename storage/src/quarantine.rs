//! The quarantine of a directory: what could not be read, kept for a person to look at, with a report beside it.
//!
//! It is kept up to a cap (5 % of its tier); then the oldest goes. Nothing here is ever served. A crash in the
//! middle leaves bytes without a report, which count and age like the rest.

use crate::error::{Error, IoContext, Result};
use crate::vfs::{EntryKind, OpenMode, Vfs};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder's name in each directory of a store.
pub const FOLDER: &str = "quarantine";

/// The quarantine of one directory of a tier.
#[derive(Debug)]
pub struct Quarantine {
    vfs: Arc<dyn Vfs>,
    folder: PathBuf,
    cap: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first: name of the bytes, their size.
    kept: VecDeque<(String, u64)>,
    /// Their sizes together: every write asks for it.
    bytes: u64,
    next: u64,
    removed: u64,
}

impl State {
    fn keep(&mut self, name: String, size: u64) {
        self.bytes = self.bytes.saturating_add(size);
        self.kept.push_back((name, size));
    }
}

impl Quarantine {
    /// The quarantine below `dir`, with what is there already. The folder is made when it is first needed.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path, cap: u64) -> Result<Quarantine> {
        let folder = dir.join(FOLDER);
        let mut state = State::default();
        if vfs.kind(&folder).at("look at", &folder)? == Some(EntryKind::Dir) {
            let mut entries = vfs.read_dir(&folder).at("list", &folder)?;
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            for e in entries {
                let number = e.name.split('-').next().and_then(|n| n.parse::<u64>().ok());
                // A name that somebody made up is not counted on from.
                let number = number.filter(|n| *n < u64::MAX / 2);
                state.next = state.next.max(number.map_or(0, |n| n + 1));
                if !e.name.ends_with(".txt") {
                    let size = size_of(&*vfs, &folder.join(&e.name), e.len);
                    state.keep(e.name, size);
                }
            }
        }
        Ok(Quarantine { vfs, folder, cap, state: Mutex::new(state) })
    }

    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        self.state.lock().bytes
    }

    /// How many were removed, since the opening, because the cap was reached.
    pub fn removed(&self) -> u64 {
        self.state.lock().removed
    }

    /// Keeps a copy of the bytes of one record, with a report.
    pub fn record(
        &self,
        source: &Path,
        offset: u64,
        bytes: &[u8],
        why: &str,
        key: Option<&[u8]>,
    ) -> Result<()> {
        let mut state = self.state.lock();
        let name = self.name(&mut state, "record")?;
        let path = self.folder.join(&name);
        let file = self.vfs.open(&path, OpenMode::CreateNew).at("create", &path)?;
        file.write_all_at(bytes, 0).at("write", &path)?;
        let mut report = format!("what   one damaged record, {} bytes, copied\n", bytes.len());
        let _ = writeln!(report, "from   {} at byte {offset}", source.display());
        if let Some(key) = key {
            let _ = writeln!(report, "key    {}", key.escape_ascii());
        }
        self.report(&name, report, why);
        state.keep(name, bytes.len() as u64);
        self.trim(&mut state);
        Ok(())
    }

    /// Moves a file or directory here, with a report.
    pub fn container(&self, source: &Path, why: &str) -> Result<()> {
        let mut state = self.state.lock();
        let tail = source.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = self.name(&mut state, &tail)?;
        let path = self.folder.join(&name);
        self.vfs.rename(source, &path).at("quarantine", source)?;
        let size = size_of(&*self.vfs, &path, 0);
        self.report(
            &name,
            format!("what   a container, {size} bytes, moved whole\nfrom   {}\n", source.display()),
            why,
        );
        state.keep(name, size);
        self.trim(&mut state);
        Ok(())
    }

    /// [`container`](Self::container) of what is not the store's. Larger than the cap it would go at once: then it is
    /// refused, for it is not the store's to delete.
    pub fn stranger(&self, source: &Path, size: u64, why: &str) -> Result<()> {
        if size > self.cap {
            return Err(Error::Busy("it is larger than the quarantine"));
        }
        self.container(source, why)
    }

    fn name(&self, state: &mut State, tail: &str) -> Result<String> {
        self.vfs.create_dir_all(&self.folder).at("create", &self.folder)?;
        let n = state.next;
        state.next += 1;
        Ok(format!("{n:010}-{tail}"))
    }

    /// The report is for people; failing to write it loses nothing that is served.
    fn report(&self, name: &str, mut text: String, why: &str) {
        let _ = writeln!(text, "why    {why}");
        let path = self.folder.join(format!("{name}.txt"));
        if let Ok(file) = self.vfs.open(&path, OpenMode::CreateNew) {
            let _ = file.write_all_at(text.as_bytes(), 0);
        }
    }

    fn trim(&self, state: &mut State) {
        while state.bytes > self.cap
            && let Some((name, size)) = state.kept.pop_front()
        {
            state.bytes = state.bytes.saturating_sub(size);
            state.removed += 1;
            let path = self.folder.join(&name);
            let gone = match self.vfs.kind(&path) {
                Ok(Some(EntryKind::Dir)) => self.vfs.remove_dir_all(&path),
                _ => self.vfs.remove_file(&path),
            };
            let _ = self.vfs.remove_file(&self.folder.join(format!("{name}.txt")));
            match gone {
                Ok(()) => {
                    warn_seldom!(path = %path.display(), "quarantine over its cap: the oldest was removed")
                }
                Err(e) => warn_seldom!(path = %path.display(), error = %e, "quarantine: cannot remove"),
            }
        }
    }
}

/// Bytes of a file, or of all files below a directory (two levels are as deep as containers go).
fn size_of(vfs: &dyn Vfs, path: &Path, known: u64) -> u64 {
    match vfs.kind(path) {
        Ok(Some(EntryKind::File)) if known > 0 => known,
        Ok(Some(EntryKind::File)) => vfs.open(path, OpenMode::Read).and_then(|f| f.len()).unwrap_or(0),
        Ok(Some(EntryKind::Dir)) => vfs
            .read_dir(path)
            .map(|entries| entries.iter().map(|e| size_of(vfs, &path.join(&e.name), e.len)).sum())
            .unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::RealFs;

    #[test]
    fn the_cap_holds_and_the_oldest_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let q = Quarantine::open(Arc::new(RealFs), dir.path(), 250).unwrap();
        for _ in 0..3 {
            q.record(Path::new("seg"), 64, &[7; 100], "checksum", Some(b"key\n")).unwrap();
        }
        assert_eq!((q.bytes(), q.removed()), (200, 1));
        let again = Quarantine::open(Arc::new(RealFs), dir.path(), 250).unwrap();
        assert_eq!(again.bytes(), 200);
        let text = std::fs::read_to_string(dir.path().join("quarantine/0000000001-record.txt")).unwrap();
        assert!(text.contains("seg at byte 64") && text.contains("key\\n"), "{text}");
        assert!(!dir.path().join("quarantine/0000000000-record").exists());
    }

    #[test]
    fn a_name_with_the_largest_number_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("quarantine")).unwrap();
        std::fs::write(dir.path().join(format!("quarantine/{}-x", u64::MAX)), [1; 10]).unwrap();
        let q = Quarantine::open(Arc::new(RealFs), dir.path(), 1000).unwrap();
        for _ in 0..2 {
            q.record(Path::new("seg"), 64, &[7; 100], "checksum", None).unwrap();
        }
        assert_eq!(q.bytes(), 210);
    }

    #[test]
    fn what_is_not_the_stores_is_refused_where_it_would_be_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let q = Quarantine::open(Arc::new(RealFs), dir.path(), 1000).unwrap();
        let path = dir.path().join("seg");
        std::fs::write(&path, [1; 1001]).unwrap();
        assert!(q.stranger(&path, 1001, "test").is_err() && path.exists());
        std::fs::write(&path, [1; 1000]).unwrap();
        q.stranger(&path, 1000, "test").unwrap();
        assert_eq!((q.bytes(), path.exists()), (1000, false));
    }

    #[test]
    fn a_container_is_moved_whole() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("gen")).unwrap();
        std::fs::write(dir.path().join("gen/f"), [1; 10]).unwrap();
        let q = Quarantine::open(Arc::new(RealFs), dir.path(), 1000).unwrap();
        q.container(&dir.path().join("gen"), "header unreadable").unwrap();
        assert_eq!(q.bytes(), 10);
        assert!(!dir.path().join("gen").exists());
    }
}
