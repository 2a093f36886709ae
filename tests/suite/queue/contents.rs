//! What stands in a row is what is loaded, compared and deleted, byte for byte.

use mailqueue::mail::{ColumnLimits, Columns, Fingerprint};
use mailqueue::queue::Settled;

use super::on_each_database;
use super::place::*;

on_each_database! {
    async fn null_and_empty_are_different_contents(place: Place) {
        let mut session = place.session().await;
        session.run(&format!("INSERT INTO {TABLE} (mid, mto) VALUES (1, NULL), (2, '')")).await.unwrap();
        let queue = place.dispatcher("a");
        let rows = take_all(&queue).await;
        assert_eq!(rows[0].columns, Columns::default());
        assert_eq!(rows[1].columns.mto.as_deref(), Some(b"".as_slice()));
        assert_ne!(rows[0].fingerprint, rows[1].fingerprint);
        session.run(&format!("UPDATE {TABLE} SET mto = '' WHERE mid = 1")).await.unwrap();
        let settled = queue.settle(&rows.into_iter().map(|row| settlement(row, delivered())).collect::<Vec<_>>(), RETRY).await.unwrap();
        assert_eq!((&settled[0].1, &settled[1].1), (&Settled::RowGone, &Settled::Done));
        assert_eq!(place.state(1).await, "waiting");
    }

    async fn a_table_with_mparams_and_one_without_stand_side_by_side(place: Place) {
        let admidio = place.queue_on(place.database.url.clone(), "adm_mail_queue", "a");
        admidio.migrate(true).await.unwrap();
        let with = Columns { mparams: Some(b"LWZhQGIuYw==".to_vec()), ..mail(1) };
        let without = mail(2);
        let mids = [admidio.insert(&with).await.unwrap(), admidio.insert(&without).await.unwrap()];
        let newsletter = place.dispatcher("a");
        let refused = newsletter.insert(&with).await.unwrap_err().to_string();
        assert!(refused.contains("no column mparams"), "{refused}");
        let other = newsletter.insert(&mail(3)).await.unwrap();
        assert_eq!(other, mids[0], "the same number in both tables");

        let rows = take_all(&admidio).await;
        assert_eq!(rows.iter().map(|row| row.columns.clone()).collect::<Vec<_>>(), [with, without]);
        assert_eq!(take_all(&newsletter).await.len(), 1);
        let settled = admidio.settle(&rows.into_iter().map(|row| settlement(row, delivered())).collect::<Vec<_>>(), RETRY).await.unwrap();
        assert!(settled.iter().all(|(_, settled)| *settled == Settled::Done));
        assert_eq!(place.state(other).await, "claimed");
    }

    async fn what_is_no_base64_is_loaded_as_it_stands_and_its_delete_compares_it(place: Place) {
        let mut session = place.session().await;
        session.run(&place.odd_table()).await.unwrap();
        let garbage = "Grüße ß  \t'\"%_ end  ";
        let quoted = garbage.replace('\'', "''");
        session
            .run(&format!("INSERT INTO odd (mid, mto, msubject, mbody, mheaders) VALUES (7, '{quoted}', '{quoted}', '{quoted}', NULL)"))
            .await
            .unwrap();
        let queue = place.queue_on(place.database.url.clone(), "odd", "a");
        let row = take_all(&queue).await.remove(0);
        // In the encoding in which the column keeps it.
        let latin1: Vec<u8> = garbage.chars().map(|c| u8::try_from(c).unwrap()).collect();
        let kept = if place.is_mysql() { latin1 } else { garbage.as_bytes().to_vec() };
        assert_eq!(row.columns.mto.as_deref(), Some(kept.as_slice()));
        assert_eq!(row.columns.msubject.as_deref(), Some(garbage.as_bytes()));
        assert_eq!(row.columns.mbody.as_deref(), Some(garbage.as_bytes()));
        assert_eq!(row.fingerprint, Fingerprint::of(&row.columns));
        assert_eq!(row.claim.bytes(), row.columns.len() as u64);
        settle(&queue, row, failed()).await;
        assert_eq!(queue.sweep().await.unwrap(), 0, "the database computes the same fingerprint");
        queue.apply(&mailqueue::queue::Action::Retry, &[7.into()], at(0)).await.unwrap();
        let row = take_due(&queue, at(1)).await.remove(0);
        assert_eq!(row.claim.bytes(), row.columns.len() as u64);
        assert_eq!(settle(&queue, row, delivered()).await, Settled::Done);
        assert_eq!(session.number("SELECT COUNT(*) FROM odd").await, 0);
    }

    async fn a_row_of_many_megabytes_is_loaded_compared_and_deleted(place: Place) {
        let queue = place.dispatcher("a");
        let large = Columns { mbody: Some(b"QUJD".repeat(2_500_000)), ..mail(1) };
        place.allow_large_packets().await;
        queue.insert(&large).await.unwrap();
        let row = take_all(&queue).await.remove(0);
        assert_eq!(row.claim.bytes(), large.len() as u64);
        assert!(row.columns == large);
        assert_eq!(settle(&queue, row, delivered()).await, Settled::Done);
        assert_eq!(place.session().await.number(&format!("SELECT COUNT(*) FROM {TABLE}")).await, 0);
    }

    async fn a_row_that_changes_before_its_claim_is_never_taken_for_what_it_was(place: Place) {
        let mid = place.mails(1).await[0];
        let queue = place.dispatcher("a");
        let found = queue.find(i64::MIN, 10).await.unwrap();
        place.session().await.run(&format!("UPDATE {TABLE} SET mto = 'YUBiLmM='")).await.unwrap();
        let claims = queue.claim(&found, at(0)).await.unwrap();
        let mut rows = queue.load(claims).await.unwrap();
        if found[0].fingerprint.is_some() {
            // The record was made for the old content.
            assert_eq!((rows.len(), place.state(mid).await.as_str()), (0, "waiting"));
            rows = take_all(&queue).await;
        }
        assert_eq!(rows[0].columns.mto.as_deref(), Some(b"YUBiLmM=".as_slice()));
        assert_eq!(send(&queue, &rows).await, [true]);
        let fingerprint = rows[0].fingerprint;
        assert_eq!(place.listed(mid).await.unwrap().fingerprint, Some(fingerprint));
        assert_eq!(settle(&queue, rows.remove(0), delivered()).await, Settled::Done);
    }

    async fn a_record_knows_its_content_before_a_dot_may_go_out_however_the_row_was_found(place: Place) {
        let mids = place.mails(3).await;
        let queue = place.dispatcher("a");
        let mut found = queue.find(i64::MIN, 10).await.unwrap();
        assert_eq!(found.iter().all(|row| row.fingerprint.is_some()), !place.is_sqlite());
        // As of a row that is too large to be read by the search.
        found[1].fingerprint = None;
        let claims = queue.claim(&found, at(0)).await.unwrap();
        let rows = queue.load(claims).await.unwrap();
        assert_eq!(send(&queue, &rows).await, [true; 3]);
        for (mid, row) in mids.iter().zip(&rows) {
            assert_eq!(place.listed(*mid).await.unwrap().fingerprint, Some(row.fingerprint));
        }
        let settled = queue.settle(&rows.into_iter().map(|row| settlement(row, delivered())).collect::<Vec<_>>(), RETRY).await.unwrap();
        assert!(settled.iter().all(|(_, settled)| *settled == Settled::Done));
    }

    async fn the_limits_are_those_of_the_schema(place: Place) {
        let mut session = place.session().await;
        session.run(&place.odd_table()).await.unwrap();
        let odd = place.queue_on(place.database.url.clone(), "odd", "a");
        let (limits, sizes) = (odd.limits().await.unwrap(), odd.column_sizes().await.unwrap());
        let size = if place.is_sqlite() { u64::MAX } else { 200 };
        assert_eq!((sizes.mto, sizes.mparams), (size, u64::MAX));
        // MySQL alone cuts.
        if place.is_mysql() {
            assert_eq!((limits.mto, limits.msubject, limits.mbody), (200, 65_535, u64::from(u32::MAX)));
        } else {
            assert_eq!(limits, ColumnLimits::NONE);
        }
        let findings = odd.check().await;
        let said = &findings.iter().find(|finding| finding.what == "column sizes").unwrap().found;
        let consequence = match place.database.url.scheme() {
            "mysql" => "mto holds 150 bytes of text",
            "postgres" => "the database refuses an INSERT with more",
            _ => "the columns have no limit",
        };
        assert!(said.contains(consequence), "{said}");
        assert_eq!(said.contains("truncated"), place.is_mysql(), "{said}");
    }

    async fn a_value_that_is_too_long_for_its_column_is_cut_at_the_limit_or_refused(place: Place) {
        place.allow_large_packets().await;
        let mut session = place.session().await;
        let (types, not_strict, text) = match place.database.url.scheme() {
            // TEXT and its like hold bytes, VARCHAR characters.
            "mysql" => (
                &["VARCHAR(256)", "VARCHAR(256) CHARACTER SET utf8mb4", "VARCHAR(300) CHARACTER SET latin1", "TINYTEXT",
                  "CHAR(200) CHARACTER SET utf8mb3", "TEXT CHARACTER SET latin1", "TEXT CHARACTER SET utf8mb4",
                  "TEXT(1000) CHARACTER SET utf8mb4", "MEDIUMTEXT CHARACTER SET utf8mb4", "VARBINARY(256)", "BLOB",
                  "MEDIUMBLOB", "VARCHAR(256) CHARACTER SET utf16", "TEXT CHARACTER SET ucs2", "TINYTEXT CHARACTER SET utf32",
                  "CHAR(200) CHARACTER SET utf16le"][..],
                "SET SESSION sql_mode = ''",
                "REPEAT('QUFB', 5000000)",
            ),
            "postgres" => (&["VARCHAR(256)", "CHAR(256)", "TEXT", "BYTEA"][..], "SELECT 1", "repeat('QUFB', 100)"),
            _ => (&["VARCHAR(256)", "TEXT", "BLOB"][..], "SELECT 1", "printf('%.*c', 400, 'Q')"),
        };
        session.run(not_strict).await.unwrap();
        for (number, kind) in types.iter().enumerate() {
            let table = format!("cut_{number}");
            session
                .run(&format!(
                    "CREATE TABLE {table} (mid INTEGER PRIMARY KEY, mto {kind}, msubject TEXT, mbody TEXT, mheaders TEXT)"
                ))
                .await
                .unwrap();
            let value = if *kind == "BYTEA" { format!("convert_to({text}, 'UTF8')") } else { text.to_owned() };
            let inserted = session.run(&format!("INSERT INTO {table} (mid, mto) VALUES (1, {value})")).await;
            let limit = place.queue_on(place.database.url.clone(), &table, "a").limits().await.unwrap().mto;
            if place.is_mysql() {
                inserted.unwrap();
                // A character of base64 is a byte of it, however wide it is stored.
                let kept = session.number(&format!("SELECT CAST(CHAR_LENGTH(mto) AS SIGNED) FROM {table}")).await;
                println!("{kind}: cut at {kept}");
                assert_eq!(kept.unsigned_abs(), limit, "{kind}");
            } else {
                let refused = !place.is_sqlite() && kind.contains("256");
                assert_eq!((inserted.is_err(), limit), (refused, u64::MAX), "{kind}");
            }
        }
    }

    async fn numbers_come_back_only_where_the_table_gives_them_out_again(place: Place) {
        let mut session = place.session().await;
        session.run(&place.odd_table()).await.unwrap();
        assert!(!place.dispatcher("a").reuses_numbers().await.unwrap());
        let odd = place.queue_on(place.database.url.clone(), "odd", "a");
        assert_eq!(odd.reuses_numbers().await.unwrap(), place.is_sqlite());
    }

    async fn a_column_that_goes_and_comes_back_is_told_and_survived(place: Place) {
        let mids = place.mails(2).await;
        let queue = place.dispatcher("a");
        assert_eq!(find(&queue, i64::MIN, 10).await, mids);
        let claims = claim(&queue, &mids, at(0)).await.unwrap();
        let mut session = place.session().await;
        session.run(&format!("ALTER TABLE {TABLE} RENAME COLUMN mbody TO gone")).await.unwrap();
        let (error, claims) = queue.load(claims).await.unwrap_err();
        assert!(error.to_string().contains("no column mbody"), "{error}");
        session.run(&format!("ALTER TABLE {TABLE} RENAME COLUMN gone TO mbody")).await.unwrap();
        assert_eq!(queue.load(claims).await.unwrap().len(), 2);
    }

    async fn a_table_that_is_dropped_and_made_anew_is_survived(place: Place) {
        let queue = place.dispatcher("a");
        place.mails(2).await;
        let row = take_all(&queue).await.remove(0);
        settle(&queue, row, failed()).await;
        place.session().await.run(&format!("DROP TABLE {TABLE}")).await.unwrap();
        let error = queue.find(i64::MIN, 10).await.unwrap_err();
        assert!(matches!(error, mailqueue::queue::Error::Refused { .. }), "{error}");
        assert!(error.to_string().contains("no table mail_queue"), "{error}");
        queue.migrate(true).await.unwrap();
        let mid = queue.insert(&mail(9)).await.unwrap();
        // The old record stands for nothing any more, and the new mail under its number is not kept waiting by it.
        queue.sweep().await.unwrap();
        queue.recover_own().await.unwrap();
        assert_eq!(find(&queue, i64::MIN, 10).await, [mid]);
    }

    async fn an_added_mparams_column_does_not_make_old_rows_new(place: Place) {
        place.mails(1).await;
        let row = take_all(&place.dispatcher("a")).await.remove(0);
        place.session().await.run(&format!("ALTER TABLE {TABLE} ADD COLUMN mparams TEXT NULL")).await.unwrap();
        let later = place.dispatcher("a");
        assert_eq!(settle(&later, row, delivered()).await, Settled::Done);
        assert_eq!(place.records().await, 0);
    }
}

impl Place {
    fn is_mysql(&self) -> bool {
        self.database.url.scheme() == "mysql"
    }

    /// A producers' table with other types: short, in Latin-1 where there is such, and binary.
    fn odd_table(&self) -> String {
        let columns = match self.database.url.scheme() {
            "mysql" => {
                "mid INT UNSIGNED AUTO_INCREMENT PRIMARY KEY, mto VARCHAR(200) CHARACTER SET latin1, \
                 msubject TEXT CHARACTER SET utf8mb4, mbody LONGBLOB, mheaders TEXT"
            }
            "postgres" => "mid SERIAL PRIMARY KEY, mto VARCHAR(200), msubject TEXT, mbody BYTEA, mheaders CHAR(30)",
            _ => "mid INTEGER PRIMARY KEY, mto VARCHAR(200), msubject TEXT, mbody BLOB, mheaders",
        };
        format!("CREATE TABLE odd ({columns})")
    }

    async fn allow_large_packets(&self) {
        if self.database.url.scheme() == "mysql" {
            self.session().await.run("SET GLOBAL max_allowed_packet = 1073741824").await.unwrap();
        }
    }
}
