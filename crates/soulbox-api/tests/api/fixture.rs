//! A server without a network: requests go into the router, sandboxes are entries of a fake host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use soulbox_api::{App, Figures, RateLimits};
use soulbox_control::{
    Control, ControlSettings, Credentials, HostCreate, HostDisk, HostFailure, HostLogLine,
    HostNode, HostSandbox, HostSave, HostSnapshot, HostTemplate, HostUsage, Hosts, KeyKind, KeyRow,
    NodeStatus, Started, Store, TeamRow,
};
use soulbox_store::SqliteStore;
use soulbox_types::{
    BuildId, Egress, Epoch, Limits, MiB, MilliCpu, SandboxId, TeamId, TemplateId, UnixMillis,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub(crate) const KEY: &str = "e2b_00112233445566778899aabbccddeeff00112233";
pub(crate) const OTHER_KEY: &str = "e2b_ff112233445566778899aabbccddeeff00112233";
pub(crate) const ACCESS_TOKEN: &str = "sk_e2b_00112233445566778899aabbccddeeff00112233";
pub(crate) const ADMIN_TOKEN: &str = "the-administrator";
pub(crate) const LIMIT: u32 = 4;
pub(crate) const HOURS: u32 = 2;

/// What the fake host does and has done.
#[derive(Default)]
pub(crate) struct HostState {
    pub(crate) live: HashMap<SandboxId, HostSandbox>,
    pub(crate) created: Vec<HostCreate>,
    pub(crate) killed: Vec<(SandboxId, Epoch)>,
    pub(crate) deadlines: Vec<(SandboxId, Epoch, UnixMillis)>,
    pub(crate) templates: Vec<HostTemplate>,
    /// Answers of the next creates, kills and deadlines, instead of doing it.
    pub(crate) fail_creates: Vec<HostFailure>,
    pub(crate) fail_kills: Vec<HostFailure>,
    pub(crate) fail_deadlines: Vec<HostFailure>,
    pub(crate) fail_egress: Vec<HostFailure>,
    /// Answers of the next saves.
    pub(crate) fail_saves: Vec<HostFailure>,
    pub(crate) slow_save: Duration,
    pub(crate) saved: Vec<HostSave>,
    /// What was made to take the place of live ones, which did, and which was given up.
    pub(crate) prepared: Vec<HostCreate>,
    pub(crate) replaced: Vec<HostCreate>,
    pub(crate) abandoned: Vec<SandboxId>,
    /// Answers of the next preparations, and of the next replacements.
    pub(crate) fail_rollbacks: Vec<HostFailure>,
    pub(crate) fail_replacements: Vec<HostFailure>,
    pub(crate) slow_rollback: Duration,
    pub(crate) snapshots: HashMap<String, HostSnapshot>,
    pub(crate) deleted_snapshots: Vec<String>,
    /// Of every daemon.
    pub(crate) logs: Vec<HostLogLine>,
    pub(crate) slow_create: Duration,
    pub(crate) status: Option<NodeStatus>,
    pub(crate) slow_kill: Duration,
}

#[derive(Default)]
pub(crate) struct FakeHosts(Mutex<HostState>);

impl FakeHosts {
    pub(crate) fn state(&self) -> MutexGuard<'_, HostState> {
        self.0.lock().expect("no test panics while it holds this")
    }
}

#[async_trait]
impl Hosts for FakeHosts {
    async fn create(&self, sandbox: &HostCreate) -> Result<Started, HostFailure> {
        let slow = self.state().slow_create;
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        let mut state = self.state();
        if state.status.is_some_and(|it| it != NodeStatus::Ready) {
            return Err(HostFailure::NotReady("it is draining".to_owned()));
        }
        state.created.push(sandbox.clone());
        if let Some(failure) = state.fail_creates.pop() {
            return Err(failure);
        }
        if let Some(from) = &sandbox.snapshot
            && !state.snapshots.contains_key(&from.snapshot_id)
        {
            return Err(HostFailure::SnapshotMissing);
        }
        if state.live.contains_key(&sandbox.sandbox_id) {
            return Err(HostFailure::AlreadyExists);
        }
        let started_at = now();
        state.live.insert(
            sandbox.sandbox_id.clone(),
            HostSandbox {
                sandbox_id: sandbox.sandbox_id.clone(),
                epoch: sandbox.epoch,
                build_id: sandbox.build_id.clone(),
                started_at,
                deadline: sandbox.deadline,
                egress: sandbox.egress.clone(),
            },
        );
        Ok(Started { started_at })
    }

