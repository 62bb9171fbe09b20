//! Between E2B's spelling and control's words.

use std::collections::BTreeMap;
use std::time::Duration;

use soulbox_control::{
    AtDeadline, BuildRow, BuildStatus, LimitOverrides, Package, PackageKind, Policy, SandboxSpec,
    SandboxView, TemplateView,
};
use soulbox_types::{HttpsPorts, Inbound, Network, SandboxState, UnixMillis};
use soulbox_wire::rest;

use crate::error::ApiError;
use crate::{query, time};

/// Old clients want to see one, nothing depends on it.
const CLIENT_ID: &str = "6532622b";

/// The generations of the create and connect routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    V1,
    V2,
}

impl Generation {
    fn default_timeout(self) -> i32 {
        match self {
            Self::V1 => 15,
            Self::V2 => 300,
        }
    }

    /// Whether a create has a say of where its sandbox may connect to. Clients of the old form send `true` whatever their user says.
    fn says_network(self, access: Option<bool>, outbound: &rest::OutboundConfig) -> bool {
        let of_access = match self {
            Self::V1 => access == Some(false),
            Self::V2 => access.is_some(),
        };
        of_access || outbound.allow_out.is_some() || outbound.deny_out.is_some()
    }
}

/// What a create asks for; its idempotency is the header's business.
pub(crate) fn spec(
    body: rest::NewSandbox,
    generation: Generation,
) -> Result<SandboxSpec, ApiError> {
    let template = body
        .template_id
        .as_deref()
        .ok_or_else(|| lacks("templateID"))?;
    let timeout = body.timeout.map(|it| seconds("timeout", it)).transpose()?;
    let template = template.parse()?;
    let lifecycle = Lifecycle::read(
        body.auto_pause,
        body.auto_pause_memory,
        body.auto_resume.as_ref(),
    )?;
    refuse_unsupported(&body)?;
    let env = body.env_vars.unwrap_or_default();
    check_env(&env)?;
    let metadata = body.metadata.unwrap_or_default();
    query::without_nul(metadata.iter().flat_map(|(key, value)| [key, value]))?;
    let config = body.network.unwrap_or_default();
    let inbound = inbound(config.mask_request_host.as_deref(), config.https_ports)?;
    let said = generation.says_network(body.allow_internet_access, &config.outbound);
    let network = network(body.allow_internet_access, config.outbound, &config.others)?;
    Ok(SandboxSpec {
        template,
        policy: Policy {
            timeout,
            at_deadline: lifecycle.at_deadline,
            auto_resume: lifecycle.auto_resume,
            network: said.then(|| network.clone()),
        },
        usual_timeout: seconds("timeout", generation.default_timeout())?,
        usual_network: network,
        secure: match generation {
            Generation::V1 => body.secure.unwrap_or(false),
            Generation::V2 => true,
        },
        public_traffic: config.allow_public_traffic.unwrap_or(true),
        inbound,
        metadata,
        env,
        overrides: LimitOverrides {
            cpus: body.cpu_count,
            memory_mib: body.memory_mb,
            disk_mib: body.disk_size_mb,
        },
        idempotency: None,
    })
}

/// What a template says for creates that say nothing.
pub(crate) fn policy(defaults: rest::SandboxDefaults) -> Result<Policy, ApiError> {
    if let Some((key, _)) = defaults.others.iter().find(|(_, it)| means_something(it)) {
        return Err(ApiError::not_implemented(&format!(
            "field \"sandboxDefaults.{key}\""
        )));
    }
    let timeout = defaults.timeout.map(|it| seconds("timeout", it));
    let lifecycle = Lifecycle::read(
        defaults.auto_pause,
        defaults.auto_pause_memory,
        defaults.auto_resume.as_ref(),
    )?;
    let network = match (defaults.allow_internet_access, defaults.network) {
        (None, None) => None,
        (access, config) => {
            let config = config.unwrap_or_default();
            refuse_inbound(&config.others)?;
            Some(network(access, config.outbound, &config.others)?)
        }
    };
    Ok(Policy {
        timeout: timeout.transpose()?,
        at_deadline: lifecycle.at_deadline,
        auto_resume: lifecycle.auto_resume,
        network,
    })
}

