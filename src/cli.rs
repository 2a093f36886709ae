//! The commands. Each file below has one; here they are taken apart, run, and their end turned into an exit status.

mod abandoned;
mod change;
mod check;
mod daemon;
mod demo;
mod ending;
mod enqueue;
mod list;
mod migrate;
mod once;
mod operator;
mod output;
mod packaging;
mod pause;
mod render;
mod run;
mod second_reader;
mod select;
mod show;
mod status;
mod trace;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Config, DEFAULT_FILE, Invalid};
use crate::observe::log_writer::{Entry, LogWriter};
use crate::observe::logs::{self, Redactor};
use crate::{panics, queue};
use ending::{Ending, UNAVAILABLE, USAGE, exit_status};
use output::Out;

/// Sends the mails that other programs leave in database tables.
#[derive(Debug, Parser)]
#[command(name = "mailqueue", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Begin with `mailqueue demo`. Mail ids are QUEUE/NUMBER, as in newsletter/1234.\n\
    Exit status: 0 done; 1 something is left over or was not done; 2 the command line or the configuration is wrong; \
    69 a database or the smarthost is out of reach; 70 an internal error; 75 another dispatcher holds state_dir.\n\
    Examples:\n  mailqueue demo\n  mailqueue check\n  mailqueue status\n  mailqueue list --state failed,unreadable\n  \
    mailqueue help enqueue")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The heading of [`Global`], so that a command's own options stand together.
const EVERYWHERE: &str = "With every command";

#[derive(Debug, clap::Args)]
pub struct Global {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", env = "MAILQUEUE_CONFIG", default_value = DEFAULT_FILE)]
    #[arg(help_heading = EVERYWHERE)]
    config: PathBuf,
    /// What to log to standard error: error, warn, info, debug, trace; by module: info,mailqueue::relay=debug
    #[arg(long, global = true, value_name = "LEVEL", value_parser = level, help_heading = EVERYWHERE)]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show all of it on this machine: mails as three producers write them, delivered to a catcher
    Demo(demo::Args),
    /// The daemon: look for mails, send them, wait, look again
    Run(run::Args),
    /// Send all that is due once, then end
    Once(once::Args),
    /// Say of each part whether it is ready; send nothing
    Check(check::Args),
    /// Create mailqueue's tables where they do not exist
    Migrate(migrate::Args),
    /// Insert a mail as a producer would
    #[command(mut_arg("queue", |arg| arg.help("Into this queue; needed where there are several")))]
    Enqueue(enqueue::Args),
    /// List rows
    List(list::Args),
    /// Explain one row: headers, recipients with their outcomes, history
    Show(show::Args),
    /// Make rows due now; who has the mail already does not get it again
    #[command(after_help = rows("Examples:\n  mailqueue retry newsletter/1234\n  \
        mailqueue retry --queue newsletter --reason no-sender --dry-run"))]
    Retry(change::Args),
    /// Set rows aside until they are released
    #[command(after_help = rows("Examples:\n  mailqueue hold newsletter/1234\n  \
        mailqueue hold --queue newsletter --subject Einladung"))]
    Hold(change::Args),
    /// Give held rows back, due now
    #[command(after_help = rows("Examples:\n  mailqueue release newsletter/1234 newsletter/1235\n  \
        mailqueue release --queue newsletter --reason operator"))]
    Release(change::Args),
    /// Delete rows for good, without sending them
    #[command(after_help = rows("On a terminal it asks first; without one it wants --yes.\nExamples:\n  \
        mailqueue delete newsletter/1234\n  mailqueue delete --state unreadable --older-than 30d --dry-run"))]
    Delete(change::DeleteArgs),
    /// Stop a queue, or the relay, before its next mail
    #[command(after_help = "Every dispatcher obeys within a second, before its next mail, also after a restart. Rows \
        stay where they are, and producers go on to add to them. `relay` is paused in every database; one is enough to \
        stop the dispatchers that look at it.\n\
        Exit status: 0 done; 69 a database is out of reach (the others were told).\n\
        Examples:\n  mailqueue pause newsletter\n  mailqueue pause relay")]
    Pause(pause::Args),
    /// Let a paused queue, or the relay, go on
    #[command(
        after_help = "Every dispatcher goes on within a second. `relay` stays paused while the flag stands in one \
        database.\n\
        Exit status: 0 done; 69 a database is out of reach (the others were told).\n\
        Examples:\n  mailqueue resume newsletter\n  mailqueue resume relay"
    )]
    Resume(pause::Args),
    /// Count rows by queue and state
    Status(status::Args),
    /// Tell what happened to a mail, also after its row is gone
    Trace(trace::Args),
    /// Write what would go out as .eml files; send and change nothing
    Render(render::Args),
    /// Print a completion script for a shell
    Completions(packaging::CompletionsArgs),
    /// Print the manual page, or write one for each command
    Man(packaging::ManArgs),
}

