//! Who sends and who receives: the address headers of a row, and the envelope that follows from them.

use std::borrow::Cow;
use std::collections::HashSet;

use lettre::message::Mailbox;

use super::address_list::{self, Entry, MOST_INVALID, MOST_RECIPIENTS, TooMany};
use super::headers::Field;
use super::lines::{lines, unfold};
use super::repairs::{Repairs, for_people};
use super::settings::Settings;
use super::unreadable::Unreadable;
use super::words;
use crate::decode;
use crate::mail::{Address, Capabilities, Envelope, InvalidRecipient, RepairCode};
use crate::outcome::Reason;

/// Everybody whom a row names.
#[derive(Debug)]
pub struct Parties {
    /// Never empty.
    pub from: Vec<Mailbox>,
    pub sender: Option<Mailbox>,
    pub reply_to: Vec<Mailbox>,
    pub to: Vec<Mailbox>,
    pub cc: Vec<Mailbox>,
    pub envelope: Envelope,
    /// The row's own envelope sender, whatever `envelope_from` says.
    pub own_sender: Option<Address>,
    pub invalid: Vec<InvalidRecipient>,
}

impl Parties {
    pub fn of(
        mto: &[u8],
        mparams: &[u8],
        fields: &[Field<'_>],
        capabilities: Capabilities,
        settings: &Settings,
        repairs: &mut Repairs,
    ) -> Result<Self, Unreadable> {
        let mut reader = Reader { fields, capabilities, invalid: Vec::new() };
        let listed = mto_list(mto, repairs, &mut reader.invalid)?;
        let mut to = reader.recipients(listed)?;
        // Programs that name a recipient in both places mean one.
        let mut more = reader.recipients_of("To", repairs)?;
        if !more.is_empty() {
            let listed: HashSet<&Mailbox> = to.iter().collect();
            more.retain(|mailbox| !listed.contains(mailbox));
            to.append(&mut more);
        }
        let cc = reader.recipients_of("Cc", repairs)?;
        let bcc = reader.recipients_of("Bcc", repairs)?;
        let from = reader.from(settings, repairs)?;
        let mut sender = reader.senders("Sender", repairs)?.into_iter().next();
        let own_sender = own_sender(mparams, fields, sender.as_ref().unwrap_or(&from[0]), capabilities, repairs);
        // `envelope_from` never stands in place of the null sender.
        let envelope_sender = own_sender.clone().map(|own| settings.envelope_from.clone().unwrap_or(own));
        if sender.is_none() && from.len() > 1 {
            // RFC 5322 §3.6.2: several authors want a sender.
            sender = Some(from[0].clone());
            repairs.add(
                RepairCode::HeaderAdded,
                "Sender",
                "From names several people and there was no Sender: the first of them was put there",
            );
        }
        let reply_to = reader.others("Reply-To", repairs)?;
        if fields.iter().any(|field| field.is("Resent-Bcc")) {
            repairs.add(
                RepairCode::HeaderDropped,
                "Resent-Bcc",
                "Resent-Bcc was left out; the addresses in it are no recipients of this mail",
            );
        }
        let mut everybody: Vec<&Address> = to.iter().chain(&cc).chain(&bcc).map(|mailbox| &mailbox.email).collect();
        if everybody.len() > 1 {
            let mut seen = HashSet::new();
            everybody.retain(|address| seen.insert(identity(address)));
        }
        let recipients: Vec<Address> = everybody.into_iter().cloned().collect();
        if recipients.len() > MOST_RECIPIENTS {
            return Err(TooMany.into());
        }
        let invalid = reader.invalid;
        if recipients.is_empty() {
            return Err(nobody(&invalid));
        }
        let envelope = Envelope { sender: envelope_sender, recipients };
        Ok(Self { from, sender, reply_to, to, cc, envelope, own_sender, invalid })
    }

    /// Returns true where SMTPUTF8 would add a recipient.
    pub fn are_narrowed(&self) -> bool {
        self.invalid.iter().any(|one| one.why == NO_SMTPUTF8)
    }

    /// An address in the mail has a local part that only SMTPUTF8 can carry.
    pub fn need_smtputf8(&self) -> bool {
        let shown = self.from.iter().chain(&self.sender).chain(&self.reply_to).chain(&self.to).chain(&self.cc);
        let mut all = shown.map(|mailbox| &mailbox.email).chain(&self.envelope.recipients).chain(&self.envelope.sender);
        all.any(needs_smtputf8)
    }
}

/// Domains are compared without case, local parts are not ours to interpret (RFC 5321 §2.4).
fn identity(address: &Address) -> (&str, Cow<'_, str>) {
    (address.user(), words::lower_case(address.domain()))
}

fn needs_smtputf8(address: &Address) -> bool {
    !address.user().is_ascii()
}

fn nobody(invalid: &[InvalidRecipient]) -> Unreadable {
    if invalid.is_empty() {
        return Unreadable::new(Reason::NoRecipient, "there is no address in mto, To, Cc and Bcc");
    }
    let all_utf8 = invalid.iter().all(|one| one.why == NO_SMTPUTF8);
    let reason = if all_utf8 { Reason::Smtputf8Unsupported } else { Reason::AddressInvalid };
    let list: Vec<_> = invalid.iter().take(5).map(|one| format!("`{}`: {}", one.written, one.why)).collect();
    let more = invalid.len().checked_sub(6).map_or(String::new(), |more| format!("; and {} more", more + 1));
    Unreadable::new(reason, format!("no recipient can be reached: {}{more}", list.join("; ")))
}

const NO_SMTPUTF8: &str = "its local part needs SMTPUTF8, which the smarthost does not offer";

/// The list in `mto`. A fold is legal. A line end with no blank behind it is an attempt to add a header, or a list that was
/// put together wrongly; either way nobody behind it gets the mail, and the row does not count as delivered.
fn mto_list(mto: &[u8], repairs: &mut Repairs, invalid: &mut Vec<InvalidRecipient>) -> Result<Vec<Entry>, TooMany> {
    let mut unfolded = unfold(lines(mto.trim_ascii())).into_iter();
    let first = unfolded.next().unwrap_or_default();
    for line in unfolded {
        let written = for_people(&decode::utf8_or_windows_1252(&line));
        repairs.add(
            RepairCode::LineEnd,
            "mto",
            format!("mto held a line end and more behind it: `{written}` was left out"),
        );
        let why = "it stands behind a line end in mto, as headers do that are smuggled in".to_owned();
        invalid.push(InvalidRecipient { written, why });
        if invalid.len() > MOST_INVALID {
            return Err(TooMany);
        }
    }
    entries(&words::without_controls(decode::utf8_or_windows_1252(&first)), "mto", repairs)
}

/// Reads a list, and notes a repair made on the way.
fn entries(text: &str, place: &str, repairs: &mut Repairs) -> Result<Vec<Entry>, TooMany> {
    let list = address_list::list(text)?;
    if let Some(c) = list.stripped {
        let code = u32::from(c);
        let text = format!("{place}: the invisible character U+{code:04X} beside an address was taken off");
        repairs.add(RepairCode::Invisible, place, text);
    }
    Ok(list.entries)
}

impl From<TooMany> for Unreadable {
    fn from(TooMany: TooMany) -> Self {
        let detail = format!(
            "mto, To, Cc and Bcc: more than {MOST_RECIPIENTS} recipients, or more than {MOST_INVALID} entries that are no \
             address: divide the mail into several rows"
        );
        Self::new(Reason::TooLarge, detail)
    }
}

struct Reader<'a> {
    fields: &'a [Field<'a>],
    capabilities: Capabilities,
    invalid: Vec<InvalidRecipient>,
}

