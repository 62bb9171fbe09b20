//! `soulbox doctor --sweep`: what a crashed installation of this data directory has left on the host, and with `--yes` its removal.
//!
//! Found by what the data directory says: its number among the installations of the host, which names kernel objects, its pool, its records.
//! While a server or a clean-up of the data directory runs there are no leftovers, so it is refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use soulbox_host::instance::InstanceClaim;
use soulbox_host::record::Records;
use soulbox_pool::{BtrfsPool, Pool, PoolOptions};
use soulbox_runtime::leftovers::{self, Leftovers};

use crate::agent::{DataDirLock, UNMOUNT_WITHIN};
use crate::failure::Failure;
use crate::settings::Settings;

/// One thing that is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    kind: Kind,
    name: String,
    /// Whose it is, or how much there is of it.
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Sandbox,
    Process,
    NetworkNamespace,
    Interface,
    Table,
    TableElements,
    Address,
    Cgroup,
    Subvolume,
    Mount,
    LoopDevice,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Process => "process",
            Self::NetworkNamespace => "network namespace",
            Self::Interface => "interface",
            Self::Table => "nftables table",
            Self::TableElements => "nftables elements",
            Self::Address => "address",
            Self::Cgroup => "cgroup",
            Self::Subvolume => "subvolume",
            Self::Mount => "mount",
            Self::LoopDevice => "loop device",
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    leftovers: &'a [Found],
    removed: bool,
}

/// Lists, removes if told so, and gives the text for stdout.
pub(super) fn run(settings: &Settings, remove: bool, json: bool) -> Result<String, Failure> {
    super::super::require_root("doctor --sweep")?;
    let data = settings.data_dir.canonicalize().map_err(|error| {
        let text = format!(
            "there is no data directory `{}`",
            settings.data_dir.display()
        );
        Failure::new(anyhow::Error::new(error).context(text)).hint("name it with --data-dir")
    })?;
    let _lock = DataDirLock::take(&data)?;
    let claim = InstanceClaim::existing(&data).context("failed to find the installation")?;
    let found = find(&data, claim.as_ref())?;
    if remove && !found.is_empty() {
        take_away(&data, claim)?;
        let again = InstanceClaim::existing(&data).context("failed to find the installation")?;
        let left = find(&data, again.as_ref())?;
        if !left.is_empty() {
            let names: Vec<_> = left
                .iter()
                .map(|left| format!("{} {}", left.kind.text(), left.name))
                .collect();
            return Err(Failure::new(anyhow!(
                "failed to remove {}",
                names.join(", ")
            )));
        }
    }
    if json {
        let report = Report {
            leftovers: &found,
            removed: remove,
        };
        let text = serde_json::to_string_pretty(&report).context("failed to write JSON")?;
        return Ok(text + "\n");
    }
    Ok(table(&found, remove))
}

fn table(found: &[Found], removed: bool) -> String {
    let mut text = String::new();
    for one in found {
        text.push_str(&format!("{:<18} {}", one.kind.text(), one.name));
        if !one.detail.is_empty() {
            text.push_str(&format!(" ({})", one.detail));
        }
        text.push('\n');
    }
    let sandboxes = found.iter().any(|one| one.kind == Kind::Sandbox);
    text.push_str(match (found.is_empty(), removed) {
        (true, _) => "nothing is left on this host\n",
        (false, true) => "all of it was removed\n",
        (false, false) if sandboxes => {
            "soulbox serve takes the sandboxes over; soulbox doctor --sweep --yes ends them and removes all of this\n"
        }
        (false, false) => "soulbox doctor --sweep --yes removes all of this\n",
    });
    text
}

fn find(data: &Path, claim: Option<&InstanceClaim>) -> Result<Vec<Found>, Failure> {
    let mut all = Vec::new();
    let mut add = |kind, name: String, detail: String| all.push(Found { kind, name, detail });
    if data.join(soulbox_host::record::DIRECTORY).is_dir() {
        let records = Records::open(data)
            .and_then(|records| records.all())
            .context("failed to read the records of sandboxes")?;
        for record in records {
            add(
                Kind::Sandbox,
                record.sandbox_id,
                format!("slot {}", record.slot),
            );
        }
    }
    for pid in fronts(data) {
        add(Kind::Process, pid.to_string(), "front".into());
    }
    if let Some(claim) = claim {
        let instance = claim.instance();
        let kernel =
            Leftovers::of(instance).context("failed to look through the kernel's objects")?;
        for (pid, slot) in kernel.processes {
            add(
                Kind::Process,
                pid.to_string(),
                format!("slot {}", slot.index()),
            );
        }
        for (inode, slot) in kernel.network_namespaces {
            add(
                Kind::NetworkNamespace,
                format!("net:[{inode}]"),
                format!("slot {}", slot.index()),
            );
        }
        for slot in kernel.network.interfaces {
            add(
                Kind::Interface,
                slot.interface(),
                format!("slot {}", slot.index()),
            );
        }
        for table in kernel.network.tables {
            add(Kind::Table, table, String::new());
        }
        for (set, count) in kernel.network.elements {
            let name = format!("{} {set}", instance.table());
            add(Kind::TableElements, name, count.to_string());
        }
        if kernel.network.service_address {
            add(
                Kind::Address,
                instance.service_address().to_string(),
                "on lo".into(),
            );
        }
        for cgroup in kernel.cgroups {
            add(Kind::Cgroup, cgroup.display().to_string(), String::new());
        }
    }
    let mounts = mounts(data)?;
    // Without the mount its subvolumes cannot be seen; the sweep mounts it.
    if !mounts.is_empty() || is_subvolume(&data.join("pool")) {
        let mut uppers: Vec<_> = fs::read_dir(data.join("pool/uppers"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().display().to_string())
            .collect();
        uppers.sort_unstable();
        for upper in uppers {
            add(Kind::Subvolume, upper, String::new());
        }
    }
    for mount in mounts {
        add(Kind::Mount, mount.display().to_string(), String::new());
    }
    for device in loop_devices(&data.join("pool.img")) {
        add(Kind::LoopDevice, device, "pool.img".into());
    }
    Ok(all)
}

/// A front whose agent was killed ends by itself, unless it hangs: processes that hold the directory that only fronts are given.
fn fronts(data: &Path) -> Vec<i32> {
    let control = data.join("control");
    let is_front = |process: &Path| {
        // The descriptor on which the agent hands it over.
        fs::read_link(process.join("fd/1")).is_ok_and(|link| link == control)
            && fs::read(process.join("cmdline"))
                .is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(b"front".as_slice()))
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            is_front(&entry.path()).then_some(pid)
        })
        .collect()
}

