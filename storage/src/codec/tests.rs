use super::*;
use proptest::prelude::*;

const ALL: [Codec; 4] = [Codec::None, Codec::Zlib, Codec::Lz4, Codec::Deflate];

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

fn keep_all() -> Compression {
    let any = Algorithm { level: 1, min_size: 0, threshold: 1.0 };
    Compression { zlib: any, lz4: any, ..Compression::default() }
}

/// The payload of a value in a codec, whatever its length.
fn packed(codec: Codec, value: &[u8]) -> Bytes {
    match codec {
        Codec::None => Bytes::copy_from_slice(value),
        Codec::Zlib => deflate::compress(value, 6, true, value.len() * 2 + 64).expect("fits"),
        Codec::Deflate => Bytes::from(super::deflate(value, 6)),
        Codec::Lz4 => lz4::compress(value, value.len() * 2 + 64).expect("fits"),
    }
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..3000),
        proptest::collection::vec(0u8..4, 0..3000),
        ("[a-z ]{0,40}", 0usize..600).prop_map(|(s, n)| s.repeat(n).into_bytes()),
        (any::<u8>(), 0usize..200_000).prop_map(|(b, n)| vec![b; n]),
        (any::<u64>(), 0usize..40_000).prop_map(|(seed, n)| noise(n, seed)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_codec_gives_back_what_it_took(value in values()) {
        for codec in ALL {
            let payload = packed(codec, &value);
            prop_assert_eq!(decode(codec, &payload, value.len() as u32).expect("decodes"), &value);
        }
    }

    #[test]
    fn a_policy_gives_back_what_it_took(value in values(), keep in any::<bool>()) {
        let policy = if keep { keep_all() } else { Compression::default() };
        let value = Bytes::from(value);
        for kind in ContentType::STORED {
            let (codec, payload) = encode(&policy, kind, &value);
            prop_assert!(payload.len() <= value.len());
            if codec != Codec::None {
                let a = if codec == Codec::Zlib { &policy.zlib } else { &policy.lz4 };
                prop_assert!(payload.len() as f64 <= value.len() as f64 * a.threshold);
                prop_assert!(value.len() as u64 >= a.min_size);
            }
            prop_assert_eq!(decode(codec, &payload, value.len() as u32).expect("decodes"), &value);
        }
    }

    #[test]
    fn a_wrong_length_is_refused(value in values(), wrong in any::<u32>(), near in -3i64..=3) {
        for codec in ALL {
            let payload = packed(codec, &value);
            for len in [wrong, u32::try_from(value.len() as i64 + near).unwrap_or(0)] {
                let decoded = decode(codec, &payload, len);
                prop_assert_eq!(decoded.is_ok(), len as usize == value.len());
            }
        }
    }

    #[test]
    fn garbage_never_panics(junk in proptest::collection::vec(any::<u8>(), 0..400), len in 0u32..100_000) {
        let junk = Bytes::from(junk);
        for codec in ALL {
            if let Ok(value) = decode(codec, &junk, len) {
                prop_assert_eq!(value.len(), len as usize);
            }
        }
    }

    #[test]
    fn damage_never_panics(value in values(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        for codec in ALL {
            let mut payload = packed(codec, &value).to_vec();
            if payload.is_empty() {
                continue;
            }
            let i = at.index(payload.len());
            payload[i] ^= 1 << bit;
            if let Ok(decoded) = decode(codec, &Bytes::from(payload), value.len() as u32) {
                prop_assert_eq!(decoded.len(), value.len());
            }
        }
    }

    #[test]
    fn a_tail_is_refused(value in values(), tail in proptest::collection::vec(any::<u8>(), 1..20)) {
        for codec in [Codec::None, Codec::Zlib, Codec::Deflate] {
            let mut payload = packed(codec, &value).to_vec();
            payload.extend_from_slice(&tail);
            prop_assert!(decode(codec, &Bytes::from(payload), value.len() as u32).is_err());
        }
    }

    #[test]
    fn detection_never_panics_and_never_says_auto(bytes in values()) {
        prop_assert_ne!(detect(&bytes), ContentType::Auto);
    }

    #[test]
    fn a_cut_off_stream_is_refused(value in values(), cut in any::<prop::sample::Index>()) {
        for codec in [Codec::Zlib, Codec::Deflate, Codec::Lz4] {
            let payload = packed(codec, &value);
            let short = payload.slice(..cut.index(payload.len()));
            let decoded = decode(codec, &short, value.len() as u32);
            // An empty stream is no stream, whatever it stands for.
            prop_assert!(decoded.is_err(), "{codec} {} of {}", short.len(), payload.len());
        }
    }
}