/// The longest wait at the end of a daemon for a reader of its log, so that a stop is not held up.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Parses the command line, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let log = match LogWriter::start() {
        Ok(log) => log,
        Err(error) => {
            output::tell(&format!("mailqueue: no thread can be started: {error}; raise the limit of tasks (TasksMax)"));
            return ExitCode::from(1);
        }
    };
    panics::end_process({
        let log = log.clone();
        move |text| report_panic(text, &log)
    });
    let parsed = command_line().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let Cli { global, command } = match parsed {
        Ok(cli) => cli,
        Err(answer) => return usage(&answer),
    };
    let mut out = Out::standard();
    if !command.only_tells() {
        out.work_to_the_end();
    }
    // A person at a terminal may have stopped it, and will read on.
    let patience = if command.sends() { LAST_LINES } else { Duration::MAX };
    let ended = run(&global, command, &mut out, &log);
    let written = out.finish();
    let ended = ended.and_then(|ending| Ok(written.map(|()| ending)?));
    let (status, complaint) = match ended {
        Ok(Ending::Done) => (0, None),
        Ok(Ending::LeftOver) => (1, None),
        Ok(Ending::OutOfReach) => (UNAVAILABLE, None),
        // The reader closed the pipe, as `head` does. That is no error.
        Err(error) if error.downcast_ref().is_some_and(output::is_closed_pipe) => (0, None),
        Err(error) => (exit_status(&error), Some(complaint(&error))),
    };
    if let Some(complaint) = complaint {
        log.push(Entry::Line(complaint.into_bytes()));
    }
    log.flush(patience);
    ExitCode::from(status)
}

/// Logs a panic; before the log has a form, says it as other errors are said.
fn report_panic(text: &str, log: &LogWriter) {
    // A panic about a text quotes the text, which can be a row's.
    let text = Redactor::new(logs::Addresses::Domain, [0; 32]).text(text);
    if tracing::enabled!(target: logs::PANICS, tracing::Level::ERROR) {
        tracing::error!(target: logs::PANICS, panic = text,
            "internal error: the process ends, and the next start recovers what was under way; please report this");
    } else {
        let line = format!("mailqueue: internal error: {}; please report this\n", output::safe(&text));
        log.push(Entry::Line(line.into_bytes()));
    }
    if !log.flush(LAST_LINES / 2) {
        log.write_last_lines();
    }
}

/// A terminal that does not know its width may say so as COLUMNS=0, which would give the help a line for each word.
fn command_line() -> clap::Command {
    let unknown = std::env::var("COLUMNS").is_ok_and(|columns| columns.trim() == "0");
    if unknown { Cli::command().term_width(100) } else { Cli::command() }
}

/// Prints help, version, or what is wrong with the command line.
fn usage(answer: &clap::Error) -> ExitCode {
    let printed = answer.print().and_then(|()| io::stdout().flush());
    match printed {
        Err(error) if !answer.use_stderr() && error.kind() != io::ErrorKind::BrokenPipe => {
            output::tell(&format!("mailqueue: standard output cannot be written: {error}"));
            ExitCode::from(1)
        }
        // 0 or USAGE.
        _ => ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(USAGE)),
    }
}

