//! What is kept, what goes, and who reads what.

use soulbox_types::{BuildId, Epoch, Limits, MiB, MilliCpu, Network, TeamId, TemplateId};

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

/// The lines that the store has not taken yet, by speaker and oldest first.
fn messages(logs: &Logs, id: &SandboxId) -> Vec<String> {
    let lines = logs.unwritten().lines.into_iter();
    let of_it = lines.filter(|it| it.sandbox_id == *id);
    of_it.map(|it| it.line.message).collect()
}

/// What the store would be asked to bound.
fn written(logs: &Logs) -> Vec<(SandboxId, Speaker, Room)> {
    let before = logs.unwritten().before;
    logs.written(before)
}

#[test]
fn lines_are_filtered_ordered_and_cut() {
    let lines = [
        guest(1, LogLevel::Info, "a"),
        guest(2, LogLevel::Warn, "b"),
        guest(3, LogLevel::Error, "c b"),
    ];
    let lines: Vec<_> = lines.into_iter().map(|it| it.line).collect();
    let with = |change: &dyn Fn(&mut LogQuery)| {
        let mut query = all();
        change(&mut query);
        let found = query.select(lines.clone()).into_iter();
        found.map(|line| line.message).collect::<Vec<_>>()
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
}

#[test]
fn what_was_told_twice_is_kept_once() {
    let (logs, row) = (Logs::default(), row(1));
    logs.open(&row, true);
    for _ in 0..2 {
        logs.told(
            &row.sandbox_id,
            vec![guest(1, LogLevel::Info, "a"), guest(2, LogLevel::Info, "b")],
        );
    }
    assert_eq!(messages(&logs, &row.sandbox_id), ["a", "b"]);
}

#[test]
fn a_copy_does_not_tell_what_was_done_before_it_was_made() {
    let (logs, mut row) = (Logs::default(), row(1));
    row.created_at = clock::now();
    logs.open(&row, true);
    let mut lines = [1, 2].map(|number| guest(number, LogLevel::Info, &number.to_string()));
    lines[1].line.at = clock::wall().plus_millis(1000);
    logs.told(&row.sandbox_id, lines.to_vec());
    assert_eq!(messages(&logs, &row.sandbox_id), ["2"]);
}

#[test]
fn what_comes_while_lines_are_written_is_written_next() {
    let (logs, row) = (Logs::default(), row(1));
    let id = &row.sandbox_id;
    logs.open(&row, true);
    logs.decided(id, LogLevel::Info, "sandbox started", []);
    logs.told(id, vec![guest(1, LogLevel::Info, "a")]);
    let batch = logs.unwritten();
    assert_eq!(batch.lines.len(), 2);
    logs.told(id, vec![guest(2, LogLevel::Info, "b")]);
    logs.ended(id, Some(UnixMillis(5)), Some(DeathCause::Killed));
    // A store that failed is asked again for all.
    assert_eq!(logs.unwritten().lines.len(), 4);
    assert!(logs.written(batch.before).is_empty());
    assert_eq!(messages(&logs, id), ["sandbox ended", "b"]);
    assert!(written(&logs).is_empty());
    assert!(logs.lock().books.is_empty(), "an ended one is put away");
}

#[test]
fn a_talkative_guest_drives_out_its_own_lines_only() {
    let (logs, row) = (Logs::default(), row(1));
    let id = &row.sandbox_id;
    logs.open(&row, true);
    logs.decided(id, LogLevel::Info, "sandbox started", []);
    let many = (1..=5000).map(|number| guest(number, LogLevel::Info, "x"));
    logs.told(id, many.collect());
    let kept = messages(&logs, id);
    assert!((800..=1001).contains(&kept.len()), "{}", kept.len());
    assert!(kept.contains(&"sandbox started".to_owned()));
    let long = "y".repeat(10_000);
    let big = (5001..=5100).map(|number| guest(number, LogLevel::Info, &long));
    logs.told(id, big.collect());
    assert!(logs.lock().guest_bytes <= ROOM_OF_GUEST.bytes);
    assert!(messages(&logs, id).contains(&"sandbox started".to_owned()));
    // The store has its room as well.
    assert_eq!(
        written(&logs),
        [(id.clone(), Speaker::Guest, ROOM_OF_GUEST)]
    );
    assert_eq!(logs.lock().guest_bytes, 0);
}

#[test]
fn while_nothing_is_written_all_stay_within_bounds_and_the_longest_ended_go_first() {
    let logs = Logs::default();
    let long = "y".repeat(100_000);
    let rows: Vec<_> = (0..900).map(row).collect();
    for row in &rows {
        logs.open(row, true);
        logs.told(&row.sandbox_id, vec![guest(1, LogLevel::Info, &long)]);
        logs.ended(&row.sandbox_id, None, Some(DeathCause::Killed));
    }
    assert!(logs.lock().guest_bytes <= MAX_UNWRITTEN_BYTES);
    assert_eq!(messages(&logs, &rows[0].sandbox_id), [""; 0]);
    assert_eq!(messages(&logs, &rows[899].sandbox_id).len(), 2);
    for number in 900..3000 {
        let row = row(number);
        logs.open(&row, true);
        logs.ended(&row.sandbox_id, None, Some(DeathCause::Killed));
    }
    assert_eq!(logs.lock().books.len(), MAX_ENDED);
    assert_eq!(logs.lock().guest_bytes, 0);
    // Without an ended one the talkative one itself gives way.
    let rows: Vec<_> = (3000..3900).map(row).collect();
    for row in &rows {
        logs.open(row, true);
        logs.told(&row.sandbox_id, vec![guest(1, LogLevel::Info, &long)]);
    }
    assert!(logs.lock().guest_bytes <= MAX_UNWRITTEN_BYTES);
}

#[test]
fn an_end_has_its_cause_and_level_and_is_the_same_line_of_every_server() {
    for (number, cause, level) in [
        (1, DeathCause::Killed, LogLevel::Info),
        (2, DeathCause::OutOfMemory, LogLevel::Error),
    ] {
        let row = row(number);
        let lines = [(), ()].map(|()| {
            let logs = Logs::default();
            logs.open(&row, false);
            logs.ended(&row.sandbox_id, Some(UnixMillis(7)), Some(cause));
            logs.unwritten().lines.remove(0)
        });
        assert_eq!(lines[0], lines[1]);
        let line = &lines[0].line;
        assert_eq!(
            (line.level, line.fields["cause"].as_str()),
            (level, cause.as_str())
        );
    }
}

#[test]
fn programs_that_the_kernel_ended_are_noted_once() {
    let killed = |is_new| {
        let (logs, row) = (Logs::default(), row(1));
        logs.open(&row, is_new);
        // Twice the same count is nothing new; after a pause it begins anew.
        for counted in [1, 2, 2, 3, 0, 1] {
            logs.count_oom_kills(&row, None, counted);
        }
        let lines = logs.unwritten().lines;
        for KeptLine { line, .. } in &lines {
            assert_eq!(line.fields["memory_mb"], "512");
            assert_eq!(
                (line.level, line.message.as_str()),
                (LogLevel::Warn, OUT_OF_MEMORY)
            );
        }
        let lines = lines.iter();
        lines
            .map(|it| it.line.fields["killed"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(killed(true), ["1", "1", "1", "1"]);
    // The first was another server's to note.
    assert_eq!(killed(false), ["1", "1", "1"]);
}

#[test]
fn the_same_count_of_the_same_run_has_the_same_number_on_every_server() {
    let numbers = |runs: &[(u64, &[u64])]| {
        let (logs, row) = (Logs::default(), row(1));
        logs.open(&row, true);
        for (started_at, counts) in runs {
            for counted in *counts {
                logs.count_oom_kills(&row, Some(UnixMillis(*started_at)), *counted);
            }
        }
        let lines = logs.unwritten().lines.into_iter();
        lines.map(|it| it.number).collect::<Vec<_>>()
    };
    const START: u64 = 1_790_000_000_000;
    let one = numbers(&[(START, &[1, 2, 5]), (START + 1, &[1])]);
    let other = numbers(&[(START, &[2, 5]), (START + 1, &[0, 1])]);
    assert_eq!(other, one[1..]);
    assert!(one.is_sorted_by(|a, b| a < b), "{one:?}");
    // A database has signed numbers, and the greatest one is that of ends.
    assert!(
        one.iter()
            .all(|it| (KeptLine::ONCE..u64::MAX >> 1).contains(it))
    );
}
