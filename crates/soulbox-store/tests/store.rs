//! One suite for every [`Store`]: SQLite in memory and in a file, and PostgreSQL.

mod cluster;
mod history;
mod pages;
mod retired;
mod templates;

use history::{
    history_is_trimmed_by_age_and_by_size, lines_of_a_sandbox_are_its_teams_and_have_room,
    samples_come_back_in_order_and_the_last_of_a_moment_holds,
    what_two_servers_noted_at_moments_of_their_own_is_one_line,
};
use pages::{a_page_is_what_the_query_says, metadata_is_compared_as_it_is};

use retired::builds_go_some_time_after_nobody_uses_them;

use templates::{
    a_build_starts_once_and_ends_once, a_global_alias_is_claimed_once,
    a_name_is_one_template_and_its_tag_one_waiting_build,
    a_template_is_deleted_when_nothing_uses_it, builds_that_nobody_performs_are_given_up,
    lines_of_a_build_come_back_by_level_and_page, one_of_racing_requests_gets_the_last_place,
};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use soulbox_control::{
    AliasRow, AssignmentRow, AtDeadline, BuildRow, BuildStatus, Change, IdempotencyClaim, KeyKind,
    KeyRow, Lifecycle, Pause, PausedBy, Policy, Progress, Reclaim, Reservation, SandboxRow, Spawns,
    Store, Swap, TeamRow, TemplateRow,
};
use soulbox_store::{OpenError, PostgresStore, SqliteStore, postgres_options};
use soulbox_types::{
    BuildId, DeathCause, Epoch, HttpsPorts, Inbound, Limits, MiB, MilliCpu, Network, SandboxId,
    SandboxState, TeamId, TemplateId, UnixMillis,
};

/// Every rule becomes a test against memory and one against a file, and all together one against PostgreSQL: a cluster takes seconds
/// to start, and nextest gives each test a process of its own.
macro_rules! suite {
    ($($rule:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $rule() {
                let memory = soulbox_store::SqliteStore::open_in_memory().await.expect("memory");
                super::$rule(std::sync::Arc::new(memory)).await;
            })*
        }
        mod file {
            $(#[tokio::test]
            async fn $rule() {
                let directory = tempfile::tempdir().expect("a directory");
                let path = directory.path().join("soulbox.db");
                let file = soulbox_store::SqliteStore::open(&path).await.expect("a file");
                super::$rule(std::sync::Arc::new(file.clone())).await;
                file.close().await;
            })*
        }
        mod postgres {
            #[tokio::test]
            async fn every_rule_holds() {
                let cluster = crate::cluster::Cluster::start();
                $({
                    eprintln!("{}", stringify!($rule));
                    let store = soulbox_store::PostgresStore::open(cluster.database()).await.expect("a database");
                    super::$rule(std::sync::Arc::new(store.clone())).await;
                    store.close().await;
                })*
            }
        }
    };
}

suite!(
    teams_are_listed_and_changed,
    one_of_racing_swaps_wins,
    one_of_racing_creates_gets_the_key,
    teams_are_made_once_per_slug,
    a_replaced_key_stops_working,
    templates_come_back_and_the_same_build_is_tagged_once,
    the_limit_counts_what_is_not_dead,
    a_burst_never_exceeds_the_limit,
    rows_change_only_from_what_was_expected,
    a_paused_sandbox_takes_its_place_back_once_and_within_the_limit,
    every_cause_and_only_the_living_are_read_back,
    a_page_is_what_the_query_says,
    metadata_is_compared_as_it_is,
    a_network_is_replaced_and_read_back,
    pruning_takes_the_long_dead_only,
    an_idempotency_key_is_claimed_once_per_team_unless_the_start_failed,
    a_name_is_one_template_and_its_tag_one_waiting_build,
    a_build_starts_once_and_ends_once,
    builds_that_nobody_performs_are_given_up,
    lines_of_a_build_come_back_by_level_and_page,
    a_template_is_deleted_when_nothing_uses_it,
    a_global_alias_is_claimed_once,
    one_of_racing_requests_gets_the_last_place,
    lines_of_a_sandbox_are_its_teams_and_have_room,
    what_two_servers_noted_at_moments_of_their_own_is_one_line,
    history_is_trimmed_by_age_and_by_size,
    samples_come_back_in_order_and_the_last_of_a_moment_holds,
    // The last one: it deletes what others have left.
    builds_go_some_time_after_nobody_uses_them,
);

