//! The host agent's process: root, parses nothing from outside. It takes the host in use, starts the front, and outlives it.
//!
//! Order of a start: lock the data directory, unpack the guest programs, open the pool, claim an instance number, start the runtime, adopt
//! sandboxes, answer DNS, then start fronts until SIGTERM or SIGINT. A stop leaves sandboxes running; without any it gives the host back.

mod fronts;
mod guests;
mod handler;
mod lock;
mod node;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use soulbox_host::dns::DnsServer;
use soulbox_host::instance::InstanceClaim;
use soulbox_host::native::{Checkpoints, NativeRuntime};
use soulbox_host::{Host, HostSettings, WarmTargets};
use soulbox_pool::{BtrfsPool, Pool, PoolError, PoolOptions, SnapshotPool};
use soulbox_runtime::identity::REFUSED_DNS_PORT;
use soulbox_runtime::native::Native;
use soulbox_runtime::network::NetworkPolicy;
use soulbox_wire::host::FrontSettings;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use fronts::{CONTROL, SOCKET, open_control};
pub use lock::DataDirLock;

use crate::commands::serve::Start;
use crate::criu;
use crate::failure::{Failure, chain};
use crate::settings::Settings;

/// The template that is booted ahead.
const DEFAULT_TEMPLATE: &str = "base";
const DNS_PORT: u16 = 53;
/// How long something may still be open in a pool that is given back: programs that were just ended, or a glance of somebody else's.
pub const UNMOUNT_WITHIN: Duration = Duration::from_secs(10);

/// The host in use.
struct Agent {
    host: Host<NativeRuntime>,
    pool: Arc<BtrfsPool>,
    claim: InstanceClaim,
    _lock: lock::DataDirLock,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The part of the host that could not be taken in use.
pub fn run(start: Start) -> Result<(), Failure> {
    runtime()?.block_on(serve(start))
}

/// Ends all sandboxes of the data directory and gives the host back; files stay.
///
/// # Errors
/// As [`run`]; a running server is one, since it would go on making sandboxes.
pub fn clean(settings: &Settings) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let settings = Settings {
            warm: 0,
            parked: 0,
            ..settings.clone()
        };
        // No snapshot is looked at, so none is believed.
        let mut key = [0; 32];
        getrandom::fill(&mut key)
            .map_err(|error| failure("read random bytes")(anyhow::anyhow!("{error}")))?;
        let agent = Agent::start(&settings, key).await?;
        agent.host.kill_all().await;
        agent.stop().await
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("agent")
        .build();
    runtime.map_err(|error| {
        Failure::new(anyhow::Error::new(error).context("failed to start the threads of the agent"))
    })
}

async fn serve(start: Start) -> Result<(), Failure> {
    let Start {
        settings,
        credentials,
        secrets,
        listener,
        admin_listener,
    } = start;
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| failure("watch for SIGTERM")(error.into()))?;
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|error| failure("watch for SIGINT")(error.into()))?;
    let address = listener
        .local_addr()
        .map_err(|error| failure("read the listener's address")(error.into()))?;
    let mut snapshot_key = [0; 32];
    hex::decode_to_slice(&secrets.token_seed, &mut snapshot_key)
        .map_err(|error| failure("read the installation's secret")(error.into()))?;
    let agent = Agent::start(&settings, snapshot_key).await?;
    if agent.pool.templates().is_ok_and(|templates| {
        !templates
            .iter()
            .any(|template| template.name == DEFAULT_TEMPLATE)
    }) {
        warn!(
            hint = "run soulbox template build templates/base",
            "there is no template `{DEFAULT_TEMPLATE}` in the pool"
        );
    }
    let stop = CancellationToken::new();
    let service =
        |port| SocketAddr::new(IpAddr::V4(agent.claim.instance().service_address()), port);
    let no_names = |error| failure("start the name server of the sandboxes")(error);
    let dns = DnsServer::bind(service(DNS_PORT))
        .await
        .map_err(|error| no_names(error.into()))?;
    let refusals = DnsServer::bind_refusing(service(REFUSED_DNS_PORT))
        .await
        .map_err(|error| no_names(error.into()))?;
    let dns = tokio::spawn(dns.serve(stop.clone().cancelled_owned()));
    let refusals = tokio::spawn(refusals.serve(stop.clone().cancelled_owned()));

    let front_settings = FrontSettings {
        listeners: vec![address.to_string()],
        domain: settings.domain.clone(),
        tls_cert_pem: settings.tls.as_ref().map(|tls| tls.cert_pem.clone()),
        tls_key_pem: settings.tls.as_ref().map(|tls| tls.key_pem.clone()),
        api_key: credentials.api_key,
        access_token: credentials.access_token,
        admin_token: credentials.admin_token,
        token_seed: secrets.token_seed,
        database_url: settings
            .database_url
            .as_ref()
            .map(|url| url.as_str().to_owned()),
        max_sandbox_hours: settings.max_sandbox_hours,
        max_sandboxes: settings.max_sandboxes,
        max_requests: settings.max_requests,
        template_images: settings.template_images,
        keep_builds: settings.keep_builds.as_secs(),
        rate_limits: settings.rate_limits.clone(),
        admin_listener: settings.admin_listen.map(|address| address.to_string()),
    };
    let handler = Arc::new(handler::Requests::new(
        agent.host.clone(),
        front_settings,
        std::iter::once(listener).chain(admin_listener).collect(),
        node::NodeAccount::new(&settings.data_dir)
            .map_err(|error| failure("read random bytes")(anyhow::anyhow!("{error}")))?,
    ));
    let others = fronts::Others::bind(&settings.data_dir)
        .map_err(|error| failure("listen for other fronts")(error.into()))?;
    let others = tokio::spawn(others.serve(agent.host.clone(), Arc::clone(&handler), stop.clone()));
    let mut supervising = tokio::spawn(fronts::supervise(
        settings.clone(),
        agent.host.clone(),
        handler,
        stop.clone(),
    ));
    info!(%address, "serving");
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut supervising => Some(ended),
    };
    info!("stopping");
    stop.cancel();
    let ended = match ended {
        Some(ended) => ended,
        None => supervising.await,
    };
    for task in [others, dns, refusals] {
        if let Err(error) = task.await {
            warn!(%error, "a task of the agent failed");
        }
    }
    agent.stop().await?;
    match ended {
        Ok(fronts::Ending::Stopped) => Ok(()),
        Ok(fronts::Ending::TooOld) => Err(Failure::new(anyhow::anyhow!(
            "the records are of a newer soulbox, as the front says above"
        ))
        .hint("use the soulbox that made them, or a newer one")
        .too_old()),
        Err(error) => Err(failure("keep a front running")(error.into())),
    }
}

