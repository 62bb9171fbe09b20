//! Schedules that once broke a rule, as small as they could be made, with what was wrong. None of them may do so again.
//!
//! What is random in a run follows from its seed, so a change of the simulation may turn an entry into another run; it stays a valid one.

use soulbox_testkit::simulation::{Coverage, Fault, Op, Schedule, run, trace};

#[track_caller]
fn check(seed: u64, limit: u32, ops: Vec<Op>, faults: Vec<Fault>) {
    check_with(1, seed, limit, ops, faults);
}

#[track_caller]
fn check_with(fronts: u32, seed: u64, limit: u32, ops: Vec<Op>, faults: Vec<Fault>) {
    let schedule = Schedule {
        seed,
        fronts,
        limit,
        ops,
        faults,
    };
    if let Err(violation) = run(&schedule, &mut Coverage::default()) {
        panic!("{violation:?}\n{}", trace(&schedule).join("\n"));
    }
}

fn create(at: u64, timeout: u64) -> Op {
    Op::Create {
        at,
        timeout,
        leaves_after: None,
        kept: false,
        pauses: false,
    }
}

fn kill(at: u64, sandbox: usize) -> Op {
    Op::Kill {
        at,
        sandbox,
        any: false,
    }
}

/// A deadline that came to a sandbox that was ending was answered "not there"; control took that for its end.
#[test]
fn a_deadline_that_meets_the_kill_of_its_expiry() {
    let set = Op::Set {
        at: 822,
        sandbox: 0,
        timeout: 9,
    };
    for seed in 0..200 {
        check(seed, 2, vec![create(790, 21_764), set], vec![]);
    }
}

/// The owner of a killed sandbox died before its row said so; the write came through after the next one had taken the sandbox up.
#[test]
fn a_write_of_a_dead_front_that_comes_late() {
    let ops = vec![
        create(0, 37_515),
        Op::Exit {
            at: 19_034,
            sandbox: 0,
        },
        kill(237, 0),
    ];
    let slow = Fault::StoreSlow {
        from: 76,
        until: 1_255,
        by: 1_644,
    };
    let faults = vec![slow, Fault::FrontDies { at: 290 }];
    for seed in [30_124_044_489_766_208, 1, 2, 3] {
        check(seed, 3, ops.clone(), faults.clone());
    }
}

/// A start that is slower than its create is waited for: the kill that followed did not reach it, and it ran on without an owner.
#[test]
fn a_start_that_outlasts_its_create() {
    let slow = Fault::StartSlow {
        from: 0,
        until: 10_000,
        by: 34_000,
    };
    for seed in 0..50 {
        check(seed, 1, vec![create(0, 60_000)], vec![slow]);
    }
}

/// A create that arrives after the kill that was sent because it was not answered.
#[test]
fn a_create_that_arrives_after_its_kill() {
    for by in [29_000, 30_500, 31_000, 44_000] {
        for seed in 0..20 {
            check(
                seed,
                1,
                vec![create(0, 90_000)],
                vec![Fault::Late { n: 0, by }],
            );
        }
    }
}

/// A create that arrives twice: the refusal of the second was taken for the answer to the first.
#[test]
fn a_create_that_arrives_twice() {
    for again_after in [1, 2, 5, 10, 50, 20_000] {
        let twice = Fault::Twice { n: 0, again_after };
        for seed in 0..20 {
            check(seed, 1, vec![create(0, 9_000), kill(3_000, 0)], vec![twice]);
        }
    }
}

/// Processes that outlive SIGKILL were forgotten after ten seconds, and the row said that nothing was left.
#[test]
fn an_end_that_takes_longer_than_anybody_waits() {
    let slow = Fault::EndSlow {
        from: 0,
        until: 40_000,
        by: 24_000,
    };
    for seed in 0..50 {
        let ops = vec![create(0, 30_000), kill(1_000, 0), create(5_000, 1_000)];
        check(seed, 1, ops, vec![slow]);
    }
}

