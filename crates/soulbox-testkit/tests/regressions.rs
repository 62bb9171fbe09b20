//! Schedules that once broke a rule, as small as they could be made, with what was wrong. None of them may do so again.
//!
//! What is random in a run follows from its seed, so a change of the simulation may turn an entry into another run; it stays a valid one.

use soulbox_testkit::simulation::{Coverage, Fault, Op, Schedule, run, trace};

struct Regression {
    /// What was wrong.
    story: &'static str,
    seeds: Vec<u64>,
    fronts: u32,
    limit: u32,
    ops: Vec<Op>,
    faults: Vec<Fault>,
}

#[test]
fn what_once_broke_a_rule_breaks_none() {
    let regressions = regressions();
    assert!(regressions.len() > 20);
    for it in regressions {
        assert!(!it.seeds.is_empty(), "{}", it.story);
        for seed in it.seeds {
            let schedule = Schedule {
                seed,
                fronts: it.fronts,
                limit: it.limit,
                ops: it.ops.clone(),
                faults: it.faults.clone(),
            };
            if let Err(violation) = run(&schedule, &mut Coverage::default()) {
                let lines = trace(&schedule).join("\n");
                panic!("again: {}\nseed {seed}: {violation:?}\n{lines}", it.story);
            }
        }
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

/// One that is paused at its deadline.
fn create_kept(at: u64, timeout: u64) -> Op {
    Op::Create {
        at,
        timeout,
        leaves_after: None,
        kept: false,
        pauses: true,
    }
}

fn set(at: u64, sandbox: usize, timeout: u64) -> Op {
    Op::Set {
        at,
        sandbox,
        timeout,
    }
}

fn extend(at: u64, sandbox: usize, timeout: u64) -> Op {
    Op::Extend {
        at,
        sandbox,
        timeout,
    }
}

fn pause(at: u64, sandbox: usize) -> Op {
    Op::Pause { at, sandbox }
}

fn resume(at: u64, sandbox: usize, timeout: u64) -> Op {
    Op::Resume {
        at,
        sandbox,
        timeout,
    }
}

fn snapshot(at: u64, sandbox: usize) -> Op {
    Op::Snapshot { at, sandbox }
}

fn exit(at: u64, sandbox: usize) -> Op {
    Op::Exit { at, sandbox }
}

fn kill(at: u64, sandbox: usize) -> Op {
    Op::Kill {
        at,
        sandbox,
        any: false,
    }
}

fn kill_any(at: u64, sandbox: usize) -> Op {
    Op::Kill {
        at,
        sandbox,
        any: true,
    }
}

fn store_slow(from: u64, until: u64, by: u64) -> Fault {
    Fault::StoreSlow { from, until, by }
}

fn store_fails(from: u64, until: u64) -> Fault {
    Fault::StoreFails { from, until }
}

fn cut_off(from: u64, until: u64) -> Fault {
    Fault::CutOff { from, until }
}

fn front_dies(at: u64) -> Fault {
    Fault::FrontDies { at }
}

/// The first seeds, and those with which it was found.
fn seeds(first: u64, found: &[u64]) -> Vec<u64> {
    (0..first).chain(found.iter().copied()).collect()
}

fn regressions() -> Vec<Regression> {
    let mut all = Vec::new();
    let mut add = |story, seeds, (fronts, limit), ops: &[Op], faults: &[Fault]| {
        all.push(Regression {
            story,
            seeds,
            fronts,
            limit,
            ops: ops.to_vec(),
            faults: faults.to_vec(),
        });
    };

    add(
        "a deadline that came to a sandbox that was ending was answered \"not there\"; control took that for its end",
        seeds(200, &[]),
        (1, 2),
        &[create(790, 21_764), set(822, 0, 9)],
        &[],
    );
    add(
        "the owner of a killed sandbox died before its row said so; the write came through after the next one had taken the sandbox up",
        vec![30_124_044_489_766_208, 1, 2, 3],
        (1, 3),
        &[create(0, 37_515), exit(19_034, 0), kill(237, 0)],
        &[store_slow(76, 1_255, 1_644), front_dies(290)],
    );
    add(
        "the kill that followed a start slower than its create is waited for did not reach it, and it ran on without an owner",
        seeds(50, &[]),
        (1, 1),
        &[create(0, 60_000)],
        &[Fault::StartSlow {
            from: 0,
            until: 10_000,
            by: 34_000,
        }],
    );
    for by in [29_000, 30_500, 31_000, 44_000] {
        add(
            "a create arrived after the kill that was sent because it was not answered",
            seeds(20, &[]),
            (1, 1),
            &[create(0, 90_000)],
            &[Fault::Late { n: 0, by }],
        );
    }
    for again_after in [1, 2, 5, 10, 50, 20_000] {
        add(
            "a create arrived twice, and the refusal of the second was taken for the answer to the first",
            seeds(20, &[]),
            (1, 1),
            &[create(0, 9_000), kill(3_000, 0)],
            &[Fault::Twice { n: 0, again_after }],
        );
    }
    add(
        "processes that outlive SIGKILL were forgotten after ten seconds, and the row said that nothing was left",
        seeds(50, &[]),
        (1, 1),
        &[create(0, 30_000), kill(1_000, 0), create(5_000, 1_000)],
        &[Fault::EndSlow {
            from: 0,
            until: 40_000,
            by: 24_000,
        }],
    );
    add(
        "the insertion of a row came through after its create had been given up on: a row without an owner that counted for ever",
        seeds(50, &[]),
        (1, 1),
        &[create(0, 5_000), create(25_000, 5_000)],
        &[store_slow(0, 10, 20_000)],
    );
    add(
        "a write of the row was given up on and came through; every later one was then taken for somebody else's affair",
        seeds(50, &[]),
        (1, 1),
        &[create(0, 40_000), set(150, 0, 50_000), kill(30_000, 0)],
        &[store_slow(100, 200, 16_000)],
    );
    add(
        "an extension that changed nothing was confirmed although neither the row nor the host had heard of the deadline that it relied on",
        seeds(50, &[]),
        (1, 1),
        &[
            create(0, 10_000),
            set(1_000, 0, 40_000),
            extend(3_000, 0, 20_000),
        ],
        &[
            store_fails(900, 4_000),
            cut_off(900, 5_000),
            front_dies(3_500),
        ],
    );
    add(
        "a deadline was told before the row had it; the front died, the next one gave the same epoch to its own decision, and the old one \
         came late and won",
        seeds(50, &[]),
        (1, 1),
        &[
            create(0, 40_000),
            set(700, 0, 12_000),
            set(5_000, 0, 50_000),
        ],
        &[
            store_fails(700, 800),
            front_dies(750),
            Fault::Late { n: 2, by: 7_000 },
        ],
    );
    add(
        "the last write of a front that died said that a sandbox was over and came late; the next front, which was still killing it, wrote \
         that over it",
        vec![30_124_101_197_334_025, 1, 2, 3],
        (1, 1),
        &[
            create(1, 14_002),
            create(0, 19_648),
            exit(405, 1),
            create(8_314, 1_512),
            create(0, 30_545),
        ],
        &[
            front_dies(481),
            store_slow(0, 54, 22),
            store_slow(0, 777, 15_803),
            cut_off(594, 34_491),
        ],
    );
    add(
        "one of two fronts could not read the row when the deadline that it knew came, and ended what the other had given more time",
        seeds(50, &[]),
        (2, 1),
        &[create(2_049, 3_487), set(2_062, 0, 50_576)],
        &[store_fails(2_065, 9_958)],
    );
    add(
        "the answer to a kill came after the other front's resume, which that kill had not reached, and counted as the end",
        seeds(200, &[5_098_715]),
        (2, 1),
        &[
            create(0, 35_000),
            pause(300, 0),
            resume(757, 0, 159),
            kill_any(774, 0),
            resume(757, 0, 6_811),
        ],
        &[store_slow(707, 1_180, 22_748)],
    );
    add(
        "two fronts came to the same state and epoch, one by a resume and a pause, one by a resume that it had given up on: that one took \
         the row for its own and the deleted snapshot of the former pause for the present one",
        seeds(50, &[1_142_879]),
        (2, 1),
        &[
            create_kept(0, 35_000),
            pause(300, 0),
            resume(1_197, 0, 981),
            resume(1_195, 0, 1),
            resume(3_746, 0, 2),
        ],
        &[store_slow(1_129, 1_268, 23_952)],
    );
    add(
        "one of two fronts had moved the deadline in the row and could not tell the host, which paused the sandbox at the old one; the other \
         front took the row's for the host's and confirmed an extension that it covers",
        seeds(200, &[739_398]),
        (2, 3),
        &[
            create_kept(0, 7_253),
            set(767, 0, 48_567),
            extend(7_256, 0, 240),
        ],
        &[cut_off(37, 1_052)],
    );
    add(
        "the pause of a front that died came late; its successor had the same epoch for a deadline, and wrote that over the pause",
        seeds(50, &[30_132_411_289_137_444]),
        (1, 2),
        &[
            create(1_462, 15_509),
            create(0, 32_130),
            create_kept(2, 28_747),
            pause(1_212, 2),
            set(5_944, 2, 2_638),
        ],
        &[
            Fault::AgentDies {
                at: 211,
                front_too: false,
            },
            store_slow(7, 18_279, 593),
            front_dies(1_582),
        ],
    );
    add(
        "a sandbox was killed while the write of its pause was under way, which came through afterwards; the host had not been asked for a \
         snapshot, so there is nothing to come back from: this was the simulation's mistake",
        seeds(50, &[103_540_210]),
        (1, 2),
        &[create(0, 3_966), pause(3_965, 0), kill_any(3_979, 0)],
        &[store_slow(3_965, 23_675, 20_294)],
    );
    add(
        "a sandbox ran again after a pause and ended by itself while its row could not be written, so nobody was told of either; that is no \
         loss of a paused one: this was the simulation's mistake",
        seeds(50, &[106_292_631]),
        (1, 1),
        &[
            create_kept(0, 2_154),
            resume(60, 0, 1_825),
            pause(41, 0),
            exit(990, 0),
        ],
        &[store_fails(73, 133)],
    );
    add(
        "the host had paused a sandbox at its deadline and died; told a later one, its next life did not know the sandbox, and the look at \
         what had become of it was lost on the way: that it was lost too was concluded from nothing",
        vec![502_589_889],
        (1, 3),
        &[
            create(1, 12_178),
            create_kept(5, 2_813),
            extend(201, 1, 25_939),
            create(383, 7_931),
            create(8, 20_555),
            create(451, 5_473),
        ],
        &[
            Fault::DiskFull {
                from: 21,
                until: 158,
            },
            Fault::AgentDiesAtEffect {
                n: 6,
                front_too: false,
            },
            Fault::Lost { n: 30 },
            store_slow(30, 1_590, 7_463),
            Fault::Lost { n: 10 },
        ],
    );
    add(
        "a front that could not write that a sandbox is paused answered a second pause by \"already\", when the other one had resumed it; and \
         then it made the first one again, of which that resume was the end",
        seeds(50, &[506_806_171]),
        (2, 1),
        &[
            create(0, 35_000),
            snapshot(100, 0),
            pause(300, 0),
            resume(475, 0, 15_985),
            pause(476, 0),
        ],
        &[store_slow(425, 907, 17_311)],
    );
    add(
        "a front died while it resumed a sandbox, and its write came when the next one had found that paused: a row without an owner, which \
         kept its place in the quota until its deadline, here longer than anything may take",
        seeds(50, &[]),
        (1, 1),
        &[
            create(0, 35_000),
            pause(300, 0),
            resume(1_000, 0, 3_000_000),
            // For the time that passes before it.
            create(20_000, 1_000),
        ],
        &[store_slow(990, 1_010, 5_000), front_dies(1_100)],
    );
    add(
        "a rollback had a later epoch than the deadline that came to the host after it; that was taken for another front's deadline, on top \
         of this one, and confirmed; the host paused the sandbox at the old one",
        seeds(200, &[2_005_634_825]),
        (2, 2),
        &[
            create_kept(0, 3_759),
            snapshot(200, 0),
            snapshot(3_721, 0),
            Op::Rollback {
                at: 3_710,
                sandbox: 0,
            },
            set(3_712, 0, 28_489),
            set(3_726, 0, 411),
        ],
        &[store_slow(3_721, 14_766, 112)],
    );
    add(
        "one front could not pause a sandbox as the host was pausing it by itself, at a deadline that the other front had moved too late; that \
         one took the row, which said again that it runs, for the resume that somebody waited for",
        seeds(200, &[3_002_313_116]),
        (2, 2),
        &[
            create_kept(0, 3_987),
            snapshot(200, 0),
            resume(3_991, 0, 154),
            pause(3_984, 0),
            set(3_983, 0, 414),
        ],
        &[],
    );
    add(
        "a front that started read the host's list before a pause and the rows after it, so what was listed was nobody's; its kill came after \
         the resume of the other front, with the same epoch",
        seeds(200, &[5_008_038_006]),
        (2, 1),
        &[
            create_kept(0, 35_000),
            snapshot(100, 0),
            pause(300, 0),
            snapshot(275, 0),
            pause(1_185, 0),
            resume(1_283, 0, 3_990),
        ],
        &[front_dies(1_214), Fault::Late { n: 21, by: 72 }],
    );
    add(
        "a sandbox was resumed, and ended at a deadline that a client had moved meanwhile, all while its row could not be written; that is \
         no loss of a paused one: this was the simulation's mistake",
        seeds(50, &[9_005_801_660]),
        (1, 2),
        &[
            create(2, 27_294),
            set(6_813, 0, 50),
            resume(157, 0, 12_895),
            pause(52, 0),
        ],
        &[store_fails(164, 8_376)],
    );
    all
}
