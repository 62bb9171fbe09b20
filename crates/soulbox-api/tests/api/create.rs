//! `POST /sandboxes` and `POST /v2/sandboxes`.

use std::time::Duration;

use serde_json::{Value, json};
use soulbox_control::HostFailure;
use soulbox_types::{Egress, MiB, MilliCpu};

use crate::fixture::{
    Fixture, HOURS, KEY, LIMIT, eventually, fixture, fixture_with, now, template,
};

/// From its start to its end.
pub(crate) fn seconds_left(detail: &Value) -> i64 {
    let moment = |name: &str| -> i64 {
        let at: jiff::Timestamp = detail[name]
            .as_str()
            .expect("a time")
            .parse()
            .expect("a time");
        at.as_millisecond()
    };
    (moment("endAt") - moment("startedAt") + 500) / 1000
}

#[tokio::test]
async fn v1_is_open_and_short_by_default() {
    let server = fixture().await;
    let answer = server
        .post("/sandboxes", json!({"templateID": "base"}))
        .await
        .status(201);
    let id = answer.id();
    assert!(id.len() == 21 && id.starts_with('i'), "{id}");
    let expected = json!({
        "sandboxID": id,
        "templateID": template("base", 1).template_id.as_str(),
        "alias": "base",
        "clientID": "6532622b",
        "envdVersion": "0.6.13",
    });
    assert_eq!(answer.body, expected);
    let detail = server
        .get(&format!("/sandboxes/{id}"))
        .await
        .status(200)
        .body;
    assert_eq!(seconds_left(&detail), 15);
    let command = server.hosts.state().created[0].clone();
    assert_eq!((command.access_token, command.egress), (None, Egress::Open));
    assert_eq!(
        (
            command.default_user.as_str(),
            command.default_workdir.as_str()
        ),
        ("user", "/home/user")
    );
}

