//! What the test has of this host: a runtime, a pool, CRIU. Dropping it gives all back, also after a failure.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{OpenTreeFlags, open_tree};
use soulbox_pool::{BtrfsPool, PoolOptions};
use soulbox_runtime::cgroup::Hierarchies;
use soulbox_runtime::identity::{INSTANCES, Instance, Slot};
use soulbox_runtime::native::{self, Native, Running};
use soulbox_runtime::rootfs::WORK;
use soulbox_sys::mount::{MountAttributes, set_attributes};
use soulbox_types::MiB;

use crate::guest::Guest;
use crate::{LIMITS, eventually};

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoint");

pub struct Host {
    pub native: Native,
    pub pool: BtrfsPool,
    pub instance: Instance,
    criu: PathBuf,
    guests: PathBuf,
    place: Place,
}

impl Host {
    pub fn take() -> Self {
        assert!(rustix::process::geteuid().is_root(), "sandboxes need root");
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let workspace = workspace.canonicalize().expect("the workspace");
        let (criu, guests) = (
            workspace.join(".cache/criu"),
            workspace.join("target/guests"),
        );
        for (folder, program, command) in [
            (&criu, "usr/sbin/criu", "scripts/setup.sh criu"),
            (&criu, "usr/bin/busybox", "scripts/setup.sh criu"),
            (&guests, "launch", "cargo xtask guests"),
            (&guests, "envd", "cargo xtask guests"),
        ] {
            let path = folder.join(program);
            assert!(path.exists(), "no `{}`: run `{command}`", path.display());
        }
        let place = Place::claim();
        let data = &place.data;
        let native = Native::start(place.instance, &guests, data, &[]).expect("start the runtime");
        native.sweep(&[]).expect("sweep what a killed test left");
        let size = Some(MiB(2048));
        let pool = BtrfsPool::open(data, PoolOptions { size }).expect("open a pool");
        let instance = place.instance;
        Self {
            native,
            pool,
            instance,
            criu,
            guests,
            place,
        }
    }

    pub fn uppers(&self) -> PathBuf {
        self.path("pool/uppers")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.data.join(name)
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(format!("{HERE}/{name}"));
        command
            .env("CRIU", &self.criu)
            .env("PLACE", &self.place.data);
        command.stdin(Stdio::null());
        command
    }

    /// Makes `layer` the least root that the launcher, envd and the test's programs need.
    pub fn fill(&self, layer: &Path) {
        run(self.script("root.sh").arg(layer), None);
    }

