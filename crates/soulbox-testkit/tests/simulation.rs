//! The simulated world, many times over. SOULBOX_SIM_SCHEDULES says how often (100,000), SOULBOX_SIM_SEED repeats one schedule with all
//! that happens in it, SOULBOX_SIM_FIRST is the first seed (1: whether a change passes is no matter of luck; `make soak` looks for new ones).

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use soulbox_testkit::simulation::{Coverage, Schedule, run, shrink, trace};

const THREADS: u64 = 2;

/// What comes less often than once in 8,000 schedules: too seldom to be missed in 100,000.
const RARE: [[&str; 4]; 6] = [
    ["control", "Running", "Looked, snapshot", "Paused"],
    ["control", "Pausing, to save", "Paused", "Paused"],
    ["control", "Killing, start pending", "Paused", "Dead"],
    [
        "control",
        "Running, host asked",
        "DeadlineTooLate",
        "Pausing, watched",
    ],
    ["host", "Starting", "late command", "Starting"],
    ["host", "Saving, exited", "SaveFailed, harmed", "Gone"],
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} is `{text}`, which is no number"),
    }
}

/// Panics with the smallest schedule that breaks a rule, as text that can be pasted into the list of regressions.
fn report(schedule: &Schedule) -> ! {
    let violation = run(schedule, &mut Coverage::default());
    println!("seed {}: {violation:?}, shrinking", schedule.seed);
    let smallest = shrink(schedule);
    let lines = trace(&smallest);
    panic!(
        "seed {} breaks a rule; shrunk, it is\n{smallest:?}\nand this happens:\n{}\nrepeat it with SOULBOX_SIM_SEED={}",
        schedule.seed,
        lines.join("\n"),
        schedule.seed
    );
}

#[test]
fn no_schedule_breaks_a_rule() {
    if let Some(seed) = number("SOULBOX_SIM_SEED") {
        let schedule = Schedule::random(seed);
        println!("{schedule:?}\n{}", trace(&schedule).join("\n"));
        if run(&schedule, &mut Coverage::default()).is_err() {
            report(&schedule);
        }
        return;
    }
    let schedules = number("SOULBOX_SIM_SCHEDULES").unwrap_or(100_000);
    let first = number("SOULBOX_SIM_FIRST").unwrap_or(1);
    println!("{schedules} schedules from seed {first} on");
    let started = Instant::now();
    let parts: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|part| {
                scope.spawn(move || {
                    let mut coverage = Coverage::default();
                    let (mut events, mut messages) = (0, 0);
                    for seed in (first + part..first + schedules).step_by(THREADS as usize) {
                        match run(&Schedule::random(seed), &mut coverage) {
                            Ok(summary) => {
                                events += summary.events;
                                messages += summary.messages;
                            }
                            Err(violation) => return Err((seed, violation)),
                        }
                    }
                    Ok((coverage, events, messages))
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect()
    });
    let mut coverage = Coverage::default();
    let (mut events, mut messages) = (0, 0);
    for part in parts {
        match part {
            Ok((reached, more_events, more_messages)) => {
                coverage.merge(&reached);
                events += more_events;
                messages += more_messages;
            }
            Err((seed, _)) => report(&Schedule::random(seed)),
        }
    }
    println!(
        "{events} events and {messages} messages in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let all = coverage.all();
    for (transition, count) in &all {
        let (from, event, to) = (transition.from, transition.event, transition.to);
        println!(
            "{count:>9} {:<8} {from} + {event} -> {to}",
            transition.machine
        );
    }
    let reached: BTreeSet<_> = all
        .keys()
        .map(|it| [it.machine, it.from, it.event, it.to].map(str::to_owned))
        .collect();
    let table = table();
    let unknown: Vec<_> = reached.difference(&table).collect();
    assert!(unknown.is_empty(), "docs/lifecycle.md lacks {unknown:?}");
    if schedules >= 100_000 {
        let is_rare = |it: &[String; 4]| RARE.iter().any(|rare| *it == rare.map(str::to_owned));
        let missed: Vec<_> = table
            .difference(&reached)
            .filter(|it| schedules >= 1_000_000 || !is_rare(it))
            .collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
    }
}

/// The transitions of docs/lifecycle.md: machine, from, event, to. Semicolons separate several of a cell.
fn table() -> BTreeSet<[String; 4]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/lifecycle.md");
    let text = std::fs::read_to_string(path).expect("docs/lifecycle.md");
    let mut machine = None;
    let mut table = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('#') {
            machine = match line {
                "### Control" | "### Pauses" => Some("control"),
                "### Host" | "### Host, snapshots" | "### Host, rollbacks" => Some("host"),
                "### Starts and comparisons" => Some("recovery"),
                _ => None,
            };
        }
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if let (Some(machine), [from, event, to, _]) = (machine, &cells[..])
            && *from != "from"
        {
            for from in from.split("; ") {
                for event in event.split("; ") {
                    table.insert([machine, from, event, to].map(|cell| (*cell).to_owned()));
                }
            }
        }
    }
    assert!(
        table.len() > 50,
        "the tables of docs/lifecycle.md are not where they were"
    );
    table
}
