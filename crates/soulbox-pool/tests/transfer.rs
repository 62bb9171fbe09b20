//! Files of snapshots out of a pool and into another, on real loop files, as root.

mod data;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, mknodat, setxattr};
use soulbox_pool::{BtrfsPool, Pool, PoolError, Snapshot, SnapshotPool};
use soulbox_types::MiB;

use data::Data;

fn snapshot(pool: &BtrfsPool, fill: impl FnOnce(&Path)) -> Snapshot {
    let upper = pool.create_upper("first", MiB(256)).expect("upper");
    fill(&upper.upper_dir());
    let mut draft = pool.begin_snapshot("snap").expect("begin");
    pool.settle().expect("settle");
    pool.capture(&mut draft, "first", 0).expect("capture");
    draft.commit("manifest").expect("commit")
}

fn sent(snapshot: &Snapshot) -> Vec<u8> {
    let mut sending = snapshot.send().expect("send");
    let mut bytes = Vec::new();
    sending.read_to_end(&mut bytes).expect("read");
    sending.finish().expect("all of it");
    bytes
}

fn received(pool: &BtrfsPool, bytes: &[u8]) -> Result<Snapshot, PoolError> {
    let mut draft = pool.begin_snapshot("copy").expect("begin");
    let mut receiving = draft.receive().expect("receive");
    // One that has ended takes no more; its own word follows.
    let _ = receiving.write_all(bytes);
    receiving.finish(7)?;
    draft.commit("manifest")
}

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn everything_that_a_file_has_is_kept() {
    let (here, there) = (Data::new(), Data::new());
    let (pool, other) = (here.open(), there.open());
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321);
    let odd = OsStr::from_bytes(b"not \xff utf-8");
    let snapshot = snapshot(&pool, |root| {
        fs::write(root.join("plain"), "plain").expect("file");
        fs::hard_link(root.join("plain"), root.join("linked")).expect("link");
        fs::create_dir(root.join("folder")).expect("folder");
        let overlay = "trusted.overlay.opaque";
        setxattr(root.join("folder"), overlay, b"y", XattrFlags::empty()).expect("opaque");
        symlink("/nowhere", root.join("folder/symlink")).expect("symlink");
        fs::write(root.join(odd), "odd").expect("file");
        // Owner, mode and capability: each takes what was set before it away.
        let program = root.join("program");
        fs::write(&program, "program").expect("file");
        chown(&program, Some(1000), Some(33)).expect("owner");
        rustix::fs::chmod(&program, Mode::from_raw_mode(0o6755)).expect("mode");
        setxattr(
            &program,
            "security.capability",
            CAPABILITY,
            XattrFlags::empty(),
        )
        .expect("cap");
        setxattr(&program, "user.note", b"a\0b", XattrFlags::empty()).expect("attribute");
        let sparse = File::create(root.join("sparse")).expect("file");
        sparse.set_len(100 << 20).expect("length");
        sparse.write_all_at(b"middle", 50 << 20).expect("middle");
        File::open(&program)
            .and_then(|file| file.set_modified(time))
            .expect("time");
        let none = Mode::from_raw_mode(0o600);
        mknodat(
            CWD,
            root.join("whiteout"),
            FileType::CharacterDevice,
            none,
            0,
        )
        .expect("whiteout");
        mknodat(CWD, root.join("fifo"), FileType::Fifo, none, 0).expect("fifo");
        UnixListener::bind(root.join("socket")).expect("socket");
    });
    let bytes = sent(&snapshot);
    assert!(bytes.len() < 1 << 20, "holes are sent: {}", bytes.len());
    let copy = received(&other, &bytes).expect("received");
    assert_eq!(copy.disk_bytes, 7);
    drop(pool);

    let upper = other
        .create_upper_from("copy", "second", MiB(256))
        .expect("upper");
    let root = upper.upper_dir();
    assert_eq!(fs::read(root.join("linked")).expect("file"), b"plain");
    let number = |name: &str| fs::metadata(root.join(name)).expect(name).ino();
    assert_eq!(number("plain"), number("linked"));
    let attribute = |name: &str, key: &str| {
        let mut buffer = [0; 64];
        let length = getxattr(root.join(name), key, &mut buffer[..]).expect(key);
        buffer[..length].to_vec()
    };
    assert_eq!(attribute("folder", "trusted.overlay.opaque"), b"y");
    assert_eq!(attribute("program", "security.capability"), CAPABILITY);
    assert_eq!(attribute("program", "user.note"), b"a\0b");
    let link = fs::read_link(root.join("folder/symlink")).expect("symlink");
    assert_eq!(link, Path::new("/nowhere"));
    assert_eq!(fs::read(root.join(odd)).expect("file"), b"odd");
    let program = fs::metadata(root.join("program")).expect("program");
    assert_eq!((program.uid(), program.gid()), (1000, 33));
    assert_eq!(program.mode() & 0o7777, 0o6755);
    assert_eq!(program.modified().expect("time"), time);
    let sparse = File::open(root.join("sparse")).expect("sparse");
    let size = sparse.metadata().expect("size");
    assert_eq!(size.len(), 100 << 20);
    assert!(size.blocks() * 512 < 1 << 20, "{} blocks", size.blocks());
    let mut middle = [0; 6];
    sparse.read_exact_at(&mut middle, 50 << 20).expect("middle");
    assert_eq!(&middle, b"middle");
    let kind = |name: &str| fs::symlink_metadata(root.join(name)).expect(name);
    assert!(kind("whiteout").file_type().is_char_device() && kind("whiteout").rdev() == 0);
    assert!(kind("fifo").file_type().is_fifo());
    assert!(kind("socket").file_type().is_socket());
}

#[test]
fn half_a_stream_and_another_thing_leave_nothing() {
    let data = Data::new();
    let pool = data.open();
    let snapshot = snapshot(&pool, |root| {
        fs::write(root.join("file"), vec![1; 1 << 20]).expect("file");
    });
    let bytes = sent(&snapshot);
    for wrong in [&bytes[..bytes.len() / 2], b"another thing", b""] {
        let error = received(&pool, wrong).expect_err("no snapshot");
        assert!(
            matches!(
                error,
                PoolError::Transfer { .. } | PoolError::NothingCaptured { .. }
            ),
            "{error:?}"
        );
        let missing = pool.snapshot("copy");
        assert!(matches!(missing, Err(PoolError::SnapshotMissing { .. })));
    }
    received(&pool, &bytes).expect("the whole of it");
    pool.delete_snapshot("copy").expect("deleted");
    let missing = Snapshot {
        images: data.0.path().join("pool/snapshots/none/images"),
        ..snapshot
    };
    let error = missing.send().expect("begun").finish();
    assert!(
        matches!(error, Err(PoolError::Transfer { .. })),
        "{error:?}"
    );
}
