//! A host without a kernel: a runtime and a pool that only count what exists, and that fail where they are told to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use soulbox_host::lifecycle::After;
use soulbox_host::runtime::{
    self, DialError, GuestSettings, ProcessName, RestoreError, RootFiles, Runtime, RuntimeError,
    SaveError, SavedProcesses,
};
use soulbox_host::{Host, HostSettings, WarmTargets};
use soulbox_pool::{
    Backing, BtrfsPool, Growth, Inherited, LayerDigest, LayerDraft, Pool, PoolError, PoolInfo,
    Quota, Snapshot, SnapshotDraft, SnapshotPool, TemplateManifest, Upper, Usage,
};
use soulbox_types::{Egress, Limits, MiB};
use soulbox_wire::host::Create;

pub const SLOTS: u16 = 12;
pub const BUILD: &str = "build-1";

/// What exists.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Objects {
    pub parked: BTreeSet<u16>,
    /// Slots with a process, living or ended, whose kernel objects are not released.
    pub booted: BTreeSet<u16>,
    pub uppers: BTreeSet<String>,
    pub egress: BTreeSet<u16>,
}

#[derive(Default)]
struct State {
    objects: Objects,
    /// The ends whose closing makes the other ends readable, as an exit does to a pidfd.
    lives: BTreeMap<u16, UnixStream>,
    ends: BTreeMap<u16, UnixStream>,
    calls: Vec<&'static str>,
    /// Which calls fail, counted from now; each once.
    failing: BTreeSet<usize>,
    /// A call that fails whenever it is made.
    broken: Option<&'static str>,
    /// SIGKILL has no effect.
    immortal: bool,
    reserve_reached: bool,
    boot_takes: Duration,
    builds: Vec<TemplateManifest>,
    /// Layers that were made of uppers.
    layers: Vec<String>,
    /// The layers of the latest boot, lowest first.
    booted_on: Vec<PathBuf>,
    /// Those of each slot that is booted.
    roots: BTreeMap<u16, Vec<PathBuf>>,
    /// Not in the pool, whatever a manifest says.
    missing: BTreeSet<String>,
    /// What keeps snapshots, as of this upper of its own.
    kept: Option<(Arc<BtrfsPool>, &'static str)>,
    /// Told by a save when its snapshot is whole, and what that then waits for.
    held: Option<(Sender<()>, Receiver<()>)>,
}

/// The shared state of one fake host; clones are the same host, also for a second agent.
#[derive(Clone, Default)]
pub struct World {
    state: Arc<Mutex<State>>,
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call that may fail; true when it has to.
    fn fails(&self, call: &'static str) -> bool {
        let mut state = self.state();
        let number = state.calls.len();
        state.calls.push(call);
        state.failing.remove(&number) || state.broken == Some(call)
    }

    fn step(&self, call: &'static str) -> Result<(), RuntimeError> {
        if self.fails(call) {
            return Err(RuntimeError(format!("{call} was made to fail").into()));
        }
        Ok(())
    }

    fn pool_step(&self, call: &'static str) -> Result<(), PoolError> {
        if self.fails(call) {
            return Err(PoolError::Io {
                doing: call,
                path: PathBuf::from("/pool"),
                source: io::Error::from(io::ErrorKind::StorageFull),
            });
        }
        Ok(())
    }

    pub fn objects(&self) -> Objects {
        self.state().objects.clone()
    }

