//! The life of a slot: prepared, booted, and in the end released.
//!
//! | state | type | what exists |
//! |---|---|---|
//! | parked | [`Parked`] | cgroup, namespaces, veth pair; a launcher waits inside, and ends when this process does |
//! | running | [`Running`] | its own root, envd; it outlives this process, which may [`Native::adopt`] it later |
//!
//! A slot is used once: what was inside never meets a second sandbox. Dropping a [`Parked`] ends it; dropping a [`Running`] does nothing,
//! since no fault of the agent may end a sandbox: [`Running::kill`] and [`Native::release`] do that.

pub mod checkpoint;
mod guards;
mod programs;
mod rescue;
mod shortage;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use soulbox_types::{Egress, Limits};

use crate::cgroup::{Cgroup, CgroupError, Hierarchies, REMOVE_TIMEOUT, Usage};
use crate::dial::Dialer;
use crate::identity::{Instance, Slot};
use crate::launch::channel::{Channel, FromLauncher, ToLauncher};
use crate::network::found::slot_of;
use crate::network::{HostNetwork, NetworkError, NetworkPolicy, Traffic};
use crate::plan;
use crate::rootfs::{Mounter, RootError, RootSource};
use guards::{Attached, Namespaces, Process, open_namespace, process_start_time};
use programs::Programs;
use shortage::Shortage;

pub use rescue::Harm;

