//! The scripts, run by a real bash as root, on folders of their own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::*;

fn bash(script: &str) -> Output {
    let output = Command::new("bash").args(["-c", script]).output();
    output.expect("bash")
}

fn passes(script: &str) -> Vec<u8> {
    let output = bash(script);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}\n{errors}");
    output.stdout
}

/// A folder with a context to make archives of, and a root to copy into.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        let room = Self(tempfile::tempdir().expect("directory"));
        fs::create_dir(room.path("context")).expect("directory");
        fs::create_dir(room.path("root")).expect("directory");
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below")).expect("directory");
        fs::write(path, text).expect("file");
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    /// Packs the context and copies; `destination` is below `root`.
    fn copy(&self, source: &str, destination: &str, mode: Option<&str>) -> Output {
        self.pack(&["-czf"], &["."]);
        self.unpack(source, destination, mode)
    }

    fn pack(&self, options: &[&str], members: &[&str]) {
        fs::create_dir_all(self.path("copy")).expect("directory");
        let packed = Command::new("tar")
            .args(options)
            .arg(self.path("copy/archive"))
            .args(["--xattrs", "--xattrs-include=*", "-C"])
            .arg(self.path("context"))
            .args(members)
            .status();
        assert!(packed.expect("tar").success());
    }

    fn unpack(&self, source: &str, destination: &str, mode: Option<&str>) -> Output {
        let archive = self.path("copy/archive").display().to_string();
        let target = format!("{}/root{destination}", self.0.path().display());
        let output = bash(&copy(&archive, source, &target, "1234:1235", mode));
        assert!(
            !self.path("copy").exists(),
            "nothing is left of the archive"
        );
        output
    }

    fn copied(&self, source: &str, destination: &str) {
        let output = self.copy(source, destination, None);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{source} {destination}: {errors}");
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).expect("there");
    (found.uid(), found.gid())
}

#[test]
fn words_are_quoted() {
    for text in ["", "a b", "it's", "$(id)`id`\n\\", "-n", "ü"] {
        let printed = passes(&format!("printf %s {}", quoted(text)));
        assert_eq!(String::from_utf8(printed).as_deref(), Ok(text));
    }
}