#[tokio::test]
async fn v2_is_secured_and_lives_five_minutes_by_default() {
    let server = fixture().await;
    for body in [
        json!({"templateID": "base"}),
        json!({"templateID": "base", "metadata": {}, "envVars": {}}),
    ] {
        let answer = server.post("/v2/sandboxes", body).await.status(201);
        let token = answer.body["envdAccessToken"]
            .as_str()
            .expect("a token")
            .to_owned();
        assert!(token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let detail = server
            .get(&format!("/sandboxes/{}", answer.id()))
            .await
            .status(200)
            .body;
        assert_eq!(seconds_left(&detail), 300);
        assert_eq!(detail["envdAccessToken"], token);
        let command = server
            .hosts
            .state()
            .created
            .last()
            .expect("a create")
            .clone();
        assert_eq!(command.access_token, Some(token));
    }
}

#[tokio::test]
async fn everything_that_was_asked_for_reaches_the_host_and_comes_back() {
    let server = fixture().await;
    let body = json!({
        "templateID": " BASE:default ",
        "timeout": 60,
        "secure": true,
        "autoPause": false,
        "autoResume": {"enabled": false},
        "allow_internet_access": false,
        "network": {"allowPublicTraffic": false, "allowOut": [], "egressProxy": null},
        "metadata": {"a": "b"},
        "envVars": {"NAME": "value=1"},
        "mcp": null,
        "iam": {"tokens": {}},
        "volumeMounts": [],
        "cpuCount": 4,
        "memoryMB": 512,
        "diskSizeMB": 4096,
        "something": "unknown",
    });
    let answer = server.post("/sandboxes", body).await.status(201);
    let traffic = answer.body["trafficAccessToken"]
        .as_str()
        .expect("a token")
        .to_owned();
    let command = server.hosts.state().created[0].clone();
    assert_eq!(command.egress, Egress::Denied);
    assert_eq!(command.env.get("NAME").map(String::as_str), Some("value=1"));
    assert_eq!(
        (command.limits.cpu, command.limits.memory),
        (MilliCpu(4000), MiB(512))
    );
    assert_eq!(command.limits.disk, MiB(4096));
    assert!(command.deadline.millis_since(now()) > 55_000);
    let detail = server
        .get(&format!("/sandboxes/{}", answer.id()))
        .await
        .status(200)
        .body;
    for (key, value) in [
        ("allowInternetAccess", json!(false)),
        ("metadata", json!({"a": "b"})),
        ("network", json!({"allowPublicTraffic": false})),
        ("cpuCount", json!(4)),
        ("memoryMB", json!(512)),
        ("diskSizeMB", json!(4096)),
        ("state", json!("running")),
        (
            "lifecycle",
            json!({"autoResume": false, "onTimeout": "kill"}),
        ),
        ("volumeMounts", json!([])),
    ] {
        assert_eq!(detail[key], value, "{key}");
    }
    assert_eq!(detail.get("pauseMode"), None);
    let live = server.control.live(&command.sandbox_id).expect("live");
    assert_eq!(
        live.traffic,
        soulbox_control::Traffic::Private { token: traffic }
    );
    assert_eq!(live.access_token, command.access_token);
}

#[tokio::test]
async fn bad_requests_name_what_is_bad() {
    let server = fixture().await;
    let hours = format!("Timeout cannot be greater than {HOURS} hours");
    let longest = u64::from(HOURS) * 3600;
    let with = |extra: Value| {
        let mut body = json!({"templateID": "base"});
        body.as_object_mut()
            .expect("object")
            .extend(extra.as_object().expect("object").clone());
        body
    };
    let cases = [
        (
            json!({}),
            400,
            "validation error: request body has an error: property \"templateID\" is missing",
        ),
        (
            json!({"templateID": null}),
            400,
            "validation error: request body has an error: property \"templateID\" is missing",
        ),
        (
            json!({"templateID": "nope"}),
            404,
            "template 'nope' not found",
        ),
        (
            json!({"templateID": "base:nope"}),
            404,
            "tag 'nope' does not exist for template 'base'",
        ),
        (
            json!({"templateID": "Bad Name!"}),
            400,
            "Invalid template reference: `bad name!` is not a template name: only a-z, 0-9, - and _ are allowed",
        ),
        (
            with(json!({"timeout": 0})),
            400,
            "Timeout must be greater than 0",
        ),
        (
            with(json!({"timeout": -1})),
            400,
            "validation error: \"timeout\": number must be at least 0",
        ),
        (with(json!({"timeout": longest + 1})), 400, &hours),
        (
            with(json!({"autoPauseMemory": false})),
            400,
            "autoPauseMemory=false only applies when autoPause is true.",
        ),
        (
            with(
                json!({"autoPauseMemory": false, "autoPause": true, "autoResume": {"enabled": true}}),
            ),
            400,
            "autoPauseMemory=false (filesystem-only auto-pause) cannot be combined with autoResume.",
        ),
        (
            with(json!({"network": {"allowPublicTraffic": false}})),
            400,
            "You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag.",
        ),
        (
            with(json!({"envVars": {"A=B": ""}})),
            400,
            "validation error: envVars: \"A=B\" cannot be an environment variable",
        ),
        (
            with(json!({"cpuCount": 3})),
            400,
            "CPU count must be 1 or an even number",
        ),
        (
            with(json!({"cpuCount": 64})),
            400,
            "CPU count can't be higher than 8 (if you need to increase this limit, please contact support)",
        ),
        (
            with(json!({"memoryMB": 64})),
            400,
            "Memory must be at least 128 MiB",
        ),
        (
            with(json!({"memoryMB": 1025})),
            400,
            "Memory must be divisible by 2",
        ),
        (
            with(json!({"memoryMB": 9000})),
            400,
            "Memory can't be higher than 8192 MiB (if you need to increase this limit, please contact support)",
        ),
        (
            with(json!({"diskSizeMB": 1})),
            400,
            "Disk size must be at least 128 MiB",
        ),
        (
            with(json!({"diskSizeMB": 90_000})),
            400,
            "Disk size can't be higher than 25600 MiB (if you need to increase this limit, please contact support)",
        ),
        (
            with(json!({"mcp": {}})),
            501,
            "field \"mcp\" is not implemented yet",
        ),
        (
            with(json!({"iam": {"tokens": {"a": {}}}})),
            501,
            "field \"iam\" is not implemented yet",
        ),
        (
            with(json!({"volumeMounts": [{"name": "v", "path": "/v"}]})),
            501,
            "field \"volumeMounts\" is not implemented yet",
        ),
        (
            with(json!({"network": {"dnsServers": ["8.8.8.8"]}})),
            501,
            "field \"network.dnsServers\" is not implemented yet",
        ),
    ];
    for (body, status, message) in cases {
        let answer = server
            .post("/sandboxes", body)
            .await
            .expect(status, message);
        assert_eq!(answer.error_code() == "not_implemented", status == 501);
        assert_eq!(answer.header("should-retry"), Some("false"));
    }
    for text in [
        "{",
        "",
        "[]",
        r#"{"templateID": 1}"#,
        r#"{"templateID":"base","metadata":{"a":1}}"#,
    ] {
        let answer = server
            .call(
                "POST",
                "/sandboxes",
                &[("x-api-key", KEY)],
                Some(text.into()),
            )
            .await
            .status(400);
        assert!(
            answer.message().starts_with("validation error: "),
            "{answer:?}"
        );
    }
    assert!(server.hosts.state().created.is_empty());
    server
        .post("/sandboxes", with(json!({"timeout": longest})))
        .await
        .status(201);
}

#[tokio::test]
async fn what_the_host_could_not_do_is_told_with_advice() {
    let server = fixture().await;
    let failed = |text: &str| HostFailure::Failed(text.to_owned());
    let cases = [
        (
            HostFailure::NoCapacity("no slots".into()),
            (503, "sandbox_capacity_unavailable", Some("true"), Some("1")),
            "not enough capacity for the requested resources right now, please retry shortly",
        ),
        (
            HostFailure::TemplateMissing,
            (503, "sandbox_no_compatible_node", Some("false"), None),
            "no host has the files of this template build",
        ),
        (
            failed("mount /secret/path"),
            (500, "sandbox_create_failed", Some("false"), None),
            "Failed to create sandbox",
        ),
        (
            HostFailure::Init("no answer".into()),
            (500, "sandbox_create_failed", Some("false"), None),
            "Failed to create sandbox",
        ),
        (
            HostFailure::Unreachable("gone".into()),
            (500, "sandbox_create_failed", Some("false"), None),
            "Failed to create sandbox",
        ),
    ];
    for (failure, (status, code, retry, after), message) in cases {
        let leftover = failure.may_leave_a_sandbox();
        server.hosts.state().fail_creates = vec![failure];
        server.hosts.state().killed.clear();
        let answer = server
            .post("/sandboxes", json!({"templateID": "base"}))
            .await
            .expect(status, message);
        assert_eq!(answer.error_code(), code);
        assert_eq!(
            (answer.header("should-retry"), answer.header("retry-after")),
            (retry, after)
        );
        if leftover {
            eventually("the leftover is killed", || {
                !server.hosts.state().killed.is_empty()
            })
            .await;
        } else {
            assert!(server.hosts.state().killed.is_empty());
        }
    }
    // Nothing of the failures counts.
    for _ in 0..LIMIT {
        server.create().await;
    }
}

#[tokio::test]
async fn a_host_that_does_not_start_it_in_time_is_told_to_kill_it() {
    let server = fixture_with(|settings| settings.start_within = Duration::from_millis(50)).await;
    server.hosts.state().slow_create = Duration::from_secs(30);
    let answer = server
        .post("/sandboxes", json!({"templateID": "base"}))
        .await;
    let answer = answer.expect(504, "the sandbox was not started in time");
    assert_eq!(answer.error_code(), "sandbox_placement_timeout");
    eventually("it is killed", || !server.hosts.state().killed.is_empty()).await;
}

#[tokio::test]
async fn the_limit_is_told_and_a_kill_makes_room() {
    let server = fixture().await;
    let mut ids = Vec::new();
    for _ in 0..LIMIT {
        ids.push(server.create().await);
    }
    let message = format!(
        "you have reached the maximum number of concurrent E2B sandboxes ({LIMIT}). If you need more, \
         please visit 'https://e2b.dev/docs/billing'"
    );
    let answer = server
        .post("/sandboxes", json!({"templateID": "base"}))
        .await
        .expect(429, &message);
    assert_eq!(
        (answer.header("should-retry"), answer.header("retry-after")),
        (Some("false"), None)
    );
    server
        .delete(&format!("/sandboxes/{}", ids[0]))
        .await
        .status(204);
    server.create().await;
}

#[tokio::test]
async fn a_burst_makes_exactly_as_many_as_may_be() {
    let server = fixture().await;
    let creates = (0..LIMIT * 3).map(|_| server.post("/sandboxes", json!({"templateID": "base"})));
    let statuses = futures_util::future::join_all(creates).await;
    let made = statuses
        .iter()
        .filter(|answer| answer.status == 201)
        .count();
    assert_eq!(made, LIMIT as usize);
    assert!(
        statuses
            .iter()
            .all(|answer| answer.status == 201 || answer.status == 429)
    );
}

async fn create_with_key(server: &Fixture, key: &str, body: &Value) -> crate::fixture::Answer {
    let headers = [("x-api-key", KEY), ("idempotency-key", key)];
    server
        .call("POST", "/v2/sandboxes", &headers, Some(body.to_string()))
        .await
}

#[tokio::test]
async fn an_idempotency_key_makes_one_sandbox() {
    let server = fixture().await;
    let body = json!({"templateID": "base"});
    let first = create_with_key(&server, "k-1", &body).await.status(201);
    let again = create_with_key(&server, "k-1", &body).await.status(201);
    assert_eq!(first.body, again.body);
    assert_eq!(server.hosts.state().created.len(), 1);
    let other = create_with_key(&server, "k-1", &json!({"templateID": "other"})).await;
    let other = other.expect(
        422,
        "the Idempotency-Key was already used for a different request",
    );
    assert_eq!(other.error_code(), "idempotency_request_mismatch");
    assert_ne!(
        create_with_key(&server, "k-2", &body)
            .await
            .status(201)
            .id(),
        first.id()
    );
    for bad in ["", "UPPER", "a b", &"x".repeat(256)] {
        let answer = create_with_key(&server, bad, &body).await.status(400);
        assert!(answer.message().contains("Idempotency-Key"), "{answer:?}");
    }
}

#[tokio::test]
async fn an_idempotent_create_under_way_asks_to_come_again_and_a_failed_one_is_free() {
    let server = fixture().await;
    let body = json!({"templateID": "base"});
    server.hosts.state().slow_create = Duration::from_millis(300);
    let (first, second) = tokio::join!(create_with_key(&server, "k", &body), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        create_with_key(&server, "k", &body).await
    });
    first.status(201);
    let second = second.expect(
        409,
        "a request with this Idempotency-Key is still in progress",
    );
    assert_eq!(second.error_code(), "idempotency_in_progress");
    assert_eq!(
        (second.header("should-retry"), second.header("retry-after")),
        (Some("true"), Some("1"))
    );
    server.hosts.state().slow_create = Duration::ZERO;
    server.hosts.state().fail_creates = vec![HostFailure::Failed("once".into())];
    create_with_key(&server, "f", &body).await.status(500);
    create_with_key(&server, "f", &body).await.status(201);
}

