//! Runs mmdebstrap on a recipe: Debian, the recipe's packages, its files, its script.
//!
//! The performer is a straight list: arguments are made by [`arguments`], a pure function, so that a test can
//! read them. mmdebstrap undoes its own mounts when it fails or gets a signal of its terminal.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::recipe::Recipe;
use crate::unsynced;

const PROGRAM: &str = "mmdebstrap";
/// How long mmdebstrap gets to give back its mounts after a SIGTERM.
const GRACE: Duration = Duration::from_secs(20);

/// Why there is no Debian in the folder.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("mmdebstrap is not installed")]
    Missing,
    #[error("failed to start mmdebstrap")]
    Start(#[source] io::Error),
    #[error("failed to write `{path}`")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to wait for mmdebstrap")]
    Wait(#[source] io::Error),
    #[error("mmdebstrap did not finish within {} s; its log is `{log}`", within.as_secs())]
    TimedOut { within: Duration, log: PathBuf },
    #[error("mmdebstrap failed: {said}; its log is `{log}`")]
    Failed { said: String, log: PathBuf },
}

/// Folders and files of one run; all paths absolute.
#[derive(Debug)]
pub struct Places<'a> {
    /// The recipe's folder.
    pub recipe: &'a Path,
    /// The new root, an empty folder.
    pub root: &'a Path,
    /// Debian packages that earlier runs fetched; filled by this run.
    pub debs: &'a Path,
    /// Tarballs of the recipe's npm packages.
    pub npm: &'a Path,
    /// Certificates to trust beyond Debian's.
    pub certificates: &'a Path,
    /// Everything that mmdebstrap says.
    pub log: &'a Path,
}

/// Fills `places.root`. Needs root. Blocks for at most `within` and the grace of the end.
/// `progress` hears the stages as mmdebstrap names them.
pub fn run(
    recipe: &Recipe,
    places: &Places<'_>,
    within: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<(), BootstrapError> {
    fs::create_dir_all(places.debs).map_err(|source| BootstrapError::Write {
        path: places.debs.to_owned(),
        source,
    })?;
    let wrote = |source| BootstrapError::Write {
        path: places.log.to_owned(),
        source,
    };
    let mut log = File::create(places.log).map_err(wrote)?;
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments(recipe, places))
        .envs(environment(places))
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(wrote)?)
        .stderr(Stdio::piped());
    let mut child = unsynced::spawn(&mut command).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BootstrapError::Missing,
        _ => BootstrapError::Start(source),
    })?;
    let lines = reader(child.stderr.take());
    let deadline = Instant::now() + within;
    let mut timed_out = false;
    let mut last_words = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                writeln!(log, "{line}").map_err(wrote)?;
                if let Some(stage) = stage(&line) {
                    progress(stage);
                } else if line.starts_with("E: ") || line.contains("error") {
                    last_words.push(line);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                timed_out = true;
                end(&mut child)?;
                break;
            }
        }
    }
    let status = child.wait().map_err(BootstrapError::Wait)?;
    if timed_out {
        return Err(BootstrapError::TimedOut {
            within,
            log: places.log.to_owned(),
        });
    }
    if !status.success() {
        let said = last_words
            .first()
            .cloned()
            .unwrap_or_else(|| status.to_string());
        return Err(BootstrapError::Failed {
            said,
            log: places.log.to_owned(),
        });
    }
    Ok(())
}

/// The stage that a line announces; hooks are announced with their whole text, which tells an operator nothing.
fn stage(line: &str) -> Option<&str> {
    line.strip_prefix("I: ")
        .filter(|stage| !stage.starts_with("skipping") && !stage.starts_with("running --"))
}

/// Lines of the child's stderr; the channel ends with the last process that holds the pipe.
fn reader(stderr: Option<std::process::ChildStderr>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::sync_channel(64);
    if let Some(stderr) = stderr {
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                if send
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
    }
    receive
}

/// SIGTERM first, because mmdebstrap has mounts to give back.
fn end(child: &mut std::process::Child) -> Result<(), BootstrapError> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM).map_err(|errno| BootstrapError::Wait(errno.into()))?;
    }
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        if child.try_wait().map_err(BootstrapError::Wait)?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().map_err(BootstrapError::Wait)
}