impl Reader<'_> {
    fn recipients_of(&mut self, name: &'static str, repairs: &mut Repairs) -> Result<Vec<Mailbox>, Unreadable> {
        let fields = self.fields;
        let mut found = Vec::new();
        for field in fields.iter().filter(|field| field.is(name)) {
            found.append(&mut self.recipients(entries(&field.value, name, repairs)?)?);
        }
        Ok(found)
    }

    fn recipients(&mut self, entries: Vec<Entry>) -> Result<Vec<Mailbox>, TooMany> {
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry.and_then(|mailbox| self.reachable(mailbox)) {
                Ok(mailbox) => found.push(mailbox),
                Err(invalid) => self.invalid.push(invalid),
            }
        }
        if self.invalid.len() > MOST_INVALID { Err(TooMany) } else { Ok(found) }
    }

    fn reachable(&self, mailbox: Mailbox) -> Entry {
        if needs_smtputf8(&mailbox.email) && !self.capabilities.smtputf8 {
            return Err(InvalidRecipient { written: mailbox.email.to_string(), why: NO_SMTPUTF8.to_owned() });
        }
        Ok(mailbox)
    }

    /// The first field of this name that holds a usable mailbox, for headers of which there is one.
    fn senders(&self, name: &'static str, repairs: &mut Repairs) -> Result<Vec<Mailbox>, TooMany> {
        let mut found = Vec::new();
        for field in self.fields.iter().filter(|field| field.is(name)) {
            if !found.is_empty() {
                repairs.add(RepairCode::HeaderDropped, name, format!("a further {name} header was left out"));
                continue;
            }
            found = self.usable(field, name, repairs)?;
        }
        Ok(found)
    }

    /// The mailboxes of all fields of this name.
    fn others(&self, name: &'static str, repairs: &mut Repairs) -> Result<Vec<Mailbox>, TooMany> {
        let mut found = Vec::new();
        for field in self.fields.iter().filter(|field| field.is(name)) {
            found.append(&mut self.usable(field, name, repairs)?);
        }
        Ok(found)
    }

    fn usable(&self, field: &Field<'_>, name: &str, repairs: &mut Repairs) -> Result<Vec<Mailbox>, TooMany> {
        let mut found = Vec::new();
        for entry in entries(&field.value, name, repairs)? {
            match entry.and_then(|mailbox| self.reachable(mailbox)) {
                Ok(mailbox) => found.push(mailbox),
                Err(bad) => {
                    let text = format!("{name}: `{}` was left out: {}", bad.written, bad.why);
                    repairs.add(RepairCode::AddressDropped, name, text);
                }
            }
        }
        Ok(found)
    }

    fn from(&self, settings: &Settings, repairs: &mut Repairs) -> Result<Vec<Mailbox>, Unreadable> {
        let from = self.senders("From", repairs)?;
        if !from.is_empty() {
            return Ok(from);
        }
        let Some(default) = &settings.default_from else {
            let what = match self.fields.iter().find(|field| field.is("From")) {
                Some(field) => {
                    format!("From holds no usable address: `{}`", for_people(&words::decode(&field.value)))
                }
                None => "there is no From header".to_owned(),
            };
            return Err(Unreadable::new(Reason::NoSender, format!("{what}, and no default_from is configured")));
        };
        repairs.add(RepairCode::SenderReplaced, "From", "there was no usable From: default_from was put there");
        Ok(vec![Mailbox::new(None, default.clone())])
    }
}

