//! What a sandbox of which a snapshot is being made becomes.

use soulbox_types::{DeathCause, UnixMillis};

use super::{After, Answer, Effect, Event, Machine, Phase, Saving};

/// The part of [`super::step`] for a sandbox of which a snapshot is being made; its commands are not stale.
pub(super) fn step(
    machine: &Machine,
    next: &mut Machine,
    saving: Saving,
    now: UnixMillis,
    event: Event,
) -> Vec<Effect> {
    match event {
        Event::Kill { epoch } => {
            next.epoch = epoch;
            if saving.exited.is_some() {
                next.cause = Some(DeathCause::Killed);
                next.phase = Phase::Gone;
                return vec![Effect::Join, Effect::DiscardSave, Effect::Bury];
            }
            next.end(now, DeathCause::Killed);
            vec![Effect::Join, Effect::DiscardSave, Effect::Signal]
        }
        // Its record stays as the snapshot has it: the next agent tells by the epoch that it is not to be adopted.
        Event::SetDeadline { .. } | Event::SetEgress { .. } if saving.after == After::End => {
            vec![Effect::Answer(Answer::BeingPaused)]
        }
        Event::SetDeadline { epoch, deadline } => {
            next.epoch = epoch;
            next.deadline = deadline;
            vec![Effect::Record]
        }
        Event::SetEgress { .. } => vec![Effect::Egress],
        Event::Replace { .. } => vec![Effect::Answer(Answer::Busy)],
        Event::Save { same: true, .. } => vec![Effect::JoinSave],
        Event::Save { same: false, .. } => vec![Effect::Answer(Answer::Busy)],

        Event::Exited { out_of_memory } => {
            next.phase = Phase::Saving(Saving {
                exited: Some(out_of_memory),
                ..saving
            });
            Vec::new()
        }
        Event::Saved => match (saving.after, saving.exited) {
            (After::GoOn, None) => {
                next.phase = Phase::Live;
                vec![Effect::SaveDone]
            }
            (After::GoOn, Some(out_of_memory)) => {
                next.exit(out_of_memory);
                vec![Effect::SaveDone, Effect::Bury]
            }
            (After::End, None) => {
                next.saved = true;
                next.phase = Phase::Ending {
                    again_at: now.plus_millis(super::END_MILLIS),
                };
                vec![Effect::Signal]
            }
            (After::End, Some(_)) => {
                next.saved = true;
                next.phase = Phase::Gone;
                vec![Effect::Bury]
            }
        },
        Event::SaveFailed { harmed } => match saving.exited {
            Some(out_of_memory) => {
                if harmed {
                    // It ended of what the save has left of it.
                    next.cause.get_or_insert(DeathCause::Lost);
                }
                next.exit(out_of_memory);
                vec![Effect::SaveFailed, Effect::Bury]
            }
            None if harmed => {
                next.end(now, DeathCause::Lost);
                vec![Effect::SaveFailed, Effect::Signal]
            }
            None if saving.at_deadline => {
                next.end(now, DeathCause::Expired);
                vec![Effect::SaveFailed, Effect::Signal]
            }
            None => {
                next.phase = Phase::Live;
                vec![Effect::SaveFailed]
            }
        },

        Event::Tick if now >= saving.until => match saving.exited {
            Some(out_of_memory) => {
                next.exit(out_of_memory);
                vec![Effect::DiscardSave, Effect::Bury]
            }
            // Nobody knows in which state its processes are.
            None => {
                next.end(now, DeathCause::Lost);
                vec![Effect::DiscardSave, Effect::Signal]
            }
        },
        Event::Tick if now >= machine.deadline && machine.dies_saving(saving) => {
            next.end(now, DeathCause::Expired);
            vec![Effect::DiscardSave, Effect::Signal]
        }
        Event::Tick | Event::Started { .. } | Event::StartFailed => Vec::new(),
    }
}