/// The insertion of a row came through after its create had been given up on: a row without an owner that counted for ever.
#[test]
fn a_reservation_that_comes_late() {
    let slow = Fault::StoreSlow {
        from: 0,
        until: 10,
        by: 20_000,
    };
    for seed in 0..50 {
        let ops = vec![create(0, 5_000), create(25_000, 5_000)];
        check(seed, 1, ops, vec![slow]);
    }
}

/// A write of the row was given up on and came through; every later one was then taken for somebody else's affair.
#[test]
fn a_write_that_comes_late() {
    let slow = Fault::StoreSlow {
        from: 100,
        until: 200,
        by: 16_000,
    };
    let set = Op::Set {
        at: 150,
        sandbox: 0,
        timeout: 50_000,
    };
    for seed in 0..50 {
        let ops = vec![create(0, 40_000), set, kill(30_000, 0)];
        check(seed, 1, ops, vec![slow]);
    }
}

/// An extension that changed nothing was confirmed although neither the row nor the host had heard of the deadline that it relied on.
#[test]
fn an_extension_of_a_deadline_that_nobody_has() {
    let ops = vec![
        create(0, 10_000),
        Op::Set {
            at: 1_000,
            sandbox: 0,
            timeout: 40_000,
        },
        Op::Extend {
            at: 3_000,
            sandbox: 0,
            timeout: 20_000,
        },
    ];
    let faults = vec![
        Fault::StoreFails {
            from: 900,
            until: 4_000,
        },
        Fault::CutOff {
            from: 900,
            until: 5_000,
        },
        Fault::FrontDies { at: 3_500 },
    ];
    for seed in 0..50 {
        check(seed, 1, ops.clone(), faults.clone());
    }
}

/// A deadline was told before the row had it. The front died, the next one gave the same epoch to its own decision, and the old one came
/// late and won.
#[test]
fn a_deadline_of_a_dead_front_that_comes_late() {
    let set = |at, timeout| Op::Set {
        at,
        sandbox: 0,
        timeout,
    };
    let ops = vec![create(0, 40_000), set(700, 12_000), set(5_000, 50_000)];
    let faults = vec![
        Fault::StoreFails {
            from: 700,
            until: 800,
        },
        Fault::FrontDies { at: 750 },
        Fault::Late { n: 2, by: 7_000 },
    ];
    for seed in 0..50 {
        check(seed, 1, ops.clone(), faults.clone());
    }
}

/// The last write of a front that died said that a sandbox was over and came late; the next front, which was still killing it, wrote
/// that over it.
#[test]
fn a_row_that_is_further_than_its_owner() {
    let ops = vec![
        create(1, 14_002),
        create(0, 19_648),
        Op::Exit {
            at: 405,
            sandbox: 1,
        },
        create(8_314, 1_512),
        create(0, 30_545),
    ];
    let slow = |until, by| Fault::StoreSlow { from: 0, until, by };
    let faults = vec![
        Fault::FrontDies { at: 481 },
        slow(54, 22),
        slow(777, 15_803),
        Fault::CutOff {
            from: 594,
            until: 34_491,
        },
    ];
    for seed in [30_124_101_197_334_025, 1, 2, 3] {
        check(seed, 1, ops.clone(), faults.clone());
    }
}

/// One of two fronts could not read the row when the deadline that it knew came, and ended what the other had given more time.
#[test]
fn a_deadline_that_the_other_front_has_moved() {
    let set = Op::Set {
        at: 2_062,
        sandbox: 0,
        timeout: 50_576,
    };
    let fails = Fault::StoreFails {
        from: 2_065,
        until: 9_958,
    };
    for seed in 0..50 {
        let ops = vec![create(2_049, 3_487), set];
        check_with(2, seed, 1, ops, vec![fails]);
    }
}

