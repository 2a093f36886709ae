//! A database that is out of reach keeps no command from the rows of the others.

use super::{CONFIGURATION, MAIL, enqueue, stderr, stdout};
use crate::support::binary::Installation;

/// The first queue's database is out of reach, and the other has two rows.
async fn installation() -> Installation {
    let installation = Installation::new(&CONFIGURATION.replacen(
        "sqlite:{dir}/queue.sqlite",
        "mysql://mailqueue@127.0.0.1:1/news",
        1,
    ));
    let migrated = installation.run(&["migrate", "--producers"]).await;
    assert_eq!(migrated.status.code(), Some(69), "{}", stderr(&migrated));
    assert!(stdout(&migrated).contains("admidio: created the producers' table"), "{}", stdout(&migrated));
    std::fs::create_dir(installation.path().join("state")).expect("state_dir");
    for _ in 0..2 {
        let enqueued = enqueue(&installation, "admidio", MAIL).await;
        assert!(enqueued.status.success(), "{}", stderr(&enqueued));
    }
    installation
}

#[tokio::test]
async fn every_command_goes_on_with_the_other_queues_and_ends_with_69() {
    let installation = installation().await;
    for (arguments, told) in [
        (&["list"][..], "admidio/2"),
        (&["list", "--json"], "\"admidio/2\""),
        (&["render", "--all", "--out", "out"], "2 mails written to out"),
        (&["hold", "--dry-run", "--state", "waiting"], "admidio/1: would be held\nadmidio/2: would be held"),
        (&["hold", "--state", "waiting"], "admidio/1: held\nadmidio/2: held"),
        (&["release", "--state", "held"], "admidio/1: released\nadmidio/2: released"),
        (&["retry", "--state", "deferred"], "admidio/1: due now\nadmidio/2: due now"),
        (&["retry", "newsletter/1", "admidio/1"], "admidio/1: due now"),
        (&["delete", "--yes", "--state", "deferred"], "admidio/1: deleted\nadmidio/2: deleted"),
        (&["delete", "--yes", "--state", "deferred"], ""),
        (&["migrate"], "admidio: our tables are up to date"),
    ] {
        let output = installation.run(arguments).await;
        assert_eq!(output.status.code(), Some(69), "{arguments:?}: {}", stderr(&output));
        assert!(stdout(&output).contains(told), "{arguments:?}: {}", stdout(&output));
        let error = "mailqueue: database of queue newsletter is out of reach: ";
        assert_eq!(stderr(&output).matches(error).count(), 1, "{arguments:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn trace_says_that_it_does_not_know_all_where_a_database_is_out_of_reach() {
    let installation = installation().await;
    // A pass makes a ledger.
    assert_eq!(installation.run(&["once"]).await.status.code(), Some(69));
    for arguments in [&["trace", "newsletter/1"][..], &["trace", "--to", "nobody@example.org"]] {
        let output = installation.run(arguments).await;
        assert_eq!(output.status.code(), Some(69), "{arguments:?}: {}", stderr(&output));
        let error = "mailqueue: what stands in the table is not known: database of queue newsletter is out of reach: ";
        assert!(stderr(&output).starts_with(error), "{}", stderr(&output));
        assert_eq!(stdout(&output), "", "nothing is known to be unknown");
    }
    assert_eq!(installation.run(&["trace", "admidio/99"]).await.status.code(), Some(1));
}
