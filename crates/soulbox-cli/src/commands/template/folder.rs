//! Folders of templates: made, and looked at without a server.

use std::fs;
use std::path::Path;

use anyhow::anyhow;
use soulbox_client::{BuildError, ContextError, Mistake, Project, TemplateConfig};

use super::print;
use crate::failure::Failure;

/// A folder with this file is a template of an installation, not of a server.
pub(super) const RECIPE: &str = "recipe.toml";

const DOCKERFILE: &str = "FROM e2bdev/base\n\nUSER user\nWORKDIR /home/user\nRUN echo \"Hello from my template\" > hello.txt\n";
const IGNORED: &str = ".dockerignore\nsoulbox.toml\nDockerfile\n.git\n";

/// Makes the folder, and files in it that a build takes as they are.
pub(super) fn init(folder: &Path, name: Option<&str>) -> Result<(), Failure> {
    // `.` has a name too.
    let whole = std::path::absolute(folder).map_err(|error| unwritten(folder, error))?;
    let own = whole.file_name().and_then(|it| it.to_str()).map(plain);
    let name = name.map(str::to_owned).or(own).unwrap_or_default();
    let config = format!(
        "# Every key: soulbox template schema\ntemplate_name = \"{name}\"\n# start_cmd = \"python3 -m http.server 8000\"\n# ready_cmd = \"curl --silent --fail localhost:8000\"\ncpu_count = 2\nmemory_mb = 1024\n"
    );
    if TemplateConfig::read(&config).is_err() {
        let cause = anyhow!("`{name}` is not a template's name");
        return Err(Failure::usage(cause).hint("give one of a-z, 0-9, - and _ with --name"));
    }
    fs::create_dir_all(folder).map_err(|error| unwritten(folder, error))?;
    let mut entries = fs::read_dir(folder).map_err(|error| unwritten(folder, error))?;
    if entries.next().is_some() {
        let cause = anyhow!("`{}` is not empty", folder.display());
        return Err(Failure::new(cause).hint("name a folder that is not there yet"));
    }
    for (file, text) in [
        ("soulbox.toml", config.as_str()),
        ("Dockerfile", DOCKERFILE),
        (".dockerignore", IGNORED),
    ] {
        let path = folder.join(file);
        fs::write(&path, text).map_err(|error| unwritten(&path, error))?;
        print(&format!("{}\n", path.display()))?;
    }
    eprintln!("next: soulbox template build {}", folder.display());
    Ok(())
}

/// Says what is wrong, a line for each mistake.
pub(super) fn validate(path: &Path) -> Result<(), Failure> {
    if path.is_file() {
        let text = fs::read_to_string(path).map_err(|error| unread(path, error))?;
        return TemplateConfig::read(&text)
            .map(|_| eprintln!("{}: no mistakes", path.display()))
            .map_err(|mistakes| mistaken(path, &mistakes));
    }
    let project = Project::open(path, None).map_err(build_failure)?;
    for warning in &project.recipe.warnings {
        eprintln!("warning: Dockerfile {warning}");
    }
    project.steps().map_err(build_failure)?;
    eprintln!("{}: no mistakes", path.display());
    Ok(())
}

/// The failure that an error of a build is, with what helps against it.
pub(super) fn build_failure(error: BuildError) -> Failure {
    match error {
        BuildError::Config { path, mistakes } => mistaken(&path, &mistakes),
        BuildError::NoName => {
            Failure::usage(error).hint("give --name, or template_name in soulbox.toml")
        }
        BuildError::NoDockerfile { .. } => {
            Failure::usage(error).hint("write one, or begin with soulbox template init")
        }
        BuildError::Dockerfile { .. } | BuildError::Read { .. } => Failure::usage(error),
        BuildError::Files(ContextError::Nothing { .. } | ContextError::Outside { .. }) => {
            Failure::usage(error).hint("see COPY in the Dockerfile, and .dockerignore")
        }
        BuildError::Files(_) => Failure::new(error),
        BuildError::Client(error) => super::server::refused(error),
        BuildError::Failed { ref step, .. } => {
            let hint = match step.as_deref() {
                Some("base") => "the image after FROM is at fault".to_owned(),
                Some("finalize") => "the start or the ready command is at fault".to_owned(),
                Some(number) => format!("step {number} of the log above is at fault"),
                None => "the log above says more".to_owned(),
            };
            Failure::new(error).hint(hint)
        }
    }
}

/// All mistakes, the last as the failure; the lines before it as it would be printed.
fn mistaken(path: &Path, mistakes: &[Mistake]) -> Failure {
    let line = |mistake: &Mistake| format!("{} {mistake}", path.display());
    let (last, before) = match mistakes.split_last() {
        Some((last, before)) => (line(last), before),
        None => (format!("{} is wrong", path.display()), mistakes),
    };
    for mistake in before {
        eprintln!("error: {}", line(mistake));
    }
    Failure::usage(anyhow!(last)).hint("soulbox template schema describes the keys")
}

/// A folder's name as a template's.
fn plain(name: &str) -> String {
    let plain = |it: char| match it.to_ascii_lowercase() {
        it if it.is_ascii_alphanumeric() || it == '_' => it,
        _ => '-',
    };
    name.chars().map(plain).collect()
}

fn unread(path: &Path, error: std::io::Error) -> Failure {
    Failure::usage(anyhow!(error).context(format!("failed to read `{}`", path.display())))
}

fn unwritten(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(anyhow!(error).context(format!("failed to write `{}`", path.display())))
}
