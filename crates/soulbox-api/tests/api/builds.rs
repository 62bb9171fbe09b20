//! Builds of templates over the API, with a builder that does what the test says.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use soulbox_control::{
    BuildFailure, BuildJob, BuildReporter, BuildSource, Builder, Contents, ControlSettings,
    FinishedBuild, LogLevel, Package, PackageKind, StepRules, Store,
};
use soulbox_types::BuildId;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::fixture::{
    ACCESS_TOKEN, ADMIN_TOKEN, Answer, Fixture, KEY, OTHER_KEY, fixture, fixture_with, start,
    template,
};

type Outcome = Result<FinishedBuild, BuildFailure>;

/// A build that the builder was given, and its end.
pub(crate) struct Given {
    pub(crate) job: BuildJob,
    pub(crate) reporter: BuildReporter,
    pub(crate) end: oneshot::Sender<Outcome>,
}

/// Gives every job to the test, and ends it as the test says, or when it is cancelled.
struct FakeBuilder {
    given: mpsc::Sender<Given>,
    forgotten: Arc<Mutex<Vec<BuildId>>>,
}

#[async_trait]
impl Builder for FakeBuilder {
    async fn build(&self, job: BuildJob, reporter: BuildReporter) -> Outcome {
        let cancelled = job.cancelled.clone();
        let (end, ended) = oneshot::channel();
        let given = Given { job, reporter, end };
        self.given.send(given).await.expect("the test listens");
        let gone = Err(BuildFailure {
            step: None,
            message: "the test let go".to_owned(),
        });
        tokio::select! {
            outcome = ended => outcome.unwrap_or(gone),
            () = cancelled.cancelled() => gone,
        }
    }

    async fn contents(&self, build_id: &BuildId) -> Result<Option<Contents>, String> {
        if self.forgotten.lock().await.contains(build_id) {
            return Ok(None);
        }
        Ok(Some(Contents {
            layers: vec![format!("layer of {build_id}")],
            packages: vec![Package {
                kind: PackageKind::Python,
                name: "requests".to_owned(),
                version: "2.0".to_owned(),
            }],
        }))
    }

    async fn forget(&self, builds: &[BuildId]) -> Vec<BuildId> {
        self.forgotten.lock().await.extend_from_slice(builds);
        builds.to_vec()
    }
}

pub(crate) struct Built {
    pub(crate) server: Fixture,
    pub(crate) given: mpsc::Receiver<Given>,
    forgotten: Arc<Mutex<Vec<BuildId>>>,
}

pub(crate) fn with_builder(server: Fixture) -> Built {
    let (given, receiver) = mpsc::channel(8);
    let forgotten = Arc::default();
    let builder = FakeBuilder {
        given,
        forgotten: Arc::clone(&forgotten),
    };
    server.control.set_builder(Arc::new(builder));
    Built {
        server,
        given: receiver,
        forgotten,
    }
}

pub(crate) fn finished() -> FinishedBuild {
    FinishedBuild {
        layers: vec!["l".to_owned()],
        default_user: "web".to_owned(),
        default_workdir: "/srv".to_owned(),
        env: [("A".to_owned(), "1".to_owned())].into(),
        start_command: None,
        ready_command: None,
        envd_version: "0.6.13".to_owned(),
        disk_mib: 10_240,
    }
}

/// Template and build of an answer.
pub(crate) fn ids(answer: &Answer) -> (String, String) {
    let id = |field: &str| answer.body[field].as_str().expect("an ID").to_owned();
    (id("templateID"), id("buildID"))
}

impl Built {
    pub(crate) async fn request(&self, name: &str) -> (String, String) {
        let answer = self.server.post("/v3/templates", json!({"name": name}));
        ids(&answer.await.status(202))
    }

    pub(crate) async fn start(&mut self, of: &(String, String), body: Value) -> Given {
        let path = format!("/v2/templates/{}/builds/{}", of.0, of.1);
        self.server.post(&path, body).await.status(202);
        self.given.recv().await.expect("a job")
    }

    /// A ready build of that name.
    pub(crate) async fn ready(&mut self, name: &str) -> (String, String) {
        let of = self.request(name).await;
        let given = self.start(&of, json!({"fromImage": "debian:12"})).await;
        given.end.send(Ok(finished())).expect("it waits");
        assert_eq!(self.ended(&of).await["status"], "ready");
        of
    }

