//! A recipe: the folder that describes a template, read and digested.
//!
//! The digest covers every byte that can change the result: all files of the folder with their modes, the
//! version of our own bottom layer, and the certificates that this host adds. It does not cover what the
//! package mirrors serve on the day; a rebuild for new packages is asked for by changing the recipe.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::bottom::BOTTOM_VERSION;
use soulbox_pool::LayerDigest;

/// The name of the description in a recipe's folder.
pub const RECIPE_FILE: &str = "recipe.toml";

/// Why a folder is not a recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("failed to read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is not a recipe")]
    Syntax {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("`{path}`: {mistake}")]
    Invalid { path: PathBuf, mistake: String },
}

/// The description, as it stands in `recipe.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The alias of the template: `[a-z0-9_-]`, at most 64 characters.
    pub name: String,
    /// The template that this one is a layer on; without, the recipe is a whole Debian.
    #[serde(default)]
    pub parent: Option<String>,
    /// The Debian suite; not with a parent, which has one.
    #[serde(default)]
    pub suite: String,
    /// Debian packages, on top of the essential ones. With a parent they are given to the customize script, each without what it
    /// depends on.
    #[serde(default)]
    pub packages: BTreeSet<String>,
    /// Packages of npm, `name@version`, given to the customize script as tarballs.
    #[serde(default)]
    pub npm: BTreeSet<String>,
    /// A file of the recipe with Python packages, `name==version` each, given to the customize script as wheels; only with a
    /// parent.
    #[serde(default)]
    pub python: Option<String>,
    /// A folder of the recipe that is copied over the root.
    #[serde(default)]
    pub files: Option<String>,
    /// A script of the recipe, run on the host with the root as its argument.
    #[serde(default)]
    pub customize: Option<String>,
    /// A command that succeeds in a sandbox whose programs are up. A server then begins sandboxes from a snapshot of that moment, where it
    /// can; the parent's, where a recipe has none.
    #[serde(default)]
    pub ready_command: Option<String>,
    pub defaults: Defaults,
}

/// What a sandbox of the template gets when its creator does not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    pub cpu_count: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub user: String,
    pub workdir: String,
}

impl Recipe {
    /// Reads and checks `<folder>/recipe.toml`.
    pub fn read(folder: &Path) -> Result<Self, RecipeError> {
        let path = folder.join(RECIPE_FILE);
        let text = fs::read_to_string(&path).map_err(|source| RecipeError::Read {
            path: path.clone(),
            source,
        })?;
        let recipe: Self = toml::from_str(&text).map_err(|source| RecipeError::Syntax {
            path: path.clone(),
            source: Box::new(source),
        })?;
        recipe
            .check()
            .map_err(|mistake| RecipeError::Invalid { path, mistake })?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), String> {
        let word = |text: &str, extra: &str| {
            !text.is_empty()
                && text.len() <= 64
                && !text.starts_with('-')
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || extra.contains(c))
        };
        if !word(&self.name, "-_") {
            return Err(format!(
                "`{}` is no template name: use a-z, 0-9, `-` and `_`",
                self.name
            ));
        }
        match &self.parent {
            None if !word(&self.suite, "-") => {
                return Err(format!("`{}` is no Debian suite", self.suite));
            }
            None if self.python.is_some() => {
                return Err("`python` is for recipes with a parent".to_owned());
            }
            Some(parent) if !word(parent, "-_") || *parent == self.name => {
                return Err(format!("`{parent}` is no template to build on"));
            }
            Some(_) if !self.suite.is_empty() => {
                return Err("a recipe with a parent has no suite of its own".to_owned());
            }
            _ => {}
        }
        // These become arguments of commands: nothing may look like an option or a list.
        if let Some(bad) = self.packages.iter().find(|name| !word(name, "+-.:")) {
            return Err(format!("`{bad}` is no Debian package name"));
        }
        if let Some(bad) = self
            .npm
            .iter()
            .find(|spec| !word(spec, "-_./@") || !spec[1..].contains('@'))
        {
            return Err(format!(
                "`{bad}` is no npm package with a version, such as yarn@1.22.19"
            ));
        }
        for part in self.files.iter().chain(&self.customize).chain(&self.python) {
            if part.is_empty() || part.contains('/') || part.starts_with('.') {
                return Err(format!(
                    "`{part}` must be the name of something in the recipe's folder"
                ));
            }
        }
        if self
            .ready_command
            .as_ref()
            .is_some_and(|command| command.trim().is_empty() || command.contains('\0'))
        {
            return Err("`ready_command` must be a command".to_owned());
        }
        let defaults = &self.defaults;
        if defaults.cpu_count == 0 || defaults.memory_mib < 128 || defaults.disk_mib < 128 {
            return Err(
                "defaults: at least 1 cpu, 128 MiB of memory and 128 MiB of disk".to_owned(),
            );
        }
        if !word(&defaults.user, "-_") || !defaults.workdir.starts_with('/') {
            return Err("defaults: user must be a name, workdir an absolute path".to_owned());
        }
        Ok(())
    }
}

