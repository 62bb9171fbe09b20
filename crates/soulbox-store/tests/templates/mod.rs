//! Rules of the store about templates and builds that clients change.

use std::sync::Arc;

use soulbox_control::{
    AssignmentRow, BeginBuild, BuildFailure, BuildLogLine, BuildRow, BuildSource,
    BuildSpecification, BuildStatus, DeleteTemplate, FinishedBuild, LineQuery, LogDirection,
    LogLevel, NewBuild, Publish, StartBuild, Store, TeamRow,
};
use soulbox_types::{BuildId, Limits, MiB, MilliCpu, TemplateId, UnixMillis};

pub async fn team(store: &dyn Store, slug: &str) -> TeamRow {
    let team = crate::team(slug);
    store.ensure_team(&team).await.expect("a team")
}

pub fn new(team: &TeamRow, name: &str, number: u8, tags: &[&str]) -> NewBuild {
    let template_id = TemplateId::from_random([number; 20]);
    let build_id = BuildId::from_random([number; 16]);
    let at = UnixMillis(1000 + u64::from(number));
    let assignment = |tag: &&str| AssignmentRow {
        assignment_id: format!("{number}-{tag}"),
        template_id: template_id.clone(),
        build_id: build_id.clone(),
        tag: (*tag).to_owned(),
        assigned_at: at,
    };
    NewBuild {
        team: team.clone(),
        name: name.to_owned(),
        assignments: tags.iter().map(assignment).collect(),
        build: BuildRow {
            build_id: build_id.clone(),
            template_id: template_id.clone(),
            status: BuildStatus::Waiting,
            limits: Limits {
                memory: MiB(512),
                cpu: MilliCpu(1000),
                pids: 99,
                disk: MiB(1024),
            },
            default_user: "user".to_owned(),
            default_workdir: "/home/user".to_owned(),
            envd_version: "0.6.13".to_owned(),
            policy: crate::policy(),
            created_at: at,
            updated_at: at,
            finished_at: None,
        },
        min_free_disk_mib: Some(7),
        max_builds: 3,
    }
}

fn specification() -> BuildSpecification {
    BuildSpecification {
        source: BuildSource::Image("debian:12".to_owned()),
        steps: Vec::new(),
        force: false,
        start_command: Some("serve \"it\"".to_owned()),
        ready_command: None,
        min_free_disk_mib: Some(7),
    }
}

pub fn finished() -> FinishedBuild {
    FinishedBuild {
        layers: vec!["a".to_owned(), "b".to_owned()],
        default_user: "web".to_owned(),
        default_workdir: "/srv".to_owned(),
        env: [("A".to_owned(), "1".to_owned())].into(),
        start_command: None,
        ready_command: None,
        envd_version: "0.7.0".to_owned(),
        disk_mib: 2048,
    }
}

async fn status(store: &dyn Store, number: u8) -> Option<BuildStatus> {
    let id = BuildId::from_random([number; 16]);
    let rows = store.catalog().await.expect("read");
    rows.builds
        .iter()
        .find(|it| it.build_id == id)
        .map(|it| it.status)
}

pub async fn begin(store: &dyn Store, new: &NewBuild) -> TemplateId {
    match store.begin_build(new).await.expect("stored") {
        BeginBuild::Begun { template_id } => template_id,
        other => panic!("{other:?}"),
    }
}

