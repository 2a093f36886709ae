//! The binary: everything is in the library.

fn main() -> std::process::ExitCode {
    limit_kept_memory();
    mailqueue::cli::main()
}

/// Limits the memory that glibc keeps after it was freed.
#[cfg(target_env = "gnu")]
fn limit_kept_memory() {
    /// Bytes. A larger block goes back to the system at once. Without a fixed threshold glibc raises its own when such
    /// blocks are freed, and a mail of 25 MB would then cost twice as much as it needs, for ever.
    const LARGE: libc::c_int = 1024 * 1024;
    /// Heaps that all threads share: two, so that the runtime's thread seldom waits for another. By default glibc makes up
    /// to eight for each processor, and each thread of an SQLite connection leaves gaps of some MB in its own.
    const HEAPS: libc::c_int = 2;
    // SAFETY: no other thread runs yet, and the function takes two numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

#[cfg(not(target_env = "gnu"))]
fn limit_kept_memory() {}