    async fn kill(&self, id: &SandboxId, epoch: Epoch) -> Result<(), HostFailure> {
        let slow = self.state().slow_kill;
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        let mut state = self.state();
        state.killed.push((id.clone(), epoch));
        if let Some(failure) = state.fail_kills.pop() {
            return Err(failure);
        }
        state.live.remove(id).map(drop).ok_or(HostFailure::NotFound)
    }

    async fn set_deadline(
        &self,
        id: &SandboxId,
        epoch: Epoch,
        deadline: UnixMillis,
    ) -> Result<(), HostFailure> {
        let mut state = self.state();
        state.deadlines.push((id.clone(), epoch, deadline));
        if let Some(failure) = state.fail_deadlines.pop() {
            return Err(failure);
        }
        let sandbox = state.live.get_mut(id).ok_or(HostFailure::NotFound)?;
        (sandbox.epoch, sandbox.deadline) = (epoch, deadline);
        Ok(())
    }

    async fn set_egress(
        &self,
        id: &SandboxId,
        epoch: Epoch,
        egress: &Egress,
    ) -> Result<(), HostFailure> {
        let mut state = self.state();
        if let Some(failure) = state.fail_egress.pop() {
            return Err(failure);
        }
        let sandbox = state.live.get_mut(id).ok_or(HostFailure::NotFound)?;
        if epoch < sandbox.epoch {
            return Err(HostFailure::StaleEpoch);
        }
        sandbox.egress = egress.clone();
        Ok(())
    }

    async fn save(&self, save: &HostSave) -> Result<HostSnapshot, HostFailure> {
        let slow = self.state().slow_save;
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        let mut state = self.state();
        state.saved.push(save.clone());
        if let Some(failure) = state.fail_saves.pop() {
            return Err(failure);
        }
        let sandbox = state.live.get(&save.sandbox_id);
        let sandbox = sandbox.ok_or(HostFailure::NotFound)?.clone();
        if save.epoch < sandbox.epoch {
            return Err(HostFailure::StaleEpoch);
        }
        let snapshot = HostSnapshot {
            snapshot_id: save.snapshot_id.clone(),
            sandbox_id: save.sandbox_id.clone(),
            epoch: save.epoch,
            build_id: sandbox.build_id,
            memory: save.memory,
            ended: save.end,
            created_at: now(),
            disk_bytes: 10,
            image_bytes: 20,
        };
        if save.end {
            state.live.remove(&save.sandbox_id);
        }
        let id = save.snapshot_id.clone();
        state.snapshots.insert(id, snapshot.clone());
        Ok(snapshot)
    }

    async fn prepare(&self, sandbox: &HostCreate) -> Result<(), HostFailure> {
        let slow = self.state().slow_rollback;
        tokio::time::sleep(slow).await;
        let mut state = self.state();
        if let Some(failure) = state.fail_rollbacks.pop() {
            return Err(failure);
        }
        state.prepared.push(sandbox.clone());
        Ok(())
    }

    async fn replace(&self, sandbox: &HostCreate) -> Result<(), HostFailure> {
        let mut state = self.state();
        if let Some(failure) = state.fail_replacements.pop() {
            return Err(failure);
        }
        let Some(live) = state.live.get_mut(&sandbox.sandbox_id) else {
            return Err(HostFailure::NotFound);
        };
        if sandbox.epoch < live.epoch {
            return Err(HostFailure::StaleEpoch);
        }
        live.epoch = sandbox.epoch;
        state.replaced.push(sandbox.clone());
        Ok(())
    }

    async fn abandon(&self, id: &SandboxId) -> Result<(), HostFailure> {
        self.state().abandoned.push(id.clone());
        Ok(())
    }

    async fn delete_snapshot(&self, id: &str) -> Result<(), HostFailure> {
        let mut state = self.state();
        state.snapshots.remove(id);
        state.deleted_snapshots.push(id.to_owned());
        Ok(())
    }

    async fn snapshots(&self) -> Result<Vec<HostSnapshot>, HostFailure> {
        Ok(self.state().snapshots.values().cloned().collect())
    }

    async fn list(&self) -> Result<Vec<HostSandbox>, HostFailure> {
        Ok(self.state().live.values().cloned().collect())
    }

    async fn usage(&self) -> Result<Vec<HostUsage>, HostFailure> {
        Ok(Vec::new())
    }

    async fn templates(&self) -> Result<Vec<HostTemplate>, HostFailure> {
        Ok(self.state().templates.clone())
    }

