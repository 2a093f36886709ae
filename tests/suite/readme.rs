//! The README says what is so: its commands exist, its emergency stop works as it is written, its metrics are those that
//! there are.

use std::collections::BTreeSet;

use jiff::Timestamp;
use mailqueue::dispatch::Counters;
use mailqueue::mail::RepairCode;
use mailqueue::observe::metrics::Metrics;
use mailqueue::telemetry::Sample;

use crate::support::binary::Installation;
use crate::support::database;
use crate::support::house::{House, mail, said};

const README: &str = include_str!("../../README.md");

/// The lines between fences.
fn code() -> impl Iterator<Item = &'static str> {
    README.split("```").skip(1).step_by(2).flat_map(str::lines)
}

/// The words of a command line behind `mailqueue`, as a shell takes them apart.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.trim_start().trim_start_matches("$ ").trim_start_matches("sudo ");
    let line = line.trim_start_matches("CREDENTIALS_DIRECTORY=/etc/mailqueue ").strip_prefix("mailqueue ")?;
    let parts = line.split('\'').enumerate();
    let words = parts.flat_map(|(number, part)| match number % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    Some(words.take_while(|word| word != "#").collect())
}

#[tokio::test]
async fn every_command_in_the_readme_exists_with_its_options() {
    let installation = Installation::new("");
    let commands: Vec<_> = code().filter_map(words).collect();
    assert!(commands.len() > 10, "{commands:?}");
    for command in commands {
        let help = installation.run(&[&command[0], "--help"]).await;
        assert!(help.status.success(), "mailqueue {}: {}", command.join(" "), said(&help));
        for option in command.iter().filter(|word| word.starts_with("--")) {
            assert!(said(&help).contains(option.as_str()), "mailqueue {}: no {option}", command.join(" "));
        }
    }
}

#[tokio::test]
async fn the_emergency_stop_works_as_it_is_written() {
    let house = House::build(database::sqlite(), 1, "", "").await;
    for subject in ["Einladung zum Fest", "Protokoll"] {
        house.newsletter.insert(&mail("a@example.org", subject)).await.expect("INSERT");
    }
    let stop: Vec<_> = README
        .split("A newsletter with an error in it is going out:")
        .nth(1)
        .and_then(|behind| behind.split("```").nth(1))
        .expect("its commands")
        .lines()
        .filter_map(words)
        .collect();
    assert_eq!(stop.len(), 2, "{stop:?}");
    for command in stop {
        let words: Vec<_> = command.iter().map(String::as_str).collect();
        let output = house.run(&words).await;
        assert!(output.status.success(), "{words:?}: {}", said(&output));
    }
    let status = house.run(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let newsletter = &status["queues"][0];
    assert_eq!(
        (&newsletter["paused"], &newsletter["held"], &newsletter["waiting"]),
        (&true.into(), &1.into(), &1.into())
    );
}

#[test]
fn the_metrics_in_the_readme_are_those_that_there_are() {
    let counters = Counters::default();
    counters.expect_queue("newsletter");
    let metrics = Metrics::new(counters.collectors(), Timestamp::now()).expect("metrics");
    let families = |text: &str| {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words.filter(|word| word.starts_with("mailqueue_")).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let text = String::from_utf8(metrics.text(&Sample::default(), None).expect("text")).expect("UTF-8");
    let types = text.lines().filter(|line| line.starts_with("# TYPE ")).collect::<Vec<_>>().join("\n");
    let table = README.split("| metric | labels | is |").nth(1).expect("the table");
    let told = families(table.split("\n\n").next().expect("its lines"));
    let unknown: Vec<_> = families(&types).difference(&told).cloned().collect();
    assert_eq!(unknown, [""; 0], "the README does not name them");
    // Families with labels have no series, and no line, before something happens.
    for name in told.difference(&families(&types)) {
        let source = [include_str!("../../src/observe/metrics.rs"), include_str!("../../src/dispatch/counters.rs")];
        assert!(source.iter().any(|source| source.contains(&format!("\"{name}\""))), "there is no {name}");
    }
}

#[test]
fn every_code_of_a_repair_is_in_the_readme_and_no_other() {
    let table = README.split("| code | what the mail has otherwise than its row |").nth(1).expect("the table");
    let lines = table.split("\n\n").next().expect("its lines").lines().filter(|line| line.starts_with("| `"));
    let told: BTreeSet<&str> = lines.filter_map(|line| line.split('`').nth(1)).collect();
    assert_eq!(told, RepairCode::ALL.into_iter().map(RepairCode::as_str).collect());
}
