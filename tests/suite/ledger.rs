//! The ledger: what it remembers, what it gives away, and what it says when it cannot.

use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use mailqueue::ledger::{Error, FILE, Ledger, Query, StateDir, Tracer, Transmission};
use mailqueue::mail::{Columns, Fingerprint, MailId, RecordId};

/// The open entries' file below `state_dir`.
const DAYBOOK: &str = "ledger.daybook";

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
        repairs: vec!["charset (part 2)".to_owned()],
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
        ledger.accepted(known, "250 2.0.0 Ok: queued as 4F2".to_owned(), now());
        ledger.accepted(done, "250 Ok".to_owned(), now());
        ledger.forget(&[gone]).unwrap();
        ledger.settled(&[done]).await.unwrap();
        assert_eq!(ledger.open_count(), 2);
    }
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    assert!(ledger.knows("newsletter").await.unwrap() && !ledger.knows("admidio").await.unwrap());
    assert_eq!(ledger.open_count(), 2);
    let open = ledger.open_entries("newsletter");
    let seen: Vec<_> =
        open.iter().map(|e| (e.transmission.id.mid, e.accepted.clone(), e.transmission.complete)).collect();
    assert_eq!(seen, [(1, Some(("250 2.0.0 Ok: queued as 4F2".to_owned(), now())), true), (2, None, false)]);
    assert_eq!(open[1].transmission.recipients, ["b@x.at", "c@x.at"]);
    assert_eq!(open[1].transmission.fingerprint, content("body"));
    assert!(ledger.open_entries("admidio").is_empty());
}

#[tokio::test]
async fn what_was_posted_before_a_crash_and_not_struck_out_is_settled_and_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let daybook = dir.path().join(DAYBOOK);
    let left = {
        let ledger = Ledger::open(&take(dir.path())).unwrap();
        let entry = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
        ledger.accepted(entry, "250 Ok".to_owned(), now());
        ledger.flush().unwrap();
        let left = std::fs::read(&daybook).unwrap();
        ledger.settled(&[entry]).await.unwrap();
        left
    };
    std::fs::write(&daybook, left).unwrap();
    let found = Tracer::open(dir.path()).unwrap().find(&Query::MessageId("1@example.org".to_owned()), 10).unwrap();
    assert_eq!(found.iter().map(|entry| entry.state.as_str()).collect::<Vec<_>>(), ["settled"]);
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    assert_eq!(ledger.open_count(), 0);
    assert_eq!(std::fs::read(&daybook).unwrap(), b"");
}

#[tokio::test]
async fn a_last_line_that_was_cut_off_is_no_damage_and_one_in_the_middle_is() {
    let dir = tempfile::tempdir().unwrap();
    let daybook = dir.path().join(DAYBOOK);
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    for mid in 1..=3 {
        let entry = ledger.transmitting(transmission(mid, &["a@x.at"], true)).await.unwrap();
        ledger.accepted(entry, "250 Ok".to_owned(), now());
    }
    ledger.flush().unwrap();
    drop(ledger);
    let whole = std::fs::read(&daybook).unwrap();
    let lines = whole.split_inclusive(|byte| *byte == b'\n').collect::<Vec<_>>();
    assert_eq!(lines.len(), 6);
    let open_with = |content: &[u8]| {
        std::fs::write(&daybook, content).unwrap();
        Ledger::open(&take(dir.path())).map(|ledger| {
            ledger.open_entries("newsletter").iter().map(|entry| entry.accepted.is_some()).collect::<Vec<_>>()
        })
    };
    // Without its power a machine may lose what stood last, or keep room for it and nothing in it.
    assert_eq!(open_with(&whole[..whole.len() - 1]).unwrap(), [true, true, false]);
    assert_eq!(open_with(&[&whole[..whole.len() - lines[5].len()], &[0; 4096]].concat()).unwrap(), [true, true, false]);
    assert_eq!(open_with(&whole[..lines[0].len() / 2]).unwrap(), [false; 0]);
    assert_eq!(open_with(&whole).unwrap(), [true; 3]);

    let damaged = [lines[0], b"what is this\n", lines[1]].concat();
    let error = open_with(&damaged).unwrap_err().to_string();
    for word in [DAYBOOK, "line 2", "put it back from a backup"] {
        assert!(error.contains(word), "no `{word}` in: {error}");
    }
    assert_eq!(std::fs::read(&daybook).unwrap(), damaged, "it is left as it is");
}

#[tokio::test]
async fn settled_entries_that_another_program_writes_to_are_waited_for_and_nothing_else_waits() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let first = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
    let other = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    let begun = Instant::now();
    ledger.accepted(first, "250 Ok".to_owned(), now());
    let first = [first];
    let mut settled = pin!(ledger.settled(&first));
    assert!(futures_util::poll!(&mut settled).is_pending());
    ledger.transmitting(transmission(2, &["b@x.at"], true)).await.unwrap();
    assert!(futures_util::poll!(&mut settled).is_pending());
    assert_eq!(ledger.open_count(), 2, "open until it stands among the settled");
    assert!(begun.elapsed() < Duration::from_secs(2), "the program stood still for {:?}", begun.elapsed());

    other.execute_batch("ROLLBACK").unwrap();
    settled.await.unwrap();
    let open = ledger.open_entries("newsletter");
    assert_eq!(open.iter().map(|entry| entry.transmission.id.mid).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn the_daybook_does_not_grow_with_what_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let length = || std::fs::metadata(dir.path().join(DAYBOOK)).unwrap().len();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let lasting = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
    // There is always something open.
    for mid in 2..40_000 {
        let entry = ledger.transmitting(transmission(mid, &["a@x.at"], true)).await.unwrap();
        ledger.refused(entry);
    }
    ledger.flush().unwrap();
    assert_eq!(ledger.open_count(), 1);
    assert!((1..9 << 20).contains(&length()), "{} bytes", length());
    ledger.forget(&[lasting]).unwrap();
    assert_eq!(length(), 0);
    drop(ledger);
    assert_eq!(Ledger::open(&take(dir.path())).unwrap().open_count(), 0);
}

