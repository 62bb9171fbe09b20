//! What is answered when the database is gone.

use serde_json::json;
use soulbox_control::Store;

use crate::fixture::{ADMIN_TOKEN, KEY, OTHER_KEY, fixture};

#[tokio::test]
async fn a_closed_database_is_an_internal_error_and_kills_still_work() {
    let server = fixture().await;
    let id = server.create().await;
    let team = server.store.live_sandboxes(None).await.expect("list")[0]
        .team_id
        .to_string();
    server.store.close().await;
    let internal = |answer: crate::fixture::Answer| {
        let answer = answer.expect(500, "Internal server error");
        assert_eq!(answer.error_code(), "internal_server_error");
        assert_eq!(answer.header("should-retry"), Some("false"));
    };
    internal(
        server
            .post("/sandboxes", json!({"templateID": "base"}))
            .await,
    );
    internal(server.get("/v2/sandboxes").await);
    // A key that was not used before is not in memory.
    internal(
        server
            .call("GET", "/sandboxes", &[("x-api-key", OTHER_KEY)], None)
            .await,
    );
    let admin = [("x-admin-token", ADMIN_TOKEN), ("x-team-id", team.as_str())];
    internal(server.call("GET", "/sandboxes", &admin, None).await);
    assert_eq!(
        server.hosts.state().created.len(),
        1,
        "no host was asked without a row"
    );
    server
        .call(
            "GET",
            &format!("/sandboxes/{id}"),
            &[("x-api-key", KEY)],
            None,
        )
        .await
        .status(200);
    server.delete(&format!("/sandboxes/{id}")).await.status(204);
    assert!(server.hosts.state().live.is_empty());
}
