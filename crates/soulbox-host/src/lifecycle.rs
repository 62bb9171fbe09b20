//! The life of one sandbox on its host as a pure function: [`step`] maps a machine and an event to a machine and effects.
//!
//! [`crate::host`] and [`crate::sandbox`] perform the effects and feed back what came of them. Nothing in here waits, reads a clock
//! or fails. Rules that hold for every sequence of events:
//! - a command that is older than the latest one is refused;
//! - a kill wins over everything: also a start that is under way ends with it, and no later command takes it back;
//! - kills join: everybody who asked is answered when no process is left, and not before;
//! - a sandbox is known, and its ID taken, until no process of it is left.
//!
//! ```text
//! Starting -> Live -> Ending -> Gone
//!     |         +---- exited ----^
//!     +-- start failed ----------^     (killed meanwhile: Ending)
//! ```
//! `docs/lifecycle.md` has the table of transitions, which the simulation checks against this code.

use std::collections::{BTreeMap, VecDeque};

use soulbox_types::{DeathCause, Epoch, UnixMillis};

/// SIGKILL to the last exit; after so long those who wait are told, and it is sent again.
const END_MILLIS: u64 = 10_000;
/// How long an ended or unknown sandbox bars late creates of it: longer than any request can be under way.
const BARRED_MILLIS: u64 = 600_000;
/// Bars that are kept; beyond that the oldest go. Ten minutes of 80 kills a second, some 5 MB.
const MOST_BARS: usize = 50_000;

/// Where a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its ID is taken; it is being made. Every step of that has a time limit of its own.
    Starting {
        /// A kill came meanwhile, so it ends as soon as it is there.
        doomed: bool,
    },
    /// envd accepts connections.
    Live,
    /// SIGKILL was sent.
    Ending {
        /// When to send it again, and to say that it is taking long.
        again_at: UnixMillis,
    },
    /// No process is left.
    Gone,
}

/// All that [`step`] needs to know about a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub phase: Phase,
    /// The latest that a command carried.
    pub epoch: Epoch,
    pub deadline: UnixMillis,
    /// Why it ends; the first cause stays.
    pub cause: Option<DeathCause>,
}

/// What happened. Commands have a caller, who is answered by the effects of the command's own step or joins those who wait for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// envd accepts connections, and its record is written.
    Started,
    /// It was not made, and nothing of it is left.
    StartFailed,
    Kill {
        epoch: Epoch,
    },
    SetDeadline {
        epoch: Epoch,
        deadline: UnixMillis,
    },
    SetEgress {
        epoch: Epoch,
    },
    /// No process is left.
    Exited {
        out_of_memory: bool,
    },
    /// The time of [`Machine::wake_at`] is here.
    Tick,
}

/// What a command is answered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    StaleEpoch,
    /// It is being made or is ending, so there is nothing to change; it is not over.
    NotLive,
    NotFound,
}

/// What is to be done, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Answer the caller of this command.
    Answer(Answer),
    /// The caller of this command waits for the end.
    Join,
    /// Write epoch and deadline to its record; whether that succeeded is the answer.
    Record,
    /// Change where it may connect to; whether that succeeded is the answer.
    Egress,
    /// SIGKILL to all its processes.
    Signal,
    /// Tell those who wait for the end that processes are left; they need not wait any longer.
    StillThere,
    /// Free the ID and tell those who wait that nothing is left.
    Forget,
    /// Delete the record, [`Effect::Forget`], send an event when nobody waited, and give back what it had.
    Bury,
}

impl Machine {
    /// A sandbox whose start was asked for.
    #[must_use]
    pub fn create(epoch: Epoch, deadline: UnixMillis) -> Self {
        Self {
            phase: Phase::Starting { doomed: false },
            epoch,
            deadline,
            cause: None,
        }
    }

