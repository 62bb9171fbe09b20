//! Contents of files over HTTP.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use serde_json::json;
use soulbox_envd_proto::{FileOperation, sign_file};

use crate::daemon::{Daemon, json as body, text};

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=XX");

fn form(parts: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (filename, content) in parts {
        write!(body, "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n\r\n{content}\r\n").expect("write");
    }
    body.extend_from_slice(b"--XX--\r\n");
    body
}

#[test]
fn octets_are_written_and_read_back() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let path = root.path().join("new/file.txt");
    let route = format!("/files?path={}", path.display());
    let written = daemon.post(&route, &[OCTETS], "héllo".as_bytes());
    assert_eq!(written.status(), 200);
    assert_eq!(
        body(written),
        json!([{"path": path, "name": "file.txt", "type": "file"}])
    );
    let read = daemon.get(&route, &[]);
    assert_eq!(read.status(), 200);
    let header = |name: &str| read.headers()[name].to_str().expect("text").to_owned();
    assert_eq!(header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(header("content-disposition"), "inline; filename=file.txt");
    assert_eq!(header("content-length"), "6");
    assert_eq!(text(read), "héllo");
    // Shorter content leaves nothing of the longer.
    daemon.post(&route, &[OCTETS], b"x");
    assert_eq!(fs::read(&path).expect("read"), b"x");
    daemon.post(&route, &[OCTETS], b"");
    assert_eq!(text(daemon.get(&route, &[])), "");
}

#[test]
fn forms_carry_several_files() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| root.path().join(name).to_str().expect("UTF-8").to_owned();
    let written = body(daemon.post(
        "/files",
        &[FORM],
        &form(&[(&at("b/ü"), "1"), (&at("a"), "22")]),
    ));
    let names: Vec<_> = written
        .as_array()
        .expect("array")
        .iter()
        .map(|file| file["path"].as_str().expect("path").to_owned())
        .collect();
    assert_eq!(names, [at("b/ü"), at("a")]);
    assert_eq!(
        (
            fs::read(at("b/ü")).expect("read"),
            fs::read(at("a")).expect("read")
        ),
        (b"1".to_vec(), b"22".to_vec())
    );
    let one = daemon.post(
        &format!("/files?path={}", at("named")),
        &[FORM],
        &form(&[("ignored", "3")]),
    );
    assert_eq!(one.status(), 200);
    assert_eq!(fs::read(at("named")).expect("read"), b"3");
    let twice = daemon.post(
        "/files",
        &[FORM],
        &form(&[(&at("c"), "1"), (&at("c"), "2")]),
    );
    assert_eq!(
        (twice.status().as_u16(), fs::read(at("c")).expect("read")),
        (400, b"1".to_vec())
    );
}

#[test]
fn large_contents_pass_both_ways_in_constant_memory() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let route = format!("/files?path={}", root.path().join("large").display());
    let content: Vec<u8> = (0..100_000_000_u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(daemon.post(&route, &[OCTETS], &content).status(), 200);
    let read = daemon
        .get(&route, &[])
        .into_body()
        .with_config()
        .limit(u64::MAX)
        .read_to_vec()
        .expect("a body");
    assert!(read == content);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("status");
    let peak: u64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .expect("VmHWM");
    assert!(peak < 40_000, "{peak} KiB");
}

/// Its mode and its identity stay, and nothing of the upload is left open.
#[test]
fn a_large_file_is_overwritten_in_place() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let path = root.path().join("large");
    let route = format!("/files?path={}", path.display());
    fs::write(&path, vec![b'x'; 3 << 20]).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    let before = fs::metadata(&path).expect("stat");
    assert_eq!(daemon.post(&route, &[OCTETS], b"short").status(), 200);
    assert_eq!(fs::read(&path).expect("read"), b"short");
    let after = fs::metadata(&path).expect("stat");
    assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));

    // Nothing of it is held: a program that was just uploaded over a large one starts.
    let script = b"#!/bin/sh\necho started\n";
    fs::write(&path, vec![b'x'; 3 << 20]).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    assert_eq!(daemon.post(&route, &[OCTETS], script).status(), 200);
    assert_eq!(daemon.run(&path.display().to_string()).text(), "started\n");

    // Refused beside the event loop as on it.
    let busy = root.path().join("busy");
    fs::copy("/bin/bash", &busy).expect("copy");
    let mut running = std::process::Command::new(&busy)
        .args(["-c", "read"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("start");
    let refused = daemon.post(&format!("/files?path={}", busy.display()), &[OCTETS], b"x");
    running.kill().expect("kill");
    running.wait().expect("wait");
    assert_eq!(refused.status(), 500);
    let said = text(refused);
    assert!(said.contains("error opening file"), "{said}");
}

#[test]
fn gzip_both_ways() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let route = format!("/files?path={}", root.path().join("file").display());
    let content = "0123456789".repeat(100_000);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content.as_bytes()).expect("write");
    let zipped = encoder.finish().expect("finish");
    let upload = |coding: &str, body: &[u8]| {
        daemon
            .post(&route, &[OCTETS, ("content-encoding", coding)], body)
            .status()
            .as_u16()
    };
    assert_eq!(upload("GZIP", &zipped), 200);
    assert_eq!(
        fs::read(root.path().join("file")).expect("read"),
        content.as_bytes()
    );
    let download = |accept: &str| {
        let response = daemon.get(&route, &[("accept-encoding", accept)]);
        let coding = response
            .headers()
            .get("content-encoding")
            .map(|value| value.to_str().expect("text").to_owned());
        (
            response.status().as_u16(),
            coding,
            response.into_body().read_to_vec().expect("a body"),
        )
    };
    let (status, coding, downloaded) = download("gzip");
    let mut expanded = String::new();
    flate2::read::GzDecoder::new(downloaded.as_slice())
        .read_to_string(&mut expanded)
        .expect("gzip");
    assert!((status, coding.as_deref()) == (200, Some("gzip")) && expanded == content);
    assert!(download("gzip, deflate") == (200, None, content.into_bytes()));
    assert_eq!(download("*;q=0").0, 406);
    assert_eq!(
        (
            upload("gzip", b"no gzip"),
            upload("gzip", &zipped[..500]),
            upload("br", b"x")
        ),
        (400, 400, 400)
    );
}

