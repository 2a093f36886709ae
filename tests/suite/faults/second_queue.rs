//! Whatever happens to one database, one table or one row: the mails of the others go out and their rows are deleted, and
//! the trouble is named.

use std::time::Duration;

use super::{OFTEN, SOON, kill, stop, story, until_empty, until_left};
use crate::observe::daemon::{MONITOR, page_with, port};
use crate::support::binary::Running;
use crate::support::catcher::{Catcher, Hazard, Received, Step};
use crate::support::database::TestDatabase;
use crate::support::house::{House, mail, said};
use crate::support::mails::Mails;
use crate::support::proxy::Proxy;
use crate::support::second::{self, Second};
use crate::support::session::Session;
use crate::support::undeletable::Keeper;
use crate::support::{DEADLINE, eventually, long};

on_every_database!(
    a_locked_table_holds_up_its_own_queue_only,
    a_row_to_which_another_refers_ends_as_not_deleted_and_all_others_go,
    a_row_whose_deletion_a_trigger_refuses_ends_as_not_deleted_and_all_others_go,
    a_large_mail_waits_for_no_other_and_no_other_waits_for_it,
    a_large_mail_that_cannot_be_settled_keeps_no_large_mail_of_another_queue_from_going_out,
);

mod server {
    use super::*;

    on_every_server!(
        a_frozen_database_holds_up_its_own_queue_only,
        a_database_that_is_gone_holds_up_its_own_queue_only,
        a_right_to_delete_that_is_lost_holds_up_its_own_queue_only,
    );
}

/// Rows of the first queue at the moment of a fault. Far more than memory has room for.
const ROWS: usize = 300;

/// 200 KB, of which a row counts at least one.
const MEMORY: &str = "max_in_flight_bytes = \"200KB\"";

/// Rows of the first queue that are in memory at the moment of the fault. A third of the memory has room for them.
const IN_FLIGHT: i64 = 20;

const CONNECTIONS: usize = 4;

/// The first queue has [`ROWS`] rows and is at work on them; its first mails wait for the answer to their dots.
struct Scene {
    catcher: Catcher,
    house: House,
    /// The first database, past the proxy.
    session: Session,
    proxy: Option<Proxy>,
    mails: Mails,
    second: Second,
    daemon: Running,
    port: u16,
}

impl Scene {
    async fn play(database: TestDatabase) -> Self {
        Self::play_as(database, None).await
    }

    /// The program uses the first database as this user, who has the rights that the daemon needs.
    async fn play_as(database: TestDatabase, user: Option<&str>) -> Self {
        let catcher = Catcher::start().await;
        let second = Second::new();
        let top = format!("{OFTEN}\n{MEMORY}\n{}", second.section());
        let relay = format!("connections = {CONNECTIONS}{SOON}{MONITOR}");
        let house = House::build(database, catcher.port(), &top, &relay).await;
        let mut session = Session::on(&house.database.url).await;
        let mut proxy = None;
        if !session.is_sqlite() {
            let link = Proxy::to(&house.database.url).await;
            house.reroute(link.port());
            proxy = Some(link);
        }
        if let Some(user) = user {
            become_user(&house, &mut session, user).await;
        }
        let mut mails = Mails::default();
        session.run("BEGIN").await.unwrap();
        mails.fill(&mut session, "first", ROWS).await;
        session.run("COMMIT").await.unwrap();
        catcher.close_gate();
        let mut command = house.installation.command();
        command.arg("run").env("MAILQUEUE_SHORTEN", "stall:5");
        let daemon = Running::spawn(command);
        let port = port(&daemon).await;
        catcher.wait_at_gate(CONNECTIONS).await;
        until_full(&mut session).await;
        Self { catcher, house, session, proxy, mails, second, daemon, port }
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a server")
    }

    /// The fault is there. What is ready of the first queue may be sent, and the second queue goes on as if nothing were.
    async fn the_second_goes_on(&mut self) {
        self.catcher.open_gate();
        for round in 0..if long() { 100 } else { 5 } {
            self.second.goes_on(&self.catcher, &format!("round{round}")).await;
        }
    }

    /// Another table of the same database.
    async fn the_neighbour_goes_on(&self, name: &str) {
        let to = format!("{name}@example.org");
        self.house.admidio.insert(&mail(&to, "Passwort")).await.expect("INSERT");
        let arrived = || self.catcher.received().iter().any(|mail| mail.recipients[0] == to).then_some(());
        eventually(name, arrived).await;
        until_empty(&self.house.admidio).await;
    }

    /// `/healthz` says 503 with these words, and nothing about the second queue.
    async fn health_says(&self, word: &str) {
        let body = page_with(self.port, "/healthz", word).await;
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(body["status"], "trouble", "{body}");
        assert!(!body["reasons"].to_string().contains(second::NAME), "{body}");
    }

