//! The pool on a real loop file, as root. Each test has its own data directory; a guard unmounts it also after a failure.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use soulbox_pool::{
    Backing, BtrfsPool, Growth, Inherited, LayerDigest, Pool, PoolError, PoolOptions, Quota,
    SnapshotPool, TemplateManifest,
};
use soulbox_types::MiB;

/// A data directory whose pool is unmounted at the end, whatever happened.
struct Data(tempfile::TempDir);

impl Data {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn open(&self, size: u64) -> BtrfsPool {
        BtrfsPool::open(
            self.path(),
            PoolOptions {
                size: Some(MiB(size)),
            },
        )
        .unwrap_or_else(|error| {
            panic!(
                "open the pool, which needs root and btrfs-progs: {}",
                chain(&error)
            )
        })
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--quiet")
            .arg(self.path().join("pool"))
            .status();
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// Writes and syncs up to `mebibytes`; how far it came, and the error if one stopped it.
fn fill(path: PathBuf, mebibytes: u64) -> (u64, Option<std::io::Error>) {
    let block: Vec<u8> = (0..1 << 20)
        .map(|at: u32| at.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let mut file = File::create(path).expect("create");
    for done in 0..mebibytes {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            return (done, Some(error));
        }
    }
    (mebibytes, None)
}

fn loop_devices_of(data: &Path) -> Vec<String> {
    let image = data.join("pool.img");
    let image = image.to_string_lossy();
    fs::read_dir("/sys/block")
        .expect("sysfs")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("loop/backing_file")).ok())
        .filter(|backing| backing.trim().starts_with(&*image))
        .collect()
}

/// How many quota groups the kernel keeps for the pool's file system.
fn quota_groups(data: &Path) -> usize {
    let output = Command::new("findmnt")
        .args(["--noheadings", "--output", "UUID"])
        .arg(data.join("pool"))
        .output();
    let uuid = String::from_utf8(output.expect("findmnt").stdout).expect("text");
    fs::read_dir(format!("/sys/fs/btrfs/{}/qgroups", uuid.trim()))
        .expect("quota groups")
        .filter(|entry| {
            entry
                .as_ref()
                .is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("0_"))
        })
        .count()
}

fn digest(digit: char) -> LayerDigest {
    digit.to_string().repeat(64).parse().expect("digest")
}

#[test]
fn an_upper_stops_at_its_quota_and_no_other_does() {
    let data = Data::new();
    let pool = data.open(512);
    assert_ne!(pool.info().expect("info").quota, Quota::Unavailable);
    let small = pool.create_upper("small", MiB(16)).expect("create");
    let big = pool.create_upper("big", MiB(200)).expect("create");
    for directory in [small.upper_dir(), small.work_dir()] {
        let metadata = fs::metadata(directory).expect("directory");
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
            (0o755, 0, 0)
        );
    }

    let (written, error) = fill(small.upper_dir().join("data"), 64);
    let error = error.expect("64 MiB do not fit into 16");
    assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded, "{error}");
    assert!((12..=16).contains(&written), "{written} MiB of 16");
    let (_, error) = fill(big.upper_dir().join("data"), 32);
    assert!(error.is_none(), "{error:?}");

    let usage = pool.usage("small").expect("usage");
    assert!((12 << 20..=16 << 20).contains(&usage.bytes), "{usage:?}");
    assert_eq!(usage.limit, Some(MiB(16)));

    pool.set_quota("small", MiB(48)).expect("raise");
    let (written, error) = fill(small.upper_dir().join("more"), 24);
    assert!(error.is_none(), "{written}: {error:?}");
    assert_eq!(pool.usage("small").expect("usage").limit, Some(MiB(48)));
    pool.unmount().expect("unmount");
}

#[test]
fn deleting_gives_the_space_back() {
    let data = Data::new();
    let pool = data.open(512);
    let upper = pool.create_upper("one", MiB(300)).expect("create");
    let (_, error) = fill(upper.upper_dir().join("data"), 150);
    assert!(error.is_none(), "{error:?}");
    let full = pool.info().expect("info").free_bytes;
    let before = quota_groups(data.path());
    // btrfs cleans after its periodic commit: every second instead of every thirty.
    let remounted = Command::new("mount")
        .args(["-o", "remount,commit=1"])
        .arg(data.path().join("pool"))
        .status();
    assert!(remounted.expect("mount").success());
    pool.delete_upper("one").expect("delete");
    pool.delete_upper("one").expect("deleting is idempotent");
    assert!(pool.list_uppers().expect("list").is_empty());
    assert!(matches!(
        pool.usage("one"),
        Err(PoolError::UpperMissing { .. })
    ));
    let until = Instant::now() + Duration::from_secs(60);
    while pool.info().expect("info").free_bytes < full + (128 << 20) {
        assert!(
            Instant::now() < until,
            "the space did not come back: {} then {:?}",
            full,
            pool.info()
        );
        let _ = Command::new("sync")
            .arg("--file-system")
            .arg(data.path().join("pool"))
            .status();
        std::thread::sleep(Duration::from_millis(200));
    }
    // Else every sandbox that ever was would leave a group behind.
    assert_eq!(quota_groups(data.path()), before - 1);
    pool.unmount().expect("unmount");
}

