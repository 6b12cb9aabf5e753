//! What was found, for people.

use super::advice::{Advice, Row};
use super::{APART, Findings, Latency, OnDisk, Reads, Report};
use crate::device::Device;
use crate::inspect::{codec_shares, type_rows};
use crate::show::{self, wrap};
use std::fmt::Write as _;
use thermocline::Tier;

/// A latency's row: `p50 p99 p99.9 max mean`.
pub fn quantiles(l: &Latency) -> Vec<String> {
    [l.mean(), l.at(0.5), l.at(0.99), l.at(0.999), l.max()].into_iter().map(show::nanos).collect()
}

impl Report<'_> {
    /// All of it.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.head(&mut out);
        if let Some(phase) = self.found.interrupted {
            let _ = writeln!(out, "\nInterrupted during: {phase}. What there is so far:");
        }
        self.places(&mut out);
        self.load(&mut out);
        self.tiers(&mut out);
        self.types(&mut out);
        self.on_disk(&mut out);
        self.reopen(&mut out);
        self.checks(&mut out);
        self.missing(&mut out);
        self.advice(&mut out);
        out
    }

    /// The tiers of which the size only decides which tier on one and the same device answers.
    pub fn alike(&self) -> Vec<Tier> {
        let of = |tiers: &[Tier]| {
            let devices = self.devices.iter().filter(|(tier, ..)| tiers.contains(tier));
            one_device(devices.map(|(.., device)| device)).is_some()
        };
        let below = [(Tier::Ssd, &Tier::DISK[..]), (Tier::Hdd, &[Tier::Hdd, Tier::Cold])];
        below.into_iter().filter(|(_, tiers)| of(tiers)).map(|(tier, _)| tier).collect()
    }

    fn head(&self, out: &mut String) {
        let what = match &self.items.dir {
            Some(dir) => format!("files of {}", dir.display()),
            None => "made-up values: text, JSON, binary, media".into(),
        };
        let (count, bytes) = (show::count(self.items.all.len() as u64), show::bytes(self.items.bytes()));
        let _ = writeln!(out, "thermocline bench: {count} items, {bytes} ({what})");
        let left: Vec<String> =
            self.items.left_out.iter().map(|(why, n)| format!("{} {why}", show::count(*n))).collect();
        if !left.is_empty() {
            let what = if self.items.dir.is_some() { "files that are no items" } else { "left out" };
            let _ = writeln!(out, "{what}: {}", left.join(", "));
        }
    }

    fn places(&self, out: &mut String) {
        let config = &self.plan.config;
        let mut rows = vec![vec![
            "memory".into(),
            show::bytes(config.memory.max_size),
            "RAM".into(),
            "–".into(),
            "–".into(),
            "–".into(),
        ]];
        let some = |limits: Vec<u64>| limits.into_iter().map(Some).collect::<Vec<_>>();
        let limits = [some(config.ssd_limits()), some(config.hdd_limits()), config.cold_limits()];
        for ((tier, dir, device), limit) in self.devices.iter().zip(limits.into_iter().flatten()) {
            let or = |s: &Option<String>| s.clone().unwrap_or_else(|| "unknown".into());
            rows.push(vec![
                tier.to_string(),
                limit.map_or("no limit".into(), show::bytes),
                or(&device.source),
                or(&device.file_system),
                device.spins_word().into(),
                dir.display().to_string(),
            ]);
        }
        section(out, "Tiers");
        out.push_str(&show::table(6, &["tier", "size", "device", "file system", "spins", "directory"], rows));
        if let Some(device) = one_device(self.devices.iter().map(|(.., device)| device)) {
            let _ =
                writeln!(out, "  All on {device}: differences between the disk tiers are not the devices'.");
        }
    }

    fn load(&self, out: &mut String) {
        let Some(load) = &self.found.load else { return };
        section(out, "Load");
        let seconds = load.put_seconds.max(1e-9);
        let mut row = vec![
            show::count(load.put.count()),
            show::number(load.put.count() as f64 / seconds),
            show::bytes((load.bytes as f64 / seconds) as u64),
        ];
        row.extend(quantiles(&load.put));
        let header = ["puts", "puts/s", "bytes/s", "mean", "p50", "p99", "p99.9", "max"];
        out.push_str(&show::table(0, &header, vec![row]));
        let _ = write!(out, "  Then a flush took {}", show::nanos(load.flush_seconds * 1e9));
        let _ = match &self.found.settle {
            Some(s) if s.at_rest => {
                writeln!(out, ", and migration came to rest after {}.", show::nanos(s.seconds * 1e9))
            }
            Some(s) => {
                writeln!(out, "; migration was still going on after {}.", show::nanos(s.seconds * 1e9))
            }
            None => writeln!(out, "."),
        };
    }

    fn tiers(&self, out: &mut String) {
        let Some(reads) = &self.found.reads else { return };
        section(
            out,
            &format!("Reads: {} by Zipf's law, exponent {}", show::count(reads.total()), self.args.skew),
        );
        let header =
            ["tier", "items", "occupied", "full", "hits", "share", "mean", "p50", "p99", "p99.9", "max"];
        let mut rows = Vec::new();
        for tier in Tier::ALL {
            let Some(stats) = self.found.stats.as_ref().and_then(|s| s.tier(tier)) else { continue };
            let mut row = vec![
                tier.to_string(),
                show::count(stats.items),
                show::bytes(stats.bytes),
                stats.limit.map_or("–".into(), |l| show::percent(stats.bytes, l)),
            ];
            latency_cells(reads, tier, &mut row);
            rows.push(row);
        }
        out.push_str(&show::table(1, &header, rows));
        let rate = reads.total() as f64 / reads.seconds.max(1e-9);
        let mean = show::nanos(reads.mean());
        let _ = writeln!(
            out,
            "  One thread, {}, {mean} a get on average, in {:.1} s.",
            show::rate(rate),
            reads.seconds
        );
        if reads.missing > 0 {
            let _ = writeln!(out, "  {} found nothing.", show::things(reads.missing, "get"));
        }
        let _ = writeln!(out, "  {}", wrap(&page_cache_note(self.found)));
    }

    fn types(&self, out: &mut String) {
        let Some(stats) = &self.found.stats else { return };
        let rows: Vec<_> = type_rows(stats)
            .into_iter()
            .map(|(t, of)| {
                let (original, stored) = (of.original_bytes, of.stored_bytes);
                let ratio = if original == 0 {
                    "–".into()
                } else {
                    format!("{:.2}", stored as f64 / original as f64)
                };
                vec![
                    t.to_string(),
                    show::count(of.items),
                    show::bytes(original),
                    show::bytes(stored),
                    ratio,
                    codec_shares(of),
                ]
            })
            .collect();
        if rows.is_empty() {
            return;
        }
        section(out, "Compression on the way to the first disk tier");
        out.push_str(&show::table(
            1,
            &["type", "items", "original", "stored", "stored / original", "with"],
            rows,
        ));
        let _ = writeln!(out, "  The archive packs anew, with deflate, what came to it with LZ4 or plain.");
    }

    fn on_disk(&self, out: &mut String) {
        if self.found.on_disk.is_empty() {
            return;
        }
        section(out, "On disk, by allocated blocks");
        let of = |d: &OnDisk| {
            vec![d.what.to_owned(), show::bytes(d.bytes), d.said.map_or("–".into(), show::bytes)]
        };
        let mut rows: Vec<_> = self.found.on_disk.iter().map(of).collect();
        let sum = self.found.on_disk.iter().map(|d| d.bytes).sum::<u64>();
        rows.push(vec!["all".into(), show::bytes(sum), "–".into()]);
        out.push_str(&show::table(1, &["directory", "occupied", "the engine says"], rows));
        let _ = writeln!(out, "  The data themselves are {}.", show::bytes(self.items.bytes()));
        if let Some(text) = self.makeup(sum) {
            let _ = writeln!(out, "  {}", wrap(&text));
        }
        self.sizes(out);
    }

    /// What is in the directories beside compressed values.
    fn makeup(&self, sum: u64) -> Option<String> {
        let values = self.found.verified.as_ref()?.report.stored;
        let catalog = self.found.catalog_bytes();
        Some(format!(
            "Of what is occupied {} are the values of live items as they are stored, {} the catalog, and {} what is around \
             them: keys and headers, dead records that were not yet reclaimed, the room set aside for containers that are \
             being written.",
            show::bytes(values),
            show::bytes(catalog),
            show::bytes(sum.saturating_sub(values + catalog))
        ))
    }

    /// Whether directories and engine agree.
    fn sizes(&self, out: &mut String) {
        let (found, apart) = (self.found, show::bytes(APART));
        for d in found.off_sizes() {
            let (bytes, said) = (show::bytes(d.bytes), d.said.map_or("nothing".into(), show::bytes));
            let text = format!(
                "WRONG SIZE: the {} tier occupies {bytes}, and the engine says {said}: they are more than 5 % and {apart} \
                 apart. That is a failure.",
                d.what
            );
            let _ = writeln!(out, "  {}", wrap(&text));
        }
        if found.sizes_judged && found.off_sizes().next().is_none() {
            let _ = writeln!(out, "  Directories and engine agree, to 5 % and {apart}.");
        }
        if let Some(d) = found.on_disk.iter().find(|d| found.sizes_judged && !d.plain) {
            let _ = writeln!(
                out,
                "  {}: its file system may compress, so that less than the engine says is no failure.",
                d.what
            );
        }
    }

    fn reopen(&self, out: &mut String) {
        let Some(r) = &self.found.reopen else { return };
        let time = |s: f64| show::nanos(s * 1e9);
        section(out, "Reopen after a clean close");
        let _ = writeln!(
            out,
            "  Close {}, open {}; with the page cache dropped before, open {}.",
            time(r.close_seconds),
            time(r.open_seconds),
            time(r.cold_open_seconds)
        );
        if r.reads.answered() == 0 {
            return;
        }
        let _ = writeln!(out, "  Then, each item read for the first time:");
        let mut rows = Vec::new();
        for tier in Tier::ALL {
            let Some(l) = r.reads.of(tier) else { continue };
            let mut row = vec![tier.to_string(), show::count(l.count())];
            row.extend(quantiles(l));
            rows.push(row);
        }
        out.push_str(&show::table(1, &["tier", "reads", "mean", "p50", "p99", "p99.9", "max"], rows));
    }

    fn checks(&self, out: &mut String) {
        if self.found.verified.is_none() && self.found.compared.is_empty() {
            return;
        }
        section(out, "Checks");
        if let Some(v) = &self.found.verified {
            let r = &v.report;
            let _ = writeln!(
                out,
                "  The engine's own, after a reopen: {} items, {}, {} damaged, {} unreachable; {}.",
                show::count(r.items),
                show::bytes(r.bytes),
                r.damaged.len(),
                r.unreachable.len(),
                show::nanos(v.seconds * 1e9)
            );
        }
        for c in &self.found.compared {
            let _ = writeln!(
                out,
                "  Byte for byte, {}: {} items, {}, {} wrong, {} missing; {}.",
                c.when,
                show::count(c.items),
                show::bytes(c.bytes),
                show::count(c.wrong_count),
                show::count(c.missing),
                show::nanos(c.seconds * 1e9)
            );
            if c.changed > 0 {
                let _ = writeln!(
                    out,
                    "    {} files changed since they were put; their items are what was put, by its hash.",
                    show::count(c.changed)
                );
            }
            for key in &c.wrong {
                let _ = writeln!(out, "    WRONG: {key}");
            }
        }
    }

    /// What is to be thought of items that were put and not found again.
    fn missing(&self, out: &mut String) {
        let (missing, let_go) = (self.found.missing(), self.found.let_go);
        if missing == 0 {
            return;
        }
        let (items, gone) = (show::things(missing, "item"), show::count(let_go));
        let text = if self.found.are_lost() {
            format!(
                "MISSING: {items} that were put were not found, and the engine let go of {gone} only. That is a failure."
            )
        } else {
            format!(
                "{items} that were put were not found: every tier was full, and the engine evicted {gone}. That is no error."
            )
        };
        let _ = writeln!(out, "\n  {}", wrap(&text));
    }

    fn advice(&self, out: &mut String) {
        let Some(a) = &self.found.advice else { return };
        section(out, "Other sizes: who would answer, and how fast");
        let mut rows = vec![advice_row("measured", &a.measured, a.measured_mean, None)];
        rows.extend(a.telling().iter().map(|r| advice_row(&name(r), &r.shares, r.mean, r.mean_device)));
        let header = ["sizes", "memory", "ssd", "hdd", "cold", "mean get", "mean get, devices"];
        out.push_str(&show::table(1, &header, rows));
        let _ = writeln!(
            out,
            "  {}",
            wrap(&format!(
                "From {} recorded reads by stack distance (Mattson et al., 1970): each tier is taken to hold what was \
                 used last. The engine keeps by frequency; the first two rows show how far the model is off. \"mean \
                 get\" uses the latencies above, \"devices\" those with the page cache dropped.",
                show::count(a.accesses)
            ))
        );
        if let Some(verdict) = verdict(a, &self.alike()) {
            let _ = writeln!(out, "\n  {}", wrap(&verdict));
        }
    }
}

