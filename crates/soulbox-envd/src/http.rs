//! All routes of the daemon on one port: two RPC services and the plain HTTP ones.

mod answer;
mod compose;
mod download;
mod encoding;
mod files;
mod gate;
mod headers;
mod init;
mod metrics;
mod upload;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use connectrpc::{CompressionRegistry, ConnectRpcService, DeadlinePolicy, Limits};
use connectrpc_reflection::Reflector;
use http::{HeaderValue, header};
use soulbox_envd_proto::rpc::DESCRIPTORS;
use soulbox_envd_proto::rpc::filesystem::FILESYSTEM_SERVICE_NAME;
use soulbox_envd_proto::rpc::process::PROCESS_SERVICE_NAME;
use tower::{Service as _, service_fn};

use crate::filesystem::FilesystemService;
use crate::process::ProcessService;
use crate::settings::Settings;
use answer::HttpError;
pub(crate) use gate::{keepalive, user_of};

/// The largest RPC message; file contents do not travel as messages.
const MESSAGE_BYTES: usize = 64 << 20;

pub fn router(settings: Arc<Settings>) -> Router {
    let rpc = rpc_service(&settings);
    let rpc = service_fn(move |request: Request| {
        let mut rpc = rpc.clone();
        async move { rpc.call(request).await.map(gate::unwrap_body) }
    });
    Router::new()
        .route_service("/process.Process/{method}", rpc.clone())
        .route_service("/filesystem.Filesystem/{method}", rpc.clone())
        .route_service("/grpc.health.v1.Health/{method}", rpc.clone())
        .route_service("/grpc.reflection.v1.ServerReflection/{method}", rpc.clone())
        .route_service("/grpc.reflection.v1alpha.ServerReflection/{method}", rpc)
        .route("/health", get(health))
        .route("/init", post(init::init))
        .route("/envs", get(envs))
        .route("/metrics", get(metrics::metrics))
        .route("/files", get(download::download).post(upload::upload))
        .route("/files/compose", post(compose::compose))
        .fallback(unknown)
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(
            Arc::clone(&settings),
            gate::admit,
        ))
        .layer(middleware::from_fn(gate::cross_origin))
        .with_state(settings)
}

fn rpc_service(settings: &Arc<Settings>) -> ConnectRpcService {
    let services = connectrpc::Router::new()
        .add_service(Arc::new(ProcessService::new(Arc::clone(settings))))
        .add_service(Arc::new(FilesystemService::new(Arc::clone(settings))));
    let (services, _health) = connectrpc_health::install_static(
        services,
        [PROCESS_SERVICE_NAME, FILESYSTEM_SERVICE_NAME],
    );
    // The descriptors are those that the services were generated from.
    let services = match Reflector::from_descriptor_set_bytes(DESCRIPTORS) {
        Ok(reflector) => connectrpc_reflection::install(services, reflector),
        Err(error) => {
            eprintln!("error: no reflection: {error}");
            services
        }
    };
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

async fn unknown(request: Request) -> Result<Response<Body>, Infallible> {
    Ok(HttpError::not_found(format!(
        "no such route: {} {}",
        request.method(),
        request.uri().path()
    ))
    .into_response())
}
