//! What MariaDB and MySQL alone have: character sets of a column, and ways to log in.

use mailqueue::mail::Columns;
use mailqueue::queue::Settled;

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
