//! Codecs: what comes back, what is not worth it, and what is forged.

use super::*;
use crate::testing::noise;
use proptest::prelude::*;

const ALL: [Codec; 4] = [Codec::None, Codec::Zlib, Codec::Lz4, Codec::Deflate];

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
        (any::<u64>(), 0usize..40_000).prop_map(|(seed, n)| noise(seed, n)),
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

fn prose(len: usize) -> Vec<u8> {
    let mut text = String::new();
    let words =
        ["warm", "water", "meets", "cold", "the", "layer", "of", "a", "lake", "where", "and", "sinks"];
    for n in noise(5, len / 2 + 1) {
        text.push_str(words[usize::from(n) % words.len()]);
        text.push(if n > 240 { '\n' } else { ' ' });
    }
    text.truncate(len);
    text.into_bytes()
}

#[test]
fn each_type_is_compressed_as_the_policy_says() {
    let policy = Compression::default();
    let value = Bytes::from(b"0123456789abcdef".repeat(256));
    for (kind, codec) in [
        (ContentType::Text, Codec::Zlib),
        (ContentType::Json, Codec::Zlib),
        (ContentType::Binary, Codec::Lz4),
        (ContentType::Media, Codec::Lz4),
    ] {
        assert_eq!(encode(&policy, kind, &value).0, codec, "{kind}");
        let (codec, payload) = encode(&Compression::none(), kind, &value);
        assert_eq!(codec, Codec::None);
        assert_eq!(payload.as_ptr(), value.as_ptr(), "no copy");
    }
    let swapped = Compression { text: Codec::Lz4, media: Codec::Zlib, ..policy };
    assert_eq!(encode(&swapped, ContentType::Text, &value).0, Codec::Lz4);
    assert_eq!(encode(&swapped, ContentType::Media, &value).0, Codec::Zlib);
}

#[test]
fn short_values_and_poor_results_are_stored_as_they_are() {
    let policy = Compression::default();
    let zeros = |n| Bytes::from(vec![0u8; n]);
    assert_eq!(encode(&policy, ContentType::Text, &zeros(1023)).0, Codec::None);
    assert_eq!(encode(&policy, ContentType::Text, &zeros(1024)).0, Codec::Zlib);
    assert_eq!(encode(&policy, ContentType::Binary, &zeros(511)).0, Codec::None);
    assert_eq!(encode(&policy, ContentType::Binary, &zeros(512)).0, Codec::Lz4);
    // Half noise: comes to a little over half.
    let mut half = noise(3, 2000);
    half.resize(4000, b'x');
    let half = Bytes::from(half);
    assert_eq!(encode(&policy, ContentType::Binary, &half).0, Codec::Lz4);
    let strict = Algorithm { threshold: 0.5, ..policy.lz4 };
    let strict = Compression { lz4: strict, ..policy.clone() };
    assert_eq!(encode(&strict, ContentType::Binary, &half).0, Codec::None);
    let strict = Compression { zlib: Algorithm { threshold: 0.5, ..policy.zlib }, ..policy.clone() };
    assert_eq!(encode(&policy, ContentType::Text, &half).0, Codec::Zlib);
    assert_eq!(encode(&strict, ContentType::Text, &half).0, Codec::None);
    let off = Compression { zlib: Algorithm { level: 0, ..policy.zlib }, ..policy };
    assert_eq!(encode(&off, ContentType::Text, &half).0, Codec::None);
}

#[test]
fn the_level_is_used() {
    let value = Bytes::from(prose(100_000));
    let at = |level| {
        let zlib = Algorithm { level, ..Compression::default().zlib };
        let (codec, payload) =
            encode(&Compression { zlib, ..Compression::default() }, ContentType::Text, &value);
        assert_eq!(codec, Codec::Zlib);
        payload.len()
    };
    let sizes = [at(1), at(6), at(9)];
    assert!(sizes[0] > sizes[1] && sizes[1] >= sizes[2], "{sizes:?}");
    assert_eq!(at(1), sizes[0], "a kept compressor of another level is not used");
}

