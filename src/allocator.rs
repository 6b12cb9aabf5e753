//! What the C library's allocator keeps of the memory that was freed.
//!
//! The engine's limits bound what it holds. What the process takes from the system is decided by the allocator, and
//! glibc's, left to itself, keeps freed memory in up to eight arenas a core, and takes blocks of up to 32 MiB from
//! them once one such block was freed. A cache, whose values come from one thread and go on another, is its worst
//! case: on two cores, eight writers made the resident memory half as large again as what was held.
//!
//! This module holds one `unsafe` call, of `mallopt` (glibc). The argument: `mallopt` takes two integers by value,
//! and refuses what it does not know; it takes the allocator's own lock, so it may be called while other threads
//! allocate (`mallopt(3)`, "MT-Safe init"; not from a signal handler, which is not done).

/// From this size on, a block is mapped by itself and given back when it is freed. In bytes; it is where glibc begins.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_FROM: i32 = 128 << 10;

/// Tells glibc's allocator to give memory back: blocks from 128 KiB at once, and one arena a core (at least two)
/// instead of eight. For the whole process, so it is the program's to call, best at the start of `main`; the engine
/// never does. Says whether it did anything: it does not where the C library is another one, and has no effect on a
/// program that has an allocator of its own (jemalloc, mimalloc).
///
/// It costs page faults for large values (some 100 µs a MiB) and, with many more threads than cores, waits for arenas.
///
/// ```
/// fn main() -> thermocline::Result<()> {
///     thermocline::allocator::give_back();
///     let cache = thermocline::Cache::builder().memory(64 << 20).open()?;
///     cache.put("k", "v")
/// }
/// ```
pub fn give_back() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let arenas = i32::try_from(cores.max(2)).unwrap_or(i32::MAX);
        // SAFETY: integers only, and thread-safe: see the module's text.
        #[expect(unsafe_code, reason = "the C library has no other door to its allocator's parameters")]
        let set = |parameter, value| unsafe { libc::mallopt(parameter, value) } == 1;
        // Setting the first also ends its growth, and that of the threshold for trimming.
        set(libc::M_MMAP_THRESHOLD, MMAP_FROM) && set(libc::M_ARENA_MAX, arenas)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        false
    }
}