    pub(crate) async fn status(&self, of: &(String, String), query: &str) -> Value {
        let path = format!("/templates/{}/builds/{}/status{query}", of.0, of.1);
        self.server.get(&path).await.status(200).body
    }

    pub(crate) async fn ended(&self, of: &(String, String)) -> Value {
        for _ in 0..500 {
            let status = self.status(of, "").await;
            if status["status"] == "ready" || status["status"] == "error" {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the build does not end");
    }
}

#[tokio::test]
async fn a_request_has_an_answer_with_defaults_in_full() {
    let server = fixture().await;
    let first = server
        .post("/v3/templates", json!({"name": "t1", "unknown": 1}))
        .await
        .status(202);
    let (template_id, build_id) = ids(&first);
    let expected = json!({"templateID": template_id, "buildID": build_id, "public": false,
        "names": ["default/t1"], "tags": ["default"], "aliases": ["t1"]});
    assert_eq!(first.body, expected);
    let shown = server
        .get(&format!("/templates/{template_id}"))
        .await
        .status(200);
    assert_eq!(
        (&shown.body["cpuCount"], &shown.body["memoryMB"]),
        (&json!(2), &json!(1024))
    );
    assert_eq!(shown.body["buildStatus"], "waiting");
    let body =
        json!({"name": "Default/T1:v2", "tags": ["V2", "latest"], "cpuCount": 1, "memoryMB": 512});
    let second = server.post("/v3/templates", body).await.status(202);
    assert_eq!(ids(&second).0, template_id, "the same template");
    assert_eq!(second.body["tags"], json!(["v2", "latest"]));
    let old = server
        .post("/v2/templates", json!({"alias": "t1"}))
        .await
        .status(202);
    assert_eq!(ids(&old).0, template_id);
    let other = [("x-api-key", OTHER_KEY)];
    let body = Some(json!({"name": "t1"}).to_string());
    let foreign = server
        .call("POST", "/v3/templates", &other, body)
        .await
        .status(202);
    assert_ne!(ids(&foreign).0, template_id);
    let found = server
        .call("GET", "/templates/aliases/t1", &other, None)
        .await
        .status(200);
    assert_eq!(found.body["templateID"], ids(&foreign).0);
}

#[tokio::test]
async fn bad_requests_say_why() {
    let server = fixture_with(|settings| settings.max_builds = 2).await;
    let post = async |body: Value| server.post("/v3/templates", body).await;
    post(json!({})).await.expect(400, "Name is required");
    post(json!({"name": " "}))
        .await
        .expect(400, "Name is required");
    post(json!({"name": "A B"})).await.status(400);
    post(json!({"name": "a".repeat(129)})).await.status(400);
    let message = "namespace 'other' must match your team 'default'";
    post(json!({"name": "other/x"})).await.expect(400, message);
    let uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    let refused = post(json!({"name": "a", "tags": [uuid]})).await.status(400);
    assert!(
        refused.message().ends_with("tag cannot be a UUID"),
        "{refused:?}"
    );
    post(json!({"name": format!("a:{uuid}")})).await.status(400);
    post(json!({"name": "a", "tags": ["x/y"]}))
        .await
        .status(400);
    let starts = |answer: Answer, text: &str| {
        let answer = answer.status(400);
        assert!(answer.message().starts_with(text), "{answer:?}");
    };
    starts(
        post(json!({"name": "a", "cpuCount": 0})).await,
        "validation error",
    );
    starts(
        post(json!({"name": "a", "cpuCount": 3})).await,
        "CPU count must be 1 or an even number",
    );
    starts(
        post(json!({"name": "a", "cpuCount": 64})).await,
        "CPU count can't be higher than",
    );
    starts(
        post(json!({"name": "a", "memoryMB": 64})).await,
        "validation error",
    );
    starts(
        post(json!({"name": "a", "memoryMB": 1025})).await,
        "Memory must be divisible by 2",
    );
    starts(
        post(json!({"name": "a", "memoryMB": 1 << 20})).await,
        "Memory can't be higher than",
    );
    starts(
        post(json!({"name": "a", "minFreeDiskMb": -1})).await,
        "validation error",
    );
    starts(
        post(json!({"name": "a", "teamID": uuid})).await,
        "Team ID param mismatch",
    );
    let base = template("base", 1).template_id;
    let taken = post(json!({"name": base.as_str()})).await;
    taken.expect(409, &format!("Alias '{base}' is already used"));
    assert_eq!(
        server.get("/templates").await.body.as_array().map(Vec::len),
        Some(2),
        "none was made"
    );
    post(json!({"name": "a", "minFreeDiskMb": 0}))
        .await
        .status(202);
    post(json!({"name": "a", "tags": ["b"], "teamID": "prj_1"}))
        .await
        .status(202);
    let full = post(json!({"name": "c"})).await.status(429);
    assert!(
        full.message().contains("concurrent template builds (2)"),
        "{full:?}"
    );
    assert_eq!(
        (full.header("retry-after"), full.header("should-retry")),
        (Some("2"), Some("true"))
    );
    post(json!({"name": "a", "tags": ["b"]})).await.status(202);
}

#[tokio::test]
async fn a_build_goes_from_waiting_to_ready_with_its_log() {
    let mut built = with_builder(fixture().await);
    let of = built.request("t1").await;
    let waiting = built.status(&of, "").await;
    let expected = json!({"templateID": of.0, "buildID": of.1, "status": "waiting", "logs": [], "logEntries": []});
    assert_eq!(waiting, expected);
    let body = json!({"fromImage": "debian:12", "force": true, "startCmd": "serve", "readyCmd": "",
        "steps": [{"type": "run", "args": ["true"], "forceUpload": true},
            {"type": "COPY", "args": ["a", "b", "", ""], "filesHash": "ab".repeat(32), "force": true}]});
    let given = built.start(&of, body.clone()).await;
    assert_eq!(built.status(&of, "").await["status"], "building");
    let path = format!("/v2/templates/{}/builds/{}", of.0, of.1);
    built
        .server
        .post(&path, body)
        .await
        .expect(400, "build is not in waiting state");
    let job = &given.job;
    assert_eq!(
        (job.build_id.as_str(), job.template_id.as_str()),
        (of.1.as_str(), of.0.as_str())
    );
    let wanted = &job.specification;
    assert_eq!(wanted.source, BuildSource::Image("debian:12".to_owned()));
    assert_eq!(
        (
            wanted.start_command.as_deref(),
            wanted.ready_command.as_deref()
        ),
        (Some("serve"), None)
    );
    assert_eq!(
        (
            wanted.force,
            wanted.steps[0].kind.as_str(),
            wanted.steps[1].force
        ),
        (true, "RUN", true)
    );
    assert_eq!((job.rules, &job.parent), (StepRules::V2_1, &None));
    for number in 1..=129 {
        let level = if number == 100 {
            LogLevel::Warn
        } else {
            LogLevel::Info
        };
        given
            .reporter
            .log(level, Some("1"), format!("line {number}"))
            .await;
    }
    given.end.send(Ok(finished())).expect("it waits");
    let ended = built.ended(&of).await;
    assert_eq!(
        (&ended["status"], &ended["reason"]),
        (&json!("ready"), &Value::Null)
    );
    // The first line and the last are control's own.
    let page = |value: &Value| value["logEntries"].as_array().expect("a list").clone();
    let first = page(&built.status(&of, "?logsOffset=0").await);
    let rest = page(&built.status(&of, "?logsOffset=100&limit=100").await);
    assert_eq!((first.len(), rest.len()), (100, 31));
    assert_eq!(
        first[0]["message"],
        format!("Building template {}/{}", of.0, of.1)
    );
    assert_eq!(
        (&first[1]["message"], &first[1]["step"]),
        (&json!("line 1"), &json!("1"))
    );
    assert!(
        rest[30]["message"]
            .as_str()
            .is_some_and(|it| it.starts_with("Build finished, took "))
    );
    assert_eq!(
        page(&built.status(&of, "?logsOffset=131").await),
        Vec::<Value>::new()
    );
    assert_eq!(
        page(&built.status(&of, "?limit=0").await),
        Vec::<Value>::new()
    );
    let warnings = page(&built.status(&of, "?level=warn").await);
    assert_eq!(
        (warnings.len(), &warnings[0]["message"]),
        (1, &json!("line 100"))
    );
    let logs = format!("/templates/{}/builds/{}/logs", of.0, of.1);
    let newest = built
        .server
        .get(&format!(
            "{logs}?direction=backward&limit=2&source=persistent"
        ))
        .await;
    let newest = newest.status(200);
    assert_eq!(newest.body["logs"][1]["message"], "line 129");
    let cursor = "?direction=backward&cursor=1000";
    assert_eq!(
        built.server.get(&format!("{logs}{cursor}")).await.body,
        json!({"logs": []})
    );
    for bad in [
        "?direction=up",
        "?level=loud",
        "?source=x",
        "?limit=101",
        "?cursor=now",
    ] {
        built.server.get(&format!("{logs}{bad}")).await.status(400);
    }
    // A create from it has what the build says.
    built
        .server
        .post("/sandboxes", json!({"templateID": "t1"}))
        .await
        .status(201);
    let created = built
        .server
        .hosts
        .state()
        .created
        .last()
        .expect("a create")
        .clone();
    assert_eq!(created.build_id.as_str(), of.1);
    assert_eq!(
        (
            created.default_user.as_str(),
            created.default_workdir.as_str()
        ),
        ("web", "/srv")
    );
}

#[tokio::test]
async fn the_contents_of_a_template_are_those_of_the_build_that_is_meant() {
    let built = with_builder(fixture().await);
    let shown = built.server.get("/templates/base/contents").await;
    let shown = shown.status(200).body;
    assert_eq!(
        shown["layers"],
        json!([format!(
            "layer of {}",
            shown["buildID"].as_str().expect("an ID")
        )])
    );
    let package = json!({"kind": "python", "name": "requests", "version": "2.0"});
    assert_eq!(shown["packages"], json!([package]));
    built
        .server
        .get("/templates/nothing/contents")
        .await
        .status(404);
    built
        .server
        .get("/templates/base:nothing/contents")
        .await
        .status(404);

    let build_id = shown["buildID"].as_str().expect("an ID").parse();
    built
        .forgotten
        .lock()
        .await
        .push(build_id.expect("an ID of a build"));
    let gone = built.server.get("/templates/base/contents").await;
    let gone = gone.status(503).body;
    assert_eq!(gone["error_code"], "sandbox_no_compatible_node");
    assert_eq!(
        gone["message"],
        "no host has the files of this template build"
    );
}

#[tokio::test]
async fn the_log_of_a_build_has_an_end() {
    let mut built = with_builder(fixture().await);
    let of = built.request("t1").await;
    let given = built.start(&of, json!({"fromImage": "a"})).await;
    for number in 1..=20_500 {
        let text = format!("line {number}");
        given.reporter.log(LogLevel::Info, Some("1"), text).await;
    }
    given.end.send(Ok(finished())).expect("it waits");
    assert_eq!(built.ended(&of).await["status"], "ready");
    let last = built.status(&of, "?logsOffset=19999").await;
    let last = last["logEntries"].as_array().expect("a list").clone();
    let texts: Vec<_> = last
        .iter()
        .filter_map(|it| it["message"].as_str())
        .collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert_eq!(
        texts[..2],
        ["line 19999", "more than 20000 lines, the rest is not kept"]
    );
    assert!(texts[2].starts_with("Build finished, took "), "{texts:?}");
}

#[tokio::test]
async fn a_failure_names_its_step_and_the_old_build_stays() {
    let mut built = with_builder(fixture().await);
    let good = built.ready("t1").await;
    let of = built.request("t1").await;
    let given = built.start(&of, json!({"fromImage": "debian:12"})).await;
    given
        .reporter
        .log(LogLevel::Error, Some("2"), "false: exit status 1")
        .await;
    given
        .reporter
        .log(LogLevel::Error, Some("1"), "another step")
        .await;
    let failure = BuildFailure {
        step: Some("2".to_owned()),
        message: "failed to run command 'false': exit status 1".to_owned(),
    };
    given.end.send(Err(failure.clone())).expect("it waits");
    let ended = built.ended(&of).await;
    assert_eq!(ended["status"], "error");
    let reason = &ended["reason"];
    assert_eq!(
        (&reason["message"], &reason["step"]),
        (&json!(failure.message), &json!("2"))
    );
    let entries = reason["logEntries"].as_array().expect("a list");
    assert_eq!(
        (entries.len(), &entries[0]["message"]),
        (1, &json!("false: exit status 1"))
    );
    let shown = built
        .server
        .get(&format!("/templates/{}", of.0))
        .await
        .status(200);
    assert_eq!(
        (&shown.body["buildStatus"], &shown.body["buildID"]),
        (&json!("error"), &json!(good.1))
    );
    let created = built
        .server
        .post("/sandboxes", json!({"templateID": "t1"}))
        .await;
    created.status(201);
    assert_eq!(
        built
            .server
            .hosts
            .state()
            .created
            .last()
            .expect("one")
            .build_id
            .as_str(),
        good.1
    );
    let exact = json!({"templateID": format!("t1:{}", of.1)});
    built.server.post("/sandboxes", exact).await.status(404);
}

#[tokio::test]
async fn a_newer_build_of_the_tag_takes_the_place() {
    let mut built = with_builder(fixture().await);
    let first = built.request("t1").await;
    let second = built.request("t1").await;
    let ended = built.status(&first, "").await;
    assert_eq!(ended["status"], "error");
    assert!(
        ended["reason"]["message"]
            .as_str()
            .is_some_and(|it| it.contains("superseded")),
        "{ended}"
    );
    let image = json!({"fromImage": "debian:12"});
    let under_way = built.start(&second, image.clone()).await;
    let other_tag = built.request("t1:v1").await;
    let beside = built.start(&other_tag, image.clone()).await;
    assert!(
        !under_way.job.cancelled.is_cancelled(),
        "other tags are built beside it"
    );
    let third = built.request("t1").await;
    let newest = built.start(&third, image).await;
    tokio::time::timeout(Duration::from_secs(5), under_way.job.cancelled.cancelled())
        .await
        .expect("cancelled");
    assert_eq!(built.ended(&second).await["status"], "error");
    assert!(!beside.job.cancelled.is_cancelled());
    newest.end.send(Ok(finished())).expect("it waits");
    assert_eq!(built.ended(&third).await["status"], "ready");
}

#[tokio::test]
async fn a_template_to_go_on_from_is_found_or_fails_the_build_at_its_base() {
    let mut built = with_builder(fixture().await);
    let parent = built.ready("parent").await;
    let of = built.request("child").await;
    let given = built
        .start(&of, json!({"fromTemplate": "parent", "steps": []}))
        .await;
    let found = given.job.parent.expect("a parent");
    assert_eq!(found.row.build_id.as_str(), parent.1);
    assert_eq!(found.finished, Some(finished()));
    given.end.send(Ok(finished())).expect("it waits");
    let of = built.request("child2").await;
    let base = built
        .start(&of, json!({"fromTemplate": "base"}))
        .await
        .job
        .parent;
    assert_eq!(
        base.map(|it| (it.row.build_id, it.finished)),
        Some((template("base", 1).build_id, None))
    );
    for (name, message) in [
        ("nothing-here", "template 'nothing-here' not found"),
        ("A B", "template 'A B' not found"),
        ("parent:v9", "tag 'v9' does not exist for template 'parent'"),
    ] {
        let of = built.request("child3").await;
        let path = format!("/v2/templates/{}/builds/{}", of.0, of.1);
        built
            .server
            .post(&path, json!({"fromTemplate": name}))
            .await
            .status(202);
        let ended = built.status(&of, "").await;
        assert_eq!(ended["status"], "error", "{name}");
        let reason = (&ended["reason"]["message"], &ended["reason"]["step"]);
        assert_eq!(reason, (&json!(message), &json!("base")));
    }
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why_and_the_build_waits_on() {
    let server = fixture().await;
    let answer = server
        .post("/v3/templates", json!({"name": "t1"}))
        .await
        .status(202);
    let of = ids(&answer);
    let path = format!("/v2/templates/{}/builds/{}", of.0, of.1);
    let body = json!({"fromImage": "debian:12"});
    let missing = server.post(&path, body.clone()).await.status(501);
    assert_eq!(missing.error_code(), "not_implemented");
    let built = with_builder(server);
    let server = &built.server;
    let neither = "must specify either fromImage or fromTemplate";
    server.post(&path, json!({})).await.expect(400, neither);
    server
        .post(&path, json!({"fromImage": ""}))
        .await
        .expect(400, neither);
    let both = json!({"fromImage": "a", "fromTemplate": "b"});
    server
        .post(&path, both)
        .await
        .expect(400, "cannot specify both fromImage and fromTemplate");
    let step = json!({"fromImage": "a", "steps": [{"type": "COPY", "filesHash": "../x"}]});
    server
        .post(&path, step)
        .await
        .expect(400, "Invalid files hash");
    server
        .post(&path, json!({"fromImage": "a", "steps": [{"args": []}]}))
        .await
        .status(400);
    let agent = |text: &'static str| [("x-api-key", KEY), ("user-agent", text)];
    let old = agent("e2b-js-sdk/x");
    let answer = server.call("POST", &path, &old, Some(body.to_string()));
    answer.await.status(400);
    let status = format!("/templates/{}/builds/", of.0);
    server
        .get(&format!("{status}x/status"))
        .await
        .expect(400, "Invalid build ID: x");
    let unknown = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    let message = format!("Build '{unknown}' not found");
    server
        .get(&format!("{status}{unknown}/status"))
        .await
        .expect(400, &message);
    let elsewhere = format!(
        "/templates/{}/builds/{}/status",
        template("base", 1).template_id,
        of.1
    );
    server.get(&elsewhere).await.status(400);
    let other = [("x-api-key", OTHER_KEY)];
    let foreign = format!("{status}{}/status", of.1);
    let message = "User does not have access to the template";
    server
        .call("GET", &foreign, &other, None)
        .await
        .expect(403, message);
    server
        .call("POST", &path, &other, Some(body.to_string()))
        .await
        .expect(403, message);
    assert_eq!(built.status(&of, "").await["status"], "waiting");
    let old = agent("e2b-python-sdk/2.2.9 x");
    let answer = server.call("POST", &path, &old, Some(body.to_string()));
    answer.await.status(202);
    let mut built = built;
    assert_eq!(
        built.given.recv().await.expect("a job").job.rules,
        StepRules::V2_0
    );
}

#[tokio::test]
async fn builds_end_when_they_take_too_long_or_nobody_performs_them() {
    let mut built =
        with_builder(fixture_with(|it| it.build_within = Duration::from_millis(100)).await);
    let of = built.request("t1").await;
    let _given = built.start(&of, json!({"fromImage": "a"})).await;
    assert_eq!(
        built.ended(&of).await["reason"]["message"],
        "build timed out"
    );

    let mut built = with_builder(fixture().await);
    let waiting = built.request("t1").await;
    let of = built.request("t2").await;
    let _given = built.start(&of, json!({"fromImage": "a"})).await;
    // The next server finds a build that nobody performs.
    let settings = ControlSettings::new(b"seed".to_vec(), ADMIN_TOKEN.to_owned());
    let next = start(
        built.server.hosts.clone(),
        built.server.store.clone(),
        settings,
    )
    .await;
    let status = |of: &(String, String)| format!("/templates/{}/builds/{}/status", of.0, of.1);
    let lost = next.get(&status(&of)).await.status(200);
    assert_eq!(lost.body["status"], "error");
    assert!(
        lost.body["reason"]["message"]
            .as_str()
            .is_some_and(|it| it.contains("ended")),
        "{lost:?}"
    );
    assert_eq!(next.get(&status(&waiting)).await.body["status"], "waiting");
}

#[tokio::test]
async fn the_administrator_cancels_all_builds_of_a_team() {
    let mut built = with_builder(fixture().await);
    let waiting = built.request("t1").await;
    let of = built.request("t2").await;
    let given = built.start(&of, json!({"fromImage": "a"})).await;
    let team = built.server.store.teams().await.expect("read");
    let team = team
        .iter()
        .find(|it| it.slug == "default")
        .expect("there")
        .team_id
        .clone();
    let path = format!("/admin/teams/{team}/builds/cancel");
    let admin = [("x-admin-token", ADMIN_TOKEN)];
    let cancelled = built
        .server
        .call("POST", &path, &admin, None)
        .await
        .status(200);
    assert_eq!(
        cancelled.body,
        json!({"cancelledCount": 2, "failedCount": 0})
    );
    assert!(given.job.cancelled.is_cancelled());
    for of in [waiting, of] {
        assert_eq!(
            built.ended(&of).await["reason"]["message"],
            "build was cancelled"
        );
    }
    let nobody = "/admin/teams/6ba7b810-9dad-41d1-80b4-00c04fd430c8/builds/cancel";
    built
        .server
        .call("POST", nobody, &admin, None)
        .await
        .expect(404, "Team not found");
}

#[tokio::test]
async fn a_template_is_deleted_by_its_team_when_nothing_uses_it() {
    let mut built = with_builder(fixture().await);
    let of = built.ready("t1").await;
    let server = &built.server;
    let other = [("x-api-key", OTHER_KEY)];
    server
        .call("DELETE", "/templates/t1", &other, None)
        .await
        .expect(404, "template 't1' not found");
    let by_id = format!("/templates/{}", of.0);
    let foreign = "You don't have access to this template";
    server
        .call("DELETE", &by_id, &other, None)
        .await
        .expect(403, foreign);
    let sandbox = server
        .post("/sandboxes", json!({"templateID": "t1"}))
        .await
        .status(201)
        .id();
    let used = "cannot delete template 't1' because there are running sandboxes using it";
    server.delete("/templates/t1").await.expect(400, used);
    server
        .delete(&format!("/sandboxes/{sandbox}"))
        .await
        .status(204);
    // It has a tag besides that one.
    server.delete("/templates/t1:other").await.status(400);
    server.delete("/templates/default%2Ft1").await.status(204);
    server
        .delete("/templates/t1")
        .await
        .expect(404, "template 't1' not found");
    server
        .get(&by_id)
        .await
        .expect(404, &format!("Template {} not found", of.0));
    server
        .post("/sandboxes", json!({"templateID": "t1"}))
        .await
        .status(404);
    let forgotten: Vec<_> = built
        .forgotten
        .lock()
        .await
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(forgotten, [of.1]);
    let installed = server.delete("/templates/base").await.status(400);
    assert!(
        installed.message().contains("built on the host"),
        "{installed:?}"
    );
}

#[tokio::test]
async fn a_public_template_is_everybodys_until_it_is_not() {
    let mut built = with_builder(fixture().await);
    let of = built.ready("t1").await;
    let server = &built.server;
    let create = async |name: &str| {
        let body = json!({"templateID": name}).to_string();
        server
            .call(
                "POST",
                "/sandboxes",
                &[("x-api-key", OTHER_KEY)],
                Some(body),
            )
            .await
    };
    let patch = async |path: &str, key: &str, body: Value| {
        server
            .call("PATCH", path, &[("x-api-key", key)], Some(body.to_string()))
            .await
    };
    create("default/t1").await.status(404);
    let path = format!("/v2/templates/{}", of.0);
    let names = patch(&path, KEY, json!({"public": true})).await.status(200);
    assert_eq!(names.body, json!({"names": ["default/t1"]}));
    create("default/t1").await.status(201);
    create("t1").await.status(404);
    assert_eq!(
        patch(&path, KEY, json!({})).await.status(200).body,
        names.body,
        "nothing to do"
    );
    assert_eq!(
        server.get(&format!("/templates/{}", of.0)).await.body["public"],
        true
    );
    let foreign = "You don't have access to this template";
    patch(&path, OTHER_KEY, json!({"public": false}))
        .await
        .expect(403, foreign);
    patch("/v2/templates/none", KEY, json!({"public": true}))
        .await
        .status(404);
    patch("/v2/templates/t1", KEY, json!({"public": false}))
        .await
        .status(200);
    create("default/t1").await.status(404);
    let global = patch("/templates/t1", KEY, json!({"public": true}))
        .await
        .status(200);
    assert_eq!(global.body, Value::Null);
    create("t1").await.status(201);
    let all = server
        .call(
            "GET",
            "/default-templates",
            &[("x-api-key", OTHER_KEY)],
            None,
        )
        .await;
    let all = all.status(200);
    let listed = all
        .body
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| it["templateID"].clone());
    let mut listed: Vec<_> = listed
        .map(|it| it.as_str().expect("an ID").to_owned())
        .collect();
    assert!(listed.is_sorted(), "{listed:?}");
    let mut expected = vec![of.0.clone()];
    expected.extend([1, 2].map(|it| template("x", it).template_id.to_string()));
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    let body = Some(json!({"name": "t1"}).to_string());
    let other = [("x-api-key", OTHER_KEY)];
    server
        .call("POST", "/v3/templates", &other, body)
        .await
        .status(202);
    let taken = patch("/templates/t1", OTHER_KEY, json!({"public": true})).await;
    taken.expect(409, "Alias 't1' is already used");
}

#[tokio::test]
async fn withdrawn_routes_tell_old_clients_to_update() {
    let server = fixture().await;
    let bearer = format!("Bearer {ACCESS_TOKEN}");
    let message = "Endpoint deprecated please update your CLI to the latest version";
    for path in ["/templates", "/templates/t", "/templates/t/builds/b"] {
        let credential = [("authorization", bearer.as_str())];
        server
            .call("POST", path, &credential, Some("{}".to_owned()))
            .await
            .expect(400, message);
        server.post(path, json!({})).await.status(401);
    }
}
