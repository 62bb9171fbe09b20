//! The seam to the host: what a build needs of it, and nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use soulbox_types::{BuildId, Limits};
use tokio::sync::mpsc;

/// A build that the host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBuild {
    /// Of the template, where it is one of the installation's own.
    pub name: String,
    pub template_id: String,
    pub build_id: String,
    /// Names of its layers, lowest first.
    pub layers: Vec<String>,
    pub limits: Limits,
    pub default_user: String,
    pub default_workdir: String,
    pub env: BTreeMap<String, String>,
    pub start_command: Option<String>,
    pub ready_command: Option<String>,
    /// A snapshot in which the start command runs and is ready, where the host can use it.
    pub started: Option<String>,
}

/// Why the host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BenchError {
    /// The program could not be started, for a reason that its author can understand.
    #[error("{0}")]
    Refused(String),
    /// The sandbox ended under the program.
    #[error("the sandbox of the step ended: {0}")]
    Ended(String),
    /// Disk, memory or slots of the host are used up.
    #[error("the host has no room for it: {0}")]
    NoCapacity(String),
    /// Ours; not for the client's eyes.
    #[error("{0}")]
    Failed(String),
}

/// What is heard of a program while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// It runs; comes first.
    Started,
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    /// Such as `exit status 1` or `signal: killed`.
    pub status: String,
}

/// `bash -l -c` of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub text: String,
    pub user: String,
    /// `None` is the user's home.
    pub workdir: Option<String>,
    pub env: BTreeMap<String, String>,
    /// When it has not ended by then, it is given up.
    pub within: Duration,
}

/// Where benches come from.
#[async_trait]
pub trait Benches: Send + Sync + 'static {
    /// The newest build of every template that comes with the installation.
    async fn templates(&self) -> Result<Vec<KnownBuild>, BenchError>;

    /// One build.
    async fn build(&self, build_id: &BuildId) -> Result<Option<KnownBuild>, BenchError>;

    /// The layer that has the name now; it stays while the build that asks goes on.
    async fn find(&self, build_id: &BuildId, name: &str) -> Result<Option<String>, BenchError>;

    /// Gives a layer another name, by which it is found from now on.
    async fn name(&self, name: &str, layer: &str) -> Result<(), BenchError>;

    /// Which of the layers are there; they stay while the build that asks goes on.
    async fn present(
        &self,
        build_id: &BuildId,
        layers: &[String],
    ) -> Result<Vec<String>, BenchError>;

    /// Makes the host know a build by its ID; its layers are there.
    async fn keep(&self, build: KnownBuild) -> Result<(), BenchError>;

    /// Makes the host forget a build and its snapshot; one that it does not know is forgotten already.
    async fn forget(&self, build_id: &BuildId) -> Result<(), BenchError>;

    /// A sandbox for a step of a build, which begins from the layers. It is in no list, and ends when it is dropped, or its host hears nothing
    /// of it for a while.
    async fn start(
        &self,
        build_id: &BuildId,
        layers: &[String],
        limits: &Limits,
    ) -> Result<Box<dyn Bench>, BenchError>;
}

/// A sandbox in which programs can be run.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Runs a program to its end; what it writes goes to `output` meanwhile. Dropped before, the program goes on.
    async fn run(
        &self,
        command: &Command,
        output: mpsc::Sender<Output>,
    ) -> Result<Exit, BenchError>;
}

/// One sandbox, for one step.
#[async_trait]
pub trait Bench: Guest {
    /// Sends a file in, to be root's; folders above it are made.
    async fn send(&self, file: &Path, to: &str) -> Result<(), BenchError>;

    /// Makes all that was written a layer of that name, on disk when this returns.
    async fn commit(&self, layer: &str) -> Result<(), BenchError>;

    /// Makes a snapshot of it as it is, programs included, in place of an earlier one of the build; it goes on. Gives the snapshot's name, or
    /// why this host cannot make one.
    async fn snapshot(&self, build_id: &BuildId) -> Result<Result<String, String>, BenchError>;

    /// Ends it; no process of it is left when this returns.
    async fn end(self: Box<Self>);
}
