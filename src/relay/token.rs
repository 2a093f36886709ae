//! An OAuth 2 access token, printed by a program of the operator's.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::reply;

/// The program has this long, because it may have to ask a server for a new token.
const LIMIT: Duration = Duration::from_secs(30);

/// Bytes of output. Tokens with many claims have some thousand.
const MAX_OUTPUT: u64 = 64 * 1024;

/// Bytes of the program's complaint that are shown.
const MAX_COMPLAINT: usize = 200;

/// Runs the program and returns what it prints: one token (RFC 6750 §2.1), with or without a line end. The error says
/// what went wrong and never holds the output.
pub(super) async fn print(command: &[String]) -> Result<String, String> {
    let [program, arguments @ ..] = command else { return Err("relay.token_command is empty".into()) };
    match timeout(LIMIT, run(program, arguments)).await {
        Ok(token) => token.map_err(|why| format!("relay.token_command {program} {why}")),
        // Dropping the group has killed it.
        Err(_) => Err(format!("relay.token_command {program} took more than {} s and was ended", LIMIT.as_secs())),
    }
}

async fn run(program: &str, arguments: &[String]) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("has no output".into());
    };
    let (output, complaint) =
        tokio::try_join!(read(stdout), read(stderr)).map_err(|error| format!("cannot be read: {error}"))?;
    let status = child.wait().await.map_err(|error| format!("cannot be waited for: {error}"))?;
    group.0 = None;
    let token = std::str::from_utf8(&output).map(str::trim).unwrap_or_default();
    if !status.success() {
        let complaint = reply::printable(&complaint, MAX_COMPLAINT);
        let shown = if complaint.is_empty() || !token.is_empty() { String::new() } else { format!(": {complaint}") };
        return Err(format!("failed with {status}{shown}"));
    }
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.is_empty() || !token.bytes().all(is_token) {
        return Err("did not print one access token and nothing else".into());
    }
    Ok(token.to_owned())
}

/// Reads what a program prints. One that prints more than the limit finds the pipe closed.
async fn read(pipe: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    pipe.take(MAX_OUTPUT).read_to_end(&mut output).await?;
    Ok(output)
}

/// The process group of a program that was not waited for yet, so that its number is its own. Dropping it ends the
/// program and all that it has started.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error says that nothing is left of it.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str) -> Result<String, String> {
        print(&["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]).await
    }

    #[tokio::test]
    async fn a_token_is_what_the_program_prints() {
        assert_eq!(shell("echo ya29.a0-_~+/==").await.as_deref(), Ok("ya29.a0-_~+/=="));
        assert_eq!(shell("printf 'abc\\r\\n'").await.as_deref(), Ok("abc"));
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_without_the_output() {
        for (script, why) in [
            ("echo token; exit 3", "exit status: 3"),
            ("echo no refresh token >&2; exit 1", "no refresh token"),
            ("echo geheim; echo geheim >&2; exit 1", "exit status: 1"),
            ("true", "did not print"),
            ("echo geheim und mehr", "did not print"),
            ("kill -9 $$", "signal: 9"),
        ] {
            let error = shell(script).await.unwrap_err();
            assert!(error.contains(why) && error.contains("relay.token_command /bin/sh"), "{script}: {error}");
            assert!(!error.contains("geheim") && !error.contains("token;"), "{script}: {error}");
        }
        let error = print(&["/no/such/program".to_owned()]).await.unwrap_err();
        assert!(error.contains("/no/such/program cannot be started"), "{error}");
        assert!(print(&[]).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_end_is_ended() {
        let begun = tokio::time::Instant::now();
        let error = print(&["/bin/sleep".to_owned(), "600".to_owned()]).await.unwrap_err();
        assert!(error.contains("more than 30 s"), "{error}");
        assert_eq!(begun.elapsed(), LIMIT);
    }

    #[tokio::test]
    async fn what_the_program_has_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! >{0}.new; mv {0}.new {0}; wait", file.display());
        let mut running = Box::pin(shell(&script));
        let pid = loop {
            match std::fs::read_to_string(&file) {
                Ok(pid) => break pid.trim().to_owned(),
                Err(_) => assert!(timeout(Duration::from_millis(10), &mut running).await.is_err(), "it has ended"),
            }
        };
        // A zombie has ended too, whether somebody waits for it or not.
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
        };
        assert!(runs());
        drop(running);
        let begun = std::time::Instant::now();
        while runs() {
            assert!(begun.elapsed() < Duration::from_secs(10), "sleep is left behind");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_prints_without_end_is_not_waited_for() {
        let error = shell("while echo geheim; do :; done; exit 7").await.unwrap_err();
        assert!(!error.contains("geheim") && !error.contains("more than"), "{error}");
    }
}
