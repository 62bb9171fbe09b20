//! Which system calls a sandbox may make: the allow-list [`policy`] and its compilation to a filter.
//!
//! Everything unnamed answers `ENOSYS`, as an older kernel would, so that programs fall back. What is refused on purpose answers `EPERM`.
//! Foreign calling conventions (i386 through `int 0x80`, x32) answer `ENOSYS`.

mod policy;

use soulbox_sys::seccomp::Instruction;

pub use policy::policy;

/// What the kernel does with one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// Fails with this errno.
    Fail(u16),
    /// Fails with `errno` when the low word of argument `argument` has one of the bits of `mask`, else allowed.
    FailIfAnyBit {
        argument: u8,
        mask: u32,
        errno: u16,
    },
    /// Fails with `errno` when the low word of argument `argument` is one of `values`, else allowed.
    FailIfOneOf {
        argument: u8,
        values: &'static [u32],
        errno: u16,
    },
    /// Allowed when the low word of argument `argument` is one of `values`, else fails with `errno`.
    AllowOnly {
        argument: u8,
        values: &'static [u32],
        errno: u16,
    },
}

/// A system call number and what becomes of it. Numbers that are not named fail with `ENOSYS`.
pub type Rule = (u32, Verdict);

const UNKNOWN: Verdict = Verdict::Fail(libc::ENOSYS as u16);

// offsetof(struct seccomp_data, ...), linux/seccomp.h
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64
/// Numbers from here on are x32 calls on x86-64 (`__X32_SYSCALL_BIT`), and unused elsewhere.
const FOREIGN_NUMBERS: u32 = 0x4000_0000;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;

/// Compiles rules, in any order, to a binary search over the numbers: some ten instructions a call instead of hundreds.
///
/// # Panics
/// When two rules name the same number: a mistake in the table, which a test of it finds.
#[must_use]
pub fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut sorted = rules.to_vec();
    sorted.sort_by_key(|(number, _)| *number);
    assert!(
        sorted.windows(2).all(|pair| pair[0].0 != pair[1].0),
        "two rules for one system call"
    );

    // Runs of numbers with the same verdict, without gaps, from 0.
    let mut runs: Vec<(u32, Verdict)> = vec![(0, UNKNOWN)];
    for (number, verdict) in sorted {
        if runs.last().is_some_and(|(start, _)| *start == number) {
            runs.pop();
        }
        if runs.last().is_none_or(|(_, last)| *last != verdict) {
            runs.push((number, verdict));
        }
        runs.push((number + 1, UNKNOWN));
    }
    let mut merged: Vec<(u32, Verdict)> = Vec::new();
    for run in runs {
        if merged.last().is_none_or(|(_, last)| *last != run.1) {
            merged.push(run);
        }
    }

    let mut program = vec![
        instruction(LOAD, 0, 0, OFFSET_ARCH),
        instruction(JUMP_EQUAL, 1, 0, ARCH),
        fail(libc::ENOSYS as u16),
        instruction(LOAD, 0, 0, OFFSET_NR),
        instruction(JUMP_GREATER_OR_EQUAL, 0, 1, FOREIGN_NUMBERS),
        fail(libc::ENOSYS as u16),
    ];
    search(&merged, &mut program);
    program
}

/// Appends the code that decides between `runs`, the number being loaded.
fn search(runs: &[(u32, Verdict)], program: &mut Vec<Instruction>) {
    let [run] = runs else {
        let (left, right) = runs.split_at(runs.len() / 2);
        program.push(instruction(JUMP_GREATER_OR_EQUAL, 0, 1, right[0].0));
        // A conditional jump reaches 255 instructions, this one any number.
        let jump = program.len();
        program.push(instruction(JUMP, 0, 0, 0));
        search(left, program);
        program[jump].value = (program.len() - jump - 1) as u32;
        search(right, program);
        return;
    };
    match run.1 {
        Verdict::Allow => program.push(instruction(RETURN, 0, 0, RET_ALLOW)),
        Verdict::Fail(errno) => program.push(fail(errno)),
        Verdict::FailIfAnyBit {
            argument,
            mask,
            errno,
        } => {
            program.push(load_argument(argument));
            program.push(instruction(JUMP_ANY_BIT, 0, 1, mask));
            program.push(fail(errno));
            program.push(instruction(RETURN, 0, 0, RET_ALLOW));
        }
        Verdict::FailIfOneOf {
            argument,
            values,
            errno,
        } => {
            one_of(
                argument,
                values,
                fail(errno),
                instruction(RETURN, 0, 0, RET_ALLOW),
                program,
            );
        }
        Verdict::AllowOnly {
            argument,
            values,
            errno,
        } => {
            one_of(
                argument,
                values,
                instruction(RETURN, 0, 0, RET_ALLOW),
                fail(errno),
                program,
            );
        }
    }
}

fn one_of(
    argument: u8,
    values: &[u32],
    then: Instruction,
    otherwise: Instruction,
    program: &mut Vec<Instruction>,
) {
    program.push(load_argument(argument));
    for (at, value) in values.iter().enumerate() {
        // From here over the remaining comparisons and the `otherwise`.
        program.push(instruction(
            JUMP_EQUAL,
            (values.len() - at) as u8,
            0,
            *value,
        ));
    }
    program.push(otherwise);
    program.push(then);
}

