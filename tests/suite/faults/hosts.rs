//! More than one machine: a cluster of databases with a dispatcher at each node, and machines that die.

use std::collections::HashSet;

use futures_util::future::join_all;

use super::{OFTEN, SOON, kill, stop, story, until_released_and_empty};
use crate::support::DEADLINE;
use crate::support::binary::Installation;
use crate::support::catcher::Catcher;
use crate::support::cluster::Cluster;
use crate::support::house::House;
use crate::support::mails::Mails;
use crate::support::session::Session;

const CONNECTIONS: usize = 4;

mod galera {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn machines_that_die_lose_nothing_and_repeat_only_what_was_under_way() {
        super::machines_that_die_lose_nothing_and_repeat_only_what_was_under_way().await;
    }
}

async fn machines_that_die_lose_nothing_and_repeat_only_what_was_under_way() {
    let rows = 5_000;
    let mut cluster = Cluster::start().await;
    let database = cluster.database().await;
    let urls = [0, 1, 2].map(|node| cluster.url(node, &database));
    let catcher = Catcher::start().await;
    let top = format!("{OFTEN}\nlease = \"3s\"");
    let house = House::build(database, catcher.port(), &top, &format!("connections = {CONNECTIONS}{SOON}")).await;
    let mut sessions = join_all(urls.iter().map(Session::on)).await;
    let mut mails = Mails::default();
    mails.add(fill(&mut sessions, "before", rows / 2).await);

    let hosts: Vec<Installation> = urls.iter().map(|url| at(&house, url.as_str())).collect();
    let [first, second, third] = [0, 1, 2].map(|host: usize| hosts[host].start(&["--log-level", "info", "run"]));
    catcher.wait_for(rows / 10).await;
    // Else there would be nothing of it to take over.
    third.wait_for_line("\"recipient accepted\"").await;

    // A machine dies, with its node and its dispatcher. The others go on once they have agreed that it is gone.
    cluster.kill(2);
    let lost = kill(third).await;
    sessions.truncate(2);
    until_two_are_left(&mut sessions[0]).await;
    mails.add(fill(&mut sessions, "after", rows / 2).await);

    // A dispatcher dies, and comes back with its ledger.
    let mut lines = kill(second).await;
    let second = hosts[1].start(&["--log-level", "info", "run"]);
    until_released_and_empty(&house.newsletter).await;
    lines.extend(stop(first).await);
    lines.extend(stop(second).await);
    assert!(lines.iter().any(|line| line.contains("took over")), "nobody took the dead dispatcher's claims over");

    // Of what the dead machine had been told by the smarthost, it could not delete any more what came last.
    let unsettled = ids(&lost, "recipient accepted").difference(&ids(&lost, "deleted")).count();
    lines.extend(lost);
    let repeated = mails.arrived(&catcher.received(), &lines);
    // A connection has a mail on the wire, and the next one in the same write.
    let under_way = unsettled + 2 * 2 * CONNECTIONS;
    assert!(repeated <= under_way, "{repeated} came twice:\n{}", story(&lines, &["unknown", "took over", "lost"]));
    println!("{} rows, {repeated} came twice, {unsettled} had been accepted and not deleted", mails.len());
}

/// Producers at all nodes at once.
async fn fill(sessions: &mut [Session], name: &str, rows: usize) -> Mails {
    let each = rows / sessions.len();
    let fills = sessions.iter_mut().enumerate().map(async |(node, session)| {
        let mut mails = Mails::default();
        mails.fill(session, &format!("{name}-{node}"), each).await;
        mails
    });
    let mut all = Mails::default();
    join_all(fills).await.into_iter().for_each(|mails| all.add(mails));
    all
}

/// A dispatcher with a `state_dir` of its own that works by way of this node.
fn at(house: &House, url: &str) -> Installation {
    let host = house.neighbour();
    let text = std::fs::read_to_string(host.configuration()).expect("configuration");
    let text = text.replace(house.database.url.as_str(), url);
    std::fs::write(host.configuration(), text).expect("configuration");
    host
}

/// Until then no node answers a COMMIT.
async fn until_two_are_left(session: &mut Session) {
    let size = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'wsrep_cluster_size'";
    let left = async {
        while session.number(size).await.expect("status") != 2 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, left).await.expect("the cluster goes on without its third node");
}

/// The mails of which a log says this.
fn ids<'a>(lines: &'a [String], event: &str) -> HashSet<&'a str> {
    let lines = lines.iter().filter(|line| line.contains(event));
    lines.filter_map(|line| line.split_once("\"newsletter/")?.1.split('"').next()).collect()
}
