//! The binary as people meet it: what it prints, and its exit status. Nothing here starts a sandbox.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use expect_test::{Expect, expect};

const NOBODY: u32 = 65534;

fn soulbox(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soulbox"));
    command.args(arguments);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SOULBOX_")) {
        command.env_remove(name);
    }
    // The machine's own config file is none of ours.
    command.env("SOULBOX_CONFIG", "/dev/null");
    command
}

/// Runs it; the status, and stderr with the data directory's path replaced.
fn check_failure(command: &mut Command, data: &Path, status: i32, expected: Expect) {
    let output = command.output().expect("run");
    let stderr = String::from_utf8(output.stderr)
        .expect("text")
        .replace(&data.display().to_string(), "DATA");
    expected.assert_eq(&stderr);
    assert_eq!(output.status.code(), Some(status));
    assert_eq!(
        String::from_utf8(output.stdout).expect("text"),
        "",
        "stdout is for data"
    );
}

fn text(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Credentials as the first start writes them, with keys that are easy to see.
fn write_credentials(data: &Path) {
    let hex = |digit: &str, count| digit.repeat(count);
    let credentials = format!(
        r#"{{"api_key":"e2b_{}","access_token":"sk_e2b_{}","admin_token":"{}"}}"#,
        hex("a", 40),
        hex("b", 40),
        hex("c", 64)
    );
    for (name, content) in [
        ("credentials.json", credentials),
        (
            "secrets.json",
            format!(r#"{{"token_seed":"{}"}}"#, hex("d", 64)),
        ),
    ] {
        fs::write(data.join(name), content).expect("write");
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o600)).expect("chmod");
    }
}

