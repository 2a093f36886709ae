//! A row's columns to a [`Mail`], or the reason why it cannot be one.
//!
//! [`decode`] undoes the base64; `headers` takes the block apart; `envelope` finds who sends and who receives; `body` makes
//! the body fit the wire, part by part; `head` writes the header block again. Each repair on the way is noted.

mod address;
mod address_grammar;
mod address_list;
mod body;
mod boundary;
mod envelope;
mod head;
mod headers;
mod leaf;
mod lines;
mod mime;
mod multipart;
mod out;
mod part;
mod place;
mod repairs;
mod settings;
mod split;
mod structured;
mod transfer;
mod unreadable;
mod words;

use bytes::Bytes;

use self::repairs::{Repairs, for_people};
pub use self::settings::{Settings, Stamp};
pub use self::unreadable::Unreadable;
use crate::decode;
use crate::mail::{Address, Capabilities, ColumnLimits, Columns, Mail, RepairCode};
use crate::outcome::Reason;

/// Translates a row. Never panics, whatever the bytes are.
///
/// Holds at most the decoded body and the mail at a time.
pub fn translate(
    columns: &Columns,
    limits: &ColumnLimits,
    stamp: &Stamp,
    capabilities: Capabilities,
    settings: &Settings,
) -> Result<Mail, Unreadable> {
    let mto = decode::column("mto", columns.mto.as_deref(), limits.mto)?;
    let msubject = decode::column("msubject", columns.msubject.as_deref(), limits.msubject)?;
    let mheaders = decode::column("mheaders", columns.mheaders.as_deref(), limits.mheaders)?;
    let mparams = decode::column("mparams", columns.mparams.as_deref(), limits.mparams)?;
    let mbody = decode::column("mbody", columns.mbody.as_deref(), limits.mbody)?;

    let mut repairs = Repairs::default();
    let headers::Block { fields, behind, dropped } = headers::read(&mheaders, &mut repairs)?;
    let mut mbody = body_of(mbody, behind, dropped, &mut repairs)?;
    let parties = envelope::Parties::of(&mto, &mparams, &fields, capabilities, settings, &mut repairs)?;
    let first = |name: &str| fields.iter().find(|field| field.is(name)).map(|field| field.value.as_ref());
    let attached = first("Content-Disposition").is_some_and(|value| {
        let value = mime::Value::parse(value);
        value.main == "attachment" || value.names_a_file()
    });
    let (kind, label) = (first("Content-Type"), first("Content-Transfer-Encoding"));
    // Delimiters and headers of parts are lines only where their line ends are.
    let has_parts = |kind| mime::Value::parse(kind).is_multipart();
    if lines::end_in_lf_cr(&mbody) && kind.is_some_and(has_parts) {
        lines::swap_lf_cr(&mut mbody);
    }
    let mut body =
        body::render(&mbody, kind, label, attached, capabilities.eight_bit, settings.max_size, &mut repairs)?;
    drop(mbody);
    if !body.content.is_empty() && !body.content.ends_with(b"\r\n") {
        body.content.extend_from_slice(b"\r\n");
    }
    let eight_bit = !body.content.is_ascii();
    if eight_bit && body.encoding.is_none() {
        body.encoding = Some("8bit".into());
    }
    let msubject = decode::utf8_or_windows_1252(&msubject);
    let head = head::compose(&msubject, &fields, &parties, &body, stamp, &mut repairs)?;
    let mut content = body.content;
    put_in_front(&mut content, head.text.as_bytes());
    if content.len() as u64 > settings.max_size {
        return Err(out::too_large(content.len() as u64, settings.max_size));
    }
    Ok(Mail {
        message_id: head.message_id,
        subject: head.subject,
        smtputf8: parties.need_smtputf8(),
        narrowed: parties.are_narrowed(),
        made_for: capabilities,
        own_sender: parties.own_sender,
        envelope: parties.envelope,
        invalid: parties.invalid,
        content: Bytes::from(content),
        eight_bit,
        repairs: repairs.finish(),
    })
}

/// Returns the body: `mbody`, or, where that is empty, the text `behind` the empty line of `mheaders`. An old habit of PHP
/// programs is to put headers and body into `$headers`. With text in both places neither can be dropped; nor can a line
/// among the headers that is none, `dropped`, where `mbody` is empty: it may be the text.
fn body_of(
    mbody: Vec<u8>,
    behind: &[u8],
    dropped: Option<String>,
    repairs: &mut Repairs,
) -> Result<Vec<u8>, Unreadable> {
    let is_empty = mbody.iter().all(u8::is_ascii_whitespace);
    if let Some(line) = dropped.filter(|_| is_empty) {
        let detail =
            format!("mheaders: `{line}` is no header, and mbody is empty: the text of the mail may stand there");
        return Err(Unreadable::new(Reason::HeaderInvalid, detail));
    }
    if behind.is_empty() {
        return Ok(mbody);
    }
    if is_empty {
        let what = "mheaders held an empty line and the body behind it, and mbody was empty: that body was sent";
        repairs.add(RepairCode::ContentType, "mheaders", what);
        return Ok(behind.to_vec());
    }
    let start = for_people(&decode::utf8_or_windows_1252(&behind[..behind.len().min(200)]));
    let detail =
        format!("mheaders: text stands behind an empty line, and mbody holds another body; it begins `{start}`");
    Err(Unreadable::new(Reason::HeaderInvalid, detail))
}

/// Reads one address as those in rows are read: its domain comes out in punycode. The error says what is wrong with it.
pub fn address(text: &str) -> Result<Address, String> {
    address::parse(text).map_err(|why| why.to_string())
}

/// In place, since a second copy of a large body is what memory cannot spare.
fn put_in_front(content: &mut Vec<u8>, head: &[u8]) {
    let length = content.len();
    content.reserve_exact(head.len());
    content.resize(length + head.len(), 0);
    content.copy_within(..length, head.len());
    content[..head.len()].copy_from_slice(head);
}