/// `-f`, else Return-Path, else Sender, else From.
fn own_sender(
    mparams: &[u8],
    fields: &[Field<'_>],
    visible: &Mailbox,
    capabilities: Capabilities,
    repairs: &mut Repairs,
) -> Option<Address> {
    let mut own = None;
    if let Some(written) = option_f(&decode::utf8_or_windows_1252(mparams)) {
        own = reverse_path(&written, capabilities);
        if own.is_none() {
            repairs.add(
                RepairCode::SenderReplaced,
                "mparams",
                format!("mparams: `-f {}` cannot be the envelope sender and was passed over", for_people(&written)),
            );
        }
    }
    for field in fields.iter().filter(|field| field.is("Return-Path")) {
        if own.is_none() {
            own = reverse_path(&field.value, capabilities);
            if own.is_none() {
                repairs.add(
                    RepairCode::SenderReplaced,
                    "Return-Path",
                    format!(
                        "Return-Path: `{}` cannot be the envelope sender and was passed over",
                        for_people(&field.value)
                    ),
                );
            }
        }
    }
    own.unwrap_or_else(|| Some(visible.email.clone()))
}

/// An address that the smarthost can be told, or the null sender `<>` (RFC 5321 §4.1.2): the inner `None`.
fn reverse_path(written: &str, capabilities: Capabilities) -> Option<Option<Address>> {
    let written = written.trim();
    if written == "<>" {
        return Some(None);
    }
    match address_list::list(written).map(|list| list.entries).unwrap_or_default().as_slice() {
        [Ok(mailbox)] if capabilities.smtputf8 || !needs_smtputf8(&mailbox.email) => Some(Some(mailbox.email.clone())),
        _ => None,
    }
}

/// The address behind `-f`, in both spellings. Quotes are taken off as a shell would; what a shell would do with `;`, `|`
/// and the like nobody does, and they end the address. No other option means anything here.
fn option_f(params: &str) -> Option<String> {
    let mut options = params.split_ascii_whitespace();
    let first = options.find(|option| option.starts_with("-f"))?;
    let value = match &first[2..] {
        "" => options.next()?,
        value => value,
    };
    let unquoted = match value.chars().next() {
        Some(mark @ ('\'' | '"')) => value[1..].split(mark).next().unwrap_or_default(),
        _ => value,
    };
    if matches!(unquoted, "" | "<>") {
        return Some("<>".to_owned());
    }
    let end = unquoted.find([';', '|', '&', '`', '$', '(']).unwrap_or(unquoted.len());
    Some(unquoted[..end].to_owned())
}
