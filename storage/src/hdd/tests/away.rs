//! Directories that are out of service while something in them is open.

use super::*;
use crate::testing::EIO;

/// What stands in the value files of a directory.
fn stands(bench: &Bench, i: usize) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for generation in bench.generations(i) {
        let files = std::fs::read_dir(generation).unwrap().map(|e| e.unwrap().path());
        all.extend(files.filter(|p| p.is_file()).map(|path| (path.clone(), std::fs::read(path).unwrap())));
    }
    all
}

#[test]
fn an_open_generation_gets_nothing_more_where_its_directory_is_out_of_service() {
    let mut bench = Bench::new(&[Some(64 << 20), Some(64 << 20)]);
    // An index that is written later, for the next opening, is none of this.
    bench.factory = None;
    let open = bench.open(&[]);
    let out = |no: u16| {
        let dir = open.hdd.dirs.get(no).unwrap();
        let why = Error::io("write", &dir.path, std::io::Error::from_raw_os_error(EIO));
        (0..2).for_each(|_| open.hdd.dirs.failed(dir, &why));
    };
    let dir_of = |w: &Written| open.containers.get(w.place.container()).unwrap().dir;
    let w = open.write(&[item(1, 100)]);
    let gone = dir_of(&w[0]);
    out(gone);
    assert!(open.hdd.in_service().is_ok(), "the other one is");
    let before = stands(&bench, gone.into());
    let w = open.write(&[item(2, 100)]);
    assert_eq!(dir_of(&w[0]), 1 - gone);
    out(1 - gone);
    assert!(matches!(open.hdd.in_service(), Err(Error::OutOfService { .. })));
    let other = stands(&bench, (1 - gone).into());
    assert!(matches!(open.hdd.write(&[item(3, 100)], Purpose::Write), Err(Error::OutOfService { .. })));
    open.settle();
    assert!(before == stands(&bench, gone.into()), "it was written to");
    assert!(other == stands(&bench, (1 - gone).into()), "the other one was written to");
}
