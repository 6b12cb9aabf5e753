//! What was found, for programs. Times are nanoseconds, sizes bytes, shares between 0 and 1.

use super::text::name;
use super::{Latency, Report};
use crate::inspect::type_rows;
use crate::show;
use serde_json::{Map, Value, json};
use thermocline::{CodecStats, Tier};

fn codec(of: &CodecStats) -> Value {
    json!({
        "kept": of.kept, "original_bytes": of.original_bytes, "stored_bytes": of.stored_bytes,
        "in_vain": of.skipped, "in_vain_bytes": of.skipped_bytes, "seconds": of.nanos as f64 / 1e9,
    })
}

fn latency(l: &Latency) -> Value {
    json!({
        "count": l.count(),
        "mean": l.mean(),
        "p50": l.at(0.5),
        "p99": l.at(0.99),
        "p999": l.at(0.999),
        "max": l.max(),
    })
}

fn shares(shares: &[f64; 4]) -> Value {
    Value::Object(Tier::ALL.iter().zip(shares).map(|(t, s)| (t.name().to_owned(), json!(s))).collect())
}

impl Report<'_> {
    /// All of it.
    pub fn json(&self) -> Value {
        let found = self.found;
        json!({
            "interrupted": found.interrupted,
            "source": self.items.dir.as_ref().map_or("synthetic".into(), |d| d.to_string_lossy()),
            "items": self.items.all.len(),
            "bytes": self.items.bytes(),
            "left_out": self.items.left_out,
            "load": found.load.as_ref().map(|l| json!({
                "puts": l.put.count(),
                "bytes": l.bytes,
                "put_seconds": l.put_seconds,
                "flush_seconds": l.flush_seconds,
                "latency": latency(&l.put),
            })),
            "settle": found.settle.as_ref().map(|s| json!({ "seconds": s.seconds, "at_rest": s.at_rest })),
            "reads": found.reads.as_ref().map(|r| json!({
                "count": r.total(),
                "missing": r.missing,
                "seconds": r.seconds,
                "mean": r.mean(),
                "zipf_exponent": self.args.skew,
            })),
            "tiers": self.tiers_json(),
            "types": found.stats.as_ref().map(|s| type_rows(s).into_iter().map(|(t, of)| json!({
                "type": t.name(), "items": of.items, "original_bytes": of.original_bytes,
                "stored_bytes": of.stored_bytes, "zlib": codec(&of.zlib), "lz4": codec(&of.lz4),
            })).collect::<Vec<_>>()),
            "on_disk": found.on_disk.iter().map(|d| (d.what.to_owned(), json!(d.bytes))).collect::<Map<_, _>>(),
            "on_disk_wrong": found.off_sizes().map(|d| json!({ "what": d.what, "bytes": d.bytes, "said": d.said }))
                .collect::<Vec<_>>(),
            "available_ram": found.available_ram,
            "fits_page_cache": found.available_ram.map(|r| found.on_disk.iter().map(|d| d.bytes).sum::<u64>() < r),
            "reopen": found.reopen.as_ref().map(|r| json!({
                "close_seconds": r.close_seconds,
                "open_seconds": r.open_seconds,
                "open_seconds_page_cache_dropped": r.cold_open_seconds,
                "first_reads": Tier::ALL.into_iter().filter_map(|t| Some((t.name().to_owned(), latency(r.reads.of(t)?))))
                    .collect::<Map<_, _>>(),
            })),
            "verify": found.verified.as_ref().map(|v| json!({
                "items": v.report.items,
                "bytes": v.report.bytes,
                "stored_bytes": v.report.stored,
                "damaged": v.report.damaged.len(),
                "unreachable": v.report.unreachable.len(),
                "seconds": v.seconds,
            })),
            "missing": found.missing(),
            "let_go": found.let_go,
            "compared": found.compared.iter().map(|c| json!({
                "when": c.when,
                "items": c.items,
                "bytes": c.bytes,
                "wrong": c.wrong_count,
                "missing": c.missing,
                "files_changed": c.changed,
                "wrong_keys": c.wrong,
                "seconds": c.seconds,
            })).collect::<Vec<_>>(),
            "advice": found.advice.as_ref().map(|a| json!({
                "method": "LRU stack distance (Mattson et al., 1970)",
                "accesses": a.accesses,
                "measured": { "shares": shares(&a.measured), "mean": a.measured_mean },
                "sizes": a.rows.iter().map(|r| json!({
                    "name": name(r),
                    "tier": r.change.map(|(t, _)| t.name()),
                    "factor": r.change.map_or(1.0, |(_, f)| f),
                    "shares": shares(&r.shares),
                    "mean": r.mean,
                    "mean_devices": r.mean_device,
                })).collect::<Vec<_>>(),
            })),
            "version": show::version(),
        })
    }

    fn tiers_json(&self) -> Value {
        let mut all = Map::new();
        for tier in Tier::ALL {
            let stats = self.found.stats.as_ref().and_then(|s| s.tier(tier));
            let mut one = json!({
                "items": stats.map(|s| s.items),
                "bytes": stats.map(|s| s.bytes),
                "limit": stats.and_then(|s| s.limit),
                "gets": self.found.reads.as_ref().and_then(|r| r.of(tier)).map(latency),
            });
            let dirs: Vec<_> = self.devices.iter().filter(|(t, ..)| *t == tier).collect();
            if let (Some(one), Some((_, dir, device))) = (one.as_object_mut(), dirs.first()) {
                one.insert("directory".into(), json!(dir.to_string_lossy()));
                one.insert("on".into(), device.to_json());
                let all = dirs.iter().map(|(_, dir, _)| dir.to_string_lossy());
                one.insert("directories".into(), json!(all.collect::<Vec<_>>()));
            }
            all.insert(tier.name().to_owned(), one);
        }
        Value::Object(all)
    }
}
