//! Repairs on the way from row to mail: told in the log, in `show` and, after the row is gone, in `trace`.

use serde_json::Value;

use crate::support::catcher::Catcher;
use crate::support::database;
use crate::support::house::{House, row, said};

#[tokio::test]
async fn a_repair_is_in_the_log_and_in_trace_after_the_row_is_gone() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).expect("configuration");
    std::fs::write(&file, text.replace("addresses = \"full\"", "addresses = \"domain\"")).expect("configuration");
    let headers =
        "From: n@example.at\r\nX-Note: J\u{f6}rg\r\nanna.berger ruft an\r\nMessage-ID: kaputt <anna@example.org>\r\n";
    house.newsletter.insert(&row("lea@example.org", "x", "y", headers)).await.expect("INSERT");
    let shown = said(&house.run(&["show", "newsletter/1"]).await);
    assert!(shown.contains("Repaired on the way\n") && shown.contains("`kaputt <anna@example.org>`"), "{shown}");

    let output = house.run(&["--log-level", "info", "once"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let events: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let repaired: Vec<&Value> = events.iter().filter(|event| event["message"] == "repaired").collect();
    let [event] = repaired[..] else { panic!("{log}") };
    assert_eq!((&event["level"], &event["id"]), (&"INFO".into(), &"newsletter/1".into()));
    let repairs = event["repairs"].as_str().expect("text");
    assert!(repairs.contains("X-Note held raw 8-bit text") && repairs.contains("\u{2026}@example.org"), "{repairs}");
    assert!(!log.contains("anna@example.org"), "addresses are shown as [log] says: {log}");

    let told = said(&house.run(&["trace", "newsletter/1"]).await);
    let line = told.lines().find(|line| line.contains("repaired on the way: ")).unwrap_or_else(|| panic!("{told}"));
    for label in ["header-encoded (X-Note)", "header-dropped (mheaders)", "header-dropped (Message-ID)"] {
        assert!(line.contains(label), "{line}");
    }
    assert!(!line.contains("anna"), "nothing of the row's text is kept: {line}");
    let object: Value =
        serde_json::from_slice(&house.run(&["trace", "newsletter/1", "--json"]).await.stdout).expect("JSON");
    assert!(object["repairs"].as_array().is_some_and(|repairs| repairs.contains(&"header-encoded (X-Note)".into())));
}
