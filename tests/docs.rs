//! The documentation says what is true: its configurations can be read, its table of settings is the program's, its
//! links lead somewhere.

#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use thermocline::Config;
use thermocline::metrics::{Kind, metrics};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<(PathBuf, String)> {
    let root = root();
    let mut paths = vec![root.join("README.md"), root.join("CHANGELOG.md"), root.join("fuzz/README.md")];
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path());
    paths.extend(docs.filter(|p| p.extension().is_some_and(|e| e == "md")));
    paths.into_iter().map(|p| (p.clone(), fs::read_to_string(&p).unwrap())).collect()
}

/// The fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("```") {
            let wanted = line.trim() == format!("```{language}");
            let block: Vec<&str> = lines.by_ref().take_while(|l| l.trim() != "```").collect();
            if wanted {
                found.push(block.join("\n"));
            }
        }
    }
    found
}

/// The settings, as the program describes them: name, default, words or unit and what it does.
fn settings() -> Vec<(String, String, String)> {
    let text = Config::default().to_toml().unwrap();
    let mut table = String::new();
    let mut all = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty()) {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']').to_owned();
        } else if let Some((name, does)) = line.strip_prefix("# ").and_then(|l| l.split_once(":  ")) {
            all.push((format!("{table}.{name}"), "absent".to_owned(), does.to_owned()));
        } else {
            let (setting, does) = line.split_once("  # ").unwrap();
            let (name, value) = setting.split_once(" = ").unwrap();
            all.push((format!("{table}.{name}"), format!("`{value}`"), does.to_owned()));
        }
    }
    all
}

#[test]
fn configurations_in_the_documentation_can_be_used() {
    let mut seen = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "toml").iter().filter(|b| !b.contains("[dependencies]")) {
            let config =
                Config::from_toml(block).unwrap_or_else(|e| panic!("{}: {e}\n{block}", path.display()));
            config.validate().unwrap_or_else(|e| panic!("{}: {e}\n{block}", path.display()));
            seen += 1;
        }
    }
    assert!(seen >= 3, "only {seen} configurations were found: does the search work?");
}

#[test]
fn the_table_of_settings_is_the_programs() {
    let text = fs::read_to_string(root().join("docs/tuning.md")).unwrap();
    let settings = settings();
    assert!(settings.len() > 40, "only {} settings were found: does the search work?", settings.len());
    for (name, value, does) in &settings {
        let row = text.lines().find(|l| l.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/tuning.md does not have {name}"));
        let start = format!("| `{name}` | {value} |");
        let columns: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, _, unit, limits, text] = columns[..] else { panic!("{row}: not five columns") };
        // The program names the words to choose from, and what a bare number counts.
        let said = match unit {
            _ if limits.starts_with("`\"") => format!("{}: {text}", limits.replace('`', "")),
            "seconds" | "days" => format!("{unit}: {text}"),
            _ => text.to_owned(),
        };
        assert!(row.starts_with(&start) && said == *does, "{row}\nshould be: {start} … {does}");
    }
    let table = text.lines().skip_while(|l| !l.starts_with("| name | default |"));
    let rows = table.filter_map(|l| l.strip_prefix("| `")?.split('`').next().filter(|n| n.contains('.')));
    for name in rows.filter(|n| !n.ends_with(".path")) {
        assert!(settings.iter().any(|(n, ..)| n == name), "docs/tuning.md has {name}, which is no setting");
    }
}

/// Whether the program takes a value, in TOML, for a setting.
fn takes(name: &str, value: &str) -> bool {
    let (table, key) = name.rsplit_once('.').unwrap();
    Config::from_toml(&format!("[{table}]\n{key} = {value}\n")).is_ok()
}

