//! One connection, and the commands and replies of transactions on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lettre::transport::smtp::commands::{Quit, Rset};

use super::announced::Announced;
use super::classify::LoginWanted;
use super::commands::Envelope;
use super::connect::{Connection, connect};
use super::final_dot::{DotJudgement, judge_dot};
use super::judge::{Answers, Before};
use super::settings::Timeouts;
use super::smarthost::Relay;
use super::wire::{Wire, Written};
use crate::failpoint;
use crate::outcome::{Cause, Reply, Stage, Trouble};

/// The time limit for the reply to QUIT. Nothing depends on it.
const FAREWELL: Duration = Duration::from_secs(1);

/// Refusals on one connection, without an accepted mail between them, after which the next mail gets a new one.
/// Postfix delays each reply by a second from the eleventh error on (`smtpd_soft_error_limit`); a mail with one
/// refused recipient costs two.
const MAX_ERRORS: u32 = 5;

/// A connection on which MAIL may follow.
#[derive(Debug)]
pub(super) struct Session {
    wire: Wire,
    pub announced: Announced,
    timeouts: Timeouts,
    /// The number of recipients that one message may have here, by configuration and LIMITS.
    pub recipients: usize,
    /// Transactions begun.
    messages: u32,
    /// The number of transactions that are allowed, by configuration and LIMITS.
    most_messages: u32,
    /// Refusals since the last accepted mail.
    errors: u32,
    /// It has been left alone since it was made or last used, so that the peer may have closed it meanwhile.
    pub kept: bool,
    /// A transaction was broken off: RSET stands before the next MAIL.
    reset_due: bool,
    /// The envelope that is out and whose replies nobody has read.
    flight: Option<Envelope>,
    /// Opportunistic TLS failed for this reason, so that there was no login.
    tls_failed: Option<String>,
    _open: Open,
}

impl Relay {
    /// Connects, greets, starts TLS, logs in, and quits. Sends no mail.
    pub async fn probe(&self) -> Result<Announced, Trouble> {
        let session = Session::connect(self).await?;
        let announced = session.announced.clone();
        session.quit().await;
        Ok(announced)
    }
}

