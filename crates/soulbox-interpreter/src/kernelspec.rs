//! Kernels of Jupyter that are installed here: which there are, and what starts one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where installers put kernels for everybody, and `pip install --user` those of the sandbox's own user.
const FOLDERS: [&str; 3] = [
    "/home/user/.local/share/jupyter",
    "/usr/local/share/jupyter",
    "/usr/share/jupyter",
];
const CONNECTION_FILE: &str = "{connection_file}";
const RESOURCES: &str = "{resource_dir}";

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("cannot read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` describes no kernel")]
    Syntax {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{path}` names no program")]
    NoProgram { path: PathBuf },
}

/// A `kernel.json`. Source: <https://jupyter-client.readthedocs.io/en/stable/kernels.html#kernel-specs>
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Kernelspec {
    argv: Vec<String>,
    #[serde(default)]
    pub(crate) language: String,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    #[serde(default)]
    interrupt_mode: Option<String>,
    #[serde(skip)]
    folder: PathBuf,
}

impl Kernelspec {
    pub(crate) fn read(path: &Path) -> Result<Self, SpecError> {
        let text = fs::read(path).map_err(|source| SpecError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut spec: Self = serde_json::from_slice(&text).map_err(|source| SpecError::Syntax {
            path: path.to_owned(),
            source,
        })?;
        if spec.argv.is_empty() {
            return Err(SpecError::NoProgram {
                path: path.to_owned(),
            });
        }
        spec.folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(spec)
    }

    /// The program and its arguments.
    pub(crate) fn command(&self, connection_file: &Path) -> Vec<String> {
        let (file, folder) = (
            connection_file.to_string_lossy(),
            self.folder.to_string_lossy(),
        );
        self.argv
            .iter()
            .map(|argument| {
                argument
                    .replace(CONNECTION_FILE, &file)
                    .replace(RESOURCES, &folder)
            })
            .collect()
    }

    /// By a message to its control socket, and not by SIGINT.
    pub(crate) fn interrupts_by_message(&self) -> bool {
        self.interrupt_mode.as_deref() == Some("message")
    }
}

/// The `kernel.json` of the kernel with this name in lower case, else of the first one for a language of this name.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let more = std::env::var_os("JUPYTER_PATH").unwrap_or_default();
    find_in(&folders(&more, &home), name)
}

/// In the order in which Jupyter looks.
fn folders(jupyter_path: &OsString, home: &OsString) -> Vec<PathBuf> {
    let named = std::env::split_paths(jupyter_path).filter(|path| path.is_absolute());
    let own = Some(Path::new(home).join(".local/share/jupyter")).filter(|path| path.is_absolute());
    named
        .chain(own)
        .chain(FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join("kernels"))
        .collect()
}

fn find_in(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    let mut installed = Vec::new();
    for folder in folders {
        // A folder that is not there has no kernels.
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        found.sort();
        installed.extend(found);
    }
    let file = |folder: &PathBuf| Some(folder.join("kernel.json")).filter(|path| path.is_file());
    installed
        .iter()
        .filter(|folder| {
            folder
                .file_name()
                .is_some_and(|own| own.to_string_lossy().to_lowercase() == name)
        })
        .find_map(file)
        .or_else(|| {
            installed.iter().filter_map(file).find(|path| {
                Kernelspec::read(path).is_ok_and(|spec| spec.language.to_lowercase() == name)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(folder: &Path, name: &str, text: &str) {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("kernel.json"), text).unwrap();
    }

    #[test]
    fn a_name_goes_before_a_language_and_a_folder_before_the_next() {
        let (own, system) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        install(own.path(), "ir", r#"{"argv": ["R"], "language": "R"}"#);
        install(own.path(), "broken", "{");
        install(
            system.path(),
            "Julia-1.9",
            r#"{"argv": ["julia"], "language": "julia"}"#,
        );
        install(
            system.path(),
            "ir",
            r#"{"argv": ["other"], "language": "R"}"#,
        );
        let folders = [
            own.path().to_owned(),
            PathBuf::from("/nowhere"),
            system.path().to_owned(),
        ];
        for (name, found) in [
            ("ir", Some(own.path().join("ir"))),
            ("r", Some(own.path().join("ir"))),
            ("julia", Some(system.path().join("Julia-1.9"))),
            ("julia-1.9", Some(system.path().join("Julia-1.9"))),
            ("cobol", None),
            ("../ir", None),
        ] {
            let found = found.map(|folder| folder.join("kernel.json"));
            assert_eq!(find_in(&folders, name), found, "{name}");
        }
    }

    #[test]
    fn the_command_has_the_paths_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"argv": ["{resource_dir}/run", "--file={connection_file}"], "interrupt_mode": "message"}"#;
        install(folder.path(), "one", text);
        let spec = Kernelspec::read(&folder.path().join("one/kernel.json")).unwrap();
        let program = format!("{}/one/run", folder.path().display());
        assert_eq!(spec.command(Path::new("/c")), [&program, "--file=/c"]);
        assert!(spec.interrupts_by_message());
        install(folder.path(), "none", r#"{"argv": []}"#);
        let error = Kernelspec::read(&folder.path().join("none/kernel.json")).unwrap_err();
        assert!(error.to_string().contains("names no program"), "{error}");
    }
}
