//! Whole packs of the cold tier: any bytes, or whole ones forged with right checksums, opened as the tier does.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thermocline_fuzz::tier::{Input, run};
use thermocline_storage::Tier;

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input<'_>| run(&input, Tier::Cold, "pack-"));
