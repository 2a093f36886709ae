//! From the raw form to a [`Config`]: each key by itself, then what must fit together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::file::{self, File, Key};
use super::problem::Problem;
use super::reader::{self, Objection, Reader, place};
use super::settings::{Config, Queue};
use super::{database, host};
use crate::dispatch::Rate;
use crate::observe::logs;
use crate::relay::{Auth, Credential, Login, Password, Pipelining, Timeouts, Tls};
use crate::retry::OnUnknown;
use crate::{queue, relay, retry, translate};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3_600);

pub fn check(path: &Path, file: File) -> Result<Config, Vec<Problem>> {
    let mut r = Reader::default();
    let lease = r.value("lease", &file.lease, 15 * MINUTE, lease);
    let message = message(&mut r, &file.message);
    let queues = queues(&mut r, &file.queue, message.max_size);
    let relay = relay(&mut r, &file.relay, lease);
    let retry = retry(&mut r, &file.retry, file.relay.as_ref().and_then(|relay| relay.get_ref().on_unknown.clone()));
    let dials = Relayed::read(&mut r, file.relay.as_ref().map(Spanned::get_ref));
    let config = Config {
        file: path.to_owned(),
        connections: dials.connections,
        rate: dials.rate,
        poll_interval: r.value("poll_interval", &file.poll_interval, MINUTE, reader::duration),
        state_dir: r.value("state_dir", &file.state_dir, PathBuf::from("/var/lib/mailqueue"), absolute),
        lease,
        ledger_keep: r.value("ledger_keep", &file.ledger_keep, 30 * DAY, reader::duration),
        max_in_flight_bytes: r.value("max_in_flight_bytes", &file.max_in_flight_bytes, 64_000_000, reader::size),
        log: log(&mut r, &file.log),
        monitor: r.optional("monitor.listen", &file.monitor.listen, host::listen),
        notify: r.optional("notify.to", &file.notify.to, reader::address),
        retry,
        message,
        // Where there is no relay there is a problem, and nobody sees this Config.
        relay: relay.unwrap_or_else(no_relay),
        queues,
    };
    if r.problems.is_empty() { Ok(config) } else { Err(r.problems) }
}

fn queues(r: &mut Reader, raw: &[Spanned<file::Queue>], max_size: u64) -> Vec<Queue> {
    if raw.is_empty() {
        r.blame(None, "queue", "there is no queue", "write a [[queue]] with name, database and table");
    }
    let mut queues: Vec<Queue> = Vec::new();
    for raw in raw {
        let section = Some(place(raw));
        let raw = raw.get_ref();
        let Some(queue) = queue(r, section, raw, max_size) else { continue };
        let twin = |other: &Queue| other.settings.name == queue.settings.name;
        if queues.iter().any(twin) {
            let what = format!("there is a queue \"{}\" already", queue.settings.name);
            r.blame(raw.name.as_ref().map(place), "queue.name", what, "give each queue a name of its own");
        } else if let Some(other) = queues.iter().find(|other| same_table(&other.settings, &queue.settings)) {
            let what = format!("queue \"{}\" has the same table of the same database", other.settings.name);
            r.blame(raw.table.as_ref().map(place), "queue.table", what, "take one of the two queues out");
        }
        queues.push(queue);
    }
    queues
}

fn queue(r: &mut Reader, section: Option<usize>, raw: &file::Queue, max_size: u64) -> Option<Queue> {
    let name = r.required("queue.name", section, &raw.name, "newsletter", reader::queue_name);
    let weight = r.number("queue.weight", &raw.weight, 1, 1..=1_000);
    let password_file = password_file(r, "queue.password_file", &raw.password_file);
    // Variables are put in after the URL was taken apart, so this one does not go through `required`.
    let database = match &raw.database {
        None => r.required("queue.database", section, &None, "mysql://USER@HOST/DATABASE", |_| Err(Default::default())),
        Some(url) => match database::database(url.get_ref(), password_file) {
            Ok(database) => Some(database),
            Err((what, remedy)) => {
                r.blame(Some(place(url)), "queue.database", what, remedy);
                None
            }
        },
    };
    let schemas = database.as_ref().is_some_and(|database| database.url.scheme() == "postgres");
    let table = r.required("queue.table", section, &raw.table, "mail_queue", |text| table(text, schemas));
    let settings = queue::Settings { name: name?.into(), database: database?, table: table?, max_size };
    Some(Queue { settings, weight })
}

fn same_table(one: &queue::Settings, other: &queue::Settings) -> bool {
    let place = |settings: &queue::Settings| {
        let url = &settings.database.url;
        let port = url.port().or(match url.scheme() {
            "mysql" => Some(3306),
            "postgres" => Some(5432),
            _ => None,
        });
        // The names of this host, and of PostgreSQL's default schema, are spellings of the same place.
        let host = url.host_str().map(str::to_lowercase).map(|host| match host.as_str() {
            "127.0.0.1" | "[::1]" => "localhost".to_owned(),
            _ => host,
        });
        let path = std::fs::canonicalize(url.path()).ok().filter(|_| url.scheme() == "sqlite");
        let path = path.unwrap_or_else(|| url.path().into());
        let table = settings.table.strip_prefix("public.").unwrap_or(&settings.table).to_owned();
        (url.scheme().to_owned(), host, port, path, table)
    };
    place(one) == place(other)
}

