use std::fs;

use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("file");
    }
    folder
}

#[test]
fn users_and_variables_come_before_the_dockerfile() {
    let config = "env = { A = '1' }\n[[users]]\nname = 'w'\n[[users]]\nname = 'o'\nsudo = true\n";
    let made = folder(&[
        ("soulbox.toml", config),
        ("Dockerfile", "FROM x\nCOPY f .\nUSER w"),
        ("f", "1"),
    ]);
    let project = Project::open(made.path(), None).expect("right");
    let (steps, copied) = project.steps().expect("files");
    let shown: Vec<_> = steps
        .iter()
        .map(|it| format!("{} {}", it.kind, it.args.join(" ")))
        .collect();
    assert_eq!(
        shown,
        [
            "USER w false",
            "USER o true",
            "ENV A 1",
            "USER root",
            "WORKDIR /",
            "COPY f .  ",
            "USER w",
            "WORKDIR /home/user"
        ]
    );
    let hash = steps[5].files_hash.clone().expect("a digest");
    assert_eq!(copied, BTreeMap::from([(hash, "f".to_owned())]));
}

#[test]
fn the_files_of_a_folder_are_looked_for_in_order() {
    let made = folder(&[
        ("soulbox.toml", "cpu_count = 4"),
        ("e2b.toml", "cpu_count = 1"),
        ("Dockerfile", "FROM last"),
        ("e2b.Dockerfile", "FROM first"),
        ("own", "FROM own"),
    ]);
    let project = Project::open(made.path(), None).expect("right");
    assert_eq!(
        (project.config.cpu_count, project.recipe.image.as_str()),
        (Some(4), "first")
    );
    let own = Project::open(made.path(), Some(Path::new("own"))).expect("right");
    assert_eq!(own.recipe.image, "own");
    fs::remove_file(made.path().join("soulbox.toml")).expect("there");
    let project = Project::open(made.path(), None).expect("right");
    assert_eq!(project.config.cpu_count, Some(1));
}

#[test]
fn mistakes_name_their_file() {
    let made = folder(&[
        ("e2b.toml", "\ncpu_count = 3"),
        ("Dockerfile", "FROM x\nCOPY --from=a b c"),
    ]);
    let said = Project::open(made.path(), None)
        .expect_err("wrong")
        .to_string();
    assert!(
        said.contains("e2b.toml: line 2, column 13: 3 CPUs"),
        "{said}"
    );
    fs::write(made.path().join("e2b.toml"), "").expect("written");
    let said = Project::open(made.path(), None)
        .expect_err("wrong")
        .to_string();
    assert!(
        said.ends_with("Dockerfile: line 2: COPY --from is not supported"),
        "{said}"
    );
    let empty = folder(&[]);
    let said = Project::open(empty.path(), None)
        .expect_err("wrong")
        .to_string();
    assert!(
        said.ends_with("has none of soulbox.Dockerfile, e2b.Dockerfile, Dockerfile"),
        "{said}"
    );
}
