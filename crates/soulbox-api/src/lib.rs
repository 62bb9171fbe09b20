//! The REST API: axum routes that extract, call control and translate, nothing else.
//!
//! [`router`] is all of it. Order within a request: credentials, then parameters, then the body, as E2B has it. Routes that do not
//! exist yet are there ([`routes`]) and answer 501, after the credentials.
#![forbid(unsafe_code)]

mod auth;
mod error;
mod figures;
mod input;
mod layers;
mod openapi;
mod query;
mod rate;
mod routes;
mod time;
mod translate;

use std::sync::Arc;

use axum::Router;
use soulbox_control::Control;
use tokio_util::sync::CancellationToken;

pub use figures::{Figures, operator_router};
pub use rate::{RateError, RateLimits};

/// What the routes work on.
#[derive(Debug)]
pub struct App {
    pub control: Control,
    /// Whether the listeners speak TLS: links of this server's own begin accordingly.
    pub tls: bool,
    /// Told to clients only when one is configured, since they build URLs with it.
    pub domain: Option<String>,
    /// Cancelled when the server is about to stop: `/health` then says so, everything else works on.
    pub draining: CancellationToken,
    /// How often a team may ask each route.
    pub limits: RateLimits,
    /// Counts what is answered.
    pub figures: Figures,
}

/// Every route with its layers. Bodies are limited to 16 MiB, requests to 70 s.
pub fn router(app: Arc<App>) -> Router {
    let (routes, _) = routes::all();
    layers::wrap(routes, &app).with_state(app)
}

/// The description of every route, as `/openapi.json` has it.
#[must_use]
pub fn description() -> utoipa::openapi::OpenApi {
    routes::all().1
}
