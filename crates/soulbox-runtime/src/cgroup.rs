//! Limits: one cgroup a sandbox, in every v1 hierarchy that has a controller of ours, or in the one v2 hierarchy.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use soulbox_types::Limits;

/// Controllers of use here. `freezer` stops a sandbox whose CRIU has died, `blkio` and `cpuacct` are for accounting.
const CONTROLLERS: [&str; 7] = [
    "memory", "cpu", "pids", "devices", "cpuacct", "freezer", "blkio",
];
/// Without these there are no limits worth the name.
const REQUIRED: [&str; 3] = ["memory", "cpu", "pids"];
/// The part of its memory that a sandbox may have in buffers of sockets besides, where they are counted apart.
const SOCKET_BUFFERS: u64 = 4;
/// cpu.cfs_period_us: the default of the kernel.
const PERIOD_US: u64 = 100_000;

/// Device nodes that a sandbox may use; all others are denied even if a node of them came to exist. Major, minor.
/// null, zero, full, random, urandom, tty, ptmx, and the terminals of devpts.
const DEVICES: [&str; 8] = ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*"];

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup hierarchy has the controller `{0}`")]
    ControllerMissing(&'static str),
    #[error("failed to read `/proc/self/mountinfo`")]
    Mounts(#[source] io::Error),
    #[error("failed to {step} `{path}`")]
    File {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The kernel frees a cgroup some milliseconds after its last process ended.
pub const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The hierarchies of the host.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    version: Version,
    /// Mount points, each with its controllers of [`CONTROLLERS`].
    mounts: Vec<(PathBuf, Vec<&'static str>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Hierarchies {
    /// Finds them in the mount table.
    ///
    /// # Errors
    /// [`CgroupError::ControllerMissing`] for a controller that must be there.
    pub fn discover() -> Result<Self, CgroupError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        let hierarchies = Self::from_mountinfo(&mounts, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        });
        for required in REQUIRED {
            if !hierarchies
                .mounts
                .iter()
                .any(|(_, controllers)| controllers.contains(&required))
            {
                return Err(CgroupError::ControllerMissing(required));
            }
        }
        Ok(hierarchies)
    }

    fn from_mountinfo(mountinfo: &str, v2_controllers: impl Fn(&Path) -> String) -> Self {
        let mut v1: Vec<(PathBuf, Vec<&'static str>)> = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            // 31 24 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else {
                continue;
            };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    let found: Vec<_> = CONTROLLERS
                        .into_iter()
                        .filter(|controller| options.split(',').any(|option| option == *controller))
                        .filter(|controller| {
                            !v1.iter().any(|(_, known)| known.contains(controller))
                        })
                        .collect();
                    if !found.is_empty() {
                        v1.push((mount, found));
                    }
                }
                (Some("cgroup2"), _) if v2.is_none() => {
                    let available = v2_controllers(&mount);
                    let found: Vec<_> = CONTROLLERS
                        .into_iter()
                        .filter(|controller| {
                            available.split_whitespace().any(|name| name == *controller)
                        })
                        .collect();
                    v2 = Some((mount, found));
                }
                _ => {}
            }
        }
        // A hybrid host has a v2 hierarchy without controllers of use.
        match v2 {
            Some((mount, found)) if REQUIRED.iter().all(|required| found.contains(required)) => {
                Self {
                    version: Version::V2,
                    mounts: vec![(mount, found)],
                }
            }
            _ => Self {
                version: Version::V1,
                mounts: v1,
            },
        }
    }

    /// Makes `parent`, the cgroup of the installation, ready for children.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn prepare_parent(&self, parent: &str) -> Result<(), CgroupError> {
        for (mount, controllers) in &self.mounts {
            let directory = mount.join(parent);
            make_directory(&directory)?;
            if self.version == Version::V2 {
                for controller in controllers {
                    for level in [mount, &directory] {
                        write(
                            &level.join("cgroup.subtree_control"),
                            &format!("+{controller}"),
                        )?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the cgroup `name` (a path below the roots) with `limits`. A guard: dropping it removes the cgroup again.
    ///
    /// # Errors
    /// [`CgroupError::File`]; nothing is left then.
    pub fn create(&self, name: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let cgroup = Cgroup {
            hierarchies: self.clone(),
            name: name.to_owned(),
            armed: true,
        };
        for (directory, controllers) in cgroup.directories() {
            make_directory(&directory)?;
            if controllers.contains(&"devices") && self.version == Version::V1 {
                write(&directory.join("devices.deny"), "a")?;
                for device in DEVICES {
                    write(&directory.join("devices.allow"), &format!("c {device} rwm"))?;
                }
            }
            if controllers.contains(&"memory") && self.version == Version::V1 {
                // Absent without swap accounting.
                let _ = write(&directory.join("memory.swappiness"), "0");
            }
        }
        cgroup.set_limits(limits)?;
        Ok(cgroup)
    }

    /// The cgroup of a sandbox that is there already, without making anything.
    #[must_use]
    pub fn adopt(&self, name: &str) -> Cgroup {
        Cgroup {
            hierarchies: self.clone(),
            name: name.to_owned(),
            armed: false,
        }
    }

    /// Names below `parent` in any hierarchy.
    #[must_use]
    pub fn children(&self, parent: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .mounts
            .iter()
            .filter_map(|(mount, _)| fs::read_dir(mount.join(parent)).ok())
            .flatten()
            .filter_map(|entry| {
                entry
                    .ok()
                    .filter(|entry| entry.path().is_dir())?
                    .file_name()
                    .into_string()
                    .ok()
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Sends SIGKILL to every process in the cgroup `name`, of any hierarchy.
    pub fn kill_processes(&self, name: &str) {
        for (mount, _) in &self.mounts {
            let processes =
                fs::read_to_string(mount.join(name).join("cgroup.procs")).unwrap_or_default();
            for pid in processes
                .lines()
                .filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?))
            {
                // It may have ended in between.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Processes in the cgroup `name`, of any hierarchy; none when it is absent.
    pub(crate) fn processes(&self, name: &str) -> Vec<i32> {
        let mut found: Vec<i32> = self
            .mounts
            .iter()
            .filter_map(|(mount, _)| fs::read_to_string(mount.join(name).join("cgroup.procs")).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|line| line.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Where the cgroup `name` is there.
    pub(crate) fn directories(&self, name: &str) -> Vec<PathBuf> {
        self.mounts
            .iter()
            .map(|(mount, _)| mount.join(name))
            .filter(|directory| directory.is_dir())
            .collect()
    }

    /// Removes the cgroup `name` in every hierarchy; absent is fine, one that still has processes stays.
    pub fn remove(&self, name: &str) {
        for (mount, _) in &self.mounts {
            let _ = fs::remove_dir(mount.join(name));
        }
    }
}

/// What the processes of a cgroup use; sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the cgroup was made.
    pub cpu_micros: u64,
    /// Without the page cache.
    pub memory: u64,
    pub cache: u64,
    /// Processes and threads.
    pub processes: u64,
}

/// The cgroup of one sandbox. One that was made here is removed when dropped, unless [`Cgroup::leave`] was called.
#[derive(Debug)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    name: String,
    armed: bool,
}

impl Cgroup {
    /// Files to which a process writes `0` to join, opened for writing: they work from inside a user namespace when root of the host opened them.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn join_files(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let file = match self.hierarchies.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        };
        self.directories()
            .map(|(directory, _)| {
                let path = directory.join(file);
                fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .map(OwnedFd::from)
                    .map_err(|source| CgroupError::File {
                        step: "open",
                        path,
                        source,
                    })
            })
            .collect()
    }

    /// Sets the limits anew; takes effect at once. The disk limit is the pool's business.
    ///
    /// # Errors
    /// [`CgroupError::File`]: the kernel refuses a memory limit below what is in use.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        let memory = limits.memory.bytes().to_string();
        let quota = u64::from(limits.cpu.0) * PERIOD_US / 1000;
        for (directory, controllers) in self.directories() {
            for controller in controllers {
                match (self.hierarchies.version, *controller) {
                    (Version::V1, "memory") => {
                        let (plain, with_swap) = (
                            directory.join("memory.limit_in_bytes"),
                            directory.join("memory.memsw.limit_in_bytes"),
                        );
                        // Memory with swap must never be below memory alone, so the order depends on the direction.
                        if !with_swap.exists() {
                            write(&plain, &memory)?;
                        } else if write(&plain, &memory)
                            .and_then(|()| write(&with_swap, &memory))
                            .is_err()
                        {
                            write(&with_swap, &memory)?;
                            write(&plain, &memory)?;
                        }
                        // Buffers of sockets are counted apart in this version, and without a limit one sandbox takes all that the host
                        // has for every TCP connection (net.ipv4.tcp_mem). tests/security: buffers of TCP.
                        let buffers = directory.join("memory.kmem.tcp.limit_in_bytes");
                        if buffers.exists() {
                            let share = limits.memory.bytes() / SOCKET_BUFFERS;
                            write(&buffers, &share.to_string())?;
                        }
                    }
                    (Version::V1, "cpu") => {
                        write(&directory.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
                        write(&directory.join("cpu.cfs_quota_us"), &quota.to_string())?;
                    }
                    (Version::V2, "memory") => {
                        write(&directory.join("memory.max"), &memory)?;
                        if directory.join("memory.swap.max").exists() {
                            write(&directory.join("memory.swap.max"), "0")?;
                        }
                    }
                    (Version::V2, "cpu") => {
                        write(&directory.join("cpu.max"), &format!("{quota} {PERIOD_US}"))?
                    }
                    (_, "pids") => write(&directory.join("pids.max"), &limits.pids.to_string())?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// How many processes the kernel ended here because the memory limit was reached.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let file = match self.hierarchies.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        self.directories()
            .find(|(_, controllers)| controllers.contains(&"memory"))
            .and_then(|(directory, _)| fs::read_to_string(directory.join(file)).ok())
            .and_then(|text| {
                text.lines()
                    .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            })
            .unwrap_or(0)
    }

    /// What its processes have used so far, those that ended included.
    ///
    /// # Errors
    /// [`CgroupError::File`]: it is gone, or a file is not as the kernel writes it.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        let mut usage = Usage::default();
        for (directory, controllers) in self.directories() {
            for controller in controllers {
                match (self.hierarchies.version, *controller) {
                    (Version::V1, "cpuacct") => {
                        usage.cpu_micros = read(&directory.join("cpuacct.usage"), "")? / 1000;
                    }
                    (Version::V2, "cpu") => {
                        usage.cpu_micros = read(&directory.join("cpu.stat"), "usage_usec ")?;
                    }
                    (version, "memory") => {
                        let (file, cache) = match version {
                            Version::V1 => ("memory.usage_in_bytes", "total_cache "),
                            Version::V2 => ("memory.current", "file "),
                        };
                        usage.cache = read(&directory.join("memory.stat"), cache)?;
                        let all = read(&directory.join(file), "")?;
                        usage.memory = all.saturating_sub(usage.cache);
                    }
                    (_, "pids") => usage.processes = read(&directory.join("pids.current"), "")?,
                    _ => {}
                }
            }
        }
        Ok(usage)
    }

    /// Stops all of it. What somebody traces stays where it is even when the tracer is gone. Blocks for at most `within`.
    ///
    /// # Errors
    /// [`CgroupError`]; it goes on then.
    pub(crate) fn freeze(&self, within: Duration) -> Result<Frozen, CgroupError> {
        let frozen = Frozen {
            cgroup: self.hierarchies.adopt(&self.name),
        };
        let freezer = self.freezer()?;
        let deadline = Instant::now() + within;
        freezer.switch(true)?;
        while !freezer.stands_still()? {
            if Instant::now() > deadline {
                return Err(CgroupError::File {
                    step: "see all processes stopped by",
                    path: freezer.file,
                    source: io::ErrorKind::TimedOut.into(),
                });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(frozen)
    }

    /// Takes over what an agent had frozen that died before it could thaw it.
    pub(crate) fn found_frozen(&self) -> Option<Frozen> {
        let stands_still = self.freezer().and_then(|it| it.stands_still());
        matches!(stands_still, Ok(true)).then(|| Frozen {
            cgroup: self.hierarchies.adopt(&self.name),
        })
    }

    fn freezer(&self) -> Result<Freezer, CgroupError> {
        let version = self.hierarchies.version;
        let (directory, _) = self
            .directories()
            // It is no controller but part of every cgroup in version 2.
            .find(|(_, controllers)| version == Version::V2 || controllers.contains(&"freezer"))
            .ok_or(CgroupError::ControllerMissing("freezer"))?;
        Ok(match version {
            Version::V1 => Freezer {
                file: directory.join("freezer.state"),
                words: ["THAWED", "FROZEN"],
                told: (directory.join("freezer.state"), "FROZEN"),
            },
            Version::V2 => Freezer {
                file: directory.join("cgroup.freeze"),
                words: ["0", "1"],
                told: (directory.join("cgroup.events"), "frozen 1"),
            },
        })
    }

    /// Removes the cgroup; the kernel may need a moment after the last process ended. Blocks for at most `within`.
    ///
    /// # Errors
    /// [`CgroupError::File`] with `EBUSY` when processes are left.
    pub fn remove(&self, within: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + within;
        for (path, _) in self.directories() {
            loop {
                match fs::remove_dir(&path) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(_) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(2))
                    }
                    Err(source) => {
                        return Err(CgroupError::File {
                            step: "remove",
                            path,
                            source,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives up the guard: the cgroup stays, for the sandbox that outlives this process.
    pub fn leave(&mut self) {
        self.armed = false;
    }

    fn directories(&self) -> impl Iterator<Item = (PathBuf, &[&'static str])> {
        self.hierarchies
            .mounts
            .iter()
            .map(|(mount, controllers)| (mount.join(&self.name), controllers.as_slice()))
    }
}

/// How a cgroup is stopped and let go on.
struct Freezer {
    file: PathBuf,
    /// To go on, to stop.
    words: [&'static str; 2],
    /// The file with a line that says that all stands still, and the line.
    told: (PathBuf, &'static str),
}

impl Freezer {
    fn switch(&self, stop: bool) -> Result<(), CgroupError> {
        write(&self.file, self.words[usize::from(stop)])
    }

    fn stands_still(&self) -> Result<bool, CgroupError> {
        let (path, line) = &self.told;
        let text = fs::read_to_string(path).map_err(|source| CgroupError::File {
            step: "read",
            path: path.clone(),
            source,
        })?;
        Ok(text.lines().any(|it| it == *line))
    }
}

/// A cgroup whose processes stand still; dropped, they go on.
#[derive(Debug)]
pub(crate) struct Frozen {
    cgroup: Cgroup,
}

impl Frozen {
    /// Gives up the guard: whoever finds it frozen takes it over.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Fails only when the cgroup is gone, with all that was in it.
        let _ = self.cgroup.freezer().and_then(|it| it.switch(false));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.armed {
            // What fails here is found by the sweep of the next start.
            let _ = self.remove(REMOVE_TIMEOUT);
        }
    }
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::File {
            step: "make",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// The number of the line that begins so.
fn read(path: &Path, line: &str) -> Result<u64, CgroupError> {
    fs::read_to_string(path)
        .and_then(|text| {
            text.lines()
                .find_map(|it| it.strip_prefix(line)?.trim().parse().ok())
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        })
        .map_err(|source| CgroupError::File {
            step: "read",
            path: path.to_owned(),
            source,
        })
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::File {
        step: "write to",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 29 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 29 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 29 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 29 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
35 29 0:31 / /data rw - ext4 /dev/vda rw,memory
";

    #[test]
    fn a_hybrid_host_uses_version_1() {
        let found = Hierarchies::from_mountinfo(HYBRID, |_| String::new());
        assert_eq!(found.version, Version::V1);
        let controllers: Vec<_> = found
            .mounts
            .iter()
            .map(|(_, controllers)| controllers.clone())
            .collect();
        assert_eq!(
            controllers,
            [vec!["cpu", "cpuacct"], vec!["memory"], vec!["pids"]]
        );
    }

    #[test]
    fn a_unified_host_uses_version_2() {
        let found = Hierarchies::from_mountinfo(
            "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            |_| "cpuset cpu io memory pids\n".to_owned(),
        );
        assert_eq!(found.version, Version::V2);
        assert_eq!(found.mounts[0].1, ["memory", "cpu", "pids"]);
    }
}
