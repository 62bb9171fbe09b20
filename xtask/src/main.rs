//! Tasks of the repository that are more than a line of make: `cargo xtask guests`, `cargo xtask tidy`, `cargo xtask mutate`.

#![forbid(unsafe_code)]

mod guests;
mod mutate;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask guests | tidy | mutate [--trust-whole] [--scratch FOLDER] [WORD...]
  guests  builds the static programs that run inside a sandbox into target/guests
  tidy    checks what no compiler checks: crate arrows, documents, sources
  mutate  takes guards away, in a scratch copy of the last commit, and expects the test of each to fail; minutes for each build.
          WORD picks guards by their name or test; --trust-whole skips the run with all guards in place";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guests"] => guests::build(&workspace()),
        ["tidy"] => tidy::check(&workspace()),
        ["mutate", ref arguments @ ..] => mutate::Options::parse(arguments)
            .and_then(|options| mutate::run(&workspace(), &options)),
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