#[test]
fn the_quick_look_skips_noise_and_nothing_that_shrinks() {
    for zlib in [false, true] {
        assert!(!may_shrink(&noise(1, 100_000), zlib));
        assert!(may_shrink(&prose(100_000), zlib));
        assert!(may_shrink(&noise(1, SAMPLE_FROM - 1), zlib), "too short to look");
    }
    // A block that comes back: seen, because the stretches of the sample are looked at together.
    let repeated = noise(1, 4096).repeat(16);
    assert!(may_shrink(&repeated, false));
    // Bytes of six bits without repetition: only deflate gains.
    let six: Vec<u8> = noise(1, 100_000).iter().map(|b| b & 63).collect();
    assert!(may_shrink(&six, true) && !may_shrink(&six, false));
    let (codec, payload) = encode(&Compression::default(), ContentType::Text, &Bytes::from(six));
    assert!(codec == Codec::Zlib && payload.len() < 78_000);
    // Data at the front and noise behind it, and the reverse: one look is not enough.
    let mut front = prose(50_000);
    front.extend(noise(1, 50_000));
    assert!(may_shrink(&front, false));
    let mut back = noise(1, 50_000);
    back.extend(prose(50_000));
    assert!(may_shrink(&back, false));
}

#[test]
fn entropy_is_that_of_shannon() {
    assert_eq!(entropy_bits(&[]), 0.0);
    assert_eq!(entropy_bits(&[7; 100]), 0.0);
    assert!((entropy_bits(b"abcdabcd") - 2.0).abs() < 1e-9);
    assert!((entropy_bits(&(0..=255).collect::<Vec<u8>>()) - 8.0).abs() < 1e-9);
}

#[test]
fn impossible_settings_are_refused_with_the_cure() {
    let good = Compression::default();
    assert_eq!(good.validate(), Ok(()));
    assert_eq!(Compression::none().validate(), Ok(()));
    let zlib = |a: Algorithm| Compression { zlib: a, ..Compression::default() }.validate();
    let lz4 = |a: Algorithm| Compression { lz4: a, ..Compression::default() }.validate();
    for level in 0..=9 {
        assert_eq!(zlib(Algorithm { level, ..good.zlib }), Ok(()));
    }
    assert!(zlib(Algorithm { level: 10, ..good.zlib }).is_err_and(|e| e.contains("0 (off) to 9")));
    for level in [0, 2, 9] {
        assert!(lz4(Algorithm { level, ..good.lz4 }).is_err_and(|e| e.contains("at 1")));
    }
    for threshold in [0.0, -0.1, 1.01, f64::NAN, f64::INFINITY] {
        assert!(zlib(Algorithm { threshold, ..good.zlib }).is_err_and(|e| e.contains("at most 1")));
        assert!(lz4(Algorithm { threshold, ..good.lz4 }).is_err_and(|e| e.contains("lz4 threshold")));
    }
    assert_eq!(zlib(Algorithm { threshold: 1.0, ..good.zlib }), Ok(()));
    for broken in [
        Compression { text: Codec::Deflate, ..good.clone() },
        Compression { json: Codec::Deflate, ..good.clone() },
        Compression { binary: Codec::Deflate, ..good.clone() },
        Compression { media: Codec::Deflate, ..good.clone() },
    ] {
        assert!(broken.validate().is_err_and(|e| e.contains("\"none\"")));
    }
}

#[test]
fn a_batch_comes_back_in_order_however_large() {
    let policy = Compression::default();
    for (count, len) in [(0, 0), (1, 3 << 20), (40, 1000), (300, 20_000)] {
        let items: Vec<(ContentType, Bytes)> = (0..count)
            .map(|i| {
                let value = match i % 3 {
                    0 => prose(len + i),
                    1 => noise(i as u64, len + i),
                    _ => vec![i as u8; len + i],
                };
                (ContentType::STORED[i % 4], Bytes::from(value))
            })
            .collect();
        let encoded = encode_all(&policy, items.clone(), &Effort::default());
        assert_eq!(encoded.len(), count);
        for ((kind, value), (codec, payload)) in items.iter().zip(&encoded) {
            assert_eq!(encode(&policy, *kind, value), (*codec, payload.clone()));
            assert_eq!(decode(*codec, payload, value.len() as u32).expect("decodes"), value);
        }
    }
}

