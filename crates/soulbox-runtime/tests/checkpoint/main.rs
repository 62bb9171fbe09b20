//! A sandbox as this runtime builds it can be dumped by CRIU and restored: its mounts, processes and
//! descriptors keep the rules for that.
//!
//! As root, on a loop-file pool of its own, with the programs that `cargo xtask guests` and
//! `scripts/setup.sh criu` make. CRIU is driven by hand (`criu.sh`): nothing pauses a sandbox yet; this
//! guards that it can come.

mod guest;
mod host;

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use soulbox_pool::Pool;
use soulbox_runtime::identity::Slot;
use soulbox_runtime::plan;
use soulbox_runtime::rootfs::{Mounter, RootSource, UPPER};
use soulbox_types::{Limits, MiB, MilliCpu};

use guest::{Guest, numbers};
use host::Host;

const LIMITS: Limits = Limits {
    memory: MiB(256),
    cpu: MilliCpu(2000),
    pids: 64,
    disk: MiB(256),
};
/// Nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The shell counts in a variable. Each number goes to a file that stays open, and through a named
/// pipe and a TCP connection over loopback to another file.
const COUNTER: &str = "
    mkfifo /tmp/up /tmp/down
    nc -l -p 7000 <> /tmp/down > /tmp/received &
    sleep 0.3
    nc 127.0.0.1 7000 < /tmp/up &
    exec 3> /tmp/up 4>> /tmp/counted
    count=0
    while :; do
        count=$((count + 1))
        echo $count >&3
        echo $count >&4
        sleep 0.01
    done";

#[test]
fn a_sandbox_is_dumped_and_goes_on_elsewhere() {
    let host = Host::take();
    let layer = host.pool.begin_layer().expect("begin a layer");
    host.fill(layer.path());
    let slot = Slot::new(host.instance, 0).expect("slot 0");
    let source = |name: &str| RootSource {
        layers: vec![layer.path().to_owned()],
        upper: host.uppers().join(name),
    };

    // A sandbox, in which something goes on.
    host.pool.create_upper("first", LIMITS.disk).expect("upper");
    let parked = host.native.prepare(slot, &LIMITS).expect("prepare");
    let boot = plan::boot("user", "/home/user", "00ff");
    let booted = host.native.boot(parked, source("first"), &boot);
    let guest = Guest::new(&host.native, booted.expect("boot"));
    let counter = guest.start(COUNTER);
    eventually("the counter sends", || guest.numbers("received").len() > 5);
    // Init, its first child, and the counter.
    assert!(guest.command_line(2).contains("/envd"));
    let privileges = [1, 2, counter].map(|pid| guest.privileges(pid));
    assert!(privileges.iter().all(|text| text.contains("Seccomp:\t2")));

    // A dump that leaves it running.
    host.dump(&guest, "fork", &["--leave-running"]);
    let sent = guest.numbers("received").len();
    eventually("the counter goes on after a dump", || {
        guest.numbers("received").len() > sent + 5
    });
    assert!(guest.is_healthy());

    // A dump that ends it, after which its slot is given back. Its user namespace stays for the IDs.
    let user_namespace = File::open(guest.proc("ns/user")).expect("open the user namespace");
    host.dump(&guest, "pause", &[]);
    guest.wait_for_end();
    host.native.release(&guest.running).expect("release");
    let counted = numbers(&host.uppers().join("first").join(UPPER).join("tmp/counted")).len();
    host.snapshot("first", "second");

    // A new root on the snapshot, for the same range of IDs; new cgroups, a new network.
    let mounter = Mounter::start().expect("start a mounter");
    let root = mounter.mount(slot, user_namespace.into(), source("second"));
    let root = root.expect("mount the new root");
    let mut criu = host.restore(slot, "pause", [root.overlay, root.shm, host.guests()]);
    let guest = Guest::new(&host.native, host.restored(slot, "pause", &mut criu));

    // All goes on where it was: envd, the program with its pid and memory, its files, its connection.
    eventually("the restored envd answers", || guest.is_healthy());
    for file in ["counted", "received"] {
        eventually("the counter goes on", || {
            guest.numbers(file).len() > counted + 20
        });
        let numbers = guest.numbers(file);
        let is_whole = numbers.iter().copied().eq(1..=numbers.len());
        assert!(is_whole, "gaps or repeats in `{file}`: {numbers:?}");
    }
    assert!(guest.command_line(counter).contains("count=0"));
    let restored = [1, 2, counter].map(|pid| guest.privileges(pid));
    assert_eq!(restored, privileges);
    guest.start("echo started > /tmp/started");
    eventually("the restored envd starts a program", || {
        guest.read("tmp/started") == "started\n"
    });
    // Fails when init has become a process that may not be inspected.
    host.dump(&guest, "again", &["--leave-running"]);
    assert!(guest.is_healthy());

    guest.running.kill();
    guest.wait_for_end();
    criu.wait().expect("reap CRIU");
    host.native.release(&guest.running).expect("release");
    let left = host.native.sweep(&[]).expect("sweep");
    assert_eq!(left, 0, "something of the slot was left");
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
