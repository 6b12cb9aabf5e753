//! Forged lengths cannot make the decoder reserve memory. A process of its own, so that the kernel's count of the
//! address space is that of the decoder alone.

#[path = "../src/testing/noise.rs"]
mod noise;

use bytes::Bytes;
use noise::noise;
use thermocline_storage::Codec;
use thermocline_storage::codec::{decode, deflate};

/// The largest address space that this process has had, in bytes.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmPeak:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// An LZ4 block that is all literals.
fn literals(bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![0xF0];
    let mut rest = bytes.len() - 15;
    while rest >= 255 {
        block.push(255);
        rest -= 255;
    }
    block.push(rest as u8);
    block.extend_from_slice(bytes);
    block
}

#[test]
fn a_forged_length_reserves_next_to_nothing() {
    const GIB: u32 = 1 << 30;
    let tiny = Bytes::from_static(b"0123456789");
    let noise = noise(88_172_645_463_325_252, 5 << 20);
    let raw = Bytes::from(deflate(&noise, 1));
    let block = Bytes::from(literals(&noise));
    let len = noise.len() as u32;
    // Everything that a call needs once.
    assert_eq!(decode(Codec::Deflate, &raw, len).expect("decodes"), noise);
    assert_eq!(decode(Codec::Lz4, &block, len).expect("decodes"), noise);
    assert!(decode(Codec::Zlib, &raw, len).is_err());
    let before = peak().expect("the kernel says");
    for codec in [Codec::None, Codec::Zlib, Codec::Lz4, Codec::Deflate] {
        for forged in [10_000, 1 << 20, GIB, u32::MAX] {
            assert!(decode(codec, &tiny, forged).is_err());
        }
        // Five MiB could expand to a GiB; these do not.
        assert!(decode(codec, &raw, GIB).is_err());
        assert!(decode(codec, &block, GIB).is_err());
    }
    let grown = peak().expect("the kernel says") - before;
    // The deflate stream justifies eight times its length before it has yielded a byte.
    println!("{} MiB", grown >> 20);
    assert!(grown < 80 << 20, "{} MiB more address space", grown >> 20);
}
