//! Sequences of events, and what they come to.

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
    Machine::adopt(E1, T0.plus_millis(60_000), AtDeadline::Kill)
}

#[test]
fn a_kill_of_a_start_under_way_ends_it_and_is_answered_then() {
    let machine = Machine::create(E1, T0.plus_millis(60_000), AtDeadline::Kill);
    let (machine, effects) = play(
        machine,
        &[
            (1, Event::Kill { epoch: E2 }),
            (
                2,
                Event::Started {
                    started_at: UnixMillis(2),
                },
            ),
        ],
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
fn what_has_started_lives_a_second_however_late_that_was() {
    let started_at = T0.plus_millis(30);
    let machine = Machine::create(E1, T0, AtDeadline::Kill);
    let (machine, _) = play(machine, &[(30, Event::Started { started_at })]);
    assert_eq!(machine.wake_at(), Some(T0.plus_millis(1_030)));
    let (machine, effects) = play(machine, &[(1_029, Event::Tick)]);
    assert_eq!((machine.phase, effects), (Phase::Live, Vec::new()));
    let (machine, _) = play(machine, &[(1_030, Event::Tick)]);
    assert_eq!(machine.cause, Some(DeathCause::Expired));
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
        save(Epoch(4), After::End, false),
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

fn save(epoch: Epoch, after: After, same: bool) -> Event {
    Event::Save { epoch, after, same }
}

const EXITED: Event = Event::Exited {
    out_of_memory: false,
};

#[test]
fn a_pause_is_over_when_it_is_whole_and_no_process_is_left_in_either_order() {
    let begun = [(1, save(E2, After::End, false))];
    let (machine, effects) = play(live(), &begun);
    assert_eq!(effects, [Effect::JoinSave, Effect::Save]);
    for (outcomes, expected) in [
        ([Event::Saved, EXITED], vec![Effect::Signal, Effect::Bury]),
        ([EXITED, Event::Saved], vec![Effect::Bury]),
    ] {
        let (ended, effects) = play(machine, &outcomes.map(|event| (2, event)));
        assert_eq!(effects, expected);
        assert_eq!((ended.phase, ended.saved), (Phase::Gone, true));
        assert_eq!(ended.cause, None);
    }
}

#[test]
fn a_snapshot_leaves_it_running_and_the_same_one_joins() {
    let (machine, effects) = play(
        live(),
        &[
            (1, save(E2, After::GoOn, false)),
            (2, save(E2, After::GoOn, true)),
            (3, save(E2, After::GoOn, false)),
            (4, Event::Saved),
        ],
    );
    assert_eq!(
        effects,
        [
            Effect::JoinSave,
            Effect::Save,
            Effect::JoinSave,
            Effect::Answer(Answer::Busy),
            Effect::SaveDone
        ]
    );
    assert_eq!((machine.phase, machine.epoch), (Phase::Live, E2));
}

#[test]
fn a_failed_save_leaves_it_running_unless_it_was_harmed() {
    for after in [After::GoOn, After::End] {
        let (machine, _) = play(live(), &[(1, save(E2, after, false))]);
        let (well, effects) = play(machine, &[(2, Event::SaveFailed { harmed: false })]);
        assert_eq!(effects, [Effect::SaveFailed]);
        assert_eq!(well.phase, Phase::Live);
        let (lost, effects) = play(machine, &[(2, Event::SaveFailed { harmed: true })]);
        assert_eq!(effects, [Effect::SaveFailed, Effect::Signal]);
        assert_eq!(lost.cause, Some(DeathCause::Lost));
        let ended = Event::Exited {
            out_of_memory: false,
        };
        let failed = Event::SaveFailed { harmed: true };
        let (ended_of_it, _) = play(machine, &[(2, ended), (3, failed)]);
        assert_eq!(ended_of_it.cause, Some(DeathCause::Lost));
        assert_eq!(ended_of_it.phase, Phase::Gone);
        // Whoever wants something of it then shall not take it for one whose time was over.
        let deadline = Event::SetDeadline {
            epoch: Epoch(3),
            deadline: T0.plus_millis(90_000),
        };
        let (_, effects) = play(lost, &[(3, deadline)]);
        assert_eq!(effects, [Effect::Answer(Answer::Lost)]);
    }
}

#[test]
fn a_kill_wins_over_a_save_at_each_of_its_moments() {
    let kill = Event::Kill { epoch: Epoch(3) };
    for before in [vec![], vec![EXITED], vec![Event::Saved]] {
        let (machine, _) = play(live(), &[(1, save(E2, After::End, false))]);
        let before: Vec<_> = before.into_iter().map(|event| (2, event)).collect();
        let (machine, _) = play(machine, &before);
        let (machine, effects) = play(machine, &[(3, kill)]);
        assert!(effects.starts_with(&[Effect::Join, Effect::DiscardSave]));
        assert_eq!(machine.cause, Some(DeathCause::Killed));
        // What the save comes to after that changes nothing.
        let (machine, late) = play(machine, &[(4, Event::Saved)]);
        assert_eq!(late, []);
        let (machine, effects) = match machine.phase {
            Phase::Gone => (machine, effects),
            _ => play(machine, &[(5, EXITED)]),
        };
        assert_eq!(effects.last(), Some(&Effect::Bury));
        assert!(!machine.saved);
    }
}

#[test]
fn a_deadline_during_a_save_ends_what_would_have_gone_on() {
    let late = (60_000, Event::Tick);
    let (machine, _) = play(live(), &[(1, save(E2, After::GoOn, false))]);
    assert_eq!(machine.wake_at(), Some(live().deadline));
    let (machine, effects) = play(machine, &[late]);
    assert_eq!(effects, [Effect::DiscardSave, Effect::Signal]);
    assert_eq!(machine.cause, Some(DeathCause::Expired));
    // A pause is an end: it is waited for, and when it fails, the deadline holds at once.
    let (machine, _) = play(live(), &[(1, save(E2, After::End, false))]);
    let (machine, effects) = play(machine, &[late]);
    assert_eq!(effects, []);
    let failed = (60_001, Event::SaveFailed { harmed: false });
    let (machine, _) = play(machine, &[failed]);
    assert!(
        machine
            .wake_at()
            .is_some_and(|at| at < T0.plus_millis(60_001))
    );
}

#[test]
fn a_deadline_that_pauses_kills_when_it_cannot() {
    let mut machine = live();
    machine.at_deadline = AtDeadline::Pause;
    let (machine, effects) = play(machine, &[(60_000, Event::Tick)]);
    assert_eq!(effects, [Effect::Save]);
    let (paused, effects) = play(machine, &[(60_100, Event::Saved), (60_101, EXITED)]);
    assert_eq!(effects, [Effect::Signal, Effect::Bury]);
    assert!(paused.saved);
    let failed = (60_100, Event::SaveFailed { harmed: false });
    let (killed, effects) = play(machine, &[failed]);
    assert_eq!(effects, [Effect::SaveFailed, Effect::Signal]);
    assert_eq!(killed.cause, Some(DeathCause::Expired));
}

#[test]
fn a_save_without_an_outcome_ends_the_sandbox() {
    let (machine, _) = play(live(), &[(1, save(E2, After::End, false))]);
    let (machine, effects) = play(machine, &[(1 + SAVE_MILLIS, Event::Tick)]);
    assert_eq!(effects, [Effect::DiscardSave, Effect::Signal]);
    assert_eq!(machine.cause, Some(DeathCause::Lost));
}
