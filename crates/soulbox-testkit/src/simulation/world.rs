//! Virtual time: what is to happen when, in an order that the seed decides. Failures that the schedule names are looked up here.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use soulbox_control::lifecycle::Event;
use soulbox_control::ownership::Ticket;
use soulbox_control::reconcile::Listed;
use soulbox_control::{HostFailure, HostSnapshot};
use soulbox_host::lifecycle::After;
use soulbox_types::{Epoch, SandboxId, SandboxState, UnixMillis};

use super::agent::Agent;
use super::coverage::Coverage;
use super::front::{Front, Write};
use super::ledger::{Broken, Ledger};
use super::schedule::{Fault, Op, Schedule};
use super::store::Rows;
use super::{Summary, Violation};
use crate::random::Random;

/// The wall clock at the start of a run.
const START: u64 = 1_000_000;
/// After the last fault and operation everything has to be over within this: the longest deadline, and what it takes to find leftovers.
const REST_WITHIN: u64 = 900_000;
/// No run of this length is a run any more.
const MOST_EVENTS: u64 = 200_000;

/// A command to the agent.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Create {
        sandbox: usize,
        epoch: Epoch,
        deadline: UnixMillis,
        /// The snapshot that it begins with.
        from: Option<String>,
    },
    /// Go back to what has been prepared.
    Replace {
        sandbox: usize,
        epoch: Epoch,
    },
    Kill {
        sandbox: usize,
        epoch: Epoch,
    },
    SetDeadline {
        sandbox: usize,
        epoch: Epoch,
        deadline: UnixMillis,
    },
    Save {
        sandbox: usize,
        epoch: Epoch,
        name: String,
        after: After,
    },
    List,
    Snapshots,
    Delete {
        name: String,
    },
}

/// What the agent answers.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Created { started_at: UnixMillis },
    Done,
    Failed(HostFailure),
    Listed(Vec<(usize, Listed)>),
    Saved(HostSnapshot),
    Snapshots(Vec<HostSnapshot>),
}

/// One connection of a front to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) front: u32,
    pub(super) agent: u32,
}

#[derive(Debug, Clone)]
pub(super) enum Item {
    Op {
        op: Op,
        sandbox: usize,
    },
    Leave(Ticket),
    FrontDies {
        front: u32,
    },
    /// Another front has changed a row.
    News {
        front: u32,
        sandbox: usize,
    },
    FrontStarts {
        front: u32,
    },
    AgentDies {
        front_too: bool,
    },
    AgentStarts {
        agent: u32,
    },
    OwnerWakes {
        front: u32,
        sandbox: usize,
        at: u64,
    },
    Written {
        front: u32,
        sandbox: usize,
        call: u64,
        write: Write,
        fails: bool,
    },
    WriteTimesOut {
        front: u32,
        sandbox: usize,
        call: u64,
    },
    Compare {
        front: u32,
    },
    Command {
        link: Link,
        call: u64,
        command: Command,
    },
    Reply {
        front: u32,
        call: u64,
        reply: Reply,
    },
    CallTimesOut {
        front: u32,
        call: u64,
    },
    ToldOfEnd {
        front: u32,
        sandbox: usize,
        epoch: Epoch,
        event: Event,
    },
    HostWakes {
        agent: u32,
        sandbox: usize,
        at: u64,
    },
    Boots {
        agent: u32,
        sandbox: usize,
    },
    Booted {
        agent: u32,
        sandbox: usize,
    },
    StartFailed {
        agent: u32,
        sandbox: usize,
    },
    SaveEnds {
        agent: u32,
        sandbox: usize,
        job: u64,
        well: bool,
    },
    Ends {
        sandbox: usize,
        /// Of which of its starts the processes are.
        run: u32,
    },
}

