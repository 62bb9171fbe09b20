use super::*;

fn wrong(text: &str) -> Vec<String> {
    let mistakes = TemplateConfig::read(text).expect_err(text);
    mistakes.iter().map(ToString::to_string).collect()
}

#[test]
fn every_key_is_read() {
    let text = r#"
        template_name = "team/app:v1"
        dockerfile = "app.Dockerfile"
        start_cmd = "serve"
        ready_cmd = "curl localhost"
        cpu_count = 4
        memory_mb = 128
        disk_mb = 2048
        team = "t"
        env = { A = "1", _b2 = "" }
        [[users]]
        name = "worker"
        sudo = true
        [[users]]
        name = "_other-1"
        [network]
        allow_internet_access = false
        allow_out = ["1.1.1.1", "151.101.0.0/16"]
        deny_out = ["0.0.0.0/0", "::/0"]
        [idle]
        timeout = 600
        on_timeout = "pause"
        keep_memory = true
        auto_resume = true
    "#;
    let read = TemplateConfig::read(text).expect("right");
    assert_eq!(read.memory_mb, Some(128));
    assert_eq!(read.env.len(), 2);
    assert_eq!(
        read.users
            .iter()
            .map(|it| (it.name.as_str(), it.sudo))
            .collect::<Vec<_>>(),
        [("worker", true), ("_other-1", false)]
    );
    let sent = serde_json::to_value(read.sandbox_defaults()).expect("JSON");
    let expected = serde_json::json!({
        "timeout": 600, "autoPause": true, "autoPauseMemory": true, "autoResume": {"enabled": true},
        "allow_internet_access": false,
        "network": {"allowOut": ["1.1.1.1", "151.101.0.0/16"], "denyOut": ["0.0.0.0/0", "::/0"]},
    });
    assert_eq!(sent, expected);
    assert_eq!(TemplateConfig::read(""), Ok(TemplateConfig::default()));
    let empty = TemplateConfig::read("[network]\n[idle]\n").expect("right");
    assert!(empty.sandbox_defaults().is_none(), "nothing was said");
}

#[test]
fn e2b_toml_is_read_as_it_is() {
    let new =
        "template_id = 'x'\ntemplate_name = 'n'\ndockerfile = 'e2b.Dockerfile'\nteam_id = 't'\n";
    let old = "id = 'x'\nname = 'n'\ndockerfile = 'e2b.Dockerfile'\nteam_id = 't'\n";
    let read = TemplateConfig::read(old).expect("right");
    assert_eq!(read.template_id.as_deref(), Some("x"));
    assert_eq!(read.team.as_deref(), Some("t"));
    assert_eq!(TemplateConfig::read(new), Ok(read));
    assert_eq!(
        wrong("id = 'x'\ntemplate_id = 'y'"),
        ["line 1, column 1: duplicate field `template_id`"]
    );
}

#[test]
fn mistakes_are_named_with_their_place() {
    assert_eq!(
        wrong(
            "cpu_count = 3\n\n  memory_mb = 513\ntemplate_name = 'A b'\n[env]\nOK = '1'\n'1x' = ''\n"
        ),
        [
            "line 1, column 13: 3 CPUs: it must be 1 or an even number, 32 at most",
            "line 3, column 15: 513 MiB: it must be an even number, 128 at least",
            "line 4, column 17: `A b` is not a name of at most 128 characters of a-z, 0-9, - and _, with or without a team before it and a tag after it",
            "line 7, column 1: `1x` is not the name of a variable",
        ]
    );
    assert_eq!(
        wrong("memory_mb = 126"),
        ["line 1, column 13: 126 MiB: it must be an even number, 128 at least"]
    );
    let users = wrong("[[users]]\nname = 'a'\n[[users]]\nsudo = true\nname = '1a'\n");
    assert!(users[0].starts_with("line 5, column 8: `1a`"), "{users:?}");
    assert_eq!(users.len(), 1);
    assert_eq!(
        wrong("start_cmd = ' '"),
        ["line 1, column 13: `start_cmd` is empty"]
    );
    assert_eq!(wrong("name = 'x y'").len(), 1);
}

