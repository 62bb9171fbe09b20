//! The front process: REST API, ingress, control and database, without privilege.
//!
//! The agent execs `soulbox front` as root with two descriptors: the socket of the host RPC and the control directory. [`main`] gives up root and the
//! file system before anything is parsed ([`confine`]), then asks the agent for settings and listeners, takes up the records and serves. It ends
//! when the RPC ends (the agent starts the next one), or in good order on SIGTERM; sandboxes run on in either case.

mod ahead;
mod builder;
mod confine;
mod daemon_log;
mod guest;
mod hosts;
mod locate;
mod records;
mod seccomp;
mod startup;

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use soulbox_api::{Figures, RateLimits, operator_router};
use soulbox_builder::{ImagePolicy, Steps};
use soulbox_control::{Control, ControlSettings, Credentials, HostEvent};
use soulbox_ingress::{Ingress, Server};
use soulbox_store::OpenError;
use soulbox_sys::fdpass;
use soulbox_types::{DeathCause, Epoch, UnixMillis};
use soulbox_wire::host::{Event, FrontSettings, Hello, Reply, Request, TemplateImages};
use tokio::net::{TcpListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::commands::db;
use crate::failure::Failure;
use crate::rpc::Client;
use builder::RpcBenches;
use hosts::RpcHosts;
use locate::Located;
use records::Records;

/// How long requests under way may go on after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);
/// Sandboxes of one team's template builds that run at once.
const BUILD_SANDBOXES: usize = 8;
/// More of them, for teams of which none runs.
const KEPT_BUILD_SANDBOXES: usize = 2;
/// How long control may take to let go of its sandboxes then.
const LET_GO: Duration = Duration::from_secs(2);

/// Arguments of the hidden subcommand `soulbox front`, given by the agent.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Inherited descriptor: the socket of the host RPC
    #[arg(long)]
    socket_fd: RawFd,
    /// Inherited descriptor: the control directory, owned by the user
    #[arg(long)]
    data_fd: RawFd,
    /// The user and group number to become
    #[arg(long)]
    uid: u32,
    /// The records are in PostgreSQL, which is reached through the agent
    #[arg(long)]
    database: bool,
    /// Which log lines to write
    #[arg(long, default_value = "info")]
    log: String,
    /// Write log lines as JSON
    #[arg(long)]
    log_json: bool,
}

/// Confines the process and serves until the RPC ends or SIGTERM comes. Must be called before there is a second thread.
///
/// # Errors
/// A step of the confinement or of the start, or the end of the host agent.
pub fn main(arguments: &Arguments) -> anyhow::Result<()> {
    start_logging(arguments)?;
    let socket = fdpass::take_inherited(arguments.socket_fd)
        .context("the host RPC's descriptor is not usable")?;
    let data = fdpass::take_inherited(arguments.data_fd)
        .context("the control directory's descriptor is not usable")?;
    confined(socket.into(), data, arguments.uid, arguments.database, None)
}

/// How a front fails: the agent that started it hears by the exit status when no other could do better.
pub fn failure(error: anyhow::Error) -> Failure {
    match error.downcast::<OpenError>() {
        Ok(error @ OpenError::Newer { .. }) => db::refuse(error).too_old(),
        Ok(error) => db::refuse(error),
        Err(error) => error.into(),
    }
}

/// A front with a listener of its own, beside the agent's; it must have the records in PostgreSQL.
///
/// # Errors
/// See [`main`].
pub fn beside(
    socket: StdUnixStream,
    control: OwnedFd,
    user: u32,
    listener: std::net::TcpListener,
) -> anyhow::Result<()> {
    confined(socket, control, user, true, Some(listener))
}

fn confined(
    socket: StdUnixStream,
    data: OwnedFd,
    user: u32,
    database: bool,
    listener: Option<std::net::TcpListener>,
) -> anyhow::Result<()> {
    let relay =
        confine::confine(data, user, database).context("the front could not be confined")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("front")
        .build()?;
    let outcome = runtime.block_on(run(socket, Path::new(confine::DATA), relay, listener));
    // Nothing of what is left may keep the process: the agent waits to start the next one.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

fn start_logging(arguments: &Arguments) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&arguments.log).context("the log filter is not understood")?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let started = if arguments.log_json {
        lines.json().try_init()
    } else {
        lines.try_init()
    };
    started.map_err(|error| anyhow::anyhow!("logging could not be started: {error}"))
}

