//! The limit of open files: of this process (EMFILE) or of the whole system (ENFILE). A lowest layer.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Returns true if the error says that no further file, socket or pipe can be opened.
pub fn is_limit(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Returns true if no further file can be opened now. For errors of libraries that do not say why they failed: the
/// system's resolver, SQLite.
pub fn is_reached() -> bool {
    !have_room_for(1)
}

/// Returns true if this many further files can be opened now.
pub fn have_room_for(files: usize) -> bool {
    let mut opened = Vec::with_capacity(files);
    for _ in 0..files {
        match rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 0) {
            Ok(file) => opened.push(file),
            // Without a standard error there is nothing to duplicate, which says nothing about the limit.
            Err(error) => return !matches!(error, Errno::MFILE | Errno::NFILE),
        }
    }
    true
}

/// Says that the limit was reached, and what to do.
pub fn explanation() -> String {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or("no limit of its own".to_owned(), |limit| limit.to_string());
    format!(
        "no further file or connection can be opened: this process may have {limit} open files; raise LimitNOFILE= of \
         its unit (systemctl edit mailqueue), or lower connections in [relay]"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_limits_are_limits() {
        assert!(is_limit(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(is_limit(&io::Error::from_raw_os_error(libc::ENFILE)));
        assert!(!is_limit(&io::Error::from_raw_os_error(libc::ECONNREFUSED)));
        assert!(!is_limit(&io::ErrorKind::NotFound.into()));
        assert!(!is_reached());
        assert!(explanation().contains("LimitNOFILE="));
    }
}
