//! Builds the templates that come with SoulBox: a recipe's folder becomes a layer and a manifest in the pool.
//!
//! Flow: [`recipe`] reads the description and digests the folder; when the pool has that digest, nothing is done.
//! Else [`npm`] collects the tarballs, [`bootstrap`] makes a Debian of it in a layer draft, [`bottom`] adds what
//! every sandbox's root has, and the draft is committed. A failure leaves the log and nothing else.
//! A recipe with a parent is one layer more instead ([`stacked`]), with [`debs`] and [`wheels`] for its script.
//!
//! Recipes are the operator's own files and run as root on the host. What a tenant sends to be built will run in
//! an ordinary sandbox instead, and comes with the templates' API.
//!
//! Sync and blocking, minutes at worst: async callers enter by `spawn_blocking`.

#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod bottom;
pub mod debs;
pub mod npm;
pub mod recipe;
pub mod stacked;
mod unsynced;
pub mod wheels;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use soulbox_pool::{DigestError, Inherited, LayerDigest, Pool, PoolError, TemplateManifest};
use soulbox_types::{BuildId, TemplateId};

use crate::bootstrap::{BootstrapError, Places};
use crate::bottom::{BottomError, TreeSize};
use crate::debs::DebError;
use crate::npm::NpmError;
use crate::recipe::{Recipe, RecipeError};
use crate::stacked::StackError;
use crate::wheels::WheelError;

/// The longest that a bootstrap may take, downloads included.
const BOOTSTRAP_WITHIN: Duration = Duration::from_secs(40 * 60);
/// Where Debian lets an administrator put certificates; what lies there goes into what we build.
const HOST_CERTIFICATES: &str = "/usr/local/share/ca-certificates";

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("failed to read recipe `{folder}`")]
    Recipe {
        folder: PathBuf,
        #[source]
        source: RecipeError,
    },
    #[error("failed to fetch the npm packages of template {name}")]
    Npm {
        name: String,
        #[source]
        source: NpmError,
    },
    #[error("failed to fetch the Debian packages of template {name}")]
    Debs {
        name: String,
        #[source]
        source: DebError,
    },
    #[error("failed to fetch the Python packages of template {name}")]
    Wheels {
        name: String,
        #[source]
        source: WheelError,
    },
    #[error("template {name} is built on template {parent}, which is not there")]
    Parent { name: String, parent: String },
    #[error("failed to build template {name} on its parent")]
    Stack {
        name: String,
        #[source]
        source: StackError,
    },
    #[error("failed to install Debian for template {name}")]
    Bootstrap {
        name: String,
        #[source]
        source: BootstrapError,
    },
    #[error("failed to complete the root of template {name}")]
    Bottom {
        name: String,
        #[source]
        source: BottomError,
    },
    #[error("failed to prepare `{path}`")]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the pool failed")]
    Pool(#[from] PoolError),
    #[error("the digest of a recipe is no name of a layer")]
    Digest(#[from] DigestError),
    #[error("the system has no random numbers: {0}")]
    Random(getrandom::Error),
}

impl BuildError {
    /// What the operator can do about it, as one line, where there is something.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Bootstrap {
                source: BootstrapError::Missing,
                ..
            } => Some("apt-get install mmdebstrap"),
            Self::Bootstrap {
                source: BootstrapError::TimedOut { .. } | BootstrapError::Failed { .. },
                ..
            } => Some("see the end of the log; `apt-get update` on this host must work for it"),
            Self::Npm {
                source: NpmError::Start(_),
                ..
            } => Some("install Node 20.18 or newer with its npm"),
            Self::Npm {
                source: NpmError::Fetch { .. },
                ..
            } => Some("`npm ping` on this host must work for it"),
            Self::Parent { .. } => Some("build the parent's recipe first"),
            Self::Debs { .. } => Some("`apt-get update` on this host must work for it"),
            Self::Wheels { .. } => Some("`python3 -m pip download` on this host must work for it"),
            Self::Stack { .. } => Some("see the end of the log"),
            Self::Bottom {
                source: BottomError::Make { source, .. },
                ..
            } if source.kind() == io::ErrorKind::PermissionDenied => Some("run it as root"),
            _ => None,
        }
    }
}