#[test]
fn the_limits_of_settings_are_the_programs() {
    let text = fs::read_to_string(root().join("docs/tuning.md")).unwrap();
    let number = |text: &str| match text {
        "2⁶⁰" => 1 << 60,
        text => thermocline::config::parse_size(text).unwrap(),
    };
    let (mut ranges, mut words) = (0, 0);
    for (name, ..) in settings() {
        let row = text.lines().find(|l| l.starts_with(&format!("| `{name}` |"))).unwrap();
        let limits = row.split('|').nth(4).unwrap().trim();
        if let Some((least, most)) = limits.split_once(" to ") {
            let (least, most) = (number(least), number(most));
            assert!(takes(&name, &least.to_string()) && takes(&name, &most.to_string()), "{row}");
            assert!(!takes(&name, &(most + 1).to_string()), "{row}: more is taken");
            assert!(least == 0 || !takes(&name, &(least - 1).to_string()), "{row}: less is taken");
            ranges += 1;
        } else if limits.starts_with(['`', 't', 'o']) {
            let given: Vec<&str> =
                limits.trim_start_matches("only ").split(", ").map(|w| w.trim_matches('`')).collect();
            assert!(given.iter().all(|w| takes(&name, w)), "{row}");
            let all = [
                "true",
                "false",
                "1",
                "2",
                "3",
                "4",
                "\"adaptive\"",
                "\"lru\"",
                "\"none\"",
                "\"zlib\"",
                "\"lz4\"",
                "\"map\"",
                "\"pread\"",
                "\"always\"",
                "\"every_second\"",
                "\"on_eviction\"",
                "\"dynamic\"",
                "\"static\"",
                "\"error\"",
                "\"warn\"",
                "\"info\"",
                "\"debug\"",
                "\"trace\"",
                "\"daily\"",
                "\"size\"",
                "\"never\"",
            ];
            let taken: Vec<&str> = all.into_iter().filter(|w| takes(&name, w)).collect();
            assert_eq!(taken.len(), given.len(), "{row}: taken are {taken:?}");
            words += 1;
        } else {
            assert!(limits.starts_with("not empty") || limits == "more than 0, at most 1", "{row}");
        }
    }
    assert!(ranges > 20 && words > 10, "only {ranges} and {words} were found: does the search work?");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut seen = 0;
    for (path, text) in documents() {
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(to.exists(), "{}: {target} leads nowhere", path.display());
            if !anchor.is_empty() {
                let anchors = anchors(&to);
                assert!(anchors.contains(anchor), "{}: {target}; there are {anchors:?}", path.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} links were found: does the search work?");
}

/// The names that headings get as targets of links.
fn anchors(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    let headings = text.lines().filter(|l| l.starts_with('#')).map(|l| l.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>();
        kept.replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn every_example_is_named_in_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            readme.contains(&format!("`{name}`")) || readme.contains(&format!("--example {name}")),
            "{name}"
        );
    }
}

#[test]
fn the_recipe_for_the_archive_is_that_of_its_readme() {
    let readme = fs::read_to_string(root().join("storage/src/cold/readme.txt")).unwrap();
    let recipe: Vec<&str> = readme.lines().filter_map(|l| l.strip_prefix("    ")).collect();
    let recipe = recipe.join("\n").replace(" packs/", " /mnt/archive/cache/packs/");
    assert!(recipe.contains("unzip"));
    for name in ["docs/operations.md", "docs/design.md"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let found = blocks(&text, "sh").into_iter().find(|b| b.contains("unzip"));
        assert_eq!(found.as_deref(), Some(recipe.as_str()), "{name}");
    }
}

#[test]
fn events_that_are_named_exist() {
    let events = fs::read_to_string(root().join("src/events.rs")).unwrap();
    let text = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let list = text.split("; events ").nth(1).and_then(|t| t.split(". ").next()).unwrap();
    let named: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
    assert!(named.len() >= 3, "{named:?}");
    for name in named {
        assert!(events.contains(&format!("\n    {name} {{")), "docs/operations.md: no event is named {name}");
    }
}

/// Every source file below a directory.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// docs/operations.md says that what may repeat has a brake.
#[test]
fn only_opening_warns_without_a_brake() {
    let opening = [
        "log.rs",
        "open.rs",
        "home/mod.rs",
        "catalog/recovery.rs",
        "catalog/replay.rs",
        "src/events.rs",
        "storage/src/container/report.rs",
        "remote/serve.rs",
    ];
    let mut files = Vec::new();
    ["src", "storage/src"].iter().for_each(|dir| sources(&root().join(dir), &mut files));
    let warn = |path: &&PathBuf| fs::read_to_string(path).unwrap().contains("tracing::warn!(");
    let warning: Vec<&PathBuf> = files.iter().filter(warn).collect();
    assert!(warning.len() >= 5, "{warning:?}: does the search work?");
    for path in warning {
        assert!(opening.iter().any(|o| path.ends_with(o)), "{}: use warn_seldom!", path.display());
    }
}

/// The names of all tests of the project's sources.
fn test_names() -> BTreeSet<String> {
    let root = root();
    let mut names = BTreeSet::new();
    let mut folders: Vec<PathBuf> = ["src", "storage/src", "testing/src", "tests", "interleavings/tests"]
        .iter()
        .map(|f| root.join(f))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&entry).unwrap();
                // Between the attribute and the name there may be others, and a comment.
                let mut is_test = false;
                for line in text.lines().map(str::trim_start) {
                    if line == "#[test]" {
                        is_test = true;
                    } else if let Some(rest) = line.strip_prefix("fn ") {
                        let name = rest.split('(').next().unwrap();
                        is_test.then(|| names.insert(name.to_owned()));
                        is_test = false;
                    } else if !line.starts_with("#[") && !line.starts_with("//") {
                        is_test = false;
                    }
                }
            }
        }
    }
    names
}

