//! Pause, resume, connect and kill of paused sandboxes, auto-pause, auto-resume, and what a restart finds.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use soulbox_control::{AtDeadline, HostEvent, HostFailure, HostSnapshot, SandboxError, Store};
use soulbox_types::{BuildId, Epoch, SandboxId, SandboxState};

use crate::fixture::{Answer, Fixture, KEY, LIMIT, OTHER_KEY, eventually, fixture, now};
use crate::recovery::restart;

fn parsed(id: &str) -> SandboxId {
    id.parse().expect("an ID")
}

async fn pause(server: &Fixture, id: &str) -> Answer {
    server
        .post(&format!("/sandboxes/{id}/pause"), json!({}))
        .await
}

async fn connect(server: &Fixture, id: &str) -> Answer {
    let path = format!("/v2/sandboxes/{id}/connect");
    server.post(&path, json!({"timeout": 600})).await
}

async fn state(server: &Fixture, id: &str) -> Value {
    let detail = server.get(&format!("/sandboxes/{id}")).await.status(200);
    detail.body["state"].clone()
}

async fn create_with(server: &Fixture, more: Value) -> String {
    let mut body = json!({"templateID": "base", "timeout": 600});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    server.post("/v2/sandboxes", body).await.status(201).id()
}

/// The host pauses a sandbox by itself, as it does at the deadline.
fn host_pauses(server: &Fixture, id: &str) -> HostSnapshot {
    let mut state = server.hosts.state();
    let sandbox = state.live.remove(&parsed(id)).expect("it lives");
    let snapshot = HostSnapshot {
        snapshot_id: format!("auto-{id}-{}", sandbox.epoch.0),
        sandbox_id: sandbox.sandbox_id,
        epoch: sandbox.epoch,
        build_id: sandbox.build_id,
        memory: true,
        ended: true,
        created_at: now(),
        disk_bytes: 1,
        image_bytes: 2,
    };
    let name = snapshot.snapshot_id.clone();
    state.snapshots.insert(name, snapshot.clone());
    snapshot
}

