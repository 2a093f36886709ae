//! The ledger: what it remembers, what it gives away, and what it says when it cannot.

use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use mailqueue::ledger::{Error, FILE, Ledger, Query, StateDir, Tracer, Transmission};
use mailqueue::mail::{Columns, Fingerprint, MailId, RecordId};

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn take(dir: &Path) -> StateDir {
    StateDir::take(dir, || "0123456789abcdef0123456789abcdef".to_owned()).unwrap()
}

fn content(text: &str) -> Fingerprint {
    Fingerprint::of(&Columns { mbody: Some(text.as_bytes().to_vec()), ..Columns::default() })
}

fn transmission(mid: i64, recipients: &[&str], complete: bool) -> Transmission {
    Transmission {
        id: MailId::new("newsletter", mid),
        record: RecordId::new([mid as u8; 16]),
        fingerprint: content("body"),
        message_id: format!("<{mid}@example.org>"),
        recipients: recipients.iter().map(|&address| address.to_owned()).collect(),
        complete,
        begun: now(),
    }
}

#[tokio::test]
async fn what_a_crash_leaves_open_is_found_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    {
        let ledger = Ledger::open(&take(dir.path())).unwrap();
        assert!(!ledger.knows("newsletter").await.unwrap());
        ledger.know("newsletter").await.unwrap();
        let known = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
        ledger.transmitting(transmission(2, &["b@x.at", "c@x.at"], false)).await.unwrap();
        let gone = ledger.transmitting(transmission(3, &["d@x.at"], true)).await.unwrap();
        let done = ledger.transmitting(transmission(4, &["e@x.at"], true)).await.unwrap();
        ledger.accepted(known, "250 2.0.0 Ok: queued as 4F2".to_owned(), now()).await.unwrap();
        ledger.accepted(done, "250 Ok".to_owned(), now()).await.unwrap();
        ledger.forget(&[gone]).await.unwrap();
        ledger.settled(&[done]).await.unwrap();
        assert_eq!(ledger.open_count(), 2);
    }
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    assert!(ledger.knows("newsletter").await.unwrap() && !ledger.knows("admidio").await.unwrap());
    assert_eq!(ledger.open_count(), 2);
    let open = ledger.open_entries("newsletter").await.unwrap();
    let seen: Vec<_> =
        open.iter().map(|e| (e.transmission.id.mid, e.accepted.clone(), e.transmission.complete)).collect();
    assert_eq!(seen, [(1, Some(("250 2.0.0 Ok: queued as 4F2".to_owned(), now())), true), (2, None, false)]);
    assert_eq!(open[1].transmission.recipients, ["b@x.at", "c@x.at"]);
    assert_eq!(open[1].transmission.fingerprint, content("body"));
    assert!(ledger.open_entries("admidio").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_ledger_that_another_program_is_writing_to_is_waited_for_beside_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let first = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
    let other = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    // Each takes its place in the order, and none of these calls waits itself.
    let begun = Instant::now();
    let on_file = ledger.accepted(first, "250 Ok".to_owned(), now());
    let second = ledger.transmitting(transmission(2, &["b@x.at"], true));
    let first = [first];
    let settled = ledger.settled(&first);
    let mut all = pin!(async { tokio::join!(on_file, second, settled) });
    assert!(futures_util::poll!(&mut all).is_pending());
    tokio::task::yield_now().await;
    assert!(futures_util::poll!(&mut all).is_pending());
    assert!(begun.elapsed() < Duration::from_secs(2), "the program stood still for {:?}", begun.elapsed());

    other.execute_batch("ROLLBACK").unwrap();
    let (on_file, second, settled) = all.await;
    assert!(on_file.is_ok() && second.is_ok() && settled.is_ok());
    let open: Vec<_> = ledger.open_entries("newsletter").await.unwrap();
    assert_eq!(open.iter().map(|entry| entry.transmission.id.mid).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn the_log_of_the_ledger_does_not_grow_with_what_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    for mid in 0..5_000 {
        // Refused at the dot: what is written on the spot, and nothing else.
        let entry = ledger.transmitting(transmission(mid, &["a@x.at"], true)).await.unwrap();
        ledger.refused(entry);
    }
    ledger.flush();
    assert_eq!(ledger.open_count(), 0);
    let log = std::fs::metadata(dir.path().join(format!("{FILE}-wal"))).unwrap().len();
    assert!(log < 16 << 20, "{log} bytes");
}

#[tokio::test]
async fn an_acceptance_is_on_file_before_the_next_transaction_may_come_to_its_dot() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let first = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
    // Handed over and not awaited, as the dispatcher does it.
    let on_file = ledger.accepted(first, "250 Ok".to_owned(), now());
    ledger.transmitting(transmission(2, &["b@x.at"], true)).await.unwrap();
    let open = Tracer::open(dir.path()).unwrap().find(&Query::Id(MailId::new("newsletter", 1)), 10).unwrap();
    assert_eq!(open[0].state, "accepted");
    on_file.await.unwrap();
}

