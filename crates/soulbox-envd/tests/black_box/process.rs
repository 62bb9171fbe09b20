//! Programs: output, ends, input, signals, followers, terminals.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::daemon::{Daemon, encoded};

#[test]
fn output_and_ends() {
    let daemon = Daemon::start();
    let outcome = daemon.run("echo hi; echo no >&2").outcome();
    assert_eq!(
        (outcome.stdout.as_slice(), outcome.stderr.as_slice()),
        (b"hi\n".as_slice(), b"no\n".as_slice())
    );
    assert_eq!(
        outcome.end,
        json!({"exited": true, "status": "exit status 0"})
    );
    let failed = daemon.run("exit 3").outcome().end;
    assert_eq!(
        failed,
        json!({"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"})
    );
    let killed = daemon.run("kill -9 $$").outcome().end;
    assert_eq!(
        killed,
        json!({"exitCode": -1, "status": "signal: killed", "error": "signal: killed"})
    );
}

#[test]
fn missing_and_unexecutable_programs_end_like_in_a_shell() {
    let daemon = Daemon::start();
    let run = |cmd: &str| {
        daemon
            .stream(
                "process.Process/Start",
                json!({"process": {"cmd": cmd}}),
                &[],
            )
            .outcome()
    };
    let missing = run("no-such-program");
    assert_eq!(missing.end["exitCode"], 127);
    assert_eq!(
        String::from_utf8_lossy(&missing.stderr),
        "exec: 'no-such-program': No such file or directory\n"
    );
    assert_eq!(run("/etc/passwd").end["exitCode"], 126);
}

#[test]
fn large_output_is_complete_and_in_order() {
    let daemon = Daemon::start();
    let outcome = daemon.run("seq 1 1500000").outcome();
    let expected: String = (1..=1_500_000)
        .map(|number| format!("{number}\n"))
        .collect();
    assert!(
        outcome.stdout == expected.as_bytes(),
        "{} bytes instead of {}",
        outcome.stdout.len(),
        expected.len()
    );
}

#[test]
fn environment_is_ours_plus_the_requests() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon
            .post("/init", &[], br#"{"envVars":{"A":"init","B":"init"}}"#)
            .status(),
        204
    );
    let more = json!({"process": {"cmd": "/usr/bin/env", "args": [], "envs": {"B": "request"}, "cwd": "/tmp"}});
    let text = daemon.run_with("", more, &[]).text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        lines,
        [
            "A=init",
            "B=request",
            "E2B_SANDBOX=false",
            "HOME=/root",
            "LOGNAME=root",
            path,
            "USER=root"
        ]
    );
}

#[test]
fn directories_and_users_are_checked() {
    let daemon = Daemon::start();
    let cwd = |path: &str| daemon.run_with("pwd", json!({"process": {"cwd": path}}), &[]);
    assert_eq!(cwd("/tmp").text(), "/tmp\n");
    assert_eq!(cwd("~").text(), "/root\n");
    assert_eq!(cwd("").text(), "/root\n");
    for refused in ["/no/such/directory", "~other", "/etc/passwd"] {
        assert_eq!(cwd(refused).code(), "invalid_argument", "{refused}");
    }
    let basic = |name: &str| format!("Basic {}", encoded(format!("{name}:ignored").as_bytes()));
    let run_as = |name: &str| {
        daemon.run_with(
            "id -un",
            json!({"process": {"cwd": "/"}}),
            &[("authorization", &basic(name))],
        )
    };
    assert_eq!(run_as("nobody").text(), "nobody\n");
    assert_eq!(run_as("no-such-user").code(), "unauthenticated");
}