#[test]
fn bad_requests_are_told_apart() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| format!("/files?path={}/{name}", root.path().display());
    fs::write(root.path().join("file"), "x").expect("write");
    let post = |route: &str, kind: &str, content: &[u8]| {
        daemon
            .post(route, &[("content-type", kind)], content)
            .status()
            .as_u16()
    };
    assert_eq!(post("/files", "application/octet-stream", b"x"), 400);
    assert_eq!(post(&at("file"), "text/plain", b"x"), 400);
    assert_eq!(post(&at("."), "application/octet-stream", b"x"), 400);
    assert_eq!(
        post(&at("file/below"), "application/octet-stream", b"x"),
        500
    );
    assert_eq!(
        post(
            &format!("{}&username=no-such-user", at("new")),
            "application/octet-stream",
            b"x"
        ),
        401
    );
    let get = |route: &str| daemon.get(route, &[]).status().as_u16();
    assert_eq!(
        (
            get(&at("none")),
            get(&at(".")),
            get("/files"),
            get(&format!("{}&username=no-such-user", at("file")))
        ),
        (404, 400, 400, 401)
    );
}

#[test]
fn parts_conditions_and_pseudo_files() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let route = format!("/files?path={}", root.path().join("file").display());
    fs::write(root.path().join("file"), "0123456789").expect("write");
    let part = daemon.get(&route, &[("range", "bytes=2-4")]);
    assert_eq!(
        (
            part.status().as_u16(),
            part.headers()["content-range"].as_bytes()
        ),
        (206, b"bytes 2-4/10".as_slice())
    );
    let modified = part.headers()["last-modified"]
        .to_str()
        .expect("text")
        .to_owned();
    assert_eq!(text(part), "234");
    assert_eq!(daemon.get(&route, &[("range", "bytes=10-")]).status(), 416);
    assert_eq!(
        daemon
            .get(&route, &[("if-modified-since", &modified)])
            .status(),
        304
    );
    assert_eq!(
        daemon
            .get(
                &route,
                &[("range", "bytes=0-1"), ("accept-encoding", "identity;q=0")]
            )
            .status(),
        406
    );
    assert!(text(daemon.get("/files?path=/proc/cpuinfo", &[])).contains("processor"));
}

#[test]
fn owners_and_modes() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let route = |name: &str| {
        format!(
            "/files?username=nobody&path={}",
            root.path().join(name).display()
        )
    };
    fs::write(root.path().join("old"), "x").expect("write");
    fs::set_permissions(root.path().join("old"), fs::Permissions::from_mode(0o600)).expect("chmod");
    for name in ["old", "dir/new"] {
        assert_eq!(daemon.post(&route(name), &[OCTETS], b"y").status(), 200);
    }
    let of = |name: &str| {
        fs::metadata(root.path().join(name))
            .map(|of| (of.uid(), of.mode() & 0o777))
            .expect("stat")
    };
    let nobody = of("dir").0;
    assert_ne!(nobody, 0);
    assert_eq!(
        (of("old"), of("dir/new"), of("dir").1),
        ((nobody, 0o600), (nobody, 0o644), 0o755)
    );
}