    async fn logs(
        &self,
        id: &SandboxId,
        _: Option<&str>,
        after: u64,
    ) -> Result<Vec<HostLogLine>, HostFailure> {
        let state = self.state();
        if !state.live.contains_key(id) {
            return Err(HostFailure::NotFound);
        }
        let lines = state.logs.iter().filter(|it| it.number > after);
        Ok(lines.cloned().collect())
    }

    async fn node(&self) -> Result<HostNode, HostFailure> {
        let state = self.state();
        Ok(HostNode {
            id: "the host".to_owned(),
            instance: "1".to_owned(),
            status: state.status.unwrap_or(NodeStatus::Ready),
            status_changed_at: UnixMillis(7000),
            sandboxes: u32::try_from(state.live.len()).expect("few"),
            starting: 1,
            create_successes: 2,
            create_fails: 3,
            creates_ahead: 1,
            slots_ahead: 16,
            version: "0.0.1".to_owned(),
            commit: String::new(),
            cpu_family: "6".to_owned(),
            cpu_model: "85".to_owned(),
            cpu_model_name: "a processor".to_owned(),
            cpu_architecture: "x86_64".to_owned(),
            cpu_count: 2,
            cpu_percent: 50,
            memory_used: 10,
            memory_total: 20,
            huge_pages_total: 0,
            huge_pages_used: 0,
            huge_pages_reserved: 0,
            huge_page_size: 2 << 20,
            disks: vec![HostDisk {
                mount_point: "/".to_owned(),
                device: "/dev/a".to_owned(),
                filesystem: "ext4".to_owned(),
                used: 1,
                total: 2,
            }],
        })
    }

    async fn set_node_status(&self, status: NodeStatus) -> Result<(), HostFailure> {
        self.state().status = Some(status);
        Ok(())
    }
}

pub(crate) fn now() -> UnixMillis {
    let since = std::time::UNIX_EPOCH.elapsed().expect("after 1970");
    UnixMillis(u64::try_from(since.as_millis()).expect("before the end of time"))
}

pub(crate) fn template(name: &str, number: u8) -> HostTemplate {
    HostTemplate {
        name: name.to_owned(),
        template_id: TemplateId::from_random([number; 20]),
        build_id: BuildId::from_random([number; 16]),
        built_at: UnixMillis(1_700_000_000_000 + u64::from(number)),
        limits: Limits {
            memory: MiB(1024),
            cpu: MilliCpu(2000),
            pids: 1024,
            disk: MiB(2048),
        },
        default_user: "user".to_owned(),
        default_workdir: "/home/user".to_owned(),
    }
}