/// The device, if all directories are known to stand on the same one.
fn one_device<'d>(mut devices: impl Iterator<Item = &'d Device>) -> Option<&'d str> {
    let first = devices.next()?.source.as_deref()?;
    devices.all(|d| d.source.as_deref() == Some(first)).then_some(first)
}

fn section(out: &mut String, title: &str) {
    let _ = writeln!(out, "\n{title}\n");
}

/// Hits, share, and the quantiles if there are any.
fn latency_cells(reads: &Reads, tier: Tier, row: &mut Vec<String>) {
    match reads.of(tier) {
        Some(l) => {
            row.push(show::count(l.count()));
            row.push(show::percent(l.count(), reads.total()));
            row.extend(quantiles(l));
        }
        None => row.extend(["0", "0.0 %", "–", "–", "–", "–", "–"].map(String::from)),
    }
}

fn advice_row(name: &str, shares: &[f64; 4], mean: f64, device: Option<f64>) -> Vec<String> {
    let mut row = vec![name.to_owned()];
    row.extend(shares.iter().map(|s| format!("{:.1} %", 100.0 * s)));
    row.push(show::nanos(mean));
    row.push(device.map_or("–".into(), show::nanos));
    row
}

/// What a row of the advice is about.
pub fn name(row: &Row) -> String {
    match row.change {
        None => "model, as they are".into(),
        Some((tier, factor)) if factor < 1.0 => format!("{tier} half"),
        Some((tier, _)) => format!("{tier} twice"),
    }
}

