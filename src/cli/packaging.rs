//! `mailqueue completions` and `mailqueue man`: for packages.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::ending::Ending;
use super::output::Out;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  mailqueue completions bash > /etc/bash_completion.d/mailqueue\n  \
    mailqueue completions fish > ~/.config/fish/completions/mailqueue.fish")]
pub struct CompletionsArgs {
    /// For which shell
    shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  mailqueue man | man -l -\n  mailqueue man --out /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Write a page for each command, and mailqueue.toml(5), into this folder; made where it does not exist
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn completions(args: &CompletionsArgs, mut program: Command, out: &mut Out) -> anyhow::Result<Ending> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "mailqueue", &mut script);
    out.write_all(&script)?;
    Ok(Ending::Done)
}

pub fn man(args: &ManArgs, program: Command, out: &mut Out) -> anyhow::Result<Ending> {
    let mut program = program.disable_help_subcommand(true);
    program = program.mut_subcommands(|command| command.mut_args(values_in_line));
    program.build();
    let Some(folder) = &args.out else {
        page(&program, out)?;
        return Ok(Ending::Done);
    };
    fs::create_dir_all(folder)?;
    page(&program, &mut File::create(folder.join("mailqueue.1"))?)?;
    for command in program.get_subcommands() {
        page(command, &mut File::create(folder.join(format!("{}.1", name(command))))?)?;
    }
    configuration(&mut File::create(folder.join("mailqueue.toml.5"))?)?;
    Ok(Ending::Done)
}

const SOURCE: &str = concat!("mailqueue ", env!("CARGO_PKG_VERSION"));

/// `mailqueue-list`
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// A list of sixteen reasons with a line each is more than a reader wants.
fn values_in_line(arg: Arg) -> Arg {
    let values = arg.get_possible_values();
    if values.is_empty() || !arg.get_action().takes_values() {
        return arg;
    }
    let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
    let help = format!("{}: {}", arg.get_help().map(ToString::to_string).unwrap_or_default(), names.join(", "));
    arg.help(help).hide_possible_values(true)
}

/// The date of the release, from the top of the package's changelog.
fn date() -> String {
    let changelog = include_str!("../../config/debian/changelog");
    let signed = changelog.lines().find(|line| line.starts_with(" -- ")).and_then(|line| line.split_once(">  "));
    let date = signed.and_then(|(_, date)| jiff::fmt::rfc2822::parse(date).ok());
    date.map(|date| date.date().to_string()).unwrap_or_default()
}

/// A command's page. The text below its options, where a terminal shows it, stands under the headings that manual
/// pages have for such things.
fn page(command: &Command, out: &mut dyn Write) -> io::Result<()> {
    let closing = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (examples, rest): (Vec<_>, Vec<_>) =
        closing.lines().filter(|line| *line != "Examples:").partition(|line| line.starts_with("  "));
    let (status, notes): (Vec<_>, Vec<_>) = rest.into_iter().partition(|line| line.starts_with("Exit status: "));

    let man = Man::new(command.clone()).title(name(command)).date(date()).source(SOURCE).manual("mailqueue");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    let mut roff = Roff::new();
    for note in notes {
        roff.control("PP", []).text([roman(note)]);
    }
    roff.to_writer(out)?;
    man.render_options_section(out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    let mut roff = Roff::new();
    for status in status {
        let parts = status.trim_start_matches("Exit status: ").trim_end_matches('.').split("; ");
        roff.control("SH", ["EXIT STATUS"]);
        for (number, meaning) in parts.map(|part| part.split_once(' ').unwrap_or((part, ""))) {
            roff.control("TP", []).text([bold(number)]).text([roman(meaning)]);
        }
    }
    if !examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        for example in examples {
            roff.text([roman(example.trim_start())]);
        }
        roff.control("fi", []);
    }
    see_also(
        &mut roff,
        if command.has_subcommands() { "mailqueue.toml(5)" } else { "mailqueue(1), mailqueue.toml(5)" },
    );
    roff.to_writer(out)
}

fn see_also(roff: &mut Roff, pages: &str) {
    roff.control("SH", ["SEE ALSO"]).text([roman(pages)]);
}

/// mailqueue.toml(5), from the file that shows every key: a paragraph a comment, a heading a section, an item a key.
fn configuration(out: &mut dyn Write) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("TH", ["mailqueue.toml", "5", &date(), SOURCE, "mailqueue"]);
    roff.control("SH", ["NAME"]).text([roman("mailqueue.toml - configuration of mailqueue(1)")]);
    roff.control("SH", ["SYNOPSIS"]).text([italic(crate::config::DEFAULT_FILE)]);
    roff.control("SH", ["DESCRIPTION"]).text([roman("TOML. A key that does not exist is an error.")]);
    for line in include_str!("../../config/mailqueue.toml").lines() {
        let (setting, comment) = line.split_once("  #").unwrap_or((line, ""));
        match line.strip_prefix("# ") {
            Some(text) => roff.control("PP", []).text([roman(text)]),
            None if line.starts_with('[') => roff.control("SS", [line]),
            None if line.is_empty() => &mut roff,
            None => roff.control("TP", []).text([bold(setting.trim_end())]).text([roman(comment.trim())]),
        };
    }
    see_also(&mut roff, "mailqueue(1), mailqueue-check(1)");
    roff.to_writer(out)
}