pub async fn a_name_is_one_template_and_its_tag_one_waiting_build(store: Arc<dyn Store>) {
    let (one, two) = (team(&*store, "na").await, team(&*store, "nam").await);
    let first = begin(&*store, &new(&one, "web", 10, &["default"])).await;
    assert_eq!(
        begin(&*store, &new(&one, "web", 11, &["v1"])).await,
        first,
        "same name"
    );
    let foreign = begin(&*store, &new(&two, "web", 12, &["default"])).await;
    assert_ne!(foreign, first, "names are the team's own");
    assert_eq!(status(&*store, 10).await, Some(BuildStatus::Waiting));
    begin(&*store, &new(&one, "web", 13, &["v2", "default"])).await;
    assert_eq!(
        status(&*store, 10).await,
        Some(BuildStatus::Failed),
        "superseded"
    );
    assert_eq!(
        status(&*store, 11).await,
        Some(BuildStatus::Waiting),
        "another tag"
    );
    let why = store
        .build_details(&BuildId::from_random([10; 16]))
        .await
        .expect("read");
    let failure = why.failure.expect("a failure");
    assert!(failure.message.contains("superseded"), "{failure:?}");
    let taken = store
        .begin_build(&new(&one, first.as_str(), 14, &["default"]))
        .await;
    assert_eq!(taken.expect("asked"), BeginBuild::NameTaken);
    // 11, 13 and this one are three, which is the limit; another would not even supersede.
    begin(&*store, &new(&one, "other", 15, &["default"])).await;
    let limit = store
        .begin_build(&new(&one, "third", 16, &["default"]))
        .await;
    assert_eq!(limit.expect("asked"), BeginBuild::LimitReached);
    begin(&*store, &new(&one, "other", 17, &["default"])).await;
    assert_eq!(status(&*store, 15).await, Some(BuildStatus::Failed));
}

pub async fn a_build_starts_once_and_ends_once(store: Arc<dyn Store>) {
    let one = team(&*store, "start").await;
    let id = |number: u8| BuildId::from_random([number; 16]);
    begin(&*store, &new(&one, "web", 20, &["default"])).await;
    let started = |superseded: Vec<BuildId>| StartBuild::Started { superseded };
    let at = UnixMillis(2000);
    let outcome = store.start_build(&id(20), &specification(), at).await;
    assert_eq!(outcome.expect("started"), started(Vec::new()));
    let again = store.start_build(&id(20), &specification(), at).await;
    assert_eq!(again.expect("asked"), StartBuild::NotWaiting);
    assert_eq!(status(&*store, 20).await, Some(BuildStatus::Building));
    assert!(
        store
            .touch_build(&id(20), UnixMillis(2001))
            .await
            .expect("touched")
    );
    begin(&*store, &new(&one, "web", 21, &["v1", "default"])).await;
    assert_eq!(
        status(&*store, 20).await,
        Some(BuildStatus::Building),
        "until it starts"
    );
    let outcome = store.start_build(&id(21), &specification(), at).await;
    assert_eq!(outcome.expect("started"), started(vec![id(20)]));
    assert_eq!(status(&*store, 20).await, Some(BuildStatus::Failed));
    assert!(
        !store.touch_build(&id(20), at).await.expect("asked"),
        "it is over"
    );
    assert!(
        !store
            .end_build(&id(20), Ok(&finished()), at)
            .await
            .expect("asked")
    );
    assert!(
        store
            .end_build(&id(21), Ok(&finished()), UnixMillis(3000))
            .await
            .expect("ended")
    );
    let rows = store.catalog().await.expect("read");
    let row = rows
        .builds
        .iter()
        .find(|it| it.build_id == id(21))
        .expect("there");
    assert_eq!(
        (row.status, row.finished_at),
        (BuildStatus::Ready, Some(UnixMillis(3000)))
    );
    let of_row = (
        row.default_user.as_str(),
        row.default_workdir.as_str(),
        row.limits.disk,
    );
    assert_eq!(of_row, ("web", "/srv", MiB(2048)));
    assert_eq!(row.policy, crate::policy());
    let details = store.build_details(&id(21)).await.expect("read");
    assert_eq!(details.specification, Some(specification()));
    assert_eq!(
        (details.finished, details.min_free_disk_mib),
        (Some(finished()), Some(7))
    );
    begin(&*store, &new(&one, "web", 22, &["v3"])).await;
    let failure = BuildFailure {
        step: Some("3".to_owned()),
        message: "no \"such\" thing".to_owned(),
    };
    assert!(
        store
            .end_build(&id(22), Err(&failure), at)
            .await
            .expect("ended")
    );
    assert_eq!(
        store.build_details(&id(22)).await.expect("read").failure,
        Some(failure)
    );
    begin(&*store, &new(&one, "web", 23, &["v4"])).await;
    assert_eq!(
        store.cancel_builds(&one.team_id, at).await.expect("done"),
        [id(23)]
    );
}