    /// The guest programs, mounted as a sandbox gets them.
    pub fn guests(&self) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let guests = open_tree(CWD, &self.guests, flags).expect("clone the guest programs");
        let attributes = MountAttributes {
            no_suid: true,
            ..MountAttributes::READ_ONLY
        };
        set_attributes(guests.as_fd(), attributes).expect("make the guest programs read-only");
        guests
    }

    /// Dumps into the new folder `images`.
    pub fn dump(&self, guest: &Guest, images: &str, options: &[&str]) {
        // What was dialled from here has its other end outside of what is dumped.
        eventually("envd closes our connections", || !guest.is_connected());
        let images = self.path(images);
        fs::create_dir(&images).expect("make a folder for images");
        let mut command = self.script("criu.sh");
        command
            .arg("dump")
            .arg(&images)
            .arg(guest.running.pid().to_string())
            .args(options);
        run(&mut command, Some(&images.join("dump.log")));
    }

    /// Copies the upper `from`, to which nothing writes any more. overlayfs refuses a used work directory.
    pub fn snapshot(&self, from: &str, to: &str) {
        let (from, to) = (self.uppers().join(from), self.uppers().join(to));
        run(
            Command::new("btrfs")
                .args(["subvolume", "snapshot"])
                .arg(from)
                .arg(&to),
            None,
        );
        fs::remove_dir_all(to.join(WORK)).expect("delete the work directory");
        fs::create_dir(to.join(WORK)).expect("make a work directory");
    }

    /// Starts a restore with these mounts: root, shm, guests. CRIU stays, as parent of the restored tree.
    pub fn restore(&self, slot: Slot, images: &str, mounts: [OwnedFd; 3]) -> Child {
        let hierarchies = Hierarchies::discover().expect("find the cgroups");
        let mut cgroup = hierarchies
            .create(&slot.cgroup(), &LIMITS)
            .expect("make cgroups");
        cgroup.leave(); // `Host::drop` and `Native::release` remove it.
        let mut descriptors = Vec::from(mounts);
        descriptors.extend(cgroup.join_files().expect("open the cgroups"));
        let mut command = self.script("criu.sh");
        command.arg("restore").arg(self.path(images));
        for descriptor in &descriptors {
            fcntl_setfd(descriptor, FdFlags::empty()).expect("pass a descriptor on");
            command.arg(descriptor.as_raw_fd().to_string());
        }
        command.spawn().expect("start CRIU")
    }

    /// Waits for the restored tree and takes it over as a server does with a sandbox of an earlier one.
    pub fn restored(&self, slot: Slot, images: &str, criu: &mut Child) -> Running {
        let file = self.path("pid");
        eventually("the restored tree runs", || {
            if let Some(status) = criu.try_wait().expect("look for CRIU") {
                panic!(
                    "restore: {status}\n{}",
                    errors(&self.path(images).join("restore.log"))
                );
            }
            file.exists()
        });
        let pid = fs::read_to_string(file).expect("read the pid");
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).expect("read stat");
        let start_time = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(19));
        let start_time = start_time
            .and_then(|text| text.parse().ok())
            .expect("a start time");
        let running = self
            .native
            .adopt(slot, pid.trim().parse().expect("a pid"), start_time);
        running.expect("adopt the restored tree")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Ends all processes in the cgroups of the instance: the sandbox, and CRIU during a restore.
        let _ = self.native.sweep(&[]);
    }
}

/// A number among the installations of the host, and a data directory.
struct Place {
    instance: Instance,
    /// The same in every run, so that one finds what a killed one left.
    data: PathBuf,
    /// Locked: no server takes the number meanwhile.
    _claim: File,
}

impl Place {
    fn claim() -> Self {
        // Servers take the lowest free number, under this very lock.
        let instance = Instance::new(INSTANCES - 1).expect("the last instance");
        fs::create_dir_all("/run/soulbox").expect("make /run/soulbox");
        let path = format!("/run/soulbox/instance-{}", instance.number());
        let mut options = File::options();
        let claim = options.read(true).append(true).create(true).open(&path);
        let mut claim = claim.expect("open the claim");
        let locked = flock(&claim, FlockOperation::NonBlockingLockExclusive);
        locked.expect("the last instance is in use, by a server or by this test");
        let mut owner = String::new();
        claim.read_to_string(&mut owner).expect("read the claim");
        let hint = format!("run `soulbox clean --data-dir {owner}`");
        assert!(owner.is_empty(), "the last instance is not free: {hint}");
        let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join("checkpoint");
        let _claim = claim;
        let place = Self {
            instance,
            data,
            _claim,
        };
        place.clear();
        fs::create_dir_all(&place.data).expect("make the data directory");
        place
    }

    fn clear(&self) {
        let pool = self.data.join("pool");
        // Nothing is mounted there before the first run, and after a failure to mount.
        let _ = Command::new("umount").arg("--quiet").arg(pool).output();
        let _ = fs::remove_dir_all(&self.data);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = native::remove(self.instance);
        self.clear();
    }
}

/// Runs to the end; a failure shows what was said, and the errors in CRIU's `log`.
fn run(command: &mut Command, log: Option<&Path>) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    let log = log.map(errors).unwrap_or_default();
    let status = output.status;
    assert!(status.success(), "{command:?}: {status}\n{said}\n{log}");
}

fn errors(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|error| format!("Error: no log: {error}"));
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("Error")).collect();
    lines.join("\n")
}