fn team(slug: &str) -> TeamRow {
    TeamRow {
        team_id: TeamId::from_random([slug.len() as u8; 16]),
        name: slug.to_owned(),
        slug: slug.to_owned(),
        banned: false,
        blocked: true,
        blocked_reason: Some("unpaid".to_owned()),
        max_sandboxes: Some(3),
        max_sandbox_hours: None,
        created_at: UnixMillis(1),
    }
}

fn policy() -> Policy {
    let deny = vec!["0.0.0.0/0".to_owned()];
    Policy {
        timeout: Some(Duration::from_secs(90)),
        at_deadline: Some(AtDeadline::Pause { memory: true }),
        auto_resume: Some(true),
        network: Network::new(None, vec!["1.1.1.1".to_owned()], deny).ok(),
    }
}

fn key(id: &str, team: &TeamRow, hash: &str) -> KeyRow {
    KeyRow {
        key_id: id.to_owned(),
        team_id: team.team_id.clone(),
        name: "credentials.json".to_owned(),
        hash: hash.to_owned(),
        prefix: "e2b_".to_owned(),
        value_length: 40,
        mask_prefix: "ab".to_owned(),
        mask_suffix: "cdef".to_owned(),
        created_at: UnixMillis(2),
        last_used_at: None,
    }
}

fn sandbox(number: u8, team: &TeamRow) -> SandboxRow {
    SandboxRow {
        sandbox_id: SandboxId::from_random([number; 20]),
        team_id: team.team_id.clone(),
        template_id: TemplateId::from_random([1; 20]),
        build_id: BuildId::from_random([1; 16]),
        host_build_id: BuildId::from_random([2; 16]),
        alias: Some("base".to_owned()),
        metadata: BTreeMap::from([("a \"b\"".to_owned(), "ü".to_owned())]),
        limits: Limits {
            memory: MiB(512),
            cpu: MilliCpu(1500),
            pids: 99,
            disk: MiB(1024),
        },
        network: Network::new(
            Some(false),
            vec!["1.1.1.1".to_owned()],
            vec!["::/0".to_owned()],
        )
        .expect("a good configuration"),
        secure: true,
        public_traffic: false,
        inbound: Arc::new(Inbound {
            mask: Some("app.local:${PORT}".parse().expect("a good mask")),
            https: HttpsPorts::new(&[8443, 443]).expect("good ports"),
        }),
        envd_version: "0.6.13".to_owned(),
        created_at: UnixMillis(10),
        lifecycle: Lifecycle {
            at_deadline: AtDeadline::Pause { memory: false },
            auto_resume: Some(300_000),
        },
        progress: Progress {
            state: SandboxState::Creating,
            epoch: Epoch::FIRST,
            started_at: None,
            deadline: UnixMillis(500),
            ended_at: None,
            cause: None,
            pause: None,
        },
    }
}

fn running(row: &SandboxRow) -> Progress {
    Progress {
        state: SandboxState::Running,
        started_at: Some(UnixMillis(11)),
        ..row.progress
    }
}

fn dead(row: &SandboxRow, cause: DeathCause) -> Progress {
    Progress {
        state: SandboxState::Dead,
        epoch: Epoch(2),
        ended_at: Some(UnixMillis(100)),
        cause: Some(cause),
        ..row.progress
    }
}

const CREATED: (SandboxState, Epoch) = (SandboxState::Creating, Epoch::FIRST);

