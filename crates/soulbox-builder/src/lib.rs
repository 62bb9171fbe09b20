//! Builds of templates, performed: each step runs in a sandbox of its own, and what it wrote becomes a layer.
//!
//! | module | owns |
//! |---|---|
//! | `perform` | a build from its first log line to its manifest: [`Steps`], control's `Builder` |
//! | [`bench`] | the seam to the host: sandboxes that begin from layers, the pool's layers and builds |
//! | `base` | what a build begins with: images by their names, builds by their ID |
//! | `context` | user, folder and environment of the next step, purely |
//! | `key` | names of layers: a layer's name follows from all that it is made of |
//! | `script` | what is run inside for steps other than RUN |
//! | `places` | how many sandboxes of builds run, and whose turn it is |
//! | `lines` | output of programs as lines of a log |
//! | `ready` | start and ready commands |
//!
//! There is no Docker and no second kind of isolation. Files of clients are unpacked in the sandbox of their step, never here. A layer is in
//! the pool before the next step begins, so a build that is broken off leaves whole layers, which the next one finds by their names.
#![forbid(unsafe_code)]

mod base;
pub mod bench;
mod context;
mod key;
mod lines;
mod perform;
mod places;
pub mod ready;
mod script;

pub use base::ImagePolicy;
pub use perform::{AheadError, Steps};