    /// The calls so far, which are forgotten.
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state().calls)
    }

    /// Lets the `number`th call from now fail.
    pub fn fail(&self, number: usize) {
        let mut state = self.state();
        state.calls.clear();
        state.failing = BTreeSet::from([number]);
    }

    pub fn break_call(&self, call: Option<&'static str>) {
        self.state().broken = call;
    }

    pub fn make_immortal(&self, immortal: bool) {
        self.state().immortal = immortal;
    }

    pub fn fill_pool(&self, full: bool) {
        self.state().reserve_reached = full;
    }

    /// Every boot takes so long from now on.
    pub fn slow_boot(&self, takes: Duration) {
        self.state().boot_takes = takes;
    }

    /// The sandbox of a slot ends by itself.
    pub fn end(&self, slot: u16) {
        self.state().lives.remove(&slot);
    }

    /// An upper that no record names.
    pub fn forget_upper(&self, name: &str) {
        self.state().objects.uppers.insert(name.to_owned());
    }

    /// Snapshots are kept from now on: those of all sandboxes have the files of one upper.
    pub fn keep_snapshots(&self, pool: Arc<BtrfsPool>, upper: &'static str) {
        self.state().kept = Some((pool, upper));
    }

    fn kept(&self) -> Option<(Arc<BtrfsPool>, &'static str)> {
        self.state().kept.clone()
    }

    /// The next save tells when its snapshot is whole, and then waits to be let go on.
    pub fn hold_save(&self) -> (Receiver<()>, Sender<()>) {
        let ((tell, told), (go_on, wait)) = (channel(), channel());
        self.state().held = Some((tell, wait));
        (told, go_on)
    }

    pub fn add_layers(&self, layers: &[String]) {
        self.state().layers.extend_from_slice(layers);
    }

    pub fn layers(&self) -> Vec<String> {
        self.state().layers.clone()
    }

    pub fn booted_on(&self) -> Vec<PathBuf> {
        self.state().booted_on.clone()
    }

    /// The slots that have a layer of their own kind below them.
    pub fn booted_with(&self, layer: &str) -> BTreeSet<u16> {
        let state = self.state();
        let has = |root: &Vec<PathBuf>| root.iter().any(|path| path.ends_with(layer));
        let with = state.roots.iter().filter(|(_, root)| has(root));
        with.map(|(slot, _)| *slot).collect()
    }

    pub fn lose_layer(&self, layer: &str) {
        self.state().missing.insert(layer.to_owned());
    }

    pub fn lives(&self) -> BTreeSet<u16> {
        self.state().lives.keys().copied().collect()
    }

    /// A host on this world.
    pub async fn start(&self, data: &std::path::Path, booted: usize, parked: usize) -> FakeHost {
        let settings = HostSettings {
            data: data.to_owned(),
            warm: WarmTargets { booted, parked },
            default_template: "base".to_owned(),
            guests: "digest".to_owned(),
            memory_reserve: MiB(0),
            snapshot_key: [7; 32],
            store: None,
            keep_layers: Duration::from_secs(3600),
        };
        Host::start(self.clone(), Arc::new(FakePool(self.clone())), settings)
            .await
            .expect("the host starts")
    }

    /// Waits until the objects satisfy `wanted`.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Objects) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !wanted(&self.objects()) {
            assert!(
                Instant::now() < deadline,
                "not within 10 s: {what}; there is {:?}",
                self.objects()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub type FakeHost = Host<World>;

/// A parked slot; it ends when dropped, as the seam demands.
pub struct Parked {
    world: World,
    slot: Option<u16>,
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.world.state().objects.parked.remove(&slot);
        }
    }
}

#[derive(Debug)]
pub struct Running {
    slot: u16,
}

impl World {
    /// Processes come to be in a slot.
    fn live(&self, slot: u16, root: &RootFiles) -> Running {
        let (life, end) = UnixStream::pair().expect("socket pair");
        let mut state = self.state();
        let upper = root.upper.file_name().expect("name").to_string_lossy();
        assert!(state.objects.uppers.contains(&*upper), "no upper {upper}");
        state.objects.parked.remove(&slot);
        state.booted_on.clone_from(&root.layers);
        state.roots.insert(slot, root.layers.clone());
        assert!(state.objects.booted.insert(slot), "slot {slot} is in use");
        state.lives.insert(slot, life);
        state.ends.insert(slot, end);
        Running { slot }
    }
}

impl Runtime for World {
    type Parked = Parked;
    type Running = Running;

    fn slots(&self) -> u16 {
        SLOTS
    }

    fn prepare(&self, index: u16, _: &Limits) -> Result<Parked, RuntimeError> {
        self.step("prepare")?;
        let mut state = self.state();
        assert!(
            !state.objects.booted.contains(&index),
            "slot {index} is in use"
        );
        assert!(
            state.objects.parked.insert(index),
            "slot {index} is parked already"
        );
        drop(state);
        Ok(Parked {
            world: self.clone(),
            slot: Some(index),
        })
    }

    fn boot(
        &self,
        mut parked: Parked,
        root: &RootFiles,
        _: &GuestSettings,
    ) -> Result<Running, RuntimeError> {
        self.step("boot")?;
        let takes = self.state().boot_takes;
        std::thread::sleep(takes);
        let slot = parked.slot.take().expect("booted once");
        Ok(self.live(slot, root))
    }

