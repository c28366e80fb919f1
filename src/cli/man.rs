//! The command `man`: the manual's pages, made of what `--help` says.

use std::{fs, path::Path};

use clap::CommandFactory;

use super::{Cli, exit::CliError};

/// Writes a page for the program and for each command below it, `gradledger-log-rotate-key.1` among them.
pub fn man(out: &Path) -> Result<(), CliError> {
    let written = fs::create_dir_all(out).and_then(|()| {
        // `help` has no arguments of its own to tell of.
        clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), out)
    });
    written.map_err(|source| CliError::Io { path: out.to_owned(), source })
}
