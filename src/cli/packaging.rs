//! `mailqueue completions` and `mailqueue man`: for packages.

use std::io::Write;
use std::path::PathBuf;

use clap::CommandFactory;

use super::output::Out;
use super::{Cli, Ending};

#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write mailqueue.1 and a page for each command into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn completions(args: &CompletionsArgs, out: &mut Out) -> anyhow::Result<Ending> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mailqueue", &mut script);
    out.write_all(&script)?;
    Ok(Ending::Done)
}

pub fn man(args: &ManArgs, out: &mut Out) -> anyhow::Result<Ending> {
    match &args.out {
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            clap_mangen::generate_to(Cli::command(), folder)?;
        }
        None => clap_mangen::Man::new(Cli::command()).render(out)?,
    }
    Ok(Ending::Done)
}
