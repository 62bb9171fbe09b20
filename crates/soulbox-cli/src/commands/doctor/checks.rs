//! The abilities, in the order of the table.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use super::{Check, Found, probe, saving};
use crate::settings::Settings;

/// The oldest kernel whose interfaces the runtime uses: overlay layers by descriptor came with 6.13, mounts on detached mounts with 6.15.
const LEAST_KERNEL: (u32, u32) = (6, 15);
/// For the pool's file at its smallest useful size.
const LEAST_DISK: u64 = 2 << 30;
/// What 500 sandboxes with a few watchers each need; the kernel's own default is 128.
const LEAST_INOTIFY: u64 = 1024;
/// Sandboxes that may all use up what they may have of connections before the host has none left.
const LEAST_CROWDED: u64 = 32;

pub(super) fn all(settings: &Settings) -> Vec<Check> {
    let root = root();
    let is_root = root.is_ok();
    let mut checks = vec![
        Check::required("root", root),
        Check::required("kernel", kernel(&read("/proc/sys/kernel/osrelease"))),
        Check::required("user namespaces", user_namespaces()),
        Check::required(
            "seccomp filters",
            seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
        ),
        Check::required("overlayfs", file_system("overlay")),
        Check::required("btrfs", file_system("btrfs")),
        Check::required(
            "mkfs.btrfs",
            program("mkfs.btrfs", "apt-get install btrfs-progs"),
        ),
        Check::required("loop devices", loop_devices(&settings.data_dir)),
    ];
    let storage = if is_root {
        probe::storage()
    } else {
        probe::Storage::not_tried()
    };
    checks.push(Check::required("pool on a loop file", storage.pool));
    checks.push(Check::required("disk quotas", storage.quota));
    checks.push(Check::required("ID-mapped overlay", storage.overlay));
    checks.push(Check::optional("simple quotas", simple_quotas()));
    let controllers = controllers(&read("/proc/self/mountinfo"), |mount| {
        read(mount.join("cgroup.controllers"))
    });
    for (name, controller) in [
        ("cgroup memory", "memory"),
        ("cgroup cpu", "cpu"),
        ("cgroup pids", "pids"),
    ] {
        checks.push(Check::required(
            name,
            has_controller(&controllers, controller),
        ));
    }
    checks.push(Check::required(
        "nft",
        program("nft", "apt-get install nftables"),
    ));
    checks.push(Check::required(
        "nf_tables",
        if is_root {
            probe::nf_tables()
        } else {
            probe::needs_root()
        },
    ));
    checks.push(Check::required(
        "veth",
        if is_root {
            probe::veth()
        } else {
            probe::needs_root()
        },
    ));
    checks.push(Check::required("network forwarding", forwarding()));
    checks.push(Check::optional(
        "forwarding not dropped",
        if is_root {
            probe::forward_policy()
        } else {
            probe::needs_root()
        },
    ));
    checks.push(Check::optional(
        "inotify instances",
        inotify(&read("/proc/sys/fs/inotify/max_user_instances")),
    ));
    checks.push(Check::optional(
        "tracked connections",
        tracked(
            &read("/proc/sys/net/netfilter/nf_conntrack_max"),
            settings.max_connections,
        ),
    ));
    checks.push(Check::required("disk space", disk(&settings.data_dir)));
    checks.push(Check::optional(
        "mmdebstrap",
        program("mmdebstrap", "apt-get install mmdebstrap"),
    ));
    checks.push(Check::optional(
        "pause with memory",
        if is_root {
            saving::processes(settings.criu.as_deref())
        } else {
            probe::needs_root()
        },
    ));
    checks
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn missing<T>(detail: impl Into<String>, mend: impl Into<String>) -> Result<T, (String, String)> {
    Err((detail.into(), mend.into()))
}

fn root() -> Found {
    const CAP_SYS_ADMIN: u32 = 21; // linux/capability.h
    if !rustix::process::geteuid().is_root() {
        return missing("not root", "run it with sudo");
    }
    let status = read("/proc/self/status");
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    if effective & (1 << CAP_SYS_ADMIN) == 0 {
        return missing(
            "root without CAP_SYS_ADMIN",
            "run it outside of a container, or in a privileged one",
        );
    }
    Ok("root with CAP_SYS_ADMIN".into())
}

fn kernel(release: &str) -> Found {
    let release = release.trim();
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map_while(|part| part.parse().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= LEAST_KERNEL {
        return Ok(release.to_owned());
    }
    let (major, minor) = LEAST_KERNEL;
    missing(
        format!("{release} is older than {major}.{minor}"),
        format!("install a kernel of {major}.{minor} or newer"),
    )
}

fn user_namespaces() -> Found {
    if !Path::new("/proc/self/ns/user").exists() {
        return missing("not in this kernel", "use a kernel with CONFIG_USER_NS");
    }
    match read("/proc/sys/user/max_user_namespaces")
        .trim()
        .parse::<u64>()
    {
        Ok(0) | Err(_) => missing("switched off", "sysctl -w user.max_user_namespaces=65536"),
        Ok(most) => Ok(format!("up to {most}")),
    }
}

fn seccomp(actions: &str) -> Found {
    if actions.split_whitespace().any(|action| action == "errno") {
        Ok("there".into())
    } else {
        missing(
            "not in this kernel",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    }
}

fn file_system(name: &str) -> Found {
    let listed = || {
        read("/proc/filesystems")
            .lines()
            .any(|line| line.split_whitespace().last() == Some(name))
    };
    // A module that can be loaded counts, and is loaded by looking.
    if listed() || (probe::quiet("modprobe", &[name]) && listed()) {
        Ok("there".into())
    } else {
        missing(
            "not in this kernel",
            format!("modprobe {name}, or use a kernel that has it"),
        )
    }
}

fn program(name: &str, mend: &str) -> Found {
    match find_program(name) {
        Some(path) => Ok(path.display().to_string()),
        None => missing("not installed", mend),
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

fn loop_devices(data_dir: &Path) -> Found {
    if Path::new("/dev/loop-control").exists()
        || (probe::quiet("modprobe", &["loop"]) && Path::new("/dev/loop-control").exists())
    {
        Ok("there".into())
    } else {
        missing(
            "no /dev/loop-control",
            format!("modprobe loop, or put {} on btrfs", data_dir.display()),
        )
    }
}

fn simple_quotas() -> Found {
    if Path::new("/sys/fs/btrfs/features/simple_quota").exists() {
        Ok("there".into())
    } else {
        missing(
            "this kernel has only full quota groups, deleting is slower",
            "install a kernel of 6.7 or newer",
        )
    }
}

/// The cgroup controllers that a mounted hierarchy offers, v1 and v2.
fn controllers(mountinfo: &str, v2: impl Fn(&Path) -> String) -> Vec<(String, &'static str)> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let mut after = after.split(' ');
        let mount = before.split(' ').nth(4).unwrap_or_default();
        match (after.next(), after.nth(1)) {
            (Some("cgroup"), Some(options)) => {
                found.extend(options.split(',').map(|option| (option.to_owned(), "v1")))
            }
            (Some("cgroup2"), _) => {
                found.extend(
                    v2(Path::new(mount))
                        .split_whitespace()
                        .map(|name| (name.to_owned(), "v2")),
                );
            }
            _ => {}
        }
    }
    found
}

fn has_controller(controllers: &[(String, &'static str)], name: &str) -> Found {
    match controllers
        .iter()
        .find(|(controller, _)| controller == name)
    {
        Some((_, version)) => Ok(format!("cgroup {version}")),
        None => missing(
            "in no mounted hierarchy",
            format!("boot with cgroup_enable={name}, and mount /sys/fs/cgroup"),
        ),
    }
}

fn forwarding() -> Found {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    if read(path).trim() == "1" {
        return Ok("net.ipv4.ip_forward is 1".into());
    }
    // The server switches it on; what matters is that it can.
    match fs::OpenOptions::new().write(true).open(path) {
        Ok(_) => Ok("net.ipv4.ip_forward is 0, the server sets it".into()),
        Err(_) => missing(
            "net.ipv4.ip_forward is 0",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
    }
}

fn inotify(limit: &str) -> Found {
    let limit: u64 = limit.trim().parse().unwrap_or(0);
    if limit >= LEAST_INOTIFY {
        return Ok(format!("fs.inotify.max_user_instances is {limit}"));
    }
    missing(
        format!("fs.inotify.max_user_instances is {limit}, all sandboxes share it"),
        format!(
            "sysctl -w fs.inotify.max_user_instances={}",
            8 * LEAST_INOTIFY
        ),
    )
}

/// The host tracks connections in one table; each sandbox may have so many.
fn tracked(limit: &str, of_one: u32) -> Found {
    // Absent until something tracks; the kernel then sizes it by the host's memory.
    let Ok(limit) = limit.trim().parse::<u64>() else {
        return Ok("nothing is tracked yet".into());
    };
    let sandboxes = limit / u64::from(of_one);
    let detail = format!("{limit}, enough for {sandboxes} sandboxes with {of_one} each");
    if sandboxes >= LEAST_CROWDED {
        return Ok(detail);
    }
    missing(
        detail,
        format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}, or serve with fewer --max-connections",
            LEAST_CROWDED * u64::from(of_one)
        ),
    )
}

fn disk(data_dir: &Path) -> Found {
    // The data directory, or what would hold it.
    let Some((place, stats)) = data_dir
        .ancestors()
        .find_map(|place| Some((place, statvfs(place).ok()?)))
    else {
        return missing("cannot be measured", "choose another --data-dir");
    };
    let free = stats.f_bavail * stats.f_frsize;
    let detail = format!(
        "{:.1} GiB free for {}",
        free as f64 / (1 << 30) as f64,
        place.display()
    );
    // A pool that is there already has its own space.
    if free >= LEAST_DISK || data_dir.join("pool.img").exists() {
        Ok(detail)
    } else {
        missing(detail, "free some disk, or choose another --data-dir")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_connections_that_few_sandboxes_fill_is_a_gap() {
        assert_eq!(
            tracked("262144\n", 4096),
            Ok("262144, enough for 64 sandboxes with 4096 each".into())
        );
        let (detail, mend) = tracked("65536", 4096).expect_err("16 sandboxes fill it");
        assert!(detail.contains("16 sandboxes"), "{detail}");
        assert!(mend.contains("nf_conntrack_max=131072"), "{mend}");
        assert!(tracked("", 4096).is_ok());
    }

    #[test]
    fn kernels_are_compared_by_number() {
        for good in ["6.15.0", "6.18.44-custom", "7.0-rc1\n", "10.1"] {
            assert!(kernel(good).is_ok(), "{good}");
        }
        for bad in ["6.1.0-13-amd64", "5.15.0", "6.14.9", "", "x"] {
            assert!(kernel(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn controllers_are_found_in_both_versions() {
        let mountinfo = "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                         31 23 0:27 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        let found = controllers(mountinfo, |mount| {
            assert_eq!(mount, Path::new("/sys/fs/cgroup/unified"));
            "pids io\n".into()
        });
        assert_eq!(has_controller(&found, "cpu"), Ok("cgroup v1".into()));
        assert_eq!(has_controller(&found, "pids"), Ok("cgroup v2".into()));
        assert!(has_controller(&found, "memory").is_err());
    }

    #[test]
    fn small_limits_are_gaps() {
        assert!(inotify("128\n").is_err());
        assert!(inotify("8192\n").is_ok());
        assert!(seccomp("kill_process trap allow").is_err());
        assert!(seccomp("kill_process errno allow").is_ok());
    }
}
