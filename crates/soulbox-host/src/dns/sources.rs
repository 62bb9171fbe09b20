//! How the host resolves: its hosts file first, then the name servers of its resolv.conf. Both are read again when they change.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::config::{ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};

/// How long a changed file may go unnoticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For one attempt at one name server; an asker inside gives up after about five seconds.
const ATTEMPT: Duration = Duration::from_millis(1500);
const ATTEMPTS: usize = 2;
const CACHED_ANSWERS: u64 = 4096;

/// The files that say how to resolve.
#[derive(Debug, Clone)]
pub struct Sources {
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            hosts: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

pub(super) struct Resolver {
    sources: Sources,
    /// Where we listen: a resolv.conf that names it would have us ask ourselves.
    own: SocketAddr,
    state: Mutex<State>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

struct State {
    looked: Instant,
    hosts_mark: Option<Mark>,
    resolv_mark: Option<Mark>,
    current: Current,
}

#[derive(Clone)]
struct Current {
    hosts: Arc<Hosts>,
    /// None when the host names no server.
    upstream: Option<TokioResolver>,
}

/// What tells one state of a file from the next.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Resolver {
    pub(super) fn new(sources: Sources, own: SocketAddr) -> Self {
        let (hosts_mark, resolv_mark) = (mark(&sources.hosts), mark(&sources.resolv_conf));
        let current = Current {
            hosts: Arc::new(read_hosts(&sources.hosts)),
            upstream: upstream(&sources.resolv_conf, own),
        };
        let state = Mutex::new(State {
            looked: Instant::now(),
            hosts_mark,
            resolv_mark,
            current,
        });
        Self {
            sources,
            own,
            state,
        }
    }

    /// What the host finds for a fully qualified name. The hosts file wins; there is no answer of both.
    pub(super) async fn lookup(&self, name: &Name, kind: RecordType) -> Result<Lookup, NetError> {
        let current = self.current();
        let query = Query::query(name.clone(), kind);
        if let Some(found) = current.hosts.lookup_static_host(&query) {
            return Ok(found);
        }
        match current.upstream {
            Some(upstream) => upstream.lookup(name.clone(), kind).await,
            None => Err(NetError::NoConnections),
        }
    }

    /// The configuration as it is on disk, give or take [`LOOK_EVERY`]. Looked at only when somebody asks, so that an idle host
    /// stays idle; the files are small and local, so that no thread is needed.
    fn current(&self) -> Current {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let found = mark(&self.sources.hosts);
            if found != state.hosts_mark {
                state.hosts_mark = found;
                state.current.hosts = Arc::new(read_hosts(&self.sources.hosts));
            }
            let found = mark(&self.sources.resolv_conf);
            if found != state.resolv_mark {
                state.resolv_mark = found;
                state.current.upstream = upstream(&self.sources.resolv_conf, self.own);
            }
        }
        state.current.clone()
    }
}

fn mark(path: &Path) -> Option<Mark> {
    let metadata = fs::metadata(path).ok()?;
    Some(Mark {
        inode: metadata.ino(),
        size: metadata.size(),
        seconds: metadata.mtime(),
        nanoseconds: metadata.mtime_nsec(),
    })
}

/// An absent or broken file has no entries, as for the host's own resolver.
fn read_hosts(path: &Path) -> Hosts {
    let mut hosts = Hosts::default();
    if let Err(error) = File::open(path).and_then(|file| hosts.read_hosts_conf(file)) {
        tracing::warn!(%error, path = %path.display(), "failed to read the hosts file");
    }
    hosts
}

fn upstream(path: &Path, own: SocketAddr) -> Option<TokioResolver> {
    let text = fs::read(path)
        .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "failed to read the resolver's configuration"))
        .ok()?;
    let (config, mut options) = system_conf::parse_resolv_conf(text)
        .inspect_err(
            |error| tracing::warn!(%error, path = %path.display(), "the host names no name server"),
        )
        .ok()?;
    let (_, _, mut servers) = config.into_parts();
    servers.retain(|server| server.ip != own.ip());
    if servers.is_empty() {
        return None;
    }
    options.timeout = ATTEMPT;
    options.attempts = ATTEMPTS;
    options.cache_size = CACHED_ANSWERS;
    options.use_hosts_file = ResolveHosts::Never; // ours is read again when it changes
    options.preserve_intermediates = true; // askers follow the chain of aliases themselves
    let mut builder = TokioResolver::builder_with_config(
        ResolverConfig::from_parts(None, Vec::new(), servers),
        TokioRuntimeProvider::default(),
    );
    *builder.options_mut() = options;
    builder
        .build()
        .inspect_err(|error| tracing::warn!(%error, "failed to make a resolver"))
        .ok()
}
