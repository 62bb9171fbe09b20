//! The daemon as clients see it: the real binary, started as root on a loopback port, spoken to over HTTP.

mod daemon;
mod files;
mod filesystem;
mod init;
mod load;
mod memory;
mod process;
mod transport;
