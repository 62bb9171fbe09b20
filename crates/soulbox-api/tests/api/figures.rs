//! The operator's listener: what it tells in the form that Prometheus reads.

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::fixture::{Fixture, fixture};

async fn told(server: &Fixture) -> String {
    let router = soulbox_api::operator_router(server.control.clone(), server.figures.clone());
    let request = Request::get("/metrics")
        .body(Body::empty())
        .expect("a request");
    let response = router.oneshot(request).await.expect("infallible");
    assert_eq!(response.status(), 200);
    let kind = response.headers()["content-type"].to_str().expect("text");
    assert!(kind.starts_with("application/openmetrics-text"));
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

#[tokio::test]
async fn requests_sandboxes_and_the_host_are_counted() {
    let server = fixture().await;
    server.create().await;
    for _ in 0..3 {
        server.get("/sandboxes/iunknown").await.status(404);
    }
    server
        .get("/of/the/clients/own/invention")
        .await
        .status(404);
    let text = told(&server).await;
    for line in [
        "soulbox_requests_total{method=\"GET\",route=\"/sandboxes/{sandbox_id}\",status=\"404\"} 3",
        "soulbox_requests_total{method=\"POST\",route=\"/sandboxes\",status=\"201\"} 1",
        "soulbox_requests_total{method=\"other\",route=\"none\",status=\"404\"} 1",
        "soulbox_requests_under_way 0",
        "soulbox_sandboxes{state=\"running\"} 1",
        "soulbox_node_creates{state=\"failed\"} 3",
        "soulbox_node_creates_ahead 1",
        "soulbox_node_slots_ahead 16",
        "soulbox_node_memory_total_bytes 20",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|it| it == line),
            "{line} is not in\n{text}"
        );
    }
    assert!(
        text.contains("soulbox_request_duration_seconds_bucket{le=\"0.001\""),
        "{text}"
    );
    assert!(!text.contains("invention"));
}
