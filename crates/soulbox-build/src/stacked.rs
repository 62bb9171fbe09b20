//! A recipe on top of another template: what its files and script change becomes one layer above the parent's.
//!
//! Everything happens in a mount namespace of the script's own, in which the parent's layers and the draft are one overlay. So
//! nothing is mounted when the script has ended, however it ended.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::bottom::{self, BottomError, TreeSize};
use crate::recipe::Recipe;
use crate::unsynced;

/// The script of a recipe ends by itself; between looks at whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// How long a script gets to end after a SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// Mounts, copies the files, runs the recipe's script. Paths travel in the environment, not in this text; layers by names
/// that need no quoting in an option of mount(8), relative to the folder that it begins in.
const PREPARE: &str = r#"set -eu
mkdir "$SOULBOX_DRAFT/.upper" "$SOULBOX_DRAFT/.work" "$SOULBOX_DRAFT/.root"
chmod 755 "$SOULBOX_DRAFT/.upper"
mount -t overlay -o "lowerdir=$SOULBOX_LOWER,upperdir=$SOULBOX_DRAFT_NAME/.upper,workdir=$SOULBOX_DRAFT_NAME/.work,redirect_dir=off,metacopy=off,index=off" overlay "$SOULBOX_DRAFT/.root"
cd /
root=$SOULBOX_DRAFT/.root
mount -t proc proc "$root/proc"
if [ "$SOULBOX_FILES" ]; then
    tar -C "$SOULBOX_FILES" --mode=u=rwX,go=rX --owner=0 --group=0 -cf - . | tar -C "$root" --no-overwrite-dir -xpf -
fi
[ ! "$SOULBOX_SCRIPT" ] || sh "$SOULBOX_SCRIPT" "$root"
"#;

/// Why there is no layer.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    #[error("failed to start the recipe's script")]
    Start(#[source] io::Error),
    #[error("failed to wait for the recipe's script")]
    Wait(#[source] io::Error),
    #[error("the recipe's script did not finish within {} s; its log is `{log}`", within.as_secs())]
    TimedOut { within: Duration, log: PathBuf },
    #[error("the recipe's script failed ({status}): {said}; its log is `{log}`")]
    Failed {
        status: ExitStatus,
        said: String,
        log: PathBuf,
    },
    #[error("failed to change `{path}`")]
    Move {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the layer cannot be used")]
    Tree(#[from] BottomError),
}

/// Folders and files of one run; all paths absolute.
#[derive(Debug)]
pub struct Places<'a> {
    /// The recipe's folder.
    pub recipe: &'a Path,
    /// The parent's layers, lowest first. All lie in one folder, and the draft is on the same file system.
    pub layers: &'a [PathBuf],
    /// The new layer, an empty folder.
    pub draft: &'a Path,
    /// Tarballs of the recipe's npm packages, its Debian packages, and wheels of its Python packages.
    pub npm: &'a Path,
    pub debs: &'a Path,
    pub wheels: &'a Path,
    pub log: &'a Path,
}

/// Fills `places.draft`. Needs root. Blocks for at most `within`, and the grace of an end.
pub fn run(recipe: &Recipe, places: &Places<'_>, within: Duration) -> Result<TreeSize, StackError> {
    let folder = places.layers.first().and_then(|layer| layer.parent());
    let folder = folder.unwrap_or(Path::new("/"));
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    // overlayfs wants the topmost first.
    let lower: Vec<String> = places.layers.iter().rev().map(|path| name(path)).collect();
    let drafts = places.draft.parent().map(name).unwrap_or_default();
    let part = |name: &Option<String>| {
        name.as_ref()
            .map(|name| places.recipe.join(name))
            .unwrap_or_default()
    };
    let log = File::create(places.log).map_err(StackError::Start)?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-c",
            PREPARE,
        ])
        .current_dir(folder)
        .env("SOULBOX_DRAFT", places.draft)
        .env(
            "SOULBOX_DRAFT_NAME",
            format!("../{drafts}/{}", name(places.draft)),
        )
        .env("SOULBOX_LOWER", lower.join(":"))
        .env("SOULBOX_FILES", part(&recipe.files))
        .env("SOULBOX_SCRIPT", part(&recipe.customize))
        .env("SOULBOX_NPM_DIR", places.npm)
        .env("SOULBOX_DEBS", places.debs)
        .env("SOULBOX_WHEELS", places.wheels)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(StackError::Start)?)
        .stderr(log);
    let mut child = unsynced::spawn(&mut command).map_err(StackError::Start)?;
    let status = finished(&mut child, within)?.ok_or_else(|| StackError::TimedOut {
        within,
        log: places.log.to_owned(),
    })?;
    if !status.success() {
        let said = fs::read_to_string(places.log).unwrap_or_default();
        return Err(StackError::Failed {
            status,
            said: said.lines().last().unwrap_or_default().to_owned(),
            log: places.log.to_owned(),
        });
    }
    unwrap(places.draft)?;
    Ok(bottom::measure(places.draft)?)
}