async fn teams_are_made_once_per_slug(store: Arc<dyn Store>) {
    let first = team("one");
    assert_eq!(store.ensure_team(&first).await.expect("ensure"), first);
    let again = TeamRow {
        team_id: TeamId::from_random([77; 16]),
        ..first.clone()
    };
    assert_eq!(store.ensure_team(&again).await.expect("ensure"), first);
    assert_eq!(store.team(&first.team_id).await.expect("read"), Some(first));
    assert_eq!(store.team(&again.team_id).await.expect("read"), None);
}

async fn a_replaced_key_stops_working(store: Arc<dyn Store>) {
    let team = store.ensure_team(&team("one")).await.expect("ensure");
    for kind in [KeyKind::ApiKey, KeyKind::AccessToken] {
        let (old, new) = (key("k1", &team, "h1"), key("k2", &team, "h2"));
        store.replace_key(kind, &old).await.expect("replace");
        assert_eq!(
            store.key(kind, "h1").await.expect("read"),
            Some((old, team.clone()))
        );
        store.replace_key(kind, &new).await.expect("replace");
        store
            .replace_key(kind, &key("k3", &team, "h2"))
            .await
            .expect("the same again");
        assert_eq!(store.key(kind, "h1").await.expect("read"), None);
        assert_eq!(
            store.key(kind, "h2").await.expect("read"),
            Some((new, team.clone()))
        );
    }
    store
        .touch_keys(&[("k2".to_owned(), UnixMillis(42))])
        .await
        .expect("touch");
    let (touched, _) = store
        .key(KeyKind::ApiKey, "h2")
        .await
        .expect("read")
        .expect("a key");
    assert_eq!(touched.last_used_at, Some(UnixMillis(42)));
}

async fn templates_come_back_and_the_same_build_is_tagged_once(store: Arc<dyn Store>) {
    let team = store.ensure_team(&team("one")).await.expect("ensure");
    let template = TemplateRow {
        template_id: TemplateId::from_random([1; 20]),
        team_id: team.team_id.clone(),
        public: true,
        created_at: UnixMillis(5),
        updated_at: UnixMillis(5),
        spawn_count: 0,
        last_spawned_at: None,
    };
    let build = |number: u8| BuildRow {
        build_id: BuildId::from_random([number; 16]),
        template_id: template.template_id.clone(),
        status: BuildStatus::Ready,
        limits: Limits {
            memory: MiB(1024),
            cpu: MilliCpu(2000),
            pids: 1000,
            disk: MiB(2048),
        },
        default_user: "user".to_owned(),
        default_workdir: "/home/user".to_owned(),
        envd_version: "0.6.13".to_owned(),
        policy: policy(),
        created_at: UnixMillis(6),
        updated_at: UnixMillis(6),
        finished_at: Some(UnixMillis(7)),
    };
    let alias = AliasRow {
        namespace: String::new(),
        alias: "base".to_owned(),
        template_id: template.template_id.clone(),
    };
    let tag = |id: &str, build: &BuildRow| AssignmentRow {
        assignment_id: id.to_owned(),
        template_id: template.template_id.clone(),
        build_id: build.build_id.clone(),
        tag: "default".to_owned(),
        assigned_at: UnixMillis(8),
    };
    let first = build(1);
    let second = BuildRow {
        policy: Policy::default(),
        ..build(2)
    };
    let aliases = [alias.clone()];
    for (id, build) in [("a", &first), ("b", &first), ("c", &second), ("d", &first)] {
        let assignment = tag(id, build);
        store
            .register_template(&template, build, &aliases, &assignment)
            .await
            .expect("register");
    }
    let spawned = Spawns {
        template_id: template.template_id.clone(),
        count: 3,
        last: UnixMillis(99),
    };
    store
        .add_spawns(&[spawned.clone(), spawned])
        .await
        .expect("count");
    let catalog = store.catalog().await.expect("read");
    let counted = TemplateRow {
        spawn_count: 6,
        last_spawned_at: Some(UnixMillis(99)),
        ..template.clone()
    };
    assert_eq!(catalog.templates, [counted]);
    assert_eq!(catalog.builds.len(), 2);
    for build in [first, second] {
        let id = build.build_id.clone();
        let found = catalog.builds.iter().find(|it| it.build_id == id);
        // A build may be touched when it loses its tag.
        let expected = found.map(|it| BuildRow {
            updated_at: it.updated_at,
            ..build
        });
        assert!(found.is_some());
        assert_eq!(found, expected.as_ref());
    }
    assert_eq!(catalog.aliases, [alias]);
    let ids: Vec<_> = catalog
        .assignments
        .iter()
        .map(|it| it.assignment_id.as_str())
        .collect();
    assert_eq!(ids, ["a", "c", "d"]);
}