/// The sentence that the table comes to: which doubling gains most, which halving costs least. Of tiers in `alike` the
/// size only shifts reads between tiers on one device, whose difference is not the devices': nothing is said for them.
pub fn verdict(a: &Advice, alike: &[Tier]) -> Option<String> {
    if a.is_flat() {
        let text = "Half or twice the size of any tier changes nothing: the same tiers answer. More data or less memory would show more.";
        return Some(text.into());
    }
    let cost = |r: &Row| r.mean_device.unwrap_or(r.mean);
    let now = cost(a.rows.first()?);
    let of = |wanted: fn(f64) -> bool| {
        let fits = move |r: &&Row| r.change.is_some_and(|(tier, f)| wanted(f) && !alike.contains(&tier));
        a.rows.iter().filter(fits).min_by(|a, b| cost(a).total_cmp(&cost(b)))
    };
    let (twice, half) = (of(|f| f > 1.0)?, of(|f| f < 1.0)?);
    let change = |r: &Row| format!("{:+.0}\u{a0}%", 100.0 * (cost(r) / now - 1.0));
    let ((up, _), (down, _)) = (twice.change?, half.change?);
    let shows = |r: &Row| (cost(r) / now - 1.0).abs() >= 0.02;
    // Memory alone is left.
    let alone = alike.len() == 2;
    let (most, least) = if alone { ("", "") } else { (" most", " least") };
    let more = if cost(twice) < now && shows(twice) {
        let (then, now) = (show::nanos(cost(twice)), show::nanos(now));
        format!("Twice the {up} gains{most}: {then} a get instead of {now} ({}).", change(twice))
    } else if alone {
        format!("Twice the {up} gains nothing that shows.")
    } else {
        "Twice of no tier gains anything that shows.".into()
    };
    let less = if cost(half) > now && shows(half) {
        format!("Half the {down} costs{least}: {} ({}).", show::nanos(cost(half)), change(half))
    } else {
        format!("Half the {down} costs nothing that shows.")
    };
    let names: Vec<&str> = alike.iter().map(|t| t.name()).collect();
    let rest = match names.as_slice() {
        [] => String::new(),
        [.., _] => format!(
            " Of the size of {} nothing can be said here: it decides which tier answers, and those are on one device.",
            names.join(" and ")
        ),
    };
    Some(format!("{more} {less}{rest}"))
}

