//! What became of a mail, when it is hard to write down.

use std::os::unix::process::ExitStatusExt;

use mailqueue::outcome::{Reason, State};

use super::{OFTEN, SOON, kill, stop};
use crate::support::binary::Running;
use crate::support::catcher::Catcher;
use crate::support::database::TestDatabase;
use crate::support::house::{House, mail};

on_every_database!(a_row_whose_second_dispatcher_dies_too_is_still_of_unknown_outcome);

async fn a_row_whose_second_dispatcher_dies_too_is_still_of_unknown_outcome(database: TestDatabase) {
    let catcher = Catcher::start().await;
    let top = format!("{OFTEN}\nlease = \"3s\"");
    let house = House::build(database, catcher.port(), &top, "on_unknown = \"hold\"").await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
    catcher.close_gate();
    let first = house.start();
    catcher.wait_at_gate(1).await;
    kill(first).await;
    catcher.open_gate();
    catcher.wait_for(1).await;

    // The second has taken the row over, and dies before it could write that down.
    let neighbour = house.neighbour();
    let mut command = neighbour.command();
    command.arg("run").env("MAILQUEUE_FAIL_AT", "in-settle:1");
    let (status, lines) = Running::spawn(command).wait().await;
    assert_eq!(status.signal(), Some(9), "{}", lines.join("\n"));
    let second = neighbour.start(&["run"]);
    second.wait_for_line("\"held\"").await;
    let rows = house.rows(&house.newsletter).await;
    assert_eq!((rows[0].state, rows[0].reason), (State::Held, Some(Reason::OutcomeUnknown)), "{rows:?}");
    stop(second).await;
    assert_eq!(catcher.received().len(), 1);
}

mod single {
    use super::*;

    mod mariadb {
        use super::*;
        use crate::faults::until_empty;
        use crate::support::database;
        use crate::support::session::Session;
        use crate::support::variable;

        #[tokio::test]
        async fn a_right_to_delete_that_is_taken_away_is_told_as_what_it_is() {
            let catcher = Catcher::start().await;
            let database = database::mariadb().await;
            let mut root = Session::on(&variable("MAILQUEUE_TEST_MARIADB").parse().unwrap()).await;
            let name = database.url.path().trim_start_matches('/').to_owned();
            let user = format!("u{}", &name[5..]);
            let house = House::build(database, catcher.port(), OFTEN, SOON).await;
            root.run(&format!("CREATE USER {user}@'%'")).await.unwrap();
            // Rights on a table count from the next statement on, those on a database from the next connection.
            for (table, more) in [
                ("mailqueue_delivery", ", INSERT, UPDATE"),
                ("mailqueue_recipient", ", INSERT, UPDATE"),
                ("mailqueue_dispatcher", ", INSERT, UPDATE"),
                ("mail_queue", ""),
                ("adm_mail_queue", ""),
            ] {
                root.run(&format!("GRANT SELECT, DELETE{more} ON {name}.{table} TO {user}@'%'")).await.unwrap();
            }
            let mut url = house.database.url.clone();
            url.set_password(None).unwrap();
            url.set_username(&user).unwrap();
            let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
            let text = text.replace(house.database.url.as_str(), url.as_str());
            std::fs::write(house.installation.configuration(), text).unwrap();

            catcher.close_gate();
            house.newsletter.insert(&mail("a@example.org", "x")).await.unwrap();
            let daemon = house.start();
            catcher.wait_at_gate(1).await;
            root.run(&format!("REVOKE DELETE ON {name}.mail_queue FROM {user}@'%'")).await.unwrap();
            catcher.open_gate();
            let line = daemon.wait_for_line("not-deleted").await;
            assert!(line.contains("DELETE") && line.contains("denied"), "{line}");
            house.newsletter.insert(&mail("b@example.org", "x")).await.unwrap();
            catcher.wait_for(2).await;
            let lines = daemon.lines();
            assert!(!lines.iter().any(|line| line.contains("nothing of this queue is sent")), "{}", lines.join("\n"));
            root.run(&format!("GRANT DELETE ON {name}.mail_queue TO {user}@'%'")).await.unwrap();
            until_empty(&house.newsletter).await;
            stop(daemon).await;
            assert_eq!(catcher.received().len(), 2);
        }
    }
}
