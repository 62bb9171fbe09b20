//! What the daemon keeps in memory: little while clients stall, and little after they were busy.

use std::fs;
use std::io::Read as _;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::daemon::{Daemon, Messages};

/// In KiB.
pub const MIB: u64 = 1 << 10;

/// Memory of its own, in KiB: without the program's file and what it shares.
pub fn private(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("status");
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("RssAnon:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .expect("RssAnon")
}

/// The most that is in use within two seconds.
fn peak(daemon: &Daemon) -> u64 {
    let began = Instant::now();
    let mut peak = 0;
    while began.elapsed() < Duration::from_secs(2) {
        peak = peak.max(private(daemon));
        std::thread::sleep(Duration::from_millis(20));
    }
    peak
}

fn follow(daemon: &Daemon, pid: u64) -> Messages {
    let mut stream = daemon.stream(
        "process.Process/Connect",
        json!({"process": {"pid": pid}}),
        &[],
    );
    assert_eq!(stream.pid(), pid);
    stream
}

/// Without this, a program whose reader leaves goes on at full speed.
fn end(daemon: &Daemon, pid: u64) {
    daemon.ok(
        "process.Process/SendSignal",
        json!({"process": {"pid": pid}, "signal": 9}),
    );
}

#[test]
fn stalled_readers_cost_little() {
    let daemon = Daemon::start();
    let idle = private(&daemon);

    let mut first = daemon.run("exec yes");
    let pid = first.pid();
    let one = peak(&daemon);

    // The same program, followed by ninety-nine more that do not read either.
    let mut followers: Vec<Messages> = (0..99).map(|_| follow(&daemon, pid)).collect();
    let shared = peak(&daemon);

    // Twenty programs, each with a reader that stalls.
    let others: Vec<(u64, Messages)> = (0..20)
        .map(|_| {
            let mut stream = daemon.run("exec yes");
            (stream.pid(), stream)
        })
        .collect();
    let apart = peak(&daemon);
    println!(
        "private KiB: idle {idle}, one stalled {one}, a hundred of one {shared}, twenty more {apart}"
    );
    assert!(one - idle < 2 * MIB, "{one} KiB after {idle}");
    assert!(shared - idle < 40 * MIB, "{shared} KiB after {idle}");
    assert!(apart - idle < 60 * MIB, "{apart} KiB after {idle}");

    // Whoever goes away is forgotten, and the one that reads again hears it all.
    followers.clear();
    for (pid, stream) in others {
        end(&daemon, pid);
        drop(stream);
    }
    for _ in 0..500 {
        let event = first.next().expect("more");
        assert!(event["event"]["data"]["stdout"].is_string(), "{event}");
    }
    end(&daemon, pid);
    assert_eq!(first.code(), "ok");
}

#[test]
fn memory_is_given_back_after_busy_times() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let idle = private(&daemon);
    let content = vec![7_u8; 32 << 20];
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (daemon, content, root) = (&daemon, &content, root.path());
            scope.spawn(move || {
                let route = format!("/files?path={}/{number}", root.display());
                let octets = ("content-type", "application/octet-stream");
                assert_eq!(daemon.post(&route, &[octets], content).status(), 200);
                let mut read = 0;
                let mut body = daemon.get(&route, &[]).into_body().into_reader();
                let mut buffer = vec![0; 64 << 10];
                while let Ok(length @ 1..) = body.read(&mut buffer) {
                    read += length;
                }
                assert_eq!(read, content.len());
                let output = daemon.run("head -c 20000000 /dev/zero").outcome();
                assert_eq!(output.stdout.len(), 20_000_000);
            });
        }
    });
    let busy = private(&daemon);
    let began = Instant::now();
    let mut after = busy;
    while after > idle + 4 * MIB && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(50));
        after = private(&daemon);
    }
    println!("private KiB: idle {idle}, after transfers {busy}, then {after}");
    assert!(
        after <= idle + 4 * MIB,
        "{after} KiB are kept, {idle} when idle"
    );
}
