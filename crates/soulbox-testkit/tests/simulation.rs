//! The simulated world, many times over. SOULBOX_SIM_SCHEDULES says how often (100,000), SOULBOX_SIM_SEED repeats one schedule with all
//! that happens in it, SOULBOX_SIM_FIRST is the first seed (of the clock).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use soulbox_testkit::simulation::{Coverage, Schedule, run, shrink, trace};

const THREADS: u64 = 2;

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
    let first = number("SOULBOX_SIM_FIRST").unwrap_or_else(|| {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970");
        since.as_secs() << 24
    });
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
    for (transition, count) in coverage.all() {
        println!(
            "| {} | {} | {} | {} | {count}",
            transition.machine, transition.from, transition.event, transition.to
        );
    }
}
