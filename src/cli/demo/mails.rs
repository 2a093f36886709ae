//! Mails as the three producers leave them in their tables: newsletter, press list, member administration.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::mail::Columns;

/// The recipient whom the catcher refuses.
pub const GONE: &str = "mitglied13@example.org";

pub struct Sample {
    pub about: &'static str,
    pub columns: Columns,
}

/// The mails that stand in the queue of this name.
pub fn of(queue: &str) -> Vec<Sample> {
    match queue {
        "admidio" => vec![admidio(), admidio_to_all()],
        _ => vec![newsletter(), press(), damaged()],
    }
}

fn sample(about: &'static str, to: &str, subject: &str, body: &str, headers: &str, params: Option<&str>) -> Sample {
    let column = |text: &str| Some(BASE64_STANDARD.encode(text).into_bytes());
    let columns = Columns {
        mto: column(to),
        msubject: column(subject),
        mbody: column(body),
        mheaders: column(headers),
        mparams: params.and_then(column),
    };
    Sample { about, columns }
}

fn encoded_word(text: &str) -> String {
    format!("=?UTF-8?B?{}?=", BASE64_STANDARD.encode(text))
}

/// CRLF in the headers, LF in the text, 8-bit and no transfer encoding.
fn newsletter() -> Sample {
    sample(
        "newsletter, with umlauts",
        "anna.berger@example.org",
        &encoded_word("Einladung zur außerordentlichen Mitgliederversammlung in St. Pölten am 3. März"),
        "Liebe Freundinnen und Freunde,\n\nam Samstag treffen wir uns um 15 Uhr im Gemeindezentrum Übelbach. \
         Für Kaffee und Kuchen ist gesorgt.\n\nSchöne Grüße\nJörg\n\n--\nMusterpartei Österreichs\n",
        "From: Musterpartei Newsletter <newsletter@partei.example.at>\r\nMIME-Version: 1.0\r\n\
         Content-type: text/plain; charset=UTF-8\r\n",
        None,
    )
}

/// The press list cuts the last character off, which is a `-` of the closing boundary.
fn press() -> Sample {
    let boundary = "=_presse.1";
    let attachment = BASE64_STANDARD.encode("Bücher für alle: Forderungen der Musterpartei\n".repeat(20));
    let attachment: Vec<&str> = attachment.as_bytes().chunks(76).filter_map(|line| str::from_utf8(line).ok()).collect();
    let body = format!(
        "\n--{boundary}\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 7bit\n\n\
         Sehr geehrte Redaktion,\n\ndie Musterpartei begrüßt die Öffnung der Büchereien.\n\n\
         --{boundary}\nContent-Type: text/plain; name=\"Forderungen.txt\"\nContent-Transfer-Encoding: base64\n\
         Content-Disposition: attachment; filename=\"Forderungen.txt\"\n\n{}\n--{boundary}-",
        attachment.join("\n")
    );
    sample(
        "press list, with an attachment",
        "redaktion@zeitung.example.at",
        &encoded_word("[PM] Öffnung der Büchereien"),
        &body,
        &format!(
            "From: {} <presse@partei.example.at>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n\tboundary=\"{boundary}\"",
            encoded_word("Musterpartei Österreichs")
        ),
        None,
    )
}

/// Somebody cut the body in the middle.
fn damaged() -> Sample {
    let mut sample = sample(
        "a row that was cut",
        "bernd.gruber@example.at",
        &encoded_word("Neues aus dem Jänner"),
        "Liebe Freundinnen und Freunde,\n",
        "From: Musterpartei Newsletter <newsletter@partei.example.at>\r\nMIME-Version: 1.0\r\n",
        None,
    );
    if let Some(body) = &mut sample.columns.mbody {
        body.truncate(body.len() - 3);
    }
    sample
}

/// LF in the headers, encoded words inside quotes, the envelope sender in the parameters.
fn admidio() -> Sample {
    sample(
        "member administration, names with umlauts",
        "\"=?UTF-8?Q?=C3=96zlem=20Y=C4=B1lmaz?=\" <oezlem@example.at>, \"Huber, Franz\" <franz@example.org>",
        "Unterlagen =?UTF-8?Q?f=C3=BCr=20M=C3=A4rz?=",
        "Hallo zusammen,\r\n\r\nbitte bringt die Unterlagen für die Sitzung mit.\r\n",
        "MIME-Version: 1.0\nReturn-Path: verwaltung@partei.example.at\nSender: verwaltung@partei.example.at\n\
         From: \"=?UTF-8?Q?J=C3=B6rg=20M=C3=BCller?=\" <joerg@example.org>\nContent-Type: text/plain; charset=utf-8",
        Some("-f verwaltung@partei.example.at"),
    )
}

/// To is empty, all recipients are in Bcc; one of them is [`GONE`].
fn admidio_to_all() -> Sample {
    let bcc: Vec<String> =
        (1..=20).map(|n| format!("\"=?UTF-8?Q?Mitglied=20=C3=9C?= {n}\" <mitglied{n:02}@example.org>")).collect();
    sample(
        "to 20 members in Bcc, one address is gone",
        "",
        "An alle Mitglieder: Jahresversammlung",
        "Hallo zusammen,\r\n\r\nSchöne Grüße\r\nJörg\r\n",
        &format!(
            "MIME-Version: 1.0\nReturn-Path: verwaltung@partei.example.at\nSender: verwaltung@partei.example.at\n\
             From: \"=?UTF-8?Q?J=C3=B6rg=20M=C3=BCller?=\" <joerg@example.org>\nBcc: {}\n\
             Content-Type: text/plain; charset=utf-8",
            bcc.join(", ")
        ),
        None,
    )
}