struct Queued {
    at: u64,
    order: u64,
    item: Item,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        // The earliest is the greatest, as a heap wants it.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

pub(super) struct World<'a> {
    pub(super) now: u64,
    queue: BinaryHeap<Queued>,
    queued: u64,
    pub(super) random: Random,
    pub(super) schedule: &'a Schedule,
    pub(super) coverage: &'a mut Coverage,
    lines: Option<&'a mut Vec<String>>,
    /// The front that acts now.
    pub(super) front: Front,
    /// Others on the same records.
    others: Vec<Front>,
    pub(super) agent: Agent,
    pub(super) rows: Rows,
    pub(super) ledger: Ledger,
    broken: Option<Violation>,
    summary: Summary,
    front_effects: u64,
    agent_effects: u64,
    calm_at: u64,
    /// Which sandboxes are paused at their deadline.
    pub(super) pausing: Vec<bool>,
}

impl<'a> World<'a> {
    pub(super) fn new(
        schedule: &'a Schedule,
        coverage: &'a mut Coverage,
        lines: Option<&'a mut Vec<String>>,
    ) -> Self {
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            queued: 0,
            random: Random::new(schedule.seed ^ 0x5eed),
            schedule,
            coverage,
            lines,
            front: Front::new(0),
            others: (1..schedule.fronts).map(Front::new).collect(),
            agent: Agent::default(),
            rows: Rows::default(),
            ledger: Ledger::default(),
            broken: None,
            summary: Summary::default(),
            front_effects: 0,
            agent_effects: 0,
            calm_at: 0,
            pausing: Vec::new(),
        };
        world.agent.up = true;
        world.ledger.shared = world.is_shared();
        for front in 0..schedule.fronts {
            world.after(20_000, Item::Compare { front });
        }
        let mut created = 0;
        for op in &schedule.ops {
            let sandbox = match *op {
                Op::Create { pauses, .. } => {
                    world.pausing.push(pauses);
                    created += 1;
                    created - 1
                }
                Op::Fork { .. } => {
                    world.pausing.push(false);
                    created += 1;
                    created - 1
                }
                Op::Set { sandbox, .. }
                | Op::Extend { sandbox, .. }
                | Op::Kill { sandbox, .. }
                | Op::Pause { sandbox, .. }
                | Op::Resume { sandbox, .. }
                | Op::Snapshot { sandbox, .. }
                | Op::Rollback { sandbox, .. }
                | Op::Exit { sandbox, .. } => sandbox,
            };
            world.calm_at = world.calm_at.max(op.at());
            world.after(op.at(), Item::Op { op: *op, sandbox });
        }
        for fault in &schedule.faults {
            match *fault {
                Fault::FrontDies { at } => {
                    world.calm_at = world.calm_at.max(at);
                    let front = world.number(at);
                    world.after(at, Item::FrontDies { front });
                }
                Fault::AgentDies { at, front_too } => {
                    world.calm_at = world.calm_at.max(at);
                    world.after(at, Item::AgentDies { front_too });
                }
                Fault::CutOff { until, .. }
                | Fault::StoreFails { until, .. }
                | Fault::StoreSlow { until, .. }
                | Fault::DiskFull { until, .. }
                | Fault::StartFails { until, .. }
                | Fault::StartSlow { until, .. }
                | Fault::InitFails { until, .. }
                | Fault::SaveFails { until, .. }
                | Fault::SaveSlow { until, .. }
                | Fault::EndSlow { until, .. } => world.calm_at = world.calm_at.max(until),
                Fault::FrontDiesAtEffect { .. }
                | Fault::AgentDiesAtEffect { .. }
                | Fault::Lost { .. }
                | Fault::Twice { .. }
                | Fault::Late { .. } => {}
            }
        }
        world
    }

    pub(super) fn run(mut self) -> Result<Summary, Violation> {
        while let Some(Queued { at, item, .. }) = self.queue.pop() {
            self.now = at;
            self.summary.events += 1;
            self.happens(item);
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
            if self.now > self.calm_at && self.is_at_rest() {
                if self.is_cleared() {
                    return Ok(self.summary);
                }
                // What is paused may stay so for ever; what is killed may not. A failure may still hit that kill.
                if self.rows.live().next().is_some() {
                    self.calm_at = self.now;
                    self.turn_to(0);
                    self.kills_what_is_paused();
                }
            }
            if self.now > self.calm_at + REST_WITHIN || self.summary.events > MOST_EVENTS {
                break;
            }
        }
        let rows: Vec<_> = self.rows.live().collect();
        let alive: Vec<_> = self.ledger.alive().collect();
        let owners: Vec<_> = self.fronts().flat_map(Front::owned).collect();
        let snapshots: Vec<_> = self.agent.snapshots.keys().collect();
        let detail = format!(
            "processes {alive:?}, owners {owners:?}, rows {rows:?}, snapshots {snapshots:?}"
        );
        self.breaks(("nothing is stuck", detail));
        self.broken.take().map_or(Ok(self.summary), Err)
    }

    fn happens(&mut self, item: Item) {
        self.note(|| format!("{item:?}"));
        match item {
            Item::Op { op, sandbox } => {
                self.turn_to(self.number(op.at()));
                self.asked(op, sandbox);
            }
            Item::Leave(ticket) => self.ledger.leave(ticket),
            Item::FrontDies { front } => {
                self.turn_to(front);
                self.front_dies();
            }
            Item::FrontStarts { front } => {
                self.turn_to(front);
                self.front_starts(front);
            }
            Item::News { front, sandbox } => {
                if self.is_now(front) && self.front.serving {
                    self.catches_up(sandbox);
                }
            }
            Item::AgentDies { front_too } => self.agent_dies(front_too),
            Item::AgentStarts { agent } => self.agent_starts(agent),
            Item::OwnerWakes { front, sandbox, at } => {
                if self.is_now(front) {
                    self.owner_wakes(sandbox, at);
                }
            }
            Item::Written {
                front,
                sandbox,
                call,
                write,
                fails,
            } => {
                self.turn_to(front);
                self.written(front, sandbox, call, write, fails);
            }
            Item::WriteTimesOut {
                front,
                sandbox,
                call,
            } => {
                self.turn_to(front);
                self.write_times_out(front, sandbox, call);
            }
            Item::Compare { front } => {
                if self.is_now(front) {
                    self.compare();
                }
            }
            Item::Command {
                link,
                call,
                command,
            } => {
                if link.agent == self.agent.incarnation && self.agent.up {
                    self.agent_receives(link, call, command);
                }
            }
            Item::Reply { front, call, reply } => {
                if self.is_now(front) {
                    self.replied(call, Some(reply));
                }
            }
            Item::CallTimesOut { front, call } => {
                if self.is_now(front) {
                    self.replied(call, None);
                }
            }
            Item::ToldOfEnd {
                front,
                sandbox,
                epoch,
                event,
            } => {
                if self.is_now(front) {
                    self.told(sandbox, epoch, event);
                }
            }
            Item::HostWakes { agent, sandbox, at } => {
                if agent == self.agent.incarnation {
                    self.host_wakes(sandbox, at);
                }
            }
            Item::Boots { agent, sandbox } => {
                if agent == self.agent.incarnation {
                    self.boots(sandbox);
                }
            }
            Item::Booted { agent, sandbox } => {
                if agent == self.agent.incarnation {
                    self.booted(sandbox);
                }
            }
            Item::StartFailed { agent, sandbox } => {
                if agent == self.agent.incarnation {
                    self.start_failed(sandbox);
                }
            }
            Item::SaveEnds {
                agent,
                sandbox,
                job,
                well,
            } => {
                if agent == self.agent.incarnation {
                    self.save_ends(sandbox, job, well);
                }
            }
            Item::Ends { sandbox, run } => {
                if run == self.ledger.run_of(sandbox) {
                    self.ends(sandbox);
                }
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        self.fronts().all(|front| front.serving && front.is_idle())
            && self.agent.up
            && self.agent.is_idle()
            && self.ledger.alive().next().is_none()
            && self
                .rows
                .live()
                .all(|(_, row)| row.progress.state == SandboxState::Paused)
            && self.ledger.waiting().is_none()
    }

    /// Whether no row is left, nor the snapshot of a pause: those are found when snapshots are compared.
    fn is_cleared(&self) -> bool {
        self.rows.live().next().is_none()
            && !self.agent.snapshots.values().any(|snapshot| snapshot.ended)
    }

    /// All fronts, whoever acts.
    pub(super) fn fronts(&self) -> impl Iterator<Item = &Front> + '_ {
        std::iter::once(&self.front).chain(&self.others)
    }

    /// Whether several fronts share the records.
    pub(super) fn is_shared(&self) -> bool {
        self.schedule.fronts > 1
    }

    /// The number of the front that something at that time is for.
    fn number(&self, at: u64) -> u32 {
        u32::try_from(at % u64::from(self.schedule.fronts)).unwrap_or(0)
    }

    /// Lets that front act. Its incarnations are as many apart as there are fronts.
    pub(super) fn turn_to(&mut self, front: u32) {
        let number = front % self.schedule.fronts;
        if let Some(other) = self.others.iter_mut().find(|it| it.number == number) {
            std::mem::swap(other, &mut self.front);
        }
    }

    /// Lets that front act, if it has not died since.
    fn is_now(&mut self, front: u32) -> bool {
        self.turn_to(front);
        front == self.front.incarnation
    }

    /// The name of a sandbox in the code under test.
    pub(super) fn id(sandbox: usize) -> SandboxId {
        SandboxId::from_random([u8::try_from(sandbox).unwrap_or(u8::MAX); 20])
    }

    /// The time as the code under test sees it.
    pub(super) fn time(&self) -> UnixMillis {
        UnixMillis(START + self.now)
    }

    /// The same of a time that the code under test names.
    pub(super) fn from_start(at: UnixMillis) -> u64 {
        at.0.saturating_sub(START)
    }

    pub(super) fn after(&mut self, millis: u64, item: Item) {
        let at = self.now + millis;
        self.at(at, item);
    }

    pub(super) fn at(&mut self, at: u64, item: Item) {
        self.queued += 1;
        self.queue.push(Queued {
            at: at.max(self.now),
            order: self.queued,
            item,
        });
    }

    pub(super) fn check(&mut self, checked: Result<(), Broken>) {
        if let Err(broken) = checked {
            self.breaks(broken);
        }
    }

    /// The first broken rule counts.
    pub(super) fn breaks(&mut self, (rule, detail): Broken) {
        let at = self.now;
        self.broken.get_or_insert(Violation { rule, at, detail });
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>7} {}", self.now, line()));
        }
    }

    /// Sends something between front and agent: each of its arrivals, with its delay.
    pub(super) fn sends(&mut self) -> impl Iterator<Item = u64> + use<> {
        let number = self.summary.messages;
        self.summary.messages += 1;
        let mut first = Some(1 + self.random.skewed(20));
        let mut second = None;
        for fault in &self.schedule.faults {
            match *fault {
                Fault::Lost { n } if n == number => first = None,
                Fault::Late { n, by } if n == number => first = first.map(|delay| delay + by),
                Fault::Twice { n, again_after } if n == number => {
                    second = first.map(|delay| delay + again_after);
                }
                Fault::CutOff { from, until } if (from..until).contains(&self.now) => first = None,
                _ => {}
            }
        }
        first.into_iter().chain(second)
    }

    /// Whether the front is killed before this effect.
    pub(super) fn front_dies_here(&mut self) -> bool {
        let number = self.front_effects;
        self.front_effects += 1;
        self.schedule
            .faults
            .contains(&Fault::FrontDiesAtEffect { n: number })
    }

    /// Whether the agent is killed before this effect; and whether its front is as well.
    pub(super) fn agent_dies_here(&mut self) -> Option<bool> {
        let number = self.agent_effects;
        self.agent_effects += 1;
        self.schedule.faults.iter().find_map(|fault| match *fault {
            Fault::AgentDiesAtEffect { n, front_too } if n == number => Some(front_too),
            _ => None,
        })
    }

    /// Whether a failure of that kind is on now, and by how much it delays.
    pub(super) fn fault(&self, kind: impl Fn(&Fault) -> Option<(u64, u64, u64)>) -> Option<u64> {
        self.schedule.faults.iter().find_map(|fault| {
            let (from, until, by) = kind(fault)?;
            (from..until).contains(&self.now).then_some(by)
        })
    }
}
