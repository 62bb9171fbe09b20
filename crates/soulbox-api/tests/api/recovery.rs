//! A server that starts on what its predecessor left.

use std::time::Duration;

use serde_json::json;
use soulbox_control::{HostSandbox, Store};
use soulbox_types::{DeathCause, Epoch, SandboxId, SandboxState};

use crate::fixture::{Fixture, eventually, fixture, now, start, template};

fn parsed(id: &str) -> SandboxId {
    id.parse().expect("an ID")
}

pub(crate) async fn restart(server: &Fixture) -> Fixture {
    server.control.stop(Duration::from_secs(5)).await;
    start(
        server.hosts.clone(),
        server.store.clone(),
        server.control.settings().clone(),
    )
    .await
}

async fn cause(server: &Fixture, id: &str) -> Option<DeathCause> {
    server
        .store
        .sandbox(&parsed(id))
        .await
        .expect("read")
        .expect("kept")
        .progress
        .cause
}

#[tokio::test]
async fn running_sandboxes_go_on_unchanged() {
    let server = fixture().await;
    let created = server
        .post(
            "/v2/sandboxes",
            json!({"templateID": "base", "metadata": {"a": "b"}}),
        )
        .await
        .status(201);
    let path = format!("/sandboxes/{}", created.id());
    let before = server.get(&path).await.status(200).body;
    let after = restart(&server).await;
    assert_eq!(after.get(&path).await.status(200).body, before);
    assert!(after.control.live(&parsed(&created.id())).is_some());
    assert!(server.hosts.state().killed.is_empty());
    after.delete(&path).await.status(204);
}

#[tokio::test]
async fn the_deadline_of_the_later_epoch_holds() {
    let server = fixture().await;
    let (ahead, behind) = (server.create().await, server.create().await);
    server
        .post(
            &format!("/sandboxes/{behind}/timeout"),
            json!({"timeout": 3000}),
        )
        .await
        .status(204);
    let later = now().plus_millis(1_000_000);
    {
        let mut state = server.hosts.state();
        let host = state.live.get_mut(&parsed(&ahead)).expect("live");
        (host.epoch, host.deadline) = (Epoch(7), later);
        let host = state.live.get_mut(&parsed(&behind)).expect("live");
        (host.epoch, host.deadline) = (Epoch(1), later);
    }
    let after = restart(&server).await;
    let row = |id: &str| {
        let (store, id) = (server.store.clone(), parsed(id));
        async move {
            store
                .sandbox(&id)
                .await
                .expect("read")
                .expect("a row")
                .progress
        }
    };
    eventually("the host has the row's deadline", || {
        server.hosts.state().live[&parsed(&behind)]
            .deadline
            .millis_since(now())
            > 2_000_000
    })
    .await;
    let taken = row(&ahead).await;
    assert_eq!((taken.epoch, taken.deadline), (Epoch(7), later));
    after.get(&format!("/sandboxes/{ahead}")).await.status(200);
}

#[tokio::test]
async fn what_only_one_side_knows_is_ended() {
    let server = fixture().await;
    let (kept, lost) = (server.create().await, server.create().await);
    let orphan: SandboxId = parsed("iorphan");
    {
        let mut state = server.hosts.state();
        state.live.remove(&parsed(&lost));
        state.live.insert(
            orphan.clone(),
            HostSandbox {
                sandbox_id: orphan.clone(),
                epoch: Epoch(3),
                build_id: template("base", 1).build_id,
                started_at: now(),
                deadline: now().plus_millis(60_000),
                egress: soulbox_types::Egress::Open,
            },
        );
    }
    let after = restart(&server).await;
    after.get(&format!("/sandboxes/{kept}")).await.status(200);
    after.get(&format!("/sandboxes/{lost}")).await.status(404);
    eventually("the orphan is killed", || {
        !server.hosts.state().live.contains_key(&orphan)
    })
    .await;
    assert!(
        server
            .hosts
            .state()
            .killed
            .contains(&(orphan.clone(), Epoch(3)))
    );
    for _ in 0..200 {
        if cause(&after, &lost).await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(cause(&after, &lost).await, Some(DeathCause::Lost));
    let rows = server.store.live_sandboxes(None).await.expect("list");
    let ids: Vec<_> = rows.iter().map(|row| row.sandbox_id.to_string()).collect();
    assert_eq!(ids, [kept], "the lost one does not count any more");
}

#[tokio::test]
async fn a_create_that_was_cut_off_is_ended() {
    let server = fixture().await;
    server.hosts.state().slow_create = Duration::from_millis(400);
    let create = server.post("/sandboxes", json!({"templateID": "base"}));
    let stop = async {
        eventually("its row is there", || true).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.control.stop(Duration::from_secs(5)).await;
    };
    let (cut, ()) = tokio::join!(create, stop);
    let cut = cut.expect(503, "Service is unavailable");
    assert_eq!(cut.header("should-retry"), Some("true"));
    let rows = server.store.live_sandboxes(None).await.expect("list");
    assert_eq!(
        rows.iter()
            .map(|row| row.progress.state)
            .collect::<Vec<_>>(),
        [SandboxState::Creating]
    );
    // A server that is stopping begins nothing.
    server
        .post("/sandboxes", json!({"templateID": "base"}))
        .await
        .expect(503, "Service is unavailable");
    let after = restart(&server).await;
    let id = rows[0].sandbox_id.clone();
    eventually("the host was told", || {
        server.hosts.state().killed.iter().any(|it| it.0 == id)
    })
    .await;
    for _ in 0..200 {
        if server
            .store
            .live_sandboxes(None)
            .await
            .expect("list")
            .is_empty()
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        cause(&after, id.as_str()).await,
        Some(DeathCause::FailedToStart)
    );
}

#[tokio::test]
async fn a_stopped_server_leaves_sandboxes_running() {
    let server = fixture().await;
    let id = server.create().await;
    let live = server.control.live(&parsed(&id)).expect("live");
    server.control.stop(Duration::from_secs(5)).await;
    assert!(!live.gone.is_cancelled());
    assert!(server.hosts.state().killed.is_empty());
}

#[tokio::test]
async fn rotated_credentials_replace_the_old_ones() {
    let server = fixture().await;
    let credentials = soulbox_control::Credentials {
        api_key: "e2b_abcd".to_owned(),
        access_token: "sk_e2b_abcd".to_owned(),
    };
    server.get("/sandboxes").await.status(200);
    server
        .control
        .recover(&credentials)
        .await
        .expect("recovery");
    server.get("/sandboxes").await.status(401);
    server
        .call("GET", "/sandboxes", &[("x-api-key", "e2b_abcd")], None)
        .await
        .status(200);
    let bad = soulbox_control::Credentials {
        api_key: "abcd".to_owned(),
        ..credentials
    };
    let error = server
        .control
        .recover(&bad)
        .await
        .expect_err("refused")
        .to_string();
    assert_eq!(
        error,
        "the API key of the credentials is not its prefix and hexadecimal digits"
    );
}
