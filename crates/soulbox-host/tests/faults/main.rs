//! Every step of a create and of a kill fails in turn, and the world is looked at afterwards: no root, no kernel objects but in [`overtaken`].

mod ahead;
mod overtaken;
mod world;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use soulbox_types::{Epoch, UnixMillis};
use soulbox_wire::host::{Event, HostErrorKind};
use world::{Objects, SLOTS, World, now, request};

fn records(data: &Path) -> BTreeSet<String> {
    let directory = data.join("host/sandboxes");
    std::fs::read_dir(directory)
        .expect("records")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

/// What a create from nothing does that can fail, in order.
const STEPS: [&str; 10] = [
    "prepare",
    "has_layer",
    "create_upper",
    "boot",
    "ended",
    "set_limits",
    "dial",
    "set_limits",
    "set_quota",
    "set_egress",
];

#[tokio::test]
async fn a_create_takes_the_steps_that_are_made_to_fail() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    host.create(request("one")).await.expect("created");
    let mut expected = STEPS.to_vec();
    expected.push("process");
    assert_eq!(world.take_calls(), expected);
}

#[tokio::test]
async fn a_create_that_fails_at_any_step_leaves_nothing() {
    for number in 0..=STEPS.len() {
        let data = tempfile::tempdir().expect("directory");
        let world = World::default();
        let host = world.start(data.path(), 0, 0).await;
        world.fail(number);
        let error = host
            .create(request("one"))
            .await
            .map(drop)
            .expect_err("failed");
        assert!(
            matches!(
                error.kind,
                HostErrorKind::Failed | HostErrorKind::TemplateMissing
            ),
            "step {number}: {error}"
        );
        world
            .until(&format!("step {number} is undone"), |objects| {
                *objects == Objects::default()
            })
            .await;
        assert_eq!(records(data.path()), BTreeSet::new(), "step {number}");
        assert!(host.list().is_empty(), "step {number}");
        // A repetition of that create comes too late, as its caller was told that nothing is left.
        let late = host.create(request("one")).await.map(drop);
        assert_eq!(
            late.expect_err("too late").kind,
            HostErrorKind::StaleEpoch,
            "step {number}"
        );
        // The ID is free for a later decision, and so is every slot.
        for index in 0..SLOTS {
            let mut again = if index == 0 {
                request("one")
            } else {
                request(&format!("more-{index}"))
            };
            again.epoch += u64::from(index == 0);
            host.create(again)
                .await
                .unwrap_or_else(|error| panic!("step {number}: {error}"));
        }
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_written_fails_the_create() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    let directory = data.path().join("host/sandboxes");
    std::fs::remove_dir(&directory).expect("empty");
    let error = host
        .create(request("one"))
        .await
        .map(drop)
        .expect_err("failed");
    assert!(
        error.message.contains("failed to write its record"),
        "{error}"
    );
    world
        .until("nothing is left", |objects| *objects == Objects::default())
        .await;
    std::fs::create_dir(&directory).expect("made");
    host.create(request("two")).await.expect("created");
}

#[tokio::test]
async fn a_failed_start_whose_upper_stays_is_tried_again_at_the_stop() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    world.break_call(Some("delete_upper"));
    world.fail(3); // boot
    host.create(request("one"))
        .await
        .map(drop)
        .expect_err("failed");
    assert_eq!(world.objects().uppers.len(), 1);
    world.break_call(None);
    assert_eq!(host.stop().await, 0);
    assert_eq!(world.objects(), Objects::default());
}

#[tokio::test]
async fn a_kill_whose_release_fails_keeps_the_slot_until_it_succeeds() {
    slot_stays_until_given_back("release").await;
}

#[tokio::test]
async fn a_kill_whose_upper_stays_keeps_the_slot_until_it_is_deleted() {
    slot_stays_until_given_back("delete_upper").await;
}