    /// `status` has the counts of the second queue, and of the first the reason why it has none.
    async fn status_names_the_first(&self) {
        let output = self.house.run(&["status", "--json"]).await;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let queue = |name: &str| {
            let queues = status["queues"].as_array().expect("queues");
            queues.iter().find(|queue| queue["name"] == name).expect("the queue").clone()
        };
        assert!(queue("newsletter")["error"].is_string(), "{status}");
        assert!(queue(second::NAME)["error"].is_null() && queue(second::NAME)["waiting"].is_u64(), "{status}");
        assert_eq!(output.status.code(), Some(69), "{status}");
    }

    /// The fault is over: everything has gone out, once, and nothing is left.
    async fn end(self) -> Vec<String> {
        let Self { catcher, house, mails, second, daemon, .. } = self;
        until_empty(&house.newsletter).await;
        let lines = stop(daemon).await;
        assert_eq!(mails.audit(&catcher.received(), &lines), 0, "{}", story(&lines, &["unknown", "WARN"]));
        assert_eq!(second.audit(&catcher.received(), &lines), 0);
        assert_eq!(house.ledger_open(), 0);
        lines
    }
}

/// Waits until as many rows are claimed as there is room for.
async fn until_full(session: &mut Session) {
    let mut before = 0;
    loop {
        let claimed = session.number("SELECT COUNT(*) FROM mailqueue_delivery").await.unwrap();
        if claimed >= IN_FLIGHT && claimed == before {
            return;
        }
        before = claimed;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The configuration's first database is used by a user with the rights that the daemon needs.
async fn become_user(house: &House, session: &mut Session, user: &str) {
    let account = match session {
        Session::MariaDb(_) => format!("'{user}'@'%'"),
        _ => user.to_owned(),
    };
    let password = if matches!(session, Session::MariaDb(_)) { "IDENTIFIED BY" } else { "PASSWORD" };
    session.run(&format!("CREATE USER {account} {password} 'geheim'")).await.unwrap();
    for (table, rights) in [
        ("mailqueue_delivery", "SELECT, INSERT, UPDATE, DELETE"),
        ("mailqueue_recipient", "SELECT, INSERT, UPDATE, DELETE"),
        ("mailqueue_dispatcher", "SELECT, INSERT, UPDATE, DELETE"),
        ("mail_queue", "SELECT, DELETE"),
        ("adm_mail_queue", "SELECT, DELETE"),
    ] {
        session.run(&format!("GRANT {rights} ON {table} TO {account}")).await.unwrap();
    }
    let credentials = |url: &url::Url| format!("{}:{}@", url.username(), url.password().expect("a password"));
    let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
    let text = text.replace(&credentials(&house.database.url), &format!("{user}:geheim@"));
    std::fs::write(house.installation.configuration(), text).unwrap();
}

/// The statements that lock the producers' table, and end that.
fn lock_of(session: &Session) -> (&'static str, &'static str) {
    match session {
        Session::MariaDb(_) => ("LOCK TABLES mail_queue WRITE", "UNLOCK TABLES"),
        Session::Postgres(_) => ("BEGIN; LOCK TABLE mail_queue IN ACCESS EXCLUSIVE MODE", "COMMIT"),
        Session::Sqlite(_) => ("BEGIN EXCLUSIVE", "COMMIT"),
    }
}

async fn a_locked_table_holds_up_its_own_queue_only(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    let mut foreign = Session::on(&scene.house.database.url).await;
    let (lock, unlock) = lock_of(&foreign);
    foreign.run(lock).await.unwrap();
    scene.the_second_goes_on().await;
    if !foreign.is_sqlite() {
        scene.the_neighbour_goes_on("while-locked").await;
    }
    scene.health_says("newsletter").await;
    scene.health_says("while mails wait").await;
    scene.the_second_goes_on().await;
    foreign.run(unlock).await.unwrap();
    scene.end().await;
}

async fn a_frozen_database_holds_up_its_own_queue_only(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    scene.proxy().stall();
    scene.the_second_goes_on().await;
    scene.status_names_the_first().await;
    let check = scene.house.run(&["check"]).await;
    assert_ne!(check.status.code(), Some(0), "{}", said(&check));
    scene.health_says("while mails wait").await;
    scene.proxy().open();
    scene.end().await;
}

async fn a_database_that_is_gone_holds_up_its_own_queue_only(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    scene.proxy().close();
    scene.the_second_goes_on().await;
    scene.status_names_the_first().await;
    scene.health_says("newsletter").await;
    scene.the_second_goes_on().await;
    scene.proxy().open();
    scene.end().await;
}

async fn a_right_to_delete_that_is_lost_holds_up_its_own_queue_only(database: TestDatabase) {
    let user = format!("user_{:08x}", rand::random::<u32>());
    let mut scene = Scene::play_as(database, Some(&user)).await;
    let account = if scene.house.database.url.scheme() == "mysql" { format!("'{user}'@'%'") } else { user };
    scene.session.run(&format!("REVOKE DELETE ON mail_queue FROM {account}")).await.unwrap();
    scene.the_second_goes_on().await;
    scene.the_neighbour_goes_on("while-denied").await;
    scene.daemon.wait_for_line("denied").await;
    // On MariaDB a connection that is there does not see rights on a whole database.
    let what = if scene.house.database.url.scheme() == "mysql" { "*" } else { "mail_queue" };
    scene.session.run(&format!("GRANT DELETE ON {what} TO {account}")).await.unwrap();
    let lines = scene.end().await;
    assert!(lines.iter().any(|line| line.contains("denied") && line.contains("mail_queue")), "{}", lines.join("\n"));
}

async fn a_row_to_which_another_refers_ends_as_not_deleted_and_all_others_go(database: TestDatabase) {
    a_kept_row_is_put_aside(database, Keeper::ForeignKey).await;
}

async fn a_row_whose_deletion_a_trigger_refuses_ends_as_not_deleted_and_all_others_go(database: TestDatabase) {
    a_kept_row_is_put_aside(database, Keeper::Refusal).await;
}

mod single {
    use super::*;
    use crate::support::database;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_row_that_a_trigger_keeps_without_a_word_ends_as_not_deleted() {
        a_kept_row_is_put_aside(database::sqlite(), Keeper::Silence).await;
    }

    mod galera {
        use super::*;
        use crate::support::cluster::Cluster;

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn a_primary_that_becomes_read_only_is_left_for_the_new_one() {
            let cluster = Cluster::start().await;
            let database = cluster.database().await;
            let successor = cluster.url(1, &database);
            // The administrator, whose connection the test uses, may go on writing.
            let user = format!("user_{:08x}", rand::random::<u32>());
            let mut scene = Scene::play_as(database, Some(&user)).await;
            scene.session.run("SET GLOBAL read_only = ON").await.unwrap();
            scene.the_second_goes_on().await;
            scene.daemon.wait_for_line("read-only").await;
            scene.health_says("newsletter").await;
            scene.proxy().lead_to(&successor);
            let lines = scene.end().await;
            assert!(!lines.iter().any(|line| line.contains("not-deleted")), "{}", lines.join("\n"));
        }
    }

    mod postgres {
        use super::*;

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn a_row_that_a_trigger_keeps_without_a_word_ends_as_not_deleted() {
            a_kept_row_is_put_aside(database::postgres().await, Keeper::Silence).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn a_database_that_becomes_read_only_holds_up_its_own_queue_only() {
            let mut scene = Scene::play(database::postgres().await).await;
            let name = scene.house.database.url.path().trim_start_matches('/').to_owned();
            // As after a fail-over, the connections that are there and all new ones can only read.
            let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
            let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
            scene.session.run(&read_only).await.unwrap();
            scene.session.run(all).await.unwrap();
            scene.the_second_goes_on().await;
            scene.daemon.wait_for_line("read-only").await;
            scene.health_says("newsletter").await;
            // The connections that were made meanwhile stay as they are: the program has to make new ones.
            let read_write = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
            scene.session.run(&read_write).await.unwrap();
            let lines = scene.end().await;
            assert!(!lines.iter().any(|line| line.contains("not-deleted")), "{}", lines.join("\n"));
        }
    }
}

async fn a_kept_row_is_put_aside(database: TestDatabase, keeper: Keeper) {
    let mut scene = Scene::play(database).await;
    // It is on the wire.
    let kept = scene.mails.mids().next().expect("a row");
    keeper.keep(&mut scene.session, kept).await;
    scene.the_second_goes_on().await;
    until_left(&scene.house.newsletter, 1).await;
    let row = not_deleted(&scene, kept).await;
    let detail = row.detail.unwrap_or_default();
    assert!(detail.to_lowercase().contains(keeper.word()), "the database's words: `{detail}`");
    assert!(row.next_attempt.is_some(), "the time of the next DELETE");

    // Neither an operator nor a restart sends it, whose recovery finds it like the others.
    scene.house.run(&["retry", &format!("newsletter/{kept}")]).await;
    let mut lines = kill(scene.daemon).await;
    scene.daemon = scene.house.start();
    scene.session.run("BEGIN").await.unwrap();
    scene.mails.fill(&mut scene.session, "later", 20).await;
    scene.session.run("COMMIT").await.unwrap();
    until_left(&scene.house.newsletter, 1).await;
    scene.the_second_goes_on().await;
    not_deleted(&scene, kept).await;
    let deleted = |line: &&String| line.contains("\"deleted\"") && line.contains(&format!("\"newsletter/{kept}\""));
    lines.extend(scene.daemon.lines());
    assert_eq!(lines.iter().find(deleted), None);

    keeper.let_go(&mut scene.session).await;
    scene.end().await;
}

/// The row, which the database keeps.
async fn not_deleted(scene: &Scene, mid: i64) -> mailqueue::queue::Listed {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let row = scene.house.row(&scene.house.newsletter, mid).await.expect("the row is there");
        // While its deletion is tried again, its record may be claimed.
        if row.reason.is_some_and(|reason| reason.as_str() == "not-deleted") {
            assert_eq!(row.state.to_string(), "held", "{row:?}");
            return row;
        }
        assert!(tokio::time::Instant::now() < deadline, "{row:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Bytes of the columns: three times as much is more than all of the memory.
const LARGE: usize = 100_000;

async fn a_large_mail_waits_for_no_other_and_no_other_waits_for_it(database: TestDatabase) {
    // Whose name begins so is waiting for its answer until the end.
    let slow = |mail: &Received| mail.recipients[0].starts_with("slow");
    let hazard = move |step: Step<'_>| match step {
        Step::FinalDot { mail } if slow(mail) => Hazard::Stall,
        _ => Hazard::None,
    };
    let catcher = Catcher::with_hazards(|_| None, hazard).await;
    let mut second = Second::new();
    let top = format!("{OFTEN}\n{MEMORY}\n{}", second.section());
    let relay = format!("connections = {CONNECTIONS}{SOON}");
    let house = House::build(database, catcher.port(), &top, &relay).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    let daemon = house.start();
    let arrived = async |name: &str| {
        let to = format!("{name}@example.org");
        let search = || catcher.received().iter().any(|mail| mail.recipients[0] == to).then_some(());
        eventually(&format!("{to} has its mail"), search).await;
    };

    mails.insert(&mut session, "slow-and-small", 1, None).await;
    arrived("slow-and-small").await;
    large(&mut mails, &mut session, "large").await;
    mails.insert(&mut session, "behind-it", 1, None).await;
    second.goes_on(&catcher, "a-large-mail").await;
    arrived("large").await;
    arrived("behind-it").await;

    large(&mut mails, &mut session, "slow-and-large").await;
    arrived("slow-and-large").await;
    for n in 0..5 {
        let name = format!("while-it-is-on-the-wire-{n}");
        mails.insert(&mut session, &name, 1, None).await;
        arrived(&name).await;
        second.goes_on(&catcher, &name).await;
    }
    until_left(&house.newsletter, 2).await;
    let lines = kill(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    assert_eq!(second.audit(&catcher.received(), &lines), 0);
}

async fn large(mails: &mut Mails, session: &mut Session, name: &str) {
    session.run("BEGIN").await.unwrap();
    let mid = mails.insert(session, name, 1, None).await;
    let body = "QUFB".repeat(LARGE / 4);
    session.run(&format!("UPDATE mail_queue SET mbody = '{body}' WHERE mid = {mid}")).await.unwrap();
    session.run("COMMIT").await.unwrap();
}

async fn a_large_mail_that_cannot_be_settled_keeps_no_large_mail_of_another_queue_from_going_out(
    database: TestDatabase,
) {
    let catcher = Catcher::start().await;
    let mut second = Second::new();
    let top = format!("{OFTEN}\n{MEMORY}\n{}", second.section());
    let house = House::build(database, catcher.port(), &top, &format!("connections = {CONNECTIONS}{SOON}")).await;
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    catcher.close_gate();
    let daemon = house.start();
    large(&mut mails, &mut session, "large").await;
    catcher.wait_at_gate(1).await;
    let mut foreign = Session::on(&house.database.url).await;
    let (lock, unlock) = lock_of(&foreign);
    foreign.run(lock).await.unwrap();
    catcher.open_gate();
    catcher.wait_for(1).await;

    large(&mut Mails::of(second::NAME), &mut Session::on(second.url()).await, "second-large").await;
    let arrived = || catcher.received().iter().any(|mail| mail.recipients[0].starts_with("second-large")).then_some(());
    eventually("the large mail of the second queue", arrived).await;
    foreign.run(unlock).await.unwrap();
    until_empty(&house.newsletter).await;
    second.until_empty("the lock is gone").await;
    stop(daemon).await;
    assert_eq!(catcher.received().len(), 2, "each once");
}
