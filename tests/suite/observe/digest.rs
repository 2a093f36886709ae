//! The digest: what it says, how often it goes out, and that it is a mail that a smarthost takes.

use std::time::Duration;

use mailqueue::mail::MailId;
use mailqueue::observe::digest::{self, Pace, Settings};
use mailqueue::outcome::{Reason, State};
use mailqueue::telemetry::{FailedRow, FailureReport, SendError};
use tokio::time::sleep;

use super::fake::Fake;

fn settings() -> Settings {
    Settings {
        to: "technik@example.org".parse().unwrap(),
        from: "mailqueue@mail.example.org".parse().unwrap(),
        host: "mail.example.org".to_owned(),
        pace: Pace::default(),
    }
}

fn failed(mid: i64) -> FailedRow {
    let detail = Some("550 5.1.1 <…@x.example>: no such user".to_owned());
    FailedRow { id: MailId::new("newsletter", mid), state: State::Failed, reason: Reason::Refused, detail }
}

fn failures(mids: impl IntoIterator<Item = i64>) -> FailureReport {
    FailureReport { rows: mids.into_iter().map(failed).collect(), omitted: 0 }
}

#[test]
fn the_digest_tells_rows_that_were_delivered_and_not_deleted_from_mails_that_were_not_sent() {
    let kept = |mid| FailedRow {
        id: MailId::new("newsletter", mid),
        state: State::Held,
        reason: Reason::NotDeleted,
        detail: Some("violates foreign key constraint".to_owned()),
    };
    let subject = |rows| digest::digest(&settings(), &FailureReport { rows, omitted: 0 }).unwrap().subject;
    assert_eq!(subject(vec![kept(1)]), "mailqueue on mail.example.org: 1 row was not deleted");
    let both = vec![failed(12), kept(1), kept(2)];
    assert_eq!(subject(both.clone()), "mailqueue on mail.example.org: 1 mail was not sent, 2 rows were not deleted");
    let text = digest::text(&FailureReport { rows: both, omitted: 0 });
    assert!(
        text.contains("\nDelivered and not deleted:") && text.contains("mailqueue list --reason not-deleted"),
        "{text}"
    );
    assert!(!digest::text(&failures([12])).contains("not deleted"));
}

#[test]
fn the_digest_names_rows_and_reasons_and_what_to_do() {
    let unreadable = FailedRow {
        id: MailId::new("admidio", 7),
        state: State::Unreadable,
        reason: Reason::Truncated,
        detail: Some("mto\r\nis cut off".to_owned()),
    };
    let report = FailureReport { rows: vec![unreadable, failed(12)], omitted: 1300 };
    assert_eq!(
        digest::text(&report),
        "These rows stay in their tables until somebody deals with them.\n\
         \n\
         Failed: the smarthost refused them, or they grew too old.\n\
         \n\
         \x20 newsletter/12  refused\n\
         \x20     550 5.1.1 <…@x.example>: no such user\n\
         \n\
         Unreadable: no mail could be made of them.\n\
         \n\
         \x20 admidio/7  truncated\n\
         \x20     mto  is cut off\n\
         \n\
         And 1,300 more.\n\
         \n\
         On the host of the dispatcher:\n\
         \n\
         \x20 mailqueue list --state failed,unreadable   shows them all\n\
         \x20 mailqueue show ID                          explains one\n\
         \x20 mailqueue retry ID                         tries it again; who has it does not get it twice\n\
         \x20 mailqueue delete ID                        gives it up\n"
    );
}