async fn slot_stays_until_given_back(call: &'static str) {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    for index in 0..SLOTS {
        host.create(request(&format!("id-{index}")))
            .await
            .expect("created");
    }
    world.break_call(Some(call));
    world.take_calls();
    host.kill("id-0", Epoch(2))
        .await
        .expect("no process is left");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !world.take_calls().contains(&call) {
        assert!(Instant::now() < deadline, "{call} is not called");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!records(data.path()).contains("id-0.json"));
    assert_eq!(host.list().len(), usize::from(SLOTS) - 1);
    // Its slot is not given to anybody while something of it is there.
    let error = host
        .create(request("next"))
        .await
        .map(drop)
        .expect_err("no slot");
    assert_eq!(error.kind, HostErrorKind::NoCapacity, "{call}: {error}");
    world.break_call(None);
    // What is left over is tried again every 10 s.
    let deadline = Instant::now() + Duration::from_secs(25);
    for epoch in 2.. {
        // Each attempt is a decision of its own.
        let mut next = request("next");
        next.epoch = epoch;
        if host.create(next).await.is_ok() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{call}: the slot does not come back"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(world.objects().uppers.len(), usize::from(SLOTS), "{call}");
}

#[tokio::test]
async fn concurrent_kills_all_succeed_and_one_of_an_older_epoch_does_not() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    host.create(request("one")).await.expect("created");
    host.set_deadline("one", Epoch(5), UnixMillis(now() + 1000))
        .await
        .expect("moved");
    let stale = host.kill("one", Epoch(4)).await.expect_err("stale");
    assert_eq!(stale.kind, HostErrorKind::StaleEpoch);
    let stale = host
        .set_deadline("one", Epoch(4), UnixMillis(0))
        .await
        .expect_err("stale");
    assert_eq!(stale.kind, HostErrorKind::StaleEpoch);
    assert_eq!(host.list()[0].epoch, 5);
    let mut events = host.subscribe();
    let kills: Vec<_> = (0..20)
        .map(|_| {
            let host = host.clone();
            tokio::spawn(async move { host.kill("one", Epoch(6)).await })
        })
        .collect();
    for kill in kills {
        match kill.await.expect("no panic") {
            Ok(()) => {}
            // It came when all was over.
            Err(error) => assert_eq!(error.kind, HostErrorKind::NotFound, "{error}"),
        }
    }
    world
        .until("all is given back", |objects| {
            *objects == Objects::default()
        })
        .await;
    assert!(
        events.try_recv().is_err(),
        "who asked has the answer, so there is no event"
    );
    assert_eq!(records(data.path()), BTreeSet::new());
}

#[tokio::test]
async fn a_kill_that_overtakes_its_create_wins() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    let early = host.kill("one", Epoch(2)).await.expect_err("not there");
    assert_eq!(early.kind, HostErrorKind::NotFound);
    let late = host.create(request("one")).await.map(drop);
    assert_eq!(late.expect_err("late").kind, HostErrorKind::StaleEpoch);
    assert_eq!(world.objects(), Objects::default());
}

#[tokio::test]
async fn a_kill_during_the_start_is_answered_when_nothing_is_left() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    world.slow_boot(Duration::from_millis(300));
    let create = tokio::spawn({
        let host = host.clone();
        async move { host.create(request("one")).await.map(drop) }
    });
    world
        .until("it is being started", |objects| objects.parked.len() == 1)
        .await;
    host.kill("one", Epoch(2)).await.expect("killed");
    assert_eq!(world.lives(), BTreeSet::new(), "no process is left");
    let created = create.await.expect("no panic");
    assert_eq!(created.expect_err("killed").kind, HostErrorKind::StaleEpoch);
    world
        .until("all is given back", |objects| {
            *objects == Objects::default()
        })
        .await;
    assert_eq!(records(data.path()), BTreeSet::new());
}

