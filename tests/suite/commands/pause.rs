//! The emergency stop, where databases do not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mailqueue::observe::audit;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::{CONFIGURATION, queue, stderr, stdout};
use crate::support::binary::Installation;
use crate::support::{DEADLINE, within_deadline};

/// With the first queue's database on this port.
async fn installation(port: u16) -> Installation {
    let url = format!("mysql://mailqueue@127.0.0.1:{port}/news");
    let installation = Installation::new(&CONFIGURATION.replacen("sqlite:{dir}/queue.sqlite", &url, 1));
    let migrated = installation.run(&["migrate", "--producers", "--queue", "admidio"]).await;
    assert!(migrated.status.success(), "{}", stderr(&migrated));
    std::fs::create_dir(installation.path().join("state")).expect("state_dir");
    installation
}

fn audited(installation: &Installation) -> Vec<String> {
    let changes = audit::changes(&installation.path().join("state")).expect("changes");
    changes.into_iter().map(|change| format!("{} {}", change.target, change.what)).collect()
}

#[tokio::test]
async fn a_database_that_does_not_answer_delays_the_stop_in_no_other() {
    let frozen = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let installation = installation(frozen.local_addr().expect("address").port()).await;
    let given_up = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&given_up);
    let server = tokio::spawn(async move {
        while let Ok((mut client, _)) = frozen.accept().await {
            // Says nothing, as a server that is stopped.
            let _ = client.read_to_end(&mut Vec::new()).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut command = installation.command();
    command.args(["pause", "newsletter", "relay"]).kill_on_drop(true);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().expect("mailqueue");
    let admidio = queue(&installation, "admidio");
    let paused = async {
        while !admidio.paused().await.expect("paused").relay {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    within_deadline("admidio's database has the flag", paused).await;
    assert_eq!(given_up.load(Ordering::SeqCst), 0, "the flag came only after the frozen database was given up");
    server.abort();
    let output =
        tokio::time::timeout(2 * DEADLINE, child.wait_with_output()).await.expect("an end").expect("mailqueue");
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert_eq!(stdout(&output), "relay: paused in the databases of 1 of 2 queues");
    assert_eq!(
        stderr(&output).matches("database of queue newsletter is out of reach").count(),
        2,
        "{}",
        stderr(&output)
    );
    assert_eq!(audited(&installation), ["relay paused"]);
}

#[tokio::test]
async fn a_stop_that_no_database_was_told_of_is_not_audited() {
    let installation = installation(1).await;
    let output = installation.run(&["pause", "newsletter"]).await;
    assert_eq!((output.status.code(), stdout(&output)), (Some(69), ""), "{}", stderr(&output));
    std::fs::rename(installation.path().join("queue.sqlite"), installation.path().join("away")).expect("rename");
    let output = installation.run(&["pause", "relay"]).await;
    assert_eq!((output.status.code(), stdout(&output)), (Some(69), ""), "{}", stderr(&output));
    assert_eq!(audited(&installation), [""; 0]);
    std::fs::rename(installation.path().join("away"), installation.path().join("queue.sqlite")).expect("rename");
    let output = installation.run(&["resume", "relay", "admidio"]).await;
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    let partly = "relay: stays paused: the databases of 1 of 2 queues were told to go on";
    assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), [partly, "admidio: goes on"]);
}
