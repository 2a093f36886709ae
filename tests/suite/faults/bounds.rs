//! Too long, too large, too many: a value that fills its column, a row that is larger than memory, a row with tens of
//! thousands of recipients.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mailqueue::mail::Columns;
use mailqueue::outcome::{Reason, RecipientState, State};
use serde_json::Value;

use crate::support::catcher::{Catcher, Step};
use crate::support::database::{self, TestDatabase};
use crate::support::house::{House, mail, row, said};
use crate::support::long;
use crate::support::session::Session;

on_every_database!(
    a_value_as_long_as_its_column_was_cut_off_on_mysql_only,
    a_row_of_more_than_twice_max_size_is_set_aside_unread_and_is_an_operators_to_deal_with,
);

/// A list of two addresses that has so many bytes.
fn list(bytes: usize) -> String {
    let short = "\"\" <anna@example.org>, bert@example.org";
    format!("\"{}{}", "x".repeat(bytes - short.len()), &short[1..])
}

async fn a_value_as_long_as_its_column_was_cut_off_on_mysql_only(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let house = House::build(database, catcher.port(), "", "").await;
    let mut session = Session::on(&house.database.url).await;
    let mysql = house.database.url.scheme() == "mysql";
    // A statement's end is cut off where the producer's session is not strict, as those of the tools are.
    if mysql {
        session.run("SET SESSION sql_mode = ''").await.unwrap();
    }
    let types: &[&str] = if mysql { &["VARCHAR(256)", "TEXT", "LONGTEXT"] } else { &["VARCHAR(256)", "TEXT"] };
    for kind in types {
        let changed = match house.database.url.scheme() {
            "mysql" => format!("ALTER TABLE mail_queue MODIFY mto {kind} CHARACTER SET utf8mb4 NULL"),
            "postgres" => format!("ALTER TABLE mail_queue ALTER COLUMN mto TYPE {kind}"),
            _ => format!(
                "DROP TABLE mail_queue; CREATE TABLE mail_queue (mid INTEGER PRIMARY KEY AUTOINCREMENT, mto {kind}, \
                 msubject TEXT, mbody TEXT, mheaders TEXT)"
            ),
        };
        session.run(&changed).await.unwrap();
        let before = catcher.received().len();
        // 192 bytes are 256 in base64, all that VARCHAR(256) holds.
        // Another content for each: the numbers of a table that is made anew come back.
        let columns = row(&list(192), kind, "y", "From: a@example.org\r\n");
        assert_eq!(columns.mto.as_ref().map(Vec::len), Some(256));
        let mid = insert(&mut session, &columns).await;
        let status = house.once().await;
        let rows = house.rows(&house.newsletter).await;
        if mysql && *kind == "VARCHAR(256)" {
            assert_eq!((status, rows.len()), (1, 1), "{kind}");
            assert_eq!((rows[0].state, rows[0].reason), (State::Unreadable, Some(Reason::Truncated)), "{kind}");
            // What was cut cannot be told from what fits exactly.
            let longer = row(&list(500), "x", "y", "From: a@example.org\r\n");
            let longer = insert(&mut session, &longer).await;
            assert_eq!(house.once().await, 1);
            let row = house.row(&house.newsletter, longer).await.unwrap();
            assert_eq!(row.reason, Some(Reason::Truncated));
            session.run(&format!("DELETE FROM mail_queue WHERE mid IN ({mid}, {longer})")).await.unwrap();
            continue;
        }
        assert_eq!((status, rows.len()), (0, 0), "{kind}: {:?}", rows.first().and_then(|row| row.detail.as_deref()));
        let received = catcher.received().split_off(before);
        assert_eq!(received.len(), 1, "{kind}");
        assert_eq!(received[0].recipients, ["anna@example.org", "bert@example.org"], "{kind}");
    }
}

async fn insert(session: &mut Session, columns: &Columns) -> i64 {
    let texts = columns.each().map(|(_, value)| String::from_utf8_lossy(value.unwrap_or_default()).into_owned());
    let [to, subject, body, headers, _] = texts;
    let sql = format!(
        "INSERT INTO mail_queue (mto, msubject, mbody, mheaders) \
         VALUES ('{to}', '{subject}', '{body}', '{headers}') RETURNING mid"
    );
    session.number(&sql).await.expect("INSERT")
}