fn relay(r: &mut Reader, raw: &Key<file::Relay>, lease: Duration) -> Option<relay::Settings> {
    let Some(raw) = raw else {
        r.blame(None, "relay", "this section is missing", "write [relay] and below it host = \"smtp.example.org\"");
        return None;
    };
    let section = Some(place(raw));
    let raw = raw.get_ref();
    let smarthost = r.required("relay.host", section, &raw.host, "smtp.example.org", host::smarthost);
    let tls = r.value("relay.tls", &raw.tls, Tls::Starttls, |text| reader::choice(text, &TLS));
    let port = r.number("relay.port", &raw.port, 587, 1..=65_535);
    let per_message = r.number("relay.recipients_per_message", &raw.recipients_per_message, 16, 1..=100_000);
    let mut settings = relay::Settings {
        host: String::new(),
        port: u16::try_from(port).unwrap_or(587),
        tls,
        ca_file: r.optional("relay.ca_file", &raw.ca_file, absolute),
        login: login(r, raw),
        helo: r.optional("relay.helo", &raw.helo, host::helo).unwrap_or_else(host::own_name),
        messages_per_connection: r.number(
            "relay.messages_per_connection",
            &raw.messages_per_connection,
            100,
            1..=1_000_000,
        ),
        recipients_per_message: per_message as usize,
        pipelining: r
            .value("relay.pipelining", &raw.pipelining, Pipelining::Auto, |text| reader::choice(text, &PIPELINING)),
        timeouts: Timeouts { final_dot: final_dot(lease), ..Timeouts::default() },
    };
    settings.host = smarthost?;
    let verified = matches!(tls, Tls::Starttls | Tls::Implicit);
    if let Some(username) = raw.username.as_ref().filter(|_| !verified && !host::is_loopback(&settings.host)) {
        let what = "a password would cross the network without verified TLS";
        let remedy = "write tls = \"starttls\" or \"implicit\", or take username and password_file out";
        r.blame(Some(raw.tls.as_ref().map_or(place(username), place)), "relay.tls", what, remedy);
    }
    Some(settings)
}

fn login(r: &mut Reader, raw: &file::Relay) -> Option<Login> {
    let auth = r.value("relay.auth", &raw.auth, Auth::Auto, |text| reader::choice(text, &AUTH));
    let password = raw.password_file.as_ref().map(|file| ("relay.password_file", "password", place(file)));
    let token = raw.token_command.as_ref().map(|command| ("relay.token_command", "token", place(command)));
    let Some(written) = &raw.username else {
        let of_auth = raw.auth.as_ref().filter(|_| auth != Auth::Auto).map(|auth| ("relay.auth", "login", place(auth)));
        if let Some((key, what, at)) = password.or(token).or(of_auth) {
            r.blame(Some(at), key, format!("there is no username for this {what}"), "write username = \"…\" beside it");
        }
        return None;
    };
    let username = r.optional("relay.username", &raw.username, reader::text);
    let credential = match (&raw.password_file, &raw.token_command) {
        (None, None) => {
            let remedy = "name the file that holds its password: password_file = \"/etc/mailqueue/smarthost\"";
            r.blame(Some(place(written)), "relay.username", "there is no password for it", remedy);
            return None;
        }
        (Some(_), Some(command)) => {
            let remedy = "take one of the two out";
            r.blame(Some(place(command)), "relay.token_command", "there is a password_file too", remedy);
            return None;
        }
        (Some(_), None) => {
            let file = password_file(r, "relay.password_file", &raw.password_file);
            file.map(|file| Credential::Secret(Password::File(file)))
        }
        (None, Some(command)) => {
            if matches!(auth, Auth::Plain | Auth::Login) {
                let remedy = "write auth = \"xoauth2\" or \"auto\", or password_file in place of the command";
                r.blame(raw.auth.as_ref().map(place), "relay.auth", "an access token is no password", remedy);
            }
            r.command("relay.token_command", command).map(Credential::TokenCommand)
        }
    };
    Some(Login { username: username?, auth, credential: credential? })
}

/// The file's name as it is written: its variables are put in when it is read.
fn password_file(r: &mut Reader, key: &str, raw: &Key<String>) -> Option<PathBuf> {
    let raw = raw.as_ref()?;
    let file = Some(raw.get_ref()).filter(|file| file.starts_with("${")).map(|file| Ok(PathBuf::from(file)));
    match file.unwrap_or_else(|| absolute(raw.get_ref())) {
        Ok(file) => Some(file),
        Err((what, remedy)) => {
            r.blame(Some(place(raw)), key, what, remedy);
            None
        }
    }
}

/// The keys of `[relay]` that are the dispatcher's.
struct Relayed {
    connections: u32,
    rate: Option<Rate>,
}