/// The answer to a kill came after the other front's resume, which that kill had not reached, and counted as the end.
#[test]
fn a_kill_from_before_the_other_fronts_resume() {
    let resume = |timeout| Op::Resume {
        at: 757,
        sandbox: 0,
        timeout,
    };
    let pause = Op::Pause {
        at: 300,
        sandbox: 0,
    };
    let any = Op::Kill {
        at: 774,
        sandbox: 0,
        any: true,
    };
    let slow = Fault::StoreSlow {
        from: 707,
        until: 1_180,
        by: 22_748,
    };
    for seed in (0..200).chain([5_098_715]) {
        let ops = vec![create(0, 35_000), pause, resume(159), any, resume(6_811)];
        check_with(2, seed, 1, ops, vec![slow]);
    }
}

/// Two fronts came to the same state and epoch, one by a resume and a pause, one by a resume that it had given up on: that one took the
/// row for its own and the deleted snapshot of the former pause for the present one.
#[test]
fn another_way_to_the_same_epoch() {
    let resume = |at, timeout| Op::Resume {
        at,
        sandbox: 0,
        timeout,
    };
    let pauses = Op::Create {
        at: 0,
        timeout: 35_000,
        leaves_after: None,
        kept: false,
        pauses: true,
    };
    let pause = Op::Pause {
        at: 300,
        sandbox: 0,
    };
    let ops = vec![
        pauses,
        pause,
        resume(1_197, 981),
        resume(1_195, 1),
        resume(3_746, 2),
    ];
    let slow = Fault::StoreSlow {
        from: 1_129,
        until: 1_268,
        by: 23_952,
    };
    for seed in (0..50).chain([1_142_879]) {
        check_with(2, seed, 1, ops.clone(), vec![slow]);
    }
}

/// One of two fronts had moved the deadline in the row and could not tell the host, which paused the sandbox at the old one; the other
/// front took the row's for the host's and confirmed an extension that it covers.
#[test]
fn an_extension_of_a_deadline_that_the_other_front_could_not_tell() {
    let pauses = Op::Create {
        at: 0,
        timeout: 7_253,
        leaves_after: None,
        kept: false,
        pauses: true,
    };
    let set = Op::Set {
        at: 767,
        sandbox: 0,
        timeout: 48_567,
    };
    let extend = Op::Extend {
        at: 7_256,
        sandbox: 0,
        timeout: 240,
    };
    let cut = Fault::CutOff {
        from: 37,
        until: 1_052,
    };
    for seed in (0..200).chain([739_398]) {
        check_with(2, seed, 3, vec![pauses, set, extend], vec![cut]);
    }
}

/// The pause of a front that died came late. Its successor had the same epoch for a deadline, and wrote that over the pause.
#[test]
fn a_pause_of_a_dead_front_that_comes_late() {
    let pauses = Op::Create {
        at: 2,
        timeout: 28_747,
        leaves_after: None,
        kept: false,
        pauses: true,
    };
    let pause = Op::Pause {
        at: 1_212,
        sandbox: 2,
    };
    let set = Op::Set {
        at: 5_944,
        sandbox: 2,
        timeout: 2_638,
    };
    let ops = vec![create(1_462, 15_509), create(0, 32_130), pauses, pause, set];
    let faults = vec![
        Fault::AgentDies {
            at: 211,
            front_too: false,
        },
        Fault::StoreSlow {
            from: 7,
            until: 18_279,
            by: 593,
        },
        Fault::FrontDies { at: 1_582 },
    ];
    for seed in (0..50).chain([30_132_411_289_137_444]) {
        check(seed, 2, ops.clone(), faults.clone());
    }
}

/// A sandbox was killed while the write of its pause was under way, which came through afterwards. The host had not been asked for a
/// snapshot, so there is nothing to come back from: this was the simulation's mistake.
#[test]
fn a_kill_beside_the_late_write_of_a_pause() {
    let pause = Op::Pause {
        at: 3_965,
        sandbox: 0,
    };
    let any = Op::Kill {
        at: 3_979,
        sandbox: 0,
        any: true,
    };
    let slow = Fault::StoreSlow {
        from: 3_965,
        until: 23_675,
        by: 20_294,
    };
    for seed in (0..50).chain([103_540_210]) {
        check(seed, 2, vec![create(0, 3_966), pause, any], vec![slow]);
    }
}

