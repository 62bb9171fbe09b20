//! System calls that the front never needs and that an intruder would. A second fence: the first is that it owns nothing.
//!
//! A deny list, since the process is our own code and SQLite's; a call that a new release of either makes must not kill the server.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};

/// The filter could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeccompError {
    #[error("this processor has no seccomp filter of ours")]
    Architecture(#[source] seccompiler::BackendError),
    #[error("failed to compile the seccomp filter")]
    Compile(#[source] seccompiler::BackendError),
    #[error("failed to install the seccomp filter")]
    Install(#[source] seccompiler::Error),
}

/// Refused with EPERM.
const DENIED: &[i64] = &[
    // Becoming another program, or reaching into one.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    // Sockets of its own: it is handed connected and listening ones only. `socketpair` stays, for signals.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    // Mounts, namespaces and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Large and often broken parts of the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_memfd_secret,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    libc::SYS_mknodat,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

/// Refused with ENOSYS: glibc then makes its threads with clone(2), whose flags a filter can see.
const ABSENT: &[i64] = &[libc::SYS_clone3];

// <linux/filter.h>, <linux/seccomp.h>; offset 0 of struct seccomp_data is the number.
const LOAD_NUMBER: sock_filter = sock_filter {
    code: 0x20,
    jt: 0,
    jf: 0,
    k: 0,
};
const RETURN_EPERM: sock_filter = sock_filter {
    code: 0x06,
    jt: 0,
    jf: 0,
    k: 0x0005_0000 | 1,
};
/// Numbers from here on are x32 calls (`__X32_SYSCALL_BIT`), which would pass by a list of native numbers.
const SKIP_UNLESS_FOREIGN: sock_filter = sock_filter {
    code: 0x35,
    jt: 0,
    jf: 1,
    k: 0x4000_0000,
};

/// Which sockets the front may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sockets {
    None,
    /// Unix ones, connected to what its own root has: the relay to the database.
    Unix,
}

/// Installs the filters on this thread; threads made later inherit them. Needs no_new_privs. There is no way back.
pub(super) fn install(sockets: Sockets) -> Result<(), SeccompError> {
    for program in programs(sockets)? {
        apply_filter(&program).map_err(SeccompError::Install)?;
    }
    Ok(())
}

fn programs(sockets: Sockets) -> Result<[BpfProgram; 2], SeccompError> {
    let architecture =
        TargetArch::try_from(std::env::consts::ARCH).map_err(SeccompError::Architecture)?;
    let compile = |rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32| {
        let action = SeccompAction::Errno(errno.unsigned_abs());
        SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)
            .and_then(BpfProgram::try_from)
            .map_err(SeccompError::Compile)
    };
    let all = |numbers: &[i64]| {
        numbers
            .iter()
            .map(|number| (*number, Vec::new()))
            .collect::<BTreeMap<_, _>>()
    };

    let mut denied = all(DENIED);
    if sockets == Sockets::Unix {
        let other_family = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Ne,
            libc::AF_UNIX.unsigned_abs().into(),
        )
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(SeccompError::Compile)?;
        denied.insert(libc::SYS_socket, vec![other_family]);
        denied.remove(&libc::SYS_connect);
    }
    // Threads yes, processes no: which also covers every new namespace.
    let thread = libc::CLONE_THREAD.unsigned_abs().into();
    let not_a_thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(thread),
        0,
    )
    .and_then(|condition| SeccompRule::new(vec![condition]))
    .map_err(SeccompError::Compile)?;
    denied.insert(libc::SYS_clone, vec![not_a_thread]);
    let mut first = vec![LOAD_NUMBER, SKIP_UNLESS_FOREIGN, RETURN_EPERM];
    first.extend(compile(denied, libc::EPERM)?);
    Ok([first, compile(all(ABSENT), libc::ENOSYS)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_name_each_call_once() {
        let mut numbers = DENIED.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), DENIED.len());
        assert!(
            programs(Sockets::None)
                .unwrap()
                .iter()
                .all(|program| program.len() < 4096)
        );
    }

    #[test]
    fn with_a_database_only_unix_sockets_can_be_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            install(Sockets::Unix).unwrap();
            std::os::unix::net::UnixStream::connect(&path).unwrap();
            let refused = std::net::TcpStream::connect("127.0.0.1:1").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{refused}");
            let refused = std::os::unix::net::UnixListener::bind(path.with_extension("2"));
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_filters_bite_and_leave_threads_alone() {
        // Filters are of a thread: this one is given up after the test.
        std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            install(Sockets::None).unwrap();
            let refused = |error: std::io::Error| {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}")
            };
            refused(std::process::Command::new("/bin/true").spawn().unwrap_err());
            refused(std::net::TcpListener::bind("127.0.0.1:0").unwrap_err());
            refused(rustix::process::chroot("/").unwrap_err().into());
            refused(
                rustix::mount::unmount("/nowhere", rustix::mount::UnmountFlags::DETACH)
                    .unwrap_err()
                    .into(),
            );
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            std::os::unix::net::UnixStream::pair().unwrap();
        })
        .join()
        .unwrap();
    }
}
