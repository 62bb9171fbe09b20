//! `soulbox admin snapshot`: copies of snapshots in the store of sealed ones. Asks the server's agent, which has pool and store.

use anyhow::anyhow;
use serde_json::{Value, json};
use soulbox_wire::host::{Collected, Reply, Request, Sealed, SnapshotCopies};

use super::{Common, Shown, print};
use crate::commands::ask::ask;
use crate::failure::Failure;
use crate::rpc::RpcError;

#[derive(Debug, clap::Subcommand)]
pub enum SnapshotCommand {
    /// Show all snapshots and where they are
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Put a snapshot into the store; what an earlier one has in common with it is not stored again
    Seal(OneSnapshot),
    /// Delete the local copy of a sealed snapshot; whoever needs it gets it from the store
    DropLocal(OneSnapshot),
    /// Delete from the store what no sealed snapshot needs
    Collect {
        #[command(flatten)]
        common: Common,
        /// Count only
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub struct OneSnapshot {
    #[command(flatten)]
    common: Common,
    /// Its ID, as list shows it
    snapshot_id: String,
}

impl SnapshotCommand {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::List { common } | Self::Collect { common, .. } => common,
            Self::Seal(snapshot) | Self::DropLocal(snapshot) => &snapshot.common,
        }
    }
}

pub(super) fn run(command: &SnapshotCommand) -> Result<(), Failure> {
    let common = command.common();
    let settings = common.installation.clone().settings(None)?;
    let request = match command {
        SnapshotCommand::List { .. } => Request::SnapshotCopies,
        SnapshotCommand::Seal(one) => Request::SealSnapshot {
            snapshot_id: one.snapshot_id.clone(),
        },
        SnapshotCommand::DropLocal(one) => Request::DropLocalSnapshot {
            snapshot_id: one.snapshot_id.clone(),
        },
        SnapshotCommand::Collect { dry_run, .. } => Request::CollectStore { dry_run: *dry_run },
    };
    let reply = ask(&settings, request, refused)?;
    print(&shown(command, reply)?, common.json)
}

fn refused(error: RpcError) -> Failure {
    let hint = match &error {
        RpcError::Host(host) if host.message.contains("`store` is not set") => {
            "start soulbox serve with --store DIR"
        }
        RpcError::Host(_) => "soulbox admin snapshot list shows what there is",
        _ => "the server's log says more",
    };
    Failure::new(anyhow::Error::new(error)).hint(hint)
}

fn shown(command: &SnapshotCommand, reply: Reply) -> Result<Shown, Failure> {
    match (command, reply) {
        (SnapshotCommand::List { .. }, Reply::SnapshotCopies(all)) => Ok(Shown {
            json: all.iter().map(as_json).collect::<Vec<_>>().into(),
            lines: all.iter().map(as_line).collect(),
        }),
        (SnapshotCommand::Seal(one), Reply::Sealed(sealed)) => {
            let Sealed {
                bytes,
                added_objects,
                added_bytes,
            } = sealed;
            Ok(Shown {
                json: json!({
                    "snapshot_id": one.snapshot_id,
                    "bytes": bytes,
                    "added_objects": added_objects,
                    "added_bytes": added_bytes,
                }),
                lines: vec![format!(
                    "sealed {}: {} in all, {} of it new in {added_objects} objects",
                    one.snapshot_id,
                    size(bytes),
                    size(added_bytes)
                )],
            })
        }
        (SnapshotCommand::DropLocal(one), Reply::Done) => Ok(Shown {
            json: json!({ "snapshot_id": one.snapshot_id, "local": false, "sealed": true }),
            lines: vec![format!("{} is in the store only", one.snapshot_id)],
        }),
        (SnapshotCommand::Collect { dry_run, .. }, Reply::Collected(collected)) => {
            let Collected {
                kept_objects,
                kept_bytes,
                deleted_objects,
                deleted_bytes,
            } = collected;
            let verb = if *dry_run { "would delete" } else { "deleted" };
            Ok(Shown {
                json: json!({
                    "dry_run": dry_run,
                    "kept_objects": kept_objects,
                    "kept_bytes": kept_bytes,
                    "deleted_objects": deleted_objects,
                    "deleted_bytes": deleted_bytes,
                }),
                lines: vec![format!(
                    "{verb} {} in {deleted_objects} objects, {} in {kept_objects} are needed",
                    size(deleted_bytes),
                    size(kept_bytes)
                )],
            })
        }
        _ => Err(Failure::new(anyhow!(
            "the server answered something else; it may be of another version"
        ))
        .hint("restart soulbox serve")),
    }
}

fn as_json(copies: &SnapshotCopies) -> Value {
    let SnapshotCopies {
        snapshot,
        local,
        sealed,
    } = copies;
    json!({
        "snapshot_id": snapshot.snapshot_id,
        "sandbox_id": snapshot.sandbox_id,
        "build_id": snapshot.build_id,
        "memory": snapshot.memory,
        "created_at": snapshot.created_at,
        "disk_bytes": snapshot.disk_bytes,
        "image_bytes": snapshot.image_bytes,
        "local": local,
        "sealed": sealed,
    })
}

fn as_line(copies: &SnapshotCopies) -> String {
    let place = match (copies.local, copies.sealed) {
        (true, true) => "local and sealed",
        (true, false) => "local",
        (false, _) => "sealed",
    };
    let snapshot = &copies.snapshot;
    format!(
        "{}  of sandbox {}  disk {}, memory {}  {place}",
        snapshot.snapshot_id,
        snapshot.sandbox_id,
        size(snapshot.disk_bytes),
        size(snapshot.image_bytes)
    )
}

fn size(bytes: u64) -> String {
    if bytes < 10 << 20 {
        format!("{} KiB", bytes.div_ceil(1 << 10))
    } else {
        format!("{} MiB", bytes.div_ceil(1 << 20))
    }
}