/// Mount points below the data directory, outermost first.
fn mounts(data: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .context("failed to read `/proc/self/mountinfo`")?;
    Ok(mounts_below(&table, data))
}

fn mounts_below(table: &str, data: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| Some(PathBuf::from(unescape(line.split(' ').nth(4)?))))
        // By whole components: a neighbour's name may begin like ours.
        .filter(|point| point.starts_with(data) && point != data)
        .collect();
    found.sort_unstable();
    found
}

/// Space, tab, newline and backslash are octal in mountinfo.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (code, character)| {
        text.replace(code, character)
    })
}

/// Whether the pool is part of the data directory's own btrfs, and so needs no mount.
fn is_subvolume(pool: &Path) -> bool {
    pool.join("uppers").is_dir()
}

/// Loop devices over the image, also when its name is gone.
fn loop_devices(image: &Path) -> Vec<String> {
    let image = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let gone = format!("{} (deleted)", image.display());
    let mut found: Vec<String> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            fs::read_to_string(entry.path().join("loop/backing_file")).is_ok_and(|backing| {
                let backing = backing.trim_end_matches('\n');
                Path::new(backing) == image || backing == gone
            })
        })
        .filter_map(|entry| Some(format!("/dev/{}", entry.file_name().to_str()?)))
        .collect();
    found.sort_unstable();
    found
}

/// Everything, in the order in which one thing holds another.
fn take_away(data: &Path, claim: Option<InstanceClaim>) -> Result<(), Failure> {
    for pid in fronts(data) {
        end_front(data, pid).with_context(|| format!("failed to end process {pid}"))?;
    }
    if let Some(claim) = &claim {
        leftovers::remove(claim.instance()).context("failed to remove the kernel's objects")?;
    }
    if data.join("pool.img").exists() || is_subvolume(&data.join("pool")) {
        let pool =
            BtrfsPool::open(data, PoolOptions::default()).context("failed to open the pool")?;
        for upper in pool
            .list_uppers()
            .context("failed to look through the pool")?
        {
            let deleted = pool.delete_upper(&upper.name);
            deleted.with_context(|| format!("failed to delete `{}`", upper.path.display()))?;
        }
        pool.unmount_within(UNMOUNT_WITHIN)
            .context("failed to unmount the pool")?;
    }
    for mount in mounts(data)?.iter().rev() {
        unmount(mount, UnmountFlags::empty())
            .map_err(io::Error::from)
            .with_context(|| format!("failed to unmount `{}`", mount.display()))?;
    }
    if data.join(soulbox_host::record::DIRECTORY).is_dir() {
        let records = Records::open(data).context("failed to open the records of sandboxes")?;
        for record in records
            .all()
            .context("failed to read the records of sandboxes")?
        {
            records.delete(&record.sandbox_id);
        }
    }
    if let Some(claim) = claim {
        claim.release();
    }
    Ok(())
}

fn end_front(data: &Path, pid: i32) -> io::Result<()> {
    let Some(named) = Pid::from_raw(pid) else {
        return Ok(());
    };
    let process = match pidfd_open(named, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other?,
    };
    // After the descriptor was opened, so that it is no other process of the same number.
    if !fronts(data).contains(&pid) {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn mounts_are_found_by_whole_components() {
        let table = "\
            1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
            2 1 7:0 / /data/a/pool rw - btrfs /dev/loop0 rw\n\
            3 2 7:0 /x /data/a/pool/x\\040y rw - btrfs /dev/loop0 rw\n\
            4 1 7:1 / /data/ab/pool rw - btrfs /dev/loop1 rw\n\
            5 1 8:2 / /data/a rw - ext4 /dev/sdb1 rw\n";
        assert_eq!(
            mounts_below(table, Path::new("/data/a")),
            [
                PathBuf::from("/data/a/pool"),
                PathBuf::from("/data/a/pool/x y")
            ]
        );
    }

    #[test]
    fn the_table_says_what_can_be_done() {
        let found = |kind, name: &str, detail: &str| Found {
            kind,
            name: name.into(),
            detail: detail.into(),
        };
        let all = [
            found(Kind::Sandbox, "iabc", "slot 3"),
            found(Kind::NetworkNamespace, "net:[4026531840]", "slot 3"),
            found(Kind::Mount, "/data/pool", ""),
        ];
        expect![[r#"
            sandbox            iabc (slot 3)
            network namespace  net:[4026531840] (slot 3)
            mount              /data/pool
            soulbox serve takes the sandboxes over; soulbox doctor --sweep --yes ends them and removes all of this
        "#]]
        .assert_eq(&table(&all, false));
        assert!(table(&all[1..], true).ends_with("all of it was removed\n"));
        assert_eq!(table(&[], true), "nothing is left on this host\n");
    }
}
