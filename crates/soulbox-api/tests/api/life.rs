//! Timeouts, refreshes, connects, kills and expiry of a running sandbox.

use std::time::Duration;

use serde_json::json;
use soulbox_control::{HostEvent, HostFailure, LiveSandbox};
use soulbox_types::{DeathCause, Epoch, SandboxId, SandboxState};

use crate::fixture::{Fixture, HOURS, KEY, eventually, fixture, now};

/// Milliseconds until the sandbox ends, as the API shows it.
async fn left(server: &Fixture, id: &str) -> i64 {
    let detail = server
        .get(&format!("/sandboxes/{id}"))
        .await
        .status(200)
        .body;
    let end: jiff::Timestamp = detail["endAt"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("a time");
    end.as_millisecond() - i64::try_from(now().0).expect("a time")
}

/// Five seconds are an error.
async fn gone(live: &LiveSandbox) {
    let wait = tokio::time::timeout(Duration::from_secs(5), live.gone.cancelled());
    wait.await.expect("its streams are reset");
}

#[track_caller]
fn close(actual: i64, seconds: i64) {
    assert!(
        (actual - seconds * 1000).abs() < 5_000,
        "{actual} ms are not about {seconds} s"
    );
}

fn parsed(id: &str) -> SandboxId {
    id.parse().expect("an ID")
}

#[tokio::test]
async fn a_timeout_lengthens_shortens_and_is_clamped() {
    let server = fixture().await;
    let id = server.create().await;
    let path = format!("/sandboxes/{id}/timeout");
    for (timeout, expected) in [
        (900, 900),
        (30, 30),
        (i64::from(HOURS) * 7200, i64::from(HOURS) * 3600),
    ] {
        server
            .post(&path, json!({"timeout": timeout}))
            .await
            .status(204);
        close(left(&server, &id).await, expected);
        let host = server.hosts.state().live[&parsed(&id)].clone();
        close(
            i64::try_from(host.deadline.millis_since(now())).expect("small"),
            expected,
        );
    }
    let epochs: Vec<_> = server
        .hosts
        .state()
        .deadlines
        .iter()
        .map(|it| it.1)
        .collect();
    assert_eq!(epochs, [Epoch(2), Epoch(3), Epoch(4)]);
    server.post(&path, json!({})).await.expect(
        400,
        "validation error: request body has an error: property \"timeout\" is missing",
    );
    server.post(&path, json!({"timeout": -1})).await.expect(
        400,
        "validation error: \"timeout\": number must be at least 0",
    );
    let nobody = "Sandbox \"inobody\" doesn't exist or you don't have access to it";
    server
        .post("/sandboxes/inobody/timeout", json!({"timeout": 1}))
        .await
        .expect(404, nobody);
}

#[tokio::test]
async fn a_timeout_of_zero_ends_it_now() {
    let server = fixture().await;
    let id = server.create().await;
    server
        .post(&format!("/sandboxes/{id}/timeout"), json!({"timeout": 0}))
        .await
        .status(204);
    eventually("it is over", || server.control.live(&parsed(&id)).is_none()).await;
    eventually("the host was told", || server.hosts.state().live.is_empty()).await;
    server.get(&format!("/sandboxes/{id}")).await.status(404);
}

#[tokio::test]
async fn a_refresh_only_extends() {
    let server = fixture().await;
    let id = server.create().await;
    let path = format!("/sandboxes/{id}/refreshes");
    server
        .post(&path, json!({"duration": 30}))
        .await
        .status(204);
    close(left(&server, &id).await, 600);
    server
        .post(&path, json!({"duration": 3600}))
        .await
        .status(204);
    close(left(&server, &id).await, 3600);
    server
        .post(&format!("/sandboxes/{id}/timeout"), json!({"timeout": 5}))
        .await
        .status(204);
    server
        .call("POST", &path, &[("x-api-key", KEY)], None)
        .await
        .status(204);
    let gained = left(&server, &id).await;
    assert!(gained > 13_000, "a refresh gives 15 s, not {gained} ms");
    server.post(&path, json!({"duration": 3601})).await.expect(
        400,
        "validation error: \"duration\": number must be at most 3600",
    );
    server
        .post(&path, json!({"duration": -1}))
        .await
        .status(400);
    server
        .post("/sandboxes/inobody/refreshes", json!({}))
        .await
        .status(404);
}

#[tokio::test]
async fn connect_answers_like_create_and_only_extends() {
    let server = fixture().await;
    let created = server
        .post(
            "/v2/sandboxes",
            json!({"templateID": "base", "timeout": 600}),
        )
        .await
        .status(201);
    let id = created.id();
    let v1 = server
        .post(&format!("/sandboxes/{id}/connect"), json!({"timeout": 60}))
        .await
        .status(200);
    assert_eq!(v1.body, created.body);
    close(left(&server, &id).await, 600);
    server
        .post(
            &format!("/sandboxes/{id}/connect"),
            json!({"timeout": 1200}),
        )
        .await
        .status(200);
    close(left(&server, &id).await, 1200);
    let v2 = format!("/v2/sandboxes/{id}/connect");
    for body in [
        Some("{}"),
        None,
        Some(r#"{"memory":false}"#),
        Some(r#"{"timeout":1300}"#),
    ] {
        let answer = server
            .call("POST", &v2, &[("x-api-key", KEY)], body.map(str::to_owned))
            .await;
        assert_eq!(answer.status(200).body, created.body);
    }
    close(left(&server, &id).await, 1300);
    server
        .post(&format!("/sandboxes/{id}/connect"), json!({}))
        .await
        .status(400);
    // The timeout is looked at before the sandbox.
    let too_long = json!({"timeout": HOURS * 3600 + 1});
    let message = format!("Timeout cannot be greater than {HOURS} hours");
    server
        .post("/v2/sandboxes/inobody/connect", too_long)
        .await
        .expect(400, &message);
    server
        .post("/v2/sandboxes/inobody/connect", json!({}))
        .await
        .status(404);
}

#[tokio::test]
async fn a_sandbox_is_found_by_its_legacy_id_too() {
    let server = fixture().await;
    let id = server.create().await;
    server
        .get(&format!("/sandboxes/{id}-6532622b"))
        .await
        .status(200);
    for bad in ["a-b-c", "UPPER", "a%2Fb"] {
        server
            .get(&format!("/sandboxes/{bad}"))
            .await
            .expect(400, "Invalid sandbox ID");
    }
    let message = "Sandbox \"inobody\" doesn't exist or you don't have access to it";
    server.get("/sandboxes/inobody").await.expect(404, message);
}

#[tokio::test]
async fn a_kill_ends_streams_before_the_host_is_done_and_answers_after() {
    let server = fixture().await;
    let id = server.create().await;
    let live = server.control.live(&parsed(&id)).expect("live");
    server.hosts.state().slow_kill = Duration::from_millis(300);
    let path = format!("/sandboxes/{id}");
    let kill = server.delete(&path);
    let watch = async {
        gone(&live).await;
        assert!(server.control.live(&parsed(&id)).is_none());
        assert_eq!(*live.state.borrow(), SandboxState::Killing);
        assert!(
            !server.hosts.state().live.is_empty(),
            "the host was still at it"
        );
        let message = format!("Sandbox \"{id}\" is being killed");
        server
            .post(&format!("/v2/sandboxes/{id}/connect"), json!({}))
            .await
            .expect(409, &message);
        server.get(&path).await.status(404);
        assert_eq!(server.get("/v2/sandboxes").await.body, json!([]));
        // A second kill joins the first.
        server.delete(&path).await.status(204);
    };
    let (killed, ()) = tokio::join!(kill, watch);
    killed.status(204);
    assert!(server.hosts.state().live.is_empty());
    assert_eq!(server.hosts.state().killed.len(), 1);
    server.delete(&path).await.status(404);
    let row = soulbox_control::Store::sandbox(&*server.store, &parsed(&id))
        .await
        .expect("read")
        .expect("kept");
    assert_eq!(
        (row.progress.state, row.progress.cause),
        (SandboxState::Dead, Some(DeathCause::Killed))
    );
}

#[tokio::test]
async fn a_kill_is_repeated_until_the_host_has_done_it() {
    let server = fixture().await;
    let id = server.create().await;
    server.hosts.state().fail_kills = vec![
        HostFailure::Unreachable("once".into()),
        HostFailure::Failed("twice".into()),
    ];
    server.delete(&format!("/sandboxes/{id}")).await.status(204);
    let epochs: Vec<_> = server.hosts.state().killed.iter().map(|it| it.1).collect();
    assert_eq!(epochs, [Epoch(2), Epoch(3), Epoch(4)]);
    assert!(server.hosts.state().live.is_empty());
}

#[tokio::test]
async fn control_expires_a_sandbox_when_the_host_does_not() {
    let server = fixture().await;
    let id = server
        .post("/sandboxes", json!({"templateID": "base", "timeout": 1}))
        .await
        .status(201)
        .id();
    server.get(&format!("/sandboxes/{id}")).await.status(200);
    eventually("it is over", || server.control.live(&parsed(&id)).is_none()).await;
    eventually("the host was told", || server.hosts.state().live.is_empty()).await;
    // The host's own word comes after that and changes nothing.
    let exited = HostEvent::Exited {
        sandbox_id: parsed(&id),
        epoch: Epoch(1),
        cause: DeathCause::OutOfMemory,
    };
    server.control.host_event(exited).await;
    server.get(&format!("/sandboxes/{id}")).await.status(404);
    let row = soulbox_control::Store::sandbox(&*server.store, &parsed(&id))
        .await
        .expect("read")
        .expect("kept");
    assert_eq!(row.progress.cause, Some(DeathCause::Expired));
}

#[tokio::test]
async fn an_end_that_the_host_tells_of_is_recorded_with_its_cause() {
    let server = fixture().await;
    let id = server.create().await;
    let live = server.control.live(&parsed(&id)).expect("live");
    server.hosts.state().live.clear();
    let exited = HostEvent::Exited {
        sandbox_id: parsed(&id),
        epoch: Epoch(1),
        cause: DeathCause::OutOfMemory,
    };
    server.control.host_event(exited).await;
    gone(&live).await;
    server.get(&format!("/sandboxes/{id}")).await.status(404);
    server.delete(&format!("/sandboxes/{id}")).await.status(404);
    assert!(server.hosts.state().killed.is_empty());
    let row = soulbox_control::Store::sandbox(&*server.store, &parsed(&id))
        .await
        .expect("read")
        .expect("kept");
    assert_eq!(row.progress.cause, Some(DeathCause::OutOfMemory));
}

#[tokio::test]
async fn a_deadline_that_the_host_did_not_take_is_an_error_and_is_told_again() {
    let server = fixture().await;
    let id = server.create().await;
    server.hosts.state().fail_deadlines = vec![HostFailure::Unreachable("once".into())];
    let answer = server
        .post(&format!("/sandboxes/{id}/timeout"), json!({"timeout": 900}))
        .await;
    let answer = answer.expect(
        500,
        "the host has not confirmed in time, the request is still under way",
    );
    assert_eq!(answer.error_code(), "host_timeout");
    eventually("it was told again", || {
        let deadline = server.hosts.state().live[&parsed(&id)].deadline;
        deadline.millis_since(now()) > 800_000
    })
    .await;
    // A host that does not know the sandbox any more has lost it.
    server.hosts.state().live.clear();
    server
        .post(&format!("/sandboxes/{id}/timeout"), json!({"timeout": 900}))
        .await
        .status(404);
    server.get(&format!("/sandboxes/{id}")).await.status(404);
}

#[tokio::test]
async fn a_sandbox_past_its_longest_life_gets_no_more() {
    let server = crate::fixture::fixture_with(|settings| settings.max_sandbox_hours = 0).await;
    // Adopted from a time when the limit was longer.
    let settings = server.control.settings().clone();
    let longer = soulbox_control::ControlSettings {
        max_sandbox_hours: 1,
        ..settings.clone()
    };
    let before = crate::fixture::start(server.hosts.clone(), server.store.clone(), longer).await;
    let id = before.create().await;
    before.control.stop(Duration::from_secs(5)).await;
    let after = crate::fixture::start(server.hosts.clone(), server.store.clone(), settings).await;
    let answer = after
        .post(&format!("/sandboxes/{id}/timeout"), json!({"timeout": 60}))
        .await;
    answer.expect(400, "Max instance length exceeded");
}
