//! Layers of what sandboxes wrote, on a real loop file and under a real overlay, as root.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use soulbox_pool::{BtrfsPool, LayerDigest, Pool, PoolError, PoolOptions};
use soulbox_types::MiB;

struct Data(tempfile::TempDir);

impl Data {
    fn open(&self) -> BtrfsPool {
        let size = Some(MiB(300));
        BtrfsPool::open(self.0.path(), PoolOptions { size })
            .unwrap_or_else(|error| panic!("open the pool, which needs root: {error:?}"))
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        for path in ["root", "pool"] {
            let _ = Command::new("umount")
                .args(["--quiet", "--lazy"])
                .arg(self.0.path().join(path))
                .status();
        }
    }
}

fn digest(letter: char) -> LayerDigest {
    letter.to_string().repeat(64).parse().expect("digest")
}

/// Mounts layers, lowest first, as a sandbox's root is mounted.
fn mount(data: &Data, layers: &[PathBuf], upper: Option<&Path>) -> PathBuf {
    let target = data.0.path().join("root");
    fs::create_dir_all(&target).expect("directory");
    let lower: Vec<_> = layers
        .iter()
        .rev()
        .map(|layer| layer.display().to_string())
        .collect();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some(upper) = upper {
        options += &format!(
            ",upperdir={0}/u,workdir={0}/w,index=on,nfs_export=on,volatile",
            upper.display()
        );
    }
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&target)
        .status();
    assert!(mounted.expect("mount").success(), "{options}");
    target
}

fn unmount(root: &Path) {
    let done = Command::new("umount").arg(root).status();
    assert!(done.expect("umount").success());
}

#[test]
fn what_a_sandbox_wrote_becomes_a_layer() {
    let data = Data(tempfile::tempdir().expect("directory"));
    let pool = data.open();
    let draft = pool.begin_layer().expect("draft");
    for name in ["etc", "run", "dev/shm", "gone", "emptied"] {
        fs::create_dir_all(draft.path().join(name)).expect("directory");
    }
    for name in ["etc/kept", "etc/deleted", "gone/file", "emptied/below"] {
        fs::write(draft.path().join(name), "base").expect("file");
    }
    draft.commit(&digest('a')).expect("base layer");

    let upper = pool.create_upper("1-aa", MiB(100)).expect("upper");
    let base = pool.layer_path(&digest('a'));
    let root = mount(&data, std::slice::from_ref(&base), Some(&upper.path));
    fs::write(root.join("etc/added"), "step").expect("file");
    fs::remove_file(root.join("etc/deleted")).expect("deleted");
    fs::remove_dir_all(root.join("gone")).expect("deleted");
    // A directory that is deleted and made again hides what was in it.
    fs::remove_dir_all(root.join("emptied")).expect("deleted");
    fs::create_dir(root.join("emptied")).expect("made");
    fs::write(root.join("emptied/new"), "step").expect("file");
    // Names that the pool itself uses, links that lead out, and a setuid file.
    for name in ["u", "w"] {
        fs::create_dir(root.join(name)).expect("directory");
        fs::write(root.join(name).join("mine"), "guest").expect("file");
    }
    symlink("/etc/passwd", root.join("run/link")).expect("link");
    fs::write(root.join("run/pid"), "1").expect("file");
    fs::write(root.join("dev/shm/segment"), "1").expect("file");
    fs::write(root.join("tool"), "x").expect("file");
    fs::set_permissions(root.join("tool"), PermissionsExt::from_mode(0o4755)).expect("mode");
    std::os::unix::fs::chown(root.join("etc/added"), Some(1000), Some(1000)).expect("owner");

    // Mounted and in use, as it is while a sandbox lives.
    let open = File::create(root.join("etc/open")).expect("file");
    pool.commit_upper("1-aa", &digest('b')).expect("layer");
    fs::write(root.join("etc/late"), "after").expect("the upper goes on");
    drop(open);
    unmount(&root);
    pool.delete_upper("1-aa").expect("deleted");

    let layer = pool.layer_path(&digest('b'));
    let whiteout = fs::symlink_metadata(layer.join("gone")).expect("whiteout");
    assert!(whiteout.file_type().is_char_device());
    assert!(
        File::create(layer.join("more")).is_err(),
        "a layer is read-only"
    );

    // Other sandboxes see base and step together.
    let next = pool.create_upper("2-bb", MiB(100)).expect("upper");
    let root = mount(&data, &[base, layer], Some(&next.path));
    let text = |name: &str| fs::read_to_string(root.join(name)).ok();
    assert_eq!(text("etc/kept").as_deref(), Some("base"));
    assert_eq!(text("etc/added").as_deref(), Some("step"));
    assert_eq!(text("u/mine").as_deref(), Some("guest"));
    assert_eq!(text("w/mine").as_deref(), Some("guest"));
    assert_eq!(text("emptied/new").as_deref(), Some("step"));
    for name in ["etc/deleted", "etc/late", "gone", "emptied/below"] {
        assert!(!root.join(name).exists(), "{name}");
    }
    for name in ["run", "dev/shm"] {
        let found = fs::read_dir(root.join(name)).expect("there").count();
        assert_eq!(found, 0, "{name} begins empty");
    }
    let tool = fs::metadata(root.join("tool")).expect("there");
    assert_eq!(tool.permissions().mode() & 0o7777, 0o4755);
    unmount(&root);
    let drafts = fs::read_dir(data.0.path().join("pool/drafts"));
    assert_eq!(drafts.expect("list").count(), 0);
}