#[test]
fn what_a_create_could_not_say_is_refused_of_its_defaults() {
    assert_eq!(
        wrong(
            "[network]\nallow_out = [\n  '1.1.1.1',\n  'pypi.org', '::1',\n]\ndeny_out = ['0.0.0.0', '8.8.8.8/33']\n"
        ),
        [
            "line 4, column 3: `pypi.org` is a domain, which cannot be allowed yet",
            "line 4, column 15: `::1` is of IPv6, which sandboxes do not speak yet",
            "line 6, column 13: `0.0.0.0` is no address or range to deny",
            "line 6, column 24: `8.8.8.8/33` is no address or range to deny",
        ]
    );
    let many = format!("network.deny_out = [{}]", "'1.1.1.1', ".repeat(257));
    assert_eq!(
        wrong(&many),
        ["line 1, column 1: a list has more than 256 entries"]
    );
    assert_eq!(
        wrong("[idle]\ntimeout = 0\nkeep_memory = false\nauto_resume = true\n"),
        [
            "line 2, column 11: 0 seconds: it must be 1 at least",
            "line 3, column 15: `keep_memory` needs `on_timeout = \"pause\"`",
            "line 4, column 15: `auto_resume` needs `on_timeout = \"pause\"`, and memory",
        ]
    );
    let disk = "idle = { on_timeout = 'pause', keep_memory = false, auto_resume = true }";
    assert_eq!(wrong(disk).len(), 1);
    for (text, place) in [
        ("[idle]\non_timeout = 'sleep'", "line 2, column 14"),
        ("[idle]\ntimeout = '5m'", "line 2, column 11"),
        ("[network]\nrules = {}", "line 2, column 1"),
        ("network = 'open'", "line 1, column 11"),
    ] {
        let found = wrong(text);
        assert!(found[0].starts_with(place), "{text}: {found:?}");
    }
}

#[test]
fn the_form_has_a_place_too() {
    for (text, place) in [
        ("a = ", "line 1, column 5"),
        ("\n\ncolour = 1", "line 3, column 1"),
        ("cpu_count = 'two'", "line 1, column 13"),
        ("[[users]]\nname = 'a'\nroot = true", "line 3, column 1"),
        ("cpu_count = -1", "line 1, column 13"),
    ] {
        let found = wrong(text);
        assert!(
            found.len() == 1 && found[0].starts_with(place),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn what_nothing_keeps_is_refused_by_name() {
    assert_eq!(
        wrong("cpu_count = 2\n  profile = 'strict'\n\n[[mounts]]\npath = '/x'\n"),
        [
            "line 2, column 3: `profile` has no meaning yet: there is one kind of isolation",
            "line 4, column 3: `mounts` has no meaning yet: there are no volumes yet; COPY files in, or write them into the sandbox",
        ]
    );
}

#[test]
fn the_schema_in_the_documentation_is_current() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/soulbox-toml.schema.json"
    );
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    // The order of keys is that of the library, and of who else uses it.
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap_or_default();
    let current = TemplateConfig::schema();
    assert!(
        value(&kept) == value(&current),
        "run: soulbox template schema > docs/soulbox-toml.schema.json\n{current}"
    );
    assert_eq!(
        value(&current)["properties"]["memory_mb"]["multipleOf"],
        serde_json::json!(2)
    );
}

/// Each block of the page that is a whole file is read; those that are marked as wrong are refused as the page says.
#[test]
fn examples_of_the_documentation_are_right() {
    let page = include_str!("../../../../docs/soulbox-toml.md");
    let (mut right, mut refused) = (0, 0);
    for block in page.split("```toml").skip(1) {
        let (mark, rest) = block.split_once('\n').expect("a line");
        let text = rest.split("```").next().expect("a block");
        match (mark.trim(), TemplateConfig::read(text)) {
            ("", Ok(_)) => right += 1,
            ("refused", Err(mistakes)) => {
                let said = mistakes[0].to_string();
                assert!(page.contains(&said), "the page does not say: {said}");
                refused += 1;
            }
            (mark, read) => panic!("{mark}: {text}\n{read:?}"),
        }
    }
    assert!(right >= 4 && refused >= 2, "{right} {refused}");
}
