//! `mailqueue show`: what a row is, and what stands in its way.

use mailqueue::mail::Columns;
use serde_json::json;

use super::{MAIL, enqueue, installation, objects, queue, stderr, stdout};

#[tokio::test]
async fn show_explains_a_row_and_prints_what_would_go_out() {
    let installation = installation().await;
    enqueue(&installation, "newsletter", MAIL).await;
    let shown = installation.run(&["show", "newsletter/1"]).await;
    assert_eq!(
        stdout(&shown),
        "newsletter/1\n  \
         state         waiting: no dispatcher has looked at it yet\n  \
         row           216 bytes in the table\n\n\
         Envelope\n  \
         sender        joerg@example.org\n  \
         open  anna@example.org\n  \
         open  bea@example.org\n\n\
         Repaired on the way\n  \
         From held raw 8-bit text: it was read as UTF-8 and encoded\n  \
         there was no MIME-Version: it was added\n\n\
         Headers\n  \
         To: anna@example.org\n  \
         Subject: Grüße\n  \
         From: Jörg <joerg@example.org>\n  \
         Cc: bea@example.org\n  \
         Message-ID: <1@example.org>\n  \
         Date: Sat, 3 Mar 2018 10:00:00 +0100\n  \
         MIME-Version: 1.0\n  \
         Content-Type: text/plain; charset=utf-8\n  \
         Content-Transfer-Encoding: 7bit\n\n\
         Body (the whole mail has 302 bytes)\n  \
         .Hallo\n  \
         Anna"
    );
    let raw = installation.run(&["show", "newsletter/1", "--raw"]).await;
    let raw = std::str::from_utf8(&raw.stdout).expect("pure ASCII");
    assert!(raw.starts_with("To: anna@example.org\r\nSubject: =?utf-8?b?"), "{raw}");
    assert!(raw.ends_with("\r\n\r\n.Hallo\r\nAnna\r\n"), "{raw}");

    let object = &objects(&installation.run(&["show", "newsletter/1", "--json"]).await)[0];
    assert_eq!(object["mail"]["sender"], "joerg@example.org");
    assert_eq!(object["mail"]["subject"], "Grüße");
    assert_eq!(
        object["recipients"][1],
        json!({"address": "bea@example.org", "state": "open", "last_reply": null, "at": null})
    );
}

#[tokio::test]
async fn show_says_what_stands_in_the_way() {
    let installation = installation().await;
    let columns = Columns { mto: Some(b"YUBiLmRl*".to_vec()), ..Columns::default() };
    queue(&installation, "newsletter").insert(&columns).await.expect("SQLite");
    let shown = installation.run(&["show", "newsletter/1"]).await;
    assert!(
        stdout(&shown).contains("This row cannot become a mail and stays as it is:\n  mto: "),
        "{}",
        stdout(&shown)
    );
    assert!(stdout(&shown).ends_with("(base64-invalid)"), "{}", stdout(&shown));
    let raw = installation.run(&["show", "newsletter/1", "--raw"]).await;
    assert_eq!((stdout(&raw), raw.status.code()), ("", Some(2)));
    assert!(stderr(&raw).starts_with("mailqueue: newsletter/1 cannot become a mail: base64-invalid: mto: "));
    let nothing = installation.run(&["show", "newsletter/2"]).await;
    assert_eq!(nothing.status.code(), Some(1));
    assert_eq!(
        stderr(&nothing),
        "mailqueue: there is no row newsletter/2; `mailqueue list` shows those that there are"
    );
}
