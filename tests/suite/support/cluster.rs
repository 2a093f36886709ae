//! A Galera cluster of three nodes for one test, `tests/servers/galera.sh`.

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use url::Url;

use super::database::{self, TestDatabase};
use super::variable;

pub struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    server: String,
    process: Option<Pid>,
}

impl Cluster {
    pub async fn start() -> Self {
        let output = Command::new(variable("MAILQUEUE_TEST_GALERA")).output().await.expect("the cluster's script");
        assert!(output.status.success(), "no cluster: {}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).expect("text");
        let nodes = lines.lines().map(|line| {
            let (server, process) = line.split_once(' ').expect("URL and process");
            Node { server: server.to_owned(), process: process.parse().ok().and_then(Pid::from_raw) }
        });
        let nodes: Vec<_> = nodes.collect();
        assert_eq!(nodes.len(), 3);
        Self { nodes }
    }

    /// A fresh database, by way of the first node.
    pub async fn database(&self) -> TestDatabase {
        database::on_mysql(&self.nodes[0].server).await
    }

    /// The same database by way of this node.
    pub fn url(&self, node: usize, database: &TestDatabase) -> Url {
        let mut url: Url = self.nodes[node].server.parse().expect("URL");
        url.set_path(database.url.path());
        url
    }

    /// As if its host had lost power.
    pub fn kill(&mut self, node: usize) {
        let process = self.nodes[node].process.take().expect("a node that runs");
        kill_process(process, Signal::KILL).expect("kill");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.take()) {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}