fn run(global: &Global, command: Command, out: &mut Out, log: &LogWriter) -> anyhow::Result<Ending> {
    match command {
        Command::Completions(args) => return packaging::completions(&args, Cli::command(), out),
        Command::Man(args) => return packaging::man(&args, Cli::command(), out),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Command::Demo(args) = command {
        logs::start(&global.logs("off"), log)?;
        return runtime.block_on(demo::run(&args, out));
    }
    let config = Config::load(&global.config)?;
    let settings = match &command {
        Command::Run(_) => logs::Settings { level: global.level(&config.log.level), ..config.log.clone() },
        // Beside the progress on a terminal there is room for what went wrong only.
        Command::Once(_) if !io::stderr().is_terminal() => {
            logs::Settings { level: global.level(&config.log.level), ..config.log.clone() }
        }
        Command::Once(_) => global.logs("error"),
        _ => global.logs("warn,sqlx=error"),
    };
    let logs = logs::start(&settings, log)?;
    runtime.block_on(async {
        match command {
            Command::Run(args) => run::run(&args, config, &logs, global.log_level.as_deref()).await,
            Command::Once(args) => once::run(&args, &config, out).await,
            Command::Trace(args) => trace::run(&args, &config, out).await,
            Command::Check(args) => check::run(&args, &config, out).await,
            Command::Migrate(args) => migrate::run(&args, &config, out).await,
            Command::Enqueue(args) => enqueue::run(&args, &config, out).await,
            Command::List(args) => list::run(&args, &config, out).await,
            Command::Show(args) => show::run(&args, &config, out).await,
            Command::Retry(args) => change::run(queue::Action::Retry, &args, &config, out).await,
            Command::Hold(args) => change::run(queue::Action::Hold, &args, &config, out).await,
            Command::Release(args) => change::run(queue::Action::Release, &args, &config, out).await,
            Command::Delete(args) => change::delete(&args, &config, out).await,
            Command::Pause(args) => pause::run(&args, true, &config, out).await,
            Command::Resume(args) => pause::run(&args, false, &config, out).await,
            Command::Status(args) => status::run(&args, &config, out).await,
            Command::Render(args) => render::run(&args, &config, out).await,
            Command::Demo(_) | Command::Completions(_) | Command::Man(_) => Ok(Ending::Done),
        }
    })
}

impl Command {
    /// True for a dispatcher, which must end within a limit when it is told to.
    fn sends(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Once(_) | Self::Demo(_))
    }

    /// True where the output is all that the command is for: it stops when its reader does.
    fn only_tells(&self) -> bool {
        matches!(
            self,
            Self::List(_) | Self::Show(_) | Self::Status(_) | Self::Trace(_) | Self::Completions(_) | Self::Man(_)
        )
    }
}

impl Global {
    fn level(&self, otherwise: &str) -> String {
        self.log_level.clone().unwrap_or_else(|| otherwise.to_owned())
    }

    /// For commands that a person waits for: in words, and few of them.
    fn logs(&self, level: &str) -> logs::Settings {
        logs::Settings { format: logs::Format::Text, level: self.level(level), ..logs::Settings::default() }
    }
}

/// The text below every command that changes rows, with what concerns one of them.
fn rows(more: &str) -> String {
    format!(
        "Name rows by id, or say which with a filter. A row that a dispatcher is at work on is left alone.\n\
         Exit status: 0 done; 1 some row was left alone, or there is no such row; 69 a database is out of reach (the \
         rows of others are done).\n{more}"
    )
}

fn level(text: &str) -> Result<String, String> {
    logs::check_level(text).map(|()| text.to_owned())
}

/// The line that standard error gets of an error.
fn complaint(error: &anyhow::Error) -> String {
    // A configuration's problems begin with file and line, as editors and people know it from compilers.
    match error.downcast_ref::<Invalid>() {
        Some(invalid) => format!("{invalid}\n"),
        None => format!("mailqueue: {}\n", output::safe(&format!("{error:#}"))),
    }
}
