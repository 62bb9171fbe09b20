//! What this host tells of itself, and whether it takes new sandboxes. A draining host refuses creates here, whichever front asks,
//! and forgets its status when the agent ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use soulbox_host::WarmLevels;
use soulbox_wire::host::{HostError, HostErrorKind, Node, NodeDisk, NodeStatus};

/// The host's own account.
pub(super) struct NodeAccount {
    id: String,
    instance: String,
    data: PathBuf,
    status: Mutex<(NodeStatus, u64)>,
    starting: AtomicU32,
    successes: AtomicU64,
    fails: AtomicU64,
    /// Busy and all ticks when somebody last asked.
    ticks: Mutex<(u64, u64)>,
}

/// A create that is under way; counted as failed unless it is told of its success.
pub(super) struct Starting<'a> {
    account: &'a NodeAccount,
    succeeded: bool,
}

impl Starting<'_> {
    pub(super) fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.account.starting.fetch_sub(1, Ordering::Relaxed);
        let counter = if self.succeeded {
            &self.account.successes
        } else {
            &self.account.fails
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl NodeAccount {
    /// Named after the machine.
    pub(super) fn new(data: &Path) -> Result<Self, getrandom::Error> {
        let mut instance = [0; 16];
        getrandom::fill(&mut instance)?;
        let id = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            id,
            instance: soulbox_types::TeamId::from_random(instance).to_string(),
            data: data.to_owned(),
            status: Mutex::new((NodeStatus::Ready, now())),
            starting: AtomicU32::new(0),
            successes: AtomicU64::new(0),
            fails: AtomicU64::new(0),
            ticks: Mutex::default(),
        })
    }

    pub(super) fn set(&self, status: NodeStatus) {
        let mut current = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != status {
            tracing::info!(?status, "the host's status was changed");
            *current = (status, now());
        }
    }

    /// Lets a create begin, if the host takes any.
    pub(super) fn begin(&self) -> Result<Starting<'_>, HostError> {
        let (status, _) = *self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status != NodeStatus::Ready {
            return Err(HostError {
                kind: HostErrorKind::NotReady,
                message: format!("it is {}", format!("{status:?}").to_lowercase()),
            });
        }
        self.starting.fetch_add(1, Ordering::Relaxed);
        Ok(Starting {
            account: self,
            succeeded: false,
        })
    }

    /// Reads the machine's figures; a few files below /proc and /sys.
    pub(super) fn describe(&self, sandboxes: u32, ahead: WarmLevels) -> Node {
        let (status, status_changed_at) =
            *self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let cpu = Keyed::read("/proc/cpuinfo");
        let memory = Keyed::read("/proc/meminfo");
        let total = memory.kibibytes("MemTotal");
        let huge = |name| memory.number(name);
        Node {
            id: self.id.clone(),
            instance: self.instance.clone(),
            status,
            status_changed_at,
            sandboxes,
            starting: self.starting.load(Ordering::Relaxed),
            create_successes: self.successes.load(Ordering::Relaxed),
            create_fails: self.fails.load(Ordering::Relaxed),
            creates_ahead: ahead.taken,
            slots_ahead: ahead.booted as u64,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("SOULBOX_COMMIT").unwrap_or_default().to_owned(),
            cpu_family: cpu.text("cpu family"),
            cpu_model: cpu.text("model"),
            cpu_model_name: cpu.text("model name"),
            cpu_architecture: std::env::consts::ARCH.to_owned(),
            cpu_count: std::thread::available_parallelism()
                .map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            cpu_percent: self.cpu_percent(),
            memory_used: total.saturating_sub(memory.kibibytes("MemAvailable")),
            memory_total: total,
            huge_pages_total: huge("HugePages_Total"),
            huge_pages_used: huge("HugePages_Total").saturating_sub(huge("HugePages_Free")),
            huge_pages_reserved: huge("HugePages_Rsvd"),
            huge_page_size: memory.kibibytes("Hugepagesize"),
            disks: self.disks(),
        }
    }

    fn cpu_percent(&self) -> u32 {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let (busy, all) = ticks(&stat);
        let mut last = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        let (busy_before, all_before) = std::mem::replace(&mut *last, (busy, all));
        let passed = all.saturating_sub(all_before).max(1);
        u32::try_from(busy.saturating_sub(busy_before) * 100 / passed).unwrap_or(100)
    }

    /// The file systems of the data directory and of the pool, which may be one.
    fn disks(&self) -> Vec<NodeDisk> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut disks: Vec<NodeDisk> = Vec::new();
        for path in [self.data.clone(), self.data.join("pool")] {
            let (Some(mount), Ok(figures)) = (mount_of(&mounts, &path), rustix::fs::statvfs(&path))
            else {
                continue;
            };
            if disks.iter().any(|disk| disk.mount_point == mount[0]) {
                continue;
            }
            let [mount_point, filesystem, device] = mount;
            let blocks = figures.f_blocks.saturating_sub(figures.f_bfree);
            disks.push(NodeDisk {
                mount_point,
                device,
                filesystem,
                used: blocks * figures.f_frsize,
                total: figures.f_blocks * figures.f_frsize,
            });
        }
        disks
    }
}

