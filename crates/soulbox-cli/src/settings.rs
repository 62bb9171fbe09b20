//! What the operator chose: defaults < config file < `SOULBOX_*` < flags, resolved once, checked before a port opens.
//!
//! Every setting has one key, such as `data_dir`; the environment spells it `SOULBOX_DATA_DIR`, the command line `--data-dir`.
//! All three sources give texts to one parser, so they accept the same values and fail alike.

mod error;
mod source;

#[cfg(test)]
mod tests;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use soulbox_api::RateLimits;
use soulbox_runtime::network::Cidr;
use soulbox_types::MiB;
use soulbox_wire::host::TemplateImages;

pub use error::{SettingsError, Source};
pub use source::{Environment, Flag, ServeFlags};

use error::BadValue;

const POSTGRES_URL: &str = "a URL such as postgres://user:password@localhost:5432/soulbox";
/// Where the config file is looked for when none is named.
const DEFAULT_FILE: &str = "/etc/soulbox/soulbox.toml";

/// Everything that can be set, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Absolute.
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub domain: Option<String>,
    pub tls: Option<Tls>,
    /// Whether a listener that others reach may go without TLS.
    pub insecure: bool,
    /// The size of the pool's loop file; absent: it chooses and grows by itself.
    pub pool_size: Option<MiB>,
    /// Slots kept with a running envd, for all templates together.
    pub warm: u32,
    /// Slots kept with a parked launcher.
    pub parked: u32,
    /// The user (and group) number of the front process.
    pub front_uid: u32,
    /// Internal addresses that sandboxes may reach all the same.
    pub egress_allow_internal: Vec<Cidr>,
    /// Connections to the outside that one sandbox may have at once.
    pub max_connections: u32,
    /// Creates are refused when less of the host's memory is available.
    pub memory_reserve: MiB,
    pub max_sandbox_hours: u64,
    pub max_sandboxes: u32,
    /// Requests under way into the ports of one sandbox, and as many to its envd.
    pub max_requests: u32,
    /// What a build begins with that names an image of which only something near is here.
    pub template_images: TemplateImages,
    /// How long a build without a tag is kept, and a layer without a build.
    pub keep_builds: Duration,
    /// How often a team may ask each route, as JSON, known to be right.
    pub rate_limits: Option<String>,
    /// Where figures are told, if anywhere; only this machine reaches it.
    pub admin_listen: Option<SocketAddr>,
    /// Where CRIU is unpacked, absolute; absent: wherever a set-up puts it.
    pub criu: Option<PathBuf>,
    /// Where sealed snapshots are kept, absolute.
    pub store: Option<PathBuf>,
    /// Where the records are when they are not in the data directory.
    pub database_url: Option<DatabaseUrl>,
    pub log_format: LogFormat,
    /// Filter directives, such as `info` or `warn,soulbox_host=debug`.
    pub log: String,
}

/// Certificate chain and key, read and known to be PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    pub cert_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of every log.
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Where a PostgreSQL database is, known to be usable.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password stays out of every log.
        f.debug_struct("DatabaseUrl").finish_non_exhaustive()
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The name of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    DataDir,
    Listen,
    Domain,
    TlsCert,
    TlsKey,
    Insecure,
    PoolSize,
    Warm,
    Parked,
    FrontUid,
    EgressAllowInternal,
    MaxConnections,
    MemoryReserve,
    MaxSandboxHours,
    MaxSandboxes,
    MaxRequests,
    TemplateImages,
    KeepBuilds,
    RateLimits,
    AdminListen,
    Criu,
    Store,
    DatabaseUrl,
    LogFormat,
    Log,
}

impl Setting {
    const ALL: [Self; 25] = [
        Self::DataDir,
        Self::Listen,
        Self::Domain,
        Self::TlsCert,
        Self::TlsKey,
        Self::Insecure,
        Self::PoolSize,
        Self::Warm,
        Self::Parked,
        Self::FrontUid,
        Self::EgressAllowInternal,
        Self::MaxConnections,
        Self::MemoryReserve,
        Self::MaxSandboxHours,
        Self::MaxSandboxes,
        Self::MaxRequests,
        Self::TemplateImages,
        Self::KeepBuilds,
        Self::RateLimits,
        Self::AdminListen,
        Self::Criu,
        Self::Store,
        Self::DatabaseUrl,
        Self::LogFormat,
        Self::Log,
    ];

