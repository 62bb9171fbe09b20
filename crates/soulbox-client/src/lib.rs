//! Client for the REST API of SoulBox, which is E2B's, and what a build of a template does on the client's side.
//!
//! ```no_run
//! # async fn example() -> Result<(), soulbox_client::ClientError> {
//! let client = soulbox_client::Client::new("http://127.0.0.1:3000", "e2b_...")?;
//! for template in client.templates().await? {
//!     println!("{}", template.names.join(", "));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The environment is never read here; who calls says where the server is and with which key. [`Sandbox`] is for
//! what goes on inside one: code, commands, files. Deliberately absent: terminals, watches, signed URLs.
#![forbid(unsafe_code)]

mod build;
mod client;
mod config;
mod context;
mod dockerfile;
mod sandbox;
mod sandboxes;
mod templates;

pub use build::{BuildError, BuildEvent, BuiltTemplate, Project};
pub use client::{Client, ClientError, path};
pub use config::{
    CONFIG_FILES, IdleDefaults, Mistake, NetworkDefaults, OnTimeout, TemplateConfig, User,
};
pub use context::{ContextError, Folder};
pub use dockerfile::{DockerfileError, Recipe, Step};
pub use reqwest::Method;
pub use sandbox::{
    CodeEvent, CommandEnd, CommandEvent, FileEntry, Place, Sandbox, SandboxError, SandboxOptions,
};
/// The bodies of requests and answers.
pub use soulbox_wire::rest;
