//! Embeds the guest programs that `cargo xtask guests` made. A build without them works, but for `soulbox serve`.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let guests =
        env::var_os("SOULBOX_GUESTS_DIR").map_or_else(|| root.join("target/guests"), PathBuf::from);
    println!("cargo::rerun-if-env-changed=SOULBOX_GUESTS_DIR");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in ["envd", "launch", "interpreter"] {
        let source = guests.join(name);
        println!("cargo::rerun-if-changed={}", source.display());
        let bytes = fs::read(&source).unwrap_or_default();
        fs::write(out.join(name), bytes).expect("OUT_DIR is writable");
    }
}
