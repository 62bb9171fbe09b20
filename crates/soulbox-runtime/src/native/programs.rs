//! The guest programs as a file system of their own: what a sandbox sees of its mount names neither a disk nor a folder of the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};
use soulbox_sys::mount::{MountAttributes, set_attributes};

/// What is run inside.
const PROGRAMS: [&str; 3] = ["envd", "launch", "interpreter"];

/// A detached tmpfs with the programs. It lasts as long as a sandbox has it, also when the agent is gone.
#[derive(Debug)]
pub(super) struct Programs {
    tree: OwnedFd,
}

impl Programs {
    /// Copies the programs of the directory.
    pub(super) fn copy(directory: &Path) -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [("source", "soulbox"), ("mode", "755"), ("size", "64m")] {
            fsconfig_set_string(context.as_fd(), key, value)?;
        }
        fsconfig_create(context.as_fd())?;
        let tree = fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        for program in PROGRAMS {
            let mut source = File::open(directory.join(program))?;
            // A restore wants the mode of the dump.
            let mode = Mode::from_raw_mode(source.metadata()?.mode() & 0o755);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut file = File::from(openat(&tree, program, flags, mode)?);
            io::copy(&mut source, &mut file)?;
            // Not by openat alone: the umask of the server is not ours to trust.
            fchmod(&file, mode)?;
        }
        Ok(Self { tree })
    }

    /// A read-only mount of them for one sandbox.
    pub(super) fn mount(&self) -> io::Result<OwnedFd> {
        let mount = open_tree(
            &self.tree,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH,
        )?;
        let read_only = MountAttributes {
            no_suid: true,
            ..MountAttributes::READ_ONLY
        };
        set_attributes(mount.as_fd(), read_only)?;
        Ok(mount)
    }
}