/// An answer with its body parsed, if it is JSON.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    pub(crate) fn error_code(&self) -> &str {
        self.body["error_code"].as_str().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("text"))
    }

    pub(crate) fn id(&self) -> String {
        self.body["sandboxID"]
            .as_str()
            .unwrap_or_else(|| panic!("no sandboxID in {self:?}"))
            .to_owned()
    }

    /// Status and message at once.
    #[track_caller]
    pub(crate) fn expect(self, status: u16, message: &str) -> Self {
        assert_eq!(
            (self.status.as_u16(), self.message()),
            (status, message),
            "{self:?}"
        );
        self
    }

    #[track_caller]
    pub(crate) fn status(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

pub(crate) struct Fixture {
    pub(crate) router: Router,
    pub(crate) control: Control,
    pub(crate) hosts: Arc<FakeHosts>,
    pub(crate) store: Arc<SqliteStore>,
    pub(crate) draining: CancellationToken,
    pub(crate) figures: Figures,
}

/// A server with templates `base` and `other`, two teams, a limit of [`LIMIT`] sandboxes and [`HOURS`] hours.
pub(crate) async fn fixture() -> Fixture {
    fixture_with(|_| {}).await
}

pub(crate) async fn fixture_with(change: impl FnOnce(&mut ControlSettings)) -> Fixture {
    let hosts = Arc::new(FakeHosts::default());
    hosts.state().templates = vec![template("base", 1), template("other", 2)];
    let store = Arc::new(SqliteStore::open_in_memory().await.expect("a database"));
    let mut settings = ControlSettings::new(b"seed".to_vec(), ADMIN_TOKEN.to_owned());
    settings.max_sandboxes = LIMIT;
    settings.max_sandbox_hours = HOURS;
    change(&mut settings);
    let fixture = start(hosts, store, settings).await;
    fixture.add_team("other", OTHER_KEY, |_| {}).await;
    fixture
}

/// Starts a server on what another one has left.
pub(crate) async fn start(
    hosts: Arc<FakeHosts>,
    store: Arc<SqliteStore>,
    settings: ControlSettings,
) -> Fixture {
    start_limited(hosts, store, settings, RateLimits::default()).await
}

/// Likewise, where routes may be asked so often only.
pub(crate) async fn start_limited(
    hosts: Arc<FakeHosts>,
    store: Arc<SqliteStore>,
    settings: ControlSettings,
    limits: RateLimits,
) -> Fixture {
    let control = Control::new(store.clone(), hosts.clone(), settings);
    let credentials = Credentials {
        api_key: KEY.to_owned(),
        access_token: ACCESS_TOKEN.to_owned(),
    };
    control.recover(&credentials).await.expect("recovery");
    let (draining, figures) = (CancellationToken::new(), Figures::default());
    let app = App {
        control: control.clone(),
        tls: false,
        domain: None,
        draining: draining.clone(),
        limits,
        figures: figures.clone(),
    };
    Fixture {
        router: soulbox_api::router(Arc::new(app)),
        control,
        hosts,
        store,
        draining,
        figures,
    }
}

impl Fixture {
    pub(crate) async fn add_team(
        &self,
        slug: &str,
        key: &str,
        change: impl FnOnce(&mut TeamRow),
    ) -> TeamRow {
        let number =
            u8::try_from(key.bytes().map(usize::from).sum::<usize>() % 200).expect("small");
        let mut team = TeamRow {
            team_id: TeamId::from_random([number; 16]),
            name: slug.to_owned(),
            slug: slug.to_owned(),
            banned: false,
            blocked: false,
            blocked_reason: None,
            max_sandboxes: None,
            max_sandbox_hours: None,
            created_at: UnixMillis(1),
        };
        change(&mut team);
        let bytes = hex::decode(key.trim_start_matches("e2b_")).expect("hex");
        let row = KeyRow {
            key_id: format!("key of {slug}"),
            team_id: team.team_id.clone(),
            name: slug.to_owned(),
            hash: format!("$sha256${}", STANDARD_NO_PAD.encode(Sha256::digest(bytes))),
            prefix: "e2b_".to_owned(),
            value_length: 40,
            mask_prefix: "00".to_owned(),
            mask_suffix: "0000".to_owned(),
            created_at: UnixMillis(1),
            last_used_at: None,
        };
        let team = self.store.ensure_team(&team).await.expect("a team");
        self.store
            .replace_key(KeyKind::ApiKey, &row)
            .await
            .expect("a key");
        team
    }

    /// The ID of a key.
    pub(crate) async fn key_id(&self, key: &str) -> String {
        let bytes = hex::decode(key.trim_start_matches("e2b_")).expect("hex");
        let hash = format!("$sha256${}", STANDARD_NO_PAD.encode(Sha256::digest(bytes)));
        let found = self.store.key(KeyKind::ApiKey, &hash).await;
        found.expect("the store").expect("a key").0.key_id
    }

    /// With the default team's key. The path may have a query.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[("x-api-key", KEY)], None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, &[("x-api-key", KEY)], Some(body.to_string()))
            .await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path, &[("x-api-key", KEY)], None).await
    }

    /// Creates a sandbox of `base` that lives long enough.
    pub(crate) async fn create(&self) -> String {
        let body = serde_json::json!({"templateID": "base", "timeout": 600});
        self.post("/sandboxes", body).await.status(201).id()
    }

    /// What holds for every answer is checked here.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Answer {
        let method: Method = method.parse().expect("a method");
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Body::from(body.unwrap_or_default()))
            .expect("a request");
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        let answer = Answer {
            status: parts.status,
            headers: parts.headers,
            text,
            body,
        };
        assert_eq!(
            answer.header("x-e2b-trace-id").map(str::len),
            Some(32),
            "{answer:?}"
        );
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        if answer.status.is_success() {
            assert_eq!(answer.header("should-retry"), None, "{answer:?}");
        } else {
            assert!(answer.header("should-retry").is_some(), "{answer:?}");
            if path != "/health" {
                assert_eq!(answer.body["code"], answer.status.as_u16(), "{answer:?}");
                assert!(!answer.message().is_empty(), "{answer:?}");
            }
        }
        answer
    }
}

/// Waits until something is so; five seconds are an error.
pub(crate) async fn eventually(what: &'static str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came about: {what}");
}
