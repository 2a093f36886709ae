//! Settings, mails, witnesses, and outcomes as text.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mailqueue::mail::{Address, Envelope, Mail};
use mailqueue::outcome::{Attempt, Cause, Reason, RecipientOutcome, Reply, Scope, Stage, Trouble};
use mailqueue::relay::{Settings, Timeouts, Tls, Witness};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// Settings for a smarthost in the clear, with timeouts that no test reaches unless it wants to.
pub fn settings(port: u16) -> Settings {
    let long = Duration::from_secs(10);
    Settings {
        host: "127.0.0.1".into(),
        port,
        tls: Tls::None,
        ca_file: None,
        login: None,
        helo: "client.example.org".into(),
        messages_per_connection: 100,
        recipients_per_message: 16,
        timeouts: Timeouts {
            connect: long,
            greeting: long,
            ehlo: long,
            tls: long,
            auth: long,
            mail: long,
            rcpt: long,
            data: long,
            body: long,
            final_dot: long,
        },
    }
}

pub fn mail(content: &str, recipients: &[Address]) -> Mail {
    Mail {
        message_id: "<test@example.org>".into(),
        subject: "test".into(),
        envelope: Envelope { sender: Some(address("sender@example.org")), recipients: recipients.to_vec() },
        invalid: Vec::new(),
        content: content.to_owned().into(),
        eight_bit: false,
        smtputf8: false,
        mendings: Vec::new(),
    }
}

pub fn address(text: &str) -> Address {
    let (user, domain) = text.rsplit_once('@').expect("an @");
    Address::new_dangerous(user, domain)
}

/// Notes what it sees, and holds the order of events to what is promised.
#[derive(Default)]
pub struct Notes {
    pub seen: Vec<String>,
    /// The number of the call of `before_dot` that says no.
    pub stop: Option<usize>,
    calls: usize,
    open: bool,
}

impl Notes {
    pub fn stopping(stop: Option<usize>) -> Self {
        Self { stop, ..Self::default() }
    }
}

impl Witness for Notes {
    async fn before_dot(&mut self, recipients: &[Address]) -> Result<(), Trouble> {
        assert!(!self.open, "before_dot came twice without after_dot");
        assert!(!recipients.is_empty(), "before_dot without recipients");
        self.calls += 1;
        let names = recipients.iter().map(Address::to_string).collect::<Vec<_>>().join(" ");
        self.seen.push(format!("before {names}"));
        if self.stop == Some(self.calls) {
            let cause = Cause::Local(Reason::Operator, "stop".into());
            return Err(Trouble { stage: Stage::Data, scope: Scope::Relay, cause });
        }
        self.open = true;
        Ok(())
    }

    async fn after_dot(&mut self, answer: Result<&Reply, &Trouble>) {
        assert!(std::mem::take(&mut self.open), "after_dot without before_dot");
        self.seen.push(match answer {
            Ok(reply) => format!("after {reply}"),
            Err(trouble) => format!("after {}", show(trouble)),
        });
    }
}

/// A line for each recipient, and one for the relay's trouble.
pub fn lines(attempt: &Attempt) -> Vec<String> {
    let mut lines = attempt
        .outcomes
        .iter()
        .map(|(address, outcome)| {
            let outcome = match outcome {
                RecipientOutcome::Accepted(reply) => format!("accepted {reply}"),
                RecipientOutcome::Deferred(trouble) => format!("deferred {}", show(trouble)),
                RecipientOutcome::Refused(trouble) => format!("refused {}", show(trouble)),
                RecipientOutcome::Unknown(trouble) => format!("unknown {}", show(trouble)),
                RecipientOutcome::Untried => "untried".to_owned(),
            };
            format!("{address}: {outcome}")
        })
        .collect::<Vec<_>>();
    lines.extend(attempt.relay.iter().map(|trouble| format!("relay: {}", show(trouble))));
    lines
}

pub fn show(trouble: &Trouble) -> String {
    let scope = match trouble.scope {
        Scope::Relay => "relay",
        Scope::Message => "message",
        Scope::Recipient => "recipient",
    };
    let cause = match &trouble.cause {
        Cause::Reply(reply) => reply.to_string(),
        Cause::Timeout => "timeout".into(),
        Cause::Closed(_) => "closed".into(),
        Cause::Protocol(_) => "protocol".into(),
        Cause::Local(reason, _) => format!("local {reason}"),
    };
    format!("{} {scope} {cause}", trouble.stage.as_str())
}

/// What was logged.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Everything that this thread logs, at every level.
pub fn listen() -> (Log, DefaultGuard) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}
