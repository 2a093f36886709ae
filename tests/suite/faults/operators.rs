//! Rows that change while an operator makes up their mind.

use std::process::Stdio;
use std::time::Duration;

use mailqueue::outcome::State;
use mailqueue::queue::Action;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::catcher::{Catcher, Step};
use crate::support::database;
use crate::support::house::{House, mail};

mod mariadb {
    use mailqueue::observe::audit;

    use super::*;
    use crate::support::house::said;
    use crate::support::session::Session;

    #[tokio::test]
    async fn what_was_deleted_before_an_error_is_said_and_audited() {
        const ROWS: usize = 70;
        // Rows of one transaction.
        const GROUP: usize = 64;
        let house = House::build(database::mariadb().await, 1, "", "").await;
        std::fs::create_dir(house.installation.path().join("state")).unwrap();
        let mut mids = Vec::new();
        for n in 0..ROWS {
            mids.push(house.newsletter.insert(&mail(&format!("n{n}@example.org"), "x")).await.unwrap());
        }
        let mut foreign = Session::on(&house.database.url).await;
        foreign.run("BEGIN").await.unwrap();
        foreign.run(&format!("SELECT mid FROM mail_queue WHERE mid >= {} FOR UPDATE", mids[GROUP])).await.unwrap();
        // Several lock waits of 5 s.
        let mut command = house.installation.command();
        let output = command.args(["delete", "--yes", "--queue", "newsletter"]).output().await.unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.matches(": deleted\n").count(), GROUP, "{said}");
        assert!(said.contains("left alone: another transaction keeps it locked ("), "{said}");
        assert!(said.contains("\nmailqueue: database of queue newsletter: "), "{said}");
        let changes = audit::changes(&house.installation.path().join("state")).unwrap();
        let deleted: Vec<_> = changes.into_iter().flat_map(|change| change.mids).collect();
        assert_eq!(deleted, mids[..GROUP]);
        foreign.run("COMMIT").await.unwrap();
        assert_eq!(house.rows(&house.newsletter).await.len(), ROWS - GROUP);
    }
}

#[tokio::test]
async fn rows_that_change_while_delete_asks_are_not_deleted() {
    let catcher = Catcher::with_script(|step| match step {
        Step::Rcpt { .. } => Some("550 5.1.1 nobody".to_owned()),
        _ => None,
    })
    .await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let mut mids = Vec::new();
    for n in 0..3 {
        mids.push(house.newsletter.insert(&mail(&format!("n{n}@example.org"), "x")).await.unwrap());
    }
    assert_eq!(house.once().await, 1);
    let replaced = house.newsletter.insert(&mail("old@example.org", "x")).await.unwrap();

    // A terminal to answer on.
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = std::fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut command = house.installation.command();
    command.args(["delete", "--state", "failed,waiting"]).stdin(Stdio::from(end)).kill_on_drop(true);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut asked = Vec::new();
    let mut stderr = child.stderr.take().unwrap();
    while !String::from_utf8_lossy(&asked).contains("[y/N]") {
        let read = tokio::time::timeout(Duration::from_secs(30), stderr.read_buf(&mut asked)).await.unwrap().unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&asked));
    }
    assert!(String::from_utf8_lossy(&asked).contains("Delete 4 rows"), "{}", String::from_utf8_lossy(&asked));

    house.newsletter.apply(&Action::Retry, &[mids[0].into()], jiff::Timestamp::now()).await.unwrap();
    let mut producer = house.connect().await;
    let gone = format!("DELETE FROM mail_queue WHERE mid = {replaced}");
    sqlx::query(sqlx::AssertSqlSafe(gone)).execute(&mut producer).await.unwrap();
    house.insert_as(&mut producer, replaced, &mail("new@example.org", "x")).await;

    let mut answer = tokio::fs::File::from_std(std::fs::File::from(terminal));
    answer.write_all(b"y\n").await.unwrap();
    answer.flush().await.unwrap();
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("left alone: it changed meanwhile").count(), 2, "{said}");
    assert_eq!(house.row(&house.newsletter, mids[0]).await.unwrap().state, State::Deferred);
    assert_eq!(house.row(&house.newsletter, replaced).await.unwrap().state, State::Waiting);
    assert_eq!(house.rows(&house.newsletter).await.len(), 2, "{said}");
}
