//! Sensors that say what they are told to.

use super::{Readings, Sensors};
use std::collections::VecDeque;

/// Gives readings from a script, one at each sample, and the last of them for ever.
///
/// ```
/// use thermocline::sensors::{Readings, Sensors, SimulatedSensors};
///
/// let mut busy = Readings::default();
/// busy.cpu.machine_percent = Some(95.0);
/// let mut sensors = SimulatedSensors::new([Readings::default(), busy]);
/// assert_eq!(sensors.sample().cpu.percent(), None);
/// assert_eq!(sensors.sample().cpu.percent(), Some(95.0));
/// assert_eq!(sensors.sample().cpu.percent(), Some(95.0));
/// ```
#[derive(Debug, Clone, Default)]
pub struct SimulatedSensors {
    script: VecDeque<Readings>,
}

impl SimulatedSensors {
    /// Sensors with this script; of an empty one everything is missing.
    pub fn new(script: impl IntoIterator<Item = Readings>) -> SimulatedSensors {
        SimulatedSensors { script: script.into_iter().collect() }
    }

    /// Adds to the script.
    pub fn push(&mut self, readings: Readings) {
        self.script.push_back(readings);
    }
}

impl Sensors for SimulatedSensors {
    fn sample(&mut self) -> Readings {
        if self.script.len() > 1 {
            return self.script.pop_front().unwrap_or_default();
        }
        self.script.front().cloned().unwrap_or_default()
    }
}
