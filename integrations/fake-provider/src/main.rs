//! The program: arguments, one listener for HTTP and, where asked for, one for HTTPS.
#![forbid(unsafe_code)]

mod tls;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use soulbox_fake_provider::{Options, Scenario, router};
use tokio::net::TcpListener;

/// A loopback provider of language models: six wires, scripted answers, and a check of what it is sent.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// More scenarios: a JSON object, name to `{"turns": [...]}`.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Listen for HTTPS as well, here, for clients that insist on it.
    #[arg(long, requires = "tls_ca")]
    tls_listen: Option<SocketAddr>,
    /// Where to write the certificate that HTTPS clients have to trust; made anew at each start.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut options = Options::default();
    if let Some(path) = &arguments.scenario {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("failed to read `{}`", path.display()))?;
        let scenarios: BTreeMap<String, Scenario> = serde_json::from_str(&text)
            .with_context(|| format!("`{}` is no scenarios", path.display()))?;
        options.scenarios = scenarios;
    }
    let app = router(options);
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("failed to listen on {}", arguments.listen))?;
    say(&format!("listening on http://{}", listener.local_addr()?))?;
    if let (Some(address), Some(authority)) = (arguments.tls_listen, &arguments.tls_ca) {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("failed to listen on {address}"))?;
        let acceptor = tls::acceptor(authority)?;
        say(&format!("listening on https://{}", listener.local_addr()?))?;
        tokio::spawn(tls::serve(listener, acceptor, app.clone()));
    }
    axum::serve(listener, app).await?;
    Ok(())
}

/// Tests wait for this line, so it must not stay in a buffer.
fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
