//! The small values that every part of the engine speaks in.
//!
//! Invariant: the numbers of tiers, content types and codecs stand on disk: they are never given another meaning.

use std::fmt;

/// Largest key in bytes; the smallest is 1.
pub const MAX_KEY: usize = 32_768;

/// A place where items are kept, hottest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Tier {
    /// Entries in RAM, lost when the process ends unless they are also on disk.
    Memory = 0,
    /// Append-only segments, read through a memory map.
    Ssd = 1,
    /// Generations: value files indexed by a sled database.
    Hdd = 2,
    /// ZIP packs.
    Cold = 3,
}

impl Tier {
    /// Every tier, hottest first.
    pub const ALL: [Tier; 4] = [Tier::Memory, Tier::Ssd, Tier::Hdd, Tier::Cold];
    /// The tiers on disk, hottest first.
    pub const DISK: [Tier; 3] = [Tier::Ssd, Tier::Hdd, Tier::Cold];

    /// The lower-case name, as in the configuration: `memory`, `ssd`, `hdd`, `cold`.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Memory => "memory",
            Tier::Ssd => "ssd",
            Tier::Hdd => "hdd",
            Tier::Cold => "cold",
        }
    }

    /// The tier with this number, as stored on disk.
    pub const fn from_u8(n: u8) -> Option<Tier> {
        match n {
            0 => Some(Tier::Memory),
            1 => Some(Tier::Ssd),
            2 => Some(Tier::Hdd),
            3 => Some(Tier::Cold),
            _ => None,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a value is, which decides how it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[repr(u8)]
pub enum ContentType {
    /// Found from the first bytes of the value. Never stored: an item has one of the other four.
    #[default]
    Auto = 0,
    /// Readable text.
    Text = 1,
    /// JSON.
    Json = 2,
    /// Anything else.
    Binary = 3,
    /// Images, audio, video, archives: data that is compressed already.
    Media = 4,
}

impl ContentType {
    /// The four types that an item can have.
    pub const STORED: [ContentType; 4] =
        [ContentType::Text, ContentType::Json, ContentType::Binary, ContentType::Media];

    /// The lower-case name, as in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            ContentType::Auto => "auto",
            ContentType::Text => "text",
            ContentType::Json => "json",
            ContentType::Binary => "binary",
            ContentType::Media => "media",
        }
    }

    /// The type with this number, as stored on disk (`Auto` is never stored).
    pub const fn from_u8(n: u8) -> Option<ContentType> {
        match n {
            1 => Some(ContentType::Text),
            2 => Some(ContentType::Json),
            3 => Some(ContentType::Binary),
            4 => Some(ContentType::Media),
            _ => None,
        }
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the stored bytes of an item are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    None = 0,
    /// A zlib stream (RFC 1950).
    Zlib = 1,
    /// One LZ4 block without a length prefix; the length is in the record.
    Lz4 = 2,
    /// A raw deflate stream (RFC 1951), as in ZIP files.
    Deflate = 3,
}

impl Codec {
    /// The lower-case name, as in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Zlib => "zlib",
            Codec::Lz4 => "lz4",
            Codec::Deflate => "deflate",
        }
    }

    /// The codec with this number, as stored on disk.
    pub const fn from_u8(n: u8) -> Option<Codec> {
        match n {
            0 => Some(Codec::None),
            1 => Some(Codec::Zlib),
            2 => Some(Codec::Lz4),
            3 => Some(Codec::Deflate),
            _ => None,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The order of a write within a store: the open counter in the upper 24 bits, a count within that open in
/// the lower 40. Never taken twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(pub u64);

impl Version {
    /// Bits of the count within one open.
    pub const COUNT_BITS: u32 = 40;
    /// Largest open counter.
    pub const MAX_OPEN: u64 = (1 << (64 - Self::COUNT_BITS)) - 1;

    /// The first version of an open.
    pub const fn first_of(open: u64) -> Version {
        Version(open << Self::COUNT_BITS)
    }

    /// The open counter that this version was taken under.
    pub const fn open(self) -> u64 {
        self.0 >> Self::COUNT_BITS
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.open(), self.0 & ((1 << Self::COUNT_BITS) - 1))
    }
}

/// The number of a container in slots and frames. Reused once its container is gone for good; the container's
/// 64-bit id never is.
pub type ContainerNo = u16;

/// Where one record stands: a container and a position in it. What a position counts is the tier's affair:
/// units of 32 bytes in segments and packs, record numbers in generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    /// Largest position: 24 bits.
    pub const MAX_POSITION: u32 = (1 << 24) - 1;
    /// What a position counts in segments and packs, in bytes.
    pub const UNIT: u64 = 32;

    /// A place; `None` if the position does not fit 24 bits.
    pub const fn new(container: ContainerNo, position: u32) -> Option<Place> {
        if position > Self::MAX_POSITION {
            return None;
        }
        Some(Place(((container as u64) << 24) | position as u64))
    }

    /// The container.
    pub const fn container(self) -> ContainerNo {
        (self.0 >> 24) as ContainerNo
    }

    /// The position in the container.
    pub const fn position(self) -> u32 {
        (self.0 & Self::MAX_POSITION as u64) as u32
    }

    /// The 40 bits of the place, as in slots and frames.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The place with these 40 bits; higher bits are dropped.
    pub const fn from_bits(bits: u64) -> Place {
        Place(bits & ((1 << 40) - 1))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} position {}", self.container(), self.position())
    }
}
