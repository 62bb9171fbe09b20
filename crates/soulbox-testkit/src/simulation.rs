//! Random schedules of requests and failures, run in virtual time, with everything checked that must never happen.
//!
//! [`Schedule::random`] is what happens from outside, [`run`] plays it. A schedule and its seed decide everything, so a run can be
//! repeated, and [`shrink`] finds out which parts of a failing one matter.

mod agent;
mod coverage;
mod front;
mod ledger;
mod schedule;
mod store;
mod world;

pub use coverage::{Coverage, Transition};
pub use schedule::{Fault, Op, Schedule};

/// What must never happen and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule, in a few words.
    pub rule: &'static str,
    /// The virtual time, in milliseconds of the run.
    pub at: u64,
    pub detail: String,
}

/// A run that broke no rule.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Events of the world.
    pub events: u64,
    /// Messages between front and agent.
    pub messages: u64,
}

/// Plays a schedule to its end: until the faults are over and everything is at rest.
///
/// # Errors
/// The first rule that was broken.
pub fn run(schedule: &Schedule, coverage: &mut Coverage) -> Result<Summary, Violation> {
    world::World::new(schedule, coverage, None).run()
}

/// Plays a schedule as [`run`] does and returns what happened, a line each.
#[must_use]
pub fn trace(schedule: &Schedule) -> Vec<String> {
    let mut lines = Vec::new();
    let mut coverage = Coverage::default();
    let outcome = world::World::new(schedule, &mut coverage, Some(&mut lines)).run();
    lines.push(format!("{outcome:?}"));
    lines
}

/// The smallest part of a failing schedule that still breaks a rule, as far as leaving things out one by one leads.
#[must_use]
pub fn shrink(schedule: &Schedule) -> Schedule {
    let fails = |candidate: &Schedule| run(candidate, &mut Coverage::default()).is_err();
    let mut smallest = schedule.clone();
    loop {
        let parts = smallest.ops.len() + smallest.faults.len();
        let shorter = (0..parts)
            .map(|part| smallest.without(part))
            .find(|candidate| fails(candidate));
        match shorter {
            Some(shorter) => smallest = shorter,
            None => return smallest,
        }
    }
}
