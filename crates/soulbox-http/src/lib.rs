//! HTTP behaviour that servers on both sides of a sandbox's wall share. No state, no protocol of ours.
#![forbid(unsafe_code)]

mod linger;

pub use linger::Lingering;
