//! What a template says for the creates of its sandboxes: taken where a create says nothing, and nothing more than that.

use serde_json::{Value, json};
use soulbox_types::Egress;

use crate::builds::{Built, finished, ids, with_builder};
use crate::create::seconds_left;
use crate::fixture::{Answer, Fixture, HOURS, KEY, OTHER_KEY, fixture};

const LOCKED: &str = "locked";

fn only(address: &str) -> Egress {
    Egress::Only(vec![address.parse().expect("an address")])
}

fn request(defaults: &Value) -> Value {
    json!({"name": LOCKED, "sandboxDefaults": defaults})
}

/// A server with the ready template `locked`.
async fn with_defaults(defaults: Value) -> (Built, String) {
    let mut built = with_builder(fixture().await);
    let of = built.server.post("/v3/templates", request(&defaults)).await;
    let of = ids(&of.status(202));
    let given = built.start(&of, json!({"fromImage": "debian:12"})).await;
    given.end.send(Ok(finished())).expect("it waits");
    assert_eq!(built.ended(&of).await["status"], "ready");
    (built, of.0)
}

/// What a sandbox is that was asked for like this: its end in seconds from its start, what happens then, and where it may connect to.
async fn made(server: &Fixture, path: &str, key: &str, more: Value) -> (i64, Value, Egress) {
    let mut body = json!({"templateID": LOCKED});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    let key = [("x-api-key", key)];
    let made = server.call("POST", path, &key, Some(body.to_string()));
    let id = made.await.status(201).id();
    let path = format!("/sandboxes/{id}");
    let detail = server.call("GET", &path, &key, None).await;
    let detail = detail.status(200).body;
    let lives = seconds_left(&detail);
    let egress = server.hosts.state().live[&id.parse().expect("an ID")]
        .egress
        .clone();
    // The team may have few at once.
    server.call("DELETE", &path, &key, None).await.status(204);
    (lives, detail["lifecycle"].clone(), egress)
}

fn lifecycle(on_timeout: &str, auto_resume: bool) -> Value {
    json!({"onTimeout": on_timeout, "autoResume": auto_resume})
}

#[tokio::test]
async fn a_create_that_says_nothing_gets_what_the_template_says() {
    let defaults = json!({"timeout": 900, "autoPause": true, "autoResume": {"enabled": true},
        "allow_internet_access": false, "network": {"allowOut": ["1.1.1.1"]}});
    let (built, id) = with_defaults(defaults.clone()).await;
    let server = &built.server;
    let shown = server.get(&format!("/templates/{id}")).await.status(200);
    assert_eq!(shown.body["builds"][0]["sandboxDefaults"], defaults);
    let contents = server
        .get(&format!("/templates/{LOCKED}/contents"))
        .await
        .status(200);
    assert_eq!(contents.body["sandboxDefaults"], defaults);

    let v2 = async |more| made(server, "/v2/sandboxes", KEY, more).await;
    let pauses = lifecycle("pause", true);
    assert_eq!(v2(json!({})).await, (900, pauses.clone(), only("1.1.1.1")));
    // As the Python package sends it, and with a network that says nothing of the way out.
    let bare = json!({"metadata": {}, "envVars": {}, "network": {"allowPublicTraffic": true}});
    assert_eq!(v2(bare).await, (900, pauses.clone(), only("1.1.1.1")));

    // Piece by piece, what a create says wins.
    assert_eq!(
        v2(json!({"timeout": 60})).await,
        (60, pauses.clone(), only("1.1.1.1"))
    );
    assert_eq!(
        v2(json!({"autoPause": false, "autoResume": {"enabled": false}})).await,
        (900, lifecycle("kill", false), only("1.1.1.1"))
    );
    assert_eq!(
        v2(json!({"autoPause": true, "autoPauseMemory": false})).await,
        (900, lifecycle("pause", false), only("1.1.1.1"))
    );
    for (network, egress) in [
        (json!({"allow_internet_access": true}), Egress::Open),
        (json!({"network": {"denyOut": []}}), Egress::Open),
        (json!({"allow_internet_access": false}), Egress::Denied),
        (
            json!({"network": {"allowOut": ["8.8.8.8"], "denyOut": ["0.0.0.0/0"]}}),
            only("8.8.8.8"),
        ),
    ] {
        assert_eq!(v2(network).await, (900, pauses.clone(), egress));
    }

    // Older packages send these three whatever their user says.
    let v1 = async |more| made(server, "/sandboxes", KEY, more).await;
    let old = json!({"timeout": 300, "secure": true, "allow_internet_access": true});
    assert_eq!(v1(old).await, (300, pauses.clone(), only("1.1.1.1")));
    assert_eq!(
        v1(json!({"allow_internet_access": false})).await,
        (900, pauses, Egress::Denied)
    );
}