#[test]
fn nothing_to_decode_is_copied_without_a_codec() {
    let payload = Bytes::from_static(b"as it is");
    let value = decode(Codec::None, &payload, 8).expect("decodes");
    assert_eq!(value.as_ptr(), payload.as_ptr());
}

#[test]
fn other_programs_streams_are_read() {
    // Made by the C zlib 1.2.13 at level 6, and by the lz4 tool 1.9.4 (the block within its frame).
    let value = b"hello hello hello hello\n";
    let zlib = b"\x78\x9c\xcb\x48\xcd\xc9\xc9\x57\xc8\x40\x27\xb9\x00\x70\xbe\x08\xbb";
    let raw = &zlib[2..zlib.len() - 4];
    let lz4 = b"\x69hello \x06\x00\x50ello\n";
    for (codec, payload) in [(Codec::Deflate, raw), (Codec::Zlib, zlib), (Codec::Lz4, lz4)] {
        assert_eq!(
            decode(codec, &Bytes::copy_from_slice(payload), 24).expect("decodes"),
            &value[..],
            "{codec}"
        );
    }
}

#[test]
fn a_zlib_payload_with_a_wrong_check_is_refused() {
    let value = prose(5000);
    let mut payload = packed(Codec::Zlib, &value).to_vec();
    let last = payload.len() - 1;
    payload[last] ^= 1;
    assert!(decode(Codec::Zlib, &Bytes::from(payload), 5000).is_err());
}

#[test]
fn types_are_found_from_the_bytes() {
    use ContentType::{Binary, Json, Media, Text};
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    png.extend(noise(2, 3000));
    let mut zip = b"PK\x03\x04\x14\0\0\0\x08\0".to_vec();
    zip.extend(noise(2, 3000));
    let mut tar = vec![0u8; 1024];
    tar[..5].copy_from_slice(b"a.txt");
    tar[257..262].copy_from_slice(b"ustar");
    let mut late_binary = prose(20_000);
    late_binary.extend(noise(1, 20_000));
    let long_json = format!("{{\"rows\":[{}0]}}", "{\"a\":\"b\\\"c\",\"n\":-1.5e3,\"t\":true},".repeat(500));
    let umlauts = "Größe ".repeat(2000);
    let cases: Vec<(&str, Vec<u8>, ContentType)> = vec![
        ("nothing", vec![], Binary),
        ("prose", prose(9000), Text),
        ("one letter", b"x".to_vec(), Text),
        ("UTF-8, cut anywhere", umlauts.clone().into_bytes(), Text),
        ("UTF-8 at odd places", format!("x{umlauts}").into_bytes(), Text),
        ("a word that is a signature", b"BMW is a car, II* a number".to_vec(), Text),
        ("HTML", b"<!DOCTYPE html><p>hi".to_vec(), Text),
        ("a number", b"42".to_vec(), Text),
        ("a string", b"\"abc\"".to_vec(), Text),
        ("an object", b"{\"a\": [1, 2, {}], \"b\": null}".to_vec(), Json),
        ("an array", b" \n[1,2,3]\n".to_vec(), Json),
        ("empty ones", b"[]".to_vec(), Json),
        ("lines of JSON", b"{\"a\":1}\n{\"a\":2}\n".to_vec(), Json),
        ("with a byte order mark", b"\xEF\xBB\xBF{}".to_vec(), Json),
        ("long JSON", long_json.into_bytes(), Json),
        ("a set in braces", b"{a, b, c}".to_vec(), Text),
        ("a list of links", b"[see](http://x)".to_vec(), Text),
        ("not closed", b"{\"a\": [1, 2}".to_vec(), Text),
        ("cut off", b"{\"a\": [1, 2]".to_vec(), Text),
        ("a comma too many", b"[1,]".to_vec(), Text),
        ("control characters", b"abc\x01\x02".to_vec(), Binary),
        ("a zero byte", b"abc\0".to_vec(), Binary),
        ("Latin-1", b"Gr\xF6\xDFe ".to_vec(), Binary),
        ("noise", noise(77, 5000), Binary),
        ("text, then noise", late_binary, Binary),
        ("PNG", png, Media),
        ("JPEG", vec![0xFF, 0xD8, 0xFF, 0xE0, 0, 16, b'J', b'F', b'I', b'F', 0], Media),
        ("gzip", vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3], Media),
        ("ZIP", zip, Media),
        ("zstd", vec![0x28, 0xB5, 0x2F, 0xFD, 4, 0, 0, 0], Media),
        ("tar holds without compressing", tar, Binary),
        ("SQLite", b"SQLite format 3\0\x10\0\x01\x01".to_vec(), Binary),
        ("ELF", b"\x7FELF\x02\x01\x01\0".repeat(10), Binary),
    ];
    for (what, bytes, kind) in cases {
        assert_eq!(detect(&bytes), kind, "{what}");
    }
}

