//! `soulbox api`: another front beside the one of a running server, with a listener of its own. Both share the records, so PostgreSQL must
//! have them; the server's agent says where, and hands over its settings.

use anyhow::Context;

use super::ask::connect;
use super::serve::listen;
use super::{Installation, require_root};
use crate::agent;
use crate::failure::Failure;
use crate::front;
use crate::settings::Setting;

/// Run another API and ingress beside a running server; needs PostgreSQL
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    installation: Installation,
    /// Address of this API and ingress
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: String,
    /// Allow plain text on an address that others can reach
    #[arg(long)]
    insecure: bool,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let insecure = arguments
        .insecure
        .then(|| (Setting::Insecure, "true".to_owned()));
    let settings = arguments.installation.settings(
        [(Setting::Listen, arguments.listen)]
            .into_iter()
            .chain(insecure),
    )?;
    crate::logging::start(&settings)?;
    require_root("api")?;
    let socket = connect(&settings)?;
    let listener = listen(settings.listen)?;
    let control = agent::open_control(&settings).context("failed to open the control directory")?;
    // One thread so far: the confinement needs that.
    let uid = settings.front_uid;
    front::beside(socket, control.into(), uid, listener).map_err(front::failure)
}
