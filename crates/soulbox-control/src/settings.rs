//! What control is told at its start; nothing here is read from the environment.

use std::path::PathBuf;
use std::time::Duration;

use soulbox_types::{Limits, MiB, MilliCpu};

/// Policy and secrets of one installation.
#[derive(Clone)]
pub struct ControlSettings {
    /// Key of the HMACs that make envd and traffic tokens; at least 32 bytes.
    pub token_seed: Vec<u8>,
    /// Secret of the administration routes and of acting as any team.
    pub admin_token: String,
    /// The longest life of a sandbox, in hours, of a team that has no limit of its own.
    pub max_sandbox_hours: u32,
    /// Concurrent sandboxes of a team that has no limit of its own.
    pub max_sandboxes: u32,
    /// The most CPUs, MiB of memory and MiB of disk that a create may ask for.
    pub max_cpus: u32,
    pub max_memory_mib: u64,
    pub max_disk_mib: u64,
    /// What API answers name as the version of the agent in sandboxes.
    pub envd_version: String,
    /// How long a host may take to start a sandbox.
    pub start_within: Duration,
    /// How long one attempt to kill or to move a deadline may take.
    pub command_within: Duration,
    /// How long one attempt to make a snapshot may take.
    pub save_within: Duration,
    /// How long rows of dead sandboxes are kept.
    pub keep_dead: Duration,
    /// Of templates that are built over the API, unless their request says otherwise.
    pub template_limits: Limits,
    /// Builds of one team that are waiting or under way.
    pub max_builds: u32,
    /// How long a build may take, and how long it may wait to be started.
    pub build_within: Duration,
    pub start_build_within: Duration,
    /// How long a build is kept that has no tag any more.
    pub keep_builds: Duration,
    /// Where uploaded archives of COPY steps are kept; none: they cannot be uploaded.
    pub archives: Option<PathBuf>,
    pub max_archive_bytes: u64,
    /// How long an archive is kept after its upload.
    pub keep_archives: Duration,
}

impl ControlSettings {
    /// The defaults of a self-hosted installation, with its secrets.
    #[must_use]
    pub fn new(token_seed: Vec<u8>, admin_token: String) -> Self {
        Self {
            token_seed,
            admin_token,
            max_sandbox_hours: 24,
            max_sandboxes: 1000,
            max_cpus: 8,
            max_memory_mib: 8192,
            max_disk_mib: 25_600,
            envd_version: "0.6.13".to_owned(),
            start_within: Duration::from_secs(30),
            command_within: Duration::from_secs(15),
            save_within: Duration::from_secs(120),
            keep_dead: Duration::from_secs(7 * 24 * 3600),
            template_limits: Limits {
                memory: MiB(1024),
                cpu: MilliCpu::whole(2),
                pids: 4096,
                disk: MiB(10_240),
            },
            max_builds: 20,
            build_within: Duration::from_secs(3600),
            start_build_within: Duration::from_secs(40 * 60),
            keep_builds: Duration::from_secs(30 * 24 * 3600),
            archives: None,
            max_archive_bytes: 8 << 30,
            keep_archives: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl std::fmt::Debug for ControlSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The secrets stay out of every log.
        f.debug_struct("ControlSettings")
            .field("max_sandbox_hours", &self.max_sandbox_hours)
            .field("max_sandboxes", &self.max_sandboxes)
            .finish_non_exhaustive()
    }
}

/// The secrets of the default team, as `credentials.json` has them.
#[derive(Clone)]
pub struct Credentials {
    /// `e2b_` and hex.
    pub api_key: String,
    /// `sk_e2b_` and hex.
    pub access_token: String,
}