#[tokio::test]
async fn a_sandbox_that_nobody_waited_for_is_killed() {
    let server = fixture().await;
    server.hosts.state().slow_create = Duration::from_millis(200);
    let create = server.post("/sandboxes", json!({"templateID": "base"}));
    let gone = tokio::time::timeout(Duration::from_millis(50), create).await;
    assert!(gone.is_err(), "the client went away before the answer");
    eventually("it was created", || {
        !server.hosts.state().created.is_empty()
    })
    .await;
    eventually("it was killed", || {
        let state = server.hosts.state();
        !state.killed.is_empty() && state.live.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_template_that_was_built_meanwhile_is_found() {
    let server = fixture().await;
    server.hosts.state().templates.push(template("fresh", 3));
    tokio::time::sleep(Duration::from_millis(1050)).await;
    server
        .post("/sandboxes", json!({"templateID": "fresh"}))
        .await
        .status(201);
    // A new build of a known template is taken after the host has told that the old one is gone.
    let newer = soulbox_control::HostTemplate {
        build_id: soulbox_types::BuildId::from_random([9; 16]),
        ..template("base", 1)
    };
    server.hosts.state().templates[0] = newer.clone();
    server.hosts.state().fail_creates = vec![HostFailure::TemplateMissing];
    server
        .post("/sandboxes", json!({"templateID": "base"}))
        .await
        .status(503);
    server.create().await;
    let last = server
        .hosts
        .state()
        .created
        .last()
        .expect("a create")
        .clone();
    assert_eq!(last.build_id, newer.build_id);
}
