//! What the C library's allocator keeps of the memory that was freed.
//!
//! The engine's limits bound what it holds. What the process takes from the system is decided by the allocator, and
//! glibc's, left to itself, keeps freed memory in up to eight arenas a core, and takes blocks of up to 32 MiB from
//! them once one such block was freed. A cache, whose values come from one thread and go on another, is its worst
//! case: on two cores, eight writers made the resident memory half as large again as what was held.
//!
//! This module holds `unsafe` calls of `mallopt`, `malloc_trim` and `mallinfo2` (glibc). The argument: the first two take integers by
//! value, and refuse what they do not know; they take the allocator's own locks, so they may be called while other
//! threads allocate (`mallopt(3)`, "MT-Safe init", `malloc_trim(3)`, "MT-Safe"; not from a signal handler, which is not
//! done); and `malloc_trim` gives back only pages that hold nothing that is allocated.

/// From this size on, a block is mapped by itself and given back when it is freed. In bytes; it is where glibc begins.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MMAP_FROM: i32 = 128 << 10;

/// Gives what the allocator keeps of freed memory back to the system now. Says whether it did: not where the C library
/// is another one than glibc, nor where nothing could be given back. It looks at all that is free in every arena, some
/// milliseconds for a gigabyte; an allocation meanwhile waits for its arena.
pub(crate) fn trim() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: one integer, and thread-safe: see the module's text.
        #[expect(unsafe_code, reason = "the C library has no other door to what its allocator keeps")]
        unsafe {
            libc::malloc_trim(0) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        false
    }
}

/// Bytes that the C library's allocator has given out, blocks that it mapped by themselves among them. `None` where it is
/// another one than glibc's, or older than version 2.33 of 2021. It looks at all that is free in every arena, as
/// [`trim`] does.
pub(crate) fn allocated() -> Option<u64> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// The function, if this C library has it: it is looked for when first needed, so that older ones will do.
        static FOUND: std::sync::LazyLock<Option<extern "C" fn() -> libc::mallinfo2>> =
            std::sync::LazyLock::new(|| {
                // SAFETY: a name that ends with NUL, and no pointer but the one that is looked for; thread-safe.
                #[expect(unsafe_code, reason = "an older C library has no such function to link with")]
                let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"mallinfo2".as_ptr()) };
                // SAFETY: not null; glibc declares it as a function without arguments that returns this structure.
                #[expect(unsafe_code, reason = "what dlsym gives has no type")]
                (!found.is_null()).then(|| unsafe {
                    std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> libc::mallinfo2>(found)
                })
            });
        let info = (*FOUND)?();
        Some((info.uordblks as u64).saturating_add(info.hblkhd as u64))
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        None
    }
}

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