#[tokio::test]
async fn a_deadline_ends_a_sandbox_and_says_so() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    let mut events = host.subscribe();
    let mut short = request("one");
    short.deadline = now() + 50;
    host.create(short).await.expect("created");
    host.create(request("two")).await.expect("created");
    host.set_deadline("two", Epoch(2), UnixMillis(now() + 50))
        .await
        .expect("moved");
    let mut ended = BTreeSet::new();
    for _ in 0..2 {
        let event = tokio::time::timeout(Duration::from_secs(5), events.recv()).await;
        let Some(Event::Exited {
            sandbox_id, cause, ..
        }) = event.expect("in time")
        else {
            panic!("no event");
        };
        assert_eq!(cause, "expired");
        ended.insert(sandbox_id);
    }
    assert_eq!(ended, BTreeSet::from(["one".to_owned(), "two".to_owned()]));
    world
        .until("all is given back", |objects| {
            *objects == Objects::default()
        })
        .await;
}

#[tokio::test]
async fn the_next_agent_adopts_what_lives_and_clears_the_rest() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 2, 2).await;
    world
        .until("warm", |objects| {
            objects.booted.len() == 2 && objects.parked.len() == 2
        })
        .await;
    for id in ["lives", "died", "expired"] {
        host.create(request(id)).await.expect("created");
    }
    // A stop lets go of sandboxes; the warm ones end.
    assert_eq!(host.stop().await, 3);
    let kept = world.objects();
    assert_eq!(
        (kept.parked.len(), kept.booted.len(), kept.uppers.len()),
        (0, 3, 3)
    );
    let record = |id: &str| data.path().join(format!("host/sandboxes/{id}.json"));
    let read = |id: &str| -> serde_json::Value {
        let text = std::fs::read(record(id)).expect("record");
        serde_json::from_slice(&text).expect("json")
    };
    let slot = read("died")["slot"].as_u64().expect("slot");
    world.end(u16::try_from(slot).expect("slot"));
    let mut expired = read("expired");
    expired["deadline"] = 1.into();
    std::fs::write(record("expired"), expired.to_string()).expect("written");
    // An agent that died leaves more: half-written records, uppers that nobody names.
    std::fs::write(record("half"), "{").expect("written");
    world.forget_upper("7-nobody");

    let host = world.start(data.path(), 0, 0).await;
    world
        .until("one is left", |objects| {
            objects.booted.len() == 1 && objects.uppers.len() == 1
        })
        .await;
    let listed: Vec<_> = host
        .list()
        .into_iter()
        .map(|sandbox| sandbox.sandbox_id)
        .collect();
    assert_eq!(listed, ["lives"]);
    assert_eq!(
        records(data.path()),
        BTreeSet::from(["lives.json".to_owned()])
    );
    host.dial("lives", 80).await.expect("dialled");
    host.kill("lives", Epoch(9)).await.expect("killed");
    world
        .until("all is given back", |objects| {
            *objects == Objects::default()
        })
        .await;
}

#[tokio::test]
async fn warm_slots_that_died_are_given_back_and_made_anew() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 3, 0).await;
    world
        .until("warm", |objects| objects.booted.len() == 3)
        .await;
    let warm = world.lives();
    for slot in &warm {
        world.end(*slot);
    }
    host.create(request("one"))
        .await
        .expect("created from nothing");
    world
        .until("the dead ones are gone and others are there", |objects| {
            objects.booted.len() == 4
                && objects.booted.is_disjoint(&warm)
                && objects.uppers.len() == 4
        })
        .await;
    assert_eq!(host.stop().await, 1);
    assert_eq!(world.objects().booted.len(), 1);
}

#[tokio::test]
async fn a_full_pool_refuses_creates_and_keeps_what_runs() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    host.create(request("one")).await.expect("created");
    world.fill_pool(true);
    let error = host
        .create(request("two"))
        .await
        .map(drop)
        .expect_err("full");
    assert_eq!(error.kind, HostErrorKind::NoCapacity);
    assert!(error.message.contains("reserve"), "{error}");
    assert_eq!(host.stop().await, 1);
    // An agent that starts on a full pool adopts as any other.
    let host = world.start(data.path(), 1, 1).await;
    assert_eq!(host.list().len(), 1);
    host.dial("one", 80).await.expect("dialled");
    world.fill_pool(false);
    host.create(request("two")).await.expect("created");
    host.kill_all().await;
    assert_eq!(host.stop().await, 0);
    assert_eq!(world.objects(), Objects::default());
}