    fn checkpoints(&self) -> Result<&str, String> {
        Ok("4.2")
    }

    fn save(
        &self,
        running: &Running,
        images: &Path,
        after: After,
        stopped: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), SaveError> {
        self.step("save").map_err(SaveError::Refused)?;
        let refused = |error: io::Error| SaveError::Refused(RuntimeError(error.into()));
        std::fs::write(images.join("memory.img"), "memory").map_err(refused)?;
        stopped().map_err(refused)?;
        let held = self.state().held.take();
        if let Some((tell, wait)) = held {
            tell.send(()).expect("somebody has asked");
            // Whoever has gone away holds nobody.
            let _ = wait.recv();
        }
        if after == After::End {
            self.kill(running);
        }
        Ok(())
    }

    fn restore(
        &self,
        index: u16,
        _: &Limits,
        root: &RootFiles,
        _: &SavedProcesses,
        made: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Running, RestoreError> {
        self.step("restore")?;
        made().map_err(|error| RuntimeError(error.into()))?;
        Ok(self.live(index, root))
    }

    fn adopt(&self, index: u16, process: ProcessName) -> Option<Running> {
        let state = self.state();
        let known = process.pid == i32::from(index) && state.lives.contains_key(&index);
        known.then_some(Running { slot: index })
    }

    fn process(&self, running: &Running) -> Option<ProcessName> {
        if self.fails("process") {
            return None;
        }
        Some(ProcessName {
            pid: i32::from(running.slot),
            start_time: 1,
        })
    }

    fn set_limits(&self, _: &Running, _: &Limits) -> Result<(), RuntimeError> {
        self.step("set_limits")
    }

    fn set_egress(&self, running: &Running, egress: &Egress) -> Result<(), RuntimeError> {
        self.step("set_egress")?;
        let mut state = self.state();
        match egress {
            Egress::Open | Egress::Only(_) | Egress::Except { .. } => {
                state.objects.egress.insert(running.slot)
            }
            Egress::Denied => state.objects.egress.remove(&running.slot),
        };
        Ok(())
    }

    fn usage(&self, _: &Running) -> Result<runtime::Usage, RuntimeError> {
        Ok(runtime::Usage::default())
    }

    fn traffic(&self) -> Result<HashMap<u16, runtime::Traffic>, RuntimeError> {
        Ok(HashMap::new())
    }

    fn ended(&self, running: &Running) -> io::Result<OwnedFd> {
        if self.fails("ended") {
            return Err(io::Error::other("no descriptor is free"));
        }
        let state = self.state();
        let end = state.ends.get(&running.slot).expect("not released");
        Ok(end.try_clone()?.into())
    }

    fn kill(&self, running: &Running) {
        let mut state = self.state();
        if !state.immortal {
            state.lives.remove(&running.slot);
        }
    }

    fn oom_kills(&self, _: &Running) -> u64 {
        0
    }

    fn is_out_of_memory(&self, _: &Running) -> bool {
        false
    }

    fn release(&self, running: &Running) -> Result<(), RuntimeError> {
        self.step("release")?;
        let mut state = self.state();
        if state.lives.contains_key(&running.slot) {
            return Err(RuntimeError("its processes are still there".into()));
        }
        state.ends.remove(&running.slot);
        state.roots.remove(&running.slot);
        state.objects.egress.remove(&running.slot);
        assert!(
            state.objects.booted.remove(&running.slot),
            "slot {} was released before",
            running.slot
        );
        Ok(())
    }

    async fn dial(&self, running: &Running, _: u16) -> Result<OwnedFd, DialError> {
        if self.fails("dial") {
            return Err(DialError::Closed);
        }
        if !self.state().lives.contains_key(&running.slot) {
            return Err(DialError::Closed);
        }
        let (near, _far) = UnixStream::pair().map_err(DialError::Failed)?;
        Ok(near.into())
    }

    fn sweep(&self, keep: &[u16]) -> Result<usize, RuntimeError> {
        let mut state = self.state();
        let before = state.objects.booted.len();
        state.objects.booted.retain(|slot| keep.contains(slot));
        state.objects.egress.retain(|slot| keep.contains(slot));
        state.lives.retain(|slot, _| keep.contains(slot));
        state.ends.retain(|slot, _| keep.contains(slot));
        Ok(before - state.objects.booted.len())
    }
}

struct FakePool(World);

impl FakePool {
    fn upper(name: &str) -> Upper {
        Upper {
            name: name.to_owned(),
            path: PathBuf::from("/pool/uppers").join(name),
        }
    }
}

impl Pool for FakePool {
    fn info(&self) -> Result<PoolInfo, PoolError> {
        Ok(PoolInfo {
            backing: Backing::Subvolume,
            quota: Quota::Simple,
            size_bytes: 1 << 30,
            free_bytes: 1 << 30,
            reserve_bytes: 0,
        })
    }

