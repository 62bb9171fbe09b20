//! Which transitions of the two machines were reached, by the names that `docs/lifecycle.md` uses.

use std::collections::BTreeMap;

use soulbox_control::lifecycle as control;
use soulbox_host::lifecycle as host;

/// A machine, its phase, what happened, and the phase after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transition {
    /// `control` or `host`.
    pub machine: &'static str,
    pub from: &'static str,
    pub event: &'static str,
    pub to: &'static str,
}

/// How often each transition was taken.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    // Few enough to be searched in line; the names are compared by their addresses first.
    taken: Vec<(Transition, u64)>,
}

impl Coverage {
    /// Adds what another run has reached.
    pub fn merge(&mut self, other: &Self) {
        for (transition, count) in &other.taken {
            self.add(*transition, *count);
        }
    }

    /// The transitions in order, with their numbers.
    #[must_use]
    pub fn all(&self) -> BTreeMap<Transition, u64> {
        self.taken.iter().copied().collect()
    }

    pub(super) fn control(
        &mut self,
        before: &control::Machine,
        event: &control::Event,
        after: &control::Machine,
    ) {
        use control::Event;
        if before == after {
            return;
        }
        let (mut from, mut to) = (control_phase(before), control_phase(after));
        let mut name = control_event(event);
        let running = from.starts_with("Running");
        match event {
            // A row that another decision has reached.
            Event::Saved | Event::SaveFailed if running && to == "Killing" => {
                (from, name) = ("Running", "Kill");
            }
            Event::Saved | Event::SaveFailed if to == "Killing" && from != to => name = "Kill",
            // The row is another one's, so the deadline is decided anew; it may be over.
            Event::Saved | Event::SaveFailed
                if running
                    && from != to
                    && matches!(to, "Pausing, watched" | "Running, deadline to save") =>
            {
                (from, name) = ("Running", "SetDeadline");
            }
            // An earlier attempt came through after all.
            Event::SaveFailed if (running || from == "Pausing, to save") && from != to => {
                name = "Saved";
            }
            // Alike in every phase.
            Event::Saved | Event::SaveFailed if from == to => (from, to) = ("any", "same"),
            Event::Tick if from == to && !matches!(from, "Killing" | "Killing, start pending") => {
                (from, name, to) = ("any", "Tick, row not saved", "same");
            }
            Event::Extend { .. } if to == "Running, host asked" => {}
            Event::Kill { .. }
            | Event::Exited { .. }
            | Event::Lost
            | Event::SetDeadline { .. }
            | Event::Extend { .. }
                if running =>
            {
                from = "Running";
            }
            Event::Pause { .. } | Event::Paused { .. } | Event::Looked { .. } if running => {
                from = "Running";
            }
            Event::Tick if running && (to == "Killing" || to == "Pausing, watched") => {
                from = "Running";
            }
            _ => {}
        }
        let transition = Transition {
            machine: "control",
            from,
            event: name,
            to,
        };
        self.add(transition, 1);
    }

    pub(super) fn host(
        &mut self,
        before: &host::Machine,
        event: &host::Event,
        after: &host::Machine,
        effects: &[host::Effect],
    ) {
        if before == after && effects.is_empty() {
            return;
        }
        let mut transition = Transition {
            machine: "host",
            from: host_phase(before),
            event: host_event(event),
            to: host_phase(after),
        };
        // Which late command it is does not matter to what is only starting.
        if effects == [host::Effect::Answer(host::Answer::NotLive)]
            && transition.from.starts_with("Starting")
        {
            transition.event = "late command";
            (transition.from, transition.to) = ("Starting", "Starting");
        }
        // What kind of save is under way, or why it ends, does not matter to a rollback.
        if matches!(event, host::Event::Replace { .. }) {
            for phase in [&mut transition.from, &mut transition.to] {
                *phase = phase.split_once(',').map_or(*phase, |(kind, _)| kind);
            }
        }
        if effects == [host::Effect::Answer(host::Answer::StaleEpoch)] {
            transition.from = "any";
            transition.event = "stale command";
            transition.to = "same";
        }
        self.add(transition, 1);
    }

    pub(super) fn recovery(&mut self, from: &'static str, event: &'static str, to: &'static str) {
        let transition = Transition {
            machine: "recovery",
            from,
            event,
            to,
        };
        self.add(transition, 1);
    }

    fn add(&mut self, transition: Transition, count: u64) {
        match self
            .taken
            .iter_mut()
            .find(|(known, _)| *known == transition)
        {
            Some((_, taken)) => *taken += count,
            None => self.taken.push((transition, count)),
        }
    }
}

