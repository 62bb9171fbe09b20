//! The proxy from outside: real sockets, a `Locate` that dials servers of the test instead of sandboxes.

mod inbound;
mod pooling;
mod refusals;
mod routing;
mod streams;
mod switching;
mod tls;
mod world;