fn load_argument(argument: u8) -> Instruction {
    // The low word; both architectures are little endian.
    instruction(LOAD, 0, 0, OFFSET_ARGS + 8 * u32::from(argument))
}

fn fail(errno: u16) -> Instruction {
    instruction(RETURN, 0, 0, RET_ERRNO | u32::from(errno))
}

fn instruction(code: u16, jump_true: u8, jump_false: u8, value: u32) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would.
    fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let Instruction {
                code,
                jump_true,
                jump_false,
                value,
            } = program[at];
            at += 1;
            let mut branch =
                |taken: bool| at += usize::from(if taken { jump_true } else { jump_false });
            match code {
                LOAD => {
                    accumulator = match value {
                        OFFSET_NR => number,
                        OFFSET_ARCH => arch,
                        offset => arguments[(offset - OFFSET_ARGS) as usize / 8] as u32,
                    };
                }
                JUMP_EQUAL => branch(accumulator == value),
                JUMP_GREATER_OR_EQUAL => branch(accumulator >= value),
                JUMP_ANY_BIT => branch(accumulator & value != 0),
                JUMP => at += value as usize,
                RETURN => return value,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn expected(verdict: Verdict, arguments: [u64; 6]) -> u32 {
        let low = |argument: u8| arguments[usize::from(argument)] as u32;
        let failure = match verdict {
            Verdict::Allow => None,
            Verdict::Fail(errno) => Some(errno),
            Verdict::FailIfAnyBit {
                argument,
                mask,
                errno,
            } => (low(argument) & mask != 0).then_some(errno),
            Verdict::FailIfOneOf {
                argument,
                values,
                errno,
            } => values.contains(&low(argument)).then_some(errno),
            Verdict::AllowOnly {
                argument,
                values,
                errno,
            } => (!values.contains(&low(argument))).then_some(errno),
        };
        failure.map_or(RET_ALLOW, |errno| RET_ERRNO | u32::from(errno))
    }

    #[test]
    fn the_filter_decides_as_the_table_says() {
        let rules = policy();
        let program = compile(&rules);
        assert!(program.len() < 4096, "BPF_MAXINSNS");
        for number in 0..600 {
            let verdict = rules
                .iter()
                .find(|(n, _)| *n == number)
                .map_or(UNKNOWN, |(_, verdict)| *verdict);
            for value in [
                0u64,
                1,
                2,
                3,
                10,
                16,
                40,
                0x5412,
                0x10000000,
                0x20000,
                0x0002_0000,
                u64::MAX,
                0x1_0000_5412,
            ] {
                let arguments = [value; 6];
                assert_eq!(
                    run(&program, ARCH, number, arguments),
                    expected(verdict, arguments),
                    "call {number} with {value:#x}"
                );
            }
        }
    }

    #[test]
    fn other_calling_conventions_are_refused() {
        let program = compile(&policy());
        let enosys = RET_ERRNO | libc::ENOSYS as u32;
        assert_eq!(
            run(&program, 0x4000_0003, 4, [0; 6]),
            enosys,
            "write(2) of i386"
        );
        assert_eq!(
            run(&program, ARCH, FOREIGN_NUMBERS | 1, [0; 6]),
            enosys,
            "write(2) of x32"
        );
        assert_eq!(run(&program, ARCH, u32::MAX, [0; 6]), enosys);
        assert_eq!(
            run(&program, ARCH, libc::SYS_write as u32, [0; 6]),
            RET_ALLOW
        );
    }

    #[test]
    fn what_an_escape_needs_is_refused() {
        let program = compile(&policy());
        let eperm = RET_ERRNO | libc::EPERM as u32;
        let call = |number: i64, arguments| run(&program, ARCH, number as u32, arguments);
        for number in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_clock_settime,
            libc::SYS_settimeofday,
            libc::SYS_syslog,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_fsopen,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
        ] {
            assert_eq!(call(number, [0; 6]), eperm, "call {number}");
        }
        for namespace in [
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWNS,
            libc::CLONE_NEWNET,
            libc::CLONE_NEWPID,
        ] {
            assert_eq!(call(libc::SYS_clone, [namespace as u64; 6]), eperm);
            assert_eq!(call(libc::SYS_unshare, [namespace as u64; 6]), eperm);
        }
        assert_eq!(
            call(libc::SYS_clone, [libc::CLONE_THREAD as u64; 6]),
            RET_ALLOW
        );
        // The kernel takes the request as 32 bits: bits above do not hide it.
        assert_eq!(
            call(
                libc::SYS_ioctl,
                [0, 0xffff_0000_0000 | libc::TIOCSTI, 0, 0, 0, 0]
            ),
            eperm
        );
        let enosys = RET_ERRNO | libc::ENOSYS as u32;
        for number in [libc::SYS_clone3, libc::SYS_io_uring_setup] {
            assert_eq!(call(number, [0; 6]), enosys);
        }
        assert_eq!(
            call(libc::SYS_socket, [libc::AF_VSOCK as u64, 0, 0, 0, 0, 0]),
            RET_ERRNO | libc::EAFNOSUPPORT as u32
        );
    }
}
