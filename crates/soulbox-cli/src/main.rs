#![forbid(unsafe_code)]
mod rpc;

fn main() {}
