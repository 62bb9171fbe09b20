//! `soulbox template`: templates of a server, by its API, and the templates that come with an installation, in its pool.

mod folder;
mod gc;
mod pool;
mod server;

use std::io::Write;
use std::path::PathBuf;

use soulbox_client::TemplateConfig;

use super::sandbox::Server;
use super::{Installation, block_on};
use crate::failure::Failure;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Build the template that a folder describes
    ///
    /// A folder with a recipe.toml becomes one of the installation's own templates, in its pool, unless the pool has it already; that needs
    /// root and no server. Any other folder needs a Dockerfile; it may have a soulbox.toml or an e2b.toml, and is built by the
    /// server. stdout gets the name and the build's ID, stderr the log.
    Build(Build),
    /// List the team's templates
    List {
        #[command(flatten)]
        server: Server,
        /// Those in the pool of this machine's installation; needs root
        #[arg(long)]
        local: bool,
        /// One JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Make a folder with a soulbox.toml and a Dockerfile to begin from
    Init {
        /// A folder that is not there yet, or is empty
        folder: PathBuf,
        /// The template's name [default: the folder's]
        #[arg(long)]
        name: Option<String>,
    },
    /// Delete templates, with all their builds
    Delete {
        #[command(flatten)]
        server: Server,
        /// Names or IDs
        #[arg(required = true)]
        templates: Vec<String>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Let every team use a template
    Publish(One),
    /// Let only the own team use a template
    Unpublish(One),
    /// Show a template: its builds, and the layers and packages of the newest one that is ready
    Inspect(One),
    /// Read a folder's soulbox.toml (or e2b.toml), Dockerfile and files as a build would, and name every mistake
    Validate {
        /// The folder, or a config file alone
        path: PathBuf,
    },
    /// Print the JSON schema of soulbox.toml
    Schema,
    /// Delete builds that have been without a tag for longer than the server's keep_builds, and layers that no build, sandbox or snapshot
    /// needs, such as what is left of deleted templates; needs root and a running server
    Gc {
        #[command(flatten)]
        installation: Installation,
        /// Only list them
        #[arg(long)]
        dry_run: bool,
        /// Leave layers that are younger: a build that is under way may want them
        #[arg(long, value_name = "SECONDS", default_value_t = 7200)]
        older_than: u64,
        /// One JSON object instead of lines
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct Build {
    #[command(flatten)]
    server: Server,
    folder: PathBuf,
    /// `name`, `team/name`, either with `:tag` [default: as soulbox.toml says]
    #[arg(long)]
    name: Option<String>,
    /// A tag that the build gets when it is ready; may be given more than once
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// The Dockerfile, relative to the folder
    #[arg(long, value_name = "FILE")]
    dockerfile: Option<PathBuf>,
    /// Build every step anew
    #[arg(long)]
    no_cache: bool,
    /// One JSON object instead of a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct One {
    #[command(flatten)]
    server: Server,
    /// A name, with or without a tag, or an ID
    template: String,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Build(build) if build.folder.join(folder::RECIPE).is_file() => {
            pool::build(&build.server.settings()?, &build.folder)
        }
        Command::Build(build) => server::build(build),
        Command::List {
            server,
            local: true,
            json,
        } => pool::list(&server.settings()?, json),
        Command::List { server, json, .. } => {
            let client = server.client()?;
            block_on(server::list(client, json))
        }
        Command::Init { folder, name } => folder::init(&folder, name.as_deref()),
        Command::Delete {
            server,
            templates,
            yes,
        } => {
            let client = server.client()?;
            server::confirm(&templates, yes)?;
            block_on(server::delete(client, templates))
        }
        Command::Publish(one) => server::publish(one, true),
        Command::Unpublish(one) => server::publish(one, false),
        Command::Inspect(one) => server::inspect(one),
        Command::Validate { path } => folder::validate(&path),
        Command::Schema => print(&TemplateConfig::schema()),
        Command::Gc {
            installation,
            dry_run,
            older_than,
            json,
        } => gc::run(&installation.settings(None)?, dry_run, older_than, json),
    }
}

/// stdout is data.
fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::new(error).hint("stdout must be open"))
}

fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}
