//! Old numbers on new mails, and hands that are not ours in the tables, while a mail is on the wire.

use std::time::Duration;

use mailqueue::outcome::{Reason, State};

use super::{OFTEN, SOON, stop, until_empty, until_left};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::house::House;
use crate::support::mails::Mails;
use crate::support::session::Session;

on_every_database!(
    a_new_mail_under_the_number_of_one_on_the_wire_goes_out_too,
    numbers_that_begin_anew_while_mails_are_on_the_wire_confuse_nothing,
    a_row_that_is_changed_on_the_wire_goes_out_as_it_was_and_as_it_is,
    a_row_that_is_deleted_on_the_wire_leaves_nothing_behind,
    a_table_that_is_dropped_and_made_anew_is_served_without_a_restart,
    a_column_that_is_missing_is_reported_and_its_return_noticed,
);

mod server {
    use super::*;

    on_every_server!(a_locked_table_is_waited_for, a_restored_dump_is_held);

    async fn a_locked_table_is_waited_for(database: TestDatabase) {
        let Scene { catcher, house, mut session, mut mails, daemon } = Scene::play(database).await;
        catcher.wait_at_gate(1).await;
        let mut foreign = Session::on(&house.database.url).await;
        match foreign {
            Session::MariaDb(_) => foreign.run("LOCK TABLES mail_queue WRITE").await.unwrap(),
            _ => foreign.run("BEGIN; LOCK TABLE mail_queue").await.unwrap(),
        }
        catcher.open_gate();
        catcher.wait_for(1).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(foreign);
        mails.fill(&mut session, "later", 5).await;
        until_empty(&house.newsletter).await;
        assert_eq!(mails.audit(&catcher.received(), &stop(daemon).await), 0);
    }

    async fn a_restored_dump_is_held(database: TestDatabase) {
        let Scene { catcher, house, mut session, mut mails, daemon } = Scene::play(database).await;
        catcher.open_gate();
        until_empty(&house.newsletter).await;
        let mids: Vec<_> = mails.mids().collect();
        let mut dump = Mails::default();
        for mid in &mids {
            dump.insert(&mut session, "on-the-wire", 1, Some(*mid)).await;
        }
        mails.insert(&mut session, "new", 1, None).await;
        until_left(&house.newsletter, mids.len()).await;
        eventually("the new mail", || Some(()).filter(|()| catcher.received().len() > mids.len())).await;
        let lines = stop(daemon).await;
        assert_eq!(mails.audit(&catcher.received(), &lines), 0);
        for row in house.rows(&house.newsletter).await {
            assert_eq!((row.state, row.reason), (State::Held, Some(Reason::AlreadyAccepted)));
        }
    }
}

/// A mail for `on-the-wire@example.org` waits for the answer to its dot.
struct Scene {
    catcher: Catcher,
    house: House,
    session: Session,
    mails: Mails,
    daemon: Running,
}

impl Scene {
    async fn play(database: TestDatabase) -> Self {
        let catcher = Catcher::start().await;
        let house = House::build(database, catcher.port(), OFTEN, SOON).await;
        let mut session = Session::on(&house.database.url).await;
        let mut mails = Mails::default();
        catcher.close_gate();
        mails.insert(&mut session, "on-the-wire", 1, None).await;
        let daemon = house.start();
        catcher.wait_at_gate(1).await;
        Self { catcher, house, session, mails, daemon }
    }

    /// Everything has gone out, once, and nothing is left.
    async fn end(self) {
        self.catcher.open_gate();
        let Self { catcher, house, mut session, mails, daemon } = self;
        until_empty(&house.newsletter).await;
        eventually("all mails", || Some(()).filter(|()| catcher.received().len() >= mails.len())).await;
        let lines = stop(daemon).await;
        assert_eq!(mails.audit(&catcher.received(), &lines), 0);
        assert_eq!(house.ledger_open(), 0);
        assert_eq!(house.once().await, 0, "one more pass sweeps what stands for nothing");
        assert_eq!(session.number("SELECT COUNT(*) FROM mailqueue_delivery").await.unwrap(), 0);
    }
}

async fn a_new_mail_under_the_number_of_one_on_the_wire_goes_out_too(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    let mid = scene.mails.mids().next().unwrap();
    scene.session.run(&format!("DELETE FROM mail_queue WHERE mid = {mid}")).await.unwrap();
    scene.mails.insert(&mut scene.session, "new", 1, Some(mid)).await;
    scene.end().await;
}

async fn numbers_that_begin_anew_while_mails_are_on_the_wire_confuse_nothing(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    let sql = match scene.session {
        Session::MariaDb(_) => "TRUNCATE TABLE mail_queue",
        Session::Postgres(_) => "TRUNCATE TABLE mail_queue RESTART IDENTITY",
        Session::Sqlite(_) => "DELETE FROM mail_queue; DELETE FROM sqlite_sequence",
    };
    scene.session.run(sql).await.unwrap();
    scene.mails.fill(&mut scene.session, "new", 5).await;
    let mids: Vec<_> = scene.mails.mids().collect();
    assert_eq!(mids[0], mids[1], "the number stands on another mail");
    scene.end().await;
}

async fn a_row_that_is_changed_on_the_wire_goes_out_as_it_was_and_as_it_is(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    let mid = scene.mails.mids().next().unwrap();
    // b3RoZXJAZXhhbXBsZS5vcmc= is other@example.org.
    let sql = format!("UPDATE mail_queue SET mto = 'b3RoZXJAZXhhbXBsZS5vcmc=' WHERE mid = {mid}");
    scene.session.run(&sql).await.unwrap();
    scene.catcher.open_gate();
    let all = scene.catcher.wait_for(2).await;
    assert_eq!(all[1].recipients, ["other@example.org"]);
    scene.end().await;
}

async fn a_row_that_is_deleted_on_the_wire_leaves_nothing_behind(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    scene.session.run("DELETE FROM mail_queue").await.unwrap();
    scene.catcher.open_gate();
    scene.daemon.wait_for_line("the row was changed or deleted by somebody else").await;
    scene.mails.fill(&mut scene.session, "later", 3).await;
    scene.end().await;
}

async fn a_table_that_is_dropped_and_made_anew_is_served_without_a_restart(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    scene.catcher.open_gate();
    until_empty(&scene.house.newsletter).await;
    scene.session.run("DROP TABLE mail_queue").await.unwrap();
    scene.daemon.wait_for_line("nothing of this queue is sent").await;
    assert!(scene.house.run(&["migrate", "--producers"]).await.status.success());
    scene.mails.fill(&mut scene.session, "anew", 5).await;
    scene.daemon.wait_for_line("the database is back").await;
    scene.end().await;
}

async fn a_column_that_is_missing_is_reported_and_its_return_noticed(database: TestDatabase) {
    let mut scene = Scene::play(database).await;
    // While a mail is on the wire, whose deletion compares this column.
    scene.session.run("ALTER TABLE mail_queue RENAME COLUMN mbody TO mtext").await.unwrap();
    scene.catcher.open_gate();
    let line = scene.daemon.wait_for_line("nothing of this queue is sent").await;
    assert!(line.contains("mbody"), "{line}");
    scene.session.run("ALTER TABLE mail_queue RENAME COLUMN mtext TO mbody").await.unwrap();
    scene.mails.fill(&mut scene.session, "later", 5).await;
    scene.end().await;
}
