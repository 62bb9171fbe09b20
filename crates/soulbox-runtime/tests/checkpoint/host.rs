//! What the test has of this host: a runtime, a pool, CRIU. Dropping it gives all back, also after a failure.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use soulbox_pool::{BtrfsPool, PoolOptions};
use soulbox_runtime::criu::{self, Criu};
use soulbox_runtime::identity::{INSTANCES, Instance, Slot};
use soulbox_runtime::native::checkpoint::{After, CheckpointError, Dumped};
use soulbox_runtime::native::{self, Native};
use soulbox_runtime::network::NetworkPolicy;
use soulbox_runtime::rootfs::{RootSource, WORK};
use soulbox_types::MiB;

use crate::guest::Guest;
use crate::{LIMITS, PATIENCE};

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoint");

pub struct Host {
    pub native: Native,
    pub pool: BtrfsPool,
    pub instance: Instance,
    guests: PathBuf,
    criu: Criu,
    criu_folder: PathBuf,
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
        let native = Native::start(place.instance, &guests, data, &NetworkPolicy::default())
            .expect("start the runtime");
        native.sweep(&[]).expect("sweep what a killed test left");
        let size = Some(MiB(2048));
        let pool = BtrfsPool::open(data, PoolOptions { size }).expect("open a pool");
        let instance = place.instance;
        Self {
            native,
            pool,
            instance,
            guests,
            criu: Criu::open(&criu).expect("open CRIU"),
            criu_folder: criu,
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
        command.env("CRIU", &self.criu_folder);
        command.stdin(Stdio::null());
        command
    }

    /// Makes `layer` the least root that the launcher, envd and the test's programs need.
    pub fn fill(&self, layer: &Path) {
        run(self.script("root.sh").arg(layer));
    }

    /// Dumps into the new folder `images`, and copies the upper `from` to `to` while all stands still.
    pub fn dump(
        &self,
        guest: &Guest,
        images: &str,
        after: After,
        copy: [&str; 2],
    ) -> Result<(), CheckpointError> {
        let images = self.path(images);
        fs::create_dir(&images).expect("make a folder for images");
        let [from, to] = copy;
        self.native.dump(
            &self.criu,
            &guest.running,
            &images,
            after,
            PATIENCE,
            &mut || {
                self.snapshot(from, to);
                Ok(())
            },
        )
    }

    /// A dump by a program that starts another one and never answers; its failure, and the pid of the other one.
    pub fn dump_that_hangs(&self, guest: &Guest) -> (CheckpointError, i32) {
        let folder = self.path("hanging");
        let libraries = folder.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let child = folder.join("child");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *--version) echo Version: 99; exit ;; esac\n\
             sleep 1000 &\necho $! > {}\nwait\n",
            child.display()
        );
        for path in [
            folder.join("usr/sbin/criu"),
            libraries.join("ld-linux-none"),
        ] {
            fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
            fs::write(&path, &script).expect("write a program");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        let criu = Criu::open(&folder).expect("it has a version");
        let images = folder.join("images");
        fs::create_dir(&images).expect("make a folder for images");
        let within = Duration::from_secs(1);
        let dumped = self.native.dump(
            &criu,
            &guest.running,
            &images,
            After::GoOn,
            within,
            &mut || Ok(()),
        );
        let pid = fs::read_to_string(&child).expect("it has started another one");
        (
            dumped.expect_err("it never answers"),
            pid.trim().parse().expect("a pid"),
        )
    }

    /// Copies the upper `from`, to which nothing writes. overlayfs refuses a used work directory.
    fn snapshot(&self, from: &str, to: &str) {
        let (from, to) = (self.uppers().join(from), self.uppers().join(to));
        run(Command::new("btrfs")
            .args(["subvolume", "snapshot"])
            .arg(from)
            .arg(&to));
        fs::remove_dir_all(to.join(WORK)).expect("delete the work directory");
        fs::create_dir(to.join(WORK)).expect("make a work directory");
    }

    /// Restores the images into the slot, on that root.
    pub fn restore(
        &self,
        slot: Slot,
        images: &str,
        source: RootSource,
    ) -> Result<Guest<'_>, CheckpointError> {
        let own = self.path(&format!("{images}-{}", slot.index()));
        criu::remap(&self.path(images), &own, slot.id_base()).expect("remap the images");
        let dumped = Dumped {
            images: &own,
            guests: &self.guests,
            root: source,
        };
        let restored =
            self.native
                .restore(&self.criu, slot, &LIMITS, dumped, PATIENCE, &mut || Ok(()));
        fs::remove_dir_all(own).expect("remove the images of the restore");
        Ok(Guest::new(&self.native, restored?))
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

/// Runs to the end; a failure shows what was said.
fn run(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    assert!(status.success(), "{command:?}: {status}\n{said}");
}
