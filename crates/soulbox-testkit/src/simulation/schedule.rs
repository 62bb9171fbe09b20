//! What happens from outside: requests of clients, exits of programs, failures.

use crate::random::Random;

/// Requests and exits come before this moment, failures too.
const BUSY_MILLIS: u64 = 40_000;

/// One thing that a client or a guest does, with its time. Sandboxes are counted from zero in the order of their creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Create {
        at: u64,
        timeout: u64,
        /// After how long the client stops waiting for the answer, if it is that impatient.
        leaves_after: Option<u64>,
        /// The request has an idempotency key, so the sandbox is kept for a client that asks again.
        kept: bool,
        /// At its deadline it is paused, not killed.
        pauses: bool,
    },
    Set {
        at: u64,
        sandbox: usize,
        timeout: u64,
    },
    Pause {
        at: u64,
        sandbox: usize,
    },
    /// By a client, or since traffic came.
    Resume {
        at: u64,
        sandbox: usize,
        timeout: u64,
    },
    /// A snapshot beside which it goes on.
    Snapshot {
        at: u64,
        sandbox: usize,
    },
    /// A sandbox that begins as another one is then. It is counted as if it were created.
    Fork {
        at: u64,
        of: usize,
        timeout: u64,
    },
    /// Back to a snapshot of its own, if it has one.
    Rollback {
        at: u64,
        sandbox: usize,
    },
    Extend {
        at: u64,
        sandbox: usize,
        timeout: u64,
    },
    Kill {
        at: u64,
        sandbox: usize,
        /// By an administrator who ends all of a team, so also what nobody has heard of yet.
        any: bool,
    },
    /// All its processes end by themselves.
    Exit {
        at: u64,
        sandbox: usize,
    },
}

impl Op {
    /// Whether it makes a sandbox.
    pub(super) fn creates(&self) -> bool {
        matches!(self, Self::Create { .. } | Self::Fork { .. })
    }

    pub(super) fn at(&self) -> u64 {
        match *self {
            Self::Create { at, .. }
            | Self::Set { at, .. }
            | Self::Extend { at, .. }
            | Self::Kill { at, .. }
            | Self::Pause { at, .. }
            | Self::Resume { at, .. }
            | Self::Snapshot { at, .. }
            | Self::Fork { at, .. }
            | Self::Rollback { at, .. }
            | Self::Exit { at, .. } => at,
        }
    }
}

/// One failure. Windows are `from..until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The front is killed before it performs its `n`th effect.
    FrontDiesAtEffect {
        n: u64,
    },
    FrontDies {
        at: u64,
    },
    /// The agent is killed before it performs its `n`th effect. On one machine its front ends with it.
    AgentDiesAtEffect {
        n: u64,
        front_too: bool,
    },
    AgentDies {
        at: u64,
        front_too: bool,
    },
    /// The `n`th message between the two does not arrive, arrives twice, or late.
    Lost {
        n: u64,
    },
    Twice {
        n: u64,
        again_after: u64,
    },
    Late {
        n: u64,
        by: u64,
    },
    /// No message arrives.
    CutOff {
        from: u64,
        until: u64,
    },
    /// The store refuses.
    StoreFails {
        from: u64,
        until: u64,
    },
    /// What the store is asked for it does later.
    StoreSlow {
        from: u64,
        until: u64,
        by: u64,
    },
    /// The agent cannot write records.
    DiskFull {
        from: u64,
        until: u64,
    },
    StartFails {
        from: u64,
        until: u64,
    },
    StartSlow {
        from: u64,
        until: u64,
        by: u64,
    },
    /// envd does not accept its initialisation.
    InitFails {
        from: u64,
        until: u64,
    },
    /// Processes that are killed end late.
    EndSlow {
        from: u64,
        until: u64,
        by: u64,
    },
    /// Snapshots do not come about.
    SaveFails {
        from: u64,
        until: u64,
    },
    /// They take long.
    SaveSlow {
        from: u64,
        until: u64,
        by: u64,
    },
}

