//! SMTP conversations as data: what a scripted smarthost says, and what must become of the mails.
//!
//! A file in `tests/dialogs` has a head, a block for each connection in the order in which they come in, and a block of
//! expectations. `#` begins a comment line. A line that begins with modes in brackets, `[off]` or `[on ahead]`, counts
//! in these modes only: `off` without PIPELINING, `on` with it, `ahead` with the next mail's commands behind the content.
//!
//! ```text
//! mail one a@x.test b@x.test      a mail to send, in order; `size=N`, `8bit`, `utf8`, `made=none`, `narrowed` before the
//!                                 recipients
//! modes off on                    in which modes the file is played; all three without this line
//! set rcpt=200ms                  a timeout, `messages=N`, `recipients=N`, `stop=N` (the Nth before_final_dot says no),
//!                                 `pause=100ms` (before_final_dot takes so long), `pipelining=auto` (`full` without it),
//!                                 `tls=starttls`, `host=localhost`, `login=PASSWORD`, `token=TOKEN` (printed by a command), `way=plain`
//!                                 (`relay.auth`)
//!
//! connection
//! greet SIZE 1000|8BITMIME        220, EHLO, and 250 with PIPELINING, as the mode has it, and these
//! whole one                       a transaction of that mail in which everything goes well
//! C: MAIL                         a command that must begin so
//! C= QUIT                         a command that must be just so
//! alone                           nothing has come behind the last command
//! S: 250 ok                       a reply
//! S~ 250 ok                       the same, byte by byte
//! S! \x00garbage\r\n              raw bytes
//! content one                     reads to the final dot, and compares
//! read 100                        reads so many bytes
//! drip 20ms                       says a byte of a reply in each such time, and reads nothing, until the peer has gone
//! rest 50ms                       does nothing for a while
//! stall                           says nothing more until the peer has gone
//! wait                            leaves the connection open, and reads nothing more either
//! close                           closes the connection; `reset` breaks it
//! gone                            the peer closes the connection, without a word
//! tls                             the handshake; `tls other` with another name, `tls foreign` of a foreign authority
//! bye                             QUIT, 221, closed
//!
//! expect
//! one a@x.test: accepted 250 2.0.0 queued as one
//! one relay: connect closed
//! witness: before a@x.test
//! ```

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Off,
    On,
    Ahead,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Off, Self::On, Self::Ahead];

    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Ahead => "ahead",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Letter {
    pub name: String,
    pub recipients: Vec<String>,
    pub size: usize,
    pub eight_bit: bool,
    pub smtputf8: bool,
    /// Made for a smarthost without 8BITMIME and SMTPUTF8.
    pub made_for_none: bool,
    pub narrowed: bool,
}

impl Letter {
    /// What the mail consists of; some of its lines begin with dots.
    pub fn content(&self) -> String {
        let mut content = format!("Subject: {}\r\n\r\n.\r\n..two\r\nlast\r\n", self.name);
        while content.len() < self.size {
            content.push_str(&"a line that makes the mail larger and larger\r\n".repeat(self.size.min(50_000) / 50));
            content.push_str(".and one with a dot\r\n");
        }
        content
    }
}

#[derive(Clone, Debug)]
pub enum Act {
    Greet(String),
    Whole(String),
    Command(String),
    Exactly(String),
    Alone,
    Say(Vec<u8>),
    Pieces(Vec<u8>),
    Content(String),
    Read(usize),
    Drip(Duration),
    Rest(Duration),
    Stall,
    Wait,
    Close,
    Reset,
    Gone,
    Tls(String),
    Bye,
}

#[derive(Clone, Debug, Default)]
pub struct Script {
    pub mails: Vec<Letter>,
    pub settings: Vec<(String, String)>,
    pub connections: Vec<Vec<Act>>,
    pub expected: Vec<String>,
}

/// Reads a file for one mode; `None` if it is not for this mode.
pub fn parse(text: &str, mode: Mode) -> Option<Script> {
    let mut script = Script::default();
    let mut expecting = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let line = match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((modes, rest)) if modes.split(' ').any(|name| name == mode.name()) => rest.trim(),
            Some(_) => continue,
            None => line,
        };
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "connection" => script.connections.push(Vec::new()),
            "expect" => expecting = true,
            _ if expecting => script.expected.push(line.to_owned()),
            "modes" if !rest.split(' ').any(|name| name == mode.name()) => return None,
            "modes" => {}
            "mail" => script.mails.push(letter(rest)),
            "set" => script.settings.extend(rest.split(' ').map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or_else(|| panic!("no value: {line}"));
                (key.to_owned(), value.to_owned())
            })),
            _ => script.connections.last_mut().expect("a connection").push(act(word, rest)),
        }
    }
    Some(script)
}

fn letter(text: &str) -> Letter {
    let mut words = text.split(' ');
    let name = words.next().expect("a name").to_owned();
    let mut letter = Letter {
        name,
        recipients: Vec::new(),
        size: 0,
        eight_bit: false,
        smtputf8: false,
        made_for_none: false,
        narrowed: false,
    };
    for word in words {
        match word {
            "8bit" => letter.eight_bit = true,
            "utf8" => letter.smtputf8 = true,
            "made=none" => letter.made_for_none = true,
            "narrowed" => letter.narrowed = true,
            _ => match word.strip_prefix("size=") {
                Some(size) => letter.size = size.parse().expect("a size"),
                None => letter.recipients.push(word.to_owned()),
            },
        }
    }
    letter
}

fn act(word: &str, rest: &str) -> Act {
    match word {
        "greet" => Act::Greet(rest.to_owned()),
        "whole" => Act::Whole(rest.to_owned()),
        "C:" => Act::Command(rest.to_owned()),
        "C=" => Act::Exactly(rest.to_owned()),
        "alone" => Act::Alone,
        "S:" => Act::Say(format!("{rest}\r\n").into_bytes()),
        "S~" => Act::Pieces(format!("{rest}\r\n").into_bytes()),
        "S!" => Act::Say(unescape(rest)),
        "content" => Act::Content(rest.to_owned()),
        "read" => Act::Read(rest.parse().expect("a number of bytes")),
        "drip" => Act::Drip(duration(rest)),
        "rest" => Act::Rest(duration(rest)),
        "stall" => Act::Stall,
        "wait" => Act::Wait,
        "close" => Act::Close,
        "reset" => Act::Reset,
        "gone" => Act::Gone,
        "tls" => Act::Tls(rest.to_owned()),
        "bye" => Act::Bye,
        _ => panic!("no such line: {word} {rest}"),
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('r') => bytes.push(b'\r'),
                Some('n') => bytes.push(b'\n'),
                Some('x') => {
                    let digits = chars.by_ref().take(2).collect::<String>();
                    bytes.push(u8::from_str_radix(&digits, 16).expect("two hex digits"));
                }
                other => panic!("no such escape: {other:?}"),
            },
            c => bytes.extend(c.to_string().bytes()),
        }
    }
    bytes
}

/// `200ms`, `3s`
pub fn duration(text: &str) -> Duration {
    text.parse::<humantime::Duration>().expect("a duration").into()
}
