//! A sandbox that goes on from a moment from which others go on too: as a fork, from a snapshot, or after a rollback.
//!
//! Programs in it have the same random numbers ahead of them as those in the others. The kernel's own are fresh, so each copy has a
//! *generation* in a file, which programs may look at or watch, and hooks that tell those that do neither.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use soulbox_envd_proto::LogLevel;
use soulbox_sys::process::{Credentials, Program, Session};

use crate::cause::chain;
use crate::descriptor;
use crate::log::Log;
use crate::process::{DEFAULT_PATH, Lifetime, reap, wait};
use crate::settings::Settings;

const FOLDER: &str = "/run/soulbox";
const GENERATION: &str = "/run/soulbox/generation";
/// What a new process finds in its environment, for programs that were started before they were told. For root alone.
const VARIABLES: &str = "/run/soulbox/variables.json";
/// What the hooks of the latest copy have printed.
const PRINTED: &str = "/run/soulbox/on-fork.log";
const HOOKS: &str = "/etc/soulbox/on-fork.d";
/// One hook, and all of them: whoever asked for the copy waits, for ten seconds at most.
const HOOK_WITHIN: Duration = Duration::from_secs(3);
const ALL_WITHIN: Duration = Duration::from_secs(6);

/// Makes the folder of the generation, so that programs can watch it before there is one.
pub(crate) fn prepare() -> io::Result<()> {
    fs::create_dir_all(FOLDER)
}

/// Writes variables and generation and runs the hooks, in the order of their names. Hooks that fail are noted in the log, and the rest run.
pub(crate) async fn tell(settings: &Settings, log: &Log, generation: &str) -> io::Result<()> {
    prepare()?;
    let variables = serde_json::to_string(&settings.variables())?;
    write(Path::new(VARIABLES), &variables, 0o600)?;
    write(Path::new(GENERATION), generation, 0o444)?;
    let hooks = match hooks(Path::new(HOOKS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        hooks => hooks?,
    };
    let printed = fs::File::create(PRINTED)?;
    let end = Instant::now() + ALL_WITHIN;
    for hook in hooks {
        let left = end.saturating_duration_since(Instant::now());
        let outcome = run(&hook, settings, generation, &printed, left.min(HOOK_WITHIN)).await;
        let name = hook.file_name().unwrap_or_default().to_string_lossy();
        let fields = |outcome| [("hook", name.into_owned()), ("outcome", outcome)];
        match outcome {
            Ok(()) => {
                let fields = fields("done".to_owned());
                log.note(LogLevel::Info, "fork", "fork_hook", fields);
            }
            Err(why) => log.note(LogLevel::Warn, "fork", "fork_hook_failed", fields(why)),
        }
    }
    Ok(())
}

/// Renamed into place: whoever watches sees the old or the new one, never a part.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let text = format!("{text}\n");
    if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(());
    }
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

/// Executable files, by name. Those whose name begins with a dot are none.
fn hooks(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut hooks = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Followed: a link to a program is a hook.
        let executable = fs::metadata(entry.path())
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        if executable && !hidden {
            hooks.push(entry.path());
        }
    }
    hooks.sort();
    Ok(hooks)
}

async fn run(
    hook: &Path,
    settings: &Settings,
    generation: &str,
    printed: &fs::File,
    within: Duration,
) -> Result<(), String> {
    if within.is_zero() {
        return Err("there was no time left for it".to_owned());
    }
    let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
    let path = hook.to_str().ok_or("its name is no text")?;
    let mut variables: BTreeMap<String, String> = [
        ("PATH", DEFAULT_PATH),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    variables.extend(settings.variables());
    variables.insert("SOULBOX_GENERATION".to_owned(), generation.to_owned());
    let environment = variables
        .iter()
        .map(|(name, value)| text(&format!("{name}={value}")))
        .collect::<Result<_, _>>()?;
    let output = || printed.try_clone().map_err(|error| error.to_string());
    let program = Program {
        candidates: vec![text(path)?],
        arguments: vec![text(path)?],
        environment,
        working_directory: c"/".to_owned(),
        credentials: Credentials {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
        },
        name: path.to_owned(),
    };
    let (stdout, stderr) = (output()?.into(), output()?.into());
    let spawned =
        soulbox_sys::process::spawn(program, Session::Inherited, Stdio::null(), stdout, stderr);
    let spawned = spawned.map_err(|error| chain(&error))?;
    let pidfd = descriptor::register(spawned.pidfd).map_err(|error| error.to_string())?;
    let ended = tokio::time::timeout(within, wait(&pidfd)).await;
    if ended.is_err() {
        // One that has ended just now needs no signal.
        _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        wait(&pidfd).await;
    }
    reap(&pidfd);
    match ended {
        Ok(exit) => match exit.event(Lifetime::Within).error {
            None => Ok(()),
            Some(why) => Err(why),
        },
        Err(_) => Err(format!("it was killed after {} s", within.as_secs_f32())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_what_can_be_executed_in_the_order_of_names() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, mode) in [
            ("20-b", 0o755),
            ("10-a", 0o700),
            ("30-text", 0o644),
            (".hidden", 0o755),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, "").expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        }
        fs::create_dir(folder.path().join("40-folder")).expect("mkdir");
        let found = hooks(folder.path()).expect("reads");
        let names: Vec<_> = found.iter().filter_map(|it| it.file_name()).collect();
        assert_eq!(names, ["10-a", "20-b"]);
        assert!(hooks(&folder.path().join("none")).is_err());
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("generation");
        for text in ["one", "two"] {
            write(&path, text, 0o444).expect("writes");
            assert_eq!(
                fs::read_to_string(&path).expect("reads"),
                format!("{text}\n")
            );
        }
    }
}