pub async fn builds_that_nobody_performs_are_given_up(store: Arc<dyn Store>) {
    let one = team(&*store, "given up").await;
    for number in 30..=32 {
        begin(
            &*store,
            &new(&one, &format!("n{number}"), number, &["default"]),
        )
        .await;
    }
    let id = |number: u8| BuildId::from_random([number; 16]);
    for number in 30..=31 {
        store
            .start_build(&id(number), &specification(), UnixMillis(5000))
            .await
            .expect("started");
    }
    assert!(
        store
            .touch_build(&id(31), UnixMillis(6000))
            .await
            .expect("touched")
    );
    let given_up = store
        .abandon_builds(UnixMillis(1000), UnixMillis(5500), UnixMillis(7000))
        .await;
    assert_eq!(given_up.expect("done"), [id(30)], "32 waits since 1032");
    let given_up = store
        .abandon_builds(UnixMillis(1033), UnixMillis(5500), UnixMillis(7000))
        .await;
    assert_eq!(given_up.expect("done"), [id(32)]);
    assert_eq!(status(&*store, 31).await, Some(BuildStatus::Building));
}

pub async fn lines_of_a_build_come_back_by_level_and_page(store: Arc<dyn Store>) {
    let one = team(&*store, "lines!").await;
    begin(&*store, &new(&one, "web", 40, &["default"])).await;
    let id = BuildId::from_random([40; 16]);
    let line = |number: u64, level: LogLevel| BuildLogLine {
        at: UnixMillis(number),
        level,
        step: (number > 1).then(|| "1".to_owned()),
        message: format!("line {number} \u{fffd}"),
    };
    let all = [
        line(1, LogLevel::Info),
        line(2, LogLevel::Debug),
        line(3, LogLevel::Error),
        line(4, LogLevel::Warn),
    ];
    let mut sent = all.clone();
    sent[0].message = "line 1 \0".to_owned();
    store
        .add_build_lines(&id, &sent[..2])
        .await
        .expect("written");
    store
        .add_build_lines(&id, &sent[2..])
        .await
        .expect("written");
    let query = LineQuery {
        level: LogLevel::Debug,
        direction: LogDirection::Forward,
        cursor: None,
        offset: 0,
        limit: 100,
    };
    let read = async |query: LineQuery| store.build_lines(&id, &query).await.expect("read");
    assert_eq!(read(query.clone()).await, all);
    assert_eq!(
        read(LineQuery {
            offset: 1,
            limit: 2,
            ..query.clone()
        })
        .await,
        all[1..3]
    );
    assert_eq!(
        read(LineQuery {
            offset: 4,
            ..query.clone()
        })
        .await,
        []
    );
    assert_eq!(
        read(LineQuery {
            limit: 0,
            ..query.clone()
        })
        .await,
        []
    );
    let level = LogLevel::Warn;
    assert_eq!(
        read(LineQuery {
            level,
            offset: 1,
            ..query.clone()
        })
        .await,
        all[3..]
    );
    let cursor = Some(UnixMillis(3));
    assert_eq!(
        read(LineQuery {
            cursor,
            ..query.clone()
        })
        .await,
        all[2..]
    );
    let direction = LogDirection::Backward;
    let backward = read(LineQuery {
        cursor,
        direction,
        limit: 2,
        ..query.clone()
    })
    .await;
    assert_eq!(backward, [all[2].clone(), all[1].clone()]);
    let newest = read(LineQuery {
        direction,
        limit: 1,
        ..query
    })
    .await;
    assert_eq!(newest, all[3..]);
}