async fn the_limit_counts_what_is_not_dead(store: Arc<dyn Store>) {
    let (one, two) = (team("one"), team("other"));
    for number in 1..=2 {
        let made = store
            .reserve(&sandbox(number, &one), 2, None)
            .await
            .expect("reserve");
        assert_eq!(made, Reservation::Made);
    }
    let third = sandbox(3, &one);
    let refused = store.reserve(&third, 2, None).await.expect("reserve");
    assert_eq!(refused, Reservation::LimitReached);
    assert_eq!(store.sandbox(&third.sandbox_id).await.expect("read"), None);
    let other = store
        .reserve(&sandbox(4, &two), 2, None)
        .await
        .expect("reserve");
    assert_eq!(
        other,
        Reservation::Made,
        "teams do not count for each other"
    );
    let first = sandbox(1, &one);
    let swap = store
        .advance(
            &first.sandbox_id,
            CREATED,
            &dead(&first, DeathCause::Killed),
        )
        .await;
    assert_eq!(swap.expect("advance"), Swap::Done);
    assert_eq!(
        store.reserve(&third, 2, None).await.expect("reserve"),
        Reservation::Made
    );
}

async fn a_burst_never_exceeds_the_limit(store: Arc<dyn Store>) {
    let team = Arc::new(team("one"));
    let mut attempts = tokio::task::JoinSet::new();
    for number in 0..40 {
        let (store, team) = (store.clone(), team.clone());
        attempts.spawn(async move { store.reserve(&sandbox(number, &team), 7, None).await });
    }
    let results = attempts.join_all().await;
    let made = results.into_iter().map(|it| it.expect("reserve"));
    assert_eq!(made.filter(|it| *it == Reservation::Made).count(), 7);
}

async fn rows_change_only_from_what_was_expected(store: Arc<dyn Store>) {
    let row = sandbox(1, &team("one"));
    store.reserve(&row, 9, None).await.expect("reserve");
    let id = &row.sandbox_id;
    assert_eq!(store.sandbox(id).await.expect("read"), Some(row.clone()));
    assert_eq!(
        store
            .advance(id, CREATED, &running(&row))
            .await
            .expect("advance"),
        Swap::Done
    );
    for stale in [CREATED, (SandboxState::Running, Epoch(2))] {
        let swap = store
            .advance(id, stale, &dead(&row, DeathCause::Lost))
            .await
            .expect("advance");
        assert_eq!(swap, Swap::Conflict);
    }
    let progress = running(&row);
    let expected = SandboxRow {
        progress,
        ..row.clone()
    };
    assert_eq!(store.sandbox(id).await.expect("read"), Some(expected));
    let unknown = SandboxId::from_random([200; 20]);
    assert_eq!(
        store
            .advance(&unknown, CREATED, &progress)
            .await
            .expect("advance"),
        Swap::Conflict
    );
}

