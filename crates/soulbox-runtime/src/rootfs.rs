//! The root of a sandbox: an overlay of ID-mapped layers, mounted by the host, detached, so that no mount table of the host ever shows it.
//!
//! An overlay on ID-mapped mounts works only when the mounter's file system IDs are those of the slot's root; else it turns read-only
//! without a word. Those IDs are per thread and would cost file capabilities, so one dedicated thread mounts for everybody.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use rustix::thread::CapabilitiesSecureBits;
use soulbox_sys::credentials::set_thread_fs_ids;
use soulbox_sys::mount::{MountAttributes, set_attributes};

use crate::identity::Slot;

/// Directories of an upper: what was changed, and what overlayfs works in.
pub const UPPER: &str = "u";
pub const WORK: &str = "w";
/// Below the root of every template, 1777; a mount of its own, so that setuid files are inert there.
const SHM: &str = "dev/shm";

/// What to mount.
#[derive(Debug, Clone)]
pub struct RootSource {
    /// Read-only trees, lowest first; IDs on disk are 0..65535.
    pub layers: Vec<PathBuf>,
    /// A directory with [`UPPER`] and [`WORK`], of the same file system.
    pub upper: PathBuf,
}

/// Detached mounts, ready to be handed to a launcher.
#[derive(Debug)]
pub struct Root {
    pub overlay: OwnedFd,
    pub shm: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
pub struct RootError {
    step: String,
    #[source]
    source: io::Error,
}

struct Job {
    slot: Slot,
    user_namespace: OwnedFd,
    source: RootSource,
    reply: SyncSender<Result<Root, RootError>>,
}

/// The thread that mounts. It ends when this is dropped.
#[derive(Debug)]
pub struct Mounter {
    jobs: SyncSender<Job>,
}

impl Mounter {
    /// Starts the thread. Needs root.
    ///
    /// # Errors
    /// When no thread can be made or it may not keep its capabilities.
    pub fn start() -> Result<Self, RootError> {
        let (jobs, inbox) = sync_channel(64);
        let (ready, is_ready) = sync_channel(1);
        thread::Builder::new()
            .name("mounter".into())
            .spawn(move || run(&inbox, &ready))
            .map_err(|source| RootError {
                step: "start the mounter".into(),
                source,
            })?;
        is_ready
            .recv()
            .map_err(|_| gone())?
            .map_err(|source| RootError {
                step: "keep capabilities across a change of file system IDs".into(),
                source,
            })?;
        Ok(Self { jobs })
    }

    /// Mounts the root of a slot; `user_namespace` is the slot's. Blocks for about 0.6 ms.
    ///
    /// # Errors
    /// The step that failed.
    pub fn mount(
        &self,
        slot: Slot,
        user_namespace: OwnedFd,
        source: RootSource,
    ) -> Result<Root, RootError> {
        let (reply, answer) = sync_channel(1);
        self.jobs
            .send(Job {
                slot,
                user_namespace,
                source,
                reply,
            })
            .map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

fn gone() -> RootError {
    RootError {
        step: "reach the mounter".into(),
        source: io::Error::from(io::ErrorKind::BrokenPipe),
    }
}

fn run(inbox: &Receiver<Job>, ready: &SyncSender<io::Result<()>>) {
    let kept = rustix::thread::capabilities_secure_bits().and_then(|bits| {
        rustix::thread::set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)
    });
    if ready.send(kept.map_err(io::Error::from)).is_err() || kept.is_err() {
        return;
    }
    while let Ok(job) = inbox.recv() {
        // A caller that went away has no use for the mounts; dropping them undoes them.
        let _ = job
            .reply
            .send(mount(job.slot, &job.user_namespace, &job.source));
    }
}

fn mount(slot: Slot, user_namespace: &OwnedFd, source: &RootSource) -> Result<Root, RootError> {
    let step = |step: &str| {
        let step = step.to_owned();
        move |source: io::Error| RootError { step, source }
    };
    set_thread_fs_ids(slot.id_base(), slot.id_base())
        .map_err(step("take the file system IDs of the slot"))?;
    let mapped = |path: &Path, read_only: bool| -> io::Result<OwnedFd> {
        let tree = open_tree(
            rustix::fs::CWD,
            path,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?;
        let attributes = MountAttributes {
            read_only,
            no_suid: false,
            no_exec: false,
            idmap: Some(user_namespace.as_fd()),
            recursive: false,
        };
        set_attributes(tree.as_fd(), attributes)?;
        Ok(tree)
    };
    let below = |mount: &OwnedFd, name: &OsStr| -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(mount, name, flags, Mode::empty())?)
    };
    // Each mount costs when it is made and when it goes, so those that lie beside each other share one. The overlay takes clones.
    let mut folders: Vec<(&Path, OwnedFd)> = Vec::new();
    let mut layers = Vec::new();
    for layer in &source.layers {
        let (Some(folder), Some(name)) = (layer.parent(), layer.file_name()) else {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(step("find the folder of a layer")(source));
        };
        let known = folders.iter().position(|(known, _)| *known == folder);
        let index = match known {
            Some(index) => index,
            None => {
                let mount = mapped(folder, true).map_err(step("map the IDs of layers"))?;
                folders.push((folder, mount));
                folders.len() - 1
            }
        };
        layers.push(below(&folders[index].1, name).map_err(step("open a layer"))?);
    }
    // Upper and work directory must come from one mount (EINVAL otherwise).
    let upper = mapped(&source.upper, false).map_err(step("map the IDs of the upper"))?;

    let overlay = (|| -> io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        fsconfig_set_string(context, "source", "soulbox")?;
        for layer in layers.iter().rev() {
            fsconfig_set_fd(context, "lowerdir+", layer)?;
        }
        fsconfig_set_fd(context, "upperdir", below(&upper, UPPER.as_ref())?)?;
        fsconfig_set_fd(context, "workdir", below(&upper, WORK.as_ref())?)?;
        // inotify marks survive a checkpoint only with file handles.
        fsconfig_set_string(context, "index", "on")?;
        fsconfig_set_string(context, "nfs_export", "on")?;
        // Without it the end of a sandbox would sync the whole pool.
        fsconfig_set_flag(context, "volatile")?;
        fsconfig_create(context)?;
        Ok(fsmount(
            context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?)
    })()
    .map_err(step("mount the overlay"))?;

    let shm = (|| -> io::Result<OwnedFd> {
        // Part of the overlay: a mount of the upper itself would show its name and the pool's device inside.
        let shm = open_tree(
            &overlay,
            SHM,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?;
        set_attributes(
            shm.as_fd(),
            MountAttributes {
                read_only: false,
                no_suid: true,
                no_exec: false,
                idmap: None,
                recursive: false,
            },
        )?;
        Ok(shm)
    })()
    .map_err(step("make /dev/shm"))?;
    Ok(Root { overlay, shm })
}
