//! Models and protocols on one side, a sandbox on the other.
//!
//! [`Toolbox`] is what both have in common: five tools of one sandbox. [`converse`] lets a model of one of the [`Provider`]s use them
//! until it is done or a limit is reached; [`mcp`] offers them to any MCP client. Nothing here makes or ends a sandbox: who owns it
//! does, whatever happened. The environment is never read here, and no key is ever part of a text.
#![forbid(unsafe_code)]

mod budget;
mod converse;
pub mod mcp;
mod provider;
mod tools;

pub use converse::{
    Approval, Approve, Charts, Ending, Event, Limits, Outcome, Prices, Task, Tools, Usage, converse,
};
pub use provider::{Access, Model, ModelError, Provider};
pub use soulbox_fake_provider as demo;
pub use tools::{Definition, Picture, Ran, Said, ToolError, Toolbox, below, definitions};