impl Agent {
    async fn start(settings: &Settings, snapshot_key: [u8; 32]) -> Result<Self, Failure> {
        let data = &settings.data_dir;
        let lock = lock::DataDirLock::take(data)?;
        let guests = guests::unpack(data)?;
        let options = PoolOptions {
            size: settings.pool_size,
        };
        let opened = {
            let data = data.clone();
            tokio::task::spawn_blocking(move || BtrfsPool::open(&data, options)).await
        };
        let pool = opened
            .map_err(|error| failure("open the pool")(error.into()))?
            .map_err(|error: PoolError| {
                Failure::new(anyhow::Error::new(error).context("failed to open the pool"))
                    .hint("soulbox doctor says what this host lacks")
            })?;
        let pool = Arc::new(pool);
        let claim = InstanceClaim::take(data)
            .map_err(|error| failure("claim a place on this host")(error.into()))?;
        let run = data.join("run");
        let runtime = Native::start(
            claim.instance(),
            &guests.directory,
            &run,
            &NetworkPolicy {
                allow_internal: settings.egress_allow_internal.clone(),
                connections: settings.max_connections,
            },
        )
        .map_err(|error| {
            Failure::new(anyhow::Error::new(error).context("failed to take the host in use"))
                .hint("soulbox doctor says what this host lacks")
        })?;
        let checkpoints = Checkpoints {
            criu: criu::find(settings.criu.as_deref()),
            programs: data.join("bin"),
        };
        if let Err(missing) = &checkpoints.criu {
            info!(%missing, "sandboxes cannot be paused with their memory");
        }
        let runtime = NativeRuntime::new(runtime, claim.instance(), checkpoints)
            .map_err(|error| failure("raise the inotify limits")(error.into()))?;
        let host = Host::start(
            runtime,
            Arc::clone(&pool) as Arc<dyn SnapshotPool>,
            HostSettings {
                data: data.clone(),
                warm: WarmTargets {
                    booted: settings.warm as usize,
                    parked: settings.parked as usize,
                },
                default_template: DEFAULT_TEMPLATE.to_owned(),
                guests: guests.digest,
                memory_reserve: settings.memory_reserve,
                snapshot_key,
                store: settings.store.clone(),
                keep_layers: settings.keep_builds,
            },
        )
        .await
        .map_err(|error| failure("start the host agent")(error.into()))?;
        Ok(Self {
            host,
            pool,
            claim,
            _lock: lock,
        })
    }

    /// Leaves running sandboxes as they are. Without any, the host gets everything back.
    async fn stop(self) -> Result<(), Failure> {
        let left = self.host.clone().stop().await;
        if left > 0 {
            info!(
                sandboxes = left,
                "stopped; sandboxes run on and the next start adopts them"
            );
            return Ok(());
        }
        let instance = self.claim.instance();
        let pool = Arc::clone(&self.pool);
        let removed = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            soulbox_runtime::native::remove(instance)?;
            pool.unmount_within(UNMOUNT_WITHIN)?;
            Ok(())
        });
        match removed.await {
            Ok(Ok(())) => {
                self.claim.release();
                info!("stopped; nothing is left on the host");
                Ok(())
            }
            Ok(Err(error)) => Err(Failure::new(error.context("failed to give the host back"))),
            Err(error) => Err(failure("give the host back")(error.into())),
        }
    }
}

/// The folder of the guest programs below a data directory, unpacked.
///
/// # Errors
/// This build carries none, or the file system's.
pub fn unpack_guests(data: &std::path::Path) -> Result<PathBuf, Failure> {
    guests::unpack(data).map(|guests| guests.directory)
}

fn failure(doing: &'static str) -> impl FnOnce(anyhow::Error) -> Failure {
    move |error| Failure::new(error.context(format!("failed to {doing}")))
}

/// Path of the running program, for starting it anew in another role; works also when the file was replaced.
fn own_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// One line for the log.
fn line(error: &anyhow::Error) -> String {
    chain(error.as_ref())
}
