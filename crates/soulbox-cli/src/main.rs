//! The binary `soulbox`: arguments in, a command run, an exit status out (0 done, 1 failed, 2 asked wrong, 3 too old for its records).
#![forbid(unsafe_code)]

mod agent;
mod commands;
mod credentials;
mod criu;
mod failure;
mod front;
mod logging;
mod rpc;
mod secret_file;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use failure::Failure;

/// A sandbox cloud in one binary that speaks E2B's protocols.
#[derive(Debug, Parser)]
#[command(name = "soulbox", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Serve(Box<commands::serve::Arguments>),
    /// Manage teams and API keys
    #[command(subcommand)]
    Admin(commands::admin::Command),
    Agent(Box<commands::agent::Arguments>),
    Api(commands::api::Arguments),
    /// Migrate, back up and restore the records
    #[command(subcommand)]
    Db(commands::db::Command),
    Clean(commands::clean::Arguments),
    /// The front process; started by the host agent only
    #[command(hide = true)]
    Front(front::Arguments),
    Env(commands::env::Arguments),
    Doctor(commands::doctor::Arguments),
    Mcp(commands::mcp::Arguments),
    /// Take sandboxes back to their snapshots
    #[command(subcommand)]
    Sandbox(commands::sandbox::Command),
    /// Build, show, share and delete templates
    #[command(subcommand)]
    Template(commands::template::Command),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    match run(arguments.command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit_code()
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(arguments) => agent::run(commands::serve::prepare(*arguments)?)?,
        Command::Admin(command) => commands::admin::run(command)?,
        Command::Db(command) => commands::db::run(command)?,
        Command::Agent(arguments) => return commands::agent::run(*arguments),
        Command::Mcp(arguments) => commands::mcp::run(arguments)?,
        Command::Api(arguments) => commands::api::run(arguments)?,
        Command::Clean(arguments) => agent::clean(&commands::clean::prepare(arguments)?)?,
        Command::Front(arguments) => front::main(&arguments).map_err(front::failure)?,
        Command::Env(arguments) => commands::env::run(arguments)?,
        Command::Doctor(arguments) => return commands::doctor::run(arguments),
        Command::Sandbox(command) => commands::sandbox::run(command)?,
        Command::Template(command) => commands::template::run(command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Help and version are printed as clap has them; a mistake as our own failures are: a line of cause, a line of hint.
fn refuse(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
    };
    if matches!(
        error.kind(),
        DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.to_string();
    // The cause ends at the first empty line; then come tips, the usage and a pointer to the help.
    let cause = text.split("\n\n").next().unwrap_or_default();
    let cause = cause.strip_prefix("error: ").unwrap_or(cause).to_owned();
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: ").map(str::to_owned));
    let failure = Failure::usage(anyhow::Error::msg(cause))
        .hint(tip.unwrap_or_else(|| "see soulbox --help".to_owned()));
    eprintln!("{failure}");
    failure.exit_code()
}