pub async fn a_template_is_deleted_when_nothing_uses_it(store: Arc<dyn Store>) {
    let one = team(&*store, "deletes").await;
    let id = begin(&*store, &new(&one, "web", 50, &["default"])).await;
    let build_id = BuildId::from_random([50; 16]);
    store
        .end_build(&build_id, Ok(&finished()), UnixMillis(2000))
        .await
        .expect("ended");
    let mut sandbox = crate::sandbox(51, &one);
    sandbox.template_id = id.clone();
    store.reserve(&sandbox, 9, None).await.expect("reserved");
    let at = UnixMillis(9000);
    let used = store.delete_template(&id, at).await.expect("asked");
    assert_eq!(used, DeleteTemplate::HasRunning);
    let end = crate::dead(&sandbox, soulbox_types::DeathCause::Killed);
    let expected = (sandbox.progress.state, sandbox.progress.epoch);
    store
        .advance(&sandbox.sandbox_id, expected, &end)
        .await
        .expect("ended");
    let deleted = store.delete_template(&id, at).await.expect("asked");
    assert_eq!(
        deleted,
        DeleteTemplate::Deleted {
            builds: vec![build_id]
        }
    );
    let rows = store.catalog().await.expect("read");
    assert!(rows.templates.iter().all(|it| it.template_id != id));
    assert!(rows.builds.iter().all(|it| it.template_id != id));
    assert!(rows.assignments.iter().all(|it| it.template_id != id));
    assert!(rows.aliases.iter().all(|it| it.template_id != id));
    assert_eq!(
        store.delete_template(&id, at).await.expect("asked"),
        DeleteTemplate::NotFound
    );
    let taken = store
        .begin_build(&new(&one, id.as_str(), 52, &["default"]))
        .await;
    assert_eq!(
        taken.expect("asked"),
        BeginBuild::NameTaken,
        "IDs are never names"
    );
    assert_ne!(
        begin(&*store, &new(&one, "web", 53, &["default"])).await,
        id,
        "a new template"
    );
}

pub async fn a_global_alias_is_claimed_once(store: Arc<dyn Store>) {
    let one = team(&*store, "publishes").await;
    let web = begin(&*store, &new(&one, "web", 60, &["default", "v1", "v2"])).await;
    let other = begin(&*store, &new(&one, "other", 61, &["default"])).await;
    let at = UnixMillis(9000);
    let publish = async |id: &TemplateId, public, alias| {
        store.publish(id, public, alias, at).await.expect("asked")
    };
    assert_eq!(publish(&web, true, Some("global-web")).await, Publish::Done);
    assert_eq!(
        publish(&web, true, Some("global-web")).await,
        Publish::Done,
        "its own"
    );
    assert_eq!(
        publish(&other, true, Some("global-web")).await,
        Publish::AliasTaken
    );
    assert_eq!(publish(&other, true, None).await, Publish::Done);
    assert_eq!(publish(&web, false, None).await, Publish::Done);
    let rows = store.catalog().await.expect("read");
    let public = |id: &TemplateId| {
        let found = rows.templates.iter().find(|it| it.template_id == *id);
        found.map(|it| (it.public, it.updated_at))
    };
    assert_eq!(
        (public(&web), public(&other)),
        (Some((false, at)), Some((true, at)))
    );
    let gone = ["v1".to_owned(), "never".to_owned()];
    store
        .remove_tags(&web, &gone, UnixMillis(9000))
        .await
        .expect("removed");
    let again = AssignmentRow {
        assignment_id: "again".to_owned(),
        template_id: web.clone(),
        build_id: BuildId::from_random([60; 16]),
        tag: "v3".to_owned(),
        assigned_at: at,
    };
    store.assign_tags(&[again]).await.expect("assigned");
    let rows = store.catalog().await.expect("read");
    let of_web = rows.assignments.iter().filter(|it| it.template_id == web);
    let tags: Vec<_> = of_web.map(|it| it.tag.as_str()).collect();
    assert_eq!(tags, ["default", "v2", "v3"]);
}

pub async fn one_of_racing_requests_gets_the_last_place(store: Arc<dyn Store>) {
    let one = team(&*store, "racing  at").await;
    let requests = (70..78).map(|number| {
        let (store, new) = (
            store.clone(),
            new(&one, &format!("n{number}"), number, &["default"]),
        );
        tokio::spawn(async move { store.begin_build(&new).await.expect("asked") })
    });
    let mut begun = 0;
    for request in requests.collect::<Vec<_>>() {
        match request.await.expect("no panic") {
            BeginBuild::Begun { .. } => begun += 1,
            BeginBuild::LimitReached => {}
            BeginBuild::NameTaken => panic!("no such name"),
        }
    }
    assert_eq!(begun, 3);
}