/// Every row of the tables that say what a crash leaves names what shows it, and that exists.
#[test]
fn each_row_about_a_crash_names_its_test() {
    let text = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let tests_there = test_names();
    let short = ["cut", "model", "life", "kill", "the same", "as when appending"];
    let heads = ["crash", "a crash", "crash after", "a crash leaves", "a crash after it leaves"];
    let (mut rows, mut tables, mut bad) = (0, 0, Vec::new());
    let mut lines = text.lines();
    while let Some(head) = lines.next() {
        let mut cells = head.trim_matches('|').split('|').map(str::trim);
        if !head.starts_with('|') || !cells.any(|c| heads.contains(&c)) {
            continue;
        }
        assert!(head.trim_end_matches('|').trim_end().ends_with("| test"), "{head}");
        tables += 1;
        for row in lines.by_ref().skip(1).take_while(|l| l.starts_with('|')) {
            let tests = row.trim_end_matches('|').rsplit('|').next().unwrap();
            assert!(!tests.trim().is_empty(), "{row}");
            for name in tests.split(',').map(|t| t.trim().trim_matches(['`', '*'])) {
                let exists = match name.split_once('…') {
                    // One, and no other.
                    Some((start, _)) => {
                        let from = tests_there.range(start.to_owned()..);
                        from.take_while(|f| f.starts_with(start)).count() == 1
                    }
                    None if name.contains('/') => root().join(name).exists(),
                    None => short.contains(&name) || tests_there.contains(name),
                };
                if !exists {
                    bad.push(format!("{name}: {row}"));
                }
            }
            rows += 1;
        }
    }
    assert!(bad.is_empty(), "no test, or several: {bad:#?}");
    assert!(tables > 10 && rows > 60, "{tables} tables with {rows} rows");
}

