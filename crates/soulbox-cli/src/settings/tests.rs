use std::path::Path;

use expect_test::{Expect, expect};

use super::*;
use crate::failure::Failure;

fn resolve(
    file: Option<&str>,
    environment: &[(&str, &str)],
    flags: &[(Setting, &str)],
) -> Result<Settings, Failure> {
    let directory = tempfile::tempdir().expect("temporary directory");
    // Without one the machine's own config file would be read.
    let path = directory.path().join("soulbox.toml");
    fs::write(&path, file.unwrap_or("")).expect("write");
    let environment = |name: &str| {
        environment
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    };
    let flags: Vec<Flag> = flags
        .iter()
        .map(|(key, value)| (*key, (*value).to_owned()))
        .collect();
    Settings::resolve(Some(&path), &environment, &flags).map_err(Failure::from)
}

/// Checks the text of a failure; the temporary directory is cut away.
fn check_failure(result: Result<Settings, Failure>, expected: Expect) {
    let failure = result.expect_err("refused");
    assert_eq!(
        format!("{:?}", failure.exit_code()),
        format!("{:?}", std::process::ExitCode::from(2))
    );
    let text = failure.to_string();
    let words: Vec<String> = text
        .split(' ')
        .map(|word| match word.rsplit_once('/') {
            Some((_, name)) if word.contains("/.tmp") => name.to_owned(),
            _ => word.to_owned(),
        })
        .collect();
    expected.assert_eq(&words.join(" "));
}

#[test]
fn flags_beat_variables_beat_the_file_beats_defaults() {
    let file = "warm = 1\nparked = 1\nmax_sandboxes = 1\n";
    let environment = [("SOULBOX_WARM", "2"), ("SOULBOX_PARKED", "2")];
    let settings = resolve(Some(file), &environment, &[(Setting::Warm, "3")]).expect("valid");
    assert_eq!(
        (
            settings.warm,
            settings.parked,
            settings.max_sandboxes,
            settings.max_sandbox_hours
        ),
        (3, 2, 1, 24)
    );
    assert_eq!(settings.data_dir, Path::new("/var/lib/soulbox"));
    assert_eq!(settings.listen.to_string(), "127.0.0.1:3000");
}

#[test]
fn every_key_can_be_set_in_every_place() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let pem = |name: &str, kind: &str| {
        let path = directory.path().join(name);
        fs::write(
            &path,
            format!("-----BEGIN {kind}-----\nAA==\n-----END {kind}-----\n"),
        )
        .expect("write");
        path.to_str().expect("text").to_owned()
    };
    let (cert, key) = (pem("cert", "CERTIFICATE"), pem("key", "PRIVATE KEY"));
    let value = |setting: Setting| match setting {
        Setting::DataDir => "/d",
        Setting::Listen => "0.0.0.0:443",
        Setting::Domain => "Box.Example.com",
        Setting::TlsCert => &cert,
        Setting::TlsKey => &key,
        Setting::Insecure => "true",
        Setting::PoolSize => "20GiB",
        Setting::Warm => "5",
        Setting::Parked => "6",
        Setting::FrontUid => "7",
        Setting::EgressAllowInternal => "10.1.0.0/16, 10.2.0.1/32",
        Setting::MaxConnections => "10",
        Setting::MemoryReserve => "11MiB",
        Setting::MaxSandboxHours => "8",
        Setting::MaxSandboxes => "9",
        Setting::MaxRequests => "9",
        Setting::RateLimits => r#"{"GET /v2/sandboxes": {"rate": 5, "burst": 10}}"#,
        Setting::AdminListen => "127.0.0.1:9090",
        Setting::Criu => "/c",
        Setting::TemplateImages => "strict",
        Setting::KeepBuilds => "12h",
        Setting::Store => "/s",
        Setting::DatabaseUrl => "postgres://soulbox:secret@127.0.0.1/soulbox",
        Setting::LogFormat => "json",
        Setting::Log => "warn,soulbox_host=debug",
    };
    let flags: Vec<(Setting, &str)> = Setting::ALL
        .map(|setting| (setting, value(setting)))
        .to_vec();
    let by_flags = resolve(None, &[], &flags).expect("valid");

    let names = Setting::ALL.map(Setting::variable);
    let variables: Vec<(&str, &str)> = names
        .iter()
        .zip(&flags)
        .map(|(name, flag)| (name.as_str(), flag.1))
        .collect();
    assert_eq!(resolve(None, &variables, &[]).expect("valid"), by_flags);

    let file: String = flags
        .iter()
        .map(|(setting, value)| format!("{} = {value:?}\n", setting.name()))
        .collect();
    assert_eq!(resolve(Some(&file), &[], &[]).expect("valid"), by_flags);
    let typed = file
        .replace("\"true\"", "true")
        .replace("\"5\"", "5")
        .replace(
            "\"10.1.0.0/16, 10.2.0.1/32\"",
            "[\"10.1.0.0/16\", \"10.2.0.1/32\"]",
        );
    assert_eq!(resolve(Some(&typed), &[], &[]).expect("valid"), by_flags);

    assert_eq!(by_flags.pool_size, Some(MiB(20 << 10)));
    assert_eq!(by_flags.keep_builds, Duration::from_secs(12 * 3600));
    assert_eq!(by_flags.domain.as_deref(), Some("box.example.com"));
    assert_eq!(by_flags.egress_allow_internal.len(), 2);
    assert!(
        !format!("{by_flags:?}").contains("PRIVATE KEY"),
        "keys stay out of logs"
    );
}

