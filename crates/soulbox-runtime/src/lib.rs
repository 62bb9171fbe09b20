//! Isolated process trees on one Linux kernel: the runtime `native`.
//!
//! | module | owns |
//! |---|---|
//! | [`identity`] | the names, ranges and addresses that follow from a slot's number |
//! | [`plan`] | what the launcher is to do, as data; pure |
//! | [`launch`] | the launcher's side: namespaces, mounts, privileges, then init |
//! | [`seccomp`] | which system calls a sandbox may make, compiled to a filter; pure |
//! | [`cgroup`] | limits, cgroup v1 and v2 |
//! | [`network`] | veth pairs, addresses, the nftables rules on the host's side |
//! | [`rootfs`] | ID-mapped overlays |
//! | [`dial`] | connecting to a port inside |
//! | [`criu`] | conversations with CRIU; its images |
//! | [`leftovers`] | what a crashed installation has left in the kernel |
//! | [`native`] | the slot: prepare, boot, adopt, dump, restore, release |
//!
//! Synchronous throughout; callers use threads of their own and bound the time. Needs root on the host.
#![forbid(unsafe_code)]

pub mod cgroup;
pub mod criu;
pub mod dial;
pub mod identity;
pub mod launch;
pub mod leftovers;
pub mod native;
pub mod network;
pub mod plan;
pub mod rootfs;
pub mod seccomp;
