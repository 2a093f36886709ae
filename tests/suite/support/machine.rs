//! A machine for tests that install the package: a throw-away copy of this one, with systemd as process 1. What it is
//! made of stands in `tests/servers/machine`. The network is shared: servers on loopback are the test's own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

use super::house::said;

pub struct Machine {
    keeper: Child,
    init: String,
}

impl Machine {
    pub fn start() -> Self {
        let mut keeper = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/machine"));
        let mut keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tests/servers/machine");
        let mut init = String::new();
        BufReader::new(keeper.stdout.take().expect("pipe")).read_line(&mut init).expect("pipe");
        assert!(!init.is_empty(), "the machine did not start: it needs root, overlayfs and systemd");
        Self { keeper, init: init.trim().to_owned() }
    }

    /// Runs a shell's command as root, with `input` as its standard input.
    pub fn run_with(&self, command: &str, input: &[u8]) -> Output {
        let enter = ["nsenter", "--target", &self.init, "--all", "--", "env", "-i", "HOME=/root", "LANG=C.UTF-8"];
        let shell = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", command];
        let privileged: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["sudo", "-n"] };
        let words = [privileged, &enter, &shell].concat();
        let mut child = Command::new(words[0]);
        child.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("nsenter");
        child.stdin.take().expect("pipe").write_all(input).expect("it reads");
        child.wait_with_output().expect("nsenter")
    }

    pub fn run(&self, command: &str) -> Output {
        self.run_with(command, b"")
    }

    /// What a command that must succeed printed, without the last line end.
    pub fn ok(&self, command: &str) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command}: {}\n{}", output.status, said(&output));
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let output = self.run_with(&format!("cat >'{path}'"), content.as_ref());
        assert!(output.status.success(), "{path}: {}", said(&output));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The machine ends with its standard input.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
