//! Limits by team and route: headers, the refusal, and whom it does not concern.

use serde_json::json;
use soulbox_api::RateLimits;

use crate::fixture::{Answer, Fixture, OTHER_KEY, fixture, start_limited};

const LIMITS: &str = "{\"GET /v2/sandboxes\": {\"rate\": 1, \"burst\": 2, \"period_s\": 3600}, \
    \"GET /volumes\": {\"rate\": 1, \"burst\": 1, \"period_s\": 3600}}";

async fn limited() -> Fixture {
    let first = fixture().await;
    let limits = RateLimits::parse(LIMITS).expect("limits");
    let settings = first.control.settings().clone();
    start_limited(first.hosts.clone(), first.store.clone(), settings, limits).await
}

fn left(answer: &Answer) -> (Option<&str>, Option<&str>) {
    (
        answer.header("ratelimit-limit"),
        answer.header("ratelimit-remaining"),
    )
}

#[tokio::test]
async fn more_than_the_burst_waits() {
    let server = limited().await;
    for remaining in ["1", "0"] {
        let answer = server.get("/v2/sandboxes").await.status(200);
        assert_eq!(left(&answer), (Some("2"), Some(remaining)));
    }
    let refused = server
        .get("/v2/sandboxes")
        .await
        .expect(429, "Rate limit exceeded");
    assert_eq!(left(&refused), (Some("2"), Some("0")));
    assert_eq!(refused.header("should-retry"), Some("true"));
    let wait: u32 = refused
        .header("retry-after")
        .expect("a time")
        .parse()
        .expect("seconds");
    assert!((3590..=3600).contains(&wait), "{wait}");
    // Another team, another route, and a request that is nobody's.
    let other = [("x-api-key", OTHER_KEY)];
    server
        .call("GET", "/v2/sandboxes", &other, None)
        .await
        .status(200);
    let free = server.get("/sandboxes").await.status(200);
    assert_eq!(left(&free), (None, None));
    server
        .call("GET", "/v2/sandboxes", &[], None)
        .await
        .status(401);
    server
        .post("/v2/sandboxes", json!({"templateID": "base"}))
        .await
        .status(201);
}

#[tokio::test]
async fn routes_to_come_are_counted_too() {
    let server = limited().await;
    let answer = server.get("/volumes").await.status(501);
    assert_eq!(left(&answer), (Some("1"), Some("0")));
    server.get("/volumes").await.status(429);
}
