//! The binary: everything is in the library.

fn main() -> std::process::ExitCode {
    give_large_memory_back();
    mailqueue::cli::main()
}

/// glibc keeps the memory of large blocks once some have been freed, and a mail of 25 MB would then cost twice as much as
/// it needs, for ever. A threshold that is set stays where it is: what is larger goes back to the system at once.
#[cfg(target_env = "gnu")]
fn give_large_memory_back() {
    const LARGE: libc::c_int = 1024 * 1024;
    // SAFETY: no other thread runs yet, and the function takes two numbers.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

#[cfg(not(target_env = "gnu"))]
fn give_large_memory_back() {}
