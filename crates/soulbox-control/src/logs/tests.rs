//! What is kept, what goes, and who reads what.

use soulbox_types::{BuildId, Epoch, Limits, MiB, MilliCpu, Network, TemplateId};

use super::*;
use crate::store::Progress;

fn team(number: u8) -> TeamRow {
    TeamRow {
        team_id: TeamId::from_random([number; 16]),
        name: "t".to_owned(),
        slug: "t".to_owned(),
        banned: false,
        blocked: false,
        blocked_reason: None,
        max_sandboxes: None,
        max_sandbox_hours: None,
        created_at: UnixMillis(0),
    }
}

fn row(number: u16) -> SandboxRow {
    let mut random = [0; 20];
    for (place, digit) in number.to_string().bytes().enumerate() {
        random[place] = digit - b'0' + 1;
    }
    SandboxRow {
        sandbox_id: SandboxId::from_random(random),
        team_id: team(1).team_id,
        template_id: TemplateId::from_random([1; 20]),
        build_id: BuildId::from_random([1; 16]),
        host_build_id: BuildId::from_random([1; 16]),
        alias: None,
        metadata: BTreeMap::new(),
        limits: Limits {
            memory: MiB(512),
            cpu: MilliCpu(1000),
            pids: 10,
            disk: MiB(512),
        },
        network: Network::default(),
        inbound: Arc::default(),
        secure: true,
        public_traffic: true,
        envd_version: "0.6.13".to_owned(),
        created_at: UnixMillis(1),
        lifecycle: crate::store::Lifecycle::default(),
        progress: Progress {
            state: SandboxState::Running,
            epoch: Epoch(1),
            started_at: None,
            deadline: UnixMillis(2),
            ended_at: None,
            cause: None,
            pause: None,
        },
    }
}

fn guest(number: u64, level: LogLevel, message: &str) -> HostLogLine {
    HostLogLine {
        number,
        line: LogLine {
            at: UnixMillis(1000 + number),
            level,
            logger: "process".to_owned(),
            message: message.to_owned(),
            fields: BTreeMap::from([("pid".to_owned(), number.to_string())]),
        },
    }
}

fn all() -> LogQuery {
    LogQuery {
        cursor: None,
        direction: LogDirection::Forward,
        least: LogLevel::Debug,
        search: None,
        limit: 10_000,
    }
}

fn messages(logs: &Logs, id: &SandboxId, query: &LogQuery) -> Vec<String> {
    let lines = logs.read(&team(1), id, query).into_iter();
    lines.map(|line| line.message).collect()
}

#[test]
fn lines_are_filtered_ordered_and_cut() {
    let (logs, row) = (Logs::default(), row(1));
    let id = &row.sandbox_id;
    logs.open(&row);
    logs.told(
        id,
        vec![
            guest(1, LogLevel::Info, "a"),
            guest(2, LogLevel::Warn, "b"),
            guest(3, LogLevel::Error, "c b"),
        ],
    );
    let with = |change: &dyn Fn(&mut LogQuery)| {
        let mut query = all();
        change(&mut query);
        messages(&logs, id, &query)
    };
    assert_eq!(with(&|_| {}), ["a", "b", "c b"]);
    assert_eq!(
        with(&|it| it.direction = LogDirection::Backward),
        ["c b", "b", "a"]
    );
    assert_eq!(with(&|it| it.least = LogLevel::Warn), ["b", "c b"]);
    assert_eq!(with(&|it| it.search = Some("b".to_owned())), ["b", "c b"]);
    assert_eq!(
        with(&|it| it.search = Some("2".to_owned())),
        ["b"],
        "fields are searched"
    );
    assert_eq!(with(&|it| it.search = Some("B".to_owned())), [""; 0]);
    assert_eq!(with(&|it| it.limit = 2), ["a", "b"]);
    assert_eq!(with(&|it| it.cursor = Some(UnixMillis(1002))), ["b", "c b"]);
    let back = |it: &mut LogQuery| {
        (it.cursor, it.direction) = (Some(UnixMillis(1002)), LogDirection::Backward)
    };
    assert_eq!(with(&back), ["b", "a"]);
    assert!(
        logs.read(&team(2), id, &all()).is_empty(),
        "another team reads nothing"
    );
}