/// The inverse of [`policy`].
pub(crate) fn sandbox_defaults(policy: &Policy) -> Option<rest::SandboxDefaults> {
    if *policy == Policy::default() {
        return None;
    }
    let list = |texts: &[String]| (!texts.is_empty()).then(|| texts.to_vec());
    let network = policy.network.as_ref();
    Some(rest::SandboxDefaults {
        timeout: policy
            .timeout
            .map(|it| i32::try_from(it.as_secs()).unwrap_or(i32::MAX)),
        auto_pause: policy
            .at_deadline
            .map(|it| matches!(it, AtDeadline::Pause { .. })),
        auto_pause_memory: match policy.at_deadline {
            Some(AtDeadline::Pause { memory: false }) => Some(false),
            _ => None,
        },
        auto_resume: policy
            .auto_resume
            .map(|enabled| rest::AutoResume { enabled }),
        allow_internet_access: network.and_then(Network::internet_access),
        network: network.map(|network| rest::DefaultNetwork {
            outbound: rest::OutboundConfig {
                allow_out: list(network.allow_out()),
                deny_out: list(network.deny_out()),
                ..rest::OutboundConfig::default()
            },
            others: BTreeMap::new(),
        }),
        others: BTreeMap::new(),
    })
}

/// What is said of the end of a sandbox's time.
struct Lifecycle {
    at_deadline: Option<AtDeadline>,
    auto_resume: Option<bool>,
}

impl Lifecycle {
    fn read(
        auto_pause: Option<bool>,
        memory: Option<bool>,
        auto_resume: Option<&rest::AutoResume>,
    ) -> Result<Self, ApiError> {
        let auto_resume = auto_resume.map(|it| it.enabled);
        let memory = memory.unwrap_or(true);
        if !memory && auto_pause != Some(true) {
            return Err(ApiError::bad_request(
                "autoPauseMemory=false only applies when autoPause is true.",
            ));
        }
        if !memory && auto_resume == Some(true) {
            return Err(auto_resume_without_memory());
        }
        Ok(Self {
            at_deadline: auto_pause.map(|pauses| match pauses {
                true => AtDeadline::Pause { memory },
                false => AtDeadline::Kill,
            }),
            auto_resume,
        })
    }
}

pub(crate) fn auto_resume_without_memory() -> ApiError {
    ApiError::bad_request(
        "autoPauseMemory=false (filesystem-only auto-pause) cannot be combined with autoResume.",
    )
}

/// Fields that mean something and would be ignored otherwise.
fn refuse_unsupported(body: &rest::NewSandbox) -> Result<(), ApiError> {
    let field = if body.mcp.is_some() {
        "mcp"
    } else if body
        .iam
        .as_ref()
        .is_some_and(|it| it.values().any(means_something))
    {
        "iam"
    } else if body.volume_mounts.as_ref().is_some_and(|it| !it.is_empty()) {
        "volumeMounts"
    } else {
        return Ok(());
    };
    Err(ApiError::not_implemented(&format!("field \"{field}\"")))
}

/// How requests reach the sandbox's ports.
fn inbound(mask: Option<&str>, https_ports: Option<Vec<i64>>) -> Result<Inbound, ApiError> {
    Ok(Inbound {
        mask: mask.map(str::parse).transpose()?,
        https: HttpsPorts::new(&https_ports.unwrap_or_default())?,
    })
}

/// What a sandbox keeps for life cannot be part of an update.
pub(crate) fn refuse_inbound(others: &BTreeMap<String, serde_json::Value>) -> Result<(), ApiError> {
    const FOR_LIFE: [&str; 3] = ["allowPublicTraffic", "maskRequestHost", "httpsPorts"];
    let given = |field: &&str| others.get(*field).is_some_and(means_something);
    match FOR_LIFE.into_iter().find(given) {
        Some(field) => Err(ApiError::bad_request(format!(
            "network.{field} can be set only when the sandbox is created"
        ))),
        None => Ok(()),
    }
}