#[test]
fn env_prints_one_line_that_a_shell_can_evaluate() {
    let data = tempfile::tempdir().expect("temporary directory");
    let path = data.path().to_str().expect("text");
    check_failure(
        &mut soulbox(&["env", "--data-dir", path]),
        data.path(),
        1,
        expect![[r#"
            error: there are no credentials in `DATA`
            hint: the first start of soulbox serve makes them; name its data directory with --data-dir
        "#]],
    );
    write_credentials(data.path());
    let line = text(
        soulbox(&["env", "--data-dir", path, "--listen", "127.0.0.1:4000"])
            .output()
            .expect("run"),
    );
    let key = format!("e2b_{}", "a".repeat(40));
    assert_eq!(
        line,
        format!(
            "export E2B_API_KEY={key} E2B_API_URL=http://127.0.0.1:4000 E2B_SANDBOX_URL=http://127.0.0.1:4000\n"
        )
    );
    let script = format!(
        "eval {}; echo \"$E2B_API_KEY $E2B_SANDBOX_URL\"",
        shell_quote(&line)
    );
    let seen = text(
        Command::new("sh")
            .args(["-c", &script])
            .output()
            .expect("sh"),
    );
    assert_eq!(seen, format!("{key} http://127.0.0.1:4000\n"));
    // The data directory may come from the environment, too.
    let by_variable = text(
        soulbox(&["env"])
            .env("SOULBOX_DATA_DIR", path)
            .output()
            .expect("run"),
    );
    assert!(
        by_variable.contains("E2B_API_URL=http://127.0.0.1:3000 "),
        "{by_variable}"
    );
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[test]
fn half_written_credentials_stop_the_server_and_stay() {
    let data = tempfile::tempdir().expect("temporary directory");
    write_credentials(data.path());
    let path = data.path().join("credentials.json");
    let half = fs::read(&path).expect("read")[..30].to_vec();
    fs::write(&path, &half).expect("cut");
    check_failure(
        &mut soulbox(&[
            "serve",
            "--data-dir",
            data.path().to_str().expect("text"),
            "--listen",
            "127.0.0.1:0",
        ]),
        data.path(),
        1,
        expect![[r#"
            error: `DATA/credentials.json` is damaged: EOF while parsing a string at line 1 column 30
            hint: restore it from a backup, or remove DATA/credentials.json to have new keys made
        "#]],
    );
    assert_eq!(fs::read(&path).expect("read"), half);
}

#[test]
fn a_port_in_use_stops_the_server_before_it_takes_anything() {
    let data = tempfile::tempdir().expect("temporary directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let mut command = soulbox(&[
        "serve",
        "--data-dir",
        data.path().to_str().expect("text"),
        "--listen",
        &address,
    ]);
    let output = command.output().expect("run");
    assert_eq!(output.status.code(), Some(1));
    expect![[r#"
        error: failed to listen on ADDRESS: Address already in use (os error 98)
        hint: another program has that port: end it, or choose another one with --listen
    "#]]
    .assert_eq(
        &String::from_utf8(output.stderr)
            .expect("text")
            .replace(&address, "ADDRESS"),
    );
    assert!(!data.path().join("pool").exists());
}

#[test]
fn mistakes_in_settings_are_status_2_and_touch_nothing() {
    let parent = tempfile::tempdir().expect("temporary directory");
    let data = parent.path().join("data");
    let serve = |more: &[&str]| {
        let mut command = soulbox(&["serve", "--data-dir", data.to_str().expect("text")]);
        command.args(more);
        command
    };
    check_failure(
        &mut serve(&["--listen", "0.0.0.0:3000"]),
        &data,
        2,
        expect![[r#"
        error: others can reach 0.0.0.0:3000, and there is no TLS
        hint: give --tls-cert and --tls-key, listen on 127.0.0.1, or accept plain text with --insecure
    "#]],
    );
    check_failure(
        serve(&[]).env("SOULBOX_WARM", "many"),
        &data,
        2,
        expect![[r#"
        error: SOULBOX_WARM: `many` is not a number from 0 to 1000
        hint: correct SOULBOX_WARM
    "#]],
    );
    let file = parent.path().join("soulbox.toml");
    fs::write(&file, "listen = \"127.0.0.1:3000\"\nlisten_on = 1\n").expect("write");
    check_failure(
        &mut serve(&["--config", file.to_str().expect("text")]),
        parent.path(),
        2,
        expect![[r#"
            error: DATA/soulbox.toml line 2, column 1: unknown setting `listen_on`
            hint: known are data_dir, listen, domain, tls_cert, tls_key, insecure, pool_size, warm, parked, front_uid, egress_allow_internal, max_connections, memory_reserve, max_sandbox_hours, max_sandboxes, max_requests, template_images, keep_builds, rate_limits, admin_listen, criu, store, database_url, log_format, log
        "#]],
    );
    check_failure(
        &mut serve(&["--no-such-flag"]),
        &data,
        2,
        expect![[r#"
        error: unexpected argument '--no-such-flag' found
        hint: see soulbox --help
    "#]],
    );
    check_failure(
        &mut serve(&["--listn", "x"]),
        &data,
        2,
        expect![[r#"
        error: unexpected argument '--listn' found
        hint: a similar argument exists: '--listen'
    "#]],
    );
    check_failure(
        &mut serve(&["--listen"]),
        &data,
        2,
        expect![[r#"
        error: a value is required for '--listen <ADDRESS:PORT>' but none was supplied
        hint: see soulbox --help
    "#]],
    );
    check_failure(
        &mut soulbox(&["template", "build"]),
        &data,
        2,
        expect![[r#"
        error: the following required arguments were not provided: <FOLDER>
        hint: see soulbox --help
    "#]],
    );
    assert!(!data.exists());
}

#[test]
fn without_root_it_says_so() {
    // Where nobody can look into the build's directory.
    let place = tempfile::tempdir().expect("temporary directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = place.path().join("soulbox");
    fs::copy(env!("CARGO_BIN_EXE_soulbox"), &copy).expect("copy");
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&copy);
        command
            .args(arguments)
            .env("SOULBOX_CONFIG", "/dev/null")
            .uid(NOBODY)
            .gid(NOBODY);
        command
    };
    check_failure(
        &mut as_nobody(&["serve"]),
        place.path(),
        1,
        expect![[r#"
        error: soulbox serve must run as root
        hint: start it with sudo
    "#]],
    );
    check_failure(
        &mut as_nobody(&["clean"]),
        place.path(),
        1,
        expect![[r#"
        error: soulbox clean must run as root
        hint: start it with sudo
    "#]],
    );
    let doctor = as_nobody(&["doctor", "--json"]).output().expect("run");
    assert_eq!(doctor.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("json");
    assert_eq!(report["ok"], false);
    assert_eq!(report["checks"][0]["name"], "root");
    assert_eq!(report["checks"][0]["state"], "missing");
    assert_eq!(report["checks"][0]["mend"], "run it with sudo");
}

#[test]
fn the_doctor_finds_this_machine_able_and_leaves_nothing() {
    let output = soulbox(&["doctor", "--json"]).output().expect("run");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert_eq!(report["ok"], true, "{report:#}");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("read");
    assert!(
        !mounts
            .lines()
            .any(|line| line.contains("/.tmp") && line.contains("/pool btrfs")),
        "{mounts}"
    );
}

#[test]
fn templates_are_listed_from_the_pool() {
    let data = tempfile::tempdir().expect("temporary directory");
    let path = data.path().to_str().expect("text");
    let list = |more: &[&str]| {
        let mut command = soulbox(&["template", "list", "--local", "--data-dir", path]);
        command.args(more).env("SOULBOX_POOL_SIZE", "256MiB");
        command.output().expect("run")
    };
    let (table, json) = (list(&[]), list(&["--json"]));
    // No server and no sandbox needs the pool, so the command leaves no mount behind.
    let mounts = fs::read_to_string("/proc/self/mounts").expect("read");
    assert!(!mounts.contains(path), "{mounts}");
    assert_eq!(text(table).lines().count(), 1, "only the heading");
    assert_eq!(text(json), "[]\n");
}