#[test]
fn links_in_place_of_what_is_emptied_are_not_followed() {
    let data = Data(tempfile::tempdir().expect("directory"));
    let pool = data.open();
    let upper = pool.create_upper("1-aa", MiB(100)).expect("upper");
    let outside = data.0.path().join("outside");
    fs::create_dir_all(outside.join("shm")).expect("directory");
    fs::write(outside.join("shm/host"), "host").expect("file");
    symlink(outside.join("shm"), upper.upper_dir().join("run")).expect("link");
    symlink(&outside, upper.upper_dir().join("dev")).expect("link");
    pool.commit_upper("1-aa", &digest('c')).expect("layer");
    assert!(
        outside.join("shm/host").exists(),
        "a file of the host is gone"
    );
    let run = fs::symlink_metadata(pool.layer_path(&digest('c')).join("run"));
    assert!(run.expect("there").is_symlink());
}

#[test]
fn a_layer_needs_an_upper_and_stays_when_it_is_there() {
    let data = Data(tempfile::tempdir().expect("directory"));
    let pool = data.open();
    assert!(matches!(
        pool.commit_upper("9-zz", &digest('d')),
        Err(PoolError::UpperMissing { .. })
    ));
    let upper = pool.create_upper("1-aa", MiB(100)).expect("upper");
    fs::write(upper.upper_dir().join("first"), "1").expect("file");
    pool.commit_upper("1-aa", &digest('d')).expect("layer");
    fs::write(upper.upper_dir().join("second"), "2").expect("file");
    pool.commit_upper("1-aa", &digest('d')).expect("as it was");
    let layer = pool.layer_path(&digest('d'));
    assert!(layer.join("first").exists() && !layer.join("second").exists());
}

#[test]
fn no_two_layers_of_a_stack_have_one_number() {
    let data = Data(tempfile::tempdir().expect("directory"));
    let pool = data.open();
    // One that was there before anybody counted.
    let draft = pool.begin_layer().expect("draft");
    fs::write(draft.path().join("first"), "base").expect("file");
    draft.commit(&digest('a')).expect("layer");
    let mut draft = pool.begin_layer().expect("draft");
    draft.number_apart().expect("numbers");
    let inside = fs::read_dir(draft.path()).expect("list").count();
    assert_eq!(inside, 0, "a draft begins empty");
    for number in 0..100 {
        fs::write(draft.path().join(format!("recipe-{number}")), "x").expect("file");
    }
    draft.commit(&digest('b')).expect("layer");

    let mut layers = vec![pool.layer_path(&digest('a')), pool.layer_path(&digest('b'))];
    for (step, letter) in ['c', 'd'].into_iter().enumerate() {
        let name = format!("step-{step}");
        let upper = pool.create_step_upper(&name, MiB(100)).expect("upper");
        let root = mount(&data, &layers, Some(&upper.path));
        for number in 0..100 {
            fs::write(root.join(format!("{name}-{number}")), "x").expect("file");
        }
        pool.commit_upper(&name, &digest(letter)).expect("layer");
        unmount(&root);
        pool.delete_upper(&name).expect("deleted");
        layers.push(pool.layer_path(&digest(letter)));
        if step == 0 {
            // A pool that is opened anew goes on counting where it was.
            pool.unmount().expect("unmounted");
            data.open();
        }
    }
    let upper = pool.create_upper("sandbox", MiB(100)).expect("upper");
    let root = mount(&data, &layers, Some(&upper.path));
    for number in 0..100 {
        fs::write(root.join(format!("sandbox-{number}")), "x").expect("file");
    }
    let mut numbers: Vec<_> = fs::read_dir(&root)
        .expect("list")
        .map(|entry| {
            fs::metadata(entry.expect("entry").path())
                .expect("there")
                .ino()
        })
        .collect();
    unmount(&root);
    assert_eq!(numbers.len(), 401);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 401, "two files have one number");
}

#[test]
fn a_layer_can_have_another_name() {
    let data = Data(tempfile::tempdir().expect("directory"));
    let pool = data.open();
    for letter in ['a', 'b'] {
        let draft = pool.begin_layer().expect("draft");
        draft.commit(&digest(letter)).expect("layer");
    }
    let find = |letter| pool.find_layer(&digest(letter)).expect("looked up");
    assert_eq!((find('a'), find('f')), (Some(digest('a')), None));
    pool.name_layer(&digest('a'), &digest('b')).expect("named");
    pool.name_layer(&digest('f'), &digest('b')).expect("named");
    assert_eq!(
        (find('a'), find('f')),
        (Some(digest('b')), Some(digest('b')))
    );
    // A name of a layer that is gone is none.
    pool.name_layer(&digest('a'), &digest('c')).expect("named");
    pool.name_layer(&digest('f'), &digest('c')).expect("named");
    assert_eq!((find('a'), find('f')), (Some(digest('a')), None));
}
