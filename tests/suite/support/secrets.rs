//! What no log may show: passwords that tests use, and a word that stands in the body of every row that tests write.
//! [`super::binary`] looks for them in whatever it captures of the program.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// In the body of every row of [`super::house::mail`].
pub const BODY: &str = "Streng-vertraulich-4711";

/// Of databases and smarthosts.
pub const PASSWORD: &str = "Passwort-geheim-0815";

/// Panics if a secret stands in a log, as it is or in base64. Bodies may stand on standard output: `show` is for that.
pub fn assert_kept(what: &str, stdout: &str, stderr: &str) {
    if let Some((secret, line)) = leak(stdout, &[PASSWORD]).or_else(|| leak(stderr, &[PASSWORD, BODY])) {
        panic!("{what} lets `{secret}` out:\n{line}");
    }
}

/// The first secret that a text shows, and where.
pub fn leak<'a>(text: &'a str, secrets: &[&str]) -> Option<(String, &'a str)> {
    secrets.iter().find_map(|secret| {
        let shapes = shapes(secret);
        let line = text.lines().find(|line| shapes.iter().any(|shape| line.contains(shape)))?;
        Some(((*secret).to_owned(), line))
    })
}

/// The secret, and what is in its base64 whatever stands before and behind it: three bytes are four characters, so it
/// can begin in three places.
fn shapes(secret: &str) -> Vec<String> {
    let shifted = (0..3).map(|shift| {
        let encoded = BASE64_STANDARD.encode([&vec![0; shift], secret.as_bytes()].concat());
        let whole = (shift + secret.len()) / 3 * 4;
        encoded[if shift == 0 { 0 } else { 4 }..whole].to_owned()
    });
    shifted.chain([secret.to_owned()]).collect()
}
