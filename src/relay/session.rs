//! One connection, and the commands and replies of transactions on it.

use std::time::Duration;

use lettre::transport::smtp::commands::{Quit, Rset};

use super::classify::{Meaning, meaning};
use super::commands::Envelope;
use super::connect::connect;
use super::judge::{Answers, DotJudgement, is_over, judge_dot};
use super::wire::{Wire, Written};
use super::{Announced, Relay, Timeouts};
use crate::crash;
use crate::outcome::{Cause, Reply, Stage, Trouble};

/// How long we wait for the reply to QUIT. Nothing depends on it.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection on which MAIL may follow.
#[derive(Debug)]
pub(super) struct Session {
    wire: Wire,
    pub announced: Announced,
    timeouts: Timeouts,
    /// How many recipients one message may have here.
    pub recipients: usize,
    /// Transactions begun.
    messages: u32,
    /// It has been left alone since it was made or last used, so that the peer may have closed it meanwhile.
    pub kept: bool,
    /// A transaction was broken off: RSET stands before the next MAIL.
    reset_due: bool,
    /// The envelope that is out and whose replies nobody has read.
    flight: Option<Envelope>,
}

impl Session {
    pub async fn connect(relay: &Relay) -> Result<Self, Trouble> {
        let (wire, announced) = connect(relay).await?;
        Ok(Self {
            wire,
            announced,
            timeouts: relay.settings.timeouts,
            recipients: relay.settings.recipients_per_message.max(1),
            messages: 0,
            kept: false,
            reset_due: false,
            flight: None,
        })
    }

    /// The envelope that went out ahead of its mail.
    pub fn flight(&self) -> Option<&Envelope> {
        self.flight.as_ref()
    }

    /// Whether another transaction may begin, going by `messages_per_connection`.
    pub fn may_go_on(&self, limit: u32) -> bool {
        self.messages < limit.max(1)
    }

    /// Whether the peer has closed the connection or said something unasked. Not while an envelope is out.
    pub fn has_stirred(&mut self) -> bool {
        self.wire.has_stirred()
    }

    /// The smarthost takes only so many recipients in one message.
    pub fn learn(&mut self, recipients: usize) {
        self.recipients = self.recipients.min(recipients.max(1));
    }

    /// RSET before the next MAIL.
    pub fn reset(&mut self) {
        self.reset_due = true;
    }

    /// Brings an envelope to the smarthost, unless it is there already, and reads the replies.
    ///
    /// `pipelined`: all commands in one write (RFC 2920), else each after the reply to the one before.
    pub async fn offer(&mut self, envelope: &Envelope, pipelined: bool) -> Answers {
        let ahead = self.flight.take().is_some();
        let mut answers = Answers { pipelined: pipelined || ahead, ahead, ..Answers::default() };
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
        let mut refused = false;
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
            let meaning = meaning(stage, &reply);
            let over = is_over(&meaning, refused);
            refused |= matches!(meaning, Meaning::No(_)) || matches!(meaning, Meaning::Enough(_)) && index == 1;
            match stage {
                Stage::Mail => answers.mail = Some(reply),
                Stage::Rcpt => answers.rcpt.push(reply),
                _ => answers.data = Some(reply),
            }
            if over {
                return Ok(());
            }
        }
        if self.wire.has_input() {
            return Err((Stage::Data, Cause::Protocol("the smarthost sent more replies than it had commands".into())));
        }
        Ok(())
    }

    /// Writes the content, the final dot and, in the same write, the envelope of the next transaction; reads the reply
    /// to the dot.
    pub async fn content(&mut self, content: &[u8], ahead: Option<Envelope>) -> DotJudgement {
        let commands = ahead.as_ref().map_or("", |envelope| &envelope.commands);
        let written = self.wire.write_content(content, commands, self.timeouts.body).await;
        if ahead.is_some() {
            self.messages += 1;
        }
        self.flight = ahead;
        crash::point("after-dot");
        let answer = self.wire.reply(self.timeouts.final_dot).await;
        judge_dot(written == Written::Dot, answer)
    }

    /// Ends a transaction that waits for a content which nobody is to get.
    pub async fn dot_alone(&mut self) -> DotJudgement {
        self.wire.write(".\r\n", self.timeouts.body).await;
        let answer = self.wire.reply(self.timeouts.final_dot).await;
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
