//! Rates of the network interfaces.

use super::parse::{link_speed, number, text};
use super::readings::InterfaceReading;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// More interfaces than this are not looked at: a machine with thousands of virtual ones would take long.
const MOST: usize = 64;

/// Bytes received and sent, by name of interface.
#[derive(Debug, Default)]
pub(super) struct Interfaces(BTreeMap<String, (u64, u64)>);

impl Interfaces {
    /// Reads all but the loopback.
    pub(super) fn read(&mut self, sys: &Path, elapsed: Option<Duration>) -> Vec<InterfaceReading> {
        let Ok(entries) = std::fs::read_dir(sys.join("class/net")) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| n != "lo").collect();
        names.sort_unstable();
        names.truncate(MOST);
        let before = std::mem::take(&mut self.0);
        let seconds = elapsed.map(|e| e.as_secs_f64());
        names
            .into_iter()
            .map(|name| {
                let dir = sys.join("class/net").join(&name);
                let count = |file: &str| text(&dir.join("statistics").join(file)).as_deref().and_then(number);
                let now = count("rx_bytes").zip(count("tx_bytes"));
                let old = before.get(&name);
                if let Some(now) = now {
                    self.0.insert(name.clone(), now);
                }
                let rate = |of: fn(&(u64, u64)) -> u64| {
                    let grown = of(&now?).checked_sub(of(old?))?;
                    Some(grown as f64 / seconds?).filter(|r| r.is_finite())
                };
                InterfaceReading {
                    received: rate(|n| n.0),
                    sent: rate(|n| n.1),
                    speed: text(&dir.join("speed")).as_deref().and_then(link_speed),
                    name,
                }
            })
            .collect()
    }
}