#[tokio::test]
async fn a_pause_is_a_snapshot_from_which_a_connect_goes_on() {
    let server = fixture().await;
    let created = server
        .post(
            "/v2/sandboxes",
            json!({"templateID": "base", "timeout": 600, "metadata": {"a": "b"}}),
        )
        .await
        .status(201);
    let id = created.id();
    let live = server.control.live(&parsed(&id)).expect("it runs");
    pause(&server, &id).await.status(204);
    assert!(live.gone.is_cancelled(), "its streams are reset");
    assert!(server.control.live(&parsed(&id)).is_none());
    let save = server.hosts.state().saved[0].clone();
    assert_eq!(save.snapshot_id, format!("pause-{id}-2"));
    assert!(save.memory && save.end);

    let detail = server.get(&format!("/sandboxes/{id}")).await.status(200);
    assert_eq!(detail.body["state"], "paused");
    assert_eq!(detail.body["pauseMode"], "full");
    assert_eq!(detail.body["metadata"], json!({"a": "b"}));
    let end: jiff::Timestamp = detail.body["endAt"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("a time");
    let since = i64::try_from(now().0).expect("a time") - end.as_millisecond();
    assert!((0..10_000).contains(&since), "it ended when it was paused");

    let resumed = connect(&server, &id).await.status(201);
    assert_eq!(resumed.id(), id);
    assert_eq!(
        resumed.body["envdAccessToken"],
        created.body["envdAccessToken"]
    );
    assert_eq!(state(&server, &id).await, "running");
    let live = server.control.live(&parsed(&id)).expect("it runs");
    assert!(!live.gone.is_cancelled(), "new streams have their own end");
    {
        let state = server.hosts.state();
        let restore = state.created.last().expect("a create");
        let from = restore.snapshot.as_ref().expect("from its snapshot");
        assert_eq!(from.snapshot_id, save.snapshot_id);
        assert!(from.memory);
        assert!(restore.epoch > save.epoch);
        assert!(restore.deadline.millis_since(now()) > 590_000);
        assert!(restore.env.is_empty(), "programs have theirs already");
    }
    // When its row says that it runs, the snapshot has done its service.
    eventually("the snapshot is deleted", || {
        server.hosts.state().snapshots.is_empty()
    })
    .await;
    connect(&server, &id).await.status(200);
    server.delete(&format!("/sandboxes/{id}")).await.status(204);
}

#[tokio::test]
async fn what_is_paused_is_not_paused_or_found_by_others() {
    let server = fixture().await;
    let id = server.create().await;
    pause(&server, &id).await.status(204);
    pause(&server, &id).await.expect(
        409,
        &format!("Error pausing sandbox - sandbox '{id}' is already paused"),
    );
    pause(&server, "iunknown").await.status(404);
    for route in ["pause", "resume", "connect"] {
        let path = format!("/sandboxes/{id}/{route}");
        let key = [("x-api-key", OTHER_KEY)];
        let body = Some(r#"{"timeout": 60}"#.to_owned());
        server.call("POST", &path, &key, body).await.status(404);
    }
    let path = format!("/sandboxes/{id}/timeout");
    server.post(&path, json!({"timeout": 60})).await.status(404);
    server.delete(&format!("/sandboxes/{id}")).await.status(204);
    pause(&server, &id).await.status(404);
}

#[tokio::test]
async fn pauses_join_and_resumes_make_one_sandbox() {
    let server = fixture().await;
    let id = server.create().await;
    server.hosts.state().slow_save = Duration::from_millis(200);
    let all = join_all((0..5).map(|_| pause(&server, &id))).await;
    assert!(all.iter().all(|answer| answer.status == 204), "{all:?}");
    assert_eq!(server.hosts.state().saved.len(), 1);

    server.hosts.state().slow_create = Duration::from_millis(200);
    let path = format!("/sandboxes/{id}/resume");
    let all = join_all((0..5).map(|_| server.post(&path, json!({})))).await;
    let good = |answer: &Answer| matches!(answer.status.as_u16(), 201 | 409);
    assert!(all.iter().all(good), "{all:?}");
    assert_eq!(server.hosts.state().created.len(), 2, "one of each");
    server
        .post(&path, json!({}))
        .await
        .expect(409, &format!("Sandbox {id} is already running"));
    server
        .post("/sandboxes/iunknown/resume", json!({}))
        .await
        .status(404);
}

#[tokio::test]
async fn a_connect_during_a_pause_waits_and_resumes() {
    let server = fixture().await;
    let id = server.create().await;
    server.hosts.state().slow_save = Duration::from_millis(300);
    let (paused, connected) = tokio::join!(pause(&server, &id), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(state(&server, &id).await, "paused", "as good as");
        connect(&server, &id).await
    });
    paused.status(204);
    connected.status(201);
    assert_eq!(state(&server, &id).await, "running");
}

#[tokio::test]
async fn a_failed_pause_leaves_it_running_and_says_why() {
    let server = fixture().await;
    let id = server.create().await;
    let why = "process 7 (strace) traces process 8";
    let failure = HostFailure::CannotSave(why.to_owned());
    server.hosts.state().fail_saves.push(failure);
    let answer = pause(&server, &id).await.status(503);
    assert!(answer.message().contains(why), "{answer:?}");
    assert_eq!(answer.header("should-retry"), Some("false"));
    assert_eq!(state(&server, &id).await, "running");
    let live = server.control.live(&parsed(&id)).expect("it runs");
    assert!(!live.gone.is_cancelled());
    let failure = HostFailure::Unsupported("CRIU is not installed".to_owned());
    server.hosts.state().fail_saves.push(failure);
    pause(&server, &id)
        .await
        .expect(501, "CRIU is not installed");
    // Another epoch each time, and the host knows the deadline still.
    let epochs: Vec<_> = server
        .hosts
        .state()
        .saved
        .iter()
        .map(|it| it.epoch)
        .collect();
    assert_eq!(epochs, [Epoch(2), Epoch(4)]);
    pause(&server, &id).await.status(204);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_found_on_the_host() {
    let server = fixture().await;
    let id = server.create().await;
    let lost = HostFailure::Unreachable("the connection broke".to_owned());
    server.hosts.state().fail_saves.push(lost);
    // Nothing was done: the host is asked again in the same words.
    pause(&server, &id).await.status(204);
    let saved = server.hosts.state().saved.clone();
    assert_eq!(saved.len(), 2);
    assert_eq!(saved[0], saved[1]);
}

#[tokio::test]
async fn a_failed_resume_leaves_it_paused_with_its_snapshot() {
    let server = fixture().await;
    let id = server.create().await;
    pause(&server, &id).await.status(204);
    for failure in [
        HostFailure::SnapshotRefused("it was changed".to_owned()),
        HostFailure::Init("no answer".to_owned()),
        HostFailure::NoCapacity("the disk is full".to_owned()),
    ] {
        let expected = match failure {
            HostFailure::NoCapacity(_) => 503,
            _ => 500,
        };
        server.hosts.state().fail_creates.push(failure);
        let path = format!("/sandboxes/{id}/resume");
        server.post(&path, json!({})).await.status(expected);
        assert_eq!(state(&server, &id).await, "paused");
        assert_eq!(server.hosts.state().snapshots.len(), 1);
    }
    connect(&server, &id).await.status(201);
}

#[tokio::test]
async fn a_kill_wins_over_pauses_and_takes_their_snapshots_along() {
    let server = fixture().await;
    let id = server.create().await;
    pause(&server, &id).await.status(204);
    server.delete(&format!("/sandboxes/{id}")).await.status(204);
    server.get(&format!("/sandboxes/{id}")).await.status(404);
    connect(&server, &id).await.status(404);
    let paused = server.get("/v2/sandboxes?state=paused").await.status(200);
    assert_eq!(paused.body, json!([]));
    eventually("its snapshot is deleted", || {
        server.hosts.state().snapshots.is_empty()
    })
    .await;

    let id = server.create().await;
    server.hosts.state().slow_save = Duration::from_millis(400);
    let (paused, killed) = tokio::join!(pause(&server, &id), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.delete(&format!("/sandboxes/{id}")).await
    });
    killed.status(204);
    assert!(matches!(paused.status.as_u16(), 404 | 409), "{paused:?}");
    assert!(!server.hosts.state().live.contains_key(&parsed(&id)));
    server.delete(&format!("/sandboxes/{id}")).await.status(404);
}

#[tokio::test]
async fn paused_sandboxes_count_against_no_limit_and_resumed_ones_do() {
    let server = fixture().await;
    let id = server.create().await;
    for _ in 1..LIMIT {
        server.create().await;
    }
    let body = json!({"templateID": "base"});
    server.post("/sandboxes", body.clone()).await.status(429);
    pause(&server, &id).await.status(204);
    server.create().await;
    let answer = connect(&server, &id).await.status(429);
    assert_eq!(answer.header("should-retry"), Some("false"));
    assert_eq!(state(&server, &id).await, "paused");
    let listed = server.get("/v2/sandboxes").await.status(200);
    assert_eq!(listed.header("x-total-running"), Some("4"));
    assert_eq!(listed.body.as_array().map(Vec::len), Some(5));
    let paused = server.get("/v2/sandboxes?state=paused").await.status(200);
    assert_eq!(paused.body[0]["sandboxID"], id);
    assert_eq!(paused.header("x-total-running"), None);
}

#[tokio::test]
async fn without_memory_it_boots_from_its_disk() {
    let server = fixture().await;
    let id = server.create().await;
    let path = format!("/sandboxes/{id}/pause");
    server
        .post(&path, json!({"memory": false}))
        .await
        .status(204);
    let detail = server.get(&format!("/sandboxes/{id}")).await.status(200);
    assert_eq!(detail.body["pauseMode"], "filesystem");
    connect(&server, &id).await.status(201);
    pause(&server, &id).await.status(204);
    let path = format!("/v2/sandboxes/{id}/connect");
    server
        .post(&path, json!({"memory": false}))
        .await
        .status(201);
    let state = server.hosts.state();
    let restores = state.created.iter().filter_map(|it| it.snapshot.as_ref());
    let memory: Vec<_> = restores.map(|from| from.memory).collect();
    assert_eq!(memory, [false, false]);
}

#[tokio::test]
async fn auto_pause_is_the_hosts_and_survives_resumes() {
    let server = fixture().await;
    let id = create_with(
        &server,
        json!({"autoPause": true, "autoResume": {"enabled": true}}),
    )
    .await;
    let at_deadline = server.hosts.state().created[0].at_deadline;
    assert_eq!(at_deadline, AtDeadline::Pause { memory: true });
    let detail = server.get(&format!("/sandboxes/{id}")).await.status(200);
    let lifecycle = json!({"autoResume": true, "onTimeout": "pause"});
    assert_eq!(detail.body["lifecycle"], lifecycle);

    let snapshot = host_pauses(&server, &id);
    let event = HostEvent::Paused(snapshot.clone());
    server.control.host_event(event.clone()).await;
    eventually("it is paused", || {
        server.control.live(&parsed(&id)).is_none()
    })
    .await;
    assert_eq!(state(&server, &id).await, "paused");
    connect(&server, &id).await.status(201);
    let restore = server.hosts.state().created[1].clone();
    let from = restore.snapshot.expect("from its snapshot");
    assert_eq!(from.snapshot_id, snapshot.snapshot_id);
    assert_eq!(restore.at_deadline, AtDeadline::Pause { memory: true });
    // The same news once more are of the past.
    server.control.host_event(event).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(state(&server, &id).await, "running");
}

#[tokio::test]
async fn an_expiry_of_which_the_host_told_nothing_is_found_by_looking() {
    let server = fixture().await;
    let id = create_with(&server, json!({"autoPause": true, "timeout": 1})).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    host_pauses(&server, &id);
    let found = || async {
        let row = server.store.sandbox(&parsed(&id)).await;
        row.expect("read").expect("a row").progress.state
    };
    for _ in 0..100 {
        if found().await == SandboxState::Paused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(found().await, SandboxState::Paused);
    connect(&server, &id).await.status(201);
}

#[tokio::test]
async fn traffic_resumes_what_wants_that_and_leaves_the_rest_alone() {
    let server = fixture().await;
    let wants = create_with(
        &server,
        json!({"timeout": 420, "autoResume": {"enabled": true}}),
    )
    .await;
    let shy = create_with(&server, json!({})).await;
    for id in [&wants, &shy] {
        pause(&server, id).await.status(204);
    }
    let seen = |id: &str| {
        let (control, id) = (server.control.clone(), parsed(id));
        async move { control.paused_for_traffic(&id).await.expect("the store") }
    };
    assert!(seen(&shy).await.is_none());
    let paused = seen(&wants).await.expect("it may be resumed");
    assert!(paused.access_token.is_some());
    let before = server.hosts.state().created.len();
    let many = join_all((0..8).map(|_| server.control.wake_for_traffic(&paused.row.sandbox_id)));
    assert!(many.await.into_iter().all(|woken| woken.expect("woken")));
    assert_eq!(server.hosts.state().created.len(), before + 1, "one resume");
    let deadline = server.hosts.state().live[&parsed(&wants)].deadline;
    let left = deadline.millis_since(now());
    assert!((410_000..=420_000).contains(&left), "{left}");
    let woken = server.control.wake_for_traffic(&parsed(&shy)).await;
    assert!(!woken.expect("the store"));
    assert_eq!(state(&server, &shy).await, "paused");

    // Without a place in the quota it stays paused.
    pause(&server, &wants).await.status(204);
    for _ in 0..LIMIT {
        server.create().await;
    }
    let refused = server.control.wake_for_traffic(&parsed(&wants)).await;
    assert!(matches!(refused, Err(SandboxError::NotResumed(_))));
}

#[tokio::test]
async fn paused_sandboxes_survive_a_restart_and_half_done_ones_are_settled() {
    let server = fixture().await;
    let (paused, told_nobody, killed) = (
        server.create().await,
        server.create().await,
        server.create().await,
    );
    pause(&server, &paused).await.status(204);
    let after = {
        server.control.stop(Duration::from_secs(5)).await;
        host_pauses(&server, &told_nobody);
        restart(&server).await
    };
    for id in [&paused, &told_nobody] {
        assert_eq!(state(&after, id).await, "paused", "{id}");
        connect(&after, id).await.status(201);
    }
    assert_eq!(state(&after, &killed).await, "running");
    after
        .delete(&format!("/sandboxes/{killed}"))
        .await
        .status(204);
    let build = BuildId::from_random([1; 16]);
    assert_eq!(after.hosts.state().created[0].build_id, build);
    let key = [("x-api-key", KEY)];
    after
        .call("GET", "/sandboxes", &key, None)
        .await
        .status(200);
}

async fn snapshot(server: &Fixture, id: &str, body: Value) -> Answer {
    server
        .post(&format!("/sandboxes/{id}/snapshots"), body)
        .await
}

#[tokio::test]
async fn snapshots_are_templates_by_id_and_by_name() {
    let server = fixture().await;
    let id = server.create().await;
    let unnamed = snapshot(&server, &id, json!({})).await.status(201);
    let reference = unnamed.body["snapshotID"].as_str().expect("a text");
    let (template, tag) = reference.split_once(':').expect("a tag");
    assert_eq!((template.len(), tag), (20, "default"));
    assert_eq!(unnamed.body["names"], json!([]));
    let named = |name: &str| json!({ "name": name });
    let first = snapshot(&server, &id, named("snap1")).await.status(201);
    let expected = json!({"snapshotID": "default/snap1:default", "names": ["default/snap1"]});
    assert_eq!(first.body, expected);
    let second = snapshot(&server, &id, named("default/snap1:v1")).await;
    assert_eq!(second.status(201).body["snapshotID"], "default/snap1:v1");
    assert_eq!(state(&server, &id).await, "running");
    let (saved, build) = {
        let state = server.hosts.state();
        assert!(state.saved.iter().all(|save| !save.end && save.memory));
        (state.saved.clone(), state.created[0].build_id.clone())
    };

    // A sandbox from each of them begins with its snapshot, on the layers of the first build.
    for (number, reference) in [reference, "snap1", "snap1:v1"].into_iter().enumerate() {
        let body = json!({"templateID": reference});
        let child = server.post("/v2/sandboxes", body).await.status(201).id();
        let create = server.hosts.state().created.last().expect("one").clone();
        let from = create.snapshot.expect("a snapshot");
        assert_eq!(from.snapshot_id, saved[number].snapshot_id);
        assert_eq!(create.build_id, build);
        if number == 0 {
            let path = format!("/templates/{template}");
            let answer = server.delete(&path).await.status(400);
            assert!(answer.message().contains("running sandboxes"), "{answer:?}");
            // A snapshot of what came from a snapshot lies on the same layers.
            snapshot(&server, &child, json!({})).await.status(201);
        }
        server
            .delete(&format!("/sandboxes/{child}"))
            .await
            .status(204);
    }

    let ids = |answer: &Answer| -> Vec<String> {
        let all = answer.body.as_array().expect("a list").iter();
        all.map(|it| it["snapshotID"].as_str().expect("a text").to_owned())
            .collect()
    };
    let all = server.get("/snapshots").await.status(200);
    assert_eq!(ids(&all).len(), 4);
    let own = server.get(&format!("/snapshots?sandboxID={id}")).await;
    assert_eq!(ids(&own).len(), 3);
    let tagged = server.get("/snapshots?name=snap1:v1").await.status(200);
    assert_eq!(ids(&tagged), ["default/snap1:v1"]);
    let none = server.get("/snapshots?name=unknown").await.status(200);
    assert_eq!(none.body, json!([]));
    let page = server.get("/snapshots?limit=3").await.status(200);
    let token = page.header("x-next-token").expect("more").to_owned();
    let rest = server
        .get(&format!("/snapshots?limit=3&nextToken={token}"))
        .await;
    assert_eq!(ids(&rest).len(), 1);
    assert_eq!(rest.header("x-next-token"), None);
    let other = [("x-api-key", OTHER_KEY)];
    let foreign = server.call("GET", "/snapshots", &other, None).await;
    assert_eq!(foreign.body, json!([]));
    let listed = server.get("/templates").await.status(200);
    assert_eq!(
        listed.body.as_array().map(Vec::len),
        Some(2),
        "no snapshots"
    );

    server
        .delete(&format!("/templates/{template}"))
        .await
        .status(204);
    server
        .delete(&format!("/templates/{template}"))
        .await
        .status(404);
    let deleted = server.hosts.state().deleted_snapshots.clone();
    assert_eq!(deleted, [saved[0].snapshot_id.clone()]);
    let after = restart(&server).await;
    let body = json!({"templateID": "snap1:v1"});
    after.post("/v2/sandboxes", body).await.status(201);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_says_why() {
    let server = fixture().await;
    let id = server.create().await;
    for (name, part) in [
        ("other/snap", "namespace 'other' is not 'default'"),
        ("base", "Invalid snapshot name"),
        ("a b", "a b"),
        ("snap:", ""),
    ] {
        let answer = snapshot(&server, &id, json!({ "name": name })).await;
        let answer = answer.status(400);
        assert!(answer.message().contains(part), "{answer:?}");
    }
    snapshot(&server, "iunknown", json!({})).await.status(404);
    let path = format!("/sandboxes/{id}/snapshots");
    let key = [("x-api-key", OTHER_KEY)];
    let body = Some("{}".to_owned());
    server.call("POST", &path, &key, body).await.status(404);

    server.hosts.state().slow_save = Duration::from_millis(300);
    let (first, second, paused) = tokio::join!(
        snapshot(&server, &id, json!({})),
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            snapshot(&server, &id, json!({})).await
        },
        async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            pause(&server, &id).await
        }
    );
    first.status(201);
    second.expect(
        409,
        &format!("Sandbox '{id}' cannot be snapshotted while in 'snapshotting' state"),
    );
    paused.status(204);
    snapshot(&server, &id, json!({})).await.expect(
        409,
        &format!("Sandbox '{id}' cannot be snapshotted while in 'paused' state"),
    );
}

#[tokio::test]
async fn forks_inherit_and_fail_each_for_itself() {
    let server = fixture().await;
    let parent = create_with(
        &server,
        json!({"metadata": {"a": "b"}, "autoPause": true, "timeout": 500}),
    )
    .await;
    let path = format!("/sandboxes/{parent}/fork");
    for (count, message) in [
        (0, "count"),
        (101, "count"),
        (4, "Count must be lower than"),
    ] {
        let answer = server.post(&path, json!({ "count": count })).await;
        let answer = answer.status(400);
        assert!(answer.message().contains(message), "{answer:?}");
    }
    let before = server.get(&format!("/sandboxes/{parent}")).await.body;
    let forks = server.post(&path, json!({"count": 3})).await.status(201);
    let mut ids = vec![parent.clone()];
    for fork in forks.body.as_array().expect("a list") {
        assert!(fork.get("error").is_none(), "{fork}");
        let id = fork["sandbox"]["sandboxID"].as_str().expect("an ID");
        assert!(!ids.iter().any(|it| it == id));
        ids.push(id.to_owned());
        let detail = server.get(&format!("/sandboxes/{id}")).await.status(200);
        assert_eq!(detail.body["metadata"], json!({"a": "b"}));
        assert_eq!(detail.body["lifecycle"]["onTimeout"], "pause");
        assert_ne!(detail.body["envdAccessToken"], before["envdAccessToken"]);
    }
    let after = server.get(&format!("/sandboxes/{parent}")).await.body;
    assert_eq!(after, before, "the parent goes on");
    assert_eq!(ids.len(), 4);
    {
        let state = server.hosts.state();
        assert_eq!(state.saved.len(), 1);
        assert!(state.snapshots.is_empty(), "it was for the forks only");
    }
    // All places are taken, so the next one has none.
    let none = server.post(&path, json!({})).await.status(201);
    assert_eq!(none.body[0]["error"]["code"], 429);
    pause(&server, &parent).await.status(204);
    server.post(&path, json!({})).await.expect(
        409,
        &format!("Sandbox '{parent}' is paused and cannot be forked; resume it first"),
    );
    server
        .post("/sandboxes/iunknown/fork", json!({}))
        .await
        .status(404);
}

#[tokio::test]
async fn a_resume_may_say_what_its_deadline_does() {
    let server = fixture().await;
    let id = create_with(
        &server,
        json!({"autoPause": true, "autoPauseMemory": false}),
    )
    .await;
    let path = format!("/sandboxes/{id}/resume");
    let on_timeout = async || {
        let detail = server.get(&format!("/sandboxes/{id}")).await.status(200);
        detail.body["lifecycle"]["onTimeout"].clone()
    };
    let told = || {
        let state = server.hosts.state();
        state.created.last().expect("it was created").at_deadline
    };
    for (body, shown, expected) in [
        (json!({}), "pause", AtDeadline::Pause { memory: false }),
        (
            json!({"autoPause": true}),
            "pause",
            AtDeadline::Pause { memory: false },
        ),
        (json!({"autoPause": false}), "kill", AtDeadline::Kill),
        (json!({}), "kill", AtDeadline::Kill),
        (
            json!({"autoPause": true}),
            "pause",
            AtDeadline::Pause { memory: true },
        ),
    ] {
        pause(&server, &id).await.status(204);
        server.post(&path, body.clone()).await.status(201);
        assert_eq!(on_timeout().await, shown, "{body}");
        assert_eq!(told(), expected, "{body}");
    }
    server
        .post(&path, json!({"autoPause": false}))
        .await
        .status(409);
    assert_eq!(on_timeout().await, "pause", "what runs is left alone");
    pause(&server, &id).await.status(204);
    server
        .post(&path, json!({"autoPause": "no"}))
        .await
        .status(400);
    // The store has it, not only whoever changed it.
    server
        .post(&path, json!({"autoPause": false}))
        .await
        .status(201);
    pause(&server, &id).await.status(204);
    let after = restart(&server).await;
    let resumed = after.post(&path, json!({"timeout": 1})).await.status(201);
    assert_eq!(resumed.id(), id);
    let detail = after.get(&format!("/sandboxes/{id}")).await.status(200);
    assert_eq!(detail.body["lifecycle"]["onTimeout"], "kill");
}