/// A launcher that has not answered by then never will.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    #[error("failed to start `{path}`")]
    Launcher {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to {step}")]
    Io {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the launcher failed to {step}")]
    Launch {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("the launcher ended while it should {0}")]
    LauncherEnded(&'static str),
    #[error("process {pid} is still there")]
    StillRunning { pid: i32 },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Root(#[from] RootError),
}

fn io_step(step: &'static str) -> impl FnOnce(io::Error) -> NativeError {
    move |source| NativeError::Io { step, source }
}

/// The runtime of one installation.
#[derive(Debug)]
pub struct Native {
    instance: Instance,
    /// The launcher, as the host runs it.
    launcher: PathBuf,
    /// Mounted read-only in every new sandbox, and where they come from.
    programs: Programs,
    guests: PathBuf,
    empty_root: PathBuf,
    hierarchies: Hierarchies,
    network: Arc<HostNetwork>,
    mounter: Mounter,
    dialer: Dialer,
}

impl Native {
    /// Takes the host in use: cgroup parent, network rules, helper threads. `guests` holds `envd` and `launch`, which are copied into
    /// memory. `run` is a directory of ours; it gets an empty root for parked launchers. Needs root; runs `nft` once.
    ///
    /// # Errors
    /// The part of the host that is missing or refused.
    pub fn start(
        instance: Instance,
        guests: &Path,
        run: &Path,
        policy: &NetworkPolicy,
    ) -> Result<Self, NativeError> {
        let hierarchies = Hierarchies::discover()?;
        hierarchies.prepare_parent(&instance.cgroup())?;
        let empty_root = run.join("empty");
        fs::create_dir_all(empty_root.join("root")).map_err(io_step("make the empty root"))?;
        Ok(Self {
            instance,
            launcher: guests.join("launch"),
            programs: Programs::copy(guests).map_err(io_step("copy the guest programs"))?,
            guests: guests.to_owned(),
            empty_root,
            hierarchies,
            network: Arc::new(HostNetwork::start(instance, policy)?),
            mounter: Mounter::start()?,
            dialer: Dialer::start().map_err(io_step("start the dialer"))?,
        })
    }

    /// Makes a parked slot. About 5 ms.
    ///
    /// # Errors
    /// The step that failed; nothing is left of the slot then.
    pub fn prepare(&self, slot: Slot, limits: &Limits) -> Result<Parked, NativeError> {
        let cgroup = self.hierarchies.create(&slot.cgroup(), limits)?;
        let (control, mut launcher) = self.launch()?;
        let cloned = self.start_launcher(slot, &control, &cgroup);
        if cloned.is_err() {
            // It may hang in a step; it owns nothing yet.
            let _ = launcher.kill();
        }
        launcher.wait().map_err(io_step("reap the launcher"))?;
        let (pid, process) = cloned?;
        let mut parked = Parked {
            slot,
            pid,
            process: Process {
                pidfd: process,
                ends_with_this: true,
            },
            control,
            namespaces: None,
            attached: None,
            cgroup,
        };
        expect(&parked.control, "enter its namespaces", |message| {
            matches!(message, FromLauncher::Inside)
        })?;
        parked.namespaces =
            Some(Namespaces::open(pid).map_err(io_step("open the namespaces of the launcher"))?);
        parked.attached = Some(Attached::make(&self.network, slot, pid)?);
        parked
            .control
            .send(&ToLauncher::NetworkReady, &[])
            .map_err(io_step("tell the launcher"))?;
        expect(&parked.control, "configure its network", |message| {
            matches!(message, FromLauncher::Parked)
        })?;
        Ok(parked)
    }

    fn launch(&self) -> Result<(Channel, Child), NativeError> {
        Channel::start(&self.launcher).map_err(|source| NativeError::Launcher {
            path: self.launcher.clone(),
            source,
        })
    }

    fn start_launcher(
        &self,
        slot: Slot,
        control: &Channel,
        cgroup: &Cgroup,
    ) -> Result<(i32, OwnedFd), NativeError> {
        let joins = cgroup.join_files()?;
        let joins: Vec<_> = joins.iter().map(AsFd::as_fd).collect();
        let plan = plan::setup(slot, &self.empty_root.to_string_lossy());
        control
            .send(&ToLauncher::Setup(plan), &joins)
            .map_err(io_step("send the setup plan"))?;
        let (message, mut descriptors) = expect(control, "clone", |message| {
            matches!(message, FromLauncher::Cloned { .. })
        })?;
        match (message, descriptors.pop()) {
            (FromLauncher::Cloned { pid }, Some(process)) => Ok((pid, process)),
            _ => Err(NativeError::LauncherEnded("report its child")),
        }
    }

    /// Turns a parked slot into a sandbox in which envd runs. About 2.5 ms. On success, connections to envd's port are accepted.
    ///
    /// # Errors
    /// The step that failed; nothing is left of the slot then.
    pub fn boot(
        &self,
        mut parked: Parked,
        source: RootSource,
        boot: &plan::BootPlan,
    ) -> Result<Running, NativeError> {
        // Stays whole until nothing can fail: its parts must be dropped in its order.
        let Some(namespaces) = parked.namespaces.take() else {
            return Err(NativeError::LauncherEnded("enter its namespaces"));
        };
        let root = self.mounter.mount(parked.slot, namespaces.user, source)?;
        let guests = self
            .programs
            .mount()
            .map_err(io_step("mount the guest programs"))?;
        parked
            .control
            .send(
                &ToLauncher::Boot(boot.clone()),
                &[root.overlay.as_fd(), root.shm.as_fd(), guests.as_fd()],
            )
            .map_err(io_step("send the boot plan"))?;
        expect(&parked.control, "boot", |message| {
            matches!(message, FromLauncher::Booted)
        })?;
        let Parked {
            slot,
            pid,
            mut process,
            attached,
            mut cgroup,
            ..
        } = parked;
        process.ends_with_this = false;
        if let Some(attached) = attached {
            attached.leave();
        }
        cgroup.leave();
        Ok(Running {
            slot,
            pid,
            process,
            network_namespace: namespaces.network,
            cgroup,
            shortage: Shortage::new(),
        })
    }

    /// Takes over a sandbox that an earlier agent started. `None` when it is gone: no process has that pid and start time.
    ///
    /// # Errors
    /// It cannot go on from where that agent left it, and is ended; [`Native::sweep`] takes what it had.
    pub fn adopt(&self, slot: Slot, pid: i32, start_time: u64) -> Result<Option<Running>, Harm> {
        let Some(running) = self.find(slot, pid, start_time) else {
            return Ok(None);
        };
        // The earlier agent died with its CRIU, or while it saw to what that had left.
        if let Some(frozen) = running.cgroup.found_frozen()
            && let Err(harm) = self.rescue(&running, frozen)
        {
            running.kill();
            return Err(harm);
        }
        Ok(Some(running))
    }

    fn find(&self, slot: Slot, pid: i32, start_time: u64) -> Option<Running> {
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Read after the pidfd was opened: the pid cannot go to another process in between without this being seen.
        if process_start_time(pid) != Some(start_time) {
            return None;
        }
        let network_namespace = open_namespace(pid, "net").ok()?;
        Some(Running {
            slot,
            pid,
            process: Process {
                pidfd: process,
                ends_with_this: false,
            },
            network_namespace,
            cgroup: self.hierarchies.adopt(&slot.cgroup()),
            shortage: Shortage::new(),
        })
    }

    /// Changes where a slot may connect to.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn set_egress(&self, slot: Slot, egress: &Egress) -> Result<(), NetworkError> {
        self.network.set_egress(slot, egress)
    }

    /// Bytes over the network of every slot that has one, by index.
    ///
    /// # Errors
    /// The kernel's.
    pub fn traffic(&self) -> io::Result<HashMap<u16, Traffic>> {
        self.network.traffic()
    }

    /// A socket inside the sandbox, to be connected to one of [`crate::dial::addresses`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn socket(&self, running: &Running, ipv6: bool) -> io::Result<OwnedFd> {
        self.dialer
            .socket(running.network_namespace.try_clone()?, ipv6)
    }

    /// Gives back all that a sandbox had in the kernel, after its last process ended. Blocks for up to four seconds; usually 1 ms.
    /// May be called again after an error.
    ///
    /// # Errors
    /// [`NativeError::StillRunning`], or a cgroup that still has processes.
    pub fn release(&self, running: &Running) -> Result<(), NativeError> {
        if !running.process.reap() {
            return Err(NativeError::StillRunning { pid: running.pid });
        }
        self.network.detach(running.slot);
        self.network.forget_connections(running.slot)?;
        Ok(running.cgroup.remove(REMOVE_TIMEOUT)?)
    }

    /// Ends and removes everything of the installation but the slots in `keep`: what an agent that died left half done.
    /// Returns how many slots it found something of.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sweep(&self, keep: &[Slot]) -> io::Result<usize> {
        let left = |slot: &Slot| !keep.contains(slot);
        let mut swept = 0;
        let parent = self.instance.cgroup();
        let names = self.hierarchies.children(&parent);
        let slots = names
            .iter()
            .filter_map(|name| slot_of(self.instance, name))
            .filter(left);
        for slot in slots {
            swept += 1;
            self.hierarchies.kill_processes(&slot.cgroup());
            // While the cgroup tells of the slot: its interface may be gone already.
            self.network.detach(slot);
            self.network
                .forget_connections(slot)
                .map_err(io::Error::other)?;
            let _ = self
                .hierarchies
                .adopt(&slot.cgroup())
                .remove(REMOVE_TIMEOUT);
        }
        let prefix = self.instance.interface_prefix();
        let interfaces = self.network.interfaces()?;
        let slots = interfaces
            .iter()
            .filter_map(|name| slot_of(self.instance, name.strip_prefix(&prefix)?))
            .filter(left);
        for slot in slots {
            self.network.delete_interface(&slot.interface())?;
            self.network.detach(slot);
            self.network
                .forget_connections(slot)
                .map_err(io::Error::other)?;
        }
        Ok(swept)
    }
}

