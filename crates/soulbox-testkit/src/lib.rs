//! For tests only: the simulated world in which the deciding halves of control and host run against each other.
//!
//! Real: [`soulbox_control::lifecycle`], [`soulbox_control::ownership`], [`soulbox_control::reconcile`] and
//! [`soulbox_host::lifecycle`], which are the code that runs. Simulated: time, the store's rows, the messages, processes, disks, clients.
#![forbid(unsafe_code)]

pub mod random;
pub mod simulation;
