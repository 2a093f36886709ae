//! Settings, mails, witnesses, and outcomes as text.

use std::cell::RefCell;
use std::io::Write;
use std::sync::Once;
use std::time::Duration;

use mailqueue::mail::{Address, Capabilities, Envelope, Mail};
use mailqueue::outcome::{Attempt, Cause, Reason, RecipientOutcome, Reply, Scope, Stage, Trouble};
use mailqueue::relay::{Auth, Credential, Login, Pipelining, Settings, Timeouts, Tls, TransactionHook};

/// Settings for a smarthost in the clear, with timeouts that no test reaches unless it wants to.
pub fn settings(port: u16) -> Settings {
    let long = Duration::from_secs(30);
    Settings {
        host: "127.0.0.1".into(),
        port,
        tls: Tls::None,
        ca_file: None,
        login: None,
        helo: "client.example.org".into(),
        messages_per_connection: 100,
        recipients_per_message: 16,
        pipelining: Pipelining::Full,
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

pub fn login(auth: Auth, credential: Credential) -> Login {
    Login { username: "user".into(), auth, credential }
}

pub fn mail(content: &str, recipients: &[Address]) -> Mail {
    Mail {
        message_id: "<test@example.org>".into(),
        subject: "test".into(),
        envelope: Envelope { sender: Some(address("sender@example.org")), recipients: recipients.to_vec() },
        own_sender: Some(address("sender@example.org")),
        invalid: Vec::new(),
        made_for: Capabilities::default(),
        narrowed: false,
        content: content.to_owned().into(),
        eight_bit: false,
        smtputf8: false,
        repairs: Vec::new(),
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
    /// The number of the call of `before_final_dot` that says no.
    pub stop: Option<usize>,
    /// The time that `before_final_dot` takes.
    pub pause: Option<Duration>,
    calls: usize,
    open: bool,
}

impl Notes {
    pub fn new(stop: Option<usize>, pause: Option<Duration>) -> Self {
        Self { stop, pause, ..Self::default() }
    }
}

impl TransactionHook for Notes {
    async fn before_final_dot(&mut self, recipients: &[Address]) -> Result<(), Trouble> {
        assert!(!self.open, "before_final_dot came twice without after_final_dot");
        assert!(!recipients.is_empty(), "before_final_dot without recipients");
        self.calls += 1;
        let names = recipients.iter().map(Address::to_string).collect::<Vec<_>>().join(" ");
        self.seen.push(format!("before {names}"));
        if self.stop == Some(self.calls) {
            let cause = Cause::Local(Reason::Operator, "stop".into());
            return Err(Trouble { stage: Stage::Data, scope: Scope::Relay, cause });
        }
        self.open = true;
        if let Some(pause) = self.pause {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    async fn after_final_dot(&mut self, answer: Result<&Reply, &Trouble>) {
        assert!(std::mem::take(&mut self.open), "after_final_dot without before_final_dot");
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
    lines.extend(
        attempt
            .remake
            .iter()
            .map(|capabilities| format!("remake: 8bit={} utf8={}", capabilities.eight_bit, capabilities.smtputf8)),
    );
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
        Cause::OpenFiles(how) => how.clone(),
        Cause::Local(reason, _) => format!("local {reason}"),
    };
    format!("{} {scope} {cause}", trouble.stage.as_str())
}

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Keeps from here on what this thread logs, at every level. A test of `tokio` has one thread.
///
/// One subscriber for the whole process: tracing remembers for each place in the code whether anybody listens, and
/// subscribers that come and go in other threads would make it forget this one.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let everything = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        everything.with_writer(|| ThisThread).init();
    });
    LOG.take();
}

/// What this thread has logged since [`listen`].
pub fn heard() -> String {
    String::from_utf8(LOG.take()).unwrap()
}

struct ThisThread;

impl Write for ThisThread {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