/// Takes the installation off the host: for when no sandbox of it is left.
///
/// # Errors
/// See [`NativeError`].
pub fn remove(instance: Instance) -> Result<(), NativeError> {
    Hierarchies::discover()?.remove(&instance.cgroup());
    Ok(HostNetwork::remove(instance)?)
}

/// A slot that waits for its sandbox.
#[derive(Debug)]
pub struct Parked {
    slot: Slot,
    pid: i32,
    // Before `cgroup`, which can only go when the process is gone.
    process: Process,
    control: Channel,
    namespaces: Option<Namespaces>,
    // Before `cgroup`, whose name is what tells a sweep after a crash of the slot.
    attached: Option<Attached>,
    cgroup: Cgroup,
}

impl Parked {
    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }
}

/// A sandbox with a running envd.
#[derive(Debug)]
pub struct Running {
    slot: Slot,
    pid: i32,
    process: Process,
    network_namespace: OwnedFd,
    cgroup: Cgroup,
    shortage: Shortage,
}

impl Running {
    /// A tree that CRIU made run. It is kept, as a booted one is.
    fn restored(
        slot: Slot,
        pid: i32,
        mut process: Process,
        network_namespace: OwnedFd,
        cgroup: Cgroup,
    ) -> Self {
        process.ends_with_this = false;
        Self {
            slot,
            pid,
            process,
            network_namespace,
            cgroup,
            shortage: Shortage::new(),
        }
    }

    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The host's pid of the sandbox's init.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When init started, in clock ticks after boot: with the pid it names the process for ever.
    #[must_use]
    pub fn start_time(&self) -> Option<u64> {
        process_start_time(self.pid)
    }

    /// A pidfd of init: readable when no process of the sandbox is left.
    ///
    /// # Errors
    /// When descriptors are used up.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.process.pidfd.try_clone()
    }

    /// Changes the limits.
    ///
    /// # Errors
    /// See [`Cgroup::set_limits`].
    pub fn set_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.cgroup.set_limits(limits)
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// See [`Cgroup::usage`].
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        self.shortage.look(Instant::now(), self.oom_kills());
        self.cgroup.usage()
    }

    /// How many processes were ended because of the memory limit.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills()
    }

    /// Whether an end of just now comes of the memory limit, as far as the kernel tells.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.shortage.is_recent(self.oom_kills())
    }

    /// Sends SIGKILL to init, and so to all. Returns at once; the pidfd tells when they are gone.
    pub fn kill(&self) {
        self.process.kill();
    }
}

fn expect(
    control: &Channel,
    doing: &'static str,
    wanted: impl FnOnce(&FromLauncher) -> bool,
) -> Result<(FromLauncher, Vec<OwnedFd>), NativeError> {
    match control.receive::<FromLauncher>(Some(STEP_TIMEOUT)) {
        Ok(Some((FromLauncher::Failed { step, errno }, _))) => Err(NativeError::Launch {
            step,
            source: io::Error::from_raw_os_error(errno),
        }),
        Ok(Some((message, descriptors))) if wanted(&message) => Ok((message, descriptors)),
        Ok(_) => Err(NativeError::LauncherEnded(doing)),
        Err(source) => Err(NativeError::Io {
            step: "hear from the launcher",
            source,
        }),
    }
}
