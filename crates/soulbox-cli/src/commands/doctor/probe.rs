//! What can only be known by trying. Everything made here is taken back, also on the way out of an error.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use soulbox_pool::{BtrfsPool, Pool, PoolOptions, Quota};
use soulbox_runtime::identity::{ID_COUNT, Instance, Slot};
use soulbox_runtime::rootfs::{Mounter, RootSource};
use soulbox_types::MiB;

use super::Found;
use crate::failure::chain;

/// Enough for btrfs, and quickly allocated.
pub(super) const POOL_SIZE: MiB = MiB(256);
/// A helper program that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of a pool made for the purpose.
pub(super) struct Storage {
    pub pool: Found,
    pub quota: Found,
    pub overlay: Found,
}

impl Storage {
    pub(super) fn not_tried() -> Self {
        Self {
            pool: needs_root(),
            quota: needs_root(),
            overlay: needs_root(),
        }
    }
}

pub(super) fn needs_root() -> Found {
    Err(("not tried".into(), "run it with sudo".into()))
}

/// Makes a small pool in the directory for temporary files, an upper in it, and an overlay of it as a sandbox has it.
pub(super) fn storage() -> Storage {
    let untried = || {
        Err((
            "not tried, there is no pool".to_owned(),
            "mend the pool first".to_owned(),
        ))
    };
    let no_pool = |detail: String| Storage {
        pool: Err((detail, "mend what is missing above".into())),
        quota: untried(),
        overlay: untried(),
    };
    let directory = match tempfile::tempdir() {
        Ok(directory) => directory,
        Err(error) => return no_pool(error.to_string()),
    };
    let pool = match BtrfsPool::open(
        directory.path(),
        PoolOptions {
            size: Some(POOL_SIZE),
        },
    ) {
        Ok(pool) => Mounted(pool),
        Err(error) => return no_pool(chain(&error)),
    };
    let upper = match pool.0.create_upper("probe", MiB(16)) {
        Ok(upper) => upper,
        Err(error) => return no_pool(chain(&error)),
    };
    let quota = match pool.0.info().map(|info| info.quota) {
        Ok(Quota::Simple) => Ok("simple".into()),
        Ok(Quota::Full) => Ok("full".into()),
        _ => Err((
            "sandboxes would have no disk limit".into(),
            "use a kernel with btrfs quotas".into(),
        )),
    };
    let overlay = overlay(&pool.0.layer_path(&probe_layer()), &upper.path);
    let overlay = overlay
        .map(|()| "there".to_owned())
        .map_err(|detail| (detail, "install a kernel of 6.15 or newer".to_owned()));
    Storage {
        pool: Ok("there".into()),
        quota,
        overlay,
    }
}

fn probe_layer() -> soulbox_pool::LayerDigest {
    soulbox_pool::LayerDigest::try_from("0".repeat(64))
        .unwrap_or_else(|_| unreachable!("64 hex digits"))
}

fn overlay(layer: &std::path::Path, upper: &std::path::Path) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    // What every template has and the mounter takes /dev/shm from.
    fs::create_dir_all(layer.join("dev/shm")).map_err(text)?;
    let slot = Instance::new(0)
        .and_then(|instance| Slot::new(instance, 0))
        .ok_or("there is no first slot")?;
    let namespace = user_namespace(slot).map_err(text)?;
    let mounter = Mounter::start().map_err(|error| chain(&error))?;
    let source = RootSource {
        layers: vec![layer.to_owned()],
        upper: upper.to_owned(),
    };
    // Detached: it goes with its descriptors.
    mounter
        .mount(slot, namespace, source)
        .map(drop)
        .map_err(|error| chain(&error))
}

