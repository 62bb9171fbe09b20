//! One module per command: arguments in, work done by others, text out. stdout is data, stderr is talk.

pub mod admin;
pub mod agent;
pub mod api;
mod ask;
pub mod clean;
pub mod db;
pub mod doctor;
pub mod env;
pub mod mcp;
pub mod sandbox;
pub mod serve;
pub mod template;

use std::path::PathBuf;

use crate::failure::Failure;
use crate::settings::{Flag, Setting, Settings};

/// Flags of the commands that only need to find the installation.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Installation {
    /// Config file [default: /etc/soulbox/soulbox.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of all that SoulBox keeps [default: /var/lib/soulbox]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

impl Installation {
    fn settings(self, more: impl IntoIterator<Item = Flag>) -> Result<Settings, Failure> {
        let data_dir = self.data_dir.map(|value| (Setting::DataDir, value));
        let flags: Vec<Flag> = data_dir.into_iter().chain(more).collect();
        Ok(Settings::resolve(
            self.config.as_deref(),
            &process_environment,
            &flags,
        )?)
    }
}

/// Runs what a command waits for, on this thread.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(error).hint("the system is short of something"))?
        .block_on(work)
}

fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Refuses to go on without root; `command` is named in the error.
fn require_root(command: &str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(
        Failure::new(anyhow::anyhow!("soulbox {command} must run as root"))
            .hint("start it with sudo"),
    )
}