#[tokio::test]
async fn an_acceptance_is_on_file_before_the_next_transaction_may_come_to_its_dot() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let first = ledger.transmitting(transmission(1, &["a@x.at"], true)).await.unwrap();
    // Handed over only, as the dispatcher does it.
    ledger.accepted(first, "250 Ok".to_owned(), now());
    ledger.transmitting(transmission(2, &["b@x.at"], true)).await.unwrap();
    let open = Tracer::open(dir.path()).unwrap().find(&Query::Id(MailId::new("newsletter", 1)), 10).unwrap();
    assert_eq!(open[0].state, "accepted");
}

#[tokio::test]
async fn settled_entries_give_no_address_away_and_are_still_found_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&take(dir.path())).unwrap();
    let entry = ledger.transmitting(transmission(1, &["Jörg@Example.org"], true)).await.unwrap();
    ledger.accepted(entry, "250 2.1.5 <Jörg@Example.org> queued as 77".to_owned(), now());
    ledger.settled(&[entry]).await.unwrap();

    let tracer = Tracer::open(dir.path()).unwrap();
    for address in ["Jörg@Example.org", "jörg@example.ORG"] {
        let found = tracer.find(&Query::Recipient(address.to_owned()), 10).unwrap();
        assert_eq!(found.len(), 1, "{address}");
        assert_eq!(found[0].reply.as_deref(), Some("250 2.1.5 … queued as 77"));
        assert!(!found[0].recipients[0].contains('@'));
    }
    assert!(tracer.find(&Query::Recipient("other@example.org".to_owned()), 10).unwrap().is_empty());
    let found = tracer.find(&Query::MessageId("1@example.org".to_owned()), 10).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].repairs, ["charset (part 2)"]);
    drop(tracer);
    checkpoint(&dir.path().join(FILE)).await;
    let text = |name: &str| String::from_utf8_lossy(&std::fs::read(dir.path().join(name)).unwrap()).into_owned();
    assert!(text(FILE).contains("queued as 77"), "the entry has reached the file");
    assert!(!text(FILE).contains("@Example.org") && !text(DAYBOOK).contains("@Example.org"));
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
        ledger.accepted(entry, "250 Ok".to_owned(), now());
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
    ledger.accepted(old, "250 Ok".to_owned(), now());
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
            ledger.accepted(entry, "250 Ok".to_owned(), now());
            if mid % 2 == 0 {
                ledger.settled(&[entry]).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(ledger.open_count(), 500);
    assert_eq!(ledger.open_entries("newsletter").len(), 500);
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

/// As version 2 had it: open entries in the same file.
fn of_version_2(dir: &Path, open: &str) -> rusqlite::Connection {
    drop(Ledger::open(&take(dir)).unwrap());
    let file = rusqlite::Connection::open(dir.join(FILE)).unwrap();
    file.execute_batch(&format!(
        "ALTER TABLE settled_entry DROP COLUMN repairs;
         CREATE TABLE open_entry (id INTEGER PRIMARY KEY, accepted INTEGER) STRICT;
         CREATE VIEW entry AS SELECT id FROM settled_entry UNION ALL SELECT id FROM open_entry;
         INSERT INTO settled_entry VALUES (7, 'newsletter', 1, 'r', 'f', '<old@example.org>', '[]', 1, 0, '250 Ok', 0);
         {open} PRAGMA user_version = 2"
    ))
    .unwrap();
    file
}

#[tokio::test]
async fn a_ledger_of_a_version_before_in_which_nothing_is_open_goes_on_as_it_is() {
    for version in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let file = of_version_2(dir.path(), "");
        if version == 3 {
            file.execute_batch("DROP VIEW entry; DROP TABLE open_entry; PRAGMA user_version = 3").unwrap();
        }
        drop(file);
        let found = || {
            let tracer = Tracer::open(dir.path()).unwrap();
            tracer.find(&Query::MessageId("old@example.org".to_owned()), 10).unwrap().len()
        };
        assert_eq!(found(), 1, "before a dispatcher opened it");
        drop(Ledger::open(&take(dir.path())).unwrap());
        assert_eq!(found(), 1);
    }
}

#[tokio::test]
async fn a_ledger_of_another_version_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let file = of_version_2(dir.path(), "INSERT INTO open_entry VALUES (8, NULL);");
    for version in [2, 1, 5] {
        file.execute_batch(&format!("PRAGMA user_version = {version}")).unwrap();
        let error = Ledger::open(&take(dir.path())).unwrap_err().to_string();
        for word in ["ledger.sqlite", &format!("version {version}"), "until its `status` says"] {
            assert!(error.contains(word), "no `{word}` in: {error}");
        }
        let open: i64 = file.query_row("SELECT count(*) FROM open_entry", [], |row| row.get(0)).unwrap();
        assert_eq!(open, 1);
    }
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