/// Counts a session for as long as it lives.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    pub async fn connect(relay: &Relay) -> Result<Self, Trouble> {
        let Connection { wire, announced, tls_failed } = connect(relay).await?;
        let settings = &relay.settings;
        let rcpt_max = announced.rcpt_max.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
        Ok(Self {
            wire,
            timeouts: settings.timeouts,
            recipients: settings.recipients_per_message.clamp(1, rcpt_max),
            messages: 0,
            most_messages: settings.messages_per_connection.clamp(1, announced.mail_max.unwrap_or(u32::MAX)),
            errors: 0,
            announced,
            _open: Open::new(&relay.open),
            kept: false,
            reset_due: false,
            flight: None,
            tls_failed,
        })
    }

    /// The envelope that went out ahead of its mail.
    pub fn flight(&self) -> Option<&Envelope> {
        self.flight.as_ref()
    }

    /// Returns true where another transaction may begin: the number of messages allows it, and the peer has not refused
    /// so much that it will slow down.
    pub fn has_budget_left(&self) -> bool {
        self.messages < self.most_messages && self.errors < MAX_ERRORS
    }

    /// Returns true where the current transaction is not the connection's first.
    pub fn is_used(&self) -> bool {
        self.messages > 1
    }

    /// Returns true where the peer has closed the connection or sent data unasked. Not while an envelope is out.
    pub fn has_stirred(&mut self) -> bool {
        self.wire.has_stirred()
    }

    /// Adds to a wanted login that there was none because TLS failed.
    pub fn explain(&self, mut trouble: Trouble) -> Trouble {
        if let (Some(why), Cause::Reply(reply)) = (&self.tls_failed, &mut trouble.cause)
            && reply.wants_login()
        {
            reply.text += &format!(" (opportunistic TLS failed, so that there was no login; see relay.tls: {why})");
        }
        trouble
    }

    /// RSET before the next MAIL.
    pub fn reset(&mut self) {
        self.reset_due = true;
    }

    /// Brings an envelope to the smarthost, unless it is there already, and reads the replies.
    ///
    /// `pipelined`: all commands in one write (RFC 2920), else each after the reply to the one before.
    pub async fn offer(&mut self, envelope: &Envelope, pipelined: bool, login: LoginWanted) -> Answers {
        let ahead = self.flight.take().is_some();
        let mut answers = Answers { pipelined: pipelined || ahead, ahead, login, ..Answers::default() };
        if !ahead {
            self.messages += 1;
        }
        let reset = std::mem::take(&mut self.reset_due);
        if reset {
            let command = Rset.to_string();
            if answers.pipelined {
                self.wire.write(&format!("{command}{}", envelope.commands), self.timeouts.mail).await;
            } else {
                self.wire.write(&command, self.timeouts.mail).await;
            }
            if let Err(cause) = self.reset_reply().await {
                answers.lost = Some((Stage::Mail, cause));
                return answers;
            }
        } else if answers.pipelined && !ahead {
            self.wire.write(&envelope.commands, self.timeouts.mail).await;
        }
        if let Err(lost) = self.replies(envelope, &mut answers).await {
            answers.lost = Some(lost);
        }
        answers
    }

    /// A connection that refuses RSET is worth no more than one that is gone.
    async fn reset_reply(&mut self) -> Result<(), Cause> {
        match self.wire.reply(self.timeouts.mail).await {
            Ok(reply) if reply.is_positive() => Ok(()),
            Ok(reply) => Err(Cause::Closed(format!("the smarthost answered RSET with {reply}"))),
            Err(cause) => Err(cause),
        }
    }

    /// Reads the reply to each command, and where they are not out yet writes each first.
    async fn replies(&mut self, envelope: &Envelope, answers: &mut Answers) -> Result<(), (Stage, Cause)> {
        let last = envelope.recipients + 1;
        let mut before = Before::new(answers.login);
        for (index, command) in envelope.lines().enumerate() {
            let (stage, limit) = match index {
                0 => (Stage::Mail, self.timeouts.mail),
                _ if index == last => (Stage::Data, self.timeouts.data),
                _ => (Stage::Rcpt, self.timeouts.rcpt),
            };
            if !answers.pipelined {
                let nobody = stage == Stage::Data && !answers.rcpt.iter().any(Reply::is_positive);
                if nobody || answers.mail.as_ref().is_some_and(|reply| !reply.is_positive()) {
                    return Ok(());
                }
                self.wire.write(command, limit).await;
            }
            let reply = self.wire.reply(limit).await.map_err(|cause| (stage, cause))?;
            let meaning = before.read(stage, &reply);
            let over = before.is_over(&meaning);
            self.errors += u32::from(reply.code >= 400);
            match stage {
                Stage::Mail => answers.mail = Some(reply),
                Stage::Rcpt => answers.rcpt.push(reply),
                _ => answers.data = Some(reply),
            }
            if over {
                return Ok(());
            }
        }
        if !self.wire.has_input() {
            return Ok(());
        }
        match self.wire.reply(self.timeouts.data).await {
            // It goes away, and says so before the content.
            Ok(reply) if reply.code == 421 => {
                answers.data = Some(reply);
                Ok(())
            }
            _ => Err((Stage::Data, Cause::Protocol("the smarthost sent more replies than it had commands".into()))),
        }
    }

    /// Writes the content, the final dot and, in the same write, the envelope of the next transaction; reads the reply
    /// to the dot.
    ///
    /// Input that is there before the content is written is no reply to the final dot: nothing is written then.
    pub async fn content(&mut self, content: &[u8], ahead: Option<Envelope>) -> DotJudgement {
        if self.wire.has_stirred() {
            let said = self.wire.reply(self.timeouts.data).await;
            return judge_dot(false, said);
        }
        let commands = ahead.as_ref().map_or("", |envelope| &envelope.commands);
        let written = self.wire.write_content(content, commands, self.timeouts.body).await;
        if ahead.is_some() {
            self.messages += 1;
        }
        self.flight = ahead;
        failpoint::hit("after-dot");
        let answer = self.wire.reply(self.timeouts.final_dot).await;
        let judged = judge_dot(written == Written::Dot, answer);
        self.errors = if judged.answer.is_ok() { 0 } else { self.errors + 1 };
        judged
    }

    /// Ends a transaction that waits for a content which nobody is to get.
    pub async fn dot_alone(&mut self) -> DotJudgement {
        self.wire.write(".\r\n", self.timeouts.body).await;
        let answer = self.wire.reply(self.timeouts.final_dot).await;
        self.errors += 1;
        judge_dot(true, answer)
    }

    /// QUIT. An envelope that is out is left behind: without its content it is nothing.
    pub async fn quit(mut self) {
        if self.flight.is_none() {
            self.wire.write(&Quit.to_string(), FAREWELL).await;
            // Whatever the answer is, the connection is closed.
            let _ = self.wire.reply(FAREWELL).await;
        }
    }
}
