//! Peculiarities of MariaDB and MySQL: character sets of a column, and ways to log in.

use mailqueue::mail::Columns;
use mailqueue::outcome::{Fate, Reason, RecipientState, State};
use mailqueue::queue::{Error, Settled};

use super::on_each_mysql;
use super::place::*;

on_each_mysql! {
    async fn columns_whose_letters_take_several_bytes_are_read_as_utf_8(place: Place) {
        let mut session = place.session().await;
        let [queue, text] = ["wide", "Grüße 🙂"];
        session
            .run(
                "CREATE TABLE wide (mid INT AUTO_INCREMENT PRIMARY KEY, mto VARCHAR(256) CHARACTER SET ucs2, \
                 msubject TEXT CHARACTER SET utf16, mbody LONGTEXT CHARACTER SET utf32, \
                 mheaders TEXT CHARACTER SET utf16le, mparams VARBINARY(20))",
            )
            .await
            .unwrap();
        let queue = place.queue_on(place.database.url.clone(), queue, "a");
        let columns = Columns { mparams: Some(b"LWZhQGIuYw==".to_vec()), ..mail(1) };
        queue.insert(&columns).await.unwrap();
        session.run(&format!("INSERT INTO wide (mto, msubject, mbody) VALUES (NULL, '{text}', '')")).await.unwrap();

        let rows = take_all(&queue).await;
        assert_eq!(rows[0].columns, columns);
        let other = Columns { msubject: Some(text.into()), mbody: Some(Vec::new()), ..Columns::default() };
        assert_eq!(rows[1].columns, other);
        for row in rows {
            assert_eq!(row.claim.bytes(), row.columns.len() as u64);
            assert_eq!(row.fingerprint, mailqueue::mail::Fingerprint::of(&row.columns));
            assert_eq!(settle(&queue, row, delivered()).await, Settled::Done);
        }
        assert_eq!(session.number("SELECT COUNT(*) FROM wide").await, 0);
    }

    async fn a_right_on_a_column_that_is_taken_away_makes_no_other_mail_of_a_row(place: Place) {
        let table = "adm_mail_queue";
        let operator = place.queue_on(place.database.url.clone(), table, "");
        operator.migrate(true).await.unwrap();
        let mid = operator.insert(&Columns { mparams: Some(b"LWZhQGIuYw==".to_vec()), ..mail(1) }).await.unwrap();
        let rights = format!("SELECT (mid, mto, msubject, mbody, mheaders, mparams), DELETE ON {table}");
        let (url, user) = place.account(&[&rights], true).await;
        let queue = place.queue_on(url.clone(), table, "a");
        let accepted = [recipient("a@example.org", RecipientState::Accepted)];
        let fate = Fate::Deferred { reason: Reason::Throttled, next_attempt: at(10) };
        settle(&queue, take_all(&queue).await.remove(0), verdict(fate, &accepted)).await;

        let mut session = place.session().await;
        session.run(&format!("REVOKE SELECT (mparams) ON {table} FROM '{user}'@'%'")).await.unwrap();
        // The definition of a table is read again from time to time; a new handle reads it at once.
        let later = place.queue_on(url, table, "a");
        for _ in 0..2 {
            let error = later.sweep().await.unwrap_err();
            assert!(matches!(error, Error::Refused { .. }), "{error:?}");
            let error = error.to_string();
            assert!(error.contains("a column mparams that is not ours to read") && error.contains("GRANT SELECT"), "{error}");
        }
        let listed = operator.look(mid).await.unwrap().unwrap().0;
        assert_eq!((listed.state, &listed.history.recipients[..]), (State::Deferred, &accepted[..]));
        session.run(&format!("GRANT SELECT (mparams) ON {table} TO '{user}'@'%'")).await.unwrap();
        assert_eq!(later.sweep().await.unwrap(), 0);
        assert_eq!(take_due(&later, at(10)).await.len(), 1);
    }

    async fn a_migration_that_cannot_be_taken_up_or_fails_is_named_with_the_remedy(place: Place) {
        let (url, user) = place.account(&["CREATE, SELECT ON mailqueue_migrations"], false).await;
        let queue = place.queue_on(url, TABLE, "");
        let mut session = place.session().await;
        session.run("UPDATE mailqueue_migrations SET success = FALSE").await.unwrap();
        let error = queue.migrate(false).await.unwrap_err().to_string();
        for words in ["migration 1 ", "stopped half-way", "denied", "DELETE from mailqueue_migrations", "--database URL"] {
            assert!(error.contains(words), "{words}: {error}");
        }
        session.run(&format!("GRANT INSERT, DELETE ON mailqueue_migrations TO '{user}'@'%'")).await.unwrap();
        let error = queue.migrate(false).await.unwrap_err().to_string();
        for words in ["migration 1 ", "failed", "denied", "--database URL"] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    async fn a_login_without_tls_sends_the_password_under_the_servers_rsa_key(place: Place) {
        let is_mariadb = place.session().await.number("SELECT VERSION() LIKE '%MariaDB%'").await == 1;
        let plugins = if is_mariadb { &["VIA mysql_native_password USING PASSWORD("][..] } else {
            &["WITH caching_sha2_password BY (", "WITH sha256_password BY ("]
        };
        for plugin in plugins {
            let url = login(&place, plugin).await;
            assert!(find(&place.queue_on(url, TABLE, "a"), 0, 1).await.is_empty(), "{plugin}");
        }
    }
}

/// A user with rights on the producers' table whose login is by this plugin, and its URL without TLS.
pub async fn login(place: &Place, identified: &str) -> url::Url {
    let user = format!("user_{:08x}", rand::random::<u32>());
    let (plugin, bracket) = identified.split_at(identified.len() - 1);
    let secret = if plugin.ends_with("BY ") { "'first'".to_owned() } else { format!("{bracket}'first')") };
    let mut session = place.session().await;
    session.run(&format!("CREATE USER '{user}'@'%' IDENTIFIED {plugin}{secret}")).await.unwrap();
    for table in [TABLE, "mailqueue_delivery", "mailqueue_recipient", "mailqueue_dispatcher"] {
        session.run(&format!("GRANT SELECT ON {table} TO '{user}'@'%'")).await.unwrap();
    }
    let mut url = place.database.url.clone();
    url.set_username(&user).unwrap();
    url.set_password(Some("first")).unwrap();
    url.set_query(Some("ssl-mode=disabled"));
    url
}