#[tokio::test]
async fn settled_entries_give_no_address_away_and_are_still_found_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let entry = ledger.transmitting(transmission(1, &["Jörg@Example.org"], true)).await.unwrap();
    ledger.accepted(entry, "250 2.1.5 <Jörg@Example.org> queued as 77".to_owned(), now()).await.unwrap();
    ledger.settled(&[entry]).await.unwrap();

    let tracer = Tracer::open(dir.path()).unwrap();
    for address in ["Jörg@Example.org", "jörg@example.ORG"] {
        let found = tracer.find(&Query::Recipient(address.to_owned()), 10).unwrap();
        assert_eq!(found.len(), 1, "{address}");
        assert_eq!(found[0].reply.as_deref(), Some("250 2.1.5 … queued as 77"));
        assert!(!found[0].recipients[0].contains('@'));
    }
    assert!(tracer.find(&Query::Recipient("other@example.org".to_owned()), 10).unwrap().is_empty());
    assert_eq!(tracer.find(&Query::MessageId("1@example.org".to_owned()), 10).unwrap().len(), 1);
    drop(tracer);
    checkpoint(&dir.path().join(FILE)).await;
    let file = String::from_utf8_lossy(&std::fs::read(dir.path().join(FILE)).unwrap()).into_owned();
    assert!(file.contains("queued as 77"), "the entry has reached the file");
    assert!(!file.contains("@Example.org"));
}

/// Has the write-ahead log written into the file itself.
async fn checkpoint(path: &Path) {
    use sqlx::Connection;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_row_that_was_accepted_before_is_recognised_by_number_and_content() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let whole = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
    let part = ledger.transmitting(transmission(2, &["a@x.at"], false)).await.unwrap();
    for entry in [whole, part] {
        ledger.accepted(entry, "250 Ok".to_owned(), now()).await.unwrap();
    }
    let known = async |queue, rows: &[(i64, Fingerprint)]| ledger.recognise(queue, rows).await.unwrap();
    let rows = [(1, content("body")), (2, content("body")), (3, content("body"))];
    // Also between the row's deletion and the word of it.
    assert_eq!(known("newsletter", &rows).await, [(1, now())]);
    assert_eq!(known("press", &rows).await, []);
    ledger.settled(&[whole, part]).await.unwrap();
    assert_eq!(known("newsletter", &rows).await, [(1, now())]);
    assert_eq!(known("newsletter", &[(1, content("another"))]).await, []);
    assert_eq!(known("press", &rows).await, []);
    assert_eq!(known("newsletter", &[]).await, []);
}

#[tokio::test]
async fn settled_entries_expire_and_open_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let old = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
    ledger.transmitting(transmission(2, &["a@x.at"], true)).await.unwrap();
    ledger.accepted(old, "250 Ok".to_owned(), now()).await.unwrap();
    ledger.settled(&[old]).await.unwrap();
    let keep = Duration::from_secs(86_400);
    let tracer = Tracer::open(dir.path()).unwrap();
    let everything = Query::Recipient("a@x.at".to_owned());
    ledger.expire(now() + SignedDuration::from_hours(23), keep).await.unwrap();
    assert_eq!(tracer.find(&everything, 10).unwrap().len(), 2);
    ledger.expire(now() + SignedDuration::from_hours(25), keep).await.unwrap();
    let left = tracer.find(&everything, 10).unwrap();
    assert_eq!(left.iter().map(|entry| entry.id.mid).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn many_writers_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for mid in 0..1000 {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            let entry = ledger.transmitting(transmission(mid, &["a@x.at"], true)).await.unwrap();
            ledger.accepted(entry, "250 Ok".to_owned(), now()).await.unwrap();
            if mid % 2 == 0 {
                ledger.settled(&[entry]).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(ledger.open_count(), 500);
    assert_eq!(ledger.open_entries("newsletter").await.unwrap().len(), 500);
}

#[test]
fn a_second_process_is_kept_out_and_told_who_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let first = take(dir.path());
    let error = StateDir::take(dir.path(), || unreachable!("the id is there")).unwrap_err();
    let Error::Busy { pid, .. } = &error else { panic!("{error}") };
    assert_eq!(*pid, Some(std::process::id()));
    let id = first.dispatcher().to_owned();
    drop(first);
    assert_eq!(StateDir::take(dir.path(), || unreachable!("the id is there")).unwrap().dispatcher(), id);
}

#[tokio::test]
async fn a_ledger_of_another_version_is_not_touched() {
    use sqlx::Connection;
    let dir = tempfile::tempdir().unwrap();
    drop(Ledger::open(&take(dir.path())).unwrap());
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("ledger.sqlite"));
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql("PRAGMA user_version = 1; DROP TABLE open_entry").execute(&mut connection).await.unwrap();
    let error = Ledger::open(&take(dir.path())).unwrap_err().to_string();
    for word in ["ledger.sqlite", "version 1", "until its `status` says"] {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
    let tables = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = 'open_entry'").fetch_all(&mut connection).await;
    assert!(tables.unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_ledger_is_an_error_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), b"SQLite format 3\0 and then nothing that makes sense".repeat(100)).unwrap();
    let error = Ledger::open(&take(dir.path())).unwrap_err().to_string();
    assert!(error.contains(FILE) && error.contains("put it back from a backup"), "{error}");
}

#[test]
fn a_damaged_dispatcher_id_is_an_error_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("dispatcher"), "nonsense\n").unwrap();
    let error = StateDir::take(dir.path(), || unreachable!()).unwrap_err().to_string();
    assert!(error.contains("holds no dispatcher id") && error.contains("remove it"), "{error}");
}

#[test]
fn ledger_and_key_are_nobody_elses_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { Ledger::open(&take(dir.path())).map(drop) }).unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", file.file_name());
    }
}
