//! `soulbox clean`, up to the agent, which ends all sandboxes of a data directory and gives back everything but its files.

use super::{Installation, require_root};
use crate::failure::Failure;
use crate::settings::Settings;

/// End all sandboxes of a data directory and give back what they hold
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    installation: Installation,
}

/// The installation to clean.
pub fn prepare(arguments: Arguments) -> Result<Settings, Failure> {
    require_root("clean")?;
    let settings = arguments.installation.settings(None)?;
    if !settings.data_dir.is_dir() {
        return Err(Failure::new(anyhow::anyhow!(
            "there is no data directory `{}`",
            settings.data_dir.display()
        ))
        .hint("name it with --data-dir"));
    }
    crate::logging::start(&settings)?;
    Ok(settings)
}