/// Serves over this RPC socket, until it ends or SIGTERM comes. The records are in `data`, or beyond `relay` if the agent says so; the
/// listeners are the agent's, unless this front has one of its own.
async fn run(
    socket: StdUnixStream,
    data: &Path,
    relay: Option<StdUnixListener>,
    listener: Option<std::net::TcpListener>,
) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    socket.set_nonblocking(true)?;
    let (client, events) = Client::start(UnixStream::from_std(socket)?);
    let (settings, mut listeners, mut admin_listener) = hello(&client)
        .await
        .context("the host agent did not introduce itself")?;
    let is_agents_own = listener.is_none();
    if let Some(own) = listener {
        ensure!(
            settings.database_url.is_some(),
            "a second front needs records that can be shared: the server must run with SOULBOX_DATABASE_URL"
        );
        own.set_nonblocking(true)?;
        listeners = vec![TcpListener::from_std(own)?];
        // The agent's own front tells its figures there.
        admin_listener = None;
    }

    let (store, _relaying) = Records::open(&settings, data, relay, &client).await?;
    let hosts = Arc::new(RpcHosts::new(client.clone()));
    let control = Control::new(store.shared(), hosts.clone(), control_settings(&settings)?);
    let located = Arc::new(Located {
        control: control.clone(),
        client: client.clone(),
        counted: tokio::sync::Mutex::default(),
    });
    let ingress = Ingress::new(located, settings.max_requests);
    hosts.park_in(ingress.clone());
    let benches = Arc::new(RpcBenches::new(client.clone()));
    let steps = Arc::new(Steps::new(
        benches.clone(),
        match settings.template_images {
            TemplateImages::Alias => ImagePolicy::Alias,
            TemplateImages::Strict => ImagePolicy::Strict,
        },
        soulbox_envd_proto::ENVD_VERSION,
        BUILD_SANDBOXES,
        KEPT_BUILD_SANDBOXES,
    ));
    control.set_builder(steps.clone());
    let seen = hosts.templates_seen();
    let ahead = async {
        // The other fronts of a host have nothing to add.
        if is_agents_own {
            ahead::run(steps, seen).await;
        }
    };
    let credentials = Credentials {
        api_key: settings.api_key.clone(),
        access_token: settings.access_token.clone(),
    };
    control
        .recover(&credentials)
        .await
        .context("the records could not be taken up")?;

    let tls = match (&settings.tls_cert_pem, &settings.tls_key_pem) {
        (Some(certificates), Some(key)) => Some(soulbox_ingress::acceptor(certificates, key)?),
        (None, None) => None,
        _ => bail!("TLS needs both a certificate and a key"),
    };
    let (draining, ended) = (CancellationToken::new(), CancellationToken::new());
    let limits = settings.rate_limits.as_deref().map(RateLimits::parse);
    let limits = limits.transpose()?.unwrap_or_default();
    let figures = Figures::default();
    let admin = admin(admin_listener, &control, &figures, &ended);
    let api = soulbox_api::router(Arc::new(soulbox_api::App {
        control: control.clone(),
        tls: tls.is_some(),
        domain: settings.domain.clone(),
        draining: draining.clone(),
        limits,
        figures: figures.clone(),
    }));
    let server = Server::new(api, ingress.clone(), tls);
    let addresses: Vec<_> = listeners
        .iter()
        .filter_map(|it| it.local_addr().ok())
        .collect();
    info!(listeners = ?addresses, "front ready");

    let mut background = Box::pin(async {
        tokio::join!(
            control.run(ended.clone()),
            ended.run_until_cancelled(forward(events, &control, &ingress, &benches)),
            ended.run_until_cancelled(ahead),
            admin
        );
    });
    let serving = async {
        server.serve(listeners, draining.clone(), DRAIN).await;
        control.stop(LET_GO).await;
        ended.cancel();
    };
    let mut serving = std::pin::pin!(serving);
    let mut background_done = false;
    loop {
        tokio::select! {
            () = &mut serving => break,
            () = client.closed() => bail!("the host agent is gone"),
            () = &mut background, if !background_done => background_done = true,
            () = stop.asked(), if !draining.is_cancelled() => {
                info!("asked to stop, requests under way are finished");
                draining.cancel();
            }
        }
    }
    // The records are closed when all their connections are back, and what was cut off amid a write has one.
    if !background_done && tokio::time::timeout(LET_GO, &mut background).await.is_err() {
        warn!("work in the background did not end in time");
    }
    drop(background);
    store.close().await;
    info!("front stopped");
    Ok(())
}