/// SHA-256 of everything that decides what the recipe in `folder` builds here, in hexadecimal.
pub fn digest(folder: &Path, extra_certificates: &[PathBuf]) -> Result<String, RecipeError> {
    let mut hash = Sha256::new();
    hash.update(format!("soulbox bottom layer {BOTTOM_VERSION}\n"));
    add_folder(&mut hash, folder, Path::new(""))?;
    hash.update("certificates\n");
    for path in extra_certificates {
        add_file(
            &mut hash,
            path,
            Path::new(path.file_name().unwrap_or_default()),
        )?;
    }
    Ok(hex::encode(hash.finalize()))
}

/// The digest of a recipe on top of these layers; that of a recipe without a parent stays as it is.
pub(crate) fn above(digest: String, below: &[LayerDigest]) -> String {
    if below.is_empty() {
        return digest;
    }
    let mut hash = Sha256::new();
    hash.update(digest);
    for layer in below {
        hash.update(format!("\n{}", layer.as_str()));
    }
    hex::encode(hash.finalize())
}

fn add_folder(hash: &mut Sha256, folder: &Path, relative: &Path) -> Result<(), RecipeError> {
    let path = folder.join(relative);
    let failed = |source| RecipeError::Read {
        path: path.clone(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        names.push((entry.file_name(), entry.file_type().map_err(failed)?));
    }
    // Directory order is the file system's own affair.
    names.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, kind) in names {
        let relative = relative.join(&name);
        if kind.is_dir() {
            add_folder(hash, folder, &relative)?;
        } else if kind.is_file() {
            add_file(hash, &folder.join(&relative), &relative)?;
        } else {
            let mistake = "only files and folders belong into a recipe".to_owned();
            return Err(RecipeError::Invalid {
                path: folder.join(relative),
                mistake,
            });
        }
    }
    Ok(())
}

fn add_file(hash: &mut Sha256, path: &Path, name: &Path) -> Result<(), RecipeError> {
    let failed = |source| RecipeError::Read {
        path: path.to_owned(),
        source,
    };
    let content = fs::read(path).map_err(failed)?;
    // Only the bit that git keeps: the rest of the mode is the umask of whoever cloned.
    let executable = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o100 != 0;
    let kind = if executable { 'x' } else { '-' };
    hash.update(format!("{kind} {} {}\n", content.len(), name.display()));
    hash.update(&content);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"base\"\nsuite = \"bookworm\"\npackages = [\"jq\"]\nnpm = [\"yarn@1.22.19\"]\n\
        [defaults]\ncpu_count = 2\nmemory_mib = 512\ndisk_mib = 1024\nuser = \"user\"\nworkdir = \"/home/user\"\n";

    fn written(text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(RECIPE_FILE), text).unwrap();
        folder
    }

    fn mistake(from: &str, to: &str) -> String {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD, "`{from}` is not in the example");
        match Recipe::read(written(&text).path()) {
            Err(RecipeError::Invalid { mistake, .. }) => mistake,
            Err(RecipeError::Syntax { source, .. }) => source.message().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_recipe_is_read() {
        let recipe = Recipe::read(written(GOOD).path()).unwrap();
        assert_eq!(
            (recipe.name.as_str(), recipe.defaults.memory_mib),
            ("base", 512)
        );
    }

    #[test]
    fn the_recipes_of_this_repository_are_good() {
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../templates");
        let mut seen = 0;
        for entry in fs::read_dir(templates).unwrap() {
            let path = entry.unwrap().path();
            let recipe = Recipe::read(&path).unwrap();
            assert_eq!(Some(recipe.name.as_ref()), path.file_name());
            seen += 1;
        }
        assert!(seen >= 1);
    }

    #[test]
    fn mistakes_are_named() {
        expect_test::expect!["`--foo` is no Debian package name"]
            .assert_eq(&mistake("\"jq\"", "\"--foo\""));
        expect_test::expect!["`yarn` is no npm package with a version, such as yarn@1.22.19"]
            .assert_eq(&mistake("yarn@1.22.19", "yarn"));
        expect_test::expect!["`Base` is no template name: use a-z, 0-9, `-` and `_`"]
            .assert_eq(&mistake("\"base\"", "\"Base\""));
        assert!(mistake("suite", "sweet").contains("unknown field `sweet`"));
        assert!(mistake("memory_mib = 512", "memory_mib = 64").contains("128 MiB of memory"));
        assert!(mistake("[defaults]", "files = \"../etc\"\n[defaults]").contains("`../etc`"));
        assert!(
            mistake("[defaults]", "ready_command = \" \"\n[defaults]").contains("ready_command")
        );
    }

    #[test]
    fn the_digest_follows_contents_modes_names_and_certificates() {
        let folder = written(GOOD);
        let script = folder.path().join("customize.sh");
        let mut seen = BTreeSet::new();
        let mut changed = |certificates: &[PathBuf]| {
            let now = digest(folder.path(), certificates).unwrap();
            assert_eq!(now, digest(folder.path(), certificates).unwrap());
            assert!(seen.insert(now), "a change was not seen");
        };
        changed(&[]);
        fs::write(&script, "a").unwrap();
        changed(&[]);
        fs::write(&script, "b").unwrap();
        changed(&[]);
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        changed(&[]);
        fs::rename(&script, folder.path().join("other.sh")).unwrap();
        changed(&[]);
        let outside = written(GOOD);
        changed(&[outside.path().join(RECIPE_FILE)]);
    }
}
