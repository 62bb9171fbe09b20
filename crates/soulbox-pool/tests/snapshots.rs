//! Snapshots on a real loop file, as root.

mod data;

use std::fs;
use std::path::Path;
use std::process::Command;

use soulbox_pool::{Pool, PoolError, SnapshotPool};
use soulbox_types::MiB;

use data::Data;

fn write(path: &Path, mebibytes: usize) {
    // No two blocks alike, so that nothing is compressed or shared.
    let bytes: Vec<u8> = (0..mebibytes << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(path, bytes).expect("write");
    fs::File::open(path)
        .expect("open")
        .sync_all()
        .expect("sync");
}

#[test]
fn what_was_is_kept_and_copies_go_their_own_ways() {
    let data = Data::new();
    let pool = data.open();
    let upper = pool.create_upper("first", MiB(64)).expect("upper");
    write(&upper.upper_dir().join("kept"), 20);
    fs::write(upper.work_dir().join("used"), "").expect("use the work directory");

    let mut draft = pool.begin_snapshot("snap").expect("begin");
    fs::write(draft.images().join("memory.img"), "images").expect("an image");
    pool.settle().expect("settle");
    pool.capture(&mut draft, "first", 0).expect("capture");
    // After the capture, so no part of it.
    fs::write(upper.upper_dir().join("later"), "").expect("write");
    let snapshot = draft.commit("of the caller").expect("commit");
    // What was in memory does not go through the loop file.
    let images = data.0.path().join("memory/images/snap");
    assert_eq!(snapshot.images.canonicalize().expect("images"), images);
    let read = fs::read(images.join("memory.img")).expect("read");
    assert_eq!(read, b"images");
    assert!(snapshot.disk_bytes >= 20 << 20, "{snapshot:?}");
    assert_eq!(pool.snapshot("snap").expect("find"), snapshot);
    assert_eq!(snapshot.manifest, "of the caller");

    let copies = ["second", "third"].map(|name| {
        let copy = pool.create_upper_from("snap", name, MiB(64)).expect(name);
        let inside = copy.upper_dir();
        assert_eq!(
            fs::metadata(inside.join("kept")).expect("kept").len(),
            20 << 20
        );
        assert!(!inside.join("later").exists());
        assert_eq!(fs::read_dir(copy.work_dir()).expect("work").count(), 0);
        copy
    });
    fs::write(copies[0].upper_dir().join("own"), "").expect("write");
    assert!(!copies[1].upper_dir().join("own").exists());

    // What it has from the snapshot counts: of 64 MiB some 44 are left.
    let limit = pool.usage("second").expect("usage").limit.expect("a limit");
    assert!((40..=44).contains(&limit.0), "{limit}");

    pool.delete_upper("first").expect("delete the first upper");
    pool.delete_snapshot("snap").expect("delete the snapshot");
    assert!(!images.exists());
    pool.delete_snapshot("snap").expect("it is deleted already");
    assert!(matches!(
        pool.snapshot("snap"),
        Err(PoolError::SnapshotMissing { .. })
    ));
    let kept = fs::metadata(copies[1].upper_dir().join("kept"));
    assert_eq!(kept.expect("copies stay").len(), 20 << 20);
    pool.unmount().expect("unmount");
}

/// The host sweeps every ten seconds, and a server that ends unmounts the pool meanwhile.
#[test]
fn a_sweep_of_a_pool_that_was_unmounted_deletes_nothing() {
    let data = Data::new();
    let pool = data.open();
    pool.create_upper("first", MiB(64)).expect("upper");
    let mut draft = pool.begin_snapshot("snap").expect("begin");
    fs::write(draft.images().join("memory.img"), "images").expect("an image");
    pool.capture(&mut draft, "first", 0).expect("capture");
    draft.commit("").expect("commit");
    pool.unmount().expect("unmount");
    assert!(matches!(pool.sweep_snapshots(), Err(PoolError::Io { .. })));

    let pool = data.open();
    let images = pool.snapshot("snap").expect("find").images;
    assert_eq!(
        fs::read(images.join("memory.img")).expect("read"),
        b"images"
    );
    pool.sweep_snapshots().expect("sweep");
    assert!(images.join("memory.img").exists());
    pool.unmount().expect("unmount");
}

#[test]
fn half_made_ones_are_none_and_are_swept() {
    let data = Data::new();
    let pool = data.open();
    pool.create_upper("one", MiB(64)).expect("upper");

    let empty = pool.begin_snapshot("empty").expect("begin");
    assert!(matches!(
        empty.commit(""),
        Err(PoolError::NothingCaptured { .. })
    ));

    let mut draft = pool.begin_snapshot("half").expect("begin");
    pool.capture(&mut draft, "one", 0).expect("capture");
    assert!(matches!(
        pool.begin_snapshot("half"),
        Err(PoolError::SnapshotExists { .. })
    ));
    assert!(pool.list_snapshots().expect("list").is_empty());
    assert!(matches!(
        pool.create_upper_from("half", "two", MiB(64)),
        Err(PoolError::SnapshotMissing { .. })
    ));
    // Another process opens the pool: what has a maker stays, what a killed one left goes.
    let snapshots = data.0.path().join("pool/snapshots");
    let left = snapshots.join("left");
    fs::create_dir_all(left.join("images")).expect("make a leftover");
    let made = Command::new("btrfs")
        .args(["subvolume", "create"])
        .arg(left.join("upper"))
        .output();
    assert!(made.expect("btrfs").status.success());
    // Who writes the images may outlive the maker.
    let images = fs::File::open(left.join("images")).expect("open the images");
    images.lock().expect("lock the images");
    data.open();
    assert!(left.join("upper").exists());
    drop(images);
    // Images of which there is no snapshot, one of them still being written.
    let memory = data.0.path().join("memory/images");
    for name in ["gone", "written"] {
        fs::create_dir(memory.join(name)).expect("make a leftover");
        fs::write(memory.join(name).join("pages-1.img"), "pages").expect("an image");
    }
    let written = fs::File::open(memory.join("written")).expect("open the images");
    written.lock().expect("lock the images");
    data.open();
    assert!(snapshots.join("half/upper").exists() && memory.join("half").exists());
    assert!(!left.exists() && !memory.join("gone").exists() && memory.join("written").exists());
    drop(draft);
    drop(written);
    data.open();
    for folder in [&snapshots, &memory] {
        assert_eq!(fs::read_dir(folder).expect("folder").count(), 0);
    }
    for bad in ["", "..", "a/b"] {
        assert!(matches!(
            pool.begin_snapshot(bad),
            Err(PoolError::BadName { .. })
        ));
    }
    pool.unmount().expect("unmount");
}

#[test]
fn links_of_restores_lie_where_their_images_lie() {
    let data = Data::new();
    let pool = data.open();
    pool.create_upper("one", MiB(64)).expect("upper");
    for name in ["new", "old"] {
        let mut draft = pool.begin_snapshot(name).expect("begin");
        fs::write(draft.images().join("pages-1.img"), "pages").expect("an image");
        pool.capture(&mut draft, "one", 0).expect("capture");
        draft.commit("").expect("commit");
    }
    // As an earlier version has made it: all of it in the pool.
    let images = data.0.path().join("pool/snapshots/old/images");
    fs::remove_file(&images).expect("the link");
    fs::create_dir(&images).expect("images");
    fs::write(images.join("pages-1.img"), "pages").expect("an image");

    for name in ["new", "old"] {
        let snapshot = pool.snapshot(name).expect("find");
        let folder = pool.restore_folder(&snapshot, "restore");
        fs::create_dir(&folder).expect("make");
        let link = folder.join("pages-1.img");
        fs::hard_link(snapshot.images.join("pages-1.img"), link).expect("one file system");
        pool.delete_restore("restore").expect("delete");
        assert!(!folder.exists());
        fs::create_dir(&folder).expect("make once more");
    }
    pool.sweep_restores().expect("sweep");
    for folder in ["pool/restores", "memory/restores"] {
        let left = fs::read_dir(data.0.path().join(folder)).expect(folder);
        assert_eq!(left.count(), 0, "{folder}");
    }
    for name in ["new", "old"] {
        pool.delete_snapshot(name).expect("delete");
        assert!(!data.0.path().join("pool/snapshots").join(name).exists());
    }
    pool.unmount().expect("unmount");
}

#[test]
fn memory_for_which_there_is_no_room_is_refused() {
    let data = Data::new();
    let pool = data.open();
    pool.room_for_images(1 << 20).expect("a mebibyte");
    assert!(matches!(
        pool.room_for_images(u64::MAX),
        Err(PoolError::NoRoomForMemory { .. })
    ));
    pool.unmount().expect("unmount");
}