#[test]
fn deadline_kills_the_program_and_ends_the_stream_with_its_reason() {
    let daemon = Daemon::start();
    let began = Instant::now();
    let mut stream = daemon.run_with("exec sleep 60", json!({}), &[("connect-timeout-ms", "500")]);
    let pid = stream.pid();
    assert_eq!(stream.code(), "deadline_exceeded");
    assert!(
        began.elapsed() >= Duration::from_millis(450) && began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    gone(&daemon, pid);
    // Zero means without limit.
    assert_eq!(
        daemon
            .run_with(
                "sleep 0.2; echo lives",
                json!({}),
                &[("connect-timeout-ms", "0")]
            )
            .text(),
        "lives\n"
    );
}

#[test]
fn program_outlives_its_stream_and_is_found_again() {
    let daemon = Daemon::start();
    let mut stream = daemon.run_with("sleep 0.5; echo late", json!({"tag": "job"}), &[]);
    let pid = stream.pid();
    drop(stream);
    let mut other = daemon.run_with("exec sleep 60", json!({"tag": "other"}), &[]);
    other.pid();
    let follow = |selector: serde_json::Value| {
        daemon.stream("process.Process/Connect", json!({"process": selector}), &[])
    };
    let mut by_tag = follow(json!({"tag": "job"}));
    assert_eq!(by_tag.pid(), pid);
    assert_eq!(follow(json!({"pid": pid})).text(), "late\n");
    assert_eq!(by_tag.text(), "late\n");
    // It has ended: the end is kept for a while, the output is not.
    let late = follow(json!({"tag": "job"})).outcome();
    assert_eq!(
        (late.stdout.as_slice(), late.end["status"].as_str()),
        (b"".as_slice(), Some("exit status 0"))
    );
    assert_eq!(follow(json!({"pid": 999_999_999})).code(), "not_found");
    assert_eq!(follow(json!({"tag": "unknown"})).code(), "not_found");
    assert_eq!(follow(json!({})).code(), "unimplemented");
}

#[test]
fn list_shows_what_the_client_asked_for() {
    let daemon = Daemon::start();
    let mut stream = daemon.run_with(
        "exec sleep 60",
        json!({"tag": "t", "process": {"envs": {"A": "b"}, "cwd": "/tmp"}}),
        &[],
    );
    let pid = stream.pid();
    let listed = daemon.ok("process.Process/List", json!({}));
    let config = json!({"cmd": "/bin/sh", "args": ["-c", "exec sleep 60"], "envs": {"A": "b"}, "cwd": "/tmp"});
    assert_eq!(
        listed,
        json!({"processes": [{"config": config, "pid": pid, "tag": "t"}]})
    );
    daemon.ok(
        "process.Process/SendSignal",
        json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"}),
    );
    assert_eq!(stream.outcome().end["status"], "signal: terminated");
    assert_eq!(daemon.ok("process.Process/List", json!({})), json!({}));
}

#[test]
fn signals() {
    let daemon = Daemon::start();
    let mut stream = daemon.run("sleep 60 & wait");
    let pid = stream.pid();
    let signal =
        |pid: u64, signal: serde_json::Value| json!({"process": {"pid": pid}, "signal": signal});
    assert_eq!(
        daemon.refused(
            "process.Process/SendSignal",
            signal(pid, json!("SIGNAL_UNSPECIFIED"))
        ),
        "unimplemented"
    );
    assert_eq!(
        daemon.refused("process.Process/SendSignal", signal(999_999_999, json!(9))),
        "not_found"
    );
    // The orphan keeps the pipes open; the end comes all the same.
    let began = Instant::now();
    daemon.ok("process.Process/SendSignal", signal(pid, json!(9)));
    assert_eq!(stream.outcome().end["status"], "signal: killed");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn child_that_holds_the_output_keeps_the_command_running() {
    let daemon = Daemon::start();
    let began = Instant::now();
    assert_eq!(
        daemon.run("(sleep 1; echo child) & echo parent").text(),
        "parent\nchild\n"
    );
    assert!(began.elapsed() >= Duration::from_secs(1));
    let began = Instant::now();
    assert_eq!(
        daemon
            .run("(sleep 20) >/dev/null 2>&1 & echo parent")
            .text(),
        "parent\n"
    );
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn stdin_by_message_by_stream_and_closed() {
    let daemon = Daemon::start();
    // Absent `stdin` means open.
    let mut stream = daemon.stream(
        "process.Process/Start",
        json!({"process": {"cmd": "sh", "args": ["-c", "cat; exec sleep 1"]}}),
        &[],
    );
    let pid = stream.pid();
    let selector = json!({"pid": pid});
    let send = |data: &[u8]| {
        daemon.ok(
            "process.Process/SendInput",
            json!({"process": selector, "input": {"stdin": encoded(data)}}),
        )
    };
    send(b"one ");
    send(b"");
    let data = |text: &[u8]| json!({"data": {"input": {"stdin": encoded(text)}}});
    let messages = [
        json!({"start": {"process": selector}}),
        data(b"two "),
        json!({"keepalive": {}}),
        data(b"three"),
    ];
    let mut answer = daemon.send_all("process.Process/StreamInput", &messages);
    assert_eq!(answer.next(), Some(json!({})));
    assert_eq!(answer.code(), "ok");
    for _ in 0..2 {
        daemon.ok("process.Process/CloseStdin", json!({"process": selector}));
    }
    let input = json!({"process": selector, "input": {"stdin": "YQ=="}});
    assert_eq!(
        daemon.refused("process.Process/SendInput", input.clone()),
        "internal"
    );
    assert_eq!(stream.text(), "one two three");
    assert_eq!(
        daemon.refused("process.Process/SendInput", input),
        "not_found"
    );
}

#[test]
fn input_that_does_not_fit_is_refused() {
    let daemon = Daemon::start();
    let mut stream = daemon.run("read line || echo at the end; exec sleep 60");
    let pid = stream.pid();
    let first = stream.next().expect("output");
    assert_eq!(first["event"]["data"]["stdout"], encoded(b"at the end\n"));
    let send = |input: serde_json::Value| {
        daemon.refused(
            "process.Process/SendInput",
            json!({"process": {"pid": pid}, "input": input}),
        )
    };
    assert_eq!(send(json!({"stdin": "YQ=="})), "internal");
    assert_eq!(send(json!({"pty": "YQ=="})), "internal");
    assert_eq!(send(json!({})), "unimplemented");
    let size = json!({"size": {"cols": 1, "rows": 1}});
    assert_eq!(
        daemon.refused(
            "process.Process/Update",
            json!({"process": {"pid": pid}, "pty": size})
        ),
        "internal"
    );
    daemon.ok("process.Process/Update", json!({"process": {"pid": pid}}));
    let early = daemon.send_all(
        "process.Process/StreamInput",
        &[json!({"data": {"input": {"stdin": "YQ=="}}})],
    );
    assert_eq!(early.code(), "invalid_argument");
    let unknown = daemon.send_all(
        "process.Process/StreamInput",
        &[json!({"start": {"process": {"pid": 999_999_999}}})],
    );
    assert_eq!(unknown.code(), "not_found");
}

#[test]
fn silence_is_kept_alive() {
    let daemon = Daemon::start();
    let outcome = daemon
        .run_with("sleep 2.5", json!({}), &[("keepalive-ping-interval", "1")])
        .outcome();
    assert_eq!(outcome.keepalives, 2);
    for nonsense in ["0", "-1", "x"] {
        let outcome = daemon
            .run_with(
                "sleep 0.1",
                json!({}),
                &[("keepalive-ping-interval", nonsense)],
            )
            .outcome();
        assert_eq!(outcome.keepalives, 0);
    }
}

#[test]
fn slow_reader_holds_the_program_back_and_memory_stays() {
    let daemon = Daemon::start();
    let mut slow = daemon.run("head -c 300000000 /dev/zero; echo done >&2");
    let pid = slow.pid();
    std::thread::sleep(Duration::from_secs(1));
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("status");
    let resident: u64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .expect("VmRSS");
    assert!(resident < 60_000, "{resident} KiB");
    // Another follower that leaves does not help the slow one along, and once that reads, all of it comes.
    drop(daemon.stream(
        "process.Process/Connect",
        json!({"process": {"pid": pid}}),
        &[],
    ));
    let outcome = slow.outcome();
    assert_eq!(
        (outcome.stdout.len(), outcome.stderr.as_slice()),
        (300_000_000, b"done\n".as_slice())
    );
}

#[test]
fn output_without_a_follower_does_not_block() {
    let daemon = Daemon::start();
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let script = format!(
        "sleep 0.3; head -c 5000000 /dev/zero; echo passed > {}",
        file.path().display()
    );
    let mut stream = daemon.run(&script);
    let pid = stream.pid();
    drop(stream);
    gone(&daemon, pid);
    assert_eq!(
        std::fs::read_to_string(file.path()).expect("read"),
        "passed\n"
    );
}

#[test]
fn terminal() {
    let daemon = Daemon::start();
    let pty = |cols: u32, rows: u32| json!({"size": {"cols": cols, "rows": rows}});
    let process = json!({"cmd": "/bin/sh", "args": ["-c", "stty -echo; stty size; read line; stty size; tty; echo err >&2; exit 5"]});
    let mut stream = daemon.stream(
        "process.Process/Start",
        json!({"process": process, "pty": pty(80, 24)}),
        &[],
    );
    let pid = stream.pid();
    let selector = json!({"pid": pid});
    let first = stream.next().expect("output");
    assert_eq!(first["event"]["data"]["pty"], encoded(b"24 80\r\n"));
    daemon.ok(
        "process.Process/Update",
        json!({"process": selector, "pty": pty(100, 30)}),
    );
    assert_eq!(
        daemon.refused(
            "process.Process/SendInput",
            json!({"process": selector, "input": {"stdin": "Cg=="}})
        ),
        "internal"
    );
    let (_, close) = daemon.call("process.Process/CloseStdin", json!({"process": selector}));
    assert!(
        close["code"] == "unknown"
            && close["message"]
                .as_str()
                .is_some_and(|text| text.contains("Ctrl+D")),
        "{close}"
    );
    daemon.ok(
        "process.Process/SendInput",
        json!({"process": selector, "input": {"pty": encoded(b"\n")}}),
    );
    let outcome = stream.outcome();
    let text = String::from_utf8_lossy(&outcome.pty).into_owned();
    assert!(
        text.contains("30 100\r\n/dev/pts/") && text.contains("err\r\n"),
        "{text}"
    );
    assert_eq!(outcome.end["exitCode"], 5);
}

#[test]
fn interrupt_reaches_the_foreground_job() {
    let daemon = Daemon::start();
    let process = json!({"cmd": "/bin/sh", "args": ["-c", "trap 'echo caught; exit 0' INT; echo ready; while :; do sleep 0.1; done"]});
    let mut stream = daemon.stream(
        "process.Process/Start",
        json!({"process": process, "pty": {"size": {"cols": 80, "rows": 24}}}),
        &[],
    );
    let pid = stream.pid();
    assert_eq!(
        stream.next().expect("output")["event"]["data"]["pty"],
        encoded(b"ready\r\n")
    );
    daemon.ok(
        "process.Process/SendInput",
        json!({"process": {"pid": pid}, "input": {"pty": encoded(b"\x03")}}),
    );
    let outcome = stream.outcome();
    assert!(String::from_utf8_lossy(&outcome.pty).contains("caught"));
    assert_eq!(outcome.end["status"], "exit status 0");
}

/// Waits until the program is in no list any more.
fn gone(daemon: &Daemon, pid: u64) {
    let began = Instant::now();
    while daemon.ok("process.Process/List", json!({}))["processes"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one["pid"] == pid))
    {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{pid} still runs"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
