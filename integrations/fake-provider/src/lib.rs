//! A provider of language models on loopback, for tests and for trying things without a key.
//!
//! It speaks the wires of Anthropic, Mistral, Groq, Together, Fireworks and WatsonX, as JSON and as server-sent events. No model
//! answers: a [`Scenario`] does, chosen by the request itself, so that many tests share one process. What it is sent is checked as
//! strictly as the real services do, and a violation is refused in that provider's own shape with what is wrong. `README.md` has
//! the list of scenarios and of paths.
#![forbid(unsafe_code)]

mod conversation;
mod provider;
mod record;
mod scenario;
mod server;
mod wire;

pub use provider::Provider;
pub use scenario::{Call, Cut, Fault, Scenario, Turn};
pub use server::{Options, router};