/// A user namespace with the ID range of a slot.
fn user_namespace(slot: Slot) -> io::Result<OwnedFd> {
    let mut sleeper = Ended(
        Command::new("unshare")
            .args(["--user", "sleep", "10"])
            .stdin(Stdio::null())
            .spawn()?,
    );
    let process = format!("/proc/{}", sleeper.0.id());
    let until = Instant::now() + PATIENCE;
    // It has its namespace only some moments after fork.
    while fs::read_link(format!("{process}/ns/user"))? == fs::read_link("/proc/self/ns/user")? {
        if Instant::now() > until || sleeper.0.try_wait()?.is_some() {
            return Err(io::Error::other("`unshare --user` made no user namespace"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let map = format!("0 {} {ID_COUNT}", slot.id_base());
    fs::write(format!("{process}/uid_map"), &map)?;
    fs::write(format!("{process}/gid_map"), &map)?;
    Ok(File::open(format!("{process}/ns/user"))?.into())
}

pub(super) fn nf_tables() -> Found {
    match output("nft", &["list", "tables"]) {
        Ok(_) => Ok("there".into()),
        Err(detail) => Err((
            detail,
            "modprobe nf_tables, or use a kernel that has it".into(),
        )),
    }
}

/// Makes a pair in a network namespace of its own, which takes it along when it ends.
pub(super) fn veth() -> Found {
    match output("unshare", &["--net", "ip", "link", "add", "type", "veth"]) {
        Ok(_) => Ok("there".into()),
        Err(detail) => Err((detail, "apt-get install iproute2; modprobe veth".into())),
    }
}

/// Docker and ufw set the policy of the FORWARD chain to drop, which catches the sandboxes' traffic too.
pub(super) fn forward_policy() -> Found {
    // The table is there only when something made it.
    match output("nft", &["list", "chain", "ip", "filter", "FORWARD"]) {
        Ok(chain) if drops_ours(&chain) => Err((
            "the FORWARD chain drops what it does not know (Docker or ufw)".into(),
            "iptables -I FORWARD -i 'sb+' -j ACCEPT; iptables -I FORWARD -o 'sb+' -j ACCEPT".into(),
        )),
        _ => Ok("nothing drops it".into()),
    }
}

fn drops_ours(chain: &str) -> bool {
    chain.contains("policy drop") && !chain.contains("\"sb*\"")
}

/// Whether a helper program succeeds.
pub(super) fn quiet(program: &str, arguments: &[&str]) -> bool {
    output(program, arguments).is_ok()
}

/// Runs a helper program for at most [`PATIENCE`]; its stdout, or why there is none.
fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    command
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::null());
    let (out, err) = (tempfile::tempfile(), tempfile::tempfile());
    let (Ok(mut out), Ok(mut err)) = (out, err) else {
        return Err("no temporary file can be made".into());
    };
    // Files, not pipes: a program that fills a pipe would wait for a reader, and we wait for it.
    if let (Ok(to_out), Ok(to_err)) = (out.try_clone(), err.try_clone()) {
        command.stdout(to_out).stderr(to_err);
    }
    let mut child = command
        .spawn()
        .map(Ended)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("{program} is not installed"),
            _ => error.to_string(),
        })?;
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                return Err(format!(
                    "{program} did not end within {} s",
                    PATIENCE.as_secs()
                ));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    let text = |file: &mut File| -> String {
        use std::io::{Read, Seek};
        let mut text = String::new();
        let _ = file
            .rewind()
            .and_then(|()| file.take(1 << 20).read_to_string(&mut text));
        text
    };
    if status.success() {
        return Ok(text(&mut out));
    }
    let message = text(&mut err);
    Err(message
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it failed")
        .trim()
        .to_owned())
}

/// A pool that is unmounted at the end.
pub(super) struct Mounted(pub(super) BtrfsPool);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.0.unmount() {
            eprintln!(
                "warning: a pool made for a probe is still mounted: {}",
                chain(&error)
            );
        }
    }
}

/// A child process that does not outlive its use.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dropping_chain_without_our_exception_is_a_gap() {
        let chain = |policy: &str, rule: &str| {
            format!(
                "chain FORWARD {{ type filter hook forward priority filter; policy {policy};\n{rule}\n}}"
            )
        };
        assert!(drops_ours(&chain("drop", "")));
        assert!(!drops_ours(&chain(
            "drop",
            "iifname \"sb*\" counter accept"
        )));
        assert!(!drops_ours(&chain("accept", "")));
    }

    #[test]
    fn helpers_that_fail_say_why() {
        assert_eq!(
            output("soulbox-no-such-program", &[]),
            Err("soulbox-no-such-program is not installed".into())
        );
        assert_eq!(
            output("sh", &["-c", "echo bad >&2; exit 3"]),
            Err("bad".into())
        );
        assert_eq!(output("sh", &["-c", "echo good"]), Ok("good\n".into()));
    }
}