#[test]
fn hundred_uppers_come_and_go() {
    let data = Data::new();
    let pool = data.open(512);
    let mut create = Vec::new();
    for number in 0..100 {
        let start = Instant::now();
        pool.create_upper(&format!("u{number}"), MiB(64))
            .expect("create");
        create.push(start.elapsed());
    }
    assert_eq!(pool.list_uppers().expect("list").len(), 100);
    assert!(matches!(
        pool.create_upper("u7", MiB(1)),
        Err(PoolError::UpperExists { .. })
    ));
    let mut delete = Vec::new();
    for number in 0..100 {
        let start = Instant::now();
        pool.delete_upper(&format!("u{number}")).expect("delete");
        delete.push(start.elapsed());
    }
    assert!(pool.list_uppers().expect("list").is_empty());
    for (what, mut times) in [("create", create), ("delete", delete)] {
        times.sort();
        println!(
            "{what} with {:?}: p50 {:?} p95 {:?} max {:?}",
            pool.info().expect("info").quota,
            times[50],
            times[95],
            times[99]
        );
    }
    pool.unmount().expect("unmount");
}

#[test]
fn a_mounted_pool_is_adopted_and_an_unmounted_one_found_again() {
    let data = Data::new();
    let first = data.open(512);
    first.create_upper("kept", MiB(64)).expect("create");
    drop(first);
    assert_eq!(loop_devices_of(data.path()).len(), 1);

    let second = data.open(512);
    assert_eq!(
        loop_devices_of(data.path()).len(),
        1,
        "adopted, not attached again"
    );
    assert_eq!(second.list_uppers().expect("list").len(), 1);
    second.unmount().expect("unmount");
    assert_eq!(
        loop_devices_of(data.path()).len(),
        0,
        "the device clears itself"
    );

    let third = data.open(512);
    assert_eq!(third.list_uppers().expect("list")[0].name, "kept");
    assert_eq!(
        third.usage("kept").expect("usage").limit,
        Some(MiB(64)),
        "the quota is on disk"
    );
    let open = File::open(third.list_uppers().expect("list")[0].upper_dir()).expect("open");
    let patience = Duration::from_millis(300);
    let error = third.unmount_within(patience).expect_err("it is open");
    assert!(matches!(error, PoolError::Busy { .. }), "{error}");
    let us = format!("(pid {})", std::process::id());
    assert!(error.to_string().contains(&us), "{error}");
    // Whoever closes it a moment later is waited for.
    let closing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(open);
    });
    let unmounted = third.unmount_within(Duration::from_secs(10));
    unmounted.expect("unmount");
    closing.join().expect("closed");
}

#[test]
fn a_pool_below_its_reserve_refuses_uppers_and_grows_where_it_may() {
    let data = Data::new();
    let pool = data.open(256);
    // Beside the uppers, which leave the reserve alone.
    let (_, error) = fill(data.path().join("pool/ballast"), 512);
    assert_eq!(
        error.expect("512 MiB do not fit into 256").kind(),
        std::io::ErrorKind::StorageFull
    );
    assert!(matches!(
        pool.create_upper("next", MiB(1)),
        Err(PoolError::ReserveReached { .. })
    ));
    assert!(matches!(
        pool.begin_layer(),
        Err(PoolError::ReserveReached { .. })
    ));
    assert_eq!(
        pool.grow_if_low().expect("grow"),
        Growth::NotNeeded,
        "a given size stays"
    );

    // The same pool without a given size grows by half.
    let pool = BtrfsPool::open(data.path(), PoolOptions::default()).expect("adopt");
    let before = pool.info().expect("info");
    assert_eq!(
        pool.grow_if_low().expect("grow"),
        Growth::Grown {
            size_bytes: 384 << 20
        }
    );
    let after = pool.info().expect("info");
    assert_eq!(
        (before.size_bytes, after.size_bytes),
        (256 << 20, 384 << 20)
    );
    let image = fs::metadata(data.path().join("pool.img")).expect("image");
    assert!(
        image.blocks() * 512 >= 384 << 20,
        "allocated in full: {} blocks",
        image.blocks()
    );
    pool.create_upper("next", MiB(1))
        .expect("there is room again");
    pool.unmount().expect("unmount");

    // A bigger size that is given later is reached at opening.
    let pool = data.open(640);
    assert_eq!(pool.info().expect("info").size_bytes, 640 << 20);
    pool.unmount().expect("unmount");
}