#[tokio::test]
async fn processes_that_do_not_end_are_reported_and_keep_their_slot() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    host.create(request("one")).await.expect("created");
    world.make_immortal(true);
    let error = host
        .kill("one", Epoch(2))
        .await
        .expect_err("it does not end");
    assert_eq!(error.kind, HostErrorKind::Failed);
    assert_eq!(world.objects().booted.len(), 1);
    // It is not over, so it is still known, and so is its ID.
    assert_eq!(host.list().len(), 1);
    let taken = host.create(request("one")).await.map(drop);
    assert_eq!(taken.expect_err("taken").kind, HostErrorKind::AlreadyExists);
    let slot = *world.lives().first().expect("alive");
    world.end(slot);
    host.kill("one", Epoch(2)).await.unwrap_or_else(|error| {
        assert_eq!(error.kind, HostErrorKind::NotFound, "{error}");
    });
    assert_eq!(host.stop().await, 0);
    assert_eq!(world.objects(), Objects::default());
}

fn layer(letter: char) -> String {
    letter.to_string().repeat(64)
}

#[tokio::test]
async fn a_step_of_a_build_begins_from_its_layers_and_is_in_no_list() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 1, 0).await;
    world
        .until("one is in stock", |objects| objects.booted.len() == 1)
        .await;
    let mut step = request("step");
    step.layers = vec![layer('a'), layer('b')];
    host.create(step).await.expect("created");
    let paths =
        ["a", "b"].map(|it| std::path::PathBuf::from(format!("/pool/layers/{}", it.repeat(64))));
    assert_eq!(world.booted_on(), paths, "not what is kept in stock");
    assert!(host.list().is_empty());
    assert!(host.usage().await.expect("usage").is_empty());

    host.commit_layer("step", Epoch(1), &layer('c'))
        .await
        .expect("layer");
    assert_eq!(world.layers(), [layer('c')]);
    let old = host.commit_layer("step", Epoch(0), &layer('d')).await;
    assert_eq!(old.expect_err("stale").kind, HostErrorKind::StaleEpoch);
    let none = host.commit_layer("nobody", Epoch(1), &layer('d')).await;
    assert_eq!(none.expect_err("none").kind, HostErrorKind::NotFound);
    let bad = host.commit_layer("step", Epoch(1), "../../etc").await;
    assert_eq!(bad.expect_err("no digest").kind, HostErrorKind::Failed);
    assert_eq!(world.layers(), [layer('c')]);

    // The next agent ends it: whoever led the build is gone.
    let _left = host.stop().await;
    let host = world.start(data.path(), 0, 0).await;
    assert!(host.list().is_empty());
    world
        .until("nothing is left", |objects| *objects == Objects::default())
        .await;
    // And all of them end with the rest.
    let mut step = request("another");
    step.layers = vec![layer('a')];
    host.create(step).await.expect("created");
    host.kill_all().await;
    world
        .until("nothing is left", |objects| *objects == Objects::default())
        .await;
}

#[tokio::test(start_paused = true)]
async fn layers_are_collected_every_half_an_hour_without_being_asked() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    world.add_layers(&[layer('b')]);
    let claimed = host.find_layer("build-9", &layer('b')).await;
    assert_eq!(claimed.expect("asked"), Some(layer('b')));
    for round in ["at first", "and again"] {
        world.add_layers(&[layer('a')]);
        tokio::time::sleep(Duration::from_secs(1700)).await;
        assert_eq!(world.layers().len(), 2, "{round}: it is not time yet");
        tokio::time::sleep(Duration::from_secs(105)).await;
        // The pool is asked on threads, for which the clock does not wait.
        for _ in 0..1000 {
            if world.layers().len() == 1 {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            tokio::task::yield_now().await;
        }
        assert_eq!(world.layers(), [layer('b')], "{round}");
    }
}

