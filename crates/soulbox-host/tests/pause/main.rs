//! Snapshots of real sandboxes, through the host as an agent has it.

mod guest;
mod place;
mod rollback;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use guest::{Guest, PATIENCE, eventually};
use place::{BUILD, KEY, Place, create, create_from};
use soulbox_host::Host;
use soulbox_host::native::NativeRuntime;
use soulbox_host::snapshot::{Key, Manifest};
use soulbox_pool::SnapshotPool;
use soulbox_types::Epoch;
use soulbox_wire::host::{After, AtDeadline, Event, HostErrorKind, HostSnapshot, Save};

/// The shell counts in a variable and writes each number to a file that stays open.
const COUNTER: &str = "exec 3> /tmp/counted; n=0; \
    while :; do n=$((n + 1)); echo $n >&3; sleep 0.01; done";

fn save(sandbox_id: &str, epoch: u64, snapshot_id: &str, memory: bool, after: After) -> Save {
    Save {
        sandbox_id: sandbox_id.to_owned(),
        epoch,
        snapshot_id: snapshot_id.to_owned(),
        memory,
        after,
    }
}

async fn names(host: &Host<NativeRuntime>) -> BTreeSet<String> {
    let listed = host.snapshots().await.expect("listed");
    listed.into_iter().map(|it| it.snapshot_id).collect()
}

async fn end(host: &Host<NativeRuntime>, guest: &Guest) {
    let sandboxes = host.list();
    let epoch = sandboxes
        .iter()
        .find(|it| it.sandbox_id == guest.sandbox_id)
        .map(|it| it.epoch)
        .expect("listed");
    host.kill(&guest.sandbox_id, Epoch(epoch + 1))
        .await
        .expect("killed");
}