/// Busy and all ticks of the first line of /proc/stat: all but idle and iowait are busy.
fn ticks(stat: &str) -> (u64, u64) {
    let line = stat.lines().next().unwrap_or_default();
    // Guest time is in user time already.
    let numbers: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|text| text.parse().ok())
        .collect();
    let all: u64 = numbers.iter().sum();
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    (all - idle, all)
}

/// Mount point, type and source of the mount that a path lies on.
fn mount_of(mountinfo: &str, path: &Path) -> Option<[String; 3]> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        let mount = [
            point.to_owned(),
            right.next()?.to_owned(),
            right.next()?.to_owned(),
        ];
        path.starts_with(point).then_some(mount)
    });
    // Of two at the same place the later one is on top.
    mounts.max_by_key(|mount| mount[0].len())
}

/// Lines of `name: value`.
struct Keyed(String);

impl Keyed {
    fn read(path: &str) -> Self {
        Self(fs::read_to_string(path).unwrap_or_default())
    }

    /// The first value of that name; empty when there is none, as on other processors.
    fn text(&self, name: &str) -> String {
        let mut values = self.0.lines().filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        });
        values.next().unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        let text = self.text(name);
        let number = text.split(' ').next().unwrap_or_default();
        number.parse().unwrap_or(0)
    }

    fn kibibytes(&self, name: &str) -> u64 {
        self.number(name) * 1024
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_time_is_not_counted_twice() {
        assert_eq!(ticks("cpu  10 0 5 80 5 0 0 0 7 0\ncpu0 1 1 1"), (15, 100));
        assert_eq!(ticks(""), (0, 0));
    }

    #[test]
    fn the_longest_and_latest_mount_holds() {
        let mounts = "1 1 8:1 / / rw - ext4 /dev/a rw\n2 1 0:9 / /d rw - tmpfs none rw\n3 2 7:0 / /d rw opt:1 - btrfs /dev/loop0 rw\n";
        let found = mount_of(mounts, Path::new("/d/pool")).expect("a mount");
        assert_eq!(found, ["/d", "btrfs", "/dev/loop0"]);
        let found = mount_of(mounts, Path::new("/data")).expect("a mount");
        assert_eq!(found[0], "/", "a name's beginning is not a folder");
    }

    #[test]
    fn only_a_ready_host_begins_and_outcomes_are_counted() {
        let account = NodeAccount::new(Path::new("/")).expect("random");
        account.begin().expect("ready").succeeded();
        drop(account.begin().expect("ready"));
        let begun = account.begin().expect("ready");
        account.set(NodeStatus::Draining);
        let refused = account.begin().err().expect("it drains");
        assert_eq!(refused.kind, HostErrorKind::NotReady);
        assert_eq!(refused.message, "it is draining");
        let ahead = WarmLevels {
            booted: 16,
            taken: 1,
        };
        let node = account.describe(3, ahead);
        assert_eq!(
            (node.create_successes, node.create_fails, node.starting),
            (1, 1, 1)
        );
        assert!(node.memory_total > 0 && node.cpu_count > 0 && !node.disks.is_empty());
        drop(begun);
    }
}
