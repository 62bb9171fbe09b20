//! Tasks of the repository that are more than a line of make: `cargo xtask guests`, `cargo xtask tidy`, `cargo xtask mutate`.

#![forbid(unsafe_code)]

mod guests;
mod mutate;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask guests | tidy | mutate [NAME...]
  guests  builds the static programs that run inside a sandbox into target/guests
  tidy    checks what no compiler checks: crate arrows, documents, sources
  mutate  takes away one guard at a time, in a scratch copy of the last commit, and expects its test to fail; minutes for each";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guests"] => guests::build(&workspace()),
        ["tidy"] => tidy::check(&workspace()),
        ["mutate", ref names @ ..] => mutate::run(&workspace(), names),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository: the folder above this crate's.
fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}
