//! Figures of the server for Prometheus: requests by route, sandboxes by state, what the host has. On a listener of its own, never the public one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{Method, StatusCode, header};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use soulbox_control::Control;

/// Upper bounds in seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: String,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: String,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// Counts what is answered. Clones count together.
#[derive(Debug, Clone)]
pub struct Figures {
    registry: Arc<Registry>,
    answers: Family<Answered, Counter>,
    durations: Family<Asked, Histogram, fn() -> Histogram>,
    under_way: Gauge,
    sandboxes: Family<InState, Gauge>,
    creates: Family<InState, Gauge>,
    creates_ahead: Gauge,
    slots_ahead: Gauge,
    memory_used: Gauge,
    memory_total: Gauge,
}

impl Default for Figures {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("soulbox");
        let answers = Family::<Answered, Counter>::default();
        registry.register(
            "requests",
            "Requests to the API that were answered",
            answers.clone(),
        );
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let durations =
            Family::<Asked, Histogram, fn() -> Histogram>::new_with_constructor(histogram);
        registry.register_with_unit(
            "request_duration",
            "From a request's head to its answer's",
            Unit::Seconds,
            durations.clone(),
        );
        let under_way = Gauge::default();
        registry.register(
            "requests_under_way",
            "Requests to the API that are not answered yet",
            under_way.clone(),
        );
        let sandboxes = Family::<InState, Gauge>::default();
        registry.register(
            "sandboxes",
            "Sandboxes that this server owns",
            sandboxes.clone(),
        );
        let creates = Family::<InState, Gauge>::default();
        registry.register(
            "node_creates",
            "Creates that the host has ended since its agent's start",
            creates.clone(),
        );
        let (creates_ahead, slots_ahead) = (Gauge::default(), Gauge::default());
        registry.register(
            "node_creates_ahead",
            "Of these, those that took a slot whose daemon ran already",
            creates_ahead.clone(),
        );
        registry.register(
            "node_slots_ahead",
            "Slots in stock whose daemon runs already",
            slots_ahead.clone(),
        );
        let (memory_used, memory_total) = (Gauge::default(), Gauge::default());
        registry.register_with_unit(
            "node_memory_used",
            "Memory of the host in use",
            Unit::Bytes,
            memory_used.clone(),
        );
        registry.register_with_unit(
            "node_memory_total",
            "Memory of the host",
            Unit::Bytes,
            memory_total.clone(),
        );
        Self {
            registry: Arc::new(registry),
            answers,
            durations,
            under_way,
            sandboxes,
            creates,
            creates_ahead,
            slots_ahead,
            memory_used,
            memory_total,
        }
    }
}

/// A request that is not answered yet.
pub(crate) struct UnderWay<'a>(&'a Gauge);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Figures {
    pub(crate) fn begin(&self) -> UnderWay<'_> {
        self.under_way.inc();
        UnderWay(&self.under_way)
    }

    /// The route and not the path, which may be anything.
    pub(crate) fn answered(
        &self,
        method: &Method,
        route: &str,
        status: StatusCode,
        began: Instant,
    ) {
        let asked = Asked {
            // A method of the client's own invention would be a series of its own.
            method: if route == "none" {
                "other".to_owned()
            } else {
                method.to_string()
            },
            route: route.to_owned(),
        };
        let answered = Answered {
            method: asked.method.clone(),
            route: asked.route.clone(),
            status: status.as_u16(),
        };
        self.answers.get_or_create(&answered).inc();
        self.durations
            .get_or_create(&asked)
            .observe(began.elapsed().as_secs_f64());
    }

    async fn refresh(&self, control: &Control) {
        const PATIENCE: Duration = Duration::from_secs(2);
        for (state, count) in control.counts_by_state() {
            let gauge = self.sandboxes.get_or_create(&InState { state });
            gauge.set(i64::from(count));
        }
        // Without an answer the last figures stay.
        if let Ok(Ok(nodes)) = tokio::time::timeout(PATIENCE, control.nodes()).await {
            for node in nodes {
                let set = |gauge: &Gauge, value: u64| {
                    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
                };
                set(&self.memory_used, node.host.memory_used);
                set(&self.memory_total, node.host.memory_total);
                let of = |state| self.creates.get_or_create(&InState { state }).clone();
                set(&of("succeeded"), node.host.create_successes);
                set(&of("failed"), node.host.create_fails);
                set(&self.creates_ahead, node.host.creates_ahead);
                set(&self.slots_ahead, node.host.slots_ahead);
            }
        }
    }
}

/// The routes of the operator's listener: `/metrics` and `/health`, without a credential.
pub fn operator_router(control: Control, figures: Figures) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(async || "Health check successful"))
        .with_state((control, figures))
}

async fn metrics(State((control, figures)): State<(Control, Figures)>) -> Response {
    figures.refresh(&control).await;
    let mut text = String::new();
    if encode(&mut text, &figures.registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
