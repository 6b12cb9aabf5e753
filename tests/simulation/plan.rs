//! What a life is to be like: drawn from its seed.

use std::path::Path;
use std::time::Duration;
use thermocline::{Builder, Cache, MemoryPolicy, Persistence};
use thermocline_storage::sim::{
    Away, Dice, EACCES, EDQUOT, EINTR, EIO, EMFILE, ENOSPC, EROFS, Fault, Op, Trouble,
};

pub const KIB: u64 = 1 << 10;
/// The catalog's directory, where it has one.
const CATALOG: &str = "/k";

/// Which tiers, how they are set, and what goes wrong.
#[derive(Debug, Clone)]
pub struct Plan {
    pub ssd: bool,
    pub hdd: bool,
    pub cold: bool,
    pub cold_limited: bool,
    pub two_dirs: bool,
    pub persistence: Persistence,
    pub policy: MemoryPolicy,
    /// Calls fail now and then.
    pub faults: bool,
    pub keys: u64,
    pub factor: u64,
    /// The catalog has a directory of its own.
    pub catalog_apart: bool,
    /// Of the disks that a crash leaves, some have a bit turned somewhere.
    pub rot: bool,
    /// Calls are interrupted now and then.
    pub interrupted: bool,
    /// Nobody flushes: what was put is durable by itself, or by a close.
    pub unflushed: bool,
    /// With the operations and faults that were thought of later; without, a life that went wrong once goes as it did.
    pub wide: bool,
    /// How long what is put lives if nobody says otherwise, in milliseconds.
    pub default_ttl: Option<u64>,
    /// Files can be mapped.
    pub maps: bool,
    /// What the optimizer might do is done now and then.
    pub turned: bool,
    pub memory: u64,
}

impl Plan {
    pub fn draw(seed: u64, dice: &mut Dice) -> Plan {
        // Other dice: what was drawn before these were thought of stays as it was, and lives that went wrong with it.
        let mut more = Dice::new(!seed);
        let mut latest = Dice::new(!seed.rotate_left(16));
        let (ssd, hdd, cold) = loop {
            let bits = dice.below(8);
            if bits != 0 {
                break (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
            }
        };
        let persistence = match dice.below(3) {
            0 => Persistence::Always,
            1 => Persistence::EverySecond,
            _ => Persistence::OnEviction,
        };
        Plan {
            ssd,
            hdd,
            cold,
            cold_limited: dice.one_in(2),
            two_dirs: dice.one_in(4),
            persistence,
            policy: if dice.one_in(4) { MemoryPolicy::Lru } else { MemoryPolicy::Adaptive },
            faults: dice.one_in(2),
            keys: 4 + dice.below(40),
            factor: 1 + dice.below(4),
            catalog_apart: more.one_in(5),
            rot: more.one_in(4),
            interrupted: more.one_in(4),
            unflushed: more.one_in(5),
            wide: true,
            default_ttl: more.one_in(4).then(|| 1000 * (1 + more.below(20))),
            maps: more.one_in(8),
            turned: latest.one_in(2),
            // With the least of these, what is prefetched has hardly any room.
            memory: [24, 24, 96, 256][latest.below(4) as usize] * KIB,
        }
    }

    /// The plan as it was drawn before there were later thoughts.
    pub fn without_later_thoughts(self) -> Plan {
        Plan { wide: false, default_ttl: None, maps: false, ..self.without_the_optimizer() }
    }

    /// The plan as it was drawn before the optimizer had a hand in it.
    pub fn without_the_optimizer(self) -> Plan {
        Plan { turned: false, memory: 24 * KIB, ..self }
    }

    /// Every directory that there has to be.
    pub fn all_dirs(&self) -> Vec<&'static str> {
        self.dirs().into_iter().chain(self.catalog_apart.then_some(CATALOG)).collect()
    }

