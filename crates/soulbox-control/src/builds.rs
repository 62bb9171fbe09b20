//! Builds of templates as control sees them: what is asked for ([`BuildSpecification`]), who performs it ([`Builder`]), and what comes back.
//!
//! A build is a row from the moment its template is requested: waiting (files may be uploaded), building (started, a [`Builder`] has it),
//! then ready or failed for good. Control owns the row, the tags, the log and the deadline; a [`Builder`] only performs one [`BuildJob`]
//! from its beginning to its end and reports through [`BuildReporter`]. How a step is performed is not known here.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use soulbox_types::{BuildId, Limits, TeamId, TemplateId, UnixMillis};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::archives::Archives;
use crate::clock;
use crate::contents::Contents;
use crate::logs::LogLevel;
use crate::store::BuildRow;

/// What a build is made of. Kept in the store as JSON; credentials of registries are not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSpecification {
    pub source: BuildSource,
    pub steps: Vec<BuildStep>,
    /// Nothing is taken from the cache.
    pub force: bool,
    pub start_command: Option<String>,
    pub ready_command: Option<String>,
    /// What is wanted to be free on the disk of a sandbox; none is the installation's default.
    pub min_free_disk_mib: Option<u64>,
}

/// What a build begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildSource {
    /// As the client wrote it, such as `debian:12` or `e2bdev/base`.
    Image(String),
    /// A reference as the client wrote it; [`BuildJob::parent`] is what it means.
    Template(String),
}

/// One step. Its kind is not checked here: one that nobody knows fails the build, as documented.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildStep {
    /// `RUN`, `COPY`, `ADD`, `WORKDIR`, `USER`, `ENV` or `ARG`, in upper case.
    pub kind: String,
    pub args: Vec<String>,
    /// Of the archive that a COPY takes its files from; [`Archives::path`] is where it lies.
    pub files_hash: Option<FilesHash>,
    /// This step and all after it are not taken from the cache.
    pub force: bool,
}

/// The client's name for an uploaded archive: 64 hexadecimal digits in lower case, a digest of what only the client knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilesHash(String);

/// The text is no [`FilesHash`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hash of files is 64 hexadecimal digits in lower case")]
pub struct FilesHashError;

impl FilesHash {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FilesHash {
    type Err = FilesHashError;

    fn from_str(text: &str) -> Result<Self, FilesHashError> {
        let is_digit = |it: u8| it.is_ascii_digit() || (b'a'..=b'f').contains(&it);
        if text.len() == 64 && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(FilesHashError)
        }
    }
}

impl TryFrom<String> for FilesHash {
    type Error = FilesHashError;

    fn try_from(text: String) -> Result<Self, FilesHashError> {
        text.parse()
    }
}

impl From<FilesHash> for String {
    fn from(hash: FilesHash) -> Self {
        hash.0
    }
}

impl fmt::Display for FilesHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How to log in to the registry of an image; only in memory, and in no log.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryLogin {
    Basic {
        username: String,
        password: String,
    },
    Aws {
        access_key_id: String,
        secret_access_key: String,
        region: String,
    },
    Gcp {
        service_account_json: String,
    },
}

impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "RegistryLogin::Basic",
            Self::Aws { .. } => "RegistryLogin::Aws",
            Self::Gcp { .. } => "RegistryLogin::Gcp",
        })
    }
}

/// Which generation of clients wrote the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepRules {
    /// Clients before 2.3.0: no layer of the default user, steps run as root until one says otherwise.
    V2_0,
    V2_1,
}

/// The build that a build goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentBuild {
    pub row: BuildRow,
    /// What its own build ended with; none when it was built on the host.
    pub finished: Option<FinishedBuild>,
}

