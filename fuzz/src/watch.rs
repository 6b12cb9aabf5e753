//! A file system that looks at how it is read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thermocline_storage::vfs::{DirEntry, EntryKind, Map, OpenMode, Space, Vfs, VfsFile, VfsLock};

/// So much may be asked for behind the end of a file: buffers have a fixed size.
const BEHIND: u64 = 1 << 20;

/// Passes everything on, but panics where a read asks for far more than the file has, which is a length believed
/// that nothing bears out.
#[derive(Debug)]
pub struct Watched<V>(pub V);

#[derive(Debug)]
struct File(PathBuf, Arc<dyn VfsFile>);

impl<V: Vfs> Vfs for Watched<V> {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(File(path.to_path_buf(), self.0.open(path, mode)?)))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.read_dir(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.0.kind(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.0.try_lock(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.0.space(path)
    }
    fn random(&self) -> io::Result<[u8; 16]> {
        self.0.random()
    }
}

impl VfsFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let (len, asked) = (self.1.len()?, buf.len() as u64);
        assert!(
            asked <= len.saturating_sub(offset) + BEHIND,
            "{asked} bytes at {offset} of {}, which has {len}",
            self.0.display()
        );
        self.1.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.1.write_all_at(buf, offset)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.1.allocate(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.1.len()
    }
    fn allocated(&self) -> io::Result<u64> {
        self.1.allocated()
    }
    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        self.1.map(len)
    }
}