    /// A sandbox that runs since before this agent did, as its record has it.
    #[must_use]
    pub fn adopt(epoch: Epoch, deadline: UnixMillis) -> Self {
        Self {
            phase: Phase::Live,
            ..Self::create(epoch, deadline)
        }
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<UnixMillis> {
        match self.phase {
            Phase::Starting { .. } | Phase::Gone => None,
            Phase::Live => Some(self.deadline),
            Phase::Ending { again_at } => Some(again_at),
        }
    }

    /// Whether a start under way is of no use any more.
    #[must_use]
    pub fn is_doomed(&self) -> bool {
        self.phase == Phase::Starting { doomed: true }
    }

    fn end(&mut self, now: UnixMillis, cause: DeathCause) {
        self.cause.get_or_insert(cause);
        self.phase = Phase::Ending {
            again_at: now.plus_millis(END_MILLIS),
        };
    }
}

/// What a sandbox becomes when something happens at `now`, and what is to be done about it.
#[must_use]
pub fn step(machine: &Machine, now: UnixMillis, event: Event) -> (Machine, Vec<Effect>) {
    let mut next = *machine;
    let effects = match (machine.phase, event) {
        (Phase::Starting { .. } | Phase::Live | Phase::Ending { .. }, Event::Kill { epoch })
        | (Phase::Live, Event::SetDeadline { epoch, .. } | Event::SetEgress { epoch })
            if epoch < machine.epoch =>
        {
            vec![Effect::Answer(Answer::StaleEpoch)]
        }

        (Phase::Starting { doomed: false }, Event::Started) => {
            next.phase = Phase::Live;
            vec![Effect::Answer(Answer::Done)]
        }
        (Phase::Starting { doomed: true }, Event::Started) => {
            next.end(now, DeathCause::Killed);
            vec![Effect::Answer(Answer::StaleEpoch), Effect::Signal]
        }
        (Phase::Starting { .. }, Event::StartFailed) => {
            next.cause = Some(DeathCause::FailedToStart);
            next.phase = Phase::Gone;
            vec![Effect::Forget]
        }
        (Phase::Starting { .. }, Event::Kill { epoch }) => {
            next.epoch = epoch;
            next.phase = Phase::Starting { doomed: true };
            vec![Effect::Join]
        }

        (Phase::Live, Event::Kill { epoch }) => {
            next.epoch = epoch;
            next.end(now, DeathCause::Killed);
            vec![Effect::Join, Effect::Signal]
        }
        (Phase::Live, Event::SetDeadline { epoch, deadline }) => {
            next.epoch = epoch;
            next.deadline = deadline;
            vec![Effect::Record]
        }
        (Phase::Live, Event::SetEgress { .. }) => vec![Effect::Egress],
        (Phase::Live, Event::Exited { out_of_memory }) => {
            next.cause = Some(if out_of_memory {
                DeathCause::OutOfMemory
            } else {
                DeathCause::AgentDied
            });
            next.phase = Phase::Gone;
            vec![Effect::Bury]
        }
        (Phase::Live, Event::Tick) if now >= machine.deadline => {
            next.end(now, DeathCause::Expired);
            vec![Effect::Signal]
        }

        (Phase::Ending { .. }, Event::Kill { epoch }) => {
            next.epoch = epoch;
            vec![Effect::Join]
        }
        (Phase::Ending { .. }, Event::Exited { .. }) => {
            next.phase = Phase::Gone;
            vec![Effect::Bury]
        }
        (Phase::Ending { again_at }, Event::Tick) if now >= again_at => {
            next.phase = Phase::Ending {
                again_at: now.plus_millis(END_MILLIS),
            };
            vec![Effect::StillThere, Effect::Signal]
        }

        // Not over: whoever heard that it is unknown would take it for ended.
        (
            Phase::Starting { .. } | Phase::Ending { .. },
            Event::SetDeadline { .. } | Event::SetEgress { .. },
        ) => vec![Effect::Answer(Answer::NotLive)],
        (_, Event::Kill { .. } | Event::SetDeadline { .. } | Event::SetEgress { .. }) => {
            vec![Effect::Answer(Answer::NotFound)]
        }
        _ => Vec::new(),
    };
    (next, effects)
}

/// Which creates come too late: a create of a sandbox that has ended here, or whose kill has overtaken it, starts nothing any more.
///
/// In memory only: a request does not outlive the connection to the agent that it was sent on.
#[derive(Debug)]
pub struct Fences<K> {
    /// What is barred, and until when.
    latest: BTreeMap<K, (Epoch, UnixMillis)>,
    /// In the order of their ends.
    bars: VecDeque<(UnixMillis, K)>,
}

impl<K> Default for Fences<K> {
    fn default() -> Self {
        Self {
            latest: BTreeMap::new(),
            bars: VecDeque::new(),
        }
    }
}

impl<K: Ord + Clone> Fences<K> {
    /// From now on a create of that epoch or an earlier one is refused.
    pub fn bar(&mut self, id: &K, epoch: Epoch, now: UnixMillis) {
        let until = now.plus_millis(BARRED_MILLIS);
        let latest = self.latest.entry(id.clone()).or_insert((epoch, until));
        *latest = (latest.0.max(epoch), until);
        self.bars.push_back((until, id.clone()));
        while self.bars.len() > MOST_BARS
            || self.bars.front().is_some_and(|(until, _)| *until < now)
        {
            let Some((until, id)) = self.bars.pop_front() else {
                break;
            };
            // A later bar of the same sandbox has a place of its own in the queue.
            if self.latest.get(&id).is_some_and(|latest| latest.1 <= until) {
                self.latest.remove(&id);
            }
        }
    }