impl Relayed {
    fn read(r: &mut Reader, raw: Option<&file::Relay>) -> Self {
        let Some(raw) = raw else { return Self { connections: 4, rate: None } };
        Self {
            connections: r.number("relay.connections", &raw.connections, 4, 1..=1_000),
            rate: r.optional("relay.rate", &raw.rate, reader::rate),
        }
    }
}

const TLS: [(&str, Tls); 4] = [
    ("starttls", Tls::Starttls),
    ("implicit", Tls::Implicit),
    ("opportunistic", Tls::Opportunistic),
    ("none", Tls::None),
];

const AUTH: [(&str, Auth); 4] =
    [("auto", Auth::Auto), ("plain", Auth::Plain), ("login", Auth::Login), ("xoauth2", Auth::Xoauth2)];

const PIPELINING: [(&str, Pipelining); 4] = [
    ("auto", Pipelining::Auto),
    ("full", Pipelining::Full),
    ("commands", Pipelining::Commands),
    ("off", Pipelining::Off),
];

fn message(r: &mut Reader, raw: &file::Message) -> translate::Settings {
    translate::Settings {
        envelope_from: r.optional("message.envelope_from", &raw.envelope_from, reader::address),
        default_from: r.optional("message.default_from", &raw.default_from, reader::address),
        max_size: r.value("message.max_size", &raw.max_size, 40_000_000, reader::size),
    }
}

fn retry(r: &mut Reader, raw: &file::Retry, on_unknown: Key<String>) -> retry::Settings {
    let default = retry::Settings::default();
    let words = [("resend", OnUnknown::Resend), ("hold", OnUnknown::Hold)];
    let settings = retry::Settings {
        initial: r.value("retry.initial", &raw.initial, default.initial, reader::duration),
        maximum: r.value("retry.maximum", &raw.maximum, default.maximum, reader::duration),
        expire: r.value("retry.expire", &raw.expire, default.expire, reader::duration),
        on_unknown: r.value("relay.on_unknown", &on_unknown, default.on_unknown, |text| reader::choice(text, &words)),
    };
    if settings.maximum < settings.initial {
        let at = raw.maximum.as_ref().or(raw.initial.as_ref()).map(place);
        let what = format!(
            "the longest pause ({}) is shorter than the first ({})",
            humantime::format_duration(settings.maximum),
            humantime::format_duration(settings.initial)
        );
        r.blame(at, "retry.maximum", what, "make it at least as long as retry.initial");
    }
    settings
}

fn log(r: &mut Reader, raw: &file::Log) -> logs::Settings {
    let default = logs::Settings::default();
    logs::Settings {
        format: r.value("log.format", &raw.format, default.format, |text| reader::choice(text, &logs::FORMATS)),
        level: r.value("log.level", &raw.level, default.level, level),
        addresses: r
            .value("log.addresses", &raw.addresses, default.addresses, |text| reader::choice(text, &logs::ADDRESSES)),
    }
}

fn level(text: &str) -> Result<String, Objection> {
    match logs::check_level(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(_) => Err((
            format!("\"{text}\" is no log level"),
            "write error, warn, info, debug or trace, by module if need be, as in info,mailqueue::relay=debug"
                .to_owned(),
        )),
    }
}

fn lease(text: &str) -> Result<Duration, Objection> {
    let lease = reader::duration(text)?;
    if lease < Duration::from_secs(1) {
        let what = format!("\"{text}\" is too short: heartbeats could not keep up");
        return Err((what, "write at least 1s; the default is 15m".to_owned()));
    }
    Ok(lease)
}

/// How long the answer to a final dot may take (RFC 5321 §4.5.3.2.6 wants 10 minutes), and a lease must outlast.
fn final_dot(lease: Duration) -> Duration {
    Timeouts::default().final_dot.min(lease * 2 / 3)
}

fn absolute(text: &str) -> Result<PathBuf, Objection> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err((format!("\"{text}\" is no absolute path"), "begin it with /".to_owned()))
    }
}

fn table(text: &str, schemas: bool) -> Result<String, Objection> {
    // PostgreSQL cuts longer names, and would then mean another table.
    let longest = if schemas { 63 } else { 64 };
    let word = |word: &str| {
        word.len() <= longest
            && word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let fits = match text.split_once('.') {
        Some((schema, table)) => schemas && word(schema) && word(table),
        None => word(text),
    };
    if fits {
        return Ok(text.to_owned());
    }
    let also = if schemas { ", and SCHEMA.TABLE" } else { "" };
    Err((format!("\"{text}\" is no table's name"), format!("letters, digits and _ are allowed{also}")))
}

fn no_relay() -> relay::Settings {
    relay::Settings {
        host: String::new(),
        port: 587,
        tls: Tls::Starttls,
        ca_file: None,
        login: None,
        helo: String::new(),
        messages_per_connection: 100,
        recipients_per_message: 16,
        pipelining: Pipelining::Auto,
        timeouts: Timeouts::default(),
    }
}
