//! Rules of the store about builds that nobody uses any more.

use std::sync::Arc;

use soulbox_control::{AssignmentRow, BuildFailure, SnapshotRow, Store};
use soulbox_types::{BuildId, DeathCause, TemplateId, UnixMillis};

use crate::templates::{begin, finished, new, team};

fn id(number: u8) -> BuildId {
    BuildId::from_random([number; 16])
}

fn at(seconds: u64) -> UnixMillis {
    UnixMillis(1_000_000 + seconds * 1000)
}

/// Which of these are there.
async fn there(store: &dyn Store, numbers: &[u8]) -> Vec<u8> {
    let rows = store.catalog().await.expect("read");
    let has = |number: &&u8| rows.builds.iter().any(|it| it.build_id == id(**number));
    numbers.iter().filter(has).copied().collect()
}

/// Deletes what has been unused since then; some of it may be other rules'.
async fn retire(store: &dyn Store, seconds: u64, but: &[BuildId]) {
    let unused = store.unused_builds(at(seconds), but).await.expect("read");
    let retired = store.retire_builds(at(seconds), but).await;
    assert_eq!(retired.expect("retired"), unused, "what was told goes");
}

fn assigned(template: &TemplateId, build: u8, tag: &str, seconds: u64) -> AssignmentRow {
    AssignmentRow {
        assignment_id: format!("{build}-{tag}-{seconds}"),
        template_id: template.clone(),
        build_id: id(build),
        tag: tag.to_owned(),
        assigned_at: at(seconds),
    }
}

pub async fn builds_go_some_time_after_nobody_uses_them(store: Arc<dyn Store>) {
    let store = &*store;
    let one = team(store, "whose builds are retired one by one").await;
    let mut template = None;
    // Builds 100 to 103 get `default` one after the other, the first also `v1`; the third fails.
    for (number, seconds) in [(100, 10), (101, 20), (102, 30), (103, 40)] {
        let tags: &[&str] = if number == 100 {
            &["default", "v1"]
        } else {
            &["default"]
        };
        template = Some(begin(store, &new(&one, "web", number, tags)).await);
        let failure = BuildFailure {
            step: None,
            message: "no".to_owned(),
        };
        let done = finished();
        let outcome = if number == 102 {
            Err(&failure)
        } else {
            Ok(&done)
        };
        let ended = store.end_build(&id(number), outcome, at(seconds)).await;
        assert!(ended.expect("ended"));
    }
    let template = template.expect("a template");
    let all = [100, 101, 102, 103];

    // The second has been without a tag since the fourth was ready, the third since it failed.
    retire(store, 30, &[]).await;
    assert_eq!(there(store, &all).await, all);
    let unused = store.unused_builds(at(31), &[]).await.expect("read");
    let own = unused.iter().filter(|it| it.template_id == template);
    let told: Vec<_> = own.map(|it| (&it.build_id, it.unused_since)).collect();
    assert_eq!(told, [(&id(102), at(30))]);
    assert_eq!(there(store, &all).await, all, "it was only told");
    retire(store, 31, &[]).await;
    assert_eq!(there(store, &all).await, [100, 101, 103]);
    retire(store, 41, &[id(101)]).await;
    assert_eq!(there(store, &all).await, [100, 101, 103], "it is listed");

    // A tag that comes back and goes again begins anew.
    let back = assigned(&template, 101, "default", 50);
    store.assign_tags(&[back]).await.expect("assigned");
    retire(store, 1000, &[]).await;
    assert_eq!(there(store, &all).await, [100, 101], "the fourth lost it");
    let gone = ["v1".to_owned()];
    let removed = store.remove_tags(&template, &gone, at(2000)).await;
    removed.expect("removed");
    retire(store, 2000, &[]).await;
    assert_eq!(there(store, &all).await, [100, 101]);

    // What sandboxes and snapshots stand on stays, under either of its names.
    let mut sandbox = crate::sandbox(104, &one);
    sandbox.build_id = id(100);
    store.reserve(&sandbox, 9, None).await.expect("reserved");
    retire(store, 3000, &[]).await;
    assert_eq!(there(store, &all).await, [100, 101]);
    let end = crate::dead(&sandbox, DeathCause::Killed);
    let expected = (sandbox.progress.state, sandbox.progress.epoch);
    let ended = store.advance(&sandbox.sandbox_id, expected, &end).await;
    ended.expect("ended");
    let rows = store.catalog().await.expect("read");
    let row = |number: u8| rows.builds.iter().find(|it| it.build_id == id(number));
    let mut build = row(101).expect("there").clone();
    build.build_id = id(105);
    build.updated_at = at(2900);
    let of_snapshot = rows.templates.iter().find(|it| it.template_id == template);
    let of_snapshot = of_snapshot.expect("there").clone();
    let snapshot = SnapshotRow {
        build_id: id(105),
        template_id: template.clone(),
        team_id: one.team_id.clone(),
        sandbox_id: sandbox.sandbox_id.clone(),
        snapshot_name: "of-a-sandbox".to_owned(),
        host_build_id: id(100),
        memory: false,
        disk_bytes: 1,
        image_bytes: 0,
        created_at: at(2900),
    };
    let tag = assigned(&template, 105, "snapshot", 2900);
    let kept = store
        .register_snapshot(&of_snapshot, &build, &[], &tag, &snapshot)
        .await;
    kept.expect("kept");
    let gone = ["snapshot".to_owned()];
    let removed = store.remove_tags(&template, &gone, at(2950)).await;
    removed.expect("removed");
    retire(store, 4000, &[]).await;
    assert_eq!(there(store, &[100, 101, 105]).await, [100, 101, 105]);
    store.forget_snapshots(&[id(105)]).await.expect("forgotten");
    retire(store, 4000, &[]).await;
    assert_eq!(there(store, &[100, 101, 105]).await, [101]);

    // What was deleted is on the list until hosts have forgotten it, and so are the builds of a deleted template.
    let deleted = store.delete_template(&template, at(5000)).await;
    deleted.expect("deleted");
    let listed = store.forgotten_builds().await.expect("read");
    for number in [100, 101, 102, 103, 105] {
        assert!(listed.contains(&id(number)), "{number}");
    }
    let forgotten = [id(100), id(103)];
    let noted = store.builds_are_forgotten(&forgotten).await;
    noted.expect("noted");
    let listed = store.forgotten_builds().await.expect("read");
    assert!(!listed.contains(&id(100)) && !listed.contains(&id(103)));
    assert!(listed.contains(&id(101)));
}