    /// Whether a create of this epoch comes too late.
    #[must_use]
    pub fn bars(&self, id: &K, epoch: Epoch) -> bool {
        self.latest.get(id).is_some_and(|latest| epoch <= latest.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: UnixMillis = UnixMillis(1_000_000);
    const E1: Epoch = Epoch(1);
    const E2: Epoch = Epoch(2);

    fn play(machine: Machine, events: &[(u64, Event)]) -> (Machine, Vec<Effect>) {
        let mut all = Vec::new();
        let machine = events.iter().fold(machine, |machine, (millis, event)| {
            let (next, effects) = step(&machine, T0.plus_millis(*millis), *event);
            all.extend(effects);
            next
        });
        (machine, all)
    }

    fn live() -> Machine {
        Machine::adopt(E1, T0.plus_millis(60_000))
    }

    #[test]
    fn a_kill_of_a_start_under_way_ends_it_and_is_answered_then() {
        let machine = Machine::create(E1, T0.plus_millis(60_000));
        let (machine, effects) = play(
            machine,
            &[(1, Event::Kill { epoch: E2 }), (2, Event::Started)],
        );
        assert_eq!(
            effects,
            [
                Effect::Join,
                Effect::Answer(Answer::StaleEpoch),
                Effect::Signal
            ]
        );
        let exited = Event::Exited {
            out_of_memory: false,
        };
        let (machine, effects) = play(machine, &[(3, exited)]);
        assert_eq!(effects, [Effect::Bury]);
        assert_eq!(
            (machine.phase, machine.cause),
            (Phase::Gone, Some(DeathCause::Killed))
        );
    }

    #[test]
    fn stale_commands_are_refused_and_change_nothing() {
        let (machine, _) = play(
            live(),
            &[(
                1,
                Event::SetDeadline {
                    epoch: Epoch(5),
                    deadline: T0,
                },
            )],
        );
        for event in [
            Event::Kill { epoch: Epoch(4) },
            Event::SetDeadline {
                epoch: Epoch(4),
                deadline: T0.plus_millis(9),
            },
            Event::SetEgress { epoch: Epoch(4) },
        ] {
            let (after, effects) = step(&machine, T0, event);
            assert_eq!(after, machine);
            assert_eq!(effects, [Effect::Answer(Answer::StaleEpoch)]);
        }
    }

    #[test]
    fn what_does_not_end_stays_known_and_is_signalled_again() {
        let (machine, _) = play(live(), &[(1, Event::Kill { epoch: E2 })]);
        let (machine, effects) = play(machine, &[(END_MILLIS, Event::Tick)]);
        assert_eq!(effects, []);
        let (machine, effects) = play(machine, &[(END_MILLIS + 1, Event::Tick)]);
        assert_eq!(effects, [Effect::StillThere, Effect::Signal]);
        assert!(matches!(machine.phase, Phase::Ending { .. }));
    }

    #[test]
    fn bars_hold_for_their_time_and_are_bounded() {
        let mut fences = Fences::default();
        fences.bar(&"a", E2, T0);
        assert!(fences.bars(&"a", E1) && fences.bars(&"a", E2));
        assert!(!fences.bars(&"a", Epoch(3)) && !fences.bars(&"b", E1));
        fences.bar(&"a", E1, T0.plus_millis(1));
        fences.bar(&"b", E1, T0.plus_millis(BARRED_MILLIS + 1));
        assert!(fences.bars(&"a", E2), "its second bar is not over");
        fences.bar(&"b", E1, T0.plus_millis(BARRED_MILLIS + 2));
        assert!(!fences.bars(&"a", E1));
        assert!(fences.latest.len() == 1 && fences.bars.len() == 2);
    }
}