#[test]
fn only_variables_are_expanded() {
    let check = |value: &str, expected: &str| {
        let script = format!("export A=1 B='x y'; {}", expand(&[value.to_owned()]));
        let printed = String::from_utf8(passes(&script)).expect("text");
        assert_eq!(printed, format!("{expected}\0"), "{value}");
    };
    check("$A/bin:${B}", "1/bin:x y");
    check("$(id)`id`", "$(id)`id`");
    check(r#"a "quoted" \n"#, r#"a "quoted" \n"#);
    check(r"\$A", "$A");
    check("5$ $1 $$", "5$ $1 $$");
    check("two\nlines", "two\nlines");
}

#[test]
fn files_go_where_a_dockerfile_puts_them() {
    let room = Room::new();
    room.file("context/a.txt", "a");
    room.file("context/sub/b.txt", "b");
    room.file("context/sub/.dot", "dot");
    room.file("root/there/kept", "kept");
    room.file("root/there/b.txt", "old");
    fs::set_permissions(room.path("root/there"), PermissionsExt::from_mode(0o711)).expect("mode");

    room.copied("a.txt", "/exact/name");
    assert_eq!(room.text("root/exact/name").as_deref(), Some("a"));
    assert_eq!(owner(&room.path("root/exact")), (1234, 1235));
    assert_eq!(owner(&room.path("root/exact/name")), (1234, 1235));
    room.copied("a.txt", "/folder/");
    assert_eq!(room.text("root/folder/a.txt").as_deref(), Some("a"));
    room.copied("a.txt", "/there");
    assert_eq!(room.text("root/there/a.txt").as_deref(), Some("a"));
    // Contents are merged, and what was there is written over; the folder stays as it was.
    room.copied("sub", "/there");
    assert_eq!(room.text("root/there/b.txt").as_deref(), Some("b"));
    assert_eq!(room.text("root/there/.dot").as_deref(), Some("dot"));
    assert_eq!(room.text("root/there/kept").as_deref(), Some("kept"));
    let there = fs::metadata(room.path("root/there")).expect("there");
    assert_eq!((there.mode() & 0o777, there.uid()), (0o711, 0));
    room.copied("./sub/", "/new/deep");
    assert_eq!(room.text("root/new/deep/b.txt").as_deref(), Some("b"));
    // More than one source make a folder.
    room.copied("*.txt", "/many");
    assert_eq!(
        room.text("root/many").as_deref(),
        Some("a"),
        "one match is one source"
    );
    room.file("context/c.txt", "c");
    room.copied("*.txt", "/several");
    assert_eq!(room.text("root/several/c.txt").as_deref(), Some("c"));
    room.copied("**/b.txt", "/found/");
    assert_eq!(room.text("root/found/b.txt").as_deref(), Some("b"));
    room.copied(".", "/all");
    assert_eq!(room.text("root/all/sub/b.txt").as_deref(), Some("b"));
}

#[test]
fn links_modes_and_strange_names_come_along() {
    let room = Room::new();
    room.file("context/-rf", "dash");
    room.file("context/new\nline", "newline");
    room.file("context/ü [x] *", "unicode");
    room.file("context/d/one", "linked");
    fs::hard_link(room.path("context/d/one"), room.path("context/d/two")).expect("link");
    symlink("/nowhere", room.path("context/d/dangling")).expect("link");
    symlink("one", room.path("context/d/soft")).expect("link");
    room.file("root/real/x", "x");
    symlink("real", room.path("root/link")).expect("link");
    symlink("real/x", room.path("root/over")).expect("link");

    room.copied(".", "/all");
    assert_eq!(room.text("root/all/-rf").as_deref(), Some("dash"));
    assert_eq!(room.text("root/all/new\nline").as_deref(), Some("newline"));
    assert_eq!(room.text("root/all/ü [x] *").as_deref(), Some("unicode"));
    let inode = |name: &str| fs::metadata(room.path(name)).expect("there").ino();
    assert_eq!(inode("root/all/d/one"), inode("root/all/d/two"));
    let dangling = fs::read_link(room.path("root/all/d/dangling")).expect("a link");
    assert_eq!(dangling, Path::new("/nowhere"));
    assert_eq!(owner(&room.path("root/all/d/dangling")), (1234, 1235));
    for name in ["-rf", "new\nline", "ü [x] *"] {
        room.copied(name, "/one");
        assert!(room.path("root/one").exists(), "{name}");
    }
    room.copied("d/soft", "/soft");
    assert!(
        fs::symlink_metadata(room.path("root/soft"))
            .expect("there")
            .is_symlink()
    );
    // A link to a folder is gone through, a link to a file is replaced.
    room.copied("d", "/link");
    assert_eq!(room.text("root/real/one").as_deref(), Some("linked"));
    assert!(
        fs::symlink_metadata(room.path("root/link"))
            .expect("there")
            .is_symlink()
    );
    room.copied("d/one", "/over");
    assert_eq!(room.text("root/over").as_deref(), Some("linked"));
    assert_eq!(room.text("root/real/x").as_deref(), Some("x"));

    let output = room.copy("d", "/modes", Some("4750"));
    assert!(output.status.success());
    let mode = fs::metadata(room.path("root/modes/one"))
        .expect("there")
        .mode();
    assert_eq!(mode & 0o7777, 0o4750);
}

#[test]
fn capabilities_and_holes_survive() {
    let room = Room::new();
    room.file("context/d/tool", "x");
    let attribute = "security.capability";
    let python = |text: &str, path: &Path| {
        let run = Command::new("python3")
            .args(["-c", text, attribute])
            .arg(path)
            .output();
        let run = run.expect("python3");
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
        String::from_utf8_lossy(&run.stdout).trim().to_owned()
    };
    // cap_net_bind_service, effective: VFS_CAP_REVISION_2 of linux/capability.h.
    let value = "0100000200040000000000000000000000000000";
    let set =
        format!("import os,sys; os.setxattr(sys.argv[2], sys.argv[1], bytes.fromhex('{value}'))");
    python(&set, &room.path("context/d/tool"));
    let sparse = fs::File::create(room.path("context/d/sparse")).expect("file");
    sparse.set_len(64 << 20).expect("length");
    room.pack(&["-S", "-cf"], &["."]);
    let output = room.unpack("d", "/d", None);
    assert!(output.status.success());
    let copy = fs::metadata(room.path("root/d/sparse")).expect("there");
    assert_eq!(copy.len(), 64 << 20);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
    let get = "import os,sys; print(os.getxattr(sys.argv[2], sys.argv[1]).hex())";
    assert_eq!(python(get, &room.path("root/d/tool")), value);
    assert_eq!(owner(&room.path("root/d/tool")), (1234, 1235));
}

#[test]
fn bad_archives_and_sources_are_named() {
    let room = Room::new();
    room.file("context/a", "a");
    let fails = |source: &str, expected: &str| {
        let output = room.copy(source, "/x", None);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{source}");
        assert!(errors.contains(expected), "{errors}");
        assert!(!room.path("root/x").exists(), "{source}");
    };
    fails("missing", "missing: no such file in the uploaded archive");
    fails("../a", "leads out of the archive");
    fails("a/../../a", "leads out of the archive");

    fs::create_dir_all(room.path("copy")).expect("directory");
    fs::write(room.path("copy/archive"), "no archive").expect("file");
    assert!(!room.unpack("a", "/x", None).status.success());
    // A member that leads out, and one that is absolute.
    room.file("outside", "before");
    room.file("context/sub/x", "x");
    room.pack(
        &["-P", "--transform", "s,^a$,../outside,", "-cf"],
        &["a", "sub"],
    );
    assert!(!room.unpack("sub", "/x", None).status.success());
    assert_eq!(room.text("outside").as_deref(), Some("before"));
    let archive = room.path("copy/archive").display().to_string();
    fs::create_dir_all(room.path("copy")).expect("directory");
    fs::write(&archive, "").expect("file");
    let script = copy(&archive, "a", "/nowhere", "no such user:x", None);
    let output = bash(&script);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("there is no user or group"), "{errors}");
}

#[test]
fn folders_are_made_with_their_owner() {
    let room = Room::new();
    let root = room.path("root").display().to_string();
    passes(&workdir(&format!("{root}/a b/c"), "1234"));
    assert_eq!(owner(&room.path("root/a b/c")).0, 1234);
    assert_eq!(owner(&room.path("root/a b")).0, 1234);
    assert_eq!(owner(&room.path("root")).0, 0);
    passes(&workdir(&format!("{root}/a b/c"), "1"));
    assert_eq!(
        owner(&room.path("root/a b/c")).0,
        1234,
        "what is there stays"
    );
}
