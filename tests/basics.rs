//! What every store does, whatever its tiers: put, get, remove, reopen.

use std::sync::Arc;
use std::time::Duration;
use thermocline::testing::{ManualClock, vfs::RealFs};
use thermocline::{Builder, Cache, ContentType, Persistence, PutOptions, Tier};

type Try = Result<(), Box<dyn std::error::Error>>;

/// Every subset of tiers, small.
fn stores(dir: &std::path::Path) -> Vec<(&'static str, Builder)> {
    let b = || Cache::builder().memory(4 << 20);
    vec![
        ("ssd", b().ssd(dir.join("1/s"), 64 << 20)),
        ("hdd", b().hdd(dir.join("2/h"), 64 << 20)),
        ("cold", b().cold(dir.join("3/c"))),
        ("ssd+hdd", b().ssd(dir.join("4/s"), 64 << 20).hdd(dir.join("4/h"), 64 << 20)),
        ("ssd+cold", b().ssd(dir.join("5/s"), 64 << 20).cold(dir.join("5/c"))),
        ("hdd+cold", b().hdd(dir.join("6/h"), 64 << 20).cold(dir.join("6/c"))),
        ("all", b().ssd(dir.join("7/s"), 64 << 20).hdd(dir.join("7/h"), 64 << 20).cold(dir.join("7/c"))),
    ]
}

fn value(i: u32) -> Vec<u8> {
    format!("value {i} ").repeat(1 + (i as usize % 200)).into_bytes()
}

#[test]
fn what_was_put_comes_back_after_a_reopen_and_what_was_removed_does_not() -> Try {
    for persistence in [Persistence::EverySecond, Persistence::OnEviction, Persistence::Always] {
        let dir = tempfile::tempdir()?;
        for (name, builder) in stores(dir.path()) {
            let builder = builder.persistence(persistence);
            let cache = builder.clone().open()?;
            let n = if persistence == Persistence::Always { 20 } else { 500 };
            for i in 0..n {
                cache.put(format!("key/{i}"), value(i))?;
            }
            for i in (0..n).step_by(3) {
                assert!(cache.remove(format!("key/{i}"))?, "{name} {i}");
                assert!(!cache.remove(format!("key/{i}"))?, "{name} {i}");
            }
            for i in (1..n).step_by(6) {
                cache.put(format!("key/{i}"), value(i + 1000))?;
            }
            let check = |cache: &Cache, when: &str| -> Try {
                for i in 0..n {
                    let want = match i {
                        i if i % 3 == 0 => None,
                        i if i % 6 == 1 => Some(value(i + 1000)),
                        i => Some(value(i)),
                    };
                    let got = cache.get(format!("key/{i}"))?.map(|v| v.to_vec());
                    assert_eq!(got, want, "{name} {persistence:?} {when}: key/{i}");
                }
                let live = (0..n).filter(|i| i % 3 != 0).count();
                assert_eq!(cache.keys("key/").count(), live, "{name} {when}");
                Ok(())
            };
            check(&cache, "at once")?;
            cache.flush()?;
            check(&cache, "after a flush")?;
            cache.close()?;
            let cache = builder.clone().open()?;
            assert_eq!(cache.recovery().lost, 0);
            check(&cache, "after a reopen")?;
            assert!(cache.verify()?.is_clean(), "{name}");
            let live = u64::from(n - n.div_ceil(3));
            assert_eq!(cache.clear()?, live, "{name}");
            assert_eq!(cache.keys("").count(), 0);
            drop(cache);
            assert_eq!(builder.open()?.keys("").count(), 0, "{name}");
        }
    }
    Ok(())
}

#[test]
fn memory_alone_keeps_within_its_limits() -> Try {
    let cache = Cache::builder().memory(1 << 20).memory_item_limit(100).open()?;
    for i in 0..1000 {
        cache.put(format!("k{i}"), value(i))?;
    }
    let stats = cache.stats();
    let memory = stats.tier(Tier::Memory).ok_or("memory")?;
    assert!(memory.items <= 100 && memory.bytes <= 1 << 20, "{memory:?}");
    assert_eq!(memory.items + stats.counts.evicted, 1000);
    assert!(cache.put("big", vec![0; 2 << 20]).is_err());
    cache.flush()?;
    Ok(())
}

