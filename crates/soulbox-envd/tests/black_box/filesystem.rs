//! The Filesystem service.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use serde_json::{Value, json};

use crate::daemon::{Daemon, encoded};

fn method(name: &str) -> String {
    format!("filesystem.Filesystem/{name}")
}

#[test]
fn entries_tell_all() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let path = root.path().join("file");
    fs::write(&path, "12345").expect("write");
    let entry = daemon.ok(&method("Stat"), json!({"path": path}))["entry"].clone();
    let modified = entry["modifiedTime"].as_str().expect("a time").to_owned();
    let expected = json!({"name": "file", "type": "FILE_TYPE_FILE", "path": path, "size": "5", "mode": 0o644, "permissions": "-rw-r--r--",
        "owner": "root", "group": "root", "modifiedTime": modified});
    assert_eq!(entry, expected);
    assert_eq!(
        daemon.refused(&method("Stat"), json!({"path": root.path().join("none")})),
        "not_found"
    );
    assert_eq!(
        daemon.refused(&method("Stat"), json!({"path": path.join("below")})),
        "internal"
    );
    assert_eq!(
        daemon.refused(&method("Stat"), json!({"path": "~other/x"})),
        "invalid_argument"
    );
}

#[test]
fn directories_are_made_listed_and_removed() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| root.path().join(name).to_str().expect("UTF-8").to_owned();
    let basic = format!("Basic {}", encoded(b"nobody:"));
    let daemon = daemon.with_header("authorization", &basic);
    let made = daemon.ok(&method("MakeDir"), json!({"path": at("a/b")}));
    assert_eq!(
        (&made["entry"]["permissions"], &made["entry"]["owner"]),
        (&json!("drwxr-xr-x"), &json!("nobody"))
    );
    assert_eq!(
        fs::metadata(at("a")).expect("stat").uid(),
        fs::metadata(at("a/b")).expect("stat").uid()
    );
    assert_eq!(
        daemon.refused(&method("MakeDir"), json!({"path": at("a/b")})),
        "already_exists"
    );
    fs::write(at("a/file"), "").expect("write");
    assert_eq!(
        daemon.refused(&method("MakeDir"), json!({"path": at("a/file")})),
        "invalid_argument"
    );
    assert_eq!(
        daemon.refused(&method("MakeDir"), json!({"path": at("a/file/x")})),
        "internal"
    );

    symlink("nowhere", at("a/broken")).expect("symlink");
    symlink("b", at("a/link")).expect("symlink");
    let listed = |depth: u32| -> Vec<String> {
        let answer = daemon.ok(&method("ListDir"), json!({"path": at("."), "depth": depth}));
        let entries = answer["entries"].as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .map(|entry| {
                entry["path"]
                    .as_str()
                    .expect("a path")
                    .replace(&at("."), "")
            })
            .collect()
    };
    assert_eq!(listed(0), ["/a"]);
    assert_eq!(listed(2), ["/a", "/a/b", "/a/broken", "/a/file", "/a/link"]);
    let link = daemon.ok(&method("Stat"), json!({"path": at("a/link")}))["entry"].clone();
    assert_eq!(
        (&link["type"], &link["isSymlink"], &link["permissions"]),
        (
            &json!("FILE_TYPE_DIRECTORY"),
            &json!(true),
            &json!("Lrwxrwxrwx")
        )
    );
    let broken = daemon.ok(&method("Stat"), json!({"path": at("a/broken")}))["entry"].clone();
    assert_eq!(
        (broken.get("type"), &broken["symlinkTarget"]),
        (None, &json!(at("a/broken")))
    );

    let list = |path: String| daemon.refused(&method("ListDir"), json!({"path": path}));
    assert_eq!(
        (list(at("none")), list(at("a/file"))),
        ("not_found".into(), "invalid_argument".into())
    );
    for _ in 0..2 {
        daemon.ok(&method("Remove"), json!({"path": at("a")}));
    }
    assert!(!root.path().join("a").exists());
}

#[test]
fn move_makes_parents_and_replaces_files() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| root.path().join(name).to_str().expect("UTF-8").to_owned();
    fs::write(at("a"), "new").expect("write");
    fs::write(at("b"), "old").expect("write");
    let moved = daemon.ok(
        &method("Move"),
        json!({"source": at("a"), "destination": at("b")}),
    );
    assert_eq!(
        (
            moved["entry"]["name"].as_str(),
            fs::read_to_string(at("b")).expect("read")
        ),
        (Some("b"), "new".to_owned())
    );
    daemon.ok(
        &method("Move"),
        json!({"source": at("b"), "destination": at("x/y/b")}),
    );
    assert!(fs::exists(at("x/y/b")).expect("stat"));
    assert_eq!(
        daemon.refused(
            &method("Move"),
            json!({"source": at("none"), "destination": at("c")})
        ),
        "not_found"
    );
    fs::create_dir(at("dir")).expect("mkdir");
    assert_eq!(
        daemon.refused(
            &method("Move"),
            json!({"source": at("dir"), "destination": at("x")})
        ),
        "internal"
    );
}

#[test]
fn watches_stream_and_poll() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let mut stream = daemon.stream(
        &method("WatchDir"),
        json!({"path": root.path(), "includeEntry": true}),
        &[],
    );
    assert_eq!(stream.next(), Some(json!({"start": {}})));
    let id = daemon.ok(&method("CreateWatcher"), json!({"path": root.path()}))["watcherId"].clone();
    fs::write(root.path().join("f"), "x").expect("write");
    fs::remove_file(root.path().join("f")).expect("remove");
    let mut seen = Vec::new();
    while seen.last() != Some(&("f".to_owned(), "EVENT_TYPE_REMOVE".to_owned())) {
        let event = stream.next().expect("an event")["filesystem"].clone();
        assert!(event["type"] != "EVENT_TYPE_REMOVE" || event.get("entry").is_none());
        seen.push((text(&event["name"]), text(&event["type"])));
    }
    let kinds: Vec<&str> = seen.iter().map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["EVENT_TYPE_CREATE", "EVENT_TYPE_WRITE", "EVENT_TYPE_REMOVE"]
    );
    let poll = || daemon.ok(&method("GetWatcherEvents"), json!({"watcherId": id}));
    assert_eq!(poll()["events"].as_array().map(Vec::len), Some(3));
    assert_eq!(poll(), json!({}));
    daemon.ok(&method("RemoveWatcher"), json!({"watcherId": id}));
    assert_eq!(
        daemon.refused(&method("GetWatcherEvents"), json!({"watcherId": id})),
        "not_found"
    );
    assert_eq!(
        daemon.refused(&method("RemoveWatcher"), json!({"watcherId": id})),
        "not_found"
    );

    let watch = |path: Value, timeout: &str| {
        daemon
            .stream(
                &method("WatchDir"),
                json!({"path": path}),
                &[("connect-timeout-ms", timeout)],
            )
            .code()
    };
    assert_eq!(watch(json!(root.path().join("none")), "5000"), "not_found");
    assert_eq!(watch(json!("/etc/passwd"), "5000"), "invalid_argument");
    assert_eq!(watch(json!(root.path()), "200"), "deadline_exceeded");
}

#[test]
fn watches_are_given_back() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    for _ in 0..300 {
        let id =
            daemon.ok(&method("CreateWatcher"), json!({"path": root.path()}))["watcherId"].clone();
        daemon.ok(&method("RemoveWatcher"), json!({"watcherId": id}));
    }
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
        .expect("fds")
        .count();
    assert!(open < 30, "{open} descriptors");
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}
