//! Builds that were made without a server, by recipes, get their snapshot from the first server that sees them.

use tokio::sync::mpsc;

use super::{READY_PACE, READY_WITHIN, SETTLE, STEP_WITHIN, Steps};
use crate::bench::{Bench, BenchError, Command, KnownBuild};
use crate::ready::{ReadyError, until_ready};

/// Why a build has no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum AheadError {
    #[error("there was no sandbox for it")]
    Sandbox(#[source] BenchError),
    #[error("its programs did not become ready")]
    Ready(#[from] ReadyError),
    #[error("this host makes none: {0}")]
    Unsupported(String),
    #[error("it could not be made")]
    Snapshot(#[source] BenchError),
    #[error("it could not be noted")]
    Note(#[source] BenchError),
}

impl KnownBuild {
    /// Whether its sandboxes have programs to wait for, and no snapshot to go on from.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        self.started.is_none() && (self.start_command.is_some() || self.ready_command.is_some())
    }
}

impl Steps {
    /// Makes the snapshot that a build over the API would have ended with. Takes as long as the build's programs take to be ready.
    ///
    /// # Errors
    /// See [`AheadError`]; creates go on as before.
    pub async fn start_ahead(&self, build: KnownBuild) -> Result<(), AheadError> {
        let failed = |error: String| AheadError::Sandbox(BenchError::Failed(error));
        let _permit = self.places.take(None).await;
        let build_id = build.build_id.parse();
        let build_id =
            build_id.map_err(|error: soulbox_types::IdError| failed(error.to_string()))?;
        let started = self.benches.start(&build_id, &build.layers, &build.limits);
        let bench = started.await.map_err(AheadError::Sandbox)?;
        let made = match ready(&*bench, &build).await {
            Ok(()) => bench
                .snapshot(&build_id)
                .await
                .map_err(AheadError::Snapshot),
            Err(error) => Err(error.into()),
        };
        bench.end().await;
        let name = made?.map_err(AheadError::Unsupported)?;
        let build = KnownBuild {
            started: Some(name),
            ..build
        };
        self.benches.keep(build).await.map_err(AheadError::Note)
    }
}

/// Waits until the programs that sandboxes of the build have run in this one.
async fn ready(bench: &dyn Bench, build: &KnownBuild) -> Result<(), ReadyError> {
    let command = |text: &Option<String>, within| {
        text.as_ref().map(|text| Command {
            text: text.clone(),
            user: build.default_user.clone(),
            workdir: Some(build.default_workdir.clone()),
            env: build.env.clone(),
            within,
        })
    };
    let start = command(&build.start_command, STEP_WITHIN);
    let ready = command(&build.ready_command, READY_WITHIN);
    let (output, mut written) = mpsc::channel(64);
    let drain = async { while written.recv().await.is_some() {} };
    let readying = until_ready(
        bench,
        start.as_ref(),
        ready.as_ref(),
        READY_PACE,
        SETTLE,
        output,
    );
    let (outcome, ()) = tokio::join!(readying, drain);
    outcome
}