/// All that is needed to perform one build.
#[derive(Debug, Clone)]
pub struct BuildJob {
    pub build_id: BuildId,
    pub template_id: TemplateId,
    /// Caches are the team's own.
    pub team_id: TeamId,
    /// Of the sandboxes that will be made from it; steps run within them as well.
    pub limits: Limits,
    pub rules: StepRules,
    pub specification: BuildSpecification,
    pub registry_login: Option<RegistryLogin>,
    /// Always there when the source is [`BuildSource::Template`].
    pub parent: Option<ParentBuild>,
    /// The archives that the team has uploaded.
    pub archives: Archives,
    /// Cancelled when the build is superseded, its template is deleted, it took too long, or the server stops. What it has made is to be
    /// given back and [`Builder::build`] to return soon; what it returns then is not looked at.
    pub cancelled: CancellationToken,
}

/// What a good build ends with. Kept in the store as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedBuild {
    /// Names of the layers in the pool, lowest first.
    pub layers: Vec<String>,
    pub default_user: String,
    pub default_workdir: String,
    /// What steps of builds from this one find; sandboxes do not.
    pub env: BTreeMap<String, String>,
    pub start_command: Option<String>,
    pub ready_command: Option<String>,
    pub envd_version: String,
    /// What the disk limit of its sandboxes is in the end.
    pub disk_mib: u64,
}

/// Begins the host's names of snapshots that builds end with.
const SNAPSHOT_PREFIX: &str = "build-";

/// The host's name of the snapshot that a build ends with, where it has a start command: of a sandbox in which that runs and is ready.
#[must_use]
pub fn snapshot_of_build(build_id: &BuildId) -> String {
    format!("{SNAPSHOT_PREFIX}{build_id}")
}

/// The build that a snapshot of the host belongs to.
pub(crate) fn build_of_snapshot(name: &str) -> Option<BuildId> {
    name.strip_prefix(SNAPSHOT_PREFIX)?.parse().ok()
}

/// Why a build failed, in the client's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildFailure {
    /// `base`, `finalize`, or the number of a step, from 1; none when it was not the client's fault.
    pub step: Option<String>,
    pub message: String,
}

/// A line of a build's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLogLine {
    pub at: UnixMillis,
    pub level: LogLevel,
    /// `base`, `finalize`, or the number of a step, from 1.
    pub step: Option<String>,
    /// At most [`LONGEST_MESSAGE`] bytes; of what is longer the middle is left out, since a failure's last lines say why.
    pub message: String,
}

/// Of one line of a build's log.
pub const LONGEST_MESSAGE: usize = 16 << 10;
/// Lines that a builder may be ahead of the store.
const REPORTS: usize = 256;

/// Performs builds. Implemented where hosts can be told to run steps.
#[async_trait]
pub trait Builder: Send + Sync + 'static {
    /// Performs a build from beginning to end; control bounds its time and runs it in a task of its own. When it is good, hosts know the
    /// build by its ID, so that a create from it works. They must not list it among [`crate::Hosts::templates`]: those are the
    /// installation's own, and everybody's.
    ///
    /// # Errors
    /// The build failed; nothing of it is left but layers that the cache may keep.
    async fn build(
        &self,
        job: BuildJob,
        reporter: BuildReporter,
    ) -> Result<FinishedBuild, BuildFailure>;

    /// What is in a build; none when no host has it.
    ///
    /// # Errors
    /// Why nobody can say; not for the client's eyes.
    async fn contents(&self, build_id: &BuildId) -> Result<Option<Contents>, String>;

    /// Nobody will create from these builds any more; what only they need may be deleted. Sandboxes that run keep what they have. Returns
    /// those that no host knows any more.
    async fn forget(&self, builds: &[BuildId]) -> Vec<BuildId>;
}

/// Where a builder tells how it goes. Clones tell the same build.
#[derive(Debug, Clone)]
pub struct BuildReporter(mpsc::Sender<BuildLogLine>);

