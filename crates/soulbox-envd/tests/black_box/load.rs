//! Many programs, terminals and watches at once: all work, and afterwards the daemon holds what it held before.
//!
//! SOULBOX_SOAK repeats each test that many times on the same daemon; what is asserted is the same.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::daemon::{Daemon, Messages, PATIENCE, encoded};
use crate::memory::{MIB, private};

fn rounds() -> usize {
    match std::env::var("SOULBOX_SOAK") {
        Ok(text) => text.parse().expect("SOULBOX_SOAK is a number"),
        Err(_) => 1,
    }
}

/// Open descriptors of the daemon by kind, and what it watches.
fn held(daemon: &Daemon) -> BTreeMap<String, usize> {
    let mut held = BTreeMap::new();
    let root = format!("/proc/{}", daemon.pid());
    for entry in fs::read_dir(format!("{root}/fd")).expect("descriptors") {
        let entry = entry.expect("an entry");
        // One that is closed meanwhile is none.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.display().to_string();
        let kind = target.split(['[', ']']).next().expect("one part");
        // The test's own client keeps a few connections.
        if kind != "socket:" {
            *held.entry(target.clone()).or_default() += usize::from(!kind.starts_with("pipe"));
        }
        let number = entry.file_name().display().to_string();
        let info = fs::read_to_string(format!("{root}/fdinfo/{number}")).unwrap_or_default();
        *held.entry("watches".to_owned()).or_default() += info.matches("inotify wd:").count();
    }
    let children = format!("{root}/task/{}/children", daemon.pid());
    let children = fs::read_to_string(children).expect("children");
    held.insert("children".to_owned(), children.split_whitespace().count());
    held.insert(
        "pipes".to_owned(),
        held.keys().filter(|name| name.starts_with("pipe:")).count(),
    );
    held.retain(|name, _| !name.starts_with("pipe:"));
    held
}

/// Waits until the daemon holds no more than before.
fn settles(daemon: &Daemon, before: &BTreeMap<String, usize>, idle: u64) {
    let began = Instant::now();
    let mut now = held(daemon);
    while now != *before && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        now = held(daemon);
    }
    assert_eq!(now, *before);
    let mut kept = private(daemon);
    while kept > idle + 4 * MIB && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        kept = private(daemon);
    }
    println!("private KiB: {idle} before, {kept} after");
    assert!(kept <= idle + 4 * MIB, "{kept} KiB are kept, {idle} before");
}

/// What is made at the first use of anything is there already.
fn warm() -> (Daemon, BTreeMap<String, usize>, u64) {
    let daemon = Daemon::start();
    assert_eq!(daemon.run("echo warm").text(), "warm\n");
    std::thread::sleep(Duration::from_millis(200));
    let before = held(&daemon);
    let idle = private(&daemon);
    (daemon, before, idle)
}

#[test]
fn a_thousand_programs_fifty_at_a_time() {
    const PROGRAMS: usize = 1000;
    const AT_ONCE: usize = 50;

    let (daemon, before, idle) = warm();
    for _ in 0..rounds() {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= PROGRAMS {
                            return;
                        }
                        let outcome = daemon.run(&format!("echo {number}; exit 3")).outcome();
                        assert_eq!(outcome.stdout, format!("{number}\n").into_bytes());
                        assert_eq!(outcome.end["exitCode"], 3);
                    }
                });
            }
        });
        assert_eq!(daemon.ok("process.Process/List", json!({})), json!({}));
        settles(&daemon, &before, idle);
    }
}

#[test]
fn two_hundred_terminals_at_once() {
    const TERMINALS: usize = 200;

    let (daemon, before, idle) = warm();
    for _ in 0..rounds() {
        let mut open: Vec<(u64, Messages)> = (0..TERMINALS)
            .map(|_| {
                let size = json!({"pty": {"size": {"cols": 80, "rows": 24}}});
                let mut stream = daemon.run_with("read line; echo got-$line; sleep 60", size, &[]);
                (stream.pid(), stream)
            })
            .collect();
        println!("private KiB with all open: {}", private(&daemon));
        for (pid, _) in &open {
            let input = json!({"process": {"pid": pid}, "input": {"pty": encoded(format!("{pid}\n").as_bytes())}});
            daemon.ok("process.Process/SendInput", input);
        }
        for (pid, stream) in &mut open {
            let expected = format!("got-{pid}\r\n");
            let mut shown = Vec::new();
            while !String::from_utf8_lossy(&shown).contains(&expected) {
                let event = stream.next().expect("more output");
                let text = event["event"]["data"]["pty"].as_str().expect("output");
                shown.extend(crate::daemon::decoded(text));
            }
        }
        for (pid, stream) in open {
            daemon.ok(
                "process.Process/SendSignal",
                json!({"process": {"pid": pid}, "signal": 9}),
            );
            assert_eq!(stream.code(), "ok");
        }
        settles(&daemon, &before, idle);
    }
}

#[test]
fn five_thousand_watched_folders() {
    const BRANCHES: usize = 50;
    const LEAVES: usize = 99;

    let (daemon, before, idle) = warm();
    let root = tempfile::tempdir().expect("tempdir");
    for branch in 0..BRANCHES {
        for leaf in 0..LEAVES {
            let path = root.path().join(format!("{branch}/{leaf}"));
            fs::create_dir_all(path).expect("mkdir");
        }
    }
    for round in 0..rounds() {
        let watch = json!({"path": root.path(), "recursive": true});
        let mut events = daemon.stream("filesystem.Filesystem/WatchDir", watch, &[]);
        assert!(!events.next().expect("a message")["start"].is_null());
        let watches = held(&daemon)["watches"];
        assert_eq!(watches, 1 + BRANCHES * (1 + LEAVES));
        println!("private KiB, {watches} watches: {}", private(&daemon));
        for (branch, leaf) in [(0, 0), (BRANCHES - 1, LEAVES - 1), (BRANCHES / 2, 7)] {
            let name = format!("{branch}/{leaf}/file-{round}");
            fs::write(root.path().join(&name), "x").expect("write");
            let seen = std::iter::from_fn(|| events.next())
                .any(|event| event["filesystem"]["name"] == name.as_str());
            assert!(seen, "{name}");
        }
        drop(events);
        settles(&daemon, &before, idle);
    }
}

/// A program of 10 GB whose reader stalls waits for it; when the reader has left it goes on, and nothing is kept.
#[test]
fn endless_output_costs_little_read_or_not() {
    let gigabytes = if rounds() > 1 { 10 } else { 2 };
    let (daemon, before, idle) = warm();
    let mut stream = daemon.run(&format!("yes | head -c {gigabytes}000000000; sleep 600"));
    let pid = stream.pid();
    let mut peak = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        peak = peak.max(private(&daemon));
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(stream);
    let sleeps = || {
        let list = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(list).expect("the shell lives");
        children.split_whitespace().any(|child| {
            fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name == "sleep\n")
        })
    };
    let began = Instant::now();
    while !sleeps() {
        peak = peak.max(private(&daemon));
        assert!(began.elapsed() < 4 * PATIENCE, "the output is not drained");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("private KiB: idle {idle}, at most {peak} over {gigabytes} GB");
    assert!(peak - idle < 3 * MIB, "{peak} KiB after {idle}");
    daemon.ok(
        "process.Process/SendSignal",
        json!({"process": {"pid": pid}, "signal": 9}),
    );
    settles(&daemon, &before, idle);
}
