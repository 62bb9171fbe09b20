//! Sealed snapshots: streams of bytes cut into chunks that are named by their content, in an object store.
//!
//! | module | owns |
//! |---|---|
//! | `archive` | the store: artifacts by name, collection of what none of them needs |
//! | `chunks` | a stream cut into chunks and put together again |
//! | `mark` | texts under a key of the installation |
//!
//! ```text
//! <store>/snapshots/<name>.json    an artifact under the installation's mark: a note of the caller's, and streams by name
//!         chunks/<ab>/<digest>     a chunk or a list of chunks, compressed; the digest is that of its content, the names of lists too
//!         lock                     shared while something is put in, exclusive while something is collected
//! ```
//!
//! So the mark covers everything: an artifact names the digests of its lists, these name those of their chunks, and nothing is handed
//! out that does not have its digest. Chunks are cut where their content says, so a byte put in moves no other cut, and what two
//! snapshots have in common is stored once. Everything here blocks, and waits for tasks of a tokio runtime: not for its own threads.
//!
//! Deliberately absent: stores elsewhere, encryption, tiers.
#![forbid(unsafe_code)]

mod archive;
mod chunks;
mod error;
pub mod mark;

#[cfg(test)]
mod tests;

pub use archive::{Archive, Artifact, Collected};
pub use chunks::{Added, Stream};
pub use error::ArchiveError;
