//! Rights, passwords and connections, which only servers have.

use std::sync::Arc;
use std::time::Instant;

use mailqueue::queue::{Database, Error, Level, Password, Queue, Settings, Settled};
use url::Url;

use super::on_each_server;
use super::place::*;
use super::setup::worst;

on_each_server! {
    async fn the_daemons_work_wants_no_more_than_the_rights_it_is_given(place: Place) {
        let (url, _) = place.account(&["SELECT, DELETE ON mail_queue"], true).await;
        let queue = place.queue_on(url.clone(), TABLE, "a");
        let findings = queue.check().await;
        assert!(findings.iter().all(|finding| finding.level == Level::Ok || finding.what == "column sizes"), "{findings:#?}");
        place.mails(5).await;
        queue.beat().await.unwrap();
        let mut rows = take_all(&queue).await;
        assert_eq!(send(&queue, &rows).await, [true; 5]);
        assert_eq!(settle(&queue, rows.remove(0), delivered()).await, Settled::Done);
        assert_eq!(settle(&queue, rows.remove(0), deferred(at(1))).await, Settled::Done);
        assert_eq!(settle(&queue, rows.remove(0), mailqueue::outcome::Verdict::released()).await, Settled::Done);
        assert_eq!(settle(&queue, rows.remove(0), held()).await, Settled::Done);
        queue.sweep().await.unwrap();
        assert_eq!(queue.claim_due(at(2), 10).await.unwrap().len(), 1);
        let again = place.queue_on(url, TABLE, "a");
        let recovered = again.recover_own().await.unwrap();
        assert_eq!((recovered.released, recovered.unknown.len()), (1, 1));
        again.limits().await.unwrap();
        again.counts(at(3)).await.unwrap();
        again.list(&Default::default(), 0, 10).await.unwrap();
        again.pause(mailqueue::queue::PauseTarget::Relay).await.unwrap();
        let error = again.insert(&mail(1)).await.unwrap_err().to_string();
        assert!(error.contains("denied"), "{error}");
        let error = again.migrate(true).await.unwrap_err().to_string();
        assert!(error.contains("denied") && error.contains("--database URL"), "{error}");
    }

    async fn the_check_knows_too_few_and_too_many_rights(place: Place) {
        let (url, _) = place.account(&["SELECT ON mail_queue"], true).await;
        let findings = place.queue_on(url, TABLE, "").check().await;
        let few = findings.iter().find(|finding| finding.what == "rights").unwrap();
        assert_eq!(few.level, Level::Failed);
        assert!(few.found.contains("GRANT DELETE ON"), "{few:?}");

        let (url, _) = place.account(&["SELECT, DELETE, UPDATE, INSERT ON mail_queue"], true).await;
        let findings = place.queue_on(url, TABLE, "").check().await;
        let many = findings.iter().find(|finding| finding.level == Level::Warning && finding.what == "rights").unwrap();
        assert!(many.found.contains("INSERT, UPDATE"), "{many:?}");
    }

    async fn the_check_goes_on_where_the_rights_on_our_tables_are_forgotten(place: Place) {
        let (url, _) = place.account(&["SELECT, DELETE ON mail_queue"], false).await;
        let findings = place.queue_on(url, TABLE, "").check().await;
        let one = |what: &str| {
            let found = findings.iter().find(|finding| finding.what == what);
            found.unwrap_or_else(|| panic!("no {what}: {findings:#?}"))
        };
        let remedy = "run `mailqueue migrate`, or GRANT SELECT, INSERT, UPDATE, DELETE on mailqueue_delivery, ";
        assert!(one("our tables").level == Level::Failed && one("our tables").found.contains(remedy), "{findings:#?}");
        let rights = one("rights");
        assert_eq!(rights.level, Level::Failed);
        for table in ["mailqueue_delivery", "mailqueue_recipient", "mailqueue_dispatcher"] {
            let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO ");
            assert!(rights.found.contains(&grant), "{rights:?}");
        }
        assert_eq!(one("numbers").level, Level::Ok);
        one("column sizes");
        assert!(place.database.url.scheme() != "mysql" || one("engine").level == Level::Ok);
    }

    async fn a_password_that_was_changed_under_way_is_read_anew(place: Place) {
        let (mut url, user) = place.account(&["SELECT, DELETE ON mail_queue"], true).await;
        url.set_password(None).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "first\n").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let database = Database { url, password: Some(Password::File(file.clone())) };
        let settings = Settings { name: Arc::from("x"), database, table: TABLE.to_owned(), max_size: MAX_SIZE };
        let queue = Queue::new(settings, "a".to_owned()).unwrap();
        queue.paused().await.unwrap();

        place.session().await.run(&place.change_password(&user, "second")).await.unwrap();
        place.disconnect(&user).await;
        if place.asks_for_passwords().await {
            let error = queue.paused().await.unwrap_err();
            assert!(!error.to_string().contains("first"), "{error}");
        }
        std::fs::write(&file, "second").unwrap();
        queue.paused().await.unwrap();
        std::fs::remove_file(&file).unwrap();
        place.disconnect(&user).await;
        let error = queue.paused().await.unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }

    async fn a_server_that_cuts_all_connections_is_used_again_at_once(place: Place) {
        let (url, user) = place.account(&["SELECT, DELETE ON mail_queue"], true).await;
        let queue = place.queue_on(url, TABLE, "a");
        for _ in 0..3 {
            let (a, b, c) = tokio::join!(queue.paused(), queue.find(0, 1), queue.beat());
            a.unwrap();
            b.unwrap();
            c.unwrap();
            place.disconnect(&user).await;
        }
    }

    async fn a_server_that_is_not_there_is_told_at_once_and_with_its_reason(place: Place) {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut url = place.database.url.clone();
        url.set_port(Some(closed)).unwrap();
        let queue = place.queue_on(url, TABLE, "a");
        let begin = Instant::now();
        let error = queue.find(0, 1).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("refused"), "{error}");
        assert!(begin.elapsed().as_secs() < 5);
        assert_eq!(worst(&queue).await, (Level::Failed, "database".to_owned()));
    }
}

