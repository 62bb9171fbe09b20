//! Questions of a command to the agent of the server that runs on a data directory, by host RPC. Needs what its socket needs: root.

use std::os::unix::net::UnixStream as StdUnixStream;

use anyhow::anyhow;
use soulbox_wire::host::{Reply, Request};
use tokio::net::UnixStream;

use super::block_on;
use crate::agent;
use crate::failure::Failure;
use crate::rpc::{Client, RpcError};
use crate::settings::Settings;

/// A connection to the agent.
///
/// # Errors
/// No server runs there.
pub(super) fn connect(settings: &Settings) -> Result<StdUnixStream, Failure> {
    StdUnixStream::connect(settings.data_dir.join(agent::SOCKET)).map_err(|error| {
        let cause = anyhow!(error).context(format!(
            "no server runs on data directory `{}`",
            settings.data_dir.display()
        ));
        Failure::new(cause).hint("start soulbox serve first, or name its directory with --data-dir")
    })
}

/// The agent's answer; blocks as long as it takes. `refused` says what to do about an error.
///
/// # Errors
/// No server, or what `refused` makes of the answer.
pub(super) fn ask(
    settings: &Settings,
    request: Request,
    refused: impl FnOnce(RpcError) -> Failure,
) -> Result<Reply, Failure> {
    let socket = connect(settings)?;
    block_on(async {
        let broken = |error: std::io::Error| Failure::new(anyhow!(error));
        socket.set_nonblocking(true).map_err(broken)?;
        let socket = UnixStream::from_std(socket).map_err(broken)?;
        // Its events are the fronts' business.
        let (client, _events) = Client::start(socket);
        let (reply, _) = client.request(request).await.map_err(refused)?;
        Ok(reply)
    })
}
