//! Builds envd, the launcher and the code interpreter, static, into `target/guests`, from where `soulbox` embeds them.
//!
//! They run on whatever root a template brings, so they must not need its C library: static glibc, the
//! host's own target, in a target folder of their own because RUSTFLAGS differ from everything else's.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Package, its binary, the name under target/guests.
const GUESTS: [(&str, &str, &str); 3] = [
    ("soulbox-envd", "soulbox-envd", "envd"),
    ("soulbox-runtime", "soulbox-launch", "launch"),
    ("soulbox-interpreter", "soulbox-interpreter", "interpreter"),
];

pub(crate) fn build(workspace: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = host_target()?;
    let built = workspace.join("target/guests-build");
    let mut command = Command::new(cargo);
    command.current_dir(workspace).args([
        "build",
        "--profile",
        "guest",
        "--target",
        &target,
        "--target-dir",
    ]);
    command.arg(&built);
    for (package, binary, _) in GUESTS {
        command.args(["--package", package, "--bin", binary]);
    }
    // With --target, RUSTFLAGS reach only what ships, not build scripts.
    command
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command.status().context("failed to start cargo")?;
    ensure!(status.success(), "building the guest programs failed");

    let out = workspace.join("target/guests");
    fs::create_dir_all(&out).with_context(|| format!("failed to make `{}`", out.display()))?;
    for (_, binary, name) in GUESTS {
        let from = built.join(&target).join("guest").join(binary);
        let bytes =
            fs::read(&from).with_context(|| format!("failed to read `{}`", from.display()))?;
        ensure_static(&bytes).with_context(|| format!("`{}`", from.display()))?;
        let to = out.join(name);
        // An untouched file keeps its time, so that nothing that embeds it is built again.
        if fs::read(&to).ok().as_deref() != Some(&bytes[..]) {
            // A new file, since the old one may be running.
            let draft = out.join(format!("{name}.new"));
            fs::copy(&from, &draft)
                .and_then(|_| fs::rename(&draft, &to))
                .with_context(|| format!("failed to write `{}`", to.display()))?;
        }
        eprintln!("{name}: {} KiB", bytes.len() / 1024);
    }
    Ok(())
}

fn host_target() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .context("failed to start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(target) = text.lines().find_map(|line| line.strip_prefix("host: ")) else {
        bail!("rustc -vV names no host");
    };
    Ok(target.to_owned())
}

/// Refuses an ELF file that asks for a dynamic loader (PT_INTERP, elf(5)).
fn ensure_static(elf: &[u8]) -> anyhow::Result<()> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| {
        elf.get(at..at + 2)
            .map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))
    };
    let word = |at: usize| {
        elf.get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
    };
    let long = |at: usize| {
        elf.get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map(u64::from_le_bytes)
    };
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "is no 64-bit little-endian ELF file"
    );
    // e_phoff, e_phentsize, e_phnum of Elf64_Ehdr.
    let (Some(table), Some(size), Some(count)) = (long(32), half(54), half(56)) else {
        bail!("has no whole ELF header");
    };
    let table = usize::try_from(table)?;
    for index in 0..count {
        match word(table + index * size) {
            None => bail!("has a program header outside of the file"),
            Some(PT_INTERP) => bail!("needs a dynamic loader, but must be static"),
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(program_header: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&program_header.to_le_bytes());
        bytes
    }

    #[test]
    fn only_files_without_an_interpreter_are_static() {
        assert!(ensure_static(&elf(1)).is_ok());
        assert!(
            ensure_static(&elf(3))
                .unwrap_err()
                .to_string()
                .contains("dynamic loader")
        );
        assert!(ensure_static(&elf(1)[..66]).is_err());
        assert!(ensure_static(b"#!/bin/sh").is_err());
    }

    #[test]
    fn this_very_test_is_dynamic() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(ensure_static(&own).is_err());
    }
}