#[test]
fn mistakes_in_the_file_name_their_place() {
    check_failure(
        resolve(Some("warm = 1\n  colour = \"red\"\n"), &[], &[]),
        expect![[r#"
            error: soulbox.toml line 2, column 3: unknown setting `colour`
            hint: known are data_dir, listen, domain, tls_cert, tls_key, insecure, pool_size, warm, parked, front_uid, egress_allow_internal, max_connections, memory_reserve, max_sandbox_hours, max_sandboxes, max_requests, template_images, keep_builds, rate_limits, admin_listen, criu, store, database_url, log_format, log"#]],
    );
    check_failure(
        resolve(Some("warm = 1\nlisten = 3000\n"), &[], &[]),
        expect![[r#"
        error: soulbox.toml line 2, column 10: `3000` is not an address with a port, such as 127.0.0.1:3000
        hint: correct soulbox.toml line 2, column 10"#]],
    );
    check_failure(
        resolve(Some("warm = \n"), &[], &[]),
        expect![[r#"
        error: soulbox.toml line 1, column 8: string values must be quoted, expected literal string
        hint: the config file is TOML, with lines such as listen = "127.0.0.1:3000""#]],
    );
    check_failure(
        resolve(Some("[pool]\nsize = 1\n"), &[], &[]),
        expect![[r#"
        error: soulbox.toml line 1, column 2: unknown setting `pool`
        hint: known are data_dir, listen, domain, tls_cert, tls_key, insecure, pool_size, warm, parked, front_uid, egress_allow_internal, max_connections, memory_reserve, max_sandbox_hours, max_sandboxes, max_requests, template_images, keep_builds, rate_limits, admin_listen, criu, store, database_url, log_format, log"#]],
    );
    check_failure(
        resolve(Some("log = { a = 1 }\n"), &[], &[]),
        expect![[r#"
        error: soulbox.toml line 1, column 7: `{ a = 1 }` is not a text, number, true, false or list of texts
        hint: correct soulbox.toml line 1, column 7"#]],
    );
}

#[test]
fn bad_values_say_what_is_wanted() {
    check_failure(
        resolve(None, &[("SOULBOX_WARM", "-1")], &[]),
        expect![[r#"
        error: SOULBOX_WARM: `-1` is not a number from 0 to 1000
        hint: correct SOULBOX_WARM"#]],
    );
    check_failure(
        resolve(None, &[], &[(Setting::Listen, "localhost")]),
        expect![[r#"
        error: --listen: `localhost` is not an address with a port, such as 127.0.0.1:3000
        hint: correct --listen"#]],
    );
    check_failure(
        resolve(None, &[], &[(Setting::PoolSize, "20")]),
        expect![[r#"
        error: --pool-size: `20` is not a size such as 512MiB or 20GiB
        hint: correct --pool-size"#]],
    );
    check_failure(
        resolve(None, &[], &[(Setting::Domain, "10.0.0.1")]),
        expect![[r#"
        error: --domain: `10.0.0.1` is not a domain such as sandbox.example.com
        hint: correct --domain"#]],
    );
    check_failure(
        resolve(None, &[], &[(Setting::EgressAllowInternal, "10.0.0.0/33")]),
        expect![[r#"
        error: --egress-allow-internal: `10.0.0.0/33` is not an IPv4 range such as 10.1.0.0/16
        hint: correct --egress-allow-internal"#]],
    );
    check_failure(
        resolve(None, &[], &[(Setting::FrontUid, "0")]),
        expect![[r#"
        error: --front-uid: `0` is not a number from 1 to 1879048191
        hint: correct --front-uid"#]],
    );
    check_failure(
        resolve(None, &[], &[(Setting::LogFormat, "xml")]),
        expect![[r#"
        error: --log-format: `xml` is not text or json
        hint: correct --log-format"#]],
    );
}

#[test]
fn settings_that_do_not_fit_together_are_refused() {
    check_failure(
        resolve(None, &[], &[(Setting::Listen, "0.0.0.0:3000")]),
        expect![[r#"
        error: others can reach 0.0.0.0:3000, and there is no TLS
        hint: give --tls-cert and --tls-key, listen on 127.0.0.1, or accept plain text with --insecure"#]],
    );
    assert!(
        resolve(
            None,
            &[("SOULBOX_INSECURE", "true")],
            &[(Setting::Listen, "0.0.0.0:3000")]
        )
        .is_ok()
    );
    check_failure(
        resolve(None, &[], &[(Setting::TlsCert, "/cert.pem")]),
        expect![[r#"
        error: tls_cert is set and tls_key is not
        hint: give both, or neither: --tls-key"#]],
    );
    check_failure(
        resolve(
            None,
            &[],
            &[
                (Setting::TlsCert, "/nowhere/cert.pem"),
                (Setting::TlsKey, "/nowhere/key.pem"),
            ],
        ),
        expect![[r#"
            error: failed to read the TLS certificate `/nowhere/cert.pem`: No such file or directory (os error 2)
            hint: give the path of a file that root can read"#]],
    );
    check_failure(
        resolve(
            None,
            &[],
            &[
                (Setting::TlsCert, "/etc/hostname"),
                (Setting::TlsKey, "/etc/hostname"),
            ],
        ),
        expect![[r#"
        error: `/etc/hostname` contains no TLS certificate in PEM form
        hint: a PEM file has lines such as -----BEGIN CERTIFICATE-----"#]],
    );
}

#[test]
fn a_named_file_must_exist() {
    let result = Settings::resolve(Some(Path::new("/nowhere/soulbox.toml")), &|_| None, &[]);
    check_failure(
        result.map_err(Failure::from),
        expect![[r#"
        error: failed to read config file `/nowhere/soulbox.toml`: No such file or directory (os error 2)
        hint: name a readable file with --config or SOULBOX_CONFIG"#]],
    );
}

#[test]
fn an_empty_variable_is_no_value() {
    assert_eq!(
        resolve(None, &[("SOULBOX_DOMAIN", "")], &[])
            .expect("valid")
            .domain,
        None
    );
}

#[test]
fn figures_are_told_to_this_machine_only_and_limits_name_routes() {
    for (variable, value, said) in [
        ("SOULBOX_ADMIN_LISTEN", "0.0.0.0:9090", "a loopback address"),
        ("SOULBOX_ADMIN_LISTEN", "9090", "a loopback address"),
        (
            "SOULBOX_RATE_LIMITS",
            r#"{"GET /nowhere": {"rate": 1, "burst": 1}}"#,
            "`GET /nowhere` is none",
        ),
        ("SOULBOX_RATE_LIMITS", "5/s", "JSON of routes"),
    ] {
        let error = resolve(None, &[(variable, value)], &[]).expect_err(value);
        let text = error.to_string();
        assert!(text.contains(said) && text.contains(variable), "{text}");
    }
}
