//! `soulbox mcp`: an MCP server over a sandbox, on standard input and output or over HTTP with a token.
//!
//! Standard output is the protocol's; everything for people goes to stderr.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use soulbox_agent::mcp::Server;
use soulbox_client::SandboxOptions;
use tokio::net::TcpListener;

use super::{agent, block_on, sandbox};
use crate::failure::Failure;
use crate::secret_file;

/// Offer a sandbox to MCP clients
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Serve HTTP here, at /mcp, instead of standard input and output
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// File with the token that HTTP clients show, for its owner only [default: SOULBOX_MCP_TOKEN, else a new one on stderr]
    #[arg(long, value_name = "FILE", requires = "http")]
    token_file: Option<PathBuf>,
    /// Serve HTTP on an address that others can reach: tokens go in plain text
    #[arg(long, requires = "http")]
    insecure: bool,
    /// Template of the sandbox [default: SOULBOX_TEMPLATE, else code-interpreter-v1]
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Seconds without calls after which the sandbox is ended
    #[arg(long, value_name = "N", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle_seconds: u64,
    /// Seconds that one call may take
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    call_seconds: u64,
    #[command(flatten)]
    server: sandbox::Server,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(address) = arguments.http
        && !address.ip().is_loopback()
        && !arguments.insecure
    {
        return Err(Failure::usage(anyhow!(
            "{address} can be reached by others, and tokens would go there in plain text"
        ))
        .hint("listen on 127.0.0.1 behind a proxy with TLS, or give --insecure"));
    }
    let (client, place) = arguments.server.sandboxes()?;
    let options = SandboxOptions {
        template: Some(sandbox::interpreter_template(arguments.template)),
        // A call keeps it alive at its beginning, so the longest one has to fit.
        timeout: Duration::from_secs(arguments.idle_seconds.max(2 * arguments.call_seconds)),
        metadata: [("soulboxMcp".to_owned(), "1".to_owned())].into(),
        allow_internet: None,
    };
    let server = Server::new(
        client,
        place,
        options,
        Duration::from_secs(arguments.call_seconds),
    );
    let token = match arguments.http {
        Some(_) => Some(token(arguments.token_file.as_deref())?),
        None => None,
    };
    block_on(async move {
        let cancelled = agent::until_signalled()?;
        let served = match arguments.http.zip(token) {
            None => server.stdio(cancelled).await.map_err(Failure::new),
            Some((address, (token, new))) => {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("failed to listen on {address}"))?;
                let address = listener
                    .local_addr()
                    .context("the listener has no address")?;
                eprintln!("listening on http://{address}/mcp");
                if new {
                    eprintln!("token: {token}");
                }
                server
                    .http(listener, token, cancelled)
                    .await
                    .map_err(Failure::new)
            }
        };
        let closed = server.close().await.map_err(|error| {
            Failure::new(anyhow!(error).context("failed to end the sandbox"))
                .hint("its own deadline ends it")
        });
        served.and(closed)
    })
}

/// The token of HTTP clients, and whether it was made just now.
fn token(file: Option<&Path>) -> Result<(String, bool), Failure> {
    if let Some(path) = file {
        let text = secret_file::read(path)?;
        let token = text.trim();
        return match token.is_empty() {
            true => Err(Failure::usage(anyhow!("`{}` has no token", path.display()))
                .hint("one line, such as openssl rand -hex 32 prints")),
            false => Ok((token.to_owned(), false)),
        };
    }
    if let Ok(token) = std::env::var("SOULBOX_MCP_TOKEN")
        && !token.is_empty()
    {
        return Ok((token, false));
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(anyhow!("the system has no random numbers: {error}")))?;
    Ok((hex::encode(bytes), true))
}