/// The outbound configuration of a create or an update.
pub(crate) fn network(
    internet_access: Option<bool>,
    outbound: rest::OutboundConfig,
    others: &BTreeMap<String, serde_json::Value>,
) -> Result<Network, ApiError> {
    if outbound.egress_proxy.as_ref().is_some_and(means_something) {
        return Err(ApiError::forbidden(
            "Egress proxy (network.egressProxy) is not enabled for this team.",
        ));
    }
    if outbound.rules.as_ref().is_some_and(means_something) {
        return Err(ApiError::bad_request(
            "Network transform rules are not available for your team.",
        ));
    }
    if let Some((key, _)) = others.iter().find(|(_, value)| means_something(value)) {
        return Err(ApiError::not_implemented(&format!(
            "field \"network.{key}\""
        )));
    }
    Ok(Network::new(
        internet_access,
        outbound.allow_out.unwrap_or_default(),
        outbound.deny_out.unwrap_or_default(),
    )?)
}

fn means_something(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => false,
        serde_json::Value::Array(items) => !items.is_empty(),
        serde_json::Value::Object(entries) => !entries.is_empty(),
        _ => true,
    }
}

/// What no process can have in its environment.
fn check_env(env: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let bad = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    match env.iter().find(bad) {
        Some((name, _)) => Err(ApiError::invalid(&format!(
            "envVars: {name:?} cannot be an environment variable"
        ))),
        None => Ok(()),
    }
}

/// The timeout of a connect.
pub(crate) fn connect_timeout(
    body: &rest::ConnectSandbox,
    generation: Generation,
) -> Result<Duration, ApiError> {
    match (body.timeout, generation) {
        (Some(timeout), _) => seconds("timeout", timeout),
        (None, Generation::V2) => seconds("timeout", generation.default_timeout()),
        (None, Generation::V1) => Err(lacks("timeout")),
    }
}

/// A number of seconds that may not be negative.
pub(crate) fn seconds(field: &str, value: i32) -> Result<Duration, ApiError> {
    match u64::try_from(value) {
        Ok(value) => Ok(Duration::from_secs(value)),
        Err(_) => Err(ApiError::invalid(&format!(
            "\"{field}\": number must be at least 0"
        ))),
    }
}

pub(crate) fn lacks(field: &str) -> ApiError {
    ApiError::invalid(&format!(
        "request body has an error: property \"{field}\" is missing"
    ))
}

/// The answer to create and connect.
pub(crate) fn sandbox(view: &SandboxView, domain: Option<&String>) -> rest::Sandbox {
    rest::Sandbox {
        template_id: view.row.template_id.to_string(),
        sandbox_id: view.row.sandbox_id.to_string(),
        alias: view.row.alias.clone(),
        client_id: CLIENT_ID.to_owned(),
        envd_version: view.row.envd_version.clone(),
        envd_access_token: view.access_token.clone(),
        traffic_access_token: view.traffic_token.clone(),
        domain: domain.cloned(),
    }
}

/// What is on the way to a pause counts as paused, and until it answers so does what is resumed.
fn state(view: &SandboxView) -> rest::SandboxState {
    match view.progress.state {
        SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming => {
            rest::SandboxState::Paused
        }
        SandboxState::Creating
        | SandboxState::Running
        | SandboxState::Killing
        | SandboxState::Dead => rest::SandboxState::Running,
    }
}

/// An item of a list.
pub(crate) fn listed(view: &SandboxView) -> rest::ListedSandbox {
    let (row, progress) = (&view.row, &view.progress);
    let state = state(view);
    rest::ListedSandbox {
        template_id: row.template_id.to_string(),
        sandbox_id: row.sandbox_id.to_string(),
        alias: row.alias.clone(),
        client_id: CLIENT_ID.to_owned(),
        started_at: time::format(progress.started_at.unwrap_or(row.created_at)),
        end_at: time::format(match (state, progress.pause) {
            (rest::SandboxState::Paused, Some(pause)) => pause.at,
            _ => progress.deadline,
        }),
        cpu_count: row.limits.cpu.cpus(),
        memory_mb: row.limits.memory.0,
        disk_size_mb: row.limits.disk.0,
        metadata: row.metadata.clone(),
        state,
        envd_version: row.envd_version.clone(),
        volume_mounts: Vec::new(),
        envd_unresponsive_at_pause: view
            .progress
            .pause
            .filter(|_| view.progress.state == SandboxState::Paused)
            .and_then(|pause| pause.silent_guest.then_some(true)),
    }
}

