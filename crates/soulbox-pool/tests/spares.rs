//! Uppers that are emptied and used again, on a real loop file, as root.

mod data;

use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use soulbox_pool::{BtrfsPool, Pool, SnapshotPool, Upper};
use soulbox_sys::btrfs;
use soulbox_types::MiB;

use data::Data;

/// The number of its subvolume, which the kernel gives once.
fn number(upper: &Upper) -> u64 {
    let directory = File::open(&upper.path).expect("open the upper");
    btrfs::subvolume_id(directory.as_fd()).expect("its number")
}

fn make(pool: &BtrfsPool, name: &str) -> Upper {
    pool.create_upper(name, MiB(64)).expect(name)
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("list");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    names.sort();
    names
}

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).status();
    assert!(done.expect(program).success(), "{program} {arguments:?}");
}

#[test]
fn what_wrote_little_is_emptied_and_used_again() {
    let data = Data::new();
    let pool = data.open();
    let outside = data.0.path().join("outside");
    fs::create_dir_all(outside.join("kept")).expect("directory");

    let first = make(&pool, "first");
    let (upper, work) = (first.upper_dir(), first.work_dir());
    let subvolume = number(&first);
    fs::create_dir_all(upper.join("etc/closed")).expect("directories");
    fs::write(upper.join("etc/closed/secret"), "of the first").expect("file");
    fs::set_permissions(upper.join("etc/closed"), Permissions::from_mode(0o000)).expect("mode");
    fs::hard_link(upper.join("etc/closed/secret"), work.join("index")).expect("link");
    symlink(&outside, upper.join("link")).expect("link");
    symlink("..", upper.join("up")).expect("link");
    let path = |name: &str| upper.join(name).to_str().expect("text").to_owned();
    run("mkfifo", &[&path("pipe")]);
    // As overlayfs marks what was deleted.
    run("mknod", &[&path("whiteout"), "c", "0", "0"]);
    // What a guest can do to the root of its own file system.
    rustix::fs::setxattr(&upper, "user.mark", b"first", XattrFlags::empty()).expect("attribute");
    fs::set_permissions(&upper, Permissions::from_mode(0o1777)).expect("mode");
    std::os::unix::fs::chown(&upper, Some(1000), Some(1000)).expect("owner");
    fs::write(first.path.join("stray"), "").expect("file");

    pool.delete_upper("first").expect("delete");
    assert!(pool.list_uppers().expect("list").is_empty());
    assert!(outside.join("kept").is_dir(), "no link was followed");

    let second = pool.create_upper("second", MiB(32)).expect("second");
    assert_eq!(number(&second), subvolume, "it is the first one's");
    assert_eq!(names(&second.path), ["u", "w"]);
    assert_eq!(pool.usage("second").expect("usage").limit, Some(MiB(32)));
    for directory in [second.upper_dir(), second.work_dir()] {
        assert_eq!(names(&directory), [""; 0]);
        let found = fs::metadata(&directory).expect("metadata");
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o755, 0));
        let found = rustix::fs::listxattr(&directory, &mut [0u8; 256][..]);
        assert_eq!(found.expect("attributes"), 0);
    }
    // Once only: it is in use now.
    assert_ne!(number(&make(&pool, "third")), subvolume);
}

/// Whether the subvolume is used again after what `change` did to the upper.
fn is_used_again(pool: &BtrfsPool, name: &str, change: impl FnOnce(&Upper)) -> bool {
    let first = make(pool, name);
    let subvolume = number(&first);
    change(&first);
    pool.delete_upper(name).expect("delete");
    assert!(!first.path.exists());
    let next = make(pool, &format!("{name}-next"));
    assert_eq!(names(&next.path), ["u", "w"], "{name}");
    assert_eq!(names(&next.upper_dir()), [""; 0], "{name}");
    let again = number(&next) == subvolume;
    pool.delete_upper(&next.name).expect("delete");
    again
}

#[test]
fn what_is_much_or_not_its_own_is_deleted() {
    let data = Data::new();
    let pool = data.open();
    assert!(is_used_again(&pool, "nothing", |_| {}));
    assert!(!is_used_again(&pool, "many", |upper| {
        for number in 0..100 {
            fs::write(upper.upper_dir().join(number.to_string()), "").expect("file");
        }
    }));
    assert!(!is_used_again(&pool, "deep", |upper| {
        fs::create_dir_all(upper.upper_dir().join("a/".repeat(100))).expect("directories");
    }));
    assert!(!is_used_again(&pool, "large", |upper| {
        fs::write(upper.upper_dir().join("large"), vec![1; 2 << 20]).expect("file");
    }));
    assert!(!is_used_again(&pool, "numbers", |upper| {
        for _ in 0..5000 {
            let file = upper.upper_dir().join("file");
            fs::write(&file, "")
                .and_then(|()| fs::remove_file(&file))
                .expect("file");
        }
    }));
    assert!(!is_used_again(&pool, "captured", |upper| {
        let mut draft = pool.begin_snapshot("snapshot").expect("begin");
        pool.capture(&mut draft, &upper.name, 0).expect("capture");
        draft.commit("").expect("commit");
    }));
    let digest = "c".repeat(64).parse().expect("digest");
    assert!(!is_used_again(&pool, "committed", |upper| {
        pool.commit_upper(&upper.name, &digest).expect("commit");
    }));

    // Nor what began with something in it, or is for a layer.
    let copy = pool
        .create_upper_from("snapshot", "copy", MiB(64))
        .expect("copy");
    let step = pool.create_step_upper("step", MiB(64)).expect("step");
    let had = [number(&copy), number(&step)];
    for name in ["copy", "step"] {
        pool.delete_upper(name).expect("delete");
    }
    for name in ["a", "b", "c"] {
        assert!(!had.contains(&number(&make(&pool, name))), "{name}");
    }
    // And what is spare is not for a layer, whose files have numbers of their own.
    pool.delete_upper("a").expect("delete");
    let step = pool.create_step_upper("step", MiB(64)).expect("step");
    let inode = fs::metadata(step.upper_dir()).expect("metadata").ino();
    assert!(inode >= 1 << 19, "{inode}");
}

#[test]
fn another_process_leaves_nothing_of_them_and_harms_nobody() {
    let data = Data::new();
    let pool = data.open();
    let spares = data.0.path().join("pool/spares");
    make(&pool, "first");
    make(&pool, "alive");
    pool.delete_upper("first").expect("delete");
    assert_eq!(names(&spares), ["first"]);

    let other = data.open();
    assert_eq!(names(&spares), [""; 0]);
    // Of what it did not make it knows nothing.
    other.delete_upper("alive").expect("delete");
    assert_eq!(names(&spares), [""; 0]);
    assert_eq!(names(&make(&pool, "second").path), ["u", "w"]);
    pool.delete_upper("alive").expect("it is gone already");
}
