//! `GET /sandboxes` and `GET /v2/sandboxes`.

use serde_json::{Value, json};

use crate::fixture::{Answer, Fixture, fixture};

async fn create(server: &Fixture, template: &str, metadata: Value) -> String {
    // A millisecond apart, so that the order is that of the starts.
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    let body = json!({"templateID": template, "timeout": 600, "metadata": metadata});
    server.post("/sandboxes", body).await.status(201).id()
}

fn ids(answer: &Answer) -> Vec<&str> {
    let items = answer.body.as_array().expect("a list");
    items
        .iter()
        .map(|item| item["sandboxID"].as_str().expect("an ID"))
        .collect()
}

#[tokio::test]
async fn newest_come_first_with_totals_and_pages() {
    let server = fixture().await;
    let first = create(&server, "base", json!({})).await;
    let second = create(&server, "other", json!({"k": "a b&c"})).await;
    let third = create(&server, "base", json!({"k": "a b&c", "l": "m"})).await;
    for path in [
        "/sandboxes",
        "/v2/sandboxes",
        "/v2/sandboxes?state=running",
        "/v2/sandboxes?state=running,paused",
    ] {
        let answer = server.get(path).await.status(200);
        assert_eq!(ids(&answer), [&third, &second, &first], "{path}");
        assert_eq!(answer.header("x-next-token"), None);
        assert_eq!(
            answer.header("x-total-running"),
            path.starts_with("/v2").then_some("3")
        );
    }
    assert_eq!(
        ids(&server.get("/v2/sandboxes?order=asc").await),
        [&first, &second, &third]
    );
    let paused = server.get("/v2/sandboxes?state=paused").await.status(200);
    assert_eq!(
        (paused.body.clone(), paused.header("x-total-running")),
        (json!([]), None)
    );

    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = server
            .get(&format!("/v2/sandboxes?limit=1{token}"))
            .await
            .status(200);
        assert_eq!(page.header("x-total-running"), Some("3"));
        seen.extend(ids(&page).iter().map(|id| (*id).to_owned()));
        let Some(next) = page.header("x-next-token") else {
            break;
        };
        let wrong = server
            .get(&format!(
                "/v2/sandboxes?order=asc&nextToken={}",
                escape(next)
            ))
            .await;
        wrong.expect(400, "Invalid next token");
        token = format!("&nextToken={}", escape(next));
    }
    assert_eq!(seen, [third.clone(), second.clone(), first.clone()]);

    let item = &server.get("/sandboxes").await.body[2];
    let mut keys: Vec<_> = item
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    let expected = [
        "alias",
        "clientID",
        "cpuCount",
        "diskSizeMB",
        "endAt",
        "envdVersion",
        "memoryMB",
        "sandboxID",
        "startedAt",
        "state",
        "templateID",
        "volumeMounts",
    ];
    assert_eq!(keys, expected);
    let started = item["startedAt"].as_str().expect("a time");
    let after = server
        .get(&format!("/v2/sandboxes?startedAfter={}", escape(started)))
        .await;
    assert_eq!(after.body.as_array().map(Vec::len), Some(3), "inclusive");
    let later = server
        .get("/v2/sandboxes?startedAfter=2999-01-01T00:00:00Z")
        .await;
    assert_eq!(later.status(200).body, json!([]));
}

fn escape(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn filters_by_metadata_and_template() {
    let server = fixture().await;
    let plain = create(&server, "base", json!({})).await;
    let one = create(&server, "other", json!({"k": "a b&c"})).await;
    let two = create(&server, "base", json!({"k": "a b&c", "l": "m"})).await;
    // As the official clients send it.
    for path in ["/sandboxes", "/v2/sandboxes"] {
        let filtered = server
            .get(&format!("{path}?metadata=k%3Da%252520b%252526c"))
            .await;
        assert_eq!(ids(&filtered), [&two, &one]);
        let both = server
            .get(&format!("{path}?metadata=k%3Da%252520b%252526c%26l%3Dm"))
            .await;
        assert_eq!(ids(&both), [&two]);
        let bad = server.get(&format!("{path}?metadata=k%3D%25zz")).await;
        bad.expect(400, "Error parsing metadata: malformed escape");
        let nul = server.get(&format!("{path}?metadata=k%3D%2500")).await;
        nul.expect(400, "metadata must not contain a NUL");
    }
    assert_eq!(
        ids(&server.get("/v2/sandboxes?template=other").await),
        [&one]
    );
    let template_id = server.get("/templates/aliases/base").await.body["templateID"].clone();
    let by_id = server
        .get(&format!(
            "/v2/sandboxes?template={}",
            template_id.as_str().expect("an ID")
        ))
        .await;
    assert_eq!(ids(&by_id), [&two, &plain]);
    let unknown = server
        .get("/v2/sandboxes?template=unknown")
        .await
        .status(200);
    assert_eq!(
        (unknown.body.clone(), unknown.header("x-total-running")),
        (json!([]), Some("0"))
    );
    server
        .get("/v2/sandboxes?template=a:b")
        .await
        .expect(400, "Invalid template: tags are not supported here");
}

#[tokio::test]
async fn metadata_that_records_cannot_hold_is_refused() {
    let server = fixture().await;
    for metadata in [json!({"k": "a\0b"}), json!({"\0": "v"})] {
        let body = json!({"templateID": "base", "metadata": metadata});
        let refused = server.post("/sandboxes", body).await;
        refused.expect(400, "metadata must not contain a NUL");
    }
}

#[tokio::test]
async fn bad_queries_are_refused() {
    let server = fixture().await;
    for bad in [
        "limit=0",
        "limit=101",
        "limit=x",
        "state=bogus",
        "order=sideways",
        "startedAfter=soon",
        "template=a%20b",
        "nextToken=%",
    ] {
        server
            .get(&format!("/v2/sandboxes?{bad}"))
            .await
            .status(400);
    }
    server
        .get("/v2/sandboxes?nextToken=garbage")
        .await
        .expect(400, "Invalid next token");
}