    fn reserve_ok(&self) -> Result<(), PoolError> {
        if self.0.state().reserve_reached {
            return Err(PoolError::ReserveReached {
                free: MiB(1),
                reserve: MiB(2),
            });
        }
        Ok(())
    }

    fn grow_if_low(&self) -> Result<Growth, PoolError> {
        Ok(Growth::NotNeeded)
    }

    fn create_upper(&self, name: &str, _: MiB) -> Result<Upper, PoolError> {
        self.reserve_ok()?;
        self.0.pool_step("create_upper")?;
        assert!(self.0.state().objects.uppers.insert(name.to_owned()));
        Ok(Self::upper(name))
    }

    fn create_step_upper(&self, name: &str, quota: MiB) -> Result<Upper, PoolError> {
        self.create_upper(name, quota)
    }

    fn find_layer(&self, name: &LayerDigest) -> Result<Option<LayerDigest>, PoolError> {
        Ok(Some(name.clone()).filter(|name| self.has_layer(name)))
    }

    fn name_layer(&self, _: &LayerDigest, _: &LayerDigest) -> Result<(), PoolError> {
        self.0.pool_step("name_layer")
    }

    fn set_quota(&self, _: &str, _: MiB) -> Result<(), PoolError> {
        self.0.pool_step("set_quota")
    }

    fn share_out(&self) -> Result<(), PoolError> {
        Ok(())
    }

    fn usage(&self, _: &str) -> Result<Usage, PoolError> {
        Err(PoolError::QuotaUnavailable)
    }

    fn delete_upper(&self, name: &str) -> Result<(), PoolError> {
        self.0.pool_step("delete_upper")?;
        self.0.state().objects.uppers.remove(name);
        Ok(())
    }

    fn list_uppers(&self) -> Result<Vec<Upper>, PoolError> {
        let names = self.0.state().objects.uppers.clone();
        Ok(names.iter().map(|name| Self::upper(name)).collect())
    }

    fn layer_path(&self, digest: &LayerDigest) -> PathBuf {
        PathBuf::from("/pool/layers").join(digest.as_str())
    }

    fn has_layer(&self, layer: &LayerDigest) -> bool {
        !self.0.fails("has_layer") && !self.0.state().missing.contains(layer.as_str())
    }

    fn begin_layer(&self) -> Result<LayerDraft, PoolError> {
        Err(PoolError::QuotaUnavailable)
    }

    fn templates(&self) -> Result<Vec<TemplateManifest>, PoolError> {
        Ok(vec![TemplateManifest {
            name: "base".to_owned(),
            template_id: "template".to_owned(),
            build_id: BUILD.to_owned(),
            built_at: 1,
            layers: vec!["ab".repeat(32).parse().expect("digest")],
            cpu_count: 2,
            memory_mib: 512,
            disk_mib: 1024,
            default_user: "user".to_owned(),
            default_workdir: "/home/user".to_owned(),
            inherited: Inherited::default(),
        }])
    }

    fn put_template(&self, _: &TemplateManifest) -> Result<(), PoolError> {
        Err(PoolError::QuotaUnavailable)
    }

    fn put_build(&self, manifest: &TemplateManifest) -> Result<(), PoolError> {
        self.0.pool_step("put_build")?;
        self.0.state().builds.push(manifest.clone());
        Ok(())
    }

    fn build(&self, build_id: &str) -> Result<Option<TemplateManifest>, PoolError> {
        let state = self.0.state();
        let mut builds = state.builds.iter();
        Ok(builds.find(|build| build.build_id == build_id).cloned())
    }

