//! The launcher and init of a sandbox; see `soulbox_runtime::launch`.
#![forbid(unsafe_code)]

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(soulbox_runtime::launch::main(&arguments));
}
