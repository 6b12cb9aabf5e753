//! What a store is to be like: drawn from its seed, the same in the process that is killed and in the one that judges.

use crate::common::{Dice, Tiers};
use crate::log::Told;
use std::path::{Path, PathBuf};
use thermocline::{Builder, MemoryPolicy, Persistence};
use thermocline_testing::history::Promise;

/// Who writes waits while something is older than this that is to be durable soon: when somebody's write was
/// acknowledged, what had ended so long before it had begun is durable, however slow the machine is.
const OLDEST_MS: u64 = 2_000;

const MIB: u64 = 1 << 20;

/// Which tiers, and how they are set.
#[derive(Debug, Clone)]
pub struct Plan {
    pub persistence: Persistence,
    pub tiers: Tiers,
    pub policy: MemoryPolicy,
    pub keys: u32,
    /// In memory, where syncs cost nothing; else on a disk, where operations wait for them.
    pub in_memory: bool,
}

impl Plan {
    /// The three modes take turns, and so do the shapes.
    pub fn draw(seed: u64) -> Plan {
        let mut dice = Dice::new(seed);
        let persistence = match seed % 3 {
            0 => Persistence::Always,
            1 => Persistence::EverySecond,
            _ => Persistence::OnEviction,
        };
        let (ssd, hdd, cold) = match (seed / 3) % 7 {
            0 => (4, 3, Some(0)),
            1 => (4, 0, Some(0)),
            2 => (4, 3, Some(3)),
            3 => (0, 3, Some(0)),
            4 => (5, 4, None),
            5 => (4, 0, None),
            _ => (0, 0, Some(0)),
        };
        Plan {
            persistence,
            tiers: Tiers { ssd, hdd, cold },
            policy: if dice.below(3) == 0 { MemoryPolicy::Lru } else { MemoryPolicy::Adaptive },
            keys: 500 + dice.below(500) as u32,
            in_memory: dice.below(3) > 0,
        }
    }

    pub fn builder(&self, dir: &Path) -> Builder {
        let mut b = self.tiers.builder(dir, self.persistence).memory_policy(self.policy);
        let s = &mut b.config_mut().storage;
        s.checkpoint_journal_size = MIB;
        s.checkpoint_interval = 1;
        s.erase_after = 1;
        b
    }

    /// What a kill has to leave.
    pub fn promise(&self, told: &Told) -> Promise {
        let old = |began: u64| began.saturating_sub(OLDEST_MS);
        match self.persistence {
            Persistence::Always => Promise::Durable,
            Persistence::EverySecond => Promise::Until(old(told.write_began)),
            // The promise is of removals alone, and so is what they wait for.
            _ => Promise::RemovalsUntil(old(told.removal_began)),
        }
    }

    /// Whether, of the rounds of a store, one has to last so long that writes grow old.
    pub fn grows_old(&self) -> bool {
        self.persistence != Persistence::Always
    }
}

/// What a child is asked to do.
#[derive(Debug, Clone)]
pub struct Job {
    pub seed: u64,
    pub round: u64,
    /// Whether it opens the store, and no more.
    pub only_open: bool,
    pub store: PathBuf,
    pub log: PathBuf,
}

const VARIABLE: &str = "THERMOCLINE_TEST_KILL";

impl Job {
    /// The environment variable that says it.
    pub fn variable(&self) -> (&'static str, String) {
        let (store, log) = (self.store.to_str().unwrap(), self.log.to_str().unwrap());
        let text = format!("{}\n{}\n{}\n{store}\n{log}", self.seed, self.round, u64::from(self.only_open));
        (VARIABLE, text)
    }

    /// What this process is asked to do, if it is a child.
    pub fn of_this_process() -> Option<Job> {
        let text = std::env::var(VARIABLE).ok()?;
        let [seed, round, only_open, store, log] = text.split('\n').collect::<Vec<_>>()[..] else {
            panic!("{VARIABLE}: {text:?}")
        };
        let only_open = only_open == "1";
        let (store, log) = (store.into(), log.into());
        Some(Job { seed: seed.parse().unwrap(), round: round.parse().unwrap(), only_open, store, log })
    }
}
