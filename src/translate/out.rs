//! The body of the mail while it is written: what is larger than `max_size` is not kept.

use super::unreadable::Unreadable;
use crate::outcome::Reason;

/// Bytes that are written, up to a limit. Behind the limit they are only counted, so that a row whose parts grow when
/// they are encoded takes no more memory than a mail that may go out.
#[derive(Debug, Default)]
pub struct Out {
    bytes: Vec<u8>,
    limit: usize,
    /// Bytes that were written, once they are known to be too many. None is kept then.
    beyond: Option<usize>,
}

impl Out {
    /// Has room for `capacity` bytes, and keeps `limit` bytes at most.
    pub fn new(capacity: usize, limit: u64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { bytes: Vec::with_capacity(capacity.min(limit)), limit, beyond: None }
    }

    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let room = self.bytes.capacity() - self.bytes.len();
        if bytes.len() > room && !self.grow(bytes.len()) {
            return;
        }
        self.bytes.extend_from_slice(bytes);
    }

    #[inline]
    pub fn push(&mut self, byte: u8) {
        if self.bytes.len() < self.bytes.capacity() || self.grow(1) {
            self.bytes.push(byte);
        }
    }

    /// Makes room for this many bytes more. `false` if they are too many: then they are counted only.
    #[cold]
    fn grow(&mut self, more: usize) -> bool {
        let needed = self.bytes.len().saturating_add(more);
        if self.beyond.is_some() || needed > self.limit {
            self.beyond = Some(self.beyond.unwrap_or_default().saturating_add(needed));
            self.bytes = Vec::new();
            return false;
        }
        let half_more = self.bytes.capacity().saturating_add(self.bytes.capacity() / 2);
        self.bytes.reserve_exact(half_more.clamp(needed, self.limit) - self.bytes.len());
        true
    }

    /// Makes room for what is known to come, at once: at least `least` bytes and at most `most`.
    pub fn reserve(&mut self, least: usize, most: usize) {
        let length = self.bytes.len();
        if self.beyond.is_none() && length.saturating_add(least) > self.limit {
            // What is too large need not be kept to know it.
            self.beyond = Some(length);
            self.bytes = Vec::new();
        }
        let needed = length.saturating_add(most).min(self.limit);
        if self.beyond.is_none() && needed > self.bytes.capacity() {
            self.bytes.reserve_exact(needed - length);
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.beyond = None;
    }

    /// Takes one CRLF off the end.
    pub fn trim_line_end(&mut self) {
        if self.bytes.ends_with(b"\r\n") {
            self.bytes.truncate(self.bytes.len() - 2);
        }
    }

    /// The row is set aside if there were too many bytes.
    pub fn check(&self) -> Result<(), Unreadable> {
        match self.beyond {
            None => Ok(()),
            Some(bytes) => Err(too_large(bytes as u64, self.limit as u64)),
        }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// `bytes` is how many there are at least.
pub fn too_large(bytes: u64, max_size: u64) -> Unreadable {
    Unreadable::new(Reason::TooLarge, format!("the mail has {bytes} bytes, and max_size allows {max_size}"))
}
