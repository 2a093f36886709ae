//! Alert rules and metrics, as Prometheus' own tool judges them.

/// Needs the program `promtool`, of Debian's package `prometheus`.
mod promtool {
    use std::io::Write;
    use std::process::{Command, Output, Stdio};

    use jiff::Timestamp;
    use mailqueue::dispatch::Counters;
    use mailqueue::observe::health::{Queue, Rows};
    use mailqueue::observe::metrics::Metrics;
    use mailqueue::telemetry::Sample;

    use crate::observe::fake::lane;
    use crate::support::variable;

    fn promtool(arguments: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(variable("MAILQUEUE_TEST_PROMTOOL"));
        command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("promtool");
        child.stdin.take().expect("pipe").write_all(input).expect("write");
        child.wait_with_output().expect("promtool")
    }

    fn assert_content(output: &Output) {
        let said = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
        assert!(output.status.success(), "{said}");
    }

    fn metrics() -> String {
        let counters = Counters::default();
        counters.expect_queue("newsletter");
        let metrics = Metrics::new(counters.collectors(), Timestamp::now()).unwrap();
        metrics.counted(&Queue { rows: Some(Rows::default()), ..Queue::uncounted("newsletter") });
        let sample = Sample { lanes: vec![lane("newsletter")], ..Sample::default() };
        String::from_utf8(metrics.text(&sample, None).unwrap()).unwrap()
    }

    #[test]
    fn finds_nothing_to_say_against_the_metrics() {
        let output = promtool(&["check", "metrics"], metrics().as_bytes());
        assert_content(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }

    #[test]
    fn takes_the_alert_rules() {
        assert_content(&promtool(&["check", "rules", "--lint-fatal", "config/alerts.yml"], b""));
    }

    #[test]
    fn sees_each_alert_fire_when_it_should_and_not_before() {
        assert_content(&promtool(&["test", "rules", "tests/suite/observe/alerts.yml"], b""));
    }

    #[test]
    fn the_alert_rules_ask_for_metrics_that_there_are() {
        let rules = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/alerts.yml")).unwrap();
        let text = metrics();
        // Families without labels of a queue have no series until something happens: the help line has their name.
        let known = |name: &str| text.contains(&format!("# TYPE {name} ")) || name == "mailqueue_transactions_total";
        let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<&str> = words.filter(|word| word.starts_with("mailqueue_")).collect();
        assert!(names.len() > 10);
        let unknown: Vec<_> = names.into_iter().filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?} in\n{text}");
    }
}
