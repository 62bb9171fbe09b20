//! Safe wrappers over single system calls that no well-kept crate offers; the only unsafe code of the workspace.
//!
//! Everything here blocks for at most the call itself, owns no state, and takes and gives descriptors as owned or borrowed types.

pub mod allocator;
pub mod btrfs;
pub mod credentials;
pub mod fdpass;
pub mod loopdev;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod trace;
pub mod writeback;