#[test]
fn the_digest_is_a_mail_that_every_smarthost_takes_and_no_vacation_message_answers() {
    let mail = digest::digest(&settings(), &failures([12])).unwrap();
    let text = String::from_utf8(mail.content.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    for line in [
        "From: mailqueue <mailqueue@mail.example.org>",
        "To: technik@example.org",
        "Subject: mailqueue on mail.example.org: 1 mail was not sent",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: quoted-printable",
        &format!("Message-ID: {}", mail.message_id),
    ] {
        assert!(head.split("\r\n").any(|known| known == line), "no `{line}` in\n{head}");
    }
    assert!(head.contains("\r\nDate: ") && body.contains("newsletter/12"), "{text}");
    assert!(text.is_ascii() && !mail.eight_bit && !mail.smtputf8);
    assert!(text.replace("\r\n", "").bytes().all(|b| b != b'\r' && b != b'\n'));
    assert_eq!(mail.envelope.recipients, ["technik@example.org".parse().unwrap()]);
    assert_eq!(mail.envelope.sender, Some("mailqueue@mail.example.org".parse().unwrap()));
}

/// Simulated time: minutes pass at once.
async fn minutes(number: u64) {
    sleep(Duration::from_secs(number * 60)).await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_together_is_told_together_and_the_rest_an_hour_later() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    // The stamp of the last digest is wall-clock time, which is not simulated: an hour later is a restart later here.
    let pace = Pace { between: Duration::from_secs(3600), ..Pace::default() };
    let running = tokio::spawn(digest::run(fake.clone(), Settings { pace, ..settings() }, directory.path().to_owned()));
    minutes(10).await;
    assert!(fake.posted().is_empty(), "nothing to tell");
    fake.happens(failures([1, 2]));
    sleep(Duration::from_secs(8)).await;
    fake.happens(failures([3]));
    minutes(2).await;
    let [digest] = fake.posted().try_into().unwrap();
    assert_eq!(digest.subject, "mailqueue on mail.example.org: 3 mails were not sent");

    fake.happens(failures([4]));
    minutes(30).await;
    assert_eq!(fake.posted().len(), 1, "one an hour");
    minutes(31).await;
    assert_eq!(fake.posted().len(), 2);
    assert!(String::from_utf8_lossy(&fake.posted()[1].content).contains("newsletter/4"));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_down_puts_the_digest_off_and_a_refusal_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let pace = Pace { between: Duration::ZERO, ..Pace::default() };
    let running = tokio::spawn(digest::run(fake.clone(), Settings { pace, ..settings() }, directory.path().to_owned()));
    fake.refuse([SendError::Temporary("the relay is paused".to_owned())]);
    fake.happens(failures([1]));
    minutes(2).await;
    assert!(fake.posted().is_empty());
    fake.happens(failures([2]));
    minutes(10).await;
    let [digest] = fake.posted().try_into().unwrap();
    assert_eq!(digest.subject, "mailqueue on mail.example.org: 2 mails were not sent");

    fake.refuse([SendError::Permanent("550 no such user".to_owned())]);
    fake.happens(failures([3]));
    minutes(600).await;
    assert_eq!(fake.posted().len(), 1, "no second try, and no digest about the digest");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_restart_neither_forgets_news_nor_sends_a_digest_too_soon() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let start = || tokio::spawn(digest::run(fake.clone(), settings(), directory.path().to_owned()));
    let running = start();
    fake.happens(failures([1]));
    minutes(2).await;
    assert_eq!(fake.posted().len(), 1);
    fake.happens(failures([2]));
    minutes(1).await;
    running.abort();
    digest::put_by(failures([3]), directory.path());

    let running = start();
    minutes(30).await;
    assert_eq!(fake.posted().len(), 1);
    minutes(31).await;
    let digests = fake.posted();
    let text = String::from_utf8_lossy(&digests[1].content).into_owned();
    assert!(digests.len() == 2 && text.contains("newsletter/2") && text.contains("newsletter/3"), "{text}");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_failures_makes_a_digest_of_bounded_length() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let running = tokio::spawn(digest::run(fake.clone(), settings(), directory.path().to_owned()));
    fake.happens(failures(0..20_000));
    minutes(10).await;
    let [digest] = fake.posted().try_into().unwrap();
    assert_eq!(digest.subject, "mailqueue on mail.example.org: 20,000 mails were not sent");
    let text = String::from_utf8_lossy(&digest.content).into_owned();
    assert!(text.contains("And 19,800 more.") && text.len() < 50_000, "{} bytes", text.len());
    running.abort();
}
