//! The three places that settings come from, each turned into texts for [`super::Raw::set`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Spanned, Value};

use super::error::{BadValue, SettingsError, Source};
use super::{Raw, Setting};

/// Looks up an environment variable. A parameter, so that tests need not change the process.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A flag of the command line with its value.
pub type Flag = (Setting, String);

/// The flags of `soulbox serve`: every setting.
#[derive(Debug, Default, clap::Args)]
pub struct ServeFlags {
    /// Directory of all that SoulBox keeps [default: /var/lib/soulbox]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Address of the API and of all sandboxes [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Domain under which sandboxes are reached as <port>-<id>.<domain>
    #[arg(long)]
    pub domain: Option<String>,
    /// Certificate chain, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Private key, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Allow plain text on an address that others can reach
    #[arg(long)]
    pub insecure: bool,
    /// Size of the pool's file [default: 10 GiB, growing]
    #[arg(long, value_name = "SIZE")]
    pub pool_size: Option<String>,
    /// Slots kept with a running agent, for the templates that are used [default: 16]
    #[arg(long, value_name = "N")]
    pub warm: Option<String>,
    /// Slots kept with a parked launcher [default: 4]
    #[arg(long, value_name = "N")]
    pub parked: Option<String>,
    /// User and group number of the front process [default: 61357]
    #[arg(long, value_name = "UID")]
    pub front_uid: Option<String>,
    /// Internal IPv4 ranges that sandboxes may reach, separated by commas
    #[arg(long, value_name = "RANGES")]
    pub egress_allow_internal: Option<String>,
    /// Connections to the outside that one sandbox may have at once [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<String>,
    /// Memory of the host that stays available: with less, creates are refused [default: 512MiB]
    #[arg(long, value_name = "SIZE")]
    pub memory_reserve: Option<String>,
    /// Longest life of a sandbox [default: 24]
    #[arg(long, value_name = "HOURS")]
    pub max_sandbox_hours: Option<String>,
    /// Sandboxes at once [default: 1000]
    #[arg(long, value_name = "N")]
    pub max_sandboxes: Option<String>,
    /// Requests under way into the ports of one sandbox, and as many to its envd [default: 2000]
    #[arg(long, value_name = "N")]
    pub max_requests: Option<String>,
    /// What a template build from an image begins with that is not here, where something near is: alias, that, or strict, nothing [default: alias]
    #[arg(long, value_name = "POLICY")]
    pub template_images: Option<String>,
    /// How long a template's build is kept that has no tag any more, and a layer that no build has [default: 30d]
    #[arg(long, value_name = "TIME")]
    pub keep_builds: Option<String>,
    /// How often a team may ask each route [default: as it likes], such as '{"POST /v2/sandboxes": {"rate": 5, "burst": 10}}'
    #[arg(long, value_name = "JSON")]
    pub rate_limits: Option<String>,
    /// Loopback address that tells figures at /metrics [default: none]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<String>,
    /// Folder into which CRIU is unpacked [default: /opt/soulbox/criu, else the host's own]
    #[arg(long, value_name = "DIRECTORY")]
    pub criu: Option<String>,
    /// Directory of sealed snapshots [default: none, nothing can be sealed]
    #[arg(long, value_name = "DIR")]
    pub store: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Log filter [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl ServeFlags {
    /// Those that were given.
    #[must_use]
    pub fn into_flags(self) -> Vec<Flag> {
        [
            (Setting::DataDir, self.data_dir),
            (Setting::Listen, self.listen),
            (Setting::Domain, self.domain),
            (Setting::TlsCert, self.tls_cert),
            (Setting::TlsKey, self.tls_key),
            (Setting::Insecure, self.insecure.then(|| "true".to_owned())),
            (Setting::PoolSize, self.pool_size),
            (Setting::Warm, self.warm),
            (Setting::Parked, self.parked),
            (Setting::FrontUid, self.front_uid),
            (Setting::EgressAllowInternal, self.egress_allow_internal),
            (Setting::MaxConnections, self.max_connections),
            (Setting::MemoryReserve, self.memory_reserve),
            (Setting::MaxSandboxHours, self.max_sandbox_hours),
            (Setting::MaxSandboxes, self.max_sandboxes),
            (Setting::MaxRequests, self.max_requests),
            (Setting::TemplateImages, self.template_images),
            (Setting::KeepBuilds, self.keep_builds),
            (Setting::RateLimits, self.rate_limits),
            (Setting::AdminListen, self.admin_listen),
            (Setting::Criu, self.criu),
            (Setting::Store, self.store),
            (Setting::LogFormat, self.log_format),
            (Setting::Log, self.log),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }
}

pub(super) fn read_environment(
    environment: Environment<'_>,
    raw: &mut Raw,
) -> Result<(), SettingsError> {
    for key in Setting::ALL {
        let variable = key.variable();
        // Set to nothing is how scripts unset.
        if let Some(value) = environment(&variable).filter(|value| !value.is_empty()) {
            raw.set(key, &value)
                .map_err(|bad| bad.from(Source::Variable(variable)))?;
        }
    }
    Ok(())
}

pub(super) fn read_file(path: &Path, raw: &mut Raw) -> Result<(), SettingsError> {
    let text = fs::read_to_string(path).map_err(|source| SettingsError::FileUnreadable {
        path: path.to_owned(),
        source,
    })?;
    let at = |offset| {
        let (line, column) = position(&text, offset);
        Source::File {
            path: PathBuf::from(path),
            line,
            column,
        }
    };
    let table: BTreeMap<Spanned<String>, Spanned<Value>> =
        toml::from_str(&text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            SettingsError::FileSyntax {
                at: at(offset),
                message: error.message().to_owned(),
            }
        })?;
    for (name, value) in table {
        let Some(key) = Setting::ALL
            .into_iter()
            .find(|key| key.name() == name.get_ref())
        else {
            let known = Setting::ALL.map(Setting::name).join(", ");
            return Err(SettingsError::UnknownKey {
                at: at(name.span().start),
                key: name.into_inner(),
                known,
            });
        };
        let place = at(value.span().start);
        as_text(value.get_ref())
            .and_then(|text| raw.set(key, &text))
            .map_err(|bad| bad.from(place))?;
    }
    Ok(())
}

fn as_text(value: &Value) -> Result<String, BadValue> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Boolean(truth) => Ok(truth.to_string()),
        Value::Array(values) => values
            .iter()
            .map(as_text)
            .collect::<Result<Vec<_>, _>>()
            .map(|texts| texts.join(",")),
        other => Err(BadValue::new(
            &other.to_string(),
            "a text, number, true, false or list of texts",
        )),
    }
}

/// Line and column of a byte, from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}
