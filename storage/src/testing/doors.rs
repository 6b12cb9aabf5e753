//! Doors to parsers that nothing outside of this crate calls, for the fuzz targets: each reads bytes, and gives what it
//! read as it would be written.

/// An identity or a manifest; `None` if it is damaged or of a newer format.
pub fn identity(bytes: &[u8]) -> Option<Vec<u8>> {
    crate::home::read_and_write(bytes)
}

/// The seal of an HDD generation with this id; `None` if it is damaged.
pub fn seal(bytes: &[u8], container: u64) -> Option<Vec<u8>> {
    crate::hdd::read_and_write_seal(bytes, container)
}