/// How it ended; `None`: it did not in time, and was killed.
fn finished(child: &mut Child, within: Duration) -> Result<Option<ExitStatus>, StackError> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().map_err(StackError::Wait)? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(LOOK);
    }
    if let Some(pid) = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|errno| StackError::Wait(errno.into()))?;
    }
    let last = Instant::now() + GRACE;
    while Instant::now() < last {
        if child.try_wait().map_err(StackError::Wait)?.is_some() {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
    child.kill().map_err(StackError::Wait)?;
    child.wait().map_err(StackError::Wait)?;
    Ok(None)
}

/// Makes what was written the root of the layer.
fn unwrap(draft: &Path) -> Result<(), StackError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StackError::Move { path, source }
    };
    let (upper, work, root) = (
        draft.join(".upper"),
        draft.join(".work"),
        draft.join(".root"),
    );
    fs::remove_dir_all(&work).map_err(failed(&work))?;
    fs::remove_dir(&root).map_err(failed(&root))?;
    for entry in fs::read_dir(&upper).map_err(failed(&upper))? {
        let entry = entry.map_err(failed(&upper))?;
        let target = draft.join(entry.file_name());
        fs::rename(entry.path(), &target).map_err(failed(&target))?;
    }
    fs::remove_dir(&upper).map_err(failed(&upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Defaults;

    fn recipe(script: &str, folder: &Path) -> Recipe {
        fs::write(folder.join("customize.sh"), script).unwrap();
        Recipe {
            name: "above".to_owned(),
            parent: Some("below".to_owned()),
            suite: String::new(),
            packages: Default::default(),
            npm: Default::default(),
            python: None,
            files: None,
            customize: Some("customize.sh".to_owned()),
            ready_command: None,
            defaults: Defaults {
                cpu_count: 1,
                memory_mib: 512,
                disk_mib: 512,
                user: "user".to_owned(),
                workdir: "/".to_owned(),
            },
        }
    }

    /// What the script leaves on top of a parent with the files `kept` and `gone`.
    fn stacked(script: &str) -> (tempfile::TempDir, Result<TreeSize, StackError>) {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (layer, draft) = (
            folder.path().join("layers/aa"),
            folder.path().join("drafts/1"),
        );
        fs::create_dir_all(layer.join("proc")).unwrap();
        fs::create_dir_all(&draft).unwrap();
        for name in ["kept", "gone"] {
            fs::write(layer.join(name), name).unwrap();
        }
        let recipe = recipe(script, folder.path());
        let log = folder.path().join("log");
        let places = Places {
            recipe: folder.path(),
            layers: &[layer],
            draft: &draft,
            npm: Path::new("/nowhere"),
            debs: Path::new("/nowhere"),
            wheels: Path::new("/nowhere"),
            log: &log,
        };
        let result = run(&recipe, &places, Duration::from_secs(60));
        (folder, result)
    }

    #[test]
    fn a_layer_has_what_the_script_changed() {
        let (folder, result) =
            stacked("cd \"$1\" && cat kept > new && rm gone && test -e proc/self/stat");
        assert_eq!(result.unwrap().entries, 2);
        let draft = folder.path().join("drafts/1");
        assert_eq!(fs::read_to_string(draft.join("new")).unwrap(), "kept");
        let mut names: Vec<_> = fs::read_dir(&draft)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["gone", "new"], "and a mark for what is gone");
    }

    #[test]
    fn a_failed_script_says_its_last_words() {
        let (_folder, result) = stacked("echo out of cheese >&2; exit 3");
        let error = result.unwrap_err();
        assert!(
            matches!(&error, StackError::Failed { said, .. } if said == "out of cheese"),
            "{error}"
        );
    }
}