async fn a_paused_sandbox_takes_its_place_back_once_and_within_the_limit(store: Arc<dyn Store>) {
    let team = team("one");
    let (row, other) = (sandbox(1, &team), sandbox(2, &team));
    for row in [&row, &other] {
        store.reserve(row, 9, None).await.expect("reserve");
    }
    let id = &row.sandbox_id;
    let pause = Pause {
        epoch: Epoch(2),
        by: PausedBy::Control,
        at: UnixMillis(20),
        memory: true,
        silent_guest: false,
    };
    let paused = Progress {
        state: SandboxState::Paused,
        epoch: Epoch(2),
        pause: Some(pause),
        ..running(&row)
    };
    let swap = store.advance(id, CREATED, &paused).await;
    assert_eq!(swap.expect("advance"), Swap::Done);
    let resuming = Progress {
        state: SandboxState::Resuming,
        epoch: Epoch(3),
        deadline: UnixMillis(900),
        ..paused
    };
    let at_rest = (SandboxState::Paused, Epoch(2));
    let reclaim = async |limit| {
        let reclaimed = store.reclaim(&team.team_id, id, at_rest, &resuming, limit);
        let outcome = reclaimed.await.expect("reclaim");
        let row = store.sandbox(id).await.expect("read").expect("a row");
        (outcome, row.progress)
    };
    assert_eq!(reclaim(1).await, (Reclaim::LimitReached, paused));
    assert_eq!(reclaim(2).await, (Reclaim::Done, resuming));
    // By another server, perhaps: it is no limit that is in the way, though both places are taken.
    assert_eq!(reclaim(2).await, (Reclaim::Conflict, resuming));
    assert_eq!(reclaim(1).await, (Reclaim::Conflict, resuming));
}

async fn every_cause_and_only_the_living_are_read_back(store: Arc<dyn Store>) {
    let team = team("one");
    let causes = [
        DeathCause::Killed,
        DeathCause::Expired,
        DeathCause::OutOfMemory,
        DeathCause::AgentDied,
        DeathCause::FailedToStart,
        DeathCause::Lost,
    ];
    for (number, cause) in (1..).zip(causes) {
        let row = sandbox(number, &team);
        store.reserve(&row, 9, None).await.expect("reserve");
        store
            .advance(&row.sandbox_id, CREATED, &dead(&row, cause))
            .await
            .expect("advance");
        let read = store
            .sandbox(&row.sandbox_id)
            .await
            .expect("read")
            .expect("a row");
        assert_eq!(read.progress, dead(&row, cause));
    }
    let living = sandbox(50, &team);
    store.reserve(&living, 9, None).await.expect("reserve");
    for filter in [None, Some(&team.team_id)] {
        let listed = store.live_sandboxes(filter).await.expect("list");
        assert_eq!(listed.as_slice(), std::slice::from_ref(&living));
    }
    let nobody = TeamId::from_random([9; 16]);
    assert_eq!(store.live_sandboxes(Some(&nobody)).await.expect("list"), []);
}

async fn a_network_is_replaced_and_read_back(store: Arc<dyn Store>) {
    let team = team("one");
    let (changed, other) = (sandbox(1, &team), sandbox(2, &team));
    for row in [&changed, &other] {
        store.reserve(row, 9, None).await.expect("reserve");
    }
    let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    let network = Network::new(
        None,
        texts(&["8.8.0.0/16", "1.1.1.1"]),
        texts(&["0.0.0.0/0"]),
    );
    let network = network.expect("a good configuration");
    store
        .set_network(&changed.sandbox_id, &network)
        .await
        .expect("set");
    let read = |row: SandboxRow| {
        let store = store.clone();
        async move {
            store
                .sandbox(&row.sandbox_id)
                .await
                .expect("read")
                .expect("a row")
                .network
        }
    };
    assert_eq!(read(changed.clone()).await, network);
    assert_eq!(read(other.clone()).await, other.network);
}