async fn a_row_of_more_than_twice_max_size_is_set_aside_unread_and_is_an_operators_to_deal_with(
    database: TestDatabase,
) {
    const MAX: usize = 100_000;
    let catcher = Catcher::start().await;
    let top = "[message]\nmax_size = \"100KB\"\n";
    let house = House::build(database, catcher.port(), "", top).await;
    let mut session = Session::on(&house.database.url).await;
    let from = "From: a@example.org\r\n";
    let utf16 = |letters: usize| "ö".repeat(letters).encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    // UTF-16 that is nearly twice as long as the mail that becomes of it.
    let headers = format!("{from}Content-Type: text/plain; charset=utf-16le\r\n");
    let ascii: Vec<u8> = "text text ".repeat(MAX / 10 - 800).bytes().flat_map(|byte| [byte, 0]).collect();
    assert!(ascii.len() > MAX * 18 / 10);
    let fits = Columns { mbody: Some(STANDARD.encode(ascii).into()), ..row("fits@example.org", "x", "", &headers) };
    // As UTF-8 it is as long as it was, so that it is read, and is too large then.
    let read = Columns { mbody: Some(STANDARD.encode(utf16(MAX)).into()), ..row("r@example.org", "x", "", &headers) };
    let large = "z".repeat(2 * MAX + 100);
    let body = row("b@example.org", "x", &large, from);
    let block = row("h@example.org", "x", "y", &format!("{from}X-Note: {large}\r\n"));
    let subject = row("s@example.org", &large, "y", from);
    let list = row(&format!("{large} <t@example.org>"), "x", "y", from);
    let mut mids = HashMap::new();
    for (name, columns) in [
        ("fits", &fits),
        ("read", &read),
        ("mbody", &body),
        ("mheaders", &block),
        ("msubject", &subject),
        ("mto", &list),
    ] {
        mids.insert(name, insert(&mut session, columns).await);
    }
    assert_eq!(house.once().await, 1);
    let received = catcher.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].recipients, ["fits@example.org"]);
    let of = async |name: &str| {
        let row = house.row(&house.newsletter, mids[name]).await.expect("the row");
        (row.state, row.reason, row.detail.unwrap_or_default(), row.fingerprint)
    };
    let (state, reason, detail, _) = of("read").await;
    assert_eq!((state, reason), (State::Unreadable, Some(Reason::TooLarge)));
    assert!(detail.contains("the mail has"), "{detail}");
    for name in ["mbody", "mheaders", "msubject", "mto"] {
        let (state, reason, detail, fingerprint) = of(name).await;
        assert_eq!((state, reason), (State::Unreadable, Some(Reason::TooLarge)), "{name}: {detail}");
        assert!(
            detail.starts_with(&format!("{name} holds 2001")) || detail.starts_with(&format!("{name} holds 2002")),
            "{detail}"
        );
        assert!(detail.contains("message.max_size") && detail.contains("100000"), "{detail}");
        assert!(fingerprint.is_some(), "{name}: the record is bound to what is in the row");
    }

    // Commands tell the same, and read it as little.
    let id = |name: &str| format!("newsletter/{}", mids[name]);
    let shown = house.run(&["show", &id("mbody"), "--json"]).await;
    assert_eq!(shown.status.code(), Some(0), "{}", said(&shown));
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown["obstacle"]["reason"], "too-large");
    assert_eq!(shown["stored_bytes"], body.len());
    let shown = said(&house.run(&["show", &id("mbody")]).await);
    assert!(shown.contains("mbody holds 200100 bytes"), "{shown}");
    let rendered = house.run(&["render", "--queue", "newsletter", "--out", "out"]).await;
    assert_eq!(rendered.status.code(), Some(1));
    assert!(said(&rendered).contains("the row was not read"), "{}", said(&rendered));
    assert!(house.run(&["list", "--to", "@example.org"]).await.status.success());

    // Another pass leaves them as they are; a retry looks again, and finds the same.
    assert_eq!(house.once().await, 0);
    let before = of("mheaders").await;
    assert!(house.run(&["retry", &id("mheaders")]).await.status.success());
    assert_eq!(of("mheaders").await.0, State::Deferred);
    assert_eq!(house.once().await, 1);
    assert_eq!(of("mheaders").await, before);

    // An old number on a new mail is not taken for the old one, and neither is a row that was made smaller.
    let texts = mail("new@example.org", "x");
    let text = |value: &Option<Vec<u8>>| String::from_utf8(value.clone().unwrap()).unwrap();
    session
        .run(&format!(
            "UPDATE mail_queue SET mto = '{}', mbody = '{}' WHERE mid = {}",
            text(&texts.mto),
            text(&texts.mbody),
            mids["mbody"]
        ))
        .await
        .unwrap();
    assert_eq!(house.once().await, 0);
    assert_eq!(catcher.received().last().unwrap().recipients, ["new@example.org"]);

    let gone = house.run(&["delete", "--yes", "--reason", "too-large", "--queue", "newsletter"]).await;
    assert_eq!(gone.status.code(), Some(0), "{}", said(&gone));
    assert!(house.rows(&house.newsletter).await.is_empty());

    // The remedy works.
    let mid = insert(&mut session, &body).await;
    assert_eq!(house.once().await, 1);
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).unwrap().replace("100KB", "1MB");
    std::fs::write(&file, text).unwrap();
    assert!(house.run(&["retry", &format!("newsletter/{mid}")]).await.status.success());
    assert_eq!(house.once().await, 0);
    assert_eq!(catcher.received().last().unwrap().recipients, ["b@example.org"]);
}