#[test]
fn layers_appear_whole_and_never_change() {
    let data = Data::new();
    let pool = data.open(512);
    let draft = pool.begin_layer().expect("begin");
    let dropped = draft.path().to_owned();
    fs::write(dropped.join("file"), "x").expect("write");
    drop(draft);
    assert!(!dropped.exists());

    let draft = pool.begin_layer().expect("begin");
    fs::write(draft.path().join("file"), "content").expect("write");
    // A second open of the pool must not take a draft of a living maker for a leftover.
    let other = data.open(512);
    assert!(!pool.has_layer(&digest('a')));
    let layer = draft.commit(&digest('a')).expect("commit");
    assert!(other.has_layer(&digest('a')));
    assert_eq!(layer, pool.layer_path(&digest('a')));
    assert_eq!(
        fs::read_to_string(layer.join("file")).expect("read"),
        "content"
    );
    let refused = fs::write(layer.join("file"), "changed").expect_err("read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    let again = pool.begin_layer().expect("begin");
    fs::write(again.path().join("file"), "second").expect("write");
    again.commit(&digest('a')).expect("the first one stays");
    assert_eq!(
        fs::read_to_string(layer.join("file")).expect("read"),
        "content"
    );
    assert_eq!(
        fs::read_dir(data.path().join("pool/drafts"))
            .expect("list")
            .count(),
        0
    );

    let mut manifest = TemplateManifest {
        name: "base".into(),
        template_id: "base".into(),
        build_id: "00000000-0000-4000-8000-000000000000".into(),
        built_at: 7,
        layers: vec![digest('a')],
        cpu_count: 2,
        memory_mib: 1024,
        disk_mib: 4096,
        default_user: "user".into(),
        default_workdir: "/home/user".into(),
        inherited: Inherited::default(),
    };
    pool.put_template(&manifest).expect("put");
    assert_eq!(other.templates().expect("templates"), [manifest.clone()]);
    // A newer build takes the name, and the older one is still to be had.
    let newer = TemplateManifest {
        build_id: "00000000-0000-4000-8000-000000000001".into(),
        ..manifest.clone()
    };
    pool.put_template(&newer).expect("put");
    assert_eq!(
        other.templates().expect("templates"),
        std::slice::from_ref(&newer)
    );
    for known in [&manifest, &newer] {
        let found = other.build(&known.build_id).expect("read");
        assert_eq!(found.as_ref(), Some(known));
    }
    // One without a name is no template of its own.
    let nameless = TemplateManifest {
        build_id: "00000000-0000-4000-8000-000000000002".into(),
        ..manifest.clone()
    };
    pool.put_build(&nameless).expect("put");
    assert_eq!(
        other.templates().expect("templates"),
        std::slice::from_ref(&newer)
    );
    // What is known of a build is known of the name that it has.
    let mut noted = newer.clone();
    noted.inherited.started = Some("snapshot".to_owned());
    pool.put_build(&noted).expect("put");
    assert_eq!(other.templates().expect("templates"), [noted]);
    pool.delete_build(&nameless.build_id).expect("deleted");
    pool.delete_build(&nameless.build_id).expect("twice");
    assert_eq!(other.build(&nameless.build_id).expect("read"), None);
    assert!(matches!(
        other.build("../x"),
        Err(PoolError::BadName { .. })
    ));
    manifest.layers.push(digest('b'));
    assert!(matches!(
        pool.put_template(&manifest),
        Err(PoolError::LayerMissing { .. })
    ));
    pool.unmount().expect("unmount");
}

#[test]
fn what_cannot_be_a_pool_is_refused_with_its_reason() {
    let data = Data::new();
    let open = |size| {
        BtrfsPool::open(
            data.path(),
            PoolOptions {
                size: Some(MiB(size)),
            },
        )
        .map(|_| ())
        .expect_err("refused")
    };
    assert!(matches!(open(8), PoolError::SizeTooSmall { .. }));
    assert!(matches!(open(1 << 40), PoolError::DiskTooSmall { .. }));
    assert_eq!(
        fs::read_dir(data.path()).expect("list").count(),
        1,
        "only the lock file is left"
    );

    fs::write(data.path().join("pool.img"), "no file system").expect("write");
    let error = open(512);
    assert!(
        matches!(
            error,
            PoolError::Mount { .. } | PoolError::LoopDevice { .. }
        ),
        "{}",
        chain(&error)
    );
    assert_eq!(loop_devices_of(data.path()).len(), 0);
    fs::remove_file(data.path().join("pool.img")).expect("remove");

    fs::create_dir_all(data.path().join("pool")).expect("create");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(data.path().join("pool"))
        .status()
        .expect("mount");
    assert!(mounted.success());
    assert!(matches!(open(512), PoolError::ForeignMount { .. }));
}

#[test]
fn a_data_directory_on_btrfs_needs_no_image() {
    let outer = Data::new();
    let host = outer.open(512);
    let data = outer.path().join("pool/inner");
    fs::create_dir(&data).expect("create");
    let pool = BtrfsPool::open(&data, PoolOptions::default()).expect("open");
    assert_eq!(pool.info().expect("info").backing, Backing::Subvolume);
    assert!(!data.join("pool.img").exists());
    let upper = pool.create_upper("one", MiB(16)).expect("create");
    let (_, error) = fill(upper.upper_dir().join("data"), 64);
    assert_eq!(
        error.expect("over the quota").kind(),
        std::io::ErrorKind::QuotaExceeded
    );
    assert_eq!(pool.grow_if_low().expect("grow"), Growth::NotNeeded);
    pool.unmount().expect("nothing to do");
    assert_eq!(
        BtrfsPool::open(&data, PoolOptions::default())
            .expect("again")
            .list_uppers()
            .expect("list")
            .len(),
        1
    );
    host.unmount().expect("unmount");
}

#[test]
fn full_quota_groups_that_are_there_already_are_used() {
    let data = Data::new();
    data.open(512);
    for what in ["disable", "enable"] {
        let switched = Command::new("btrfs")
            .args(["quota", what])
            .arg(data.path().join("pool"))
            .status();
        assert!(switched.expect("btrfs").success(), "{what}");
    }
    let pool = data.open(512);
    assert_eq!(pool.info().expect("info").quota, Quota::Full);
    let upper = pool.create_upper("one", MiB(16)).expect("create");
    let (written, error) = fill(upper.upper_dir().join("data"), 64);
    assert_eq!(
        error.expect("over the quota").kind(),
        std::io::ErrorKind::QuotaExceeded
    );
    assert!((12..=16).contains(&written), "{written} MiB of 16");
    pool.unmount().expect("unmount");
}

/// Two uppers that were promised all of the pool: neither gets what the other and the reserve need, and both get more when space comes back.
#[test]
fn a_promise_as_big_as_the_pool_takes_half_of_what_is_free() {
    let data = Data::new();
    let pool = data.open(1024);
    let first = pool.create_upper("first", MiB(4096)).expect("first");
    let limit = |name: &str| pool.usage(name).expect("usage").limit.expect("a limit").0;
    assert!((400..=512).contains(&limit("first")), "{}", limit("first"));
    let (wrote, error) = fill(first.upper_dir().join("big"), 1000);
    assert_eq!(
        error.expect("over its share").kind(),
        std::io::ErrorKind::QuotaExceeded
    );
    assert!((380..=512).contains(&wrote), "{wrote} MiB");
    pool.reserve_ok().expect("the reserve is untouched");
    let second = pool.create_upper("second", MiB(4096)).expect("second");
    assert_eq!(fill(second.upper_dir().join("some"), 100).0, 100);

    // Its own promise is kept when others leave.
    let before = limit("second");
    fs::remove_file(first.upper_dir().join("big")).expect("delete");
    pool.delete_upper("first").expect("delete");
    pool.settle().expect("sync");
    let until = Instant::now() + Duration::from_secs(30);
    while limit("second") <= before + 100 {
        assert!(Instant::now() < until, "{before}, then {}", limit("second"));
        std::thread::sleep(Duration::from_millis(200));
        pool.share_out().expect("share out");
    }
    pool.set_quota("second", MiB(200))
        .expect("a smaller promise");
    pool.share_out().expect("share out");
    assert_eq!(limit("second"), 200);
}