/// A whole run; the seed decides what is left to chance in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub seed: u64,
    /// Servers on the same records, one or two.
    pub fronts: u32,
    /// Sandboxes that may live at once.
    pub limit: u32,
    pub ops: Vec<Op>,
    pub faults: Vec<Fault>,
}

impl Schedule {
    /// The schedule of a seed.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let limit = u32::try_from(random.between(1, 4)).unwrap_or(1);
        let sandboxes = usize::try_from(random.between(1, 6)).unwrap_or(1);
        let mut ops = Vec::new();
        for sandbox in 0..sandboxes {
            sandbox_ops(random, sandbox, &mut ops);
        }
        for _ in 0..random.below(3) {
            let of = usize::try_from(random.below(6)).unwrap_or(0);
            let at = random.skewed(BUSY_MILLIS);
            let timeout = 1 + random.below(40_000);
            ops.push(Op::Fork { at, of, timeout });
        }
        let fronts = if random.once_in(3) { 2 } else { 1 };
        if random.once_in(200) {
            return if random.once_in(2) {
                Self::unanswered(seed, random)
            } else {
                Self::unanswered_resume(seed, random)
            };
        }
        if random.once_in(200) {
            return if random.once_in(2) {
                Self::overtaken(seed, random)
            } else {
                Self::overtaken_resume(seed, random)
            };
        }
        if random.once_in(12) {
            return Self::around_a_save(seed, random);
        }
        if random.once_in(12) {
            return Self::around_a_resume(seed, random);
        }
        let most = if random.once_in(4) { 16 } else { 6 };
        let faults = (0..random.below(most)).map(|_| fault(random)).collect();
        Self {
            seed,
            fronts,
            limit,
            ops,
            faults,
        }
    }

    /// A create that is never answered and a kill meanwhile, on a slow store: too rare to be left to chance.
    fn unanswered(seed: u64, random: &mut Random) -> Self {
        let create = Op::Create {
            at: 0,
            timeout: 60_000,
            leaves_after: None,
            kept: false,
            pauses: false,
        };
        let kill = Op::Kill {
            at: random.between(15_000, 40_000),
            sandbox: 0,
            any: true,
        };
        let by = random.between(6_000, 15_000);
        let slow = Fault::StoreSlow {
            from: 0,
            until: BUSY_MILLIS,
            by,
        };
        Self::alone(seed, vec![create, kill], vec![slow, Fault::Lost { n: 0 }])
    }

    /// A decision of a front that dies, not saved and late, and one of its successor meanwhile: too rare as well.
    fn overtaken(seed: u64, random: &mut Random) -> Self {
        let at = random.between(500, 1_000);
        let set = |at, timeout| Op::Set {
            at,
            sandbox: 0,
            timeout,
        };
        let create = Op::Create {
            at: 0,
            timeout: 40_000,
            leaves_after: None,
            kept: false,
            pauses: false,
        };
        let ops = vec![
            create,
            set(at, random.between(8_000, 30_000)),
            set(at + random.between(3_000, 6_000), 50_000),
        ];
        let faults = vec![
            Fault::StoreFails {
                from: at,
                until: at + 100,
            },
            Fault::FrontDies {
                at: at + random.between(10, 100),
            },
            Fault::Late {
                n: 2,
                by: random.between(4_000, 9_000),
            },
        ];
        Self::alone(seed, ops, faults)
    }

    /// A resume that takes its place late and is not answered: its owner gives up before the call does.
    fn unanswered_resume(seed: u64, random: &mut Random) -> Self {
        let at = random.between(500, 5_000);
        let mut ops = Self::paused_and_resumed(at).to_vec();
        if random.once_in(2) {
            ops.push(Op::Kill {
                at: at + random.between(10_000, 45_000),
                sandbox: 0,
                any: true,
            });
        }
        let faults = vec![
            Fault::StoreSlow {
                from: at,
                until: at + 10,
                by: random.between(6_000, 15_000),
            },
            Fault::StartSlow {
                from: at,
                until: at + 20_000,
                by: random.between(31_000, 60_000),
            },
        ];
        Self::alone(seed, ops, faults)
    }

    /// The kill of a front that dies, written late, and a resume of its successor before that.
    fn overtaken_resume(seed: u64, random: &mut Random) -> Self {
        let killed_at = random.between(500, 5_000);
        let resumed_at = killed_at + random.between(200, 4_000);
        let mut ops = Self::paused_and_resumed(resumed_at).to_vec();
        ops.push(Op::Kill {
            at: killed_at,
            sandbox: 0,
            any: false,
        });
        let faults = vec![
            Fault::StoreSlow {
                from: killed_at,
                until: resumed_at + 10,
                by: random.between(2_000, 14_000),
            },
            Fault::FrontDies {
                at: killed_at + random.between(1, 100),
            },
        ];
        Self::alone(seed, ops, faults)
    }

    /// One front, and room for one sandbox.
    fn alone(seed: u64, ops: Vec<Op>, faults: Vec<Fault>) -> Self {
        Self {
            seed,
            fronts: 1,
            limit: 1,
            ops,
            faults,
        }
    }

    /// One sandbox that is paused early and resumed then.
    fn paused_and_resumed(at: u64) -> [Op; 3] {
        let sandbox = 0;
        let create = Op::Create {
            at: 0,
            timeout: 60_000,
            leaves_after: None,
            kept: false,
            pauses: false,
        };
        let resume = Op::Resume {
            at,
            sandbox,
            timeout: 30_000,
        };
        [create, Op::Pause { at: 300, sandbox }, resume]
    }

    /// A slow pause or snapshot, by a client or at the deadline, and what else may come at that time: a schedule seldom has it all.
    fn around_a_save(seed: u64, random: &mut Random) -> Self {
        let pauses = random.once_in(2);
        let lives = random.between(1_500, 4_000);
        let saves_at = if random.once_in(3) {
            lives
        } else {
            lives - random.skewed(1_000)
        };
        let create = Op::Create {
            at: 0,
            timeout: lives,
            leaves_after: None,
            kept: false,
            pauses,
        };
        let (sandbox, at) = (0, saves_at);
        let mut ops = vec![create, Op::Snapshot { at: 200, sandbox }];
        if saves_at < lives {
            ops.push(if random.once_in(3) {
                Op::Snapshot { at, sandbox }
            } else {
                Op::Pause { at, sandbox }
            });
        }
        for _ in 0..random.between(1, 6) {
            let at = if random.once_in(2) {
                saves_at - 12 + random.below(40)
            } else {
                saves_at + random.skewed(BUSY_MILLIS / 2)
            };
            let timeout = 1 + random.skewed(60_000);
            ops.push(match random.below(8) {
                0 => Op::Snapshot { at, sandbox },
                1 => Op::Pause { at, sandbox },
                2 => Op::Exit { at, sandbox },
                3 => Op::Rollback { at, sandbox },
                4 => Op::Kill {
                    at,
                    sandbox,
                    any: true,
                },
                5 => Op::Set {
                    at,
                    sandbox,
                    timeout,
                },
                _ => Op::Resume {
                    at,
                    sandbox,
                    timeout,
                },
            });
        }
        let from = saves_at - random.skewed(200);
        let until = from + random.skewed(BUSY_MILLIS);
        let by = 1 + random.skewed(25_000);
        let mut faults = Vec::new();
        for _ in 0..random.below(4) {
            faults.push(match random.below(7) {
                0 => Fault::SaveSlow { from, until, by },
                // Longer than a host lets it take.
                1 => Fault::SaveSlow {
                    from,
                    until,
                    by: if random.once_in(8) { 430_000 } else { by },
                },
                2 => Fault::SaveFails { from, until },
                3 => Fault::EndSlow { from, until, by },
                4 => Fault::StoreSlow { from, until, by },
                5 => Fault::InitFails { from, until },
                _ => Fault::FrontDies {
                    at: saves_at + random.skewed(10_000),
                },
            });
        }
        Self {
            seed,
            fronts: if random.once_in(4) { 2 } else { 1 },
            limit: 2,
            ops,
            faults,
        }
    }

    /// A resume that does not go well, what came before it and arrives late, and what is asked for meanwhile.
    fn around_a_resume(seed: u64, random: &mut Random) -> Self {
        let (sandbox, paused_at, resumed_at) = (0, 300, random.between(400, 1_200));
        let lasts = |random: &mut Random| 1 + random.skewed(30_000);
        let timeout = lasts(random);
        let mut ops = vec![
            Op::Create {
                at: 0,
                timeout: 35_000,
                leaves_after: None,
                kept: false,
                pauses: random.once_in(2),
            },
            Op::Snapshot { at: 100, sandbox },
            Op::Pause {
                at: paused_at,
                sandbox,
            },
            Op::Resume {
                at: resumed_at,
                sandbox,
                timeout,
            },
        ];
        for _ in 0..random.below(3) {
            let at = random.between(200, paused_at);
            let timeout = lasts(random);
            ops.push(match random.below(3) {
                0 => Op::Set {
                    at,
                    sandbox,
                    timeout,
                },
                1 => Op::Snapshot { at, sandbox },
                _ => Op::Rollback { at, sandbox },
            });
        }
        for _ in 0..random.below(4) {
            let at = resumed_at + random.skewed(BUSY_MILLIS / 2);
            let timeout = lasts(random);
            ops.push(match random.below(4) {
                0 | 1 => Op::Kill {
                    at,
                    sandbox,
                    any: true,
                },
                2 => Op::Pause { at, sandbox },
                _ => Op::Resume {
                    at,
                    sandbox,
                    timeout,
                },
            });
        }
        let from = resumed_at - 50;
        let until = resumed_at + random.skewed(5_000);
        let by = 1 + random.skewed(35_000);
        let mut faults = Vec::new();
        for _ in 0..random.below(4) {
            faults.push(match random.below(7) {
                0 => Fault::StoreSlow {
                    from,
                    until,
                    by: random.between(12_000, 25_000),
                },
                1 => Fault::InitFails { from, until },
                2 => Fault::EndSlow { from, until, by },
                3 => Fault::StartSlow { from, until, by },
                4 | 5 => Fault::Late {
                    n: random.below(30),
                    by: random.skewed(2_000),
                },
                _ => Fault::FrontDies {
                    at: resumed_at + random.skewed(10_000),
                },
            });
        }
        Self {
            seed,
            fronts: if random.once_in(4) { 2 } else { 1 },
            limit: 1,
            ops,
            faults,
        }
    }

    /// The same without the `part`th of its operations and faults. What is counted by sandbox stays with its sandbox.
    #[must_use]
    pub fn without(&self, part: usize) -> Self {
        let mut shorter = self.clone();
        if part < shorter.ops.len() {
            // A create that goes would change the numbers of the others, so it comes after all is over and is refused nothing.
            match shorter.ops[part] {
                op if op.creates() => {
                    let before = self.ops[..part].iter();
                    let number = before.filter(|op| op.creates()).count();
                    shorter.ops = self
                        .ops
                        .iter()
                        .enumerate()
                        .filter(|(index, _)| *index != part)
                        .filter_map(|(_, op)| renumber(*op, number))
                        .collect();
                }
                _ => {
                    shorter.ops.remove(part);
                }
            }
        } else {
            shorter.faults.remove(part - shorter.ops.len());
        }
        shorter
    }
}

