//! Filters with nothing in them, as from a shell's variable that is not set: they name no rows, and not all of them.

use super::{MAIL, enqueue, installation, objects, stderr, stdout};

#[tokio::test]
async fn an_empty_filter_is_a_usage_error_in_every_command_and_changes_nothing() {
    let installation = installation().await;
    enqueue(&installation, "newsletter", MAIL).await;
    enqueue(&installation, "admidio", MAIL).await;
    for command in [
        &["delete", "--yes"][..],
        &["delete", "--yes", "--queue", "newsletter"],
        &["delete", "--dry-run"],
        &["hold"],
        &["release"],
        &["retry"],
        &["list"],
        &["render", "--out", "out"],
    ] {
        for (option, value) in [
            ("--subject", ""),
            ("--subject", "  "),
            ("--to", ""),
            ("--to", "\t"),
            ("--to", "@"),
            ("--queue", ""),
            ("--state", ""),
            ("--state", "waiting,"),
            ("--reason", ""),
            ("--older-than", ""),
        ] {
            let output = installation.run(&[command, &[option, value]].concat()).await;
            assert_eq!(output.status.code(), Some(2), "{command:?} {option} {value:?}: {}", stdout(&output));
            assert!(stderr(&output).contains(option), "{command:?} {option}: {}", stderr(&output));
        }
    }
    let output = installation.run(&["delete", "--yes", "--subject="]).await;
    assert_eq!(
        stderr(&output).lines().next(),
        Some(
            "error: invalid value '' for '--subject <TEXT>': it is empty, as from a shell's variable that is not set; \
             give a value"
        )
    );
    for arguments in
        [&["trace", "--to", ""][..], &["trace", ""], &["delete", "--yes", ""], &["show", ""], &["pause", ""]]
    {
        assert_eq!(installation.run(arguments).await.status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(objects(&installation.run(&["list", "--json"]).await).len(), 2);
    assert!(!installation.path().join("out").exists());
}