#[test]
fn what_was_told_twice_is_kept_once() {
    let (logs, row) = (Logs::default(), row(1));
    logs.open(&row);
    for _ in 0..2 {
        logs.told(
            &row.sandbox_id,
            vec![guest(1, LogLevel::Info, "a"), guest(2, LogLevel::Info, "b")],
        );
    }
    assert_eq!(messages(&logs, &row.sandbox_id, &all()), ["a", "b"]);
}

#[test]
fn a_talkative_guest_drives_out_its_own_lines_only() {
    let (logs, row) = (Logs::default(), row(1));
    let id = &row.sandbox_id;
    logs.open(&row);
    logs.decided(id, LogLevel::Info, "sandbox started", []);
    let many = (1..=5000).map(|number| guest(number, LogLevel::Info, "x"));
    logs.told(id, many.collect());
    let kept = messages(&logs, id, &all());
    assert!((800..=1001).contains(&kept.len()), "{}", kept.len());
    assert!(kept.contains(&"sandbox started".to_owned()));
    let long = "y".repeat(10_000);
    let big = (5001..=5100).map(|number| guest(number, LogLevel::Info, &long));
    logs.told(id, big.collect());
    assert!(logs.lock().guest_bytes <= MAX_GUEST_BYTES);
    assert!(messages(&logs, id, &all()).contains(&"sandbox started".to_owned()));
}

#[test]
fn all_together_they_stay_within_bounds_and_the_longest_ended_go_first() {
    let logs = Logs::default();
    let long = "y".repeat(100_000);
    let rows: Vec<_> = (0..900).map(row).collect();
    for row in &rows {
        logs.open(row);
        logs.told(&row.sandbox_id, vec![guest(1, LogLevel::Info, &long)]);
        logs.ended(&row.sandbox_id, Some(DeathCause::Killed));
    }
    assert!(logs.lock().guest_bytes <= MAX_ALL_BYTES);
    assert_eq!(messages(&logs, &rows[0].sandbox_id, &all()), [""; 0]);
    assert_eq!(messages(&logs, &rows[899].sandbox_id, &all()).len(), 2);
    for number in 900..3000 {
        let row = row(number);
        logs.open(&row);
        logs.ended(&row.sandbox_id, Some(DeathCause::Killed));
    }
    assert_eq!(logs.lock().books.len(), MAX_ENDED);
    assert_eq!(logs.lock().guest_bytes, 0);
    // Without an ended one the talkative one itself gives way.
    let rows: Vec<_> = (3000..3900).map(row).collect();
    for row in &rows {
        logs.open(row);
        logs.told(&row.sandbox_id, vec![guest(1, LogLevel::Info, &long)]);
    }
    assert!(logs.lock().guest_bytes <= MAX_ALL_BYTES);
}

#[test]
fn an_end_has_its_cause_and_level() {
    let logs = Logs::default();
    for (number, cause, level) in [
        (1, DeathCause::Killed, LogLevel::Info),
        (2, DeathCause::OutOfMemory, LogLevel::Error),
    ] {
        let row = row(number);
        logs.open(&row);
        logs.ended(&row.sandbox_id, Some(cause));
        let line = &logs.read(&team(1), &row.sandbox_id, &all())[0];
        assert_eq!(
            (line.level, line.fields["cause"].as_str()),
            (level, cause.as_str())
        );
    }
}

#[test]
fn programs_that_the_kernel_ended_are_noted_once() {
    let (logs, row) = (Logs::default(), row(1));
    logs.open(&row);
    // Twice the same count is nothing new; after a pause it begins anew.
    for counted in [0, 2, 2, 3, 0, 1] {
        logs.count_oom_kills(&row, counted);
    }
    let lines = logs.read(&team(1), &row.sandbox_id, &all());
    let killed: Vec<_> = lines
        .iter()
        .map(|it| it.fields["killed"].as_str())
        .collect();
    assert_eq!(killed, ["2", "1", "1"]);
    assert_eq!(lines[0].fields["memory_mb"], "512");
    assert_eq!(
        (lines[0].level, lines[0].message.as_str()),
        (LogLevel::Warn, OUT_OF_MEMORY)
    );
}