    /// As the config file has it.
    fn name(self) -> &'static str {
        match self {
            Self::DataDir => "data_dir",
            Self::Listen => "listen",
            Self::Domain => "domain",
            Self::TlsCert => "tls_cert",
            Self::TlsKey => "tls_key",
            Self::Insecure => "insecure",
            Self::PoolSize => "pool_size",
            Self::Warm => "warm",
            Self::Parked => "parked",
            Self::FrontUid => "front_uid",
            Self::EgressAllowInternal => "egress_allow_internal",
            Self::MaxConnections => "max_connections",
            Self::MemoryReserve => "memory_reserve",
            Self::MaxSandboxHours => "max_sandbox_hours",
            Self::MaxSandboxes => "max_sandboxes",
            Self::MaxRequests => "max_requests",
            Self::TemplateImages => "template_images",
            Self::KeepBuilds => "keep_builds",
            Self::RateLimits => "rate_limits",
            Self::AdminListen => "admin_listen",
            Self::Criu => "criu",
            Self::Store => "store",
            Self::DatabaseUrl => "database_url",
            Self::LogFormat => "log_format",
            Self::Log => "log",
        }
    }

    fn variable(self) -> String {
        format!("SOULBOX_{}", self.name().to_uppercase())
    }

    fn flag(self) -> String {
        format!("--{}", self.name().replace('_', "-"))
    }
}

impl Settings {
    /// Resolves all sources. `file` is the config file that the command line names, if it does.
    /// # Errors
    /// [`SettingsError`], whose [`SettingsError::hint`] says what to do.
    pub fn resolve(
        file: Option<&Path>,
        environment: Environment<'_>,
        flags: &[Flag],
    ) -> Result<Self, SettingsError> {
        let mut raw = Raw::default();
        let named = file
            .map(Path::to_owned)
            .or_else(|| environment("SOULBOX_CONFIG").map(PathBuf::from));
        match named {
            Some(path) => source::read_file(&path, &mut raw)?,
            None if Path::new(DEFAULT_FILE).exists() => {
                source::read_file(Path::new(DEFAULT_FILE), &mut raw)?
            }
            None => {}
        }
        source::read_environment(environment, &mut raw)?;
        for (key, value) in flags {
            raw.set(*key, value)
                .map_err(|bad| bad.from(Source::Flag(key.flag())))?;
        }
        raw.check()
    }
}

/// Values before they are checked against each other.
struct Raw {
    data_dir: PathBuf,
    listen: SocketAddr,
    domain: Option<String>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    insecure: bool,
    pool_size: Option<MiB>,
    warm: u32,
    parked: u32,
    front_uid: u32,
    egress_allow_internal: Vec<Cidr>,
    max_connections: u32,
    memory_reserve: MiB,
    max_sandbox_hours: u64,
    max_sandboxes: u32,
    max_requests: u32,
    template_images: TemplateImages,
    keep_builds: Duration,
    rate_limits: Option<String>,
    admin_listen: Option<SocketAddr>,
    criu: Option<PathBuf>,
    store: Option<PathBuf>,
    database_url: Option<DatabaseUrl>,
    log_format: LogFormat,
    log: String,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/soulbox"),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3000),
            domain: None,
            tls_cert: None,
            tls_key: None,
            insecure: false,
            pool_size: None,
            warm: 16,
            parked: 4,
            // Above what distributions give to people and services, below the range of subordinate users.
            front_uid: 61_357,
            egress_allow_internal: Vec::new(),
            max_connections: 4096,
            memory_reserve: MiB(512),
            max_sandbox_hours: 24,
            max_sandboxes: 1000,
            max_requests: 2000,
            template_images: TemplateImages::Alias,
            keep_builds: Duration::from_secs(30 * 24 * 3600),
            rate_limits: None,
            admin_listen: None,
            criu: None,
            store: None,
            database_url: None,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
        }
    }
}

