//! `/init`: who may call it and what it changes.

use serde_json::json;
use soulbox_envd_proto::{INIT_SIGNATURE_HEADER, sign_init};

use crate::daemon::{Daemon, json as body};

const SECRET: &[u8] = b"0123456789abcdef";

fn init(daemon: &Daemon, request: &serde_json::Value, secret: &[u8]) -> u16 {
    let text = request.to_string();
    let signature = sign_init(secret, text.as_bytes());
    daemon
        .post(
            "/init",
            &[(INIT_SIGNATURE_HEADER, &signature)],
            text.as_bytes(),
        )
        .status()
        .as_u16()
}

#[test]
fn only_the_holder_of_the_secret_may_call_it() {
    let daemon = Daemon::start_with_secret(SECRET);
    let request = json!({"accessToken": "first"});
    // Until then it is nobody's, and takes orders from nobody.
    assert_eq!(daemon.get("/envs", &[]).status(), 401);
    assert_eq!(daemon.get("/files?path=/etc/passwd", &[]).status(), 401);
    assert_eq!(daemon.get("/health", &[]).status(), 204);
    assert_eq!(
        daemon
            .post("/init", &[], request.to_string().as_bytes())
            .status(),
        401
    );
    assert_eq!(init(&daemon, &request, b"another secret!!"), 401);
    assert_eq!(init(&daemon, &request, SECRET), 204);
    assert_eq!(
        init(&daemon, &json!({"accessToken": "second"}), SECRET),
        204
    );
    let token = |token: &str| {
        daemon
            .get("/envs", &[("x-access-token", token)])
            .status()
            .as_u16()
    };
    assert_eq!(
        (
            token("first"),
            token("second"),
            daemon.get("/envs", &[]).status().as_u16()
        ),
        (401, 200, 401)
    );
    // Clearing needs the secret too, and is what an absent token means.
    assert_eq!(init(&daemon, &json!({}), SECRET), 204);
    assert_eq!(daemon.get("/envs", &[]).status(), 200);
}

#[test]
fn answers_name_the_version_and_refuse_what_is_not_done() {
    let daemon = Daemon::start();
    let response = daemon.post("/init", &[], b"");
    assert_eq!(
        (
            response.status().as_u16(),
            response.headers()["x-envd-version"].as_bytes()
        ),
        (204, b"0.6.13".as_slice())
    );
    let status = |text: &str| daemon.post("/init", &[], text.as_bytes()).status().as_u16();
    assert_eq!(
        status(r#"{"volumeMounts":[{"nfs_target":"host:/x","path":"/m"}]}"#),
        501
    );
    assert_eq!(status(r#"{"hyperloopIP":"192.0.2.1"}"#), 501);
    assert_eq!(status(r#"{"accessToken":""}"#), 400);
    assert_eq!(status("{"), 400);
}

#[test]
fn token_guards_everything_but_the_open_routes() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon
            .post("/init", &[], br#"{"accessToken":"secret"}"#)
            .status(),
        204
    );
    let refused = daemon.post(
        "/process.Process/List",
        &[("content-type", "application/json")],
        b"{}",
    );
    assert_eq!(refused.status(), 401);
    assert_eq!(body(refused)["code"], 401);
    let stream = daemon.post(
        "/process.Process/Start",
        &[("content-type", "application/connect+json")],
        b"",
    );
    assert_eq!(stream.status(), 401);
    assert_eq!(daemon.get("/metrics", &[]).status(), 401);
    assert_eq!(daemon.get("/health", &[]).status(), 204);
    let daemon = daemon.with_header("x-access-token", "secret");
    assert_eq!(daemon.ok("process.Process/List", json!({})), json!({}));
    assert_eq!(daemon.get("/metrics", &[]).status(), 200);
}

#[test]
fn defaults_and_limits_take_effect() {
    let daemon = Daemon::start();
    let request = json!({"defaultUser": "nobody", "defaultWorkdir": "/tmp", "limits": {"memoryBytes": 1_u64 << 30, "cpuMillis": 1500, "diskBytes": 5_u64 << 30}});
    assert_eq!(
        daemon
            .post("/init", &[], request.to_string().as_bytes())
            .status(),
        204
    );
    assert_eq!(daemon.run("id -un; pwd").text(), "nobody\n/tmp\n");
    let metrics = body(daemon.get("/metrics", &[]));
    assert_eq!(
        (
            &metrics["mem_total"],
            &metrics["cpu_count"],
            &metrics["disk_total"]
        ),
        (&json!(1_u64 << 30), &json!(2), &json!(5_u64 << 30))
    );
    assert!(metrics["mem_used"].as_u64() > Some(0), "{metrics}");
    // What the quota counts is not to be seen from inside; the host tells it.
    assert!(metrics.get("disk_used").is_none(), "{metrics}");
    let told = |usage| daemon.get("/metrics", &[("x-soulbox-usage", usage)]);
    let metrics = body(told(
        r#"{"cpuMicros":1,"memory":2097152,"cache":3,"disk":4}"#,
    ));
    for (name, expected) in [
        ("mem_used", 2 << 20),
        ("mem_used_mib", 2),
        ("mem_cache", 3),
        ("disk_used", 4),
    ] {
        assert_eq!(metrics[name], json!(expected), "{metrics}");
    }
    let refused = told("{}");
    assert_eq!(refused.status(), 400);
    assert!(
        body(refused)["message"]
            .as_str()
            .is_some_and(|it| it.contains("x-soulbox-usage"))
    );
    assert_eq!(
        daemon
            .post("/init", &[], br#"{"defaultUser":"no-such-user"}"#)
            .status(),
        204
    );
    assert_eq!(daemon.run("true").code(), "unauthenticated");
}

#[test]
fn guests_cannot_look_into_the_daemon() {
    let daemon = Daemon::start();
    // Not dumpable: /proc/PID/environ belongs to root and asks for ptrace rights, which another user has not.
    let basic = format!("Basic {}", crate::daemon::encoded(b"nobody:"));
    let script = format!(
        "cat /proc/{}/environ >/dev/null 2>&1 && echo readable || echo denied",
        daemon.pid()
    );
    let stream = daemon.run_with(
        &script,
        json!({"process": {"cwd": "/"}}),
        &[("authorization", &basic)],
    );
    assert_eq!(stream.text(), "denied\n");
}
