//! A sandbox as this runtime builds it can be dumped by CRIU and restored: its mounts, processes and
//! descriptors keep the rules for that.
//!
//! As root, on a loop-file pool of its own, with the programs that `cargo xtask guests` and
//! `scripts/setup.sh criu` make.

mod guest;
mod host;

use std::fs;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use soulbox_pool::Pool;
use soulbox_runtime::identity::Slot;
use soulbox_runtime::native::checkpoint::After;
use soulbox_runtime::plan;
use soulbox_runtime::rootfs::{RootSource, UPPER};
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
    guest.claim(&[0x00, 0xff]);
    let counter = guest.start(COUNTER);
    eventually("the counter sends", || guest.numbers("received").len() > 5);
    // Init, its first child, and the counter.
    assert!(guest.command_line(2).contains("/envd"));
    let privileges = [1, 2, counter].map(|pid| guest.privileges(pid));
    assert!(privileges.iter().all(|text| text.contains("Seccomp:\t2")));

    // A dump that leaves it running, with a connection of ours open.
    let idle = guest.connect().expect("connect to envd");
    host.dump(&guest, "fork", After::GoOn, ["first", "forked"])
        .expect("dump and go on");
    let sent = guest.numbers("received").len();
    eventually("the counter goes on after a dump", || {
        guest.numbers("received").len() > sent + 5
    });
    assert!(guest.is_healthy());
    assert!(is_reset(idle));

    // A copy of it beside it, with other IDs, cgroups and outside address. Each counts for itself.
    let elsewhere = Slot::new(host.instance, 1).expect("slot 1");
    let copy = host.restore(elsewhere, "fork", source("forked"));
    let copy = copy.expect("restore beside the first");
    assert!(copy.is_healthy());
    for guest in [&guest, &copy] {
        goes_on(guest, sent);
    }
    assert_eq!(
        fs::metadata(copy.proc("root")).unwrap().uid(),
        elsewhere.id_base()
    );
    // Settings are those of whoever reads them, so one inside does.
    copy.start(
        "cd /proc/sys; cat user/max_user_namespaces net/ipv4/ip_no_pmtu_disc \
         net/ipv4/ping_group_range > /tmp/settings.new; mv /tmp/settings.new /tmp/settings",
    );
    eventually("settings are as in a new one", || {
        copy.read("tmp/settings") == "0\n1\n0\t65535\n"
    });
    end(&host, &copy);

    // A dump that ends it, after which its slot is given back.
    host.dump(&guest, "pause", After::End, ["first", "second"])
        .expect("dump and end");
    guest.wait_for_end();
    host.native.release(&guest.running).expect("release");
    let counted = numbers(&host.uppers().join("second").join(UPPER).join("tmp/counted")).len();

    // All goes on where it was: envd, the program with its pid and memory, its files, its connection.
    let guest = host.restore(slot, "pause", source("second"));
    let guest = guest.expect("restore");
    eventually("the restored envd answers", || guest.is_healthy());
    goes_on(&guest, counted);
    assert!(guest.command_line(counter).contains("count=0"));
    let restored = [1, 2, counter].map(|pid| guest.privileges(pid));
    assert_eq!(restored, privileges);
    guest.start("echo started > /tmp/started");
    eventually("the restored envd starts a program", || {
        guest.read("tmp/started") == "started\n"
    });
    // Fails when init has become a process that may not be inspected.
    host.dump(&guest, "again", After::GoOn, ["second", "third"])
        .expect("dump a restored one");
    assert!(guest.is_healthy());

    // A CRIU that hangs is ended with all that it has begun.
    let (error, child) = host.dump_that_hangs(&guest);
    assert!(error.to_string().contains("was not done within"), "{error}");
    eventually("its child has ended", || {
        let status = fs::read_to_string(format!("/proc/{child}/status"));
        status.map_or(true, |status| status.contains("State:\tZ"))
    });
    assert!(guest.is_healthy());

    end(&host, &guest);
    let left = host.native.sweep(&[]).expect("sweep");
    assert_eq!(left, 0, "something of the slot was left");
}

/// Its counter counts past `count`, in both files, without gaps or repeats.
fn goes_on(guest: &Guest, count: usize) {
    for file in ["counted", "received"] {
        eventually("the counter goes on", || {
            guest.numbers(file).len() > count + 20
        });
        let numbers = guest.numbers(file);
        let is_whole = numbers.iter().copied().eq(1..=numbers.len());
        assert!(is_whole, "gaps or repeats in `{file}`: {numbers:?}");
    }
}

fn is_reset(mut stream: TcpStream) -> bool {
    let error = stream.read(&mut [0; 1]).expect_err("reset");
    error.kind() == io::ErrorKind::ConnectionAborted
        || error.kind() == io::ErrorKind::ConnectionReset
}

fn end(host: &Host, guest: &Guest) {
    guest.running.kill();
    guest.wait_for_end();
    host.native.release(&guest.running).expect("release");
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
