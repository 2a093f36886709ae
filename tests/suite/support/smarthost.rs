//! The real smarthosts that `tests/run` starts; the files in `tests/servers` that are named after them say what each
//! refuses.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{eventually, variable};

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Smarthost {
    /// How the names of its variables begin.
    prefix: &'static str,
}

pub const POSTFIX: Smarthost = Smarthost { prefix: "MAILQUEUE_TEST_POSTFIX" };
pub const EXIM: Smarthost = Smarthost { prefix: "MAILQUEUE_TEST_EXIM" };
/// Takes three connections at the same time.
pub const EXIM_LIMITED: Smarthost = Smarthost { prefix: "MAILQUEUE_TEST_EXIM_LIMITED" };
pub const DOVECOT: Smarthost = Smarthost { prefix: "MAILQUEUE_TEST_DOVECOT" };
pub const CHASQUID: Smarthost = Smarthost { prefix: "MAILQUEUE_TEST_CHASQUID" };
/// Its port has neither TLS nor AUTH.
pub const OPENSMTPD: Smarthost = Smarthost { prefix: "MAILQUEUE_TEST_OPENSMTPD" };

/// One recipient's copy of a mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Empty for the null sender.
    pub sender: String,
    pub recipient: String,
    /// The smarthost's `Received`, then the mail, with LF line ends.
    pub content: String,
}

impl Smarthost {
    pub fn name(self) -> &'static str {
        self.prefix.trim_start_matches("MAILQUEUE_TEST_")
    }

    /// Submission on 127.0.0.1: STARTTLS, then AUTH, are required.
    pub fn port(self) -> u16 {
        self.variable("PORT").parse().expect("port")
    }

    /// The same with implicit TLS; Postfix only.
    pub fn implicit_tls_port(self) -> u16 {
        self.variable("TLS_PORT").parse().expect("port")
    }

    /// Neither TLS nor AUTH; Postfix only.
    pub fn plain_port(self) -> u16 {
        self.variable("PLAIN_PORT").parse().expect("port")
    }

    /// Likewise, with room for three connections at the same time; Postfix only.
    pub fn limited_port(self) -> u16 {
        self.variable("LIMITED_PORT").parse().expect("port")
    }

    /// In bytes, as it announces it.
    pub fn size_limit(self) -> usize {
        if [POSTFIX, EXIM].contains(&self) { 35 << 20 } else { 1 << 20 }
    }

    /// The authority behind its certificate, which is for localhost, 127.0.0.1 and ::1.
    pub fn ca_file(self) -> PathBuf {
        self.variable("CA").into()
    }

    pub fn user(self) -> String {
        self.variable("USER")
    }

    pub fn password_file(self) -> PathBuf {
        self.variable("PASSWORD_FILE").into()
    }

    pub fn log(self) -> String {
        fs::read_to_string(self.variable("LOG")).expect("the smarthost's log")
    }

    /// Waits until `count` recipients whose addresses end with `suffix` have mail, and returns all that they have in the
    /// order of the recipients. As all tests share the Maildir, `suffix` should be a domain of the test's own. To see that
    /// nothing more arrives, send a last mail and wait for it too.
    pub async fn delivered_to(self, suffix: &str, count: usize) -> Vec<Delivered> {
        let mut before = 0;
        loop {
            // A smarthost in front of another takes its time: it is waited for as long as mails come. A second copy for one
            // recipient may come before the first for another.
            let what =
                format!("more than {before} mails for {count} recipients at {suffix} in the smarthost's Maildir");
            let recipients =
                |mails: &[Delivered]| mails.iter().map(|mail| &mail.recipient).collect::<HashSet<_>>().len();
            let mails = eventually(&what, || {
                let mut mails = self.mails();
                mails.retain(|mail| mail.recipient.ends_with(suffix));
                (recipients(&mails) >= count || mails.len() > before).then_some(mails)
            });
            let mut mails = mails.await;
            if recipients(&mails) >= count {
                mails.sort_by(|a, b| a.recipient.cmp(&b.recipient));
                return mails;
            }
            before = mails.len();
        }
    }

    fn mails(self) -> Vec<Delivered> {
        // The smarthost makes it with the first mail.
        let Ok(entries) = fs::read_dir(Path::new(&self.variable("MAILDIR")).join("new")) else { return Vec::new() };
        entries
            .map(|entry| parse(&String::from_utf8_lossy(&fs::read(entry.expect("Maildir").path()).expect("mail"))))
            .collect()
    }

    fn variable(self, name: &str) -> String {
        variable(&format!("{}_{name}", self.prefix))
    }
}

fn parse(file: &str) -> Delivered {
    let received = file.find("Received: ").expect("the smarthost's own line");
    let (envelope, content) = file.split_at(received);
    let envelope: HashMap<_, _> = envelope
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let recipient = envelope.get("x-original-to").or_else(|| envelope.get("envelope-to")).expect("recipient");
    Delivered {
        sender: envelope["return-path"].trim_matches(['<', '>']).to_owned(),
        recipient: recipient.clone(),
        content: content.to_owned(),
    }
}
