//! The deciding half without a host, for `make bench`: API, control and records as they are, sandboxes that cost nothing.
//!
//! One machine cannot hold 10,000 sandboxes, but a front must decide about as many. `soulbox-bench serve` is a server whose [`hosts`]
//! answer at once; the other subcommands are its load, in a process of their own, and print one JSON value each.
//! `bench/figures/records.py` runs them and makes rows of what they say.
#![forbid(unsafe_code)]

mod hosts;
mod load;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve on a free port of loopback, print its address, end with standard input
    Serve {
        /// Records in this SQLite file
        #[arg(
            long,
            conflicts_with = "postgres",
            required_unless_present = "postgres"
        )]
        sqlite: Option<PathBuf>,
        /// Records in this PostgreSQL database
        #[arg(long)]
        postgres: Option<String>,
    },
    /// Create and kill, one after the other; milliseconds of each
    Single { server: SocketAddr, count: usize },
    /// Create and kill by clients that do nothing else; pairs done and seconds taken
    Rate {
        server: SocketAddr,
        clients: usize,
        seconds: u64,
    },
    /// Create and leave running; seconds taken
    Fill {
        server: SocketAddr,
        count: usize,
        /// They end by themselves in so many seconds
        #[arg(long, default_value_t = 3600)]
        ending: u64,
        /// Spread over so many seconds
        #[arg(long, default_value_t = 1)]
        over: u64,
    },
    /// Ask for the first page of the list; milliseconds of each
    Pages {
        server: SocketAddr,
        count: usize,
        /// The length of a page
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// More of the query string, such as filters
        #[arg(long, default_value = "")]
        query: String,
    },
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let said = runtime.block_on(async {
        match Arguments::parse().command {
            Command::Serve { sqlite, postgres } => server::serve(sqlite, postgres)
                .await
                .map(|()| serde_json::Value::Null),
            Command::Single { server, count } => load::single(server, count).await,
            Command::Rate {
                server,
                clients,
                seconds,
            } => load::rate(server, clients, Duration::from_secs(seconds)).await,
            Command::Fill {
                server,
                count,
                ending,
                over,
            } => load::fill(server, count, ending, over).await,
            Command::Pages {
                server,
                count,
                limit,
                query,
            } => load::pages(server, count, limit, &query).await,
        }
    })?;
    if !said.is_null() {
        println!("{said}");
    }
    Ok(())
}