async fn pruning_takes_the_long_dead_only(store: Arc<dyn Store>) {
    let team = team("one");
    let (old, alive) = (sandbox(1, &team), sandbox(2, &team));
    let claim = IdempotencyClaim {
        key: "k".to_owned(),
        fingerprint: "f".to_owned(),
    };
    store.reserve(&old, 9, Some(&claim)).await.expect("reserve");
    store.reserve(&alive, 9, None).await.expect("reserve");
    store
        .advance(&old.sandbox_id, CREATED, &dead(&old, DeathCause::Killed))
        .await
        .expect("advance");
    assert_eq!(store.prune(UnixMillis(5)).await.expect("prune"), 0);
    assert_eq!(store.prune(UnixMillis(101)).await.expect("prune"), 1);
    assert_eq!(store.sandbox(&old.sandbox_id).await.expect("read"), None);
    assert!(
        store
            .sandbox(&alive.sandbox_id)
            .await
            .expect("read")
            .is_some()
    );
    let again = store
        .reserve(&sandbox(3, &team), 9, Some(&claim))
        .await
        .expect("reserve");
    assert_eq!(again, Reservation::Made, "its claim went with it");
    store.maintain().await.expect("maintain");
}

async fn an_idempotency_key_is_claimed_once_per_team_unless_the_start_failed(
    store: Arc<dyn Store>,
) {
    let (one, two) = (team("one"), team("other"));
    let claim = IdempotencyClaim {
        key: "k".to_owned(),
        fingerprint: "f".to_owned(),
    };
    let row = sandbox(1, &one);
    assert_eq!(
        store.reserve(&row, 9, Some(&claim)).await.expect("reserve"),
        Reservation::Made
    );
    let other = IdempotencyClaim {
        fingerprint: "other".to_owned(),
        ..claim.clone()
    };
    let again = store
        .reserve(&sandbox(2, &one), 9, Some(&other))
        .await
        .expect("reserve");
    let earlier = Reservation::AlreadyClaimed {
        fingerprint: "f".to_owned(),
        sandbox: Some(Box::new(row.clone())),
    };
    assert_eq!(again, earlier);
    assert_eq!(
        store
            .reserve(&sandbox(3, &two), 9, Some(&claim))
            .await
            .expect("reserve"),
        Reservation::Made
    );
    let failed = dead(&row, DeathCause::FailedToStart);
    store
        .advance(&row.sandbox_id, CREATED, &failed)
        .await
        .expect("advance");
    let refused = store
        .reserve(&sandbox(4, &one), 0, Some(&other))
        .await
        .expect("reserve");
    assert_eq!(refused, Reservation::LimitReached);
    assert_eq!(
        store
            .reserve(&sandbox(5, &one), 9, Some(&other))
            .await
            .expect("reserve"),
        Reservation::Made
    );
}

#[tokio::test]
async fn a_file_keeps_its_rows_and_takes_its_migrations_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("soulbox.db");
    let row = sandbox(1, &team("one"));
    let store = SqliteStore::open(&path).await.expect("open");
    store.reserve(&row, 9, None).await.expect("reserve");
    store.close().await;
    let store = SqliteStore::open(&path).await.expect("open again");
    assert_eq!(
        store.sandbox(&row.sandbox_id).await.expect("read"),
        Some(row)
    );
    store.close().await;
}

/// A connection that has read the schema before it changed would end its thread when it reads a row.
#[tokio::test]
async fn no_connection_knows_an_older_schema_than_the_file_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("soulbox.db");
    let file = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal);
    let other = sqlx::SqlitePool::connect_with(file).await.expect("open");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    let all = sqlx::migrate::Migrator::new(folder).await.expect("read");
    let mut older = sqlx::migrate::Migrator::DEFAULT;
    let first = all.iter().filter(|it| it.version <= 4);
    older.migrations = first.cloned().collect::<Vec<_>>().into();
    older.run(&other).await.expect("an older schema");

    // So long that all connections are there that do not wait for the migration.
    let writing = other.begin_with("BEGIN IMMEDIATE").await.expect("begin");
    let opened = path.clone();
    let opening = tokio::spawn(async move { SqliteStore::open(&opened).await });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    writing.rollback().await.expect("roll back");
    let store = opening.await.expect("a task").expect("open");

    let row = sandbox(1, &team("one"));
    store.reserve(&row, 9, None).await.expect("reserve");
    let reads = (0..16).map(|_| store.sandbox(&row.sandbox_id));
    for read in futures_util::future::join_all(reads).await {
        assert_eq!(read.expect("read"), Some(row.clone()));
    }
    store.close().await;
    other.close().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("soulbox.db");
    std::fs::write(
        &path,
        "not a database at all, but long enough to be one".repeat(50),
    )
    .expect("write");
    let error = SqliteStore::open(&path)
        .await
        .expect_err("refused")
        .to_string();
    assert!(error.contains("soulbox.db"), "{error}");
}