fn control_phase(machine: &control::Machine) -> &'static str {
    use control::{Phase, Told};
    match machine.phase {
        Phase::Reserving => "Reserving",
        Phase::Starting => "Starting",
        Phase::Running {
            deadline: Told::Taken,
        } => "Running",
        Phase::Running {
            deadline: Told::Elsewhere,
        } => "Running, told elsewhere",
        Phase::Running {
            deadline: Told::AfterSave,
        } => "Running, deadline to save",
        Phase::Running {
            deadline: Told::Asked,
        } => "Running, host asked",
        Phase::Running {
            deadline: Told::Again { .. },
        } => "Running, host not told",
        Phase::Pausing { saving, .. } => match saving {
            control::Saving::AfterSave => "Pausing, to save",
            control::Saving::Asked => "Pausing",
            control::Saving::Watched => "Pausing, watched",
        },
        Phase::Paused { .. } => "Paused",
        Phase::Resuming { restoring, .. } => match restoring {
            control::Restoring::Claiming => "Resuming, claiming",
            control::Restoring::Starting => "Resuming",
            control::Restoring::Undoing { .. } => "Resuming, undoing",
            control::Restoring::Followed => "Resuming, followed",
        },
        Phase::Killing {
            start_pending: true,
            ..
        } => "Killing, start pending",
        Phase::Killing {
            start_pending: false,
            ..
        } => "Killing",
        Phase::Dead => "Dead",
    }
}

fn control_event(event: &control::Event) -> &'static str {
    use control::Event;
    match event {
        Event::Reserved => "Reserved",
        Event::NotReserved => "NotReserved",
        Event::Started { .. } => "Started",
        Event::StartFailed { leftover: true } => "StartFailed, leftover",
        Event::StartFailed { leftover: false } => "StartFailed",
        Event::SetDeadline { .. } => "SetDeadline",
        Event::Extend { .. } => "Extend",
        Event::DeadlineTaken { .. } => "DeadlineTaken",
        Event::DeadlineFailed { .. } => "DeadlineFailed",
        Event::DeadlineTooLate { pausing: false, .. } => "DeadlineTooLate",
        Event::DeadlineTooLate { pausing: true, .. } => "DeadlineTooLate, pausing",
        Event::Kill { .. } => "Kill",
        Event::HostGone => "HostGone",
        Event::KillFailed => "KillFailed",
        Event::Exited { .. } => "Exited",
        Event::Lost => "Lost",
        Event::Pause { .. } => "Pause",
        Event::Paused { .. } => "Paused",
        Event::PauseFailed => "PauseFailed",
        Event::PauseUnknown => "PauseUnknown",
        Event::Looked { alive: true, .. } => "Looked, alive",
        Event::Looked { pause: Some(_), .. } => "Looked, snapshot",
        Event::Looked { .. } => "Looked, nothing",
        Event::Resume { .. } => "Resume",
        Event::Reclaimed => "Reclaimed",
        Event::NotReclaimed { unknown: false } => "NotReclaimed",
        Event::NotReclaimed { unknown: true } => "NotReclaimed, unknown",
        Event::Saved => "Saved",
        Event::SaveFailed => "SaveFailed",
        Event::Tick => "Tick",
    }
}

fn host_phase(machine: &host::Machine) -> &'static str {
    use host::Phase;
    match machine.phase {
        Phase::Starting { doomed: false } => "Starting",
        Phase::Starting { doomed: true } => "Starting, doomed",
        Phase::Live => "Live",
        Phase::Saving(saving) => match (saving.after, saving.exited) {
            (host::After::GoOn, None) => "Saving, goes on",
            (host::After::End, None) => "Saving, ends",
            (_, Some(_)) => "Saving, exited",
        },
        Phase::Ending { .. } if machine.saved => "Ending, saved",
        Phase::Ending { .. } => "Ending",
        Phase::Gone => "Gone",
    }
}

fn host_event(event: &host::Event) -> &'static str {
    use host::Event;
    match event {
        Event::Started { .. } => "Started",
        Event::StartFailed => "StartFailed",
        Event::Kill { .. } => "Kill",
        Event::SetDeadline { .. } => "SetDeadline",
        Event::SetEgress { .. } => "SetEgress",
        Event::Replace { .. } => "Replace",
        Event::Save { .. } => "Save",
        Event::Saved => "Saved",
        Event::SaveFailed { harmed: false } => "SaveFailed",
        Event::SaveFailed { harmed: true } => "SaveFailed, harmed",
        Event::Exited { .. } => "Exited",
        Event::Tick => "Tick",
    }
}