/// Everything about one sandbox.
pub(crate) fn detail(view: &SandboxView, domain: Option<&String>) -> rest::SandboxDetail {
    rest::SandboxDetail {
        listed: listed(view),
        envd_access_token: view.access_token.clone(),
        domain: domain
            .filter(|_| state(view) == rest::SandboxState::Running)
            .cloned(),
        pause_mode: match (view.progress.state, view.progress.pause) {
            (SandboxState::Paused, Some(pause)) if pause.memory => Some(rest::PauseMode::Full),
            (SandboxState::Paused, Some(_)) => Some(rest::PauseMode::Filesystem),
            _ => None,
        },
        allow_internet_access: view.row.network.internet_access(),
        network: network_view(view),
        lifecycle: rest::Lifecycle {
            auto_resume: view.row.lifecycle.auto_resume.is_some(),
            on_timeout: match view.row.lifecycle.at_deadline {
                AtDeadline::Kill => rest::OnTimeout::Kill,
                AtDeadline::Pause { .. } => rest::OnTimeout::Pause,
            },
        },
    }
}

/// Absent when all of it is as by default.
fn network_view(view: &SandboxView) -> Option<rest::NetworkView> {
    let network = &view.row.network;
    let inbound = &view.row.inbound;
    let default = view.row.public_traffic
        && **inbound == Inbound::default()
        && network.allow_out().is_empty()
        && network.deny_out().is_empty();
    (!default).then(|| rest::NetworkView {
        allow_public_traffic: view.row.public_traffic,
        allow_out: network.allow_out().to_vec(),
        deny_out: network.deny_out().to_vec(),
        mask_request_host: inbound.mask.as_ref().map(ToString::to_string),
        https_ports: inbound.https.as_slice().to_vec(),
    })
}

pub(crate) fn template(view: &TemplateView) -> rest::Template {
    let row = &view.template;
    let build = view.build.as_ref();
    rest::Template {
        template_id: row.template_id.to_string(),
        build_id: build.map(|it| it.build_id.to_string()).unwrap_or_default(),
        cpu_count: build.map_or(0, |it| it.limits.cpu.cpus()),
        memory_mb: build.map_or(0, |it| it.limits.memory.0),
        disk_size_mb: build.map_or(0, |it| it.limits.disk.0),
        public: row.public,
        aliases: view.aliases.clone(),
        names: view.names.clone(),
        created_at: time::format(row.created_at),
        updated_at: time::format(row.updated_at),
        created_by: None,
        last_spawned_at: row.last_spawned_at.map(time::format),
        spawn_count: row.spawn_count,
        build_count: view.builds.len(),
        envd_version: build.map(|it| it.envd_version.clone()).unwrap_or_default(),
        build_status: status(
            view.builds
                .first()
                .map_or(BuildStatus::Waiting, |it| it.status),
        ),
    }
}

pub(crate) fn package(package: Package) -> rest::TemplatePackage {
    let kind = match package.kind {
        PackageKind::Debian => "debian",
        PackageKind::Python => "python",
        PackageKind::Node => "node",
    };
    rest::TemplatePackage {
        kind: kind.to_owned(),
        name: package.name,
        version: package.version,
    }
}

pub(crate) fn build(row: &BuildRow) -> rest::TemplateBuild {
    rest::TemplateBuild {
        build_id: row.build_id.to_string(),
        status: status(row.status),
        created_at: time::format(row.created_at),
        updated_at: time::format(row.updated_at),
        finished_at: row.finished_at.map(time::format),
        cpu_count: row.limits.cpu.cpus(),
        memory_mb: row.limits.memory.0,
        disk_size_mb: row.limits.disk.0,
        envd_version: row.envd_version.clone(),
        sandbox_defaults: sandbox_defaults(&row.policy),
    }
}

/// Where a list of builds goes on.
pub(crate) fn build_cursor(row: &BuildRow) -> (UnixMillis, String) {
    (row.created_at, row.build_id.to_string())
}

pub(crate) fn status(status: BuildStatus) -> rest::BuildStatus {
    match status {
        BuildStatus::Waiting => rest::BuildStatus::Waiting,
        BuildStatus::Building => rest::BuildStatus::Building,
        BuildStatus::Ready => rest::BuildStatus::Ready,
        BuildStatus::Failed => rest::BuildStatus::Error,
    }
}