async fn teams_are_listed_and_changed(store: Arc<dyn Store>) {
    let (one, two) = (team("one"), team("other"));
    for team in [&two, &one] {
        store.ensure_team(team).await.expect("ensure");
    }
    let changed = TeamRow {
        name: "Two".to_owned(),
        banned: true,
        blocked: false,
        blocked_reason: None,
        max_sandboxes: None,
        max_sandbox_hours: Some(7),
        // Neither may change.
        slug: "slug".to_owned(),
        created_at: UnixMillis(99),
        ..two.clone()
    };
    assert!(store.update_team(&changed).await.expect("change"));
    let expected = TeamRow {
        slug: two.slug.clone(),
        created_at: two.created_at,
        ..changed
    };
    assert_eq!(store.teams().await.expect("list"), [one, expected]);
    assert!(!store.update_team(&team("nobody")).await.expect("change"));
}

async fn one_of_racing_swaps_wins(store: Arc<dyn Store>) {
    let row = sandbox(1, &team("one"));
    store.reserve(&row, 9, None).await.expect("reserve");
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (store, row) = (store.clone(), row.clone());
        attempts.spawn(async move {
            store
                .advance(&row.sandbox_id, CREATED, &dead(&row, DeathCause::Killed))
                .await
        });
    }
    let results = attempts.join_all().await;
    let swaps = results.into_iter().map(|it| it.expect("advance"));
    assert_eq!(swaps.filter(|it| *it == Swap::Done).count(), 1);
}

async fn one_of_racing_creates_gets_the_key(store: Arc<dyn Store>) {
    let team = Arc::new(team("one"));
    let mut attempts = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (store, team) = (store.clone(), team.clone());
        attempts.spawn(async move {
            let claim = IdempotencyClaim {
                key: "k".to_owned(),
                fingerprint: "f".to_owned(),
            };
            store
                .reserve(&sandbox(number, &team), 99, Some(&claim))
                .await
        });
    }
    let results = attempts.join_all().await;
    let made = results.into_iter().map(|it| it.expect("reserve"));
    assert_eq!(made.filter(|it| *it == Reservation::Made).count(), 1);
    let living = store.live_sandboxes(None).await.expect("list");
    assert_eq!(living.len(), 1);
}

#[tokio::test]
async fn servers_on_one_postgres_hear_of_each_other() {
    let cluster = cluster::Cluster::start();
    let database = cluster.database();
    let open = || PostgresStore::open(database.clone());
    // At once: one brings the schema up, the other waits.
    let (here, there) = tokio::join!(open(), open());
    let (here, there) = (here.expect("open"), there.expect("open"));
    let mut news = here
        .changes()
        .await
        .expect("listen")
        .expect("shared records");
    let team = team("one");
    for store in [&here, &there] {
        store.ensure_team(&team).await.expect("ensure");
    }
    let (own, foreign) = (sandbox(1, &team), sandbox(2, &team));
    for (store, row) in [(&here, &own), (&there, &foreign)] {
        store.reserve(row, 9, None).await.expect("reserve");
        let swap = store
            .advance(&row.sandbox_id, CREATED, &running(row))
            .await
            .expect("advance");
        assert_eq!(swap, Swap::Done);
    }
    // A swap that was not made is no news.
    there
        .advance(&own.sandbox_id, CREATED, &dead(&own, DeathCause::Lost))
        .await
        .expect("advance");
    there.update_team(&team).await.expect("change");
    let within = std::time::Duration::from_secs(10);
    for expected in [Change::Sandbox(foreign.sandbox_id.clone()), Change::Keys] {
        let change = tokio::time::timeout(within, news.next()).await;
        assert_eq!(change.expect("news in time"), expected);
    }
    // A lost connection is told of, and news go on.
    cluster
        .psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'",
        )
        .expect("end the connection");
    let change = tokio::time::timeout(within, news.next()).await;
    assert_eq!(change.expect("news in time"), Change::Missed);
    there
        .set_network(&foreign.sandbox_id, &foreign.network)
        .await
        .expect("set");
    let change = tokio::time::timeout(within, news.next()).await;
    assert_eq!(
        change.expect("news in time"),
        Change::Sandbox(foreign.sandbox_id)
    );
    drop(news);
    here.close().await;
    there.close().await;
}