/// An operation as it is when the sandbox `gone` is never created.
fn renumber(mut op: Op, gone: usize) -> Option<Op> {
    if let Op::Fork { of, .. } = &mut op {
        // A fork of nothing comes to nothing and keeps its number.
        *of = match *of {
            of if of == gone => usize::MAX,
            of if of > gone && of < usize::MAX => of - 1,
            of => of,
        };
        return Some(op);
    }
    if let Op::Set { sandbox, .. }
    | Op::Extend { sandbox, .. }
    | Op::Kill { sandbox, .. }
    | Op::Pause { sandbox, .. }
    | Op::Resume { sandbox, .. }
    | Op::Snapshot { sandbox, .. }
    | Op::Rollback { sandbox, .. }
    | Op::Exit { sandbox, .. } = &mut op
    {
        if *sandbox == gone {
            return None;
        }
        if *sandbox > gone {
            *sandbox -= 1;
        }
    }
    Some(op)
}

fn sandbox_ops(random: &mut Random, sandbox: usize, ops: &mut Vec<Op>) {
    let created = if random.once_in(8) {
        // As the lists are compared.
        19_960 + random.below(80)
    } else {
        random.skewed(BUSY_MILLIS / 2)
    };
    let lives = 1 + random.below(40_000);
    ops.push(Op::Create {
        at: created,
        timeout: lives,
        leaves_after: random.once_in(10).then(|| random.skewed(20_000)),
        kept: random.once_in(8),
        pauses: random.once_in(3),
    });
    for _ in 0..random.below(7) {
        let at = if random.once_in(10) {
            // As it expires.
            created + lives + random.below(12)
        } else {
            created + random.skewed(BUSY_MILLIS - created)
        };
        let timeout = random.skewed(60_000);
        ops.push(match random.below(17) {
            0..=2 => Op::Set {
                at,
                sandbox,
                timeout,
            },
            3 | 4 => Op::Extend {
                at,
                sandbox,
                timeout,
            },
            5 | 6 => Op::Kill {
                at,
                sandbox,
                any: random.once_in(3),
            },
            7 => Op::Exit { at, sandbox },
            8..=10 => Op::Pause { at, sandbox },
            11..=13 => Op::Resume {
                at,
                sandbox,
                timeout: timeout + 1,
            },
            14 | 15 => Op::Snapshot { at, sandbox },
            _ => Op::Rollback { at, sandbox },
        });
    }
}

