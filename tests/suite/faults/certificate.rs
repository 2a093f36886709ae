//! A smarthost whose certificate has expired.

use super::{OFTEN, SOON, stop, until_empty};
use crate::support::catcher::Catcher;
use crate::support::database;
use crate::support::front::{Authority, Front};
use crate::support::house::House;
use crate::support::mails::Mails;
use crate::support::session::Session;

#[tokio::test]
async fn an_expired_certificate_pauses_the_relay_until_it_is_renewed() {
    let catcher = Catcher::start().await;
    let front = Front::of(catcher.port()).await;
    let authority = Authority::new();
    front.show(authority.certify(2020));
    let house = House::build(database::sqlite(), front.port(), OFTEN, SOON).await;
    let ca_file = house.installation.path().join("ca.pem");
    std::fs::write(&ca_file, &authority.pem).unwrap();
    let text = std::fs::read_to_string(house.installation.configuration()).unwrap();
    let text = text.replace("tls = \"none\"", &format!("tls = \"implicit\"\nca_file = {ca_file:?}"));
    std::fs::write(house.installation.configuration(), text).unwrap();
    let mut session = Session::on(&house.database.url).await;
    let mut mails = Mails::default();
    mails.fill(&mut session, "n", 20).await;

    let daemon = house.start();
    let line = daemon.wait_for_line("relay down").await;
    assert!(line.contains("certificate") && line.contains("expired"), "{line}");
    // The file that `status` reads is written within a second.
    let status = async || house.run(&["status"]).await.stdout;
    while !String::from_utf8_lossy(&status().await).contains("expired") {
        assert!(!daemon.lines().iter().any(|line| line.contains("up again")), "{}", daemon.lines().join("\n"));
    }
    let rows = house.rows(&house.newsletter).await;
    assert!(rows.len() == 20 && rows.iter().all(|row| row.history.attempts == 0), "{rows:?}");
    assert!(catcher.received().is_empty());

    front.show(authority.certify(2090));
    until_empty(&house.newsletter).await;
    let lines = stop(daemon).await;
    assert_eq!(mails.audit(&catcher.received(), &lines), 0);
    assert!(lines.iter().any(|line| line.contains("relay up again")), "{}", lines.join("\n"));
}
