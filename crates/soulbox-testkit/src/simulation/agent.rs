//! The host agent with its processes and records. Every decision in here is [`soulbox_host::lifecycle`]'s; this performs, and dies where
//! it is told to.

mod saves;

use std::collections::BTreeMap;

use soulbox_control::lifecycle::Event as Told;
use soulbox_control::ownership::pause_of;
use soulbox_control::reconcile::Listed;
use soulbox_control::{HostFailure, HostSnapshot};
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
    /// On disk too, whole ones, by their names.
    pub(super) snapshots: BTreeMap<String, HostSnapshot>,
    last_job: u64,
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
    /// The snapshot that it begins with.
    from: Option<String>,
    /// What the command says that is being decided about.
    wanted: Option<Wanted>,
    /// The snapshot that is being made.
    job: Option<(u64, Wanted)>,
    /// The one that was made last.
    made: Option<HostSnapshot>,
    /// When the last save came to something.
    saved_at: UnixMillis,
    /// A snapshot with which it ends is being made, or is why it ends: then the deadline does not.
    is_being_paused: bool,
    /// When it heard of its deadline.
    told_at: UnixMillis,
    /// As the agent knows it, which may be newer than what is on disk.
    record: Record,
    wakes_at: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    name: String,
    after: After,
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
                from,
            } => self.makes(sandbox, epoch, deadline, from, caller),
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
            Command::Save {
                sandbox,
                epoch,
                name,
                after,
            } => {
                let wanted = Wanted { name, after };
                let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
                    return self.replies(caller, Reply::Failed(HostFailure::NotFound));
                };
                let same = entry.job.as_ref().is_some_and(|(_, job)| *job == wanted);
                entry.wanted = Some(wanted);
                let event = Event::Save { epoch, after, same };
                self.host_feeds(sandbox, event, Some(caller));
            }
            Command::Replace { sandbox, epoch } => {
                if self.agent.entries.contains_key(&sandbox) {
                    self.host_feeds(sandbox, Event::Replace { epoch }, Some(caller));
                } else {
                    self.replies(caller, Reply::Failed(HostFailure::NotFound));
                }
            }
            Command::Snapshots => {
                let snapshots = self.agent.snapshots.values().cloned().collect();
                self.replies(caller, Reply::Snapshots(snapshots));
            }
            Command::Delete { name } => {
                self.forgets(&name);
                self.replies(caller, Reply::Done);
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

    fn makes(
        &mut self,
        sandbox: usize,
        epoch: Epoch,
        deadline: UnixMillis,
        from: Option<String>,
        caller: Caller,
    ) {
        if self.agent.entries.contains_key(&sandbox) {
            return self.replies(caller, Reply::Failed(HostFailure::AlreadyExists));
        }
        if self.agent.fences.bars(&sandbox, epoch) {
            return self.replies(caller, Reply::Failed(HostFailure::StaleEpoch));
        }
        if let Some(name) = &from
            && !self.agent.snapshots.contains_key(name)
        {
            return self.replies(caller, Reply::Failed(HostFailure::SnapshotMissing));
        }
        let entry = Entry {
            machine: Machine::create(epoch, deadline, self.at_deadline(sandbox)),
            waiting: Vec::new(),
            savers: Vec::new(),
            creator: Some(caller),
            from,
            wanted: None,
            job: None,
            made: None,
            saved_at: UnixMillis(0),
            is_being_paused: false,
            told_at: UnixMillis(0),
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
        let from = entry.from.clone();
        let limit = self.schedule.limit;
        let started = self.ledger.started(sandbox, self.time(), limit, from);
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
            let run = self.ledger.run_of(sandbox);
            self.after(takes, Item::Ends { sandbox, run });
            self.after(takes, Item::StartFailed { agent, sandbox });
            return;
        }
        entry.record.started_at = now;
        entry.record.deadline = entry.record.deadline.of_started(now);
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
        self.host_feeds(sandbox, Event::Started { started_at: now }, creator);
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

    fn at_deadline(&self, sandbox: usize) -> AtDeadline {
        if self.pauses(sandbox) {
            AtDeadline::Pause
        } else {
            AtDeadline::Kill
        }
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
        if !matches!(event, Event::Save { .. }) {
            entry.wanted = None;
        }
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
                    (Answer::Done, Event::Started { .. }) => Reply::Created {
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
                entry.told_at = now;
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
            Effect::Save => self.begins_save(sandbox, event),
            Effect::SaveDone => self.save_done(sandbox),
            Effect::SaveFailed => self.save_failed(sandbox),
            Effect::DiscardSave => self.discards_save(sandbox),
            Effect::Signal => self.signals(sandbox),
            Effect::Replace => self.replaces(sandbox, caller.take()),
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
                let (epoch, mut told) = (entry.machine.epoch, None);
                match &entry.made {
                    Some(made) if entry.machine.saved => {
                        if entry.savers.is_empty() {
                            told = pause_of(made).map(|pause| Told::Paused { pause });
                        }
                        for caller in entry.savers {
                            self.replies(caller, Reply::Saved(made.clone()));
                        }
                    }
                    _ if entry.waiting.is_empty() && buried => {
                        let cause = entry.machine.cause.unwrap_or(DeathCause::AgentDied);
                        told = Some(Told::Exited { cause });
                    }
                    _ => {}
                }
                if let Some(event) = told {
                    let fronts: Vec<u32> = self.fronts().map(|it| it.incarnation).collect();
                    for front in fronts {
                        for delay in self.sends() {
                            let item = Item::ToldOfEnd {
                                front,
                                sandbox,
                                epoch,
                                event,
                            };
                            self.after(delay, item);
                        }
                    }
                }
                for caller in entry.waiting {
                    self.replies(caller, Reply::Done);
                }
            }
        }
    }

    /// What has been prepared takes the place of what runs, record and all, or does not.
    fn replaces(&mut self, sandbox: usize, caller: Option<Caller>) {
        let full = self.disk_is_full();
        let now = self.time();
        let Some(entry) = self.agent.entries.get_mut(&sandbox) else {
            return;
        };
        let applied = self.ledger.applies(sandbox, entry.machine.epoch, !full);
        let reply = if full {
            Reply::Failed(HostFailure::Failed(String::new()))
        } else {
            entry.record.epoch = entry.machine.epoch;
            entry.record.started_at = now;
            entry.record.deadline = entry.record.deadline.of_started(now);
            self.agent.records.insert(sandbox, entry.record);
            self.ledger.replaced(sandbox);
            Reply::Done
        };
        self.check(applied);
        if let Some(caller) = caller {
            self.replies(caller, reply);
        }
    }

    /// SIGKILL to a sandbox, whose end may take its time.
    fn signals(&mut self, sandbox: usize) {
        let up_since = UnixMillis(self.time().0 - (self.now - self.agent.up_since));
        let entry = self.agent.entries.get(&sandbox);
        let due = match entry {
            // It ends when its snapshot is there or cannot be, and that began in time.
            Some(it) if it.is_being_paused || it.machine.at_deadline == AtDeadline::Pause => {
                self.time()
            }
            // Promises count only where the host has heard of them, or nobody would have been told.
            Some(it) => {
                let known = it.machine.deadline.max(it.told_at);
                self.ledger.due(sandbox).unwrap_or(known).max(it.saved_at)
            }
            None => up_since,
        };
        let signalled = self
            .ledger
            .signalled(sandbox, self.time(), due.max(up_since));
        self.check(signalled);
        let slow = self.fault(|fault| match *fault {
            Fault::EndSlow { from, until, by } => Some((from, until, by)),
            _ => None,
        });
        let takes = self.random.skewed(10) + slow.unwrap_or(0);
        if self.ledger.is_alive(sandbox) {
            let run = self.ledger.run_of(sandbox);
            self.after(takes, Item::Ends { sandbox, run });
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
            // The fronts notice a little later and end.
            for front in 0..self.schedule.fronts {
                let delay = self.random.skewed(50);
                self.after(delay, Item::FrontDies { front });
            }
        }
        for front in 0..self.schedule.fronts {
            self.turn_to(front);
            self.front_is_cut_off();
        }
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
        self.ends_what_was_paused();
        let records: Vec<_> = self
            .agent
            .records
            .iter()
            .map(|(id, it)| (*id, *it))
            .collect();
        for (sandbox, record) in records {
            let entry = Entry {
                machine: Machine::adopt(record.epoch, record.deadline, self.at_deadline(sandbox)),
                waiting: Vec::new(),
                savers: Vec::new(),
                creator: None,
                from: None,
                wanted: None,
                job: None,
                made: None,
                saved_at: UnixMillis(0),
                is_being_paused: false,
                told_at: UnixMillis(0),
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