impl Place {
    /// A user with these rights, and those on our tables if asked; its URL with the password `first`, and its name.
    pub async fn account(&self, rights: &[&str], ours: bool) -> (Url, String) {
        let user = format!("user_{:08x}", rand::random::<u32>());
        let mut session = self.session().await;
        let account = match session {
            Session::MariaDb(_) => format!("'{user}'@'%'"),
            _ => user.clone(),
        };
        session.run(&format!("CREATE USER {account} {}", self.identified_by("first"))).await.unwrap();
        let on_ours = ["delivery", "recipient", "dispatcher"]
            .map(|table| format!("SELECT, INSERT, UPDATE, DELETE ON mailqueue_{table}"));
        let ours = on_ours.iter().map(String::as_str).filter(|_| ours);
        for right in rights.iter().copied().chain(ours) {
            session.run(&format!("GRANT {right} TO {account}")).await.unwrap();
        }
        let mut url = self.database.url.clone();
        url.set_username(&user).unwrap();
        url.set_password(Some("first")).unwrap();
        (url, user)
    }

    fn identified_by(&self, password: &str) -> String {
        match self.database.url.scheme() {
            "mysql" => format!("IDENTIFIED BY '{password}'"),
            _ => format!("PASSWORD '{password}'"),
        }
    }

    fn change_password(&self, user: &str, password: &str) -> String {
        let account = if self.database.url.scheme() == "mysql" { format!("'{user}'@'%'") } else { user.to_owned() };
        format!("ALTER USER {account} {}", self.identified_by(password))
    }

    /// Whether the server looks at passwords at all: a PostgreSQL of one's own may trust whoever comes over loopback.
    async fn asks_for_passwords(&self) -> bool {
        match self.session().await {
            Session::Postgres(mut session) => {
                use sqlx::{Executor, Row};
                let sql = "SELECT COUNT(*) FROM pg_hba_file_rules WHERE type = 'host' AND auth_method = 'trust'";
                let rules: i64 = session.fetch_one(sql).await.unwrap().get(0);
                rules == 0
            }
            _ => true,
        }
    }

    /// Ends all connections of a user, as a restart of the server would.
    async fn disconnect(&self, user: &str) {
        let mut session = self.session().await;
        match session {
            Session::MariaDb(_) => {
                let all = session.processes().await;
                let theirs = format!("SELECT CAST(p.id AS CHAR) FROM {all} p WHERE p.user = '{user}'");
                for id in session.lines(&theirs).await {
                    // One that has just ended by itself is as well.
                    let _ = session.run(&format!("KILL {id}")).await;
                }
            }
            _ => {
                let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'");
                session.run(&sql).await.unwrap();
            }
        }
    }
}
