//! A host of its own: a pool with one small template, and an installation with a key. As root, with the programs that
//! `cargo xtask guests` and `scripts/setup.sh criu` make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use soulbox_host::instance::InstanceClaim;
use soulbox_host::native::{Checkpoints, NativeRuntime};
use soulbox_host::{Host, HostSettings, WarmTargets};
use soulbox_pool::{
    BtrfsPool, Inherited, LayerDigest, Pool, PoolOptions, SnapshotPool, TemplateManifest,
};
use soulbox_runtime::criu::Criu;
use soulbox_runtime::native::{self, Native};
use soulbox_runtime::network::NetworkPolicy;
use soulbox_types::MiB;
use soulbox_wire::host::{AtDeadline, Create, Egress, FromSnapshot};

pub const BUILD: &str = "build-1";
pub const KEY: [u8; 32] = [7; 32];

pub struct Place {
    data: tempfile::TempDir,
    claim: Option<InstanceClaim>,
    pub pool: Arc<BtrfsPool>,
    guests: PathBuf,
    criu: PathBuf,
}

impl Place {
    pub fn take() -> Self {
        assert!(rustix::process::geteuid().is_root(), "sandboxes need root");
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let workspace = workspace.canonicalize().expect("the workspace");
        let criu = workspace.join(".cache/criu");
        let made = workspace.join("target/guests");
        for (path, command) in [
            (criu.join("usr/sbin/criu"), "scripts/setup.sh criu"),
            (criu.join("usr/bin/busybox"), "scripts/setup.sh criu"),
            (made.join("launch"), "cargo xtask guests"),
        ] {
            assert!(path.exists(), "no `{}`: run `{command}`", path.display());
        }
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("data directory");
        // As a server has it: a folder for each digest.
        let guests = data.path().join("bin/digest");
        fs::create_dir_all(&guests).expect("make a folder");
        for program in fs::read_dir(&made).expect("guest programs") {
            let path = program.expect("a program").path();
            let copy = guests.join(path.file_name().expect("a name"));
            fs::copy(&path, copy).expect("copy a guest program");
        }
        let size = Some(MiB(2048));
        let pool = BtrfsPool::open(data.path(), PoolOptions { size }).expect("open a pool");
        let layer: LayerDigest = "ab".repeat(32).parse().expect("a digest");
        let draft = pool.begin_layer().expect("begin a layer");
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../soulbox-runtime/tests/checkpoint/root.sh");
        let filled = Command::new(script)
            .arg(draft.path())
            .env("CRIU", &criu)
            .status();
        assert!(filled.expect("run root.sh").success());
        draft.commit(&layer).expect("commit the layer");
        let template = TemplateManifest {
            name: "base".to_owned(),
            template_id: "template".to_owned(),
            build_id: BUILD.to_owned(),
            built_at: 1,
            layers: vec![layer],
            cpu_count: 2,
            memory_mib: 256,
            disk_mib: 256,
            default_user: "user".to_owned(),
            default_workdir: "/home/user".to_owned(),
            inherited: Inherited::default(),
        };
        pool.put_template(&template).expect("put the template");
        let claim = InstanceClaim::take(data.path()).expect("a place on this host");
        Self {
            data,
            claim: Some(claim),
            pool: Arc::new(pool),
            guests,
            criu,
        }
    }

    /// Starts an agent.
    pub async fn host(&self, key: [u8; 32], with_criu: bool) -> Host<NativeRuntime> {
        let instance = self.claim.as_ref().expect("claimed").instance();
        let native = Native::start(
            instance,
            &self.guests,
            &self.data.path().join("run"),
            &NetworkPolicy::default(),
        )
        .expect("start the runtime");
        let checkpoints = Checkpoints {
            criu: if with_criu {
                Ok(Criu::open(&self.criu).expect("open CRIU"))
            } else {
                Err("there is no CRIU".to_owned())
            },
            programs: self.data.path().join("bin"),
        };
        let runtime = NativeRuntime::new(native, instance, checkpoints).expect("take the host");
        let settings = HostSettings {
            data: self.data.path().to_owned(),
            warm: WarmTargets {
                booted: 0,
                parked: 0,
            },
            default_template: "base".to_owned(),
            guests: "digest".to_owned(),
            memory_reserve: MiB(0),
            snapshot_key: key,
            store: None,
            keep_layers: Duration::from_secs(3600),
        };
        let pool = Arc::clone(&self.pool) as Arc<dyn SnapshotPool>;
        Host::start(runtime, pool, settings)
            .await
            .expect("start the host")
    }

    pub fn snapshot(&self, name: &str) -> PathBuf {
        self.data.path().join("pool/snapshots").join(name)
    }

    /// The host's pid of the init of a sandbox, as its record has it.
    pub fn init(&self, sandbox_id: &str) -> i32 {
        let path = self
            .data
            .path()
            .join(format!("host/sandboxes/{sandbox_id}.json"));
        let text = fs::read(path).expect("its record");
        let record: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        record["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .expect("a pid")
    }

    /// Where its next record is written before it is renamed.
    pub fn draft_of_record(&self, sandbox_id: &str) -> PathBuf {
        let records = self.data.path().join("host/sandboxes");
        records.join(format!("{sandbox_id}.new"))
    }

    /// The uppers and links of restores that are left.
    pub fn left(&self) -> usize {
        let entries = |folder| {
            fs::read_dir(self.data.path().join(folder))
                .expect("a folder")
                .count()
        };
        ["pool/uppers", "pool/restores", "memory/restores"]
            .map(entries)
            .iter()
            .sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else {
            return;
        };
        let instance = claim.instance();
        // A test that failed leaves what it had.
        if let Ok(native) = Native::start(
            instance,
            &self.guests,
            &self.data.path().join("run"),
            &NetworkPolicy::default(),
        ) {
            let _ = native.sweep(&[]);
        }
        let _ = native::remove(instance);
        claim.release();
        for _ in 0..50 {
            if self.pool.unmount().is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

pub fn create(sandbox_id: &str, epoch: u64) -> Create {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = u64::try_from(now.expect("after 1970").as_millis()).expect("a time");
    Create {
        sandbox_id: sandbox_id.to_owned(),
        epoch,
        build_id: BUILD.to_owned(),
        layers: Vec::new(),
        memory_mib: 256,
        cpu_milli: 2000,
        pids: 64,
        disk_mib: 256,
        egress: Egress::Denied,
        deadline: now + 600_000,
        at_deadline: AtDeadline::Kill,
        snapshot: None,
    }
}

pub fn create_from(sandbox_id: &str, epoch: u64, snapshot_id: &str, memory: bool) -> Create {
    Create {
        snapshot: Some(FromSnapshot {
            snapshot_id: snapshot_id.to_owned(),
            memory,
        }),
        ..create(sandbox_id, epoch)
    }
}
