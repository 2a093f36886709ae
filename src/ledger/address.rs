//! What stands in place of addresses once a mail is settled: each can be told again, and none can be read.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Half an HMAC-SHA256 in hexadecimal. The domain's case does not matter; that of the local part does not either,
/// because whoever asks for a member's mail seldom knows it.
pub fn hash_address(key: &[u8; 32], address: &str) -> String {
    // Every length of key fits an HMAC; the empty digest stands where that ever changed.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(address.to_lowercase().as_bytes());
    crate::mail::hex(&mac.finalize().into_bytes()[..16])
}

/// The reply, each word that could be an address replaced.
pub fn without_addresses(reply: &str) -> String {
    let hide = |word| if str::contains(word, '@') { "…" } else { word };
    reply.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}