impl Raw {
    fn set(&mut self, key: Setting, text: &str) -> Result<(), BadValue> {
        match key {
            Setting::DataDir => self.data_dir = path(text)?,
            Setting::Listen => {
                self.listen = text.parse().map_err(|_| {
                    BadValue::new(text, "an address with a port, such as 127.0.0.1:3000")
                })?;
            }
            Setting::Domain => self.domain = Some(domain(text)?),
            Setting::TlsCert => self.tls_cert = Some(path(text)?),
            Setting::TlsKey => self.tls_key = Some(path(text)?),
            Setting::Insecure => {
                self.insecure = text
                    .parse()
                    .map_err(|_| BadValue::new(text, "true or false"))?
            }
            Setting::PoolSize => self.pool_size = Some(size(text)?),
            Setting::Warm => self.warm = number(text, 0, 1000)?,
            Setting::Parked => self.parked = number(text, 0, 1000)?,
            Setting::FrontUid => self.front_uid = number(text, 1, 0x6fff_ffff)?,
            Setting::EgressAllowInternal => {
                self.egress_allow_internal = text
                    .split(',')
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .map(|part| {
                        part.parse()
                            .map_err(|_| BadValue::new(part, "an IPv4 range such as 10.1.0.0/16"))
                    })
                    .collect::<Result<_, _>>()?;
            }
            Setting::MaxConnections => self.max_connections = number(text, 1, 1_000_000)?,
            Setting::MemoryReserve => self.memory_reserve = size(text)?,
            Setting::MaxSandboxHours => {
                self.max_sandbox_hours = u64::from(number(text, 1, 24 * 365)?)
            }
            Setting::MaxSandboxes => self.max_sandboxes = number(text, 1, 100_000)?,
            Setting::MaxRequests => self.max_requests = number(text, 1, 100_000)?,
            Setting::TemplateImages => {
                self.template_images = match text {
                    "alias" => TemplateImages::Alias,
                    "strict" => TemplateImages::Strict,
                    _ => return Err(BadValue::new(text, "alias or strict")),
                };
            }
            Setting::KeepBuilds => self.keep_builds = duration(text)?,
            Setting::RateLimits => {
                RateLimits::parse(text).map_err(|error| BadValue::new(text, error.wanted()))?;
                self.rate_limits = Some(text.to_owned());
            }
            Setting::AdminListen => {
                let wanted = "a loopback address with a port, such as 127.0.0.1:9090";
                let address: SocketAddr = text.parse().map_err(|_| BadValue::new(text, wanted))?;
                // What is told there needs no credential.
                if !address.ip().is_loopback() {
                    return Err(BadValue::new(text, wanted));
                }
                self.admin_listen = Some(address);
            }
            Setting::Criu => self.criu = Some(folder(text)?),
            Setting::Store => self.store = Some(folder(text)?),
            Setting::DatabaseUrl => {
                // Not quoted: it may have a password.
                soulbox_store::postgres_options(text).map_err(|error| {
                    BadValue::new("(hidden)", format!("{POSTGRES_URL}: {error}"))
                })?;
                self.database_url = Some(DatabaseUrl(text.to_owned()));
            }
            Setting::LogFormat => {
                self.log_format = match text {
                    "text" => LogFormat::Text,
                    "json" => LogFormat::Json,
                    _ => return Err(BadValue::new(text, "text or json")),
                };
            }
            Setting::Log => {
                let valid = text.parse::<tracing_subscriber::filter::Targets>().is_ok();
                self.log = valid.then(|| text.to_owned()).ok_or_else(|| {
                    BadValue::new(text, "a log filter such as info or warn,soulbox_host=debug")
                })?;
            }
        }
        Ok(())
    }

