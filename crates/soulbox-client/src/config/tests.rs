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
    assert_eq!(TemplateConfig::read(""), Ok(TemplateConfig::default()));
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
            "line 4, column 17: `A b` is not a name of at most 128 characters of a-z, 0-9, - and _, with or without a team before it and a tag after it",
            "line 1, column 13: 3 CPUs: it must be 1 or an even number, 32 at most",
            "line 3, column 15: 513 MiB: it must be an even number, 128 at least",
            "line 7, column 1: `1x` is not the name of a variable",
        ]
    );
    assert_eq!(
        wrong("memory_mb = 126"),
        ["line 1, column 13: 126 MiB: it must be an even number, 128 at least"]
    );
    assert_eq!(wrong("users = [{ name = '1a' }]").len(), 1);
    assert_eq!(
        wrong("start_cmd = ' '"),
        ["line 1, column 13: `start_cmd` is empty"]
    );
    assert_eq!(wrong("name = 'x y'").len(), 1);
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
    let found = wrong("mounts = ['/x']\n[network]\nallow = []\n[idle]\nafter = 5\n");
    assert_eq!(found.len(), 3, "{found:?}");
    for (key, line) in [("mounts", 1), ("network", 2), ("idle", 4)] {
        assert!(
            found
                .iter()
                .any(|it| it.contains(&format!("`{key}` has no meaning yet"))
                    && it.starts_with(&format!("line {line},"))),
            "{key}: {found:?}"
        );
    }
    assert!(wrong("profile = 'strict'")[0].contains("one kind of isolation"));
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