/// Which figures are the page cache's.
pub fn page_cache_note(found: &Findings) -> String {
    let on_disk: u64 = found.on_disk.iter().map(|d| d.bytes).sum();
    match found.available_ram {
        Some(ram) if on_disk > 0 && on_disk < ram => format!(
            "The {} on disk fit into the {} of RAM that are available: what ssd, hdd and cold show here is the page \
             cache, not the devices. Those are under \"Reopen\", as far as the system let its pages be dropped.",
            show::bytes(on_disk),
            show::bytes(ram)
        ),
        Some(ram) if on_disk > 0 => format!(
            "The {} on disk are more than the {} of RAM that are available: what ssd, hdd and cold show here is partly \
             the page cache, partly the devices.",
            show::bytes(on_disk),
            show::bytes(ram)
        ),
        _ => "How much of this is the page cache is unknown.".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_for_tiers_on_one_device() {
        // Who answers follows from the sizes: it is not the same in any two rows.
        let row = |change, mean: f64| {
            let memory = mean / 200.0;
            Row { change, shares: [memory, 1.0 - memory, 0.0, 0.0], mean, mean_device: None }
        };
        let rows = vec![
            row(None, 100.0),
            row(Some((Tier::Memory, 0.5)), 120.0),
            row(Some((Tier::Memory, 2.0)), 90.0),
            row(Some((Tier::Ssd, 0.5)), 110.0),
            row(Some((Tier::Ssd, 2.0)), 80.0),
            row(Some((Tier::Hdd, 0.5)), 70.0),
            row(Some((Tier::Hdd, 2.0)), 130.0),
        ];
        let a = Advice { rows, accesses: 1, measured: [0.25; 4], measured_mean: 100.0 };
        let all = verdict(&a, &[]).unwrap();
        assert!(
            all.contains("Twice the ssd gains most") && all.contains("Half the hdd costs nothing"),
            "{all}"
        );
        let hdd = verdict(&a, &[Tier::Hdd]).unwrap();
        assert!(
            hdd.contains("Twice the ssd gains most") && hdd.contains("Half the ssd costs least"),
            "{hdd}"
        );
        assert!(hdd.contains("size of hdd nothing can be said"), "{hdd}");
        let both = verdict(&a, &[Tier::Ssd, Tier::Hdd]).unwrap();
        assert!(
            both.contains("Twice the memory gains: 90 ns") && both.contains("Half the memory costs: "),
            "{both}"
        );
        assert!(both.contains("size of ssd and hdd nothing can be said"), "{both}");
    }

    #[test]
    fn sizes_that_change_nothing_are_one_row() {
        let row = |change, memory| Row {
            change,
            shares: [memory, 1.0 - memory, 0.0, 0.0],
            mean: 100.0,
            mean_device: None,
        };
        let mut rows = vec![row(None, 0.9), row(Some((Tier::Memory, 0.5)), 0.9001)];
        let advice = |rows| Advice { rows, accesses: 1, measured: [0.25; 4], measured_mean: 100.0 };
        let flat = advice(vec![row(None, 0.9), row(Some((Tier::Memory, 0.5)), 0.9001)]);
        assert_eq!(flat.telling().len(), 1);
        assert!(verdict(&flat, &[]).is_some_and(|v| v.contains("changes nothing")));
        rows.push(row(Some((Tier::Memory, 2.0)), 0.95));
        let told = advice(rows);
        assert_eq!(told.telling().len(), 3);
        assert!(verdict(&told, &[]).is_none_or(|v| !v.contains("changes nothing: the same")));
    }

    #[test]
    fn one_device_is_known_to_be_one() {
        let of = |sources: &[Option<&str>]| {
            let device = |s: &Option<&str>| Device { source: s.map(str::to_owned), ..Device::default() };
            let devices: Vec<_> = sources.iter().map(device).collect();
            one_device(devices.iter()).map(str::to_owned)
        };
        let (a, b) = (Some("/dev/a"), Some("/dev/b"));
        assert_eq!(of(&[a, a, a]).as_deref(), a);
        for several in [&[a, a, b][..], &[b, a, a], &[a, None, a], &[None, None], &[]] {
            assert_eq!(of(several), None, "{several:?}");
        }
    }
}
