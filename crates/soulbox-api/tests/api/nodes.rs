//! `/nodes`: shown, drained, and what a create hears then.

use serde_json::json;

use crate::fixture::{ADMIN_TOKEN, fixture};

#[tokio::test]
async fn the_administrator_sees_and_drains_the_host() {
    let server = fixture().await;
    let admin = [("x-admin-token", ADMIN_TOKEN)];
    let id = server.create().await;
    let all = server.call("GET", "/nodes", &admin, None).await.status(200);
    let node = &all.body[0];
    assert_eq!(node["status"], "ready");
    assert_eq!(
        (&node["sandboxCount"], &node["sandboxStartingCount"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(node["statusChangedAt"], "1970-01-01T00:00:07.000Z");
    assert_eq!(node["machineInfo"]["cpuModelName"], "a processor");
    assert_eq!(node["metrics"]["allocatedCPU"], 2);
    assert_eq!(node["metrics"]["allocatedMemoryBytes"], 1024_u64 << 20);
    let path = "/nodes/the%20host";
    let one = server.call("GET", path, &admin, None).await.status(200);
    assert_eq!(one.body["id"], "the host");
    assert!(one.body.get("sandboxStartingCount").is_none());

    let set = |status: &str| Some(json!({ "status": status }).to_string());
    server
        .call("POST", path, &admin, set("draining"))
        .await
        .status(204);
    let body = json!({"templateID": "base"});
    let refused = server.post("/sandboxes", body.clone()).await;
    let refused = refused.expect(503, "no node takes new sandboxes now");
    assert_eq!(refused.error_code(), "sandbox_no_compatible_node");
    assert_eq!(refused.header("should-retry"), Some("false"));
    server.get(&format!("/sandboxes/{id}")).await.status(200);
    let one = server.call("GET", path, &admin, None).await;
    assert_eq!(one.body["status"], "draining");
    server
        .call("POST", path, &admin, set("ready"))
        .await
        .status(204);
    server.post("/sandboxes", body).await.status(201);
}

#[tokio::test]
async fn unknown_hosts_clusters_and_statuses_are_refused() {
    let server = fixture().await;
    let admin = [("x-admin-token", ADMIN_TOKEN)];
    let cluster = "00000000-0000-4000-8000-000000000000";
    server
        .call("GET", "/nodes/x", &admin, None)
        .await
        .expect(404, "Node not found");
    let ready = Some(json!({"status": "ready"}).to_string());
    server
        .call("POST", "/nodes/x", &admin, ready)
        .await
        .status(404);
    let elsewhere = Some(json!({"status": "draining", "clusterID": cluster}).to_string());
    server
        .call("POST", "/nodes/the%20host", &admin, elsewhere)
        .await
        .status(404);
    let none = server
        .call("GET", &format!("/nodes?clusterID={cluster}"), &admin, None)
        .await;
    assert_eq!(none.status(200).body, json!([]));
    for body in ["{\"status\": \"connecting\"}", "{}", "null", "x"] {
        server
            .call("POST", "/nodes/the%20host", &admin, Some(body.to_owned()))
            .await
            .status(400);
    }
    server.create().await;
}