/// What a build may use of the host.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Keeps what was downloaded, and the logs. May be deleted at any time between builds.
    pub cache: PathBuf,
    /// Certificates that the template shall trust beyond Debian's, as files ending in `.crt`.
    pub extra_certificates: Vec<PathBuf>,
}

impl BuildOptions {
    /// Downloads in `<data>/cache`, certificates as this host has them.
    pub fn for_data_dir(data: &Path) -> Result<Self, BuildError> {
        Ok(Self {
            cache: data.join("cache"),
            extra_certificates: host_certificates(Path::new(HOST_CERTIFICATES))?,
        })
    }
}

/// What [`build_template`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub manifest: TemplateManifest,
    /// Absent: the pool had it already.
    pub new: Option<NewLayer>,
}

/// The cost of a build that was really done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewLayer {
    pub size: TreeSize,
    pub took: Duration,
}

/// Makes the pool have the template of the recipe in `folder`; milliseconds when it does already. Needs root.
/// `progress` hears what is going on, a short line at a time.
pub fn build_template(
    pool: &dyn Pool,
    folder: &Path,
    options: &BuildOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Built, BuildError> {
    let unreadable = |source| BuildError::Recipe {
        folder: folder.to_owned(),
        source,
    };
    let recipe = Recipe::read(folder).map_err(unreadable)?;
    let digest = recipe::digest(folder, &options.extra_certificates).map_err(unreadable)?;
    let templates = pool.templates()?;
    let parent = match &recipe.parent {
        None => None,
        Some(parent) => Some(
            templates
                .iter()
                .find(|manifest| manifest.name == *parent)
                .ok_or_else(|| BuildError::Parent {
                    name: recipe.name.clone(),
                    parent: parent.clone(),
                })?,
        ),
    };
    let below = parent.map_or(Vec::new(), |parent| parent.layers.clone());
    let inherited = Inherited {
        ready_command: recipe
            .ready_command
            .clone()
            .or_else(|| parent?.inherited.ready_command.clone()),
        ..Inherited::default()
    };
    // The same recipe on another parent is another layer.
    let digest = LayerDigest::try_from(recipe::above(digest, &below))?;
    let before = templates
        .into_iter()
        .find(|manifest| manifest.name == recipe.name);
    let layers: Vec<LayerDigest> = below.iter().chain([&digest]).cloned().collect();
    if let Some(manifest) = &before
        && manifest.layers == layers
        && pool.has_layer(&digest)
    {
        return Ok(Built {
            manifest: manifest.clone(),
            new: None,
        });
    }
    // A layer without its manifest is the work of a build that was ended between the two.
    let mut new = None;
    if !pool.has_layer(&digest) {
        let start = Instant::now();
        let mut draft = pool.begin_layer()?;
        // mmdebstrap's hooks run in folders of their own choice, so every path must be absolute.
        let folder = &fs::canonicalize(folder).map_err(prepare(folder))?;
        // In a new pool the one takes a processor for seconds, the other mostly waits.
        let (numbered, fetched) = thread::scope(|scope| {
            let numbering = scope.spawn(|| draft.number_apart());
            let fetched = fetch(folder, &recipe, options, progress);
            (numbering.join(), fetched)
        });
        numbered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let fetched = fetched?;
        let root = &fs::canonicalize(draft.path()).map_err(prepare(draft.path()))?;
        let size = if below.is_empty() {
            build_root(folder, &recipe, options, &fetched, root, progress)?
        } else {
            let below: Vec<PathBuf> = below.iter().map(|layer| pool.layer_path(layer)).collect();
            build_above(folder, &recipe, &below, &fetched, root, progress)?
        };
        progress("committing the layer");
        draft.commit(&digest)?;
        new = Some(NewLayer {
            size,
            took: start.elapsed(),
        });
    }
    let manifest = manifest(&recipe, layers, before, inherited)?;
    pool.put_template(&manifest)?;
    Ok(Built { manifest, new })
}

/// What a build takes from the indexes of this host, all paths absolute.
struct Fetched {
    work: Work,
    cache: PathBuf,
    /// Tarballs of the recipe's npm packages.
    npm: PathBuf,
    /// Its Debian packages and wheels, where it has a parent; a root's packages are mmdebstrap's business.
    debs: PathBuf,
    wheels: PathBuf,
}

fn fetch(
    folder: &Path,
    recipe: &Recipe,
    options: &BuildOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Fetched, BuildError> {
    let name = || recipe.name.clone();
    fs::create_dir_all(&options.cache).map_err(prepare(&options.cache))?;
    let cache = fs::canonicalize(&options.cache).map_err(prepare(&options.cache))?;
    let work = Work::create(&cache)?;
    let npm = work.path.join("npm");
    if !recipe.npm.is_empty() {
        progress("fetching npm packages");
    }
    npm::collect(recipe.npm.iter(), &cache.join("npm"), &npm).map_err(|source| {
        BuildError::Npm {
            name: name(),
            source,
        }
    })?;
    let debs = if recipe.parent.is_none() {
        cache.join("debs")
    } else if recipe.packages.is_empty() {
        PathBuf::new()
    } else {
        progress("fetching Debian packages");
        debs::collect(&recipe.packages, &cache.join("more-debs")).map_err(|source| {
            BuildError::Debs {
                name: name(),
                source,
            }
        })?
    };
    let wheels = match &recipe.python {
        None => PathBuf::new(),
        Some(requirements) => {
            progress("fetching Python packages");
            wheels::collect(&folder.join(requirements), &cache.join("wheels")).map_err(
                |source| BuildError::Wheels {
                    name: name(),
                    source,
                },
            )?
        }
    };
    Ok(Fetched {
        work,
        cache,
        npm,
        debs,
        wheels,
    })
}

/// Fills the empty folder `root` with the root file system of `recipe`, whose folder is `folder`. Needs root.
fn build_root(
    folder: &Path,
    recipe: &Recipe,
    options: &BuildOptions,
    fetched: &Fetched,
    root: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<TreeSize, BuildError> {
    let name = || recipe.name.clone();
    let certificates = fetched.work.path.join("certificates");
    let log = fetched.cache.join(format!("{}.log", recipe.name));
    fs::create_dir_all(&certificates).map_err(prepare(&certificates))?;
    for certificate in &options.extra_certificates {
        let copy = certificates.join(certificate.file_name().unwrap_or_default());
        fs::copy(certificate, copy).map_err(prepare(certificate))?;
    }
    let places = Places {
        recipe: folder,
        root,
        debs: &fetched.debs,
        npm: &fetched.npm,
        certificates: &certificates,
        log: &log,
    };
    bootstrap::run(recipe, &places, BOOTSTRAP_WITHIN, progress).map_err(|source| {
        BuildError::Bootstrap {
            name: name(),
            source,
        }
    })?;
    progress("completing the root");
    let size = bottom::finish(root).map_err(|source| BuildError::Bottom {
        name: name(),
        source,
    })?;
    // The log is for failures.
    fs::remove_file(&log).map_err(prepare(&log))?;
    Ok(size)
}

/// Fills the empty folder `draft` with what the recipe makes of its parent, whose layers are `below`, lowest first. Needs root.
fn build_above(
    folder: &Path,
    recipe: &Recipe,
    below: &[PathBuf],
    fetched: &Fetched,
    draft: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<TreeSize, BuildError> {
    progress("running the recipe's script");
    let log = fetched.cache.join(format!("{}.log", recipe.name));
    let places = stacked::Places {
        recipe: folder,
        layers: below,
        draft,
        npm: &fetched.npm,
        debs: &fetched.debs,
        wheels: &fetched.wheels,
        log: &log,
    };
    let size =
        stacked::run(recipe, &places, BOOTSTRAP_WITHIN).map_err(|source| BuildError::Stack {
            name: recipe.name.clone(),
            source,
        })?;
    // The log is for failures.
    fs::remove_file(&log).map_err(prepare(&log))?;
    Ok(size)
}

fn manifest(
    recipe: &Recipe,
    layers: Vec<LayerDigest>,
    before: Option<TemplateManifest>,
    inherited: Inherited,
) -> Result<TemplateManifest, BuildError> {
    // A new version of a template keeps the template's ID.
    let template_id = match before {
        Some(before) => before.template_id,
        None => TemplateId::from_random(random::<20>()?).to_string(),
    };
    let built_at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    Ok(TemplateManifest {
        name: recipe.name.clone(),
        template_id,
        build_id: BuildId::from_random(random::<16>()?).to_string(),
        built_at: u64::try_from(built_at).unwrap_or(u64::MAX),
        layers,
        cpu_count: recipe.defaults.cpu_count,
        memory_mib: recipe.defaults.memory_mib,
        disk_mib: recipe.defaults.disk_mib,
        default_user: recipe.defaults.user.clone(),
        default_workdir: recipe.defaults.workdir.clone(),
        inherited,
    })
}

fn random<const N: usize>() -> Result<[u8; N], BuildError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(BuildError::Random)?;
    Ok(bytes)
}

/// The `.crt` files of a folder, sorted; none when the folder is not there.
fn host_certificates(folder: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(prepare(folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(prepare(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "crt") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn prepare(path: &Path) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::Prepare {
        path: path.to_owned(),
        source,
    }
}

/// Files that one build needs and nobody after it.
struct Work {
    path: PathBuf,
}

impl Work {
    fn create(cache: &Path) -> Result<Self, BuildError> {
        let path = cache.join(format!("build-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(prepare(&path))?;
        Ok(Self { path })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Nothing depends on its absence; the next build of this process number writes over it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use soulbox_pool::{Growth, LayerDraft, PoolInfo, Upper, Usage};
    use soulbox_types::MiB;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// A pool with given layers, in memory, in which nothing can be built.
    #[derive(Default)]
    struct Shelf {
        layers: BTreeSet<LayerDigest>,
        templates: Mutex<Vec<TemplateManifest>>,
    }

    impl Pool for Shelf {
        fn layer_path(&self, digest: &LayerDigest) -> PathBuf {
            PathBuf::from(digest.as_str())
        }
        fn has_layer(&self, digest: &LayerDigest) -> bool {
            self.layers.contains(digest)
        }
        fn begin_layer(&self) -> Result<LayerDraft, PoolError> {
            Err(PoolError::QuotaUnavailable)
        }
        fn templates(&self) -> Result<Vec<TemplateManifest>, PoolError> {
            Ok(self.templates.lock().unwrap().clone())
        }
        fn put_template(&self, manifest: &TemplateManifest) -> Result<(), PoolError> {
            let mut templates = self.templates.lock().unwrap();
            templates.retain(|other| other.name != manifest.name);
            templates.push(manifest.clone());
            Ok(())
        }
        fn put_build(&self, _: &TemplateManifest) -> Result<(), PoolError> {
            unreachable!("a recipe's build has a name")
        }
        fn build(&self, _: &str) -> Result<Option<TemplateManifest>, PoolError> {
            unreachable!("a build reads names only")
        }
        fn delete_build(&self, _: &str) -> Result<(), PoolError> {
            unreachable!("a build deletes none")
        }
        fn builds(&self) -> Result<Vec<TemplateManifest>, PoolError> {
            unreachable!("a build reads names only")
        }
        fn list_layers(&self) -> Result<Vec<(LayerDigest, std::time::SystemTime)>, PoolError> {
            unreachable!("a build looks for one layer")
        }
        fn delete_layer(&self, _: &LayerDigest) -> Result<(), PoolError> {
            unreachable!("a build deletes none")
        }
        fn commit_upper(&self, _: &str, _: &LayerDigest) -> Result<(), PoolError> {
            unreachable!("a recipe's build has no upper")
        }
        fn info(&self) -> Result<PoolInfo, PoolError> {
            unreachable!("a build needs no space report")
        }
        fn reserve_ok(&self) -> Result<(), PoolError> {
            unreachable!("a build makes no upper")
        }
        fn grow_if_low(&self) -> Result<Growth, PoolError> {
            unreachable!("a build does not grow the pool")
        }
        fn create_upper(&self, _: &str, _: MiB) -> Result<Upper, PoolError> {
            unreachable!("a build makes no upper")
        }
        fn create_step_upper(&self, _: &str, _: MiB) -> Result<Upper, PoolError> {
            unreachable!("a recipe's build has no steps")
        }
        fn find_layer(&self, _: &LayerDigest) -> Result<Option<LayerDigest>, PoolError> {
            unreachable!("a recipe's layer has one name")
        }
        fn name_layer(&self, _: &LayerDigest, _: &LayerDigest) -> Result<(), PoolError> {
            unreachable!("a recipe's layer has one name")
        }
        fn set_quota(&self, _: &str, _: MiB) -> Result<(), PoolError> {
            unreachable!("a build makes no upper")
        }
        fn share_out(&self) -> Result<(), PoolError> {
            unreachable!("a build makes no upper")
        }
        fn usage(&self, _: &str) -> Result<Usage, PoolError> {
            unreachable!("a build makes no upper")
        }
        fn delete_upper(&self, _: &str) -> Result<(), PoolError> {
            unreachable!("a build makes no upper")
        }
        fn list_uppers(&self) -> Result<Vec<Upper>, PoolError> {
            unreachable!("a build makes no upper")
        }
        fn unmount(&self) -> Result<(), PoolError> {
            unreachable!("a build does not own the pool")
        }
    }

    const RECIPE: &str = "name = \"tiny\"\nsuite = \"bookworm\"\npackages = []\n[defaults]\ncpu_count = 2\n\
        memory_mib = 512\ndisk_mib = 1024\nuser = \"user\"\nworkdir = \"/home/user\"\n";

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
        folder
    }

    fn options() -> BuildOptions {
        BuildOptions {
            cache: PathBuf::from("/nowhere"),
            extra_certificates: Vec::new(),
        }
    }

    fn digest_of(folder: &Path) -> LayerDigest {
        recipe::digest(folder, &[]).unwrap().parse().unwrap()
    }

    #[test]
    fn a_known_recipe_is_not_built_again() {
        let folder = folder();
        let shelf = Shelf {
            layers: [digest_of(folder.path())].into(),
            ..Shelf::default()
        };
        // The layer is there but its manifest is not: a build was ended between the two.
        let first = build_template(&shelf, folder.path(), &options(), &mut |_| ()).unwrap();
        assert_eq!(first.new, None);
        assert_eq!(shelf.templates().unwrap(), vec![first.manifest.clone()]);
        let second = build_template(&shelf, folder.path(), &options(), &mut |_| ()).unwrap();
        assert_eq!(second, first);
    }

    #[test]
    fn a_changed_recipe_is_a_new_build_of_the_same_template() {
        let folder = folder();
        let mut shelf = Shelf {
            layers: [digest_of(folder.path())].into(),
            ..Shelf::default()
        };
        let first = build_template(&shelf, folder.path(), &options(), &mut |_| ())
            .unwrap()
            .manifest;
        fs::write(
            folder.path().join("recipe.toml"),
            RECIPE.replace("512", "1024"),
        )
        .unwrap();
        // Not in the pool, so it would have to be built, which this pool cannot.
        assert!(matches!(
            build_template(&shelf, folder.path(), &options(), &mut |_| ()),
            Err(BuildError::Pool(PoolError::QuotaUnavailable))
        ));
        shelf.layers.insert(digest_of(folder.path()));
        let second = build_template(&shelf, folder.path(), &options(), &mut |_| ())
            .unwrap()
            .manifest;
        assert_eq!(second.template_id, first.template_id);
        assert_ne!(second.build_id, first.build_id);
        assert_eq!((first.memory_mib, second.memory_mib), (512, 1024));
    }

    #[test]
    fn certificates_of_the_host_are_its_crt_files() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            host_certificates(&folder.path().join("absent"))
                .unwrap()
                .is_empty()
        );
        for name in ["b.crt", "a.crt", "readme.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = host_certificates(folder.path()).unwrap();
        assert_eq!(
            found,
            [folder.path().join("a.crt"), folder.path().join("b.crt")]
        );
    }

    #[test]
    fn a_missing_program_comes_with_the_command_that_installs_it() {
        let error = BuildError::Bootstrap {
            name: "base".to_owned(),
            source: BootstrapError::Missing,
        };
        assert_eq!(error.hint(), Some("apt-get install mmdebstrap"));
    }
}