    /// Those of the tiers.
    fn dirs(&self) -> Vec<&'static str> {
        let mut dirs = Vec::new();
        for (there, of) in [(self.ssd, ["/s", "/s2"]), (self.hdd, ["/h", "/h2"]), (self.cold, ["/c", "/c2"])]
        {
            if there {
                dirs.extend(&of[..if self.two_dirs { 2 } else { 1 }]);
            }
        }
        dirs
    }

    pub fn builder(&self) -> Builder {
        let mut b =
            Cache::builder().memory(self.memory).memory_policy(self.policy).persistence(self.persistence);
        let size = self.factor * 64 * KIB;
        for dir in self.dirs() {
            b = match dir.as_bytes().get(1) {
                Some(b's') => b.ssd(dir, size),
                Some(b'h') => b.hdd(dir, 2 * size),
                _ => b.cold(dir),
            };
        }
        if self.catalog_apart {
            b = b.catalog(CATALOG);
        }
        if self.cold && self.cold_limited {
            b = b.cold_limit(2 * size);
        }
        if let Some(ms) = self.default_ttl {
            b = b.default_ttl(Duration::from_millis(ms));
        }
        b.config_mut().resources.io.write_buffer_size = 32 * KIB;
        let s = &mut b.config_mut().storage;
        s.segment_size = Some(size / 8);
        s.generation_size = Some(size / 4);
        s.pack_size = Some(size / 4);
        s.block_size = 4 * KIB;
        s.max_value_size = Some(16 * KIB);
        s.inflight = Some(1 << 20);
        s.write_stall_limit = 0;
        s.checkpoint_journal_size = 16 * KIB;
        s.erase_after = 1;
        b
    }

    /// Something that goes wrong, and what to call it.
    pub fn fault(&self, dice: &mut Dice, more: &mut Dice) -> (&'static str, Fault) {
        if self.wide && more.one_in(3) {
            return self.rarer_fault(more);
        }
        let (name, fault) = match dice.below(8) {
            0 => ("EIO", Fault::on_any(ANY).errno(EIO)),
            1 => ("ENOSPC", Fault::on_any(WRITING).errno(ENOSPC)),
            2 => ("forgotten sync", Fault::on(Op::Sync).trouble(Trouble::Forgotten)),
            3 => ("EIO of sync", Fault::on(Op::Sync).errno(EIO)),
            4 => ("short", Fault::on_any(DATA).trouble(Trouble::Short)),
            5 => ("EMFILE", Fault::on_any(DESCRIPTORS).errno(EMFILE)),
            // Not for ever: whoever is interrupted tries again.
            6 if self.interrupted => {
                let fault = Fault::on_any(DATA).errno(EINTR);
                return ("EINTR", fault.after(dice.below(12)).times(1 + dice.below(40)));
            }
            6 => ("EIO of read", Fault::on(Op::Read).errno(EIO)),
            _ => {
                let one = *dice.pick(ANY).unwrap_or(&Op::Write);
                ("EIO", Fault::on(one).errno(EIO))
            }
        };
        (name, self.somewhere(fault, dice))
    }

    /// For a while, in one directory or in all.
    fn somewhere(&self, fault: Fault, dice: &mut Dice) -> Fault {
        let fault =
            fault.after(dice.below(12)).times(if dice.one_in(3) { u64::MAX } else { 1 + dice.below(3) });
        match dice.pick(&self.all_dirs()) {
            Some(dir) if dice.one_in(2) => fault.below(Path::new(dir)),
            _ => fault,
        }
    }

    fn rarer_fault(&self, dice: &mut Dice) -> (&'static str, Fault) {
        let (name, fault) = match dice.below(7) {
            // What ext4 does after an error, unless it is told otherwise: no write from then on.
            0 => {
                let fault = Fault::on_any(CHANGING).errno(EROFS);
                return ("EROFS", self.somewhere(fault, dice).times(u64::MAX));
            }
            1 => ("EDQUOT", Fault::on_any(WRITING).errno(EDQUOT)),
            2 | 3 => ("forgotten names", Fault::on(Op::SyncDir).trouble(Trouble::Forgotten)),
            4 => ("forgotten all", Fault::on_any(SYNCING).trouble(Trouble::Forgotten)),
            5 => ("EACCES", Fault::on_any(OPENING).errno(EACCES)),
            _ => {
                let one = *dice.pick(ASKING).unwrap_or(&Op::Len);
                ("EIO of asking", Fault::on(one).errno(EIO))
            }
        };
        (name, self.somewhere(fault, dice))
    }

    /// A way to be away.
    pub fn away(&self, more: &mut Dice) -> (&'static str, Away) {
        let ways = [("missing", Away::Missing), ("renamed", Away::Renamed), ("unplugged", Away::Unplugged)];
        if self.wide { ways[more.below(3) as usize] } else { ways[0] }
    }
}

const ANY: &[Op] = &[
    Op::Open,
    Op::OpenToWrite,
    Op::Create,
    Op::MakeDir,
    Op::List,
    Op::Rename,
    Op::RemoveFile,
    Op::SyncDir,
    Op::Read,
    Op::Write,
    Op::Allocate,
    Op::Sync,
];
const WRITING: &[Op] = &[Op::Create, Op::Write, Op::Allocate];
const DATA: &[Op] = &[Op::Read, Op::Write];
const OPENING: &[Op] = &[Op::Open, Op::OpenToWrite, Op::Create];
/// What takes a descriptor.
const DESCRIPTORS: &[Op] = &[Op::Open, Op::OpenToWrite, Op::Create, Op::List, Op::Lock, Op::SyncDir];
const SYNCING: &[Op] = &[Op::Sync, Op::SyncDir];
/// What a file system refuses that is mounted for reading alone.
const CHANGING: &[Op] = &[
    Op::OpenToWrite,
    Op::Create,
    Op::MakeDir,
    Op::Rename,
    Op::RemoveFile,
    Op::RemoveDir,
    Op::SyncDir,
    Op::Lock,
    Op::Write,
    Op::Allocate,
    Op::Sync,
];
/// What is asked seldom, and hardly ever fails.
const ASKING: &[Op] =
    &[Op::Kind, Op::RemoveDir, Op::Lock, Op::Locked, Op::Len, Op::Space, Op::Canonical, Op::Random];