/// Every mutant is in the table of docs/reliability.md, and nothing else; each names a test that is there.
#[test]
fn the_table_of_mutants_is_their_directory() {
    let root = root();
    let patches = fs::read_dir(root.join("mutants")).unwrap().map(|e| e.unwrap().path());
    let patches: Vec<PathBuf> = patches.filter(|p| p.extension().is_some_and(|e| e == "patch")).collect();
    let there: BTreeSet<String> =
        patches.iter().map(|p| p.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    let text = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let table = text.lines().skip_while(|l| !l.ends_with("| mutants |")).skip(2);
    let mut named = BTreeSet::new();
    for row in table.take_while(|l| l.starts_with('|')) {
        for name in row.trim_end_matches('|').rsplit('|').next().unwrap().split(',') {
            let name = name.trim().trim_matches('`').to_owned();
            assert!(there.contains(&name), "{name} is in the table and not in mutants/");
            assert!(named.insert(name), "{row}: it is there twice");
        }
    }
    assert_eq!(named, there, "the table lacks some");
    let functions = test_names();
    for patch in patches {
        let text = fs::read_to_string(&patch).unwrap();
        let test = text
            .lines()
            .find_map(|l| l.strip_prefix("Test: ")?.split_once("cargo test "))
            .unwrap_or_default()
            .1;
        let wanted = test.split(' ').next_back().and_then(|t| t.rsplit("::").next()).unwrap();
        // A module, a whole file, or a part of the names of functions.
        let file = root.join("tests").join(wanted).with_extension("rs");
        let exists = test.ends_with("::") || file.exists() || functions.iter().any(|f| f.contains(wanted));
        assert!(!test.is_empty() && exists, "{}: it names no test: {test}", patch.display());
    }
}

#[test]
fn the_table_of_metrics_is_the_programs() {
    let text = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let table = text.lines().skip_while(|l| *l != "| name | type | labels | what it says |").skip(2);
    let rows: Vec<&str> = table.take_while(|l| l.starts_with('|')).collect();
    let wanted: Vec<String> = metrics()
        .iter()
        .map(|m| {
            let labels: Vec<String> = m.labels.iter().map(|label| format!("`{label}`")).collect();
            format!("| `thermocline_{}` | {} | {} | {} |", m.name, m.kind.name(), labels.join(", "), m.help)
        })
        .collect();
    for (row, wanted) in rows.iter().zip(&wanted) {
        // A cell that is empty has one space or two.
        assert_eq!(row.replace("  ", " "), wanted.replace("  ", " "));
    }
    assert_eq!(rows.len(), wanted.len());
    let names = named_metrics(&text);
    assert!(names.len() > 40, "{names:?}");
    // Each is a sentence that comes to its end.
    let bare = |help: &str| !help.ends_with('.') || help.ends_with(" with.") || help.ends_with(" without.");
    let bare: Vec<&str> = metrics().iter().map(|m| m.help).filter(|help| bare(help)).collect();
    assert!(bare.is_empty(), "{bare:#?}");
}

#[test]
#[cfg(feature = "redis")]
fn the_tables_of_redis_are_the_programs() {
    use thermocline::metrics::{redis_fields, redis_keys};
    let text = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let rows = |head: &str| -> Vec<String> {
        let table = text.lines().skip_while(|l| *l != head).skip(2);
        table.take_while(|l| l.starts_with('|')).map(str::to_owned).collect()
    };
    let keys = redis_keys().iter().map(|k| format!("| `{}` | {} | {} |", k.pattern, k.kind, k.help));
    assert_eq!(rows("| key | type | what is in it |"), keys.collect::<Vec<_>>());
    let fields = redis_fields().iter().map(|f| format!("| `{}` | {} | {} |", f.name, f.of, f.help));
    assert_eq!(rows("| field | where | what it says |"), fields.collect::<Vec<_>>());
}

/// The metrics that a text names. Each is one, as Prometheus has it.
fn named_metrics(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let at = text.match_indices("thermocline_").map(|(at, _)| at);
    let names: BTreeSet<String> = at
        .map(|at| text[at..].split(|c| !word(c)).next().unwrap().to_owned())
        // The other crate, whose name begins so, is no metric.
        .filter(|n| n.len() > 12 && n != "thermocline_storage")
        .collect();
    for name in &names {
        let is = |m: &thermocline::metrics::Metric| {
            let base = name.strip_prefix("thermocline_").unwrap();
            let ends: &[&str] = if m.kind == Kind::Histogram { &["_bucket", "_sum", "_count"] } else { &[] };
            base == m.name || ends.iter().any(|end| base.strip_suffix(end) == Some(m.name))
        };
        assert!(metrics().iter().any(is), "{name} is no metric");
    }
    names
}

/// The texts that stand under a name anywhere in a document.
fn texts_of(value: &serde_json::Value, name: &str, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (field, value) in fields {
                match value.as_str() {
                    Some(text) if field == name => found.push(text.to_owned()),
                    _ => texts_of(value, name, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|v| texts_of(v, name, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let text = fs::read_to_string(root().join("docs/grafana-thermocline.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (mut asked, mut shown) = (Vec::new(), Vec::new());
    texts_of(&dashboard, "expr", &mut asked);
    texts_of(&dashboard, "query", &mut asked);
    texts_of(&dashboard, "legendFormat", &mut shown);
    assert!(asked.len() > 30 && shown.len() > 30, "{} and {}", asked.len(), shown.len());
    let labels: BTreeSet<&str> = metrics().iter().flat_map(|m| m.labels).copied().chain(["le"]).collect();
    let mut named = BTreeSet::new();
    for expression in &asked {
        let names = named_metrics(expression);
        assert!(expression == "prometheus" || !names.is_empty(), "{expression}");
        let balance = |open, close| expression.matches(open).count() == expression.matches(close).count();
        assert!(balance('(', ')') && balance('{', '}'), "{expression}");
        for by in expression.split("by (").skip(1) {
            for label in by.split(')').next().unwrap().split(',').map(str::trim) {
                assert!(labels.contains(label), "{label}: {expression}");
            }
        }
        // A histogram is asked for by its buckets.
        let quantile = expression.contains("histogram_quantile");
        assert!(!quantile || names.iter().all(|n| n.ends_with("_bucket")), "{expression}");
        named.extend(names);
    }
    for legend in &shown {
        for label in legend.split("{{").skip(1) {
            assert!(labels.contains(label.split("}}").next().unwrap()), "{legend}");
        }
    }
    assert!(named.len() > 25, "{named:?}");
}

#[test]
fn alerts_ask_for_metrics_that_there_are() {
    let text = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let rules = blocks(&text, "yaml").concat();
    let alerts = rules.matches("- alert: ").count();
    assert!(alerts > 5 && alerts == rules.matches("        expr: ").count(), "{alerts}");
    assert!(rules.lines().filter(|l| l.contains("expr: ")).all(|l| !named_metrics(l).is_empty()));
}