#[test]
fn every_compressed_format_is_found_by_its_signature() {
    let signatures: &[&[u8]] = &[
        b"\xFF\xD8\xFF\xE0",                     // JPEG
        b"\0\0\0\x0CjP  \r\n\x87\n\0",           // JPEG 2000
        b"\x89PNG\r\n\x1A\n",                    // PNG
        b"GIF89a\x80",                           // GIF
        b"RIFF\x80\0\0\0WEBPVP8 ",               // WebP
        b"RIFF\x80\0\0\0WAVEfmt ",               // WAV
        b"RIFF\x80\0\0\0AVI LIST",               // AVI
        b"II*\0\x08\0\0\0\x80",                  // TIFF
        b"MM\0*\0\0\0\x08",                      // TIFF, big-endian
        b"BM\x80\0\0\0",                         // BMP
        b"II\xBC\x01",                           // JPEG XR
        b"8BPS\0\x01",                           // Photoshop
        b"\0\0\x01\0\x01\0",                     // ICO
        b"\xFF\x0A\xFA",                         // JPEG XL, bare
        b"\0\0\0\x0CJXL \r\n\x87\n",             // JPEG XL
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",   // HEIF
        b"\0\0\0\x18ftypavif\0\0\0\0avifmif1",   // AVIF
        b"AT&TFORM\x80\0\0\0DJVU",               // DjVu
        b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2", // MP4
        b"\0\0\x10\0moov\0\0\0\x6Cmvhd",         // QuickTime
        b"0&\xB2u\x8Ef\xCF\x11\xA6\xD9",         // WMV
        b"\0\0\x01\xBA\x44",                     // MPEG
        b"FLV\x01\x05",                          // FLV
        b"MThd\0\0\0\x06",                       // MIDI
        b"ID3\x04\0\0",                          // MP3
        b"\xFF\xFB\x90\x64",                     // MP3 without tags
        b"M4A \x80",                             // M4A
        b"OggS\0\x02",                           // Ogg
        b"fLaC\0\0\0\x22",                       // FLAC
        b"#!AMR\n\x80",                          // AMR
        b"\xFF\xF1\x50\x80",                     // AAC
        b"FORM\x80\0\0\0AIFFCOMM",               // AIFF
        b"DSD \x1C\0\0\0",                       // DSF
        b"MAC \x96\x0F",                         // Monkey's Audio
        b"wOFF\0\x01\0\0",                       // WOFF
        b"wOF2\0\x01\0\0",                       // WOFF2
        b"PK\x03\x04\x14\0\0\0",                 // ZIP
        b"Rar!\x1A\x07\x01\0",                   // RAR
        b"\x1F\x8B\x08\0",                       // gzip
        b"\x1F\x9D\x90",                         // compress
        b"BZh91AY\x80",                          // bzip2
        b"BZ3v1\x80",                            // bzip3
        b"7z\xBC\xAF\x27\x1C",                   // 7-Zip
        b"\xFD7zXZ\0",                           // xz
        b"LZIP\x01\x80",                         // lzip
        b"\x28\xB5\x2F\xFD\x24",                 // Zstandard
        b"\x04\x22\x4D\x18\x64",                 // LZ4
        b"%PDF-1.7\n%\xE2\xE3\xCF\xD3\n",        // PDF
        b"CWS\x0A\x80",                          // Flash
        b"MSCF\0\0\0\0",                         // CAB
        b"!<arch>\ndebian-binary   \x80",        // Debian package
    ];
    for signature in signatures {
        let mut bytes = signature.to_vec();
        bytes.resize(600, 0xF3);
        assert_eq!(detect(&bytes), ContentType::Media, "{}", signature.escape_ascii());
    }
    let mut mkv = b"\x1A\x45\xDF\xA3\x93\x42\x82\x88matroska".to_vec();
    mkv.resize(600, 0xF3);
    assert_eq!(detect(&mkv), ContentType::Media);
    let mut rpm = b"\xED\xAB\xEE\xDB\x03".to_vec();
    rpm.resize(600, 0xF3);
    assert_eq!(detect(&rpm), ContentType::Media);
}

