//! The host agent with its processes and records. Every decision in here is [`soulbox_host::lifecycle`]'s; this performs, and dies where
//! it is told to.

use std::collections::BTreeMap;

use soulbox_control::HostFailure;
use soulbox_control::reconcile::Listed;
use soulbox_host::lifecycle::{
    After, Answer, AtDeadline, Effect, Event, Fences, Machine, Phase, step,
};
use soulbox_types::{DeathCause, Epoch, UnixMillis};

use super::schedule::Fault;
use super::world::{Command, Item, Link, Reply, World};

#[derive(Debug, Default)]
pub(super) struct Agent {
    pub(super) incarnation: u32,
    pub(super) up: bool,
    up_since: u64,
    entries: BTreeMap<usize, Entry>,
    fences: Fences<usize>,
    /// On disk.
    records: BTreeMap<usize, Record>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    epoch: Epoch,
    deadline: UnixMillis,
    started_at: UnixMillis,
}

#[derive(Debug, Clone, Copy)]
struct Caller {
    link: Link,
    call: u64,
}

#[derive(Debug)]
struct Entry {
    machine: Machine,
    waiting: Vec<Caller>,
    /// Who waits for its snapshot.
    savers: Vec<Caller>,
    /// Who asked for it to be made, while it is.
    creator: Option<Caller>,
    /// As the agent knows it, which may be newer than what is on disk.
    record: Record,
    wakes_at: Option<u64>,
}

impl Agent {
    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }
}