/// A sandbox ran again after a pause and ended by itself while its row could not be written, so nobody was told of either. That is the end
/// of a sandbox that was resumed, not the loss of a paused one: this was the simulation's mistake.
#[test]
fn an_end_before_the_row_says_that_it_was_resumed() {
    let pauses = Op::Create {
        at: 0,
        timeout: 2_154,
        leaves_after: None,
        kept: false,
        pauses: true,
    };
    let pause = Op::Pause { at: 41, sandbox: 0 };
    let resume = Op::Resume {
        at: 60,
        sandbox: 0,
        timeout: 1_825,
    };
    let exit = Op::Exit {
        at: 990,
        sandbox: 0,
    };
    let fails = Fault::StoreFails {
        from: 73,
        until: 133,
    };
    for seed in (0..50).chain([106_292_631]) {
        check(seed, 1, vec![pauses, resume, pause, exit], vec![fails]);
    }
}

/// The host had paused a sandbox at its deadline and died; told a later one, its next life did not know the sandbox, and the look at what had
/// become of it was lost on the way. That it was lost too was concluded from nothing.
#[test]
fn a_look_that_fails_tells_nothing() {
    let create = |at, timeout, pauses| Op::Create {
        at,
        timeout,
        leaves_after: None,
        kept: false,
        pauses,
    };
    let extend = Op::Extend {
        at: 201,
        sandbox: 1,
        timeout: 25_939,
    };
    let ops = vec![
        create(1, 12_178, false),
        create(5, 2_813, true),
        extend,
        create(383, 7_931, false),
        create(8, 20_555, false),
        create(451, 5_473, false),
    ];
    let faults = vec![
        Fault::DiskFull {
            from: 21,
            until: 158,
        },
        Fault::AgentDiesAtEffect {
            n: 6,
            front_too: false,
        },
        Fault::Lost { n: 30 },
        Fault::StoreSlow {
            from: 30,
            until: 1_590,
            by: 7_463,
        },
        Fault::Lost { n: 10 },
    ];
    check(502_589_889, 3, ops, faults);
}

/// A front that could not write that a sandbox is paused answered a second pause by "already", when the other one had resumed it; and then
/// it made the first one again, of which that resume was the end.
#[test]
fn a_pause_whose_write_the_other_fronts_resume_overtakes() {
    let pause = |at| Op::Pause { at, sandbox: 0 };
    let resume = Op::Resume {
        at: 475,
        sandbox: 0,
        timeout: 15_985,
    };
    let snapshot = Op::Snapshot {
        at: 100,
        sandbox: 0,
    };
    let slow = Fault::StoreSlow {
        from: 425,
        until: 907,
        by: 17_311,
    };
    for seed in (0..50).chain([506_806_171]) {
        let ops = vec![create(0, 35_000), snapshot, pause(300), resume, pause(476)];
        check_with(2, seed, 1, ops, vec![slow]);
    }
}

/// A front died while it resumed a sandbox, and its write came when the next one had found that paused: a row without an owner, which kept
/// its place in the quota until its deadline, here longer than anything may take.
#[test]
fn a_resume_of_a_dead_front_that_comes_late() {
    let pause = Op::Pause {
        at: 300,
        sandbox: 0,
    };
    let resume = Op::Resume {
        at: 1_000,
        sandbox: 0,
        timeout: 3_000_000,
    };
    let slow = Fault::StoreSlow {
        from: 990,
        until: 1_010,
        by: 5_000,
    };
    let dies = Fault::FrontDies { at: 1_100 };
    for seed in 0..50 {
        // The last one is there for the time that passes before it.
        let ops = vec![create(0, 35_000), pause, resume, create(20_000, 1_000)];
        check(seed, 1, ops, vec![slow, dies]);
    }
}