#[test]
fn an_item_expires_everywhere() -> Try {
    let dir = tempfile::tempdir()?;
    for (name, builder) in stores(dir.path()) {
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let builder = builder.world(Arc::new(RealFs), clock.clone(), true);
        let cache = builder.clone().open()?;
        let short = PutOptions::new().ttl(Duration::from_millis(300)).content_type(ContentType::Text);
        cache.put_with("short", "gone soon", short)?;
        cache.put_with("long", "stays", PutOptions::new().ttl(Duration::from_secs(60)))?;
        cache.put("touched", "was to stay")?;
        assert!(cache.get("short")?.is_some());
        cache.flush()?;
        assert!(cache.expire_in("touched", Some(Duration::from_millis(300)))?);
        assert!(!cache.expire_in("nothing", Some(Duration::from_millis(300)))?);
        drop(cache);
        clock.advance(350);
        let cache = builder.open()?;
        assert_eq!(cache.get("short")?, None, "{name}");
        assert_eq!(cache.get("touched")?, None, "{name}");
        assert!(!cache.contains("short")? && !cache.remove("short")?, "{name}");
        let long = cache.get_entry("long")?.ok_or("long")?;
        assert!(long.expires_at.is_some() && &long.value[..] == b"stays");
        assert_eq!(cache.keys("").count(), 1, "{name}");
    }
    Ok(())
}

#[test]
fn conditional_puts_and_versions() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = Cache::builder().memory(1 << 20).ssd(dir.path().join("s"), 32 << 20).open()?;
    assert!(cache.put_if_absent("k", "1", PutOptions::new())?);
    assert!(!cache.put_if_absent("k", "2", PutOptions::new())?);
    let first = cache.get_entry("k")?.ok_or("k")?.version;
    cache.flush()?;
    assert_eq!(cache.get_entry("k")?.ok_or("k")?.version, first);
    assert!(cache.put_if_version("k", "3", first, PutOptions::new())?);
    assert!(!cache.put_if_version("k", "4", first, PutOptions::new())?);
    assert_eq!(cache.get("k")?.as_deref(), Some(&b"3"[..]));
    Ok(())
}

#[test]
fn explicit_moves_between_tiers() -> Try {
    let dir = tempfile::tempdir()?;
    let cache = Cache::builder()
        .memory(4 << 20)
        .ssd(dir.path().join("s"), 64 << 20)
        .hdd(dir.path().join("h"), 64 << 20)
        .cold(dir.path().join("c"))
        .open()?;
    let text = "some text that compresses well ".repeat(100);
    cache.put("k", text.clone())?;
    for tier in [Tier::Ssd, Tier::Hdd, Tier::Cold] {
        assert!(cache.demote("k", tier)?, "{tier}");
        assert_eq!(cache.tier_of("k")?, Some(tier));
    }
    for tier in [Tier::Hdd, Tier::Ssd, Tier::Memory] {
        assert!(cache.promote("k", tier)?, "{tier}");
        assert_eq!(cache.tier_of("k")?, Some(tier));
    }
    assert_eq!(cache.get("k")?.as_deref(), Some(text.as_bytes()));
    Ok(())
}

#[test]
fn large_values_are_written_by_their_callers() -> Try {
    let dir = tempfile::tempdir()?;
    for persistence in [Persistence::EverySecond, Persistence::Always] {
        let at = dir.path().join(format!("{persistence:?}"));
        let mut builder = Cache::builder().memory(64 << 20).ssd(at, 256 << 20).persistence(persistence);
        builder.config_mut().resources.io.write_buffer_size = 1 << 20;
        let cache = builder.clone().open()?;
        let big: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        cache.put("big", "small first")?;
        cache.put("big", big.clone())?;
        assert_eq!(cache.get("big")?.as_deref(), Some(&big[..]));
        drop(cache);
        assert_eq!(builder.open()?.get("big")?.as_deref(), Some(&big[..]));
    }
    Ok(())
}

/// Each tier says whether it compresses: what comes from one that does not is compressed on its way into one that does,
/// and what is compressed already stays so on its way into one that does not.
#[test]
fn each_tier_compresses_as_it_says() {
    let text = "the lake is warm above and cold below. ".repeat(1_000);
    for (ssd, hdd) in [(false, true), (true, false), (false, false), (true, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = Cache::builder()
            .memory(1 << 20)
            .ssd(dir.path().join("s"), 64 << 20)
            .hdd(dir.path().join("h"), 64 << 20);
        builder.config_mut().ssd.compression = ssd;
        builder.config_mut().hdd.compression = hdd;
        let cache = builder.open().unwrap();
        let put = 20 * text.len() as u64;
        for n in 0..20 {
            cache.put(format!("{n}"), text.clone()).unwrap();
        }
        cache.flush().unwrap();
        for n in 0..20 {
            assert!(cache.demote(format!("{n}"), Tier::Hdd).unwrap());
            assert_eq!(cache.get(format!("{n}")).unwrap().unwrap(), text);
        }
        let stats = cache.stats();
        let written = |tier| stats.tier(tier).unwrap().written;
        assert_eq!(written(Tier::Ssd) < put / 4, ssd, "{} of {put} on the SSD", written(Tier::Ssd));
        assert_eq!(written(Tier::Hdd) < put / 4, ssd || hdd, "{} of {put} on the HDD", written(Tier::Hdd));
    }
}