#[test]
fn a_content_type_may_have_a_level_and_a_codec_of_its_own() {
    let text: Vec<u8> =
        (0..20_000u32).flat_map(|n| format!("{} degrees, ", n * n % 977).into_bytes()).collect();
    let value = Bytes::from(text);
    let mut policy = Compression::default();
    let plain = encode(&policy, ContentType::Text, &value);
    policy.set(ContentType::Text, Codec::Zlib, 1);
    assert_eq!((policy.level_of(ContentType::Text), policy.level_of(ContentType::Json)), (1, 6));
    let quick = encode(&policy, ContentType::Text, &value);
    assert!(quick.1.len() > plain.1.len(), "{} and {}", quick.1.len(), plain.1.len());
    assert_eq!(encode(&policy, ContentType::Json, &value), plain, "the other types stay as they were");
    policy.set(ContentType::Text, Codec::Lz4, 1);
    assert_eq!(encode(&policy, ContentType::Text, &value).0, Codec::Lz4);
    policy.set(ContentType::Text, Codec::None, 1);
    assert_eq!(encode(&policy, ContentType::Text, &value), (Codec::None, value));
    policy.set(ContentType::Json, Codec::Zlib, 10);
    assert!(policy.validate().unwrap_err().contains("level 10"));
}

#[test]
fn what_compressing_took_is_counted_by_type_and_codec() {
    let (policy, effort) = (Compression::default(), Effort::default());
    let text = Bytes::from("the quick brown fox ".repeat(500));
    let noise = crate::testing::noise(7, 20_000);
    let short = Bytes::from_static(b"short");
    let items = vec![
        (ContentType::Text, text.clone()),
        (ContentType::Text, Bytes::from(noise.clone())),
        (ContentType::Media, text.clone()),
        (ContentType::Json, short),
    ];
    let encoded = encode_all(&policy, items, &effort);
    let of = |kind, codec| effort.spent(kind, codec);
    let zlib = of(ContentType::Text, Codec::Zlib);
    assert_eq!((zlib.kept, zlib.original_bytes), (1, 10_000));
    assert_eq!(zlib.stored_bytes, encoded[0].1.len() as u64);
    assert_eq!((zlib.skipped, zlib.skipped_bytes), (1, noise.len() as u64));
    assert!(zlib.nanos > 1000, "{zlib:?}");
    let lz4 = of(ContentType::Media, Codec::Lz4);
    assert_eq!((lz4.kept, lz4.original_bytes, lz4.skipped), (1, 10_000, 0));
    assert_eq!(lz4.stored_bytes, encoded[2].1.len() as u64);
    // Too short for anything to be tried; other codecs; other types.
    for (kind, codec) in [
        (ContentType::Json, Codec::Zlib),
        (ContentType::Text, Codec::Lz4),
        (ContentType::Binary, Codec::Lz4),
        (ContentType::Auto, Codec::Lz4),
        (ContentType::Text, Codec::None),
    ] {
        assert_eq!(of(kind, codec), Spent::default(), "{kind} {codec}");
    }
}
