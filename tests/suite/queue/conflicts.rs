//! Two nodes of a cluster that want the same rows: each commits by itself, and one of them is told afterwards that it
//! may not, with the word of a deadlock (Galera's certification).

use std::collections::HashSet;
use std::time::Duration;

use super::claims::bulk;
use super::place::*;
use mailqueue::queue::{Found, Queue, Settled};

use crate::support::DEADLINE;
use crate::support::cluster::Cluster;

/// Rows of a round, and the most rounds.
const ROWS: usize = 50;
const ROUNDS: usize = 100;

mod galera {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_nodes_that_want_the_same_rows_never_both_get_one() {
        super::two_nodes_that_want_the_same_rows_never_both_get_one().await;
    }
}

async fn two_nodes_that_want_the_same_rows_never_both_get_one() {
    let cluster = Cluster::start().await;
    let database = cluster.database().await;
    let urls = [0, 1].map(|node| cluster.url(node, &database));
    let place = Place::on(database).await;
    let queues = ["a", "b"].map(|name| {
        let url = urls[usize::from(name == "b")].clone();
        place.queue_on(url, TABLE, name)
    });
    let mut sessions = [Session::on(&urls[0]).await, Session::on(&urls[1]).await];
    let (mut won, mut conflicts, mut rounds) = ([0, 0], 0, 0);
    while rounds < ROUNDS && (conflicts == 0 || won.contains(&0)) {
        rounds += 1;
        bulk(&place, ROWS).await;
        let found = [all_found(&queues[0]).await, all_found(&queues[1]).await];
        let (a, b) = tokio::join!(queues[0].claim(&found[0], at(0)), queues[1].claim(&found[1], at(0)));
        let (a, b) = (a.expect("a conflict is no error"), b.expect("a conflict is no error"));
        let mids: HashSet<_> = a.iter().chain(&b).map(|claim| claim.id().mid).collect();
        assert_eq!((a.len() + b.len(), mids.len()), (ROWS, ROWS), "each row is one dispatcher's, and none is nobody's");
        won = [won[0] + a.len(), won[1] + b.len()];
        let settle = async |queue: &Queue, claims| {
            let rows = queue.load(claims).await.unwrap();
            let group: Vec<_> = rows.into_iter().map(|row| settlement(row, delivered())).collect();
            assert!(queue.settle(&group, RETRY).await.unwrap().iter().all(|(_, settled)| *settled == Settled::Done));
        };
        tokio::join!(settle(&queues[0], a), settle(&queues[1], b));
        conflicts = told_apart(&mut sessions).await;
    }
    println!("{rounds} rounds of {ROWS} rows, {conflicts} conflicts, claimed by each: {won:?}");
    assert!(conflicts > 0, "no conflict in {ROUNDS} rounds");
    all_gone(&mut place.session().await).await;
}

/// A node learns of what another has deleted a moment later too.
async fn all_gone(session: &mut Session) {
    let gone = async {
        while session.number(&format!("SELECT COUNT(*) FROM {TABLE}")).await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("every row is deleted at every node");
}

/// A node learns of a row a moment after another has committed it.
async fn all_found(queue: &Queue) -> Vec<Found> {
    let found = async {
        loop {
            let found = queue.find(i64::MIN, 2 * ROWS as u32).await.unwrap();
            if found.len() == ROWS {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, found).await.expect("all rows reach the other node")
}

/// How many transactions were refused or rolled back because another node's came first.
async fn told_apart(sessions: &mut [Session]) -> i64 {
    let mut conflicts = 0;
    for session in sessions {
        let sql = "SELECT CAST(SUM(VARIABLE_VALUE) AS SIGNED) FROM information_schema.GLOBAL_STATUS \
                   WHERE VARIABLE_NAME IN ('wsrep_local_cert_failures', 'wsrep_local_bf_aborts')";
        conflicts += session.number(sql).await;
    }
    conflicts
}
