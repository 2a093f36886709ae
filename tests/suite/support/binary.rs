//! Runs the program `mailqueue` as an operator or systemd would: a directory with a configuration, arguments, signals.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{DEADLINE, eventually, secrets};

/// A directory with a configuration file, gone at the end of the test.
pub struct Installation {
    directory: TempDir,
}

impl Installation {
    /// In `configuration`, `{dir}` stands for the installation's directory.
    pub fn new(configuration: &str) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let text = configuration.replace("{dir}", directory.path().to_str().expect("UTF-8"));
        std::fs::write(directory.path().join("mailqueue.toml"), text).expect("configuration");
        Self { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn configuration(&self) -> PathBuf {
        self.path().join("mailqueue.toml")
    }

    /// The program with its configuration; further arguments are the caller's.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mailqueue"));
        command.env("MAILQUEUE_CONFIG", self.configuration()).current_dir(self.path()).stdin(Stdio::null());
        command
    }

    /// Runs one command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments);
        output(command).await
    }

    /// Starts what goes on until it is told to stop.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.command();
        command.args(arguments);
        Running::spawn(command)
    }
}

/// Runs one command to its end; what it wrote must have kept the secrets.
pub async fn output(mut command: Command) -> Output {
    let what = format!("{:?}", command.as_std().get_args());
    let output = timeout(DEADLINE, command.kill_on_drop(true).output()).await;
    let output = output.unwrap_or_else(|_| panic!("{what} does not end")).expect("mailqueue");
    let text = |bytes| String::from_utf8_lossy(bytes);
    secrets::assert_kept(&what, &text(&output.stdout), &text(&output.stderr));
    output
}

/// A process whose output is collected. It is killed when this is dropped.
pub struct Running {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: [JoinHandle<()>; 2],
}

impl Running {
    pub fn spawn(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().expect("start a process");
        let lines = Arc::default();
        let readers = [
            tokio::spawn(collect(child.stdout.take().expect("pipe"), Arc::clone(&lines))),
            tokio::spawn(collect(child.stderr.take().expect("pipe"), Arc::clone(&lines))),
        ];
        Self { child, lines, readers }
    }

    /// Everything that it wrote so far, standard output and standard error, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a line that contains `text`, and returns the first such line.
    pub async fn wait_for_line(&self, text: &str) -> String {
        let search = eventually(text, || self.lines().into_iter().find(|line| line.contains(text)));
        timeout(DEADLINE / 2, search)
            .await
            .unwrap_or_else(|_| panic!("no line with `{text}` among:\n{}", self.lines().join("\n")))
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> u32 {
        self.child.id().expect("still running")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).expect("still running");
        kill_process(pid, signal).expect("kill");
        if signal == Signal::STOP {
            until_stopped(pid);
        }
    }

    /// Waits for its end: how it ended, and everything that it wrote.
    pub async fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = timeout(DEADLINE, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("does not end; it wrote:\n{}", self.lines().join("\n")))
            .expect("wait");
        for reader in &mut self.readers {
            reader.await.expect("reader");
        }
        (status, self.lines())
    }
}

impl Drop for Running {
    /// Whatever a test was about, no log may show a secret.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let lines = self.lines().join("\n");
            secrets::assert_kept("a running mailqueue", "", &lines);
        }
    }
}

async fn collect(pipe: impl AsyncRead + Unpin, lines: Arc<Mutex<Vec<String>>>) {
    let mut pipe = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = pipe.next_line().await {
        lines.lock().unwrap().push(line);
    }
}

/// Waits until no thread of the process runs. A signal reaches them one after the other, and one of them may still begin
/// a transaction.
fn until_stopped(pid: Pid) {
    let is_stopped = |task: &std::path::Path| {
        // The state follows the name, which ends with the last parenthesis. A thread that is gone has none.
        let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
    };
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).expect("a process");
        if tasks.flatten().all(|task| is_stopped(&task.path())) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "the process does not stop");
        std::thread::yield_now();
    }
}
