//! Installing a ready-made filter program.

use std::io;

/// One instruction of classic BPF, as the kernel has it (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub value: u32,
}

impl Instruction {
    /// Bytes of one instruction in the form that [`Instruction::to_bytes`] gives.
    pub const LEN: usize = 8;

    /// The instruction in a byte order of its own (little endian), for the way to another process.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let (code, value) = (self.code.to_le_bytes(), self.value.to_le_bytes());
        [
            code[0],
            code[1],
            self.jump_true,
            self.jump_false,
            value[0],
            value[1],
            value[2],
            value[3],
        ]
    }

    /// The inverse of [`Instruction::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self {
            code: u16::from_le_bytes([bytes[0], bytes[1]]),
            jump_true: bytes[2],
            jump_false: bytes[3],
            value: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }
}

/// Puts the filter on the calling thread, for it and all that it starts, for ever. Needs CAP_SYS_ADMIN in the thread's user namespace, or
/// no_new_privs (which would make `sudo` inert, so it is not set here).
///
/// # Errors
/// `EACCES` without that privilege, `EINVAL` for a program that the kernel refuses.
/// Source: seccomp(2), SECCOMP_SET_MODE_FILTER
pub fn install(program: &[Instruction]) -> io::Result<()> {
    let Ok(len) = u16::try_from(program.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let filter = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `filter` points to `len` instructions of the layout of `struct sock_filter` (repr(C), same fields), alive for the call;
    // the kernel copies them and does not write to them.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
