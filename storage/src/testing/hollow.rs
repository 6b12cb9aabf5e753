//! A container whose records nobody reads.

use crate::container::{Container, Listed, RawRecord};
use crate::error::{Error, Result};
use crate::item::{Head, Item};

/// Says that it occupies so many bytes, and has nothing in it.
#[derive(Debug)]
pub struct Hollow(
    /// Bytes.
    pub u64,
);

impl Container for Hollow {
    fn read_up_to(&self, _: u32, _: u64) -> Result<Item> {
        Err(Error::Gone(0))
    }
    fn head(&self, _: u32) -> Result<Head> {
        Err(Error::Gone(0))
    }
    fn list(&self) -> Result<Vec<Listed>> {
        Ok(Vec::new())
    }
    fn raw(&self, _: u32) -> Option<RawRecord> {
        None
    }
    fn occupied(&self) -> u64 {
        self.0
    }
}