async fn refused(host: &Host<NativeRuntime>, mut request: soulbox_wire::host::Create) -> String {
    // A create that has failed is never begun again: each attempt is a decision of its own.
    static EPOCH: AtomicU64 = AtomicU64::new(1);
    request.epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
    let error = host.create(request).await.map(drop).expect_err("refused");
    assert_eq!(error.kind, HostErrorKind::SnapshotRefused, "{error}");
    error.message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_goes_on_where_it_was_and_copies_run_beside_it() {
    let place = Place::take();
    let host = place.host(KEY, true).await;
    let first = Guest::create(&place, &host, create("first", 1)).await;
    first.start(COUNTER).await;
    first.goes_on(0).await;

    // A snapshot, and two copies of it beside the original.
    let snapshot = host
        .save(save("first", 2, "snap", true, After::GoOn))
        .await
        .expect("saved");
    assert!(
        snapshot.memory && snapshot.image_bytes > 100_000,
        "{snapshot:?}"
    );
    assert_eq!((snapshot.epoch, snapshot.build_id.as_str()), (2, BUILD));
    let counted = first.counted();
    let copies = [
        Guest::create(&place, &host, create_from("second", 1, "snap", true)).await,
        Guest::create(&place, &host, create_from("third", 1, "snap", true)).await,
    ];
    for guest in [&first, &copies[0], &copies[1]] {
        guest.goes_on(counted).await;
        guest.start("echo here > /tmp/started").await;
        eventually("it starts programs", || {
            guest.read("tmp/started") == "here\n"
        })
        .await;
    }
    // A copy of a copy.
    host.save(save("second", 2, "again", true, After::GoOn))
        .await
        .expect("a copy is saved");
    for copy in &copies {
        end(&host, copy).await;
    }

    // A pause: nothing is left of it but the snapshot, which is listed.
    let paused = host
        .save(save("first", 3, "pause", true, After::End))
        .await
        .expect("paused");
    assert_eq!(paused.after, After::End);
    assert!(!first.is_alive() && host.list().is_empty());
    assert_eq!(
        names(&host).await,
        ["again", "pause", "snap"].map(str::to_owned).into()
    );
    eventually("all is given back", || place.left() == 0).await;
    let late = host.create(create("first", 3)).await.map(drop);
    assert_eq!(
        late.expect_err("an old epoch").kind,
        HostErrorKind::StaleEpoch
    );

    // It goes on under its ID, also when its snapshot is deleted after that.
    let resumed = Guest::create(&place, &host, create_from("first", 4, "pause", true)).await;
    host.delete_snapshot("pause".to_owned())
        .await
        .expect("deleted");
    resumed.goes_on(resumed.counted()).await;
    // Another boots from what was on disk.
    let booted = Guest::create(&place, &host, create_from("other", 1, "snap", false)).await;
    let had = booted.counted();
    assert!(had >= 10, "the file of the counter is there: {had}");
    booted.start("echo here > /tmp/started").await;
    eventually("it starts programs", || {
        booted.read("tmp/started") == "here\n"
    })
    .await;
    assert_eq!(booted.counted(), had, "no counter runs");

    let gone = host.create(create_from("last", 1, "pause", true)).await;
    assert_eq!(
        gone.map(drop).expect_err("deleted").kind,
        HostErrorKind::SnapshotMissing
    );
    end(&host, &resumed).await;
    end(&host, &booted).await;
    eventually("all is given back", || place.left() == 0).await;
    for name in names(&host).await {
        host.delete_snapshot(name).await.expect("deleted");
    }
    host.delete_snapshot("never".to_owned())
        .await
        .expect("there is nothing to delete");
    assert_eq!(host.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_that_was_touched_is_used() {
    let place = Place::take();
    let host = place.host(KEY, true).await;
    let guest = Guest::create(&place, &host, create("first", 1)).await;
    guest.start(COUNTER).await;
    guest.goes_on(0).await;
    for (name, memory) in [("whole", true), ("disk", false)] {
        host.save(save("first", 2, name, memory, After::GoOn))
            .await
            .expect("saved");
    }
    let from = |name: &str| create_from("second", 1, name, true);
    let message = refused(&host, from("disk")).await;
    assert!(message.contains("without memory"), "{message}");
    let other_build = soulbox_wire::host::Create {
        build_id: "another".to_owned(),
        ..from("whole")
    };
    let message = refused(&host, other_build).await;
    assert!(message.contains("is of build build-1"), "{message}");

    // One bit of memory, and one page less.
    let pages = fs::read_dir(place.snapshot("whole").join("images"))
        .expect("images")
        .map(|entry| entry.expect("an image").path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("pages-"))
        })
        .expect("pages");
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&pages)
        .expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).expect("read");
    file.write_all_at(&[byte[0] ^ 4], 5000).expect("write");
    let message = refused(&host, from("whole")).await;
    assert!(message.contains("was changed"), "{message}");
    file.write_all_at(&byte, 5000).expect("write");
    let bytes = file.metadata().expect("metadata").len();
    file.set_len(bytes - 4096).expect("truncate");
    let began = std::time::Instant::now();
    let message = refused(&host, from("whole")).await;
    assert!(message.contains(&format!("had {bytes}")), "{message}");
    assert!(
        began.elapsed() < PATIENCE,
        "CRIU has waited for what is missing"
    );
    // What it made meanwhile is gone, and the slots are free again.
    assert_eq!(place.left(), 1, "the upper of the one that runs");

    // A manifest of another installation, of another host, and half of one.
    let snapshot = place.pool.snapshot("disk").expect("there");
    let path = place.snapshot("disk").join("manifest.json");
    let original = fs::read_to_string(&path).expect("a manifest");
    let put = |manifest: &Manifest, key: &Key| {
        let mut noted: serde_json::Value = serde_json::from_str(&original).expect("JSON");
        noted["manifest"] = key.seal(manifest).expect("sealed").into();
        fs::write(&path, noted.to_string()).expect("write");
    };
    let key = Key::derive(&KEY);
    let manifest = key.open(&snapshot).expect("ours");
    put(&manifest, &Key::derive(&[8; 32]));
    let from_disk = || create_from("second", 1, "disk", false);
    let message = refused(&host, from_disk()).await;
    assert!(
        message.contains("does not carry this installation's mark"),
        "{message}"
    );
    assert_eq!(names(&host).await, ["whole".to_owned()].into());
    let mut moved = key
        .open(&place.pool.snapshot("whole").expect("there"))
        .expect("ours");
    moved.snapshot_id = "disk".to_owned();
    if let Some(memory) = &mut moved.memory {
        memory.fingerprint.kernel = "5.0".to_owned();
    }
    put(&moved, &key);
    let message = refused(&host, from("disk")).await;
    assert!(message.contains("the kernel was `5.0`"), "{message}");
    fs::write(&path, &original[..original.len() / 2]).expect("write");
    let message = refused(&host, from_disk()).await;
    assert!(message.contains("damaged"), "{message}");
    host.delete_snapshot("disk".to_owned())
        .await
        .expect("deleted");

    guest.goes_on(guest.counted()).await;
    end(&host, &guest).await;
    host.delete_snapshot("whole".to_owned())
        .await
        .expect("deleted");
    assert_eq!(host.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_saved_goes_on_and_a_kill_wins() {
    let place = Place::take();
    let host = place.host(KEY, true).await;
    let guest = Guest::create(&place, &host, create("first", 1)).await;
    guest.start(COUNTER).await;
    guest.goes_on(0).await;
    host.save(save("first", 2, "taken", true, After::GoOn))
        .await
        .expect("saved");
    for (request, kind, says) in [
        (
            save("first", 3, "taken", true, After::End),
            HostErrorKind::CannotSave,
            "exists already",
        ),
        (
            save("first", 3, "No/Name", true, After::End),
            HostErrorKind::CannotSave,
            "is no name",
        ),
        (
            save("first", 2, "old", true, After::End),
            HostErrorKind::StaleEpoch,
            "epoch 3",
        ),
        (
            save("nobody", 1, "old", true, After::End),
            HostErrorKind::NotFound,
            "nobody",
        ),
    ] {
        let error = host.save(request).await.expect_err("not saved");
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(says), "{error}");
    }
    guest.goes_on(guest.counted()).await;
    assert_eq!(host.list()[0].epoch, 3);

    // The same one joins, another one does not, and a kill ends them all.
    let begin = |name: &str| {
        let (host, request) = (host.clone(), save("first", 4, name, true, After::End));
        tokio::spawn(async move { host.save(request).await })
    };
    let saves = [begin("lost"), begin("lost")];
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let other = begin("other").await.expect("no panic");
    assert_eq!(other.expect_err("busy").kind, HostErrorKind::CannotSave);
    host.kill("first", Epoch(5)).await.expect("killed");
    for save in saves {
        let error = save.await.expect("no panic").expect_err("killed");
        assert_eq!(error.kind, HostErrorKind::NotFound, "{error}");
    }
    assert!(!guest.is_alive());
    eventually("all is given back", || place.left() == 0).await;
    assert_eq!(names(&host).await, ["taken".to_owned()].into());
    eventually("no draft is left", || !place.snapshot("lost").exists()).await;
    host.delete_snapshot("taken".to_owned())
        .await
        .expect("deleted");
    assert_eq!(host.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_pauses_and_the_next_agent_tells_what_is_whole() {
    let place = Place::take();
    let host = place.host(KEY, true).await;
    let mut events = host.subscribe();
    let mut request = create("first", 1);
    request.deadline = request.deadline - 600_000 + 1_500;
    request.at_deadline = AtDeadline::Pause { memory: true };
    let guest = Guest::create(&place, &host, request).await;
    guest.start(COUNTER).await;
    let event = tokio::time::timeout(PATIENCE, events.recv()).await;
    let paused: HostSnapshot = match event.expect("in time") {
        Some(Event::Paused(snapshot)) => snapshot,
        other => panic!("{other:?}"),
    };
    assert_eq!(paused.snapshot_id, "auto-first-1");
    assert!(!guest.is_alive() && host.list().is_empty());
    let resumed = Guest::create(&place, &host, create_from("first", 2, "auto-first-1", true)).await;
    resumed.goes_on(resumed.counted()).await;

    // As if the agent had died between a whole snapshot and the end of its sandbox; and one that was not whole.
    let running = Guest::create(&place, &host, create("second", 1)).await;
    host.save(save("second", 2, "whole", true, After::GoOn))
        .await
        .expect("saved");
    let key = Key::derive(&KEY);
    let mut manifest = key
        .open(&place.pool.snapshot("whole").expect("there"))
        .expect("ours");
    manifest.after = After::End;
    let path = place.snapshot("whole").join("manifest.json");
    let text = fs::read_to_string(&path).expect("a manifest");
    let mut noted: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    noted["manifest"] = key.seal(&manifest).expect("sealed").into();
    fs::write(&path, noted.to_string()).expect("write");
    assert_eq!(host.stop().await, 2);
    let host = place.host(KEY, true).await;
    let listed: Vec<_> = host.list().into_iter().map(|it| it.sandbox_id).collect();
    assert_eq!(
        listed,
        ["first"],
        "the paused one was resumed since, the other one was not"
    );
    eventually("it was ended", || !running.is_alive()).await;
    let went_on = Guest::create(&place, &host, create_from("second", 3, "whole", true)).await;
    end(&host, &went_on).await;
    host.kill("first", Epoch(9)).await.expect("killed");
    eventually("all is given back", || place.left() == 0).await;
    for name in names(&host).await {
        host.delete_snapshot(name).await.expect("deleted");
    }
    assert_eq!(host.stop().await, 0);

    // Without CRIU: said with its cause, and the sandbox goes on; what is on disk can be saved all the same.
    let host = place.host(KEY, false).await;
    let guest = Guest::create(&place, &host, create("third", 1)).await;
    let error = host
        .save(save("third", 2, "none", true, After::End))
        .await
        .expect_err("no CRIU");
    assert_eq!(error.kind, HostErrorKind::Unsupported, "{error}");
    assert!(guest.is_alive());
    host.save(save("third", 3, "disk", false, After::End))
        .await
        .expect("the disk is saved");
    assert!(!guest.is_alive());
    let booted = Guest::create(&place, &host, create_from("third", 4, "disk", false)).await;
    end(&host, &booted).await;
    host.delete_snapshot("disk".to_owned())
        .await
        .expect("deleted");
    assert_eq!(host.stop().await, 0);
}
