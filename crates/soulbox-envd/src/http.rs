//! All routes of the daemon on one port: two RPC services and the plain HTTP ones.

mod answer;
mod compose;
mod download;
mod encoding;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gate;
mod headers;
mod init;
mod metrics;
mod terminal;
mod upload;

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use connectrpc::{CompressionRegistry, ConnectRpcService, DeadlinePolicy, Limits};
use connectrpc_reflection::Reflector;
use http::{HeaderValue, header};
use soulbox_envd_proto::LogQuery;
use soulbox_envd_proto::rpc::DESCRIPTORS;
use soulbox_envd_proto::rpc::filesystem::FILESYSTEM_SERVICE_NAME;
use soulbox_envd_proto::rpc::process::PROCESS_SERVICE_NAME;
use tower::{Service as _, service_fn};

use crate::filesystem::FilesystemService;
use crate::process::{ProcessService, Processes};
use crate::settings::Settings;
use answer::HttpError;
pub(crate) use gate::{keepalive, user_of};
pub use init::prepare;

/// The largest RPC message; file contents do not travel as messages.
const MESSAGE_BYTES: usize = 64 << 20;

pub fn router(settings: Arc<Settings>) -> Router {
    let processes = Arc::<Processes>::default();
    let terminals = terminal::Terminals {
        settings: Arc::clone(&settings),
        processes: Arc::clone(&processes),
    };
    let log = Arc::clone(&processes);
    let introduction = init::Introduction {
        settings: Arc::clone(&settings),
        processes: Arc::clone(&processes),
    };
    let rpc = rpc_service(&settings, processes);
    let rpc = service_fn(move |request: Request| {
        let mut rpc = rpc.clone();
        async move { rpc.call(request).await.map(gate::unwrap_body) }
    });
    let reflection = service_fn(reflect);
    Router::new()
        .route_service("/process.Process/{method}", rpc.clone())
        .route_service("/filesystem.Filesystem/{method}", rpc.clone())
        .route_service("/grpc.health.v1.Health/{method}", rpc)
        .route_service("/grpc.reflection.v1.ServerReflection/{method}", reflection)
        .route_service(
            "/grpc.reflection.v1alpha.ServerReflection/{method}",
            reflection,
        )
        .route("/health", get(health))
        .route("/init", post(init::init).with_state(introduction))
        .route("/envs", get(envs))
        .route("/metrics", get(metrics::metrics))
        .route("/logs", get(logs).with_state(log))
        .route("/files", get(download::download).post(upload::upload))
        .route("/files/compose", post(compose::compose))
        .route("/ws/pty", get(terminal::terminal).with_state(terminals))
        .fallback(unknown)
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(
            Arc::clone(&settings),
            gate::admit,
        ))
        .layer(middleware::from_fn(gate::cross_origin))
        .with_state(settings)
}

fn rpc_service(settings: &Arc<Settings>, processes: Arc<Processes>) -> ConnectRpcService {
    let services = connectrpc::Router::new()
        .add_service(Arc::new(ProcessService::new(
            Arc::clone(settings),
            processes,
        )))
        .add_service(Arc::new(FilesystemService::new(Arc::clone(settings))));
    let (services, _health) = connectrpc_health::install_static(
        services,
        [PROCESS_SERVICE_NAME, FILESYSTEM_SERVICE_NAME],
    );
    serve(services)
}

/// Answers what the services are. Made at the first question: the descriptors take more memory than all else at rest.
async fn reflect(request: Request) -> Result<Response, Infallible> {
    static SERVICE: LazyLock<Option<ConnectRpcService>> = LazyLock::new(|| {
        // The descriptors are those that the services were generated from.
        let reflector = Reflector::from_descriptor_set_bytes(DESCRIPTORS)
            .inspect_err(|error| eprintln!("error: no reflection: {error}"))
            .ok()?;
        Some(serve(connectrpc_reflection::install(
            connectrpc::Router::new(),
            reflector,
        )))
    });

    match &*SERVICE {
        Some(service) => service.clone().call(request).await.map(gate::unwrap_body),
        None => unknown(request).await,
    }
}

fn serve(services: connectrpc::Router) -> ConnectRpcService {
    ConnectRpcService::new(services)
        // Compressed frames are held back by clients until a block is complete, and the CPU is the sandbox's.
        .with_compression(CompressionRegistry::new())
        .with_limits(
            Limits::default()
                .with_max_message_size(MESSAGE_BYTES)
                .with_max_request_body_size(usize::MAX),
        )
        .with_deadline_policy(DeadlinePolicy::new().with_enforce_on_streams(true))
}

async fn health() -> Response {
    let mut response = answer::no_content();
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn envs(State(settings): State<Arc<Settings>>) -> Response {
    answer::json(&settings.variables())
}

/// What is new in the log, for the host: the ingress answers 404 for this path.
async fn logs(
    State(processes): State<Arc<Processes>>,
    request: Request,
) -> Result<Response, HttpError> {
    let query = Query::<LogQuery>::try_from_uri(request.uri())
        .map_err(|error| HttpError::bad_request(error.to_string()))?;
    let text = processes.log.after(query.after);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response())
}

async fn unknown(request: Request) -> Result<Response<Body>, Infallible> {
    Ok(HttpError::not_found(format!(
        "no such route: {} {}",
        request.method(),
        request.uri().path()
    ))
    .into_response())
}