    fn delete_build(&self, build_id: &str) -> Result<(), PoolError> {
        self.0.pool_step("delete_build")?;
        let mut state = self.0.state();
        state.builds.retain(|build| build.build_id != build_id);
        Ok(())
    }

    fn builds(&self) -> Result<Vec<TemplateManifest>, PoolError> {
        Ok(self.0.state().builds.clone())
    }

    fn list_layers(&self) -> Result<Vec<(LayerDigest, SystemTime)>, PoolError> {
        let layers = self.0.layers();
        let listed = layers.into_iter().map(|layer| {
            let digest = layer.parse().expect("a digest");
            (digest, SystemTime::UNIX_EPOCH)
        });
        Ok(listed.collect())
    }

    fn delete_layer(&self, digest: &LayerDigest) -> Result<(), PoolError> {
        self.0.pool_step("delete_layer")?;
        let mut state = self.0.state();
        state.layers.retain(|layer| layer != digest.as_str());
        Ok(())
    }

    fn commit_upper(&self, upper: &str, digest: &LayerDigest) -> Result<(), PoolError> {
        self.0.pool_step("commit_upper")?;
        let mut state = self.0.state();
        assert!(state.objects.uppers.contains(upper), "no upper {upper}");
        state.layers.push(digest.as_str().to_owned());
        Ok(())
    }

    fn unmount(&self) -> Result<(), PoolError> {
        Ok(())
    }
}

/// It keeps no snapshots by itself: their drafts are subvolumes.
impl SnapshotPool for FakePool {
    fn begin_snapshot(&self, name: &str) -> Result<SnapshotDraft, PoolError> {
        match self.0.kept() {
            Some((pool, _)) => pool.begin_snapshot(name),
            None => Err(PoolError::SnapshotExists {
                name: name.to_owned(),
            }),
        }
    }

    fn capture(&self, draft: &mut SnapshotDraft, _: &str, inherited: u64) -> Result<(), PoolError> {
        let kept = self.0.kept();
        kept.map_or(Ok(()), |(pool, upper)| {
            pool.capture(draft, upper, inherited)
        })
    }

    fn settle(&self) -> Result<(), PoolError> {
        Ok(())
    }

    fn snapshot(&self, name: &str) -> Result<Snapshot, PoolError> {
        match self.0.kept() {
            Some((pool, _)) => pool.snapshot(name),
            None => Err(PoolError::SnapshotMissing {
                name: name.to_owned(),
            }),
        }
    }

    fn list_snapshots(&self) -> Result<Vec<Snapshot>, PoolError> {
        let kept = self.0.kept();
        kept.map_or(Ok(Vec::new()), |(pool, _)| pool.list_snapshots())
    }

    fn delete_snapshot(&self, name: &str) -> Result<(), PoolError> {
        let kept = self.0.kept();
        kept.map_or(Ok(()), |(pool, _)| pool.delete_snapshot(name))
    }

    fn create_upper_from(&self, snapshot: &str, _: &str, _: MiB) -> Result<Upper, PoolError> {
        Err(PoolError::SnapshotMissing {
            name: snapshot.to_owned(),
        })
    }

    fn restore_folder(&self, _: &Snapshot, name: &str) -> PathBuf {
        PathBuf::from("/pool/restores").join(name)
    }

    fn room_for_images(&self, _: u64) -> Result<(), PoolError> {
        Ok(())
    }

    fn delete_restore(&self, _: &str) -> Result<(), PoolError> {
        Ok(())
    }

    fn sweep_restores(&self) -> Result<(), PoolError> {
        Ok(())
    }

    fn sweep_snapshots(&self) -> Result<(), PoolError> {
        Ok(())
    }
}

/// A create with limits and egress that differ from the default, so that every step is taken.
pub fn request(sandbox_id: &str) -> Create {
    Create {
        sandbox_id: sandbox_id.to_owned(),
        epoch: 1,
        build_id: BUILD.to_owned(),
        memory_mib: 256,
        cpu_milli: 1000,
        pids: 100,
        disk_mib: 100,
        egress: soulbox_wire::host::Egress::Open,
        deadline: now() + 600_000,
        at_deadline: soulbox_wire::host::AtDeadline::Kill,
        snapshot: None,
        layers: Vec::new(),
    }
}

pub fn now() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    u64::try_from(since.as_millis()).expect("before the year 500 million")
}
