//! What a life tells of itself: how much happened and, where it is asked for, everything.

use thermocline_storage::sim::SimFs;

thermocline_testing::counts! {
    /// How much happened.
    pub struct Counts {
        operations,
        refused,
        crashes,
        recoveries,
        cut_off,
        faults,
        moved,
        evicted,
        rotten,
    }
}

impl Counts {
    /// Whether all kinds of things happened.
    pub fn is_lively(&self) -> bool {
        let went_wrong =
            [self.refused, self.crashes, self.recoveries, self.cut_off, self.faults, self.rotten];
        went_wrong.iter().chain(&[self.moved, self.evicted]).all(|n| *n > 0)
    }
}

/// What a life tells.
#[derive(Debug, Default)]
pub struct Told {
    pub counts: Counts,
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