    fn check(self) -> Result<Settings, SettingsError> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(Tls {
                cert_pem: pem(cert, "certificate", &["CERTIFICATE"])?,
                key_pem: pem(
                    key,
                    "key",
                    &["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"],
                )?,
            }),
            (Some(_), None) => {
                return Err(SettingsError::HalfTls {
                    given: "tls_cert",
                    missing: "tls_key",
                });
            }
            (None, Some(_)) => {
                return Err(SettingsError::HalfTls {
                    given: "tls_key",
                    missing: "tls_cert",
                });
            }
        };
        if !self.listen.ip().is_loopback() && tls.is_none() && !self.insecure {
            return Err(SettingsError::OpenWithoutTls {
                listen: self.listen,
            });
        }
        let data_dir =
            std::path::absolute(&self.data_dir).map_err(|source| SettingsError::DataDir {
                path: self.data_dir.clone(),
                source,
            })?;
        Ok(Settings {
            data_dir,
            listen: self.listen,
            domain: self.domain,
            tls,
            insecure: self.insecure,
            pool_size: self.pool_size,
            warm: self.warm,
            parked: self.parked,
            front_uid: self.front_uid,
            egress_allow_internal: self.egress_allow_internal,
            max_connections: self.max_connections,
            memory_reserve: self.memory_reserve,
            max_sandbox_hours: self.max_sandbox_hours,
            max_sandboxes: self.max_sandboxes,
            max_requests: self.max_requests,
            template_images: self.template_images,
            keep_builds: self.keep_builds,
            rate_limits: self.rate_limits,
            admin_listen: self.admin_listen,
            criu: self.criu,
            store: self.store,
            database_url: self.database_url,
            log_format: self.log_format,
            log: self.log,
        })
    }
}

fn folder(text: &str) -> Result<PathBuf, BadValue> {
    std::path::absolute(path(text)?).map_err(|_| BadValue::new(text, "a folder"))
}

fn path(text: &str) -> Result<PathBuf, BadValue> {
    if text.is_empty() {
        Err(BadValue::new(text, "a path"))
    } else {
        Ok(PathBuf::from(text))
    }
}

fn number(text: &str, least: u32, most: u32) -> Result<u32, BadValue> {
    match text.parse::<u32>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(BadValue::new(
            text,
            format!("a number from {least} to {most}"),
        )),
    }
}

/// `512MiB`, `20GiB`, `1TiB`.
fn size(text: &str) -> Result<MiB, BadValue> {
    [("MiB", 1), ("GiB", 1 << 10), ("TiB", 1 << 20)]
        .into_iter()
        .find_map(|(unit, factor): (_, u64)| {
            text.strip_suffix(unit)?
                .trim()
                .parse::<u64>()
                .ok()?
                .checked_mul(factor)
        })
        .filter(|mebibytes| (1..1 << 40).contains(mebibytes))
        .map(MiB)
        .ok_or_else(|| BadValue::new(text, "a size such as 512MiB or 20GiB"))
}

/// `90s`, `15m`, `12h`, `30d`; of a century at most.
fn duration(text: &str) -> Result<Duration, BadValue> {
    const LONGEST: u64 = 36_500 * 24 * 3600;
    [("s", 1), ("m", 60), ("h", 3600), ("d", 24 * 3600)]
        .into_iter()
        .find_map(|(unit, seconds): (_, u64)| {
            text.strip_suffix(unit)?
                .trim()
                .parse::<u64>()
                .ok()?
                .checked_mul(seconds)
        })
        .filter(|seconds| (1..=LONGEST).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| BadValue::new(text, "a time such as 12h or 30d"))
}

fn domain(text: &str) -> Result<String, BadValue> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // An IP address has no subdomains, so it cannot be one.
    if text.len() <= 190 && text.split('.').all(label) && text.parse::<IpAddr>().is_err() {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(BadValue::new(text, "a domain such as sandbox.example.com"))
    }
}

fn pem(path: &Path, what: &'static str, kinds: &[&str]) -> Result<String, SettingsError> {
    let text = fs::read_to_string(path).map_err(|source| SettingsError::TlsUnreadable {
        what,
        path: path.to_owned(),
        source,
    })?;
    let whole = kinds.iter().any(|kind| {
        let begin = text.find(&format!("-----BEGIN {kind}-----"));
        begin.is_some_and(|begin| text[begin..].contains(&format!("-----END {kind}-----")))
    });
    if whole {
        Ok(text)
    } else {
        Err(SettingsError::NotPem {
            what,
            path: path.to_owned(),
        })
    }
}
