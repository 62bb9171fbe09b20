//! Rollbacks to snapshots of the same sandbox.

use std::time::Duration;

use serde_json::json;
use soulbox_control::HostFailure;

use crate::fixture::{Answer, Fixture, OTHER_KEY, fixture};

async fn snapshot(server: &Fixture, id: &str) -> String {
    let path = format!("/sandboxes/{id}/snapshots");
    let made = server.post(&path, json!({})).await.status(201);
    made.body["snapshotID"].as_str().expect("a text").to_owned()
}

async fn rollback(server: &Fixture, id: &str, snapshot: &str) -> Answer {
    let path = format!("/sandboxes/{id}/rollback");
    server.post(&path, json!({ "snapshotID": snapshot })).await
}

#[tokio::test]
async fn a_sandbox_goes_back_to_its_own_snapshot() {
    let server = fixture().await;
    let id = server.create().await;
    let before = server.get(&format!("/sandboxes/{id}")).await.body;
    let snapshot = snapshot(&server, &id).await;
    let live = server
        .control
        .live(&id.parse().expect("an ID"))
        .expect("live");
    rollback(&server, &id, &snapshot).await.status(204);
    assert!(live.gone.is_cancelled(), "its streams are of the past");
    let renewed = server.control.live(&id.parse().expect("an ID"));
    assert!(!renewed.expect("it runs").gone.is_cancelled());
    let after = server.get(&format!("/sandboxes/{id}")).await.body;
    assert_eq!(after, before, "nothing of its row changes");
    let state = server.hosts.state();
    let [prepared] = &state.prepared[..] else {
        panic!("{:?}", state.prepared);
    };
    let from = prepared.snapshot.as_ref().expect("a snapshot");
    assert_eq!(from.snapshot_id, state.saved[0].snapshot_id);
    assert!(from.memory && from.is_copy);
    assert_eq!(state.replaced.len(), 1);
    assert!(state.abandoned.is_empty());
}

#[tokio::test]
async fn what_cannot_be_gone_back_to_is_refused() {
    let server = fixture().await;
    let (id, other) = (server.create().await, server.create().await);
    let (own, foreign) = (
        snapshot(&server, &id).await,
        snapshot(&server, &other).await,
    );
    rollback(&server, &id, &foreign).await.expect(
        400,
        &format!("snapshot '{foreign}' is not one of sandbox '{id}'"),
    );
    for unknown in ["nothing", "base", "base:v9", "other/x"] {
        rollback(&server, &id, unknown)
            .await
            .expect(404, &format!("snapshot '{unknown}' not found"));
    }
    let path = format!("/sandboxes/{id}/rollback");
    for body in [
        json!({}),
        json!({"snapshotID": ""}),
        json!({"snapshotID": 1}),
    ] {
        server.post(&path, body).await.status(400);
    }
    rollback(&server, "iunknown", &own).await.status(404);
    let key = [("x-api-key", OTHER_KEY)];
    let body = Some(json!({ "snapshotID": own }).to_string());
    server.call("POST", &path, &key, body).await.status(404);

    server
        .post(&format!("/sandboxes/{id}/pause"), json!({}))
        .await
        .status(204);
    rollback(&server, &id, &own).await.expect(
        409,
        &format!("Sandbox '{id}' cannot be rolled back while in 'paused' state"),
    );
    assert!(server.hosts.state().prepared.is_empty());
}

#[tokio::test]
async fn one_at_a_time() {
    let server = fixture().await;
    let id = server.create().await;
    let own = snapshot(&server, &id).await;
    server.hosts.state().slow_rollback = Duration::from_millis(300);
    let (first, second) = tokio::join!(rollback(&server, &id, &own), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rollback(&server, &id, &own).await
    });
    first.status(204);
    second.expect(
        409,
        &format!("Sandbox '{id}' cannot be rolled back while in 'snapshotting' state"),
    );
    assert_eq!(server.hosts.state().replaced.len(), 1);
}

#[tokio::test]
async fn a_failure_leaves_it_running() {
    let server = fixture().await;
    let id = server.create().await;
    let own = snapshot(&server, &id).await;
    for (failure, status) in [
        (HostFailure::Init("no answer".to_owned()), 500),
        (
            HostFailure::SnapshotRefused("another kernel".to_owned()),
            500,
        ),
        (
            HostFailure::CannotSave("another is under way".to_owned()),
            409,
        ),
        (HostFailure::NotLive, 409),
        (HostFailure::Lost("it may be damaged".to_owned()), 404),
        (HostFailure::Unsupported("no CRIU".to_owned()), 501),
        (HostFailure::NoCapacity("memory".to_owned()), 503),
    ] {
        server.hosts.state().fail_rollbacks.push(failure);
        rollback(&server, &id, &own).await.status(status);
    }
    server
        .hosts
        .state()
        .fail_replacements
        .push(HostFailure::Failed("no record".to_owned()));
    rollback(&server, &id, &own).await.status(500);
    {
        let state = server.hosts.state();
        assert!(state.replaced.is_empty() && state.killed.is_empty());
        assert_eq!(state.abandoned.len(), 1, "what was prepared is ended");
    }
    // A decision in between makes the epoch stale for a moment.
    server
        .hosts
        .state()
        .fail_replacements
        .push(HostFailure::StaleEpoch);
    rollback(&server, &id, &own).await.status(204);
}