/// Tells figures until the end, if there is a listener for them.
async fn admin(
    listener: Option<TcpListener>,
    control: &Control,
    figures: &Figures,
    ended: &CancellationToken,
) {
    let Some(listener) = listener else {
        return;
    };
    let router = operator_router(control.clone(), figures.clone());
    let served = axum::serve(listener, router).into_future();
    if let Some(Err(error)) = ended.run_until_cancelled(served).await {
        warn!(%error, "figures are told no more");
    }
}

/// What the agent says, its public listeners, and the administrator's if there is one.
async fn hello(
    client: &Client,
) -> anyhow::Result<(FrontSettings, Vec<TcpListener>, Option<TcpListener>)> {
    let (Reply::Hello(hello), descriptors) = client.request(Request::Hello).await? else {
        bail!("the answer is of another kind");
    };
    let Hello { now, settings, .. } = *hello;
    soulbox_control::clock::set(UnixMillis(now));
    let wanted = settings.listeners.len() + usize::from(settings.admin_listener.is_some());
    ensure!(
        descriptors.len() == wanted && !settings.listeners.is_empty(),
        "{} listeners came for {wanted} addresses",
        descriptors.len(),
    );
    let listeners = descriptors.into_iter().map(|descriptor| {
        let listener = std::net::TcpListener::from(descriptor);
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    let mut listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let admin = listeners.split_off(settings.listeners.len()).pop();
    Ok((settings, listeners, admin))
}

fn control_settings(settings: &FrontSettings) -> anyhow::Result<ControlSettings> {
    let seed = hex::decode(&settings.token_seed).context("the token seed is not hex")?;
    ensure!(seed.len() >= 32, "the token seed is shorter than 32 bytes");
    let mut control = ControlSettings::new(seed, settings.admin_token.clone());
    control.keep_builds = Duration::from_secs(settings.keep_builds);
    control.max_sandbox_hours = u32::try_from(settings.max_sandbox_hours).unwrap_or(u32::MAX);
    control.max_sandboxes = settings.max_sandboxes;
    control.envd_version = soulbox_envd_proto::ENVD_VERSION.to_owned();
    control.archives = Some(Path::new(confine::DATA).join("archives"));
    Ok(control)
}

/// Hands the host's events on until the RPC ends.
async fn forward(
    mut events: mpsc::Receiver<Event>,
    control: &Control,
    ingress: &Ingress,
    benches: &RpcBenches,
) {
    while let Some(event) = events.recv().await {
        let (sandbox_id, epoch, cause) = match event {
            Event::Exited {
                sandbox_id,
                epoch,
                cause,
            } => (sandbox_id, epoch, cause),
            Event::Paused(saved) => {
                match hosts::snapshot(saved) {
                    Ok(snapshot) => {
                        ingress.forget(&snapshot.sandbox_id);
                        control.host_event(HostEvent::Paused(snapshot)).await;
                    }
                    Err(error) => warn!(%error, "an event of the host is malformed"),
                }
                continue;
            }
        };
        // A cause that this build does not know is of a newer agent.
        let cause = DeathCause::from_name(&cause).unwrap_or(DeathCause::AgentDied);
        if benches.ended(&sandbox_id, cause) {
            continue;
        }
        let Ok(sandbox_id) = sandbox_id.parse() else {
            warn!("an event of the host has a malformed sandbox ID");
            continue;
        };
        ingress.forget(&sandbox_id);
        control
            .host_event(HostEvent::Exited {
                sandbox_id,
                epoch: Epoch(epoch),
                cause,
            })
            .await;
    }
}

/// The signals that ask for a stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