fn fault(random: &mut Random) -> Fault {
    let from = random.skewed(BUSY_MILLIS);
    let until = from + random.skewed(BUSY_MILLIS - from) + 1;
    let at = from;
    let by = 1 + random.skewed(45_000);
    let front_too = !random.once_in(3);
    match random.below(23) {
        0 | 1 => Fault::FrontDiesAtEffect {
            n: random.below(40),
        },
        2 => Fault::FrontDies { at },
        3 | 4 => Fault::AgentDiesAtEffect {
            n: random.below(30),
            front_too,
        },
        5 => Fault::AgentDies { at, front_too },
        6 | 7 => Fault::Lost {
            n: random.below(50),
        },
        8 => Fault::Twice {
            n: random.below(50),
            again_after: by,
        },
        9 | 10 => Fault::Late {
            n: random.below(50),
            by,
        },
        11 => Fault::CutOff { from, until },
        12 | 13 => Fault::StoreFails { from, until },
        14 => Fault::StoreSlow { from, until, by },
        15 => Fault::DiskFull { from, until },
        16 => Fault::StartFails { from, until },
        17 => Fault::StartSlow { from, until, by },
        18 => Fault::InitFails { from, until },
        19 => Fault::SaveFails { from, until },
        20 | 21 => Fault::SaveSlow {
            from,
            until,
            by: 1 + random.skewed(450_000),
        },
        _ => Fault::EndSlow {
            from,
            until,
            by: 1 + random.skewed(25_000),
        },
    }
}