impl World<'_> {
    pub(super) fn agent_receives(&mut self, link: Link, call: u64, command: Command) {
        let caller = Caller { link, call };
        match command {
            Command::Create {
                sandbox,
                epoch,
                deadline,
            } => self.makes(sandbox, epoch, deadline, caller),
            Command::Kill { sandbox, epoch } => {
                if self.agent.entries.contains_key(&sandbox) {
                    self.host_feeds(sandbox, Event::Kill { epoch }, Some(caller));
                } else {
                    let now = self.time();
                    self.agent.fences.bar(&sandbox, epoch, now);
                    self.replies(caller, Reply::Failed(HostFailure::NotFound));
                }
            }
            Command::SetDeadline {
                sandbox,
                epoch,
                deadline,
            } => {
                let event = Event::SetDeadline { epoch, deadline };
                if self.agent.entries.contains_key(&sandbox) {
                    self.host_feeds(sandbox, event, Some(caller));
                } else {
                    self.replies(caller, Reply::Failed(HostFailure::NotFound));
                }
            }
            Command::List => {
                let listed = self.agent.entries.iter().filter_map(|(sandbox, entry)| {
                    let listed = Listed {
                        epoch: entry.record.epoch,
                        started_at: entry.record.started_at,
                        deadline: entry.record.deadline,
                    };
                    let starting = matches!(entry.machine.phase, Phase::Starting { .. });
                    (!starting).then_some((*sandbox, listed))
                });
                let listed = listed.collect();
                self.replies(caller, Reply::Listed(listed));
            }
        }
    }

    fn makes(&mut self, sandbox: usize, epoch: Epoch, deadline: UnixMillis, caller: Caller) {
        if self.agent.entries.contains_key(&sandbox) {
            return self.replies(caller, Reply::Failed(HostFailure::AlreadyExists));
        }
        if self.agent.fences.bars(&sandbox, epoch) {
            return self.replies(caller, Reply::Failed(HostFailure::StaleEpoch));
        }
        let entry = Entry {
            machine: Machine::create(epoch, deadline, AtDeadline::Kill),
            waiting: Vec::new(),
            savers: Vec::new(),
            creator: Some(caller),
            record: Record {
                epoch,
                deadline,
                started_at: UnixMillis(0),
            },
            wakes_at: None,
        };
        self.agent.entries.insert(sandbox, entry);
        let slow = self.fault(|fault| match *fault {
            Fault::StartSlow { from, until, by } => Some((from, until, by)),
            _ => None,
        });
        let takes = 1 + self.random.skewed(30) + slow.unwrap_or(0);
        let agent = self.agent.incarnation;
        self.after(takes, Item::Boots { agent, sandbox });
    }

    pub(super) fn boots(&mut self, sandbox: usize) {
        let Some(entry) = self.agent.entries.get(&sandbox) else {
            return;
        };
        let fails = self.fault(|fault| match *fault {
            Fault::StartFails { from, until } => Some((from, until, 0)),
            _ => None,
        });
        if entry.machine.is_doomed() || fails.is_some() {
            return self.start_failed(sandbox);
        }
        let started = self
            .ledger
            .started(sandbox, self.time(), self.schedule.limit);
        self.check(started);
        let takes = self.random.skewed(10);
        let agent = self.agent.incarnation;
        self.after(takes, Item::Booted { agent, sandbox });
    }

    pub(super) fn booted(&mut self, sandbox: usize) {
        let now = self.time();
        let full = self.disk_is_full();
        let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
            return;
        };
        if !self.ledger.is_alive(sandbox) {
            return self.start_failed(sandbox);
        }
        if full {
            // It is told only when nothing is left.
            let takes = self.random.skewed(10);
            let agent = self.agent.incarnation;
            self.after(takes, Item::Ends { sandbox });
            self.after(takes, Item::StartFailed { agent, sandbox });
            return;
        }
        entry.record.started_at = now;
        let record = entry.record;
        if let Some(front_too) = self.agent_dies_here() {
            return self.agent_dies(front_too);
        }
        self.agent.records.insert(sandbox, record);
        let creator = self
            .agent
            .entries
            .get_mut(&sandbox)
            .and_then(|it| it.creator.take());
        self.host_feeds(sandbox, Event::Started, creator);
    }

    pub(super) fn start_failed(&mut self, sandbox: usize) {
        let creator = self
            .agent
            .entries
            .get_mut(&sandbox)
            .and_then(|it| it.creator.take());
        if let Some(creator) = creator {
            let failure = HostFailure::Failed(String::new());
            self.replies(creator, Reply::Failed(failure));
        }
        self.host_feeds(sandbox, Event::StartFailed, None);
    }

    fn disk_is_full(&self) -> bool {
        self.fault(|fault| match *fault {
            Fault::DiskFull { from, until } => Some((from, until, 0)),
            _ => None,
        })
        .is_some()
    }

    pub(super) fn host_wakes(&mut self, sandbox: usize, at: u64) {
        let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
            return;
        };
        if entry.wakes_at == Some(at) {
            entry.wakes_at = None;
            self.host_feeds(sandbox, Event::Tick, None);
        }
    }

    fn host_feeds(&mut self, sandbox: usize, event: Event, mut caller: Option<Caller>) {
        let now = self.time();
        let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
            return;
        };
        let before = entry.machine;
        let (machine, effects) = step(&before, now, event);
        entry.machine = machine;
        self.coverage.host(&before, &event, &machine, &effects);
        let agent = self.agent.incarnation;
        for effect in effects {
            if let Some(front_too) = self.agent_dies_here() {
                self.note(|| format!("  agent dies at {effect:?} of {sandbox}"));
                return self.agent_dies(front_too);
            }
            self.note(|| format!("  host {sandbox}: {effect:?}"));
            self.host_performs(sandbox, event, effect, &mut caller);
        }
        if agent != self.agent.incarnation {
            return;
        }
        let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
            return;
        };
        if let Some(at) = entry.machine.wake_at() {
            let at = World::from_start(at).max(self.now);
            if entry.wakes_at != Some(at) {
                entry.wakes_at = Some(at);
                self.at(at, Item::HostWakes { agent, sandbox, at });
            }
        }
    }

    fn host_performs(
        &mut self,
        sandbox: usize,
        event: Event,
        effect: Effect,
        caller: &mut Option<Caller>,
    ) {
        let now = self.time();
        match effect {
            Effect::Answer(answer) => {
                let started_at = self
                    .agent
                    .entries
                    .get(&sandbox)
                    .map(|it| it.record.started_at);
                let reply = match (answer, event) {
                    (Answer::Done, Event::Started) => Reply::Created {
                        started_at: started_at.unwrap_or(now),
                    },
                    (Answer::Done, _) => Reply::Done,
                    (Answer::StaleEpoch, _) => Reply::Failed(HostFailure::StaleEpoch),
                    (Answer::NotLive, _) => Reply::Failed(HostFailure::NotLive),
                    (Answer::BeingPaused, _) => Reply::Failed(HostFailure::BeingPaused),
                    (Answer::Lost, _) => Reply::Failed(HostFailure::Lost(String::new())),
                    (Answer::Busy, _) => Reply::Failed(HostFailure::CannotSave(String::new())),
                    (Answer::NotFound, _) => Reply::Failed(HostFailure::NotFound),
                };
                if let Some(caller) = caller.take() {
                    self.replies(caller, reply);
                }
            }
            Effect::Join => {
                if let Event::Kill { epoch } = event {
                    let applied = self.ledger.applies(sandbox, epoch, false);
                    self.check(applied);
                }
                if let Some(entry) = self.agent.entries.get_mut(&sandbox) {
                    entry.waiting.extend(caller.take());
                }
            }
            Effect::Record => {
                let full = self.disk_is_full();
                if let Event::SetDeadline { epoch, .. } = event {
                    // What is not on disk is forgotten with the agent.
                    let applied = self.ledger.applies(sandbox, epoch, !full);
                    self.check(applied);
                }
                let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
                    return;
                };
                entry.record.epoch = entry.machine.epoch;
                entry.record.deadline = entry.machine.deadline;
                let record = entry.record;
                let reply = if full {
                    Reply::Failed(HostFailure::Failed(String::new()))
                } else {
                    self.agent.records.insert(sandbox, record);
                    Reply::Done
                };
                if let Some(caller) = caller.take() {
                    self.replies(caller, reply);
                }
            }
            Effect::Egress => {
                if let Some(caller) = caller.take() {
                    self.replies(caller, Reply::Done);
                }
            }
            Effect::JoinSave => {
                if let Some(entry) = self.agent.entries.get_mut(&sandbox) {
                    entry.savers.extend(caller.take());
                }
            }
            Effect::Save => self.begins_save(sandbox),
            Effect::SaveDone => self.answers_savers(sandbox, &Reply::Done),
            Effect::SaveFailed | Effect::DiscardSave => {
                let failure = HostFailure::Failed(String::new());
                self.answers_savers(sandbox, &Reply::Failed(failure));
            }
            Effect::Signal => self.signals(sandbox),
            Effect::Replace => unreachable!("nobody rolls back in this world"),
            Effect::StillThere => {
                let entry = self.agent.entries.get_mut(&sandbox);
                let waiting = entry.map(|it| std::mem::take(&mut it.waiting));
                for caller in waiting.into_iter().flatten() {
                    let failure = HostFailure::Failed(String::new());
                    self.replies(caller, Reply::Failed(failure));
                }
            }
            Effect::Forget | Effect::Bury => {
                let buried = effect == Effect::Bury;
                if buried {
                    self.agent.records.remove(&sandbox);
                }
                let Some(entry) = self.agent.entries.remove(&sandbox) else {
                    return;
                };
                self.agent.fences.bar(&sandbox, entry.machine.epoch, now);
                if entry.machine.saved {
                    for caller in entry.savers {
                        self.replies(caller, Reply::Done);
                    }
                } else if entry.waiting.is_empty() && buried {
                    let cause = entry.machine.cause.unwrap_or(DeathCause::AgentDied);
                    let front = self.front.incarnation;
                    for delay in self.sends() {
                        self.after(
                            delay,
                            Item::ToldOfEnd {
                                front,
                                sandbox,
                                cause,
                            },
                        );
                    }
                }
                for caller in entry.waiting {
                    self.replies(caller, Reply::Done);
                }
            }
        }
    }

    /// A save under way: its epoch is on disk first, and what does not get there fails it.
    fn begins_save(&mut self, sandbox: usize) {
        let full = self.disk_is_full();
        let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
            return;
        };
        let epoch = entry.machine.epoch;
        entry.record.epoch = epoch;
        let record = entry.record;
        let applied = self.ledger.applies(sandbox, epoch, !full);
        self.check(applied);
        if !full {
            self.agent.records.insert(sandbox, record);
        }
        let well = !full && !self.random.once_in(6);
        let takes = self.random.skewed(200);
        let agent = self.agent.incarnation;
        self.after(
            takes,
            Item::SaveEnds {
                agent,
                sandbox,
                well,
            },
        );
    }

    /// A save has come to something. One with which the sandbox ends may have ended it already.
    pub(super) fn save_ends(&mut self, sandbox: usize, well: bool) {
        let Some(entry) = self.agent.entries.get(&sandbox) else {
            return;
        };
        let Phase::Saving(saving) = entry.machine.phase else {
            return;
        };
        if !well {
            let harmed = self.random.once_in(8);
            return self.host_feeds(sandbox, Event::SaveFailed { harmed }, None);
        }
        if saving.after == After::End && self.random.once_in(2) {
            self.ends(sandbox);
        }
        self.host_feeds(sandbox, Event::Saved, None);
    }

    fn answers_savers(&mut self, sandbox: usize, reply: &Reply) {
        let entry = self.agent.entries.get_mut(&sandbox);
        let savers = entry.map(|it| std::mem::take(&mut it.savers));
        for caller in savers.into_iter().flatten() {
            self.replies(caller, reply.clone());
        }
    }

    /// SIGKILL to a sandbox, whose end may take its time.
    fn signals(&mut self, sandbox: usize) {
        let promised = self.ledger.promised(sandbox).map(|(_, latest)| latest);
        let known = self
            .agent
            .entries
            .get(&sandbox)
            .map(|it| it.machine.deadline);
        let up_since = UnixMillis(self.time().0 - (self.now - self.agent.up_since));
        // Promises count only where the host has heard of them, or nobody would have been told.
        let due = promised.or(known).unwrap_or(up_since).max(up_since);
        let signalled = self.ledger.signalled(sandbox, self.time(), due);
        self.check(signalled);
        let slow = self.fault(|fault| match *fault {
            Fault::EndSlow { from, until, by } => Some((from, until, by)),
            _ => None,
        });
        let takes = self.random.skewed(10) + slow.unwrap_or(0);
        if self.ledger.is_alive(sandbox) {
            self.after(takes, Item::Ends { sandbox });
        }
    }

    /// No process of a sandbox is left.
    pub(super) fn ends(&mut self, sandbox: usize) {
        if !self.ledger.is_alive(sandbox) {
            return;
        }
        self.ledger.ended(sandbox);
        let entry = self.agent.entries.get(&sandbox);
        let watched = entry.is_some_and(|it| !matches!(it.machine.phase, Phase::Starting { .. }));
        if self.agent.up && watched {
            let out_of_memory = self.random.once_in(3);
            self.host_feeds(sandbox, Event::Exited { out_of_memory }, None);
        }
    }

    fn replies(&mut self, caller: Caller, reply: Reply) {
        let Caller { link, call } = caller;
        for delay in self.sends() {
            let (front, reply) = (link.front, reply.clone());
            self.after(delay, Item::Reply { front, call, reply });
        }
    }

    pub(super) fn agent_dies(&mut self, front_too: bool) {
        if !self.agent.up {
            return;
        }
        self.agent.incarnation += 1;
        self.agent.up = false;
        self.agent.entries.clear();
        self.agent.fences = Fences::default();
        let agent = self.agent.incarnation;
        let delay = 10 + self.random.skewed(4_000);
        self.after(delay, Item::AgentStarts { agent });
        if front_too {
            // The front notices a little later and ends.
            let delay = self.random.skewed(50);
            self.after(delay, Item::FrontDies);
        }
        self.front_is_cut_off();
    }

    /// The next agent adopts what lives and has a record, and ends the rest, before it listens.
    pub(super) fn agent_starts(&mut self, agent: u32) {
        if agent != self.agent.incarnation || self.agent.up {
            return;
        }
        self.agent.up = true;
        self.agent.up_since = self.now;
        let unknown: Vec<_> = self
            .ledger
            .alive()
            .filter(|sandbox| !self.agent.records.contains_key(sandbox))
            .collect();
        for sandbox in unknown {
            let now = self.time();
            let swept = self.ledger.signalled(sandbox, now, now);
            self.check(swept);
            self.ledger.ended(sandbox);
            self.coverage.recovery("no record", "agent starts", "swept");
        }
        let ledger = &self.ledger;
        self.agent
            .records
            .retain(|sandbox, _| ledger.is_alive(*sandbox));
        let records: Vec<_> = self
            .agent
            .records
            .iter()
            .map(|(id, it)| (*id, *it))
            .collect();
        for (sandbox, record) in records {
            let entry = Entry {
                machine: Machine::adopt(record.epoch, record.deadline, AtDeadline::Kill),
                waiting: Vec::new(),
                savers: Vec::new(),
                creator: None,
                record,
                wakes_at: None,
            };
            self.agent.entries.insert(sandbox, entry);
            self.coverage
                .recovery("record, alive", "agent starts", "Live");
            let at = World::from_start(record.deadline).max(self.now);
            if let Some(entry) = self.agent.entries.get_mut(&sandbox) {
                entry.wakes_at = Some(at);
            }
            self.at(at, Item::HostWakes { agent, sandbox, at });
        }
    }
}