#[tokio::test]
async fn without_defaults_nothing_is_other_than_before() {
    let (built, id) = with_defaults(json!({"network": null, "mcp": null})).await;
    let server = &built.server;
    let shown = server.get(&format!("/templates/{id}")).await.status(200);
    assert!(shown.body["builds"][0].get("sandboxDefaults").is_none());
    let kills = lifecycle("kill", false);
    let v2 = made(server, "/v2/sandboxes", KEY, json!({})).await;
    assert_eq!(v2, (300, kills.clone(), Egress::Open));
    let v1 = json!({"allow_internet_access": true});
    let v1 = made(server, "/sandboxes", KEY, v1).await;
    assert_eq!(v1, (15, kills, Egress::Open));
}

#[tokio::test]
async fn what_traffic_cannot_resume_is_refused() {
    let disk = json!({"autoPause": true, "autoPauseMemory": false});
    let (built, _) = with_defaults(disk).await;
    let server = &built.server;
    let v2 = made(server, "/v2/sandboxes", KEY, json!({})).await;
    assert_eq!(v2.1, lifecycle("pause", false));
    let body = json!({"templateID": LOCKED, "autoResume": {"enabled": true}});
    server.post("/v2/sandboxes", body).await.expect(
        400,
        "autoPauseMemory=false (filesystem-only auto-pause) cannot be combined with autoResume.",
    );
}

#[tokio::test]
async fn defaults_that_no_create_could_have_are_refused() {
    let server = fixture().await;
    let refused = async |defaults: Value| -> Answer {
        server.post("/v3/templates", request(&defaults)).await
    };
    for (defaults, status, text) in [
        (json!({"timeout": 0}), 400, "Timeout must be greater than 0"),
        (
            json!({"timeout": HOURS * 3600 + 1}),
            400,
            "Timeout cannot be greater than 2 hours",
        ),
        (
            json!({"autoPauseMemory": false}),
            400,
            "autoPauseMemory=false only applies when autoPause is true.",
        ),
        (
            json!({"network": {"denyOut": ["nowhere"]}}),
            400,
            "invalid denied CIDR nowhere",
        ),
        (
            json!({"network": {"allowPublicTraffic": false}}),
            400,
            "network.allowPublicTraffic can be set only when the sandbox is created",
        ),
        (
            json!({"network": {"dnsServers": ["8.8.8.8"]}}),
            501,
            "field \"network.dnsServers\" is not implemented yet",
        ),
        (
            json!({"volumeMounts": [{"name": "v", "path": "/v"}]}),
            501,
            "field \"sandboxDefaults.volumeMounts\" is not implemented yet",
        ),
    ] {
        refused(defaults).await.expect(status, text);
    }
    let found = server.get("/templates/aliases/locked").await;
    assert_eq!(found.status, 404, "nothing was made");
}

#[tokio::test]
async fn a_team_gets_no_longer_life_of_another_teams_template() {
    let (built, id) = with_defaults(json!({"timeout": 7200})).await;
    let server = &built.server;
    let public = Some(json!({"public": true}).to_string());
    let path = format!("/v2/templates/{id}");
    let published = server.call("PATCH", &path, &[("x-api-key", KEY)], public);
    published.await.status(200);
    let one_hour = |team: &mut soulbox_control::TeamRow| team.max_sandbox_hours = Some(1);
    let team = server.add_team("short", "e2b_5407", one_hour).await;
    assert_ne!(team.slug, "default");
    let body = json!({"templateID": id});
    let other = made(server, "/v2/sandboxes", OTHER_KEY, body.clone()).await;
    assert_eq!(other.0, 7200, "the usual limit is longer");
    let short = made(server, "/v2/sandboxes", "e2b_5407", body).await;
    assert_eq!(short.0, 3600);
}

#[tokio::test]
async fn a_snapshot_has_the_defaults_of_its_sandboxs_template() {
    let defaults = json!({"timeout": 900, "network": {"denyOut": ["8.8.8.8"]}});
    let (built, _) = with_defaults(defaults).await;
    let server = &built.server;
    // The sandbox itself was asked for otherwise.
    let body = json!({"templateID": LOCKED, "network": {"denyOut": []}});
    let id = server.post("/v2/sandboxes", body).await.status(201).id();
    let path = format!("/sandboxes/{id}/snapshots");
    let snapshot = server.post(&path, json!({})).await.status(201).body;
    let from = made(
        server,
        "/v2/sandboxes",
        KEY,
        json!({"templateID": snapshot["snapshotID"]}),
    )
    .await;
    let denied = Egress::Except {
        denied: vec!["8.8.8.8".parse().expect("an address")],
        allowed: Vec::new(),
    };
    assert_eq!((from.0, from.2), (900, denied));
}
