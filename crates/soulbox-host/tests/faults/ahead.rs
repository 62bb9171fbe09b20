//! Slots ahead of builds that are used, and what becomes of them when a build goes.

use std::time::{Duration, Instant};

use soulbox_types::Epoch;
use soulbox_wire::host::HostTemplate;

use crate::layer;
use crate::world::{FakeHost, Objects, World, request};

const AHEAD: usize = 6;

/// A build of another template, on a layer of its own.
async fn own(host: &FakeHost, build_id: &str, letter: char) -> HostTemplate {
    let mut build = host.templates().await.expect("templates").remove(0);
    build.build_id = build_id.to_owned();
    build.template_id = "own".to_owned();
    build.layers.push(layer(letter));
    host.put_build(build.clone()).await.expect("kept");
    build
}

async fn create(host: &FakeHost, sandbox_id: &str, build_id: &str) {
    let mut wanted = request(sandbox_id);
    wanted.build_id = build_id.to_owned();
    host.create(wanted).await.expect("created");
}

/// Waits until so many slots have that layer, sandboxes included, and the stock is full.
async fn until_booted(world: &World, host: &FakeHost, letter: char, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.booted_with(&layer(letter)).len() != count || host.warm_levels().booted != AHEAD {
        assert!(
            Instant::now() < deadline,
            "not within 10 s: {count} slots of {letter}, there are {:?} and {:?}",
            world.booted_with(&layer(letter)),
            host.warm_levels()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_build_that_is_used_has_slots_and_they_go_with_it() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), AHEAD, 0).await;
    let build = own(&host, "own-1", 'b').await;
    create(&host, "one", "own-1").await;
    until_booted(&world, &host, 'b', 1).await;
    create(&host, "two", "own-1").await;
    // Of two creates that count both, two slots; they were taken from the default build's.
    until_booted(&world, &host, 'b', 4).await;
    assert_eq!(host.warm_levels().taken, 0);
    let ahead = world.booted_with(&layer('b'));
    create(&host, "three", "own-1").await;
    assert_eq!(host.warm_levels().taken, 1);
    let record = std::fs::read(data.path().join("host/sandboxes/three.json")).expect("record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("json");
    let slot = u16::try_from(record["slot"].as_u64().expect("slot")).expect("slot");
    assert!(ahead.contains(&slot), "{slot} is none of {ahead:?}");
    for id in ["one", "two", "three"] {
        host.kill(id, Epoch(2)).await.expect("killed");
    }
    // Its share is three now, but two of three are enough until others are used up.
    until_booted(&world, &host, 'b', 2).await;

    // The same build with a snapshot to begin from: a slot that booted without is of no use.
    let mut noted = build.clone();
    noted.inherited.started = Some("build-snapshot".to_owned());
    host.put_build(noted).await.expect("kept");
    until_booted(&world, &host, 'b', 0).await;
    host.put_build(build).await.expect("kept");
    for id in ["four", "five"] {
        create(&host, id, "own-1").await;
    }
    until_booted(&world, &host, 'b', 4).await;
    own(&host, "own-2", 'c').await;
    until_booted(&world, &host, 'b', 2).await;
    for id in ["six", "seven"] {
        create(&host, id, "own-2").await;
    }
    until_booted(&world, &host, 'c', 4).await;
    host.delete_build("own-2".to_owned()).await.expect("gone");
    until_booted(&world, &host, 'c', 2).await;

    host.kill_all().await;
    assert_eq!(host.stop().await, 0);
    assert_eq!(world.objects(), Objects::default());
}

#[tokio::test]
async fn a_build_that_cannot_be_booted_is_tried_once_and_holds_nobody() {
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    let host = world.start(data.path(), AHEAD, 0).await;
    own(&host, "own-1", 'b').await;
    until_booted(&world, &host, 'b', 0).await;
    world.lose_layer(&layer('b'));
    world.take_calls();
    for id in ["one", "two"] {
        let mut wanted = request(id);
        wanted.build_id = "own-1".to_owned();
        host.create(wanted).await.map(drop).expect_err("no layer");
    }
    // Another one for the stock of the default build, whose place was to be given away.
    create(&host, "three", "build-1").await;
    until_booted(&world, &host, 'b', 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let attempts = world.take_calls();
    let prepared = attempts.iter().filter(|call| **call == "prepare").count();
    let booted = attempts.iter().filter(|call| **call == "boot").count();
    assert_eq!(prepared - booted, 3, "two creates, one slot: {attempts:?}");
    host.kill_all().await;
    assert_eq!(host.stop().await, 0);
    assert_eq!(world.objects(), Objects::default());
}