/// A rollback had a later epoch than the deadline that came to the host after it. That was taken for another front's deadline, on top of
/// this one, and confirmed; the host paused the sandbox at the old one.
#[test]
fn a_deadline_that_a_rollback_overtakes() {
    let pauses = Op::Create {
        at: 0,
        timeout: 3_759,
        leaves_after: None,
        kept: false,
        pauses: true,
    };
    let snapshot = |at| Op::Snapshot { at, sandbox: 0 };
    let set = |at, timeout| Op::Set {
        at,
        sandbox: 0,
        timeout,
    };
    let back = Op::Rollback {
        at: 3_710,
        sandbox: 0,
    };
    let slow = Fault::StoreSlow {
        from: 3_721,
        until: 14_766,
        by: 112,
    };
    let sets = [set(3_712, 28_489), set(3_726, 411)];
    for seed in (0..200).chain([2_005_634_825]) {
        let ops = vec![
            pauses,
            snapshot(200),
            snapshot(3_721),
            back,
            sets[0],
            sets[1],
        ];
        check_with(2, seed, 2, ops, vec![slow]);
    }
}

/// One front could not pause a sandbox as the host was pausing it by itself, at a deadline that the other front had moved too late. That one
/// took the row, which said again that it runs, for the resume that somebody waited for.
#[test]
fn a_resume_that_waits_for_the_other_fronts_failed_pause() {
    let pauses = Op::Create {
        at: 0,
        timeout: 3_987,
        leaves_after: None,
        kept: false,
        pauses: true,
    };
    let sandbox = 0;
    let ops = [
        pauses,
        Op::Snapshot { at: 200, sandbox },
        Op::Resume {
            at: 3_991,
            sandbox,
            timeout: 154,
        },
        Op::Pause { at: 3_984, sandbox },
        Op::Set {
            at: 3_983,
            sandbox,
            timeout: 414,
        },
    ];
    for seed in (0..200).chain([3_002_313_116]) {
        check_with(2, seed, 2, ops.to_vec(), vec![]);
    }
}

/// A front that started read the host's list before a pause and the rows after it, so what was listed was nobody's. Its kill came after the
/// resume of the other front, with the same epoch.
#[test]
fn a_sandbox_that_was_listed_before_its_pause_and_resumed_is_no_orphan() {
    let pauses = Op::Create {
        at: 0,
        timeout: 35_000,
        leaves_after: None,
        kept: false,
        pauses: true,
    };
    let sandbox = 0;
    let ops = [
        pauses,
        Op::Snapshot { at: 100, sandbox },
        Op::Pause { at: 300, sandbox },
        Op::Snapshot { at: 275, sandbox },
        Op::Pause { at: 1_185, sandbox },
        Op::Resume {
            at: 1_283,
            sandbox,
            timeout: 3_990,
        },
    ];
    let faults = [
        Fault::FrontDies { at: 1_214 },
        Fault::Late { n: 21, by: 72 },
    ];
    for seed in (0..200).chain([5_008_038_006]) {
        check_with(2, seed, 1, ops.to_vec(), faults.to_vec());
    }
}

/// A sandbox was resumed, and ended at a deadline that a client had moved meanwhile, all while its row could not be written. That is the end
/// of a sandbox that was resumed, not the loss of a paused one: this was the simulation's mistake.
#[test]
fn an_expiry_before_the_row_says_that_it_was_resumed() {
    let sandbox = 0;
    let ops = [
        create(2, 27_294),
        Op::Set {
            at: 6_813,
            sandbox,
            timeout: 50,
        },
        Op::Resume {
            at: 157,
            sandbox,
            timeout: 12_895,
        },
        Op::Pause { at: 52, sandbox },
    ];
    let fails = Fault::StoreFails {
        from: 164,
        until: 8_376,
    };
    for seed in (0..50).chain([9_005_801_660]) {
        check(seed, 2, ops.to_vec(), vec![fails]);
    }
}