/// What the hooks need; a hook is a line of shell, so paths travel in the environment, not in its text.
fn environment(places: &Places<'_>) -> [(&'static str, PathBuf); 4] {
    [
        ("SOULBOX_RECIPE", places.recipe.to_owned()),
        ("SOULBOX_DEBS", places.debs.to_owned()),
        ("SOULBOX_NPM_DIR", places.npm.to_owned()),
        ("SOULBOX_EXTRA_CA", places.certificates.to_owned()),
    ]
}

fn arguments(recipe: &Recipe, places: &Places<'_>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = [
        "--mode=root",
        "--format=directory",
        "--variant=minbase",
        // Kept so that the packages can be put into the cache; the script removes them from the root.
        "--skip=essential/unlink",
        "--skip=cleanup/apt",
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=Acquire::Retries \"3\"",
        // Nothing here survives a crash of the build anyway.
        "--dpkgopt=force-unsafe-io",
        "--setup-hook=mkdir -p \"$1/var/cache/apt/archives\"; \
         find \"$SOULBOX_DEBS\" -name '*.deb' -exec cp -t \"$1/var/cache/apt/archives\" {} +",
        "--customize-hook=find \"$1/var/cache/apt/archives\" -name '*.deb' -exec cp -u -t \"$SOULBOX_DEBS\" {} +",
    ]
    .map(OsString::from)
    .into();
    let packages: Vec<&str> = recipe.packages.iter().map(String::as_str).collect();
    if !packages.is_empty() {
        arguments.push(format!("--include={}", packages.join(",")).into());
    }
    if let Some(files) = &recipe.files {
        arguments.push(
            // Modes and owners are ours to say: those on disk depend on the umask and the user of whoever cloned.
            format!(
                "--customize-hook=tar -C \"$SOULBOX_RECIPE/{files}\" --mode=u=rwX,go=rX --owner=0 --group=0 -cf - . \
                 | tar -C \"$1\" --no-overwrite-dir -xpf -"
            )
            .into(),
        );
    }
    if let Some(script) = &recipe.customize {
        arguments.push(format!("--customize-hook=sh \"$SOULBOX_RECIPE/{script}\" \"$1\"").into());
    }
    arguments.push(recipe.suite.clone().into());
    arguments.push(places.root.into());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Defaults;

    fn recipe() -> Recipe {
        Recipe {
            name: "base".to_owned(),
            parent: None,
            python: None,
            suite: "bookworm".to_owned(),
            packages: ["jq".to_owned(), "bash".to_owned()].into(),
            npm: Default::default(),
            files: Some("files".to_owned()),
            customize: Some("customize.sh".to_owned()),
            ready_command: None,
            defaults: Defaults {
                cpu_count: 1,
                memory_mib: 512,
                disk_mib: 512,
                user: "user".to_owned(),
                workdir: "/home/user".to_owned(),
            },
        }
    }

    fn places(root: &Path) -> Places<'_> {
        Places {
            recipe: Path::new("/recipe"),
            root,
            debs: Path::new("/cache/debs"),
            npm: Path::new("/npm"),
            certificates: Path::new("/certificates"),
            log: Path::new("/log"),
        }
    }

    #[test]
    fn packages_files_and_script_become_arguments_in_order() {
        let arguments = arguments(&recipe(), &places(Path::new("/root tree")));
        let text: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
        let tail = &text[text.len() - 5..];
        expect_test::expect![[r#"
            --include=bash,jq
            --customize-hook=tar -C "$SOULBOX_RECIPE/files" --mode=u=rwX,go=rX --owner=0 --group=0 -cf - . | tar -C "$1" --no-overwrite-dir -xpf -
            --customize-hook=sh "$SOULBOX_RECIPE/customize.sh" "$1"
            bookworm
            /root tree"#]]
        .assert_eq(&tail.join("\n"));
    }

    #[test]
    fn a_failed_run_names_the_reason_and_keeps_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        // Not empty: mmdebstrap refuses it before it touches anything.
        fs::write(folder.path().join("occupied"), "").unwrap();
        let debs = folder.path().join("debs");
        let places = Places {
            log: &log,
            debs: &debs,
            ..places(folder.path())
        };
        let error = run(&recipe(), &places, Duration::from_secs(60), &mut |_| ()).unwrap_err();
        assert!(
            matches!(&error, BootstrapError::Failed { said, .. } if said.starts_with("E: ")),
            "{error}"
        );
        assert!(fs::read_to_string(&log).unwrap().contains("E: "));
    }
}