/// Tens of thousands of recipients in one row, one refused and one put off among them: each of the others gets the mail
/// once, and the two have their turn again, alone.
///
/// The bound is what a quadratic step breaks and a linear one does not, on a busy machine and without optimisation:
/// 20,000 recipients in transactions of 16 are 1,250 round trips of about a millisecond.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tens_of_thousands_of_recipients_in_one_row_each_get_the_mail_once_within_seconds() {
    let count = if long() { 100_000 } else { 20_000 };
    let bound = Duration::from_millis(1) * count;
    let catcher = Catcher::with_script(|step| match step {
        Step::Rcpt { recipient } if recipient.starts_with("n7777@") => Some("550 5.1.1 Nobody".to_owned()),
        Step::Rcpt { recipient } if recipient.starts_with("n8888@") => Some("450 4.2.1 Not now".to_owned()),
        _ => None,
    });
    let catcher = catcher.await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let bcc: Vec<_> = (0..count).map(|n| format!("n{n}@example.org")).collect();
    let headers = format!("From: a@example.org\r\nBcc: {}\r\n", bcc.join(",\r\n "));
    let mid = house.newsletter.insert(&row("", "To many", "Hello\n", &headers)).await.unwrap();
    let passes = async |expected: &[&str]| {
        let before = catcher.received().len();
        let begun = Instant::now();
        assert_eq!(house.once().await, 1);
        let took = begun.elapsed();
        println!("{count} recipients, {} of them offered again: {took:?}", expected.len());
        assert!(took < bound, "{took:?}");
        catcher.received().split_off(before)
    };
    let mut copies: HashMap<String, usize> = HashMap::new();
    for mail in passes(&[]).await {
        mail.recipients.into_iter().for_each(|recipient| *copies.entry(recipient).or_default() += 1);
    }
    assert_eq!(copies.len(), count as usize - 2);
    assert!(copies.values().all(|copies| *copies == 1));
    let known = house.row(&house.newsletter, mid).await.expect("the row");
    assert_eq!((known.state, known.history.recipients.len()), (State::Deferred, count as usize));
    let in_state = |state| known.history.recipients.iter().filter(|one| one.state == state).count();
    assert_eq!((in_state(RecipientState::Refused), in_state(RecipientState::Deferred)), (1, 1));

    // Only the one that was put off is offered the mail again.
    let due = "UPDATE mailqueue_delivery SET next_attempt = 1";
    Session::on(&house.database.url).await.run(due).await.unwrap();
    assert!(passes(&["n8888@example.org"]).await.is_empty());

    let begun = Instant::now();
    let shown = house.run(&["show", &format!("newsletter/{mid}")]).await;
    assert!(said(&shown).contains("n8888@example.org") && begun.elapsed() < bound, "{:?}", begun.elapsed());
    let begun = Instant::now();
    let listed = house.run(&["list", "--json"]).await;
    assert!(said(&listed).contains("n8888@example.org") && begun.elapsed() < bound, "{:?}", begun.elapsed());

    // The operator's retry asks the refused one too.
    assert!(house.run(&["retry", &format!("newsletter/{mid}")]).await.status.success());
    assert!(passes(&["n7777@example.org", "n8888@example.org"]).await.is_empty());
}
