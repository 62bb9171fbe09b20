//! Rollbacks: what is prepared, what takes the place of what, and what is left when it does not.

use std::fs;

use soulbox_host::Host;
use soulbox_host::native::NativeRuntime;
use soulbox_types::Epoch;
use soulbox_wire::host::{After, Create, HostErrorKind};

use crate::guest::{Guest, eventually, init};
use crate::place::{KEY, Place, create, create_from};
use crate::{COUNTER, save};

async fn prepare(host: &Host<NativeRuntime>) {
    let request = create_from("first", 2, "snap", true);
    let (created, envd) = host.prepare(request).await.expect("prepared");
    init(&created, envd);
}

async fn not_prepared(host: &Host<NativeRuntime>, request: Create) -> HostErrorKind {
    let outcome = host.prepare(request).await.map(drop);
    outcome.expect_err("not prepared").kind
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_goes_back_and_until_then_it_goes_on() {
    let place = Place::take();
    let host = place.host(KEY, true).await;
    let first = Guest::create(&place, &host, create("first", 1)).await;
    first.start(COUNTER).await;
    first.goes_on(0).await;
    host.save(save("first", 2, "snap", true, After::GoOn))
        .await
        .expect("saved");
    let saved = first.counted();
    first.goes_on(saved + 100).await;

    let nothing = host.replace("first", Epoch(2)).await;
    assert_eq!(nothing.expect_err("nothing").kind, HostErrorKind::Failed);
    for (request, kind) in [
        (create("first", 2), HostErrorKind::Failed),
        (
            create_from("first", 2, "none", true),
            HostErrorKind::SnapshotMissing,
        ),
        (
            create_from("nobody", 2, "snap", true),
            HostErrorKind::NotFound,
        ),
    ] {
        assert_eq!(not_prepared(&host, request).await, kind);
    }

    prepare(&host).await;
    assert_eq!(place.left(), 2, "both run");
    let second = not_prepared(&host, create_from("first", 2, "snap", true)).await;
    assert_eq!(second, HostErrorKind::CannotSave, "one at a time");
    let stale = host.replace("first", Epoch(1)).await;
    assert_eq!(stale.expect_err("stale").kind, HostErrorKind::StaleEpoch);
    first.goes_on(first.counted()).await;
    // The record is what decides: when it cannot be written, nothing has happened.
    fs::create_dir(place.draft_of_record("first")).expect("in the way");
    let unwritten = host.replace("first", Epoch(2)).await;
    assert_eq!(unwritten.expect_err("failed").kind, HostErrorKind::Failed);
    fs::remove_dir(place.draft_of_record("first")).expect("empty");
    eventually("what was prepared is ended", || place.left() == 1).await;
    first.goes_on(first.counted()).await;
    prepare(&host).await;
    host.abandon("first").await;
    eventually("it is ended", || place.left() == 1).await;
    first.goes_on(first.counted()).await;

    let (before, counted) = (host.list(), first.counted());
    prepare(&host).await;
    host.replace("first", Epoch(2)).await.expect("replaced");
    eventually("the old one ends", || !first.is_alive()).await;
    let again = Guest::found(&place, &host, "first");
    assert!(again.pid != first.pid && again.counted() < counted);
    again.goes_on(again.counted()).await;
    again.start("echo here > /tmp/started").await;
    eventually("it starts programs", || {
        again.read("tmp/started") == "here\n"
    })
    .await;
    eventually("the old one is given back", || place.left() == 1).await;
    let after = host.list();
    assert_eq!(
        (after[0].epoch, after[0].deadline, after[0].started_at),
        (before[0].epoch, before[0].deadline, before[0].started_at)
    );

    // The next agent adopts what took the place, and nothing that was only prepared.
    prepare(&host).await;
    assert_eq!(host.stop().await, 1);
    assert_eq!(place.left(), 1);
    let host = place.host(KEY, true).await;
    let again = Guest::found(&place, &host, "first");
    again.goes_on(again.counted()).await;
    host.save(save("first", 3, "later", true, After::GoOn))
        .await
        .expect("it is saved like any other");

    // A kill wins, and takes with it what was prepared.
    let request = create_from("first", 3, "later", true);
    let (created, envd) = host.prepare(request).await.expect("prepared");
    init(&created, envd);
    host.kill("first", Epoch(4)).await.expect("killed");
    let late = host.replace("first", Epoch(4)).await;
    assert_eq!(late.expect_err("over").kind, HostErrorKind::NotFound);
    eventually("nothing is left", || place.left() == 0).await;
    for name in ["snap", "later"] {
        host.delete_snapshot(name.to_owned())
            .await
            .expect("deleted");
    }
    assert_eq!(host.stop().await, 0);
}