#[tokio::test]
async fn on_postgres_an_end_at_a_deadline_waits_for_no_disk_and_a_kill_does() {
    let cluster = cluster::Cluster::start();
    let store = PostgresStore::open(cluster.database()).await.expect("open");
    let team = team("one");
    store.ensure_team(&team).await.expect("ensure");
    let (expires, killed) = (sandbox(1, &team), sandbox(2, &team));
    for row in [&expires, &killed] {
        store.reserve(row, 9, None).await.expect("reserve");
    }
    // From now on a commit that waits for anything waits for a server that is not there.
    let wait_for = |name: &str| {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
        cluster.psql("postgres", &set).expect("set");
        let reload = "SELECT pg_reload_conf()";
        cluster.psql("postgres", reload).expect("reload");
    };
    wait_for("nobody");
    let end = async |row: &SandboxRow, cause, seconds| {
        let progress = dead(row, cause);
        let swap = store.advance(&row.sandbox_id, CREATED, &progress);
        let within = std::time::Duration::from_secs(seconds);
        tokio::time::timeout(within, swap).await
    };
    let waited = async {
        // The server may not have read its settings yet.
        for number in 3..40 {
            let row = sandbox(number, &team);
            let made = store.reserve(&row, 99, None);
            let within = std::time::Duration::from_millis(500);
            if tokio::time::timeout(within, made).await.is_err() {
                return;
            }
        }
        panic!("commits wait for nobody");
    };
    waited.await;
    let swap = end(&expires, DeathCause::Expired, 20).await;
    assert_eq!(swap.expect("in time").expect("advance"), Swap::Done);
    assert!(end(&killed, DeathCause::Killed, 1).await.is_err());
    wait_for("");
    store.close().await;
}

#[tokio::test]
async fn a_database_of_a_newer_schema_is_refused() {
    let cluster = cluster::Cluster::start();
    let database = cluster.database();
    PostgresStore::open(database.clone())
        .await
        .expect("open")
        .close()
        .await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (99, 'later', true, '', 0)";
    cluster.psql("soulbox_1", newer).expect("a later version");
    let refused = PostgresStore::open(database).await.expect_err("refused");
    assert!(
        matches!(refused, OpenError::Newer { found: 99, .. }),
        "{refused}"
    );

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("soulbox.db");
    SqliteStore::open(&path).await.expect("open").close().await;
    let file = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display()))
        .await
        .expect("open");
    sqlx::query(newer)
        .execute(&file)
        .await
        .expect("a later version");
    file.close().await;
    let refused = SqliteStore::open(&path).await.expect_err("refused");
    assert!(
        matches!(refused, OpenError::Newer { found: 99, .. }),
        "{refused}"
    );
}

#[test]
fn urls_that_cannot_work_are_refused_without_their_password() {
    for (url, why) in [
        ("mysql://u:secret@h/d", "postgres://"),
        ("postgres://u:secret@h:x/d", "port"),
        ("postgres://u:secret@h/d?sslmode=require", "TLS"),
        ("postgres://u:secret@h/d?sslmode=sometimes", "sometimes"),
    ] {
        let error = postgres_options(url).expect_err("refused").to_string();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
