//! `soulbox doctor`: what this host can and cannot do, and the command that mends each gap.
//!
//! What can be tried is tried (a pool, an ID-mapped overlay, nftables, a veth pair, a sandbox that is saved and goes on), since a version number or a module list
//! tells little in a container. Nothing of it stays.

mod checks;
mod probe;
mod saving;
mod sweep;

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;

use super::Installation;
use crate::criu;
use crate::failure::Failure;

/// Say what this host can and cannot do, and what mends each gap
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    installation: Installation,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Unpack CRIU first, if there is none: some 10 MB of Debian packages, to /opt/soulbox/criu
    #[arg(long, conflicts_with = "sweep")]
    fix: bool,
    /// List instead what a crashed server of the data directory has left on this host
    #[arg(long)]
    sweep: bool,
    /// Remove what --sweep lists, sandboxes that still run included
    #[arg(long, requires = "sweep")]
    yes: bool,
}

/// One ability of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    /// Whether the server cannot do without it.
    required: bool,
    state: State,
    /// What was found, in a few words.
    detail: String,
    /// The command, or the deed, that mends it. Only where it is missing.
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Missing,
}

impl Check {
    fn required(name: &'static str, found: Found) -> Self {
        Self::new(name, true, found)
    }

    fn optional(name: &'static str, found: Found) -> Self {
        Self::new(name, false, found)
    }

    fn new(name: &'static str, required: bool, found: Found) -> Self {
        match found {
            Ok(detail) => Self {
                name,
                required,
                state: State::Ok,
                detail,
                mend: None,
            },
            Err((detail, mend)) => Self {
                name,
                required,
                state: State::Missing,
                detail,
                mend: Some(mend),
            },
        }
    }
}

/// What is there, or what is missing and what mends it.
type Found = Result<String, (String, String)>;

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Check],
}

/// Exit status 1 when something required is missing.
pub fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let settings = arguments.installation.settings(None)?;
    if arguments.sweep {
        print(&sweep::run(&settings, arguments.yes, arguments.json)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.fix {
        criu::unpack(settings.criu.as_deref())?;
    }
    let checks = checks::all(&settings);
    let ok = checks
        .iter()
        .all(|check| check.state == State::Ok || !check.required);
    let text = if arguments.json {
        let report = serde_json::to_string_pretty(&Report {
            ok,
            checks: &checks,
        });
        report.map_err(|error| Failure::new(error).hint("report this"))? + "\n"
    } else {
        table(&checks)
    };
    print(&text)?;
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::new(error).hint("stdout must be open"))
}

fn table(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let state = match (check.state, check.required) {
            (State::Ok, _) => "ok",
            (State::Missing, true) => "missing",
            (State::Missing, false) => "optional",
        };
        text.push_str(&format!("{state:<9} {:<26} {}\n", check.name, check.detail));
        if let Some(mend) = &check.mend {
            text.push_str(&format!("{:<9} {:<26} -> {mend}\n", "", ""));
        }
    }
    let missing = checks
        .iter()
        .filter(|check| check.state == State::Missing && check.required)
        .count();
    text.push_str(&match missing {
        0 => "this host can run soulbox serve\n".to_owned(),
        1 => "1 required ability is missing\n".to_owned(),
        more => format!("{more} required abilities are missing\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn sample() -> Vec<Check> {
        vec![
            Check::required("kernel", Ok("6.18.0".into())),
            Check::required(
                "nft",
                Err(("not installed".into(), "apt-get install nftables".into())),
            ),
            Check::optional(
                "criu",
                Err(("not installed".into(), "install CRIU 4.2 or newer".into())),
            ),
        ]
    }

    #[test]
    fn the_table_names_each_gap_with_its_cure() {
        expect![[r#"
            ok        kernel                     6.18.0
            missing   nft                        not installed
                                                 -> apt-get install nftables
            optional  criu                       not installed
                                                 -> install CRIU 4.2 or newer
            1 required ability is missing
        "#]]
        .assert_eq(&table(&sample()));
    }

    #[test]
    fn json_is_stable() {
        let checks = sample();
        expect![[r#"{"ok":false,"checks":[{"name":"kernel","required":true,"state":"ok","detail":"6.18.0","mend":null},{"name":"nft","required":true,"state":"missing","detail":"not installed","mend":"apt-get install nftables"},{"name":"criu","required":false,"state":"missing","detail":"not installed","mend":"install CRIU 4.2 or newer"}]}"#]]
        .assert_eq(&serde_json::to_string(&Report { ok: false, checks: &checks }).expect("json"));
    }
}
