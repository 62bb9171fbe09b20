//! [`Records`]: the database that the agent names, and the way to one that is elsewhere.
//!
//! The front can make no socket but to the one in its own root. Whoever connects there gets a connection that the agent made, byte by byte.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use soulbox_control::Store;
use soulbox_store::{PostgresStore, SqliteStore, postgres_options};
use soulbox_wire::host::{FrontSettings, Reply, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::confine::{DATABASE, DATABASE_PORT};
use crate::rpc::Client;

/// More than the store has connections.
const MOST_CONNECTIONS: usize = 64;
const AFTER_A_FAILURE: Duration = Duration::from_millis(200);

pub(super) enum Records {
    Here(SqliteStore),
    Elsewhere(PostgresStore),
}

impl Records {
    /// Opens the records. The second value carries bytes to a database that is elsewhere for as long as it lives.
    pub(super) async fn open(
        settings: &FrontSettings,
        data: &Path,
        relay: Option<StdUnixListener>,
        client: &Client,
    ) -> anyhow::Result<(Self, Option<AbortOnDropHandle<()>>)> {
        let Some(url) = &settings.database_url else {
            let store = SqliteStore::open(&data.join("control.db")).await?;
            return Ok((Self::Here(store), None));
        };
        let Some(relay) = relay else {
            bail!("the agent has a database URL and did not say so when it started this front");
        };
        let relaying = tokio::spawn(carry(UnixListener::from_std(relay)?, client.clone()));
        let options = postgres_options(url)?.socket(DATABASE).port(DATABASE_PORT);
        let store = PostgresStore::open(options)
            .await
            .context("the records cannot be opened")?;
        Ok((
            Self::Elsewhere(store),
            Some(AbortOnDropHandle::new(relaying)),
        ))
    }

    pub(super) fn shared(&self) -> Arc<dyn Store> {
        match self {
            Self::Here(store) => Arc::new(store.clone()),
            Self::Elsewhere(store) => Arc::new(store.clone()),
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Here(store) => store.close().await,
            Self::Elsewhere(store) => store.close().await,
        }
    }
}

/// Carries every connection to one that the agent makes.
async fn carry(listener: UnixListener, client: Client) {
    let mut carrying = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = carrying.join_next() => {}
            accepted = listener.accept(), if carrying.len() < MOST_CONNECTIONS => match accepted {
                Ok((near, _)) => drop(carrying.spawn(carry_one(near, client.clone()))),
                Err(error) => {
                    warn!(%error, "a connection to the database was not let in");
                    tokio::time::sleep(AFTER_A_FAILURE).await;
                }
            },
        }
    }
}

async fn carry_one(mut near: UnixStream, client: Client) {
    let far = match client.request(Request::DialDatabase).await {
        Ok((Reply::Dialled, descriptors)) => far_end(descriptors),
        Ok(_) => Err("the answer is of another kind".to_owned()),
        Err(error) => Err(crate::failure::chain(&error)),
    };
    match far {
        // Either end may close it at any time, which its user sees.
        Ok(mut far) => drop(tokio::io::copy_bidirectional(&mut near, &mut far).await),
        Err(error) => {
            warn!(error, "the database cannot be reached");
            // Not at once: its user tries again without a pause.
            tokio::time::sleep(AFTER_A_FAILURE).await;
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The one descriptor of a reply: a TCP socket or a unix one.
fn far_end(descriptors: Vec<OwnedFd>) -> Result<Box<dyn Stream>, String> {
    let [descriptor] = <[OwnedFd; 1]>::try_from(descriptors)
        .map_err(|descriptors| format!("{} descriptors came instead of one", descriptors.len()))?;
    let text = |error: std::io::Error| error.to_string();
    let family = rustix::net::sockopt::socket_domain(&descriptor).map_err(|it| text(it.into()))?;
    if family == rustix::net::AddressFamily::UNIX {
        let socket = std::os::unix::net::UnixStream::from(descriptor);
        socket.set_nonblocking(true).map_err(text)?;
        Ok(Box::new(UnixStream::from_std(socket).map_err(text)?))
    } else {
        let socket = std::net::TcpStream::from(descriptor);
        socket.set_nonblocking(true).map_err(text)?;
        Ok(Box::new(TcpStream::from_std(socket).map_err(text)?))
    }
}
