//! Errors of a database that cannot be used.

use mailqueue::queue::Level;

use super::place::*;

mod mariadb {
    use super::*;

    #[tokio::test]
    async fn a_file_that_the_url_names_and_that_is_missing_is_named() {
        let place = Place::mariadb().await;
        for (key, rest) in [("socket", ""), ("ssl-ca", "&ssl-mode=verify_ca")] {
            let mut url = place.database.url.clone();
            url.set_query(Some(&format!("{key}=/nowhere/file{rest}")));
            let finding = place.queue_on(url, TABLE, "a").check().await.remove(0);
            assert_eq!(finding.level, Level::Failed);
            assert!(finding.found.contains(&format!("/nowhere/file does not exist (`{key}`")), "{finding:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_has_answered_is_not_asked_whether_it_is_up() {
        let place = Place::mariadb().await;
        let (url, user) = place.account(&["SELECT, DELETE ON mail_queue"], true).await;
        let limit = format!("ALTER USER '{user}'@'%' WITH MAX_CONNECTIONS_PER_HOUR 1");
        place.session().await.run(&limit).await.unwrap();
        let _first = Session::on(&url).await;
        let finding = place.queue_on(url, TABLE, "a").check().await.remove(0);
        assert!(finding.found.starts_with("the server answered: ") && !finding.found.contains("is up"), "{finding:?}");
        assert!(finding.found.contains("max_connections_per_hour"), "{finding:?}");
    }
}

mod postgres {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_the_url_names_and_that_is_missing_is_named() {
        let place = Place::postgres().await;
        let mut url = place.database.url.clone();
        url.set_query(Some("host=/nowhere"));
        let finding = place.queue_on(url, TABLE, "a").check().await.remove(0);
        assert!(finding.found.contains("/nowhere/.s.PGSQL."), "{finding:?}");
    }
}
