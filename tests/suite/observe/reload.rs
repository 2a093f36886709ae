//! SIGHUP: what changes, and what does not.

use std::time::Duration;

use rustix::process::Signal;

use super::daemon::{MONITOR, page_with, port};
use crate::support::catcher::Catcher;
use crate::support::database;
use crate::support::house::{House, mail};

fn change(house: &House, from: &str, to: &str) {
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).expect("configuration");
    assert!(text.contains(from), "{text}");
    std::fs::write(&file, text.replace(from, to)).expect("configuration");
}

#[tokio::test]
async fn a_reload_takes_the_logs_settings_and_no_counter_goes_back() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", MONITOR).await;
    house.newsletter.insert(&mail("a@example.org", "x")).await.expect("INSERT");
    let daemon = house.start();
    let delivered =
        |count: u32| format!("mailqueue_rows_settled_total{{fate=\"delivered\",queue=\"newsletter\"}} {count}");
    let port = port(&daemon).await;
    let before = page_with(port, "/metrics", &delivered(1)).await;
    let accepted = "mailqueue_last_accepted_timestamp_seconds ";
    let series = |page: &str, name: &str| page.lines().find(|line| line.starts_with(name)).expect(name).to_owned();

    change(&house, "[log]\n", "[log]\nformat = \"text\"\n");
    daemon.signal(Signal::HUP);
    daemon.wait_for_line(" INFO mailqueue::cli::run: configuration read again").await;
    let after = page_with(port, "/metrics", &delivered(1)).await;
    for name in ["mailqueue_start_time_seconds ", accepted, "mailqueue_attempt_duration_seconds_count"] {
        assert_eq!(series(&after, name), series(&before, name));
    }
    house.newsletter.insert(&mail("b@example.org", "x")).await.expect("INSERT");
    daemon.signal(Signal::USR1);
    page_with(port, "/metrics", &delivered(2)).await;
    let line = daemon.wait_for_line("INFO mailqueue::mail: deleted").await;
    assert!(line.contains("id=newsletter/2"), "{line}");

    change(&house, "format = \"text\"\n", "level = \"error\"\n");
    let until_now = daemon.lines().len();
    daemon.signal(Signal::HUP);
    // It says nothing any more: the mail's arrival shows that it goes on.
    house.newsletter.insert(&mail("c@example.org", "x")).await.expect("INSERT");
    let arrival = async {
        while catcher.received().len() < 3 {
            daemon.signal(Signal::USR1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::support::DEADLINE, arrival).await.expect("the third mail arrives");
    daemon.signal(Signal::TERM);
    let (status, lines) = daemon.wait().await;
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert!(lines[until_now..].iter().all(|line| !line.contains("accepted")), "{lines:#?}");
}

#[tokio::test]
async fn a_queue_that_is_taken_out_leaves_no_count_behind() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", MONITOR).await;
    let daemon = house.start();
    let port = port(&daemon).await;
    page_with(port, "/metrics", "mailqueue_rows{queue=\"admidio\",state=\"waiting\"} 0").await;
    let file = house.installation.configuration();
    let text = std::fs::read_to_string(&file).expect("configuration");
    let (begin, rest) = text.split_once("[[queue]]\nname = \"admidio\"").expect("the second queue");
    let (_, end) = rest.split_once("[log]\n").expect("[log] behind it");
    std::fs::write(&file, format!("{begin}[log]\nformat = \"text\"\n{end}")).expect("configuration");
    daemon.signal(Signal::HUP);
    daemon.wait_for_line("configuration read again").await;
    let page = page_with(port, "/metrics", "mailqueue_rows{queue=\"newsletter\"").await;
    let gauges = ["mailqueue_rows{", "mailqueue_oldest_due_seconds{", "mailqueue_database_up{"];
    let left = page.lines().filter(|line| line.contains("admidio") && gauges.iter().any(|name| line.starts_with(name)));
    assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
}

#[tokio::test]
async fn a_hash_in_the_log_is_the_one_that_trace_shows_and_finds() {
    let catcher = Catcher::start().await;
    let house = House::build(database::sqlite(), catcher.port(), "", "").await;
    change(&house, "addresses = \"full\"", "addresses = \"hash\"");
    house.newsletter.insert(&mail("Anna@example.org", "x")).await.expect("INSERT");
    let output = house.run(&["--log-level", "info", "once"]).await;
    let log = String::from_utf8(output.stderr).expect("UTF-8");
    let accepted = log.lines().find(|line| line.contains("\"recipient accepted\"")).expect("an event");
    let accepted: serde_json::Value = serde_json::from_str(accepted).expect("JSON");
    let hash = accepted["recipients"].as_str().expect("recipients");
    assert_eq!(hash.len(), 32, "{hash}");
    for arguments in
        [["trace", "newsletter/1"].as_slice(), &["trace", "--to", "anna@example.org"], &["trace", "--to", hash]]
    {
        let shown = house.run(arguments).await;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains(&format!("offered to {hash}")), "{arguments:?}: {shown}");
    }
}