#[test]
fn metadata_replaces_itself() {
    let daemon = Daemon::start();
    // Beside the build, since the temporary directory may lie on a file system without extended attributes.
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("tempdir");
    let path = root.path().join("file");
    let route = format!("/files?path={}", path.display());
    let written = |headers: &[(&str, &str)]| {
        let mut all = vec![OCTETS];
        all.extend_from_slice(headers);
        let written = daemon.post(&route, &all, b"x");
        (
            written.status().as_u16(),
            body(written)[0]["metadata"].clone(),
        )
    };
    assert_eq!(
        written(&[("X-Metadata-Kind", "a"), ("x-metadata-other", "b")]),
        (200, json!({"kind": "a", "other": "b"}))
    );
    assert_eq!(
        written(&[("X-Metadata-Kind", "c")]),
        (200, json!({"kind": "c"}))
    );
    let stat = || {
        daemon.ok("filesystem.Filesystem/Stat", json!({"path": path}))["entry"]["metadata"].clone()
    };
    assert_eq!(stat(), json!({"kind": "c"}));
    assert_eq!(written(&[("x-metadata-kind", &"v".repeat(5000))]).0, 400);
    assert_eq!(stat(), json!({"kind": "c"}));
    assert_eq!(written(&[]), (200, json!(null)));
    assert_eq!(stat(), json!(null));
}

#[test]
fn signatures_open_one_file_for_one_purpose() {
    let daemon = Daemon::start();
    assert_eq!(
        daemon
            .post("/init", &[], br#"{"accessToken":"token"}"#)
            .status(),
        204
    );
    let root = tempfile::tempdir().expect("tempdir");
    let path = root.path().join("file").to_str().expect("UTF-8").to_owned();
    fs::write(&path, "content").expect("write");
    let url = |path: &str, signature: &str, more: &str| {
        let signature = signature.replace('/', "%2F").replace('+', "%2B");
        format!("/files?path={path}&signature={signature}{more}")
    };
    let get = |route: &str, headers: &[(&str, &str)]| {
        let response = daemon.get(route, headers);
        let status = response.status().as_u16();
        (
            status,
            if status == 200 {
                String::new()
            } else {
                body(response)["message"].as_str().expect("text").to_owned()
            },
        )
    };
    let good = (200, String::new());
    let invalid = (401, "invalid signature".to_owned());
    let read = sign_file(&path, FileOperation::Read, "", "token", None);
    assert_eq!(get(&url(&path, &read, ""), &[]), good);
    assert_eq!(get(&url("/etc/passwd", &read, ""), &[]), invalid);
    assert_eq!(get(&url(&path, &read, "&username=root"), &[]), invalid);
    assert_eq!(
        get(&url(&path, &read, "&signature_expiration=9999999999"), &[]),
        invalid
    );
    assert_eq!(
        daemon
            .post(&url(&path, &read, ""), &[OCTETS], b"x")
            .status(),
        401
    );
    let write = sign_file(&path, FileOperation::Write, "", "token", None);
    assert_eq!(
        daemon
            .post(&url(&path, &write, ""), &[OCTETS], b"content")
            .status(),
        200
    );
    let expired = sign_file(&path, FileOperation::Read, "", "token", Some(1));
    assert_eq!(
        get(&url(&path, &expired, "&signature_expiration=1"), &[]),
        (401, "signature is already expired".into())
    );
    let route = format!("/files?path={path}");
    assert_eq!(
        get(&route, &[]),
        (401, "missing signature query parameter".into())
    );
    assert_eq!(get(&route, &[("x-access-token", "token")]), good);
    assert_eq!(
        get(&url(&path, &read, ""), &[("x-access-token", "other")]),
        (
            401,
            "access token present in header but does not match".into()
        )
    );
}

#[test]
fn compose_joins_in_order_and_leaves_the_destination_on_failure() {
    let daemon = Daemon::start();
    let root = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| root.path().join(name).to_str().expect("UTF-8").to_owned();
    for (name, content) in [("1", "one "), ("2", "two"), ("whole", "old")] {
        fs::write(at(name), content).expect("write");
    }
    let compose = |sources: &[&str], destination: &str| {
        let sources: Vec<String> = sources.iter().map(|name| at(name)).collect();
        let request = json!({"source_paths": sources, "destination": destination});
        daemon
            .post(
                "/files/compose",
                &[("content-type", "application/json")],
                request.to_string().as_bytes(),
            )
            .status()
            .as_u16()
    };
    assert_eq!(compose(&["1", "none"], &at("whole")), 404);
    assert_eq!(compose(&["1", "."], &at("whole")), 400);
    assert_eq!(compose(&["1", "whole"], &at("whole")), 400);
    assert_eq!(compose(&[], &at("whole")), 400);
    assert_eq!(compose(&["1"], ""), 400);
    assert_eq!(fs::read(at("whole")).expect("read"), b"old");
    assert_eq!(compose(&["1", "2"], &at("whole")), 200);
    assert_eq!(fs::read(at("whole")).expect("read"), b"one two");
    assert_eq!(fs::read_dir(root.path()).expect("list").count(), 1);
}
