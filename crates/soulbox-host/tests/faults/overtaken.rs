//! A kill that comes when the snapshot with which its sandbox was to end is whole already. Snapshots are real: this needs root.

use std::sync::Arc;
use std::time::{Duration, Instant};

use soulbox_pool::{BtrfsPool, Pool, PoolError, PoolOptions, SnapshotPool};
use soulbox_types::{Epoch, MiB};
use soulbox_wire::host::{After, HostErrorKind, Save};
use tokio::task::spawn_blocking;

use crate::world::{Objects, World, request};

/// A pool that is unmounted at the end, whatever happened.
struct Mounted {
    _data: tempfile::TempDir,
    pool: Arc<BtrfsPool>,
}

impl Mounted {
    fn new() -> Self {
        let data = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("data directory");
        let size = Some(MiB(512));
        let pool = BtrfsPool::open(data.path(), PoolOptions { size }).expect("a pool needs root");
        Self {
            _data: data,
            pool: Arc::new(pool),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.pool.unmount_within(Duration::from_secs(10)) {
            eprintln!("a pool stays mounted: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_whole_when_its_kill_comes_is_deleted() {
    let mounted = Mounted::new();
    let pool = &mounted.pool;
    pool.create_upper("kept", MiB(64)).expect("an upper");
    let data = tempfile::tempdir().expect("directory");
    let world = World::default();
    world.keep_snapshots(Arc::clone(pool), "kept");
    let (whole, go_on) = world.hold_save();
    let host = world.start(data.path(), 0, 0).await;
    host.create(request("one")).await.expect("created");

    let save = Save {
        sandbox_id: "one".to_owned(),
        epoch: 2,
        snapshot_id: "late".to_owned(),
        memory: true,
        after: After::End,
    };
    let saving = tokio::spawn({
        let host = host.clone();
        async move { host.save(save).await }
    });
    let told = spawn_blocking(move || whole.recv_timeout(Duration::from_secs(10)));
    told.await.expect("no panic").expect("it is whole in time");
    assert_eq!(pool.snapshot("late").expect("whole").name, "late");

    host.kill("one", Epoch(3)).await.expect("killed");
    let error = saving.await.expect("no panic").expect_err("overtaken");
    assert_eq!(error.kind, HostErrorKind::NotFound, "{error}");
    // Its save is not over, and works with what the sandbox had.
    assert_ne!(world.objects(), Objects::default());
    go_on.send(()).expect("the save waits");

    let given_back = |objects: &Objects| *objects == Objects::default();
    world.until("all is given back", given_back).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !matches!(
        pool.snapshot("late"),
        Err(PoolError::SnapshotMissing { .. })
    ) {
        assert!(Instant::now() < deadline, "the snapshot is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(host.snapshots().await.expect("listed").is_empty());
    assert_eq!(host.stop().await, 0);
    pool.delete_upper("kept").expect("deleted");
}
