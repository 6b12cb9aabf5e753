//! Generations of the HDD tier: any bytes as a value file, or whole ones forged with right checksums, opened as the tier
//! does with its indexes in RAM; and seals of indexes, which tell what sled may open.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thermocline_fuzz::bound::bounded;
use thermocline_fuzz::tier::{Input, run};
use thermocline_storage::Tier;
use thermocline_storage::record::checksum;
use thermocline_storage::testing::doors;

/// Any bytes as a seal, as they are and with the head and the checksum that make them one.
fn seal(raw: &[u8]) {
    let container = 77u64;
    let mut whole = [b"TCS1\x01\0\0\0", &container.to_le_bytes()[..], raw].concat();
    whole.extend_from_slice(&checksum(container, &whole).to_le_bytes());
    for bytes in [raw, &whole] {
        // Numbers of files, and names, are bounded by what is there.
        if let Some(again) = bounded((64 << 10) + bytes.len() * 16, || doors::seal(bytes, container)) {
            assert!(again.len() <= bytes.len());
            assert_eq!(doors::seal(&again, container).as_ref(), Some(&again));
        }
    }
}

fuzz_target!(init: thermocline_fuzz::begin(), |input: Input<'_>| {
    if let Some(raw) = input.raw {
        seal(raw);
    }
    run(&input, Tier::Hdd, "values-");
});