impl BuildReporter {
    /// A reporter, and what control reads.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<BuildLogLine>) {
        let (sender, receiver) = mpsc::channel(REPORTS);
        (Self(sender), receiver)
    }

    /// Adds a line to the build's log, now. Waits while the store is behind; lines of a build that is over are dropped.
    pub async fn log(&self, level: LogLevel, step: Option<&str>, message: impl Into<String>) {
        let message = shortened(message.into());
        let line = BuildLogLine {
            at: clock::wall(),
            level,
            step: step.map(str::to_owned),
            message,
        };
        // Nobody listens any more when the build was cancelled, which the job's token tells as well.
        drop(self.0.send(line).await);
    }
}

fn shortened(message: String) -> String {
    const LEFT_OUT: &str = "\n[...]\n";
    if message.len() <= LONGEST_MESSAGE {
        return message;
    }
    let half = (LONGEST_MESSAGE - LEFT_OUT.len()) / 2;
    let first = &message[..message.floor_char_boundary(half)];
    let last = &message[message.ceil_char_boundary(message.len() - half)..];
    [first, LEFT_OUT, last].concat()
}

/// The [`Builder`] of a control, once there is one.
pub(crate) type BuilderSlot = std::sync::OnceLock<Arc<dyn Builder>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_message_the_begin_and_the_end_are_kept() {
        assert_eq!(shortened("ü".repeat(8192)), "ü".repeat(8192));
        let long = shortened(format!("first {} last", "ü".repeat(10_000)));
        assert!(long.len() <= LONGEST_MESSAGE && long.len() > LONGEST_MESSAGE - 8);
        assert!(long.starts_with("first ü") && long.ends_with("ü last"));
        assert!(long.contains("\n[...]\n"));
    }

    #[test]
    fn hashes_are_64_lower_hexadecimal_digits() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(
            good.parse::<FilesHash>().map(String::from),
            Ok(good.clone())
        );
        let upper = good.to_uppercase();
        let dots = format!("{}/..", &good[..61]);
        for bad in ["", &good[1..], &format!("{good}0"), &upper, &dots] {
            assert_eq!(bad.parse::<FilesHash>(), Err(FilesHashError), "{bad}");
        }
    }

    #[test]
    fn a_specification_survives_the_store() {
        let specification = BuildSpecification {
            source: BuildSource::Template("base:v1".to_owned()),
            steps: vec![BuildStep {
                kind: "COPY".to_owned(),
                args: vec!["a".to_owned(), "b".to_owned()],
                files_hash: Some("0".repeat(64).parse().expect("a hash")),
                force: true,
            }],
            force: false,
            start_command: Some("serve".to_owned()),
            ready_command: None,
            min_free_disk_mib: Some(7),
        };
        let text = serde_json::to_string(&specification).expect("JSON");
        assert_eq!(
            serde_json::from_str::<BuildSpecification>(&text).ok(),
            Some(specification)
        );
    }

    #[test]
    fn a_snapshot_of_a_build_is_told_by_its_name() {
        let build: BuildId = "0b5d4a7e-0000-4000-8000-000000000000"
            .parse()
            .expect("an ID");
        assert_eq!(
            build_of_snapshot(&snapshot_of_build(&build)),
            Some(build.clone())
        );
        for other in [build.as_str(), "build-", "snap-0", "fork-build-x"] {
            assert_eq!(build_of_snapshot(other), None, "{other}");
        }
    }

    #[test]
    fn secrets_of_registries_are_not_shown() {
        let login = RegistryLogin::Basic {
            username: "me".to_owned(),
            password: "hunter2".to_owned(),
        };
        assert_eq!(format!("{login:?}"), "RegistryLogin::Basic");
    }

    #[tokio::test]
    async fn a_line_of_a_log_is_shortened() {
        let (reporter, mut lines) = BuildReporter::channel();
        let long = "ü".repeat(LONGEST_MESSAGE);
        reporter.log(LogLevel::Info, Some("1"), &*long).await;
        let line = lines.recv().await.expect("a line");
        assert_eq!(line.message, shortened(long));
    }
}
