//! Logs of both versions: what was decided, what the daemon told, filters, and whose they are.

use std::collections::BTreeMap;

use serde_json::json;
use soulbox_control::{HostLogLine, LogLevel, LogLine};
use soulbox_types::UnixMillis;

use crate::fixture::{Fixture, OTHER_KEY, fixture};

fn told(number: u64, level: LogLevel, message: &str) -> HostLogLine {
    HostLogLine {
        number,
        line: LogLine {
            at: UnixMillis(4_000_000_000_000 + number),
            level,
            logger: "process".to_owned(),
            message: message.to_owned(),
            fields: BTreeMap::from([("level".to_owned(), "forged".to_owned())]),
        },
    }
}

async fn messages(server: &Fixture, path: &str) -> Vec<String> {
    let answer = server.get(path).await.status(200);
    let lines = answer.body["logs"].as_array().expect("lines").iter();
    lines
        .map(|it| it["message"].as_str().expect("text").to_owned())
        .collect()
}

#[tokio::test]
async fn what_was_decided_and_what_the_daemon_told() {
    let server = fixture().await;
    let id = server.create().await;
    server.hosts.state().logs = vec![
        told(1, LogLevel::Info, "process_start"),
        told(2, LogLevel::Error, "process_end"),
    ];
    server
        .post(&format!("/sandboxes/{id}/timeout"), json!({"timeout": 60}))
        .await
        .status(204);
    let v2 = format!("/v2/sandboxes/{id}/logs");
    let all = [
        "process_end",
        "process_start",
        "timeout changed",
        "sandbox started",
    ];
    assert_eq!(messages(&server, &v2).await, all, "newest first");
    let forward: Vec<_> = all.into_iter().rev().collect();
    assert_eq!(
        messages(&server, &format!("{v2}?direction=forward")).await,
        forward
    );
    assert_eq!(
        messages(&server, &format!("{v2}?level=error")).await,
        ["process_end"]
    );
    assert_eq!(
        messages(&server, &format!("{v2}?search=process_")).await,
        all[..2]
    );
    assert_eq!(
        messages(&server, &format!("{v2}?search=Process_")).await,
        [""; 0]
    );
    assert_eq!(
        messages(&server, &format!("{v2}?limit=1")).await,
        ["process_end"]
    );
    let cursor = format!("{v2}?cursor=4000000000001&direction=forward");
    assert_eq!(
        messages(&server, &cursor).await,
        ["process_start", "process_end"]
    );

    let v1 = server
        .get(&format!("/sandboxes/{id}/logs"))
        .await
        .status(200);
    let lines = v1.body["logs"].as_array().expect("lines");
    assert_eq!(lines.len(), 4);
    let last: serde_json::Value =
        serde_json::from_str(lines[3]["line"].as_str().expect("text")).expect("JSON");
    assert_eq!(
        (&last["level"], &last["logger"]),
        (&json!("error"), &json!("process")),
        "a field does not stand for it"
    );
    assert_eq!(v1.body["logEntries"][0]["message"], "sandbox started");
    let later = server
        .get(&format!("/sandboxes/{id}/logs?start=4000000000002"))
        .await;
    assert_eq!(later.body["logs"].as_array().expect("lines").len(), 1);

    server.delete(&format!("/sandboxes/{id}")).await.status(204);
    let kept = messages(&server, &v2).await;
    assert!(
        kept.contains(&"sandbox ended".to_owned()) && kept.contains(&"process_end".to_owned()),
        "{kept:?}"
    );
}

#[tokio::test]
async fn the_daemon_is_read_before_a_kill_if_it_was_used() {
    let server = fixture().await;
    let (used, unused) = (server.create().await, server.create().await);
    server.hosts.state().logs = vec![told(1, LogLevel::Info, "last words")];
    let id = used.parse().expect("an ID");
    let live = server.control.live(&id).expect("it runs");
    live.used.store(true, std::sync::atomic::Ordering::Relaxed);
    for (id, expected) in [(used, true), (unused, false)] {
        server.delete(&format!("/sandboxes/{id}")).await.status(204);
        let lines = messages(&server, &format!("/v2/sandboxes/{id}/logs")).await;
        assert_eq!(
            lines.contains(&"last words".to_owned()),
            expected,
            "{lines:?}"
        );
    }
}

#[tokio::test]
async fn nobody_reads_another_teams_and_bad_parameters_are_named() {
    let server = fixture().await;
    let id = server.create().await;
    let other = [("x-api-key", OTHER_KEY)];
    for path in [
        format!("/v2/sandboxes/{id}/logs"),
        "/v2/sandboxes/iunknown/logs".to_owned(),
    ] {
        let answer = server.call("GET", &path, &other, None).await.status(200);
        assert_eq!(answer.body, json!({"logs": []}), "{path}");
    }
    let long = format!("search={}", "x".repeat(257));
    for bad in [
        "cursor=x",
        "limit=1001",
        "limit=-1",
        "direction=up",
        "level=loud",
        &long,
    ] {
        let answer = server
            .get(&format!("/v2/sandboxes/{id}/logs?{bad}"))
            .await
            .status(400);
        let name = bad.split('=').next().expect("a name");
        assert!(answer.message().contains(name), "{answer:?}");
    }
    server
        .get(&format!("/sandboxes/{id}/logs?start=soon"))
        .await
        .status(400);
    server
        .get("/sandboxes/a-b-c/logs")
        .await
        .expect(400, "Invalid sandbox ID");
}
