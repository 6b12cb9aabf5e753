//! What a life tells of itself: how much happened and, where it is asked for, everything.

use crate::rows::Reached;
use std::collections::BTreeMap;
use thermocline_storage::sim::SimFs;

thermocline_testing::counts! {
    /// How much happened.
    pub struct Counts {
        operations,
        /// Of them, those that answer on a condition, or for several keys.
        conditional,
        refused,
        /// Steps after which nothing waited to be written.
        written_by_itself,
        crashes,
        recoveries,
        cut_off,
        /// Openings while calls failed, and of them those that were refused.
        failing_openings,
        refused_openings,
        faults,
        moved,
        evicted,
        /// What the optimizer might do, done; and items that entered memory because they stood behind one that was asked
        /// for.
        turned,
        prefetched,
        /// Files of the store that goes on.
        mapped,
        /// Bits turned on disks that a crash left, sectors there that went back, and bits turned under an open store.
        rotten,
        went_back,
        rotten_open,
    }
}

impl Counts {
    /// Whether all kinds of things happened.
    pub fn is_lively(&self) -> bool {
        let went_wrong =
            [self.refused, self.crashes, self.recoveries, self.cut_off, self.faults, self.rotten];
        went_wrong.iter().chain(&[self.moved, self.evicted]).all(|n| *n > 0)
    }

    /// Whether the rarer kinds happened as well, as they do in some hundreds of lives.
    pub fn is_wide(&self) -> bool {
        [
            self.conditional,
            self.written_by_itself,
            self.failing_openings,
            self.refused_openings,
            self.went_back,
            self.rotten_open,
            self.turned,
            self.prefetched,
        ]
        .iter()
        .all(|n| *n > 0)
    }
}

/// What a life tells.
#[derive(Debug, Default)]
pub struct Told {
    pub counts: Counts,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Crashes by row of the tables of the design.
    pub rows: Reached,
    aloud: bool,
    /// Every change of the disks, if it is asked for.
    pub trace: Option<Vec<String>>,
}

impl Told {
    pub fn aloud() -> Told {
        Told { aloud: true, trace: Some(Vec::new()), ..Told::default() }
    }

    pub fn traced() -> Told {
        Told { trace: Some(Vec::new()), ..Told::default() }
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.aloud {
            println!("{}", what());
        }
    }

    /// Something goes wrong from now on.
    pub fn fault(&mut self, kind: &'static str) {
        self.counts.faults += 1;
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Adds what another thread's lives told.
    pub fn add(&mut self, other: Told) {
        self.counts += other.counts;
        self.rows += other.rows;
        for (kind, count) in other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }

    /// What was changed last on a disk on which something was found to be wrong.
    pub fn say_changes(&self, disk: &SimFs) {
        const LAST: usize = 60;
        self.say(|| {
            let all = disk.trace();
            let last = all.iter().enumerate().skip(all.len().saturating_sub(LAST));
            let last: Vec<String> = last.map(|(n, change)| format!("  {n}: {change}")).collect();
            format!("its last changes:\n{}", last.join("\n"))
        });
    }
}