#[tokio::test]
async fn layers_are_not_collected_while_somebody_uses_them() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    world.add_layers(&['a', 'b', 'c', 'd'].map(layer));
    let collect = async |dry_run| {
        let collected = host.collect_layers(Duration::ZERO, dry_run).await;
        collected.expect("collected")
    };

    // A build that goes on has found one, and a sandbox that is being started begins from another.
    let found = host.find_layer("build-9", &layer('a')).await;
    assert_eq!(found.expect("asked"), Some(layer('a')));
    world.slow_boot(Duration::from_millis(500));
    let mut step = request("step");
    step.layers = vec![layer('b')];
    let starting = tokio::spawn({
        let host = host.clone();
        async move { host.create(step).await.map(drop) }
    });
    world
        .until("it is being started", |objects| !objects.uppers.is_empty())
        .await;
    assert_eq!(collect(true).await, ['c', 'd'].map(layer));
    assert_eq!(world.layers().len(), 4, "nothing was deleted");
    assert_eq!(collect(false).await, ['c', 'd'].map(layer));
    assert_eq!(world.layers(), ['a', 'b'].map(layer));
    starting.await.expect("a task").expect("created");
    assert!(collect(false).await.is_empty(), "its record names it");

    // The build's manifest takes the place of its claim.
    host.kill_all().await;
    world
        .until("nothing is left", |objects| *objects == Objects::default())
        .await;
    assert_eq!(collect(false).await, [layer('b')]);
    let mut build = host.templates().await.expect("templates").remove(0);
    (build.build_id, build.layers) = ("build-9".to_owned(), vec![layer('a')]);
    host.put_build(build).await.expect("kept");
    assert!(collect(false).await.is_empty());
    let deleted = host.delete_build("build-9".to_owned()).await;
    deleted.expect("deleted");
    assert_eq!(collect(false).await, [layer('a')]);
    assert!(world.layers().is_empty());
}

#[tokio::test]
async fn layers_that_are_none_are_refused() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    for layers in [vec!["../x".to_owned()], vec![layer('a'); 401]] {
        let mut step = request("step");
        step.layers = layers;
        let error = host.create(step).await.map(drop).expect_err("refused");
        assert_eq!(error.kind, HostErrorKind::Failed);
    }
    assert_eq!(world.objects(), Objects::default());
}

#[tokio::test]
async fn of_a_recipes_build_only_the_snapshot_is_noted() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    let template = host.templates().await.expect("templates").remove(0);
    let mut told = template.clone();
    told.layers.push(layer('b'));
    told.inherited.start_command = Some("another".to_owned());
    told.inherited.started = Some("build-snapshot".to_owned());
    host.put_build(told).await.expect("kept");
    let mut expected = template.clone();
    expected.inherited.started = Some("build-snapshot".to_owned());
    let kept = host.build(&template.build_id).await.expect("read");
    assert_eq!(kept, Some(expected));
    // There is none of that name, so whoever makes snapshots hears that there is one to make.
    assert_eq!(host.templates().await.expect("templates"), [template]);
}

#[tokio::test]
async fn a_build_without_a_name_can_be_started() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), 0, 0).await;
    let mut build = host.templates().await.expect("templates").remove(0);
    build.build_id = "build-2".to_owned();
    build.layers.push(layer('b'));
    let mut wanted = request("one");
    wanted.build_id.clone_from(&build.build_id);
    let early = host.create(wanted).await.map(drop);
    let kind = early.expect_err("not there").kind;
    assert_eq!(kind, HostErrorKind::TemplateMissing);

    host.put_build(build.clone()).await.expect("kept");
    assert_eq!(host.build("build-2").await.expect("read"), Some(build));
    let mut wanted = request("two");
    wanted.build_id = "build-2".to_owned();
    host.create(wanted).await.expect("created");
    assert_eq!(world.booted_on().len(), 2);
    assert_eq!(host.list().len(), 1);
    // Names are templates, builds are not.
    assert_eq!(host.templates().await.expect("templates").len(), 1);
    host.delete_build("build-2".to_owned()).await.expect("gone");
    assert_eq!(host.build("build-2").await.expect("read"), None);
}
