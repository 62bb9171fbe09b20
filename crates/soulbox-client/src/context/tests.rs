use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn tree(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, file).expect("file");
    }
    folder
}

fn found(folder: &Path, source: &str) -> Vec<String> {
    let folder = Folder::open(folder).expect("opened");
    let files = folder.find(source).expect(source);
    files
        .entries
        .iter()
        .map(|(path, _)| path.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_source_is_a_file_a_folder_or_a_pattern() {
    let folder = tree(&[
        "a.txt",
        "b.txt",
        ".dot",
        "sub/c.txt",
        "sub/deep/.d",
        "odd[1].txt",
    ]);
    let path = folder.path();
    assert_eq!(found(path, "a.txt"), ["a.txt"]);
    assert_eq!(
        found(path, "./sub/"),
        ["sub", "sub/c.txt", "sub/deep", "sub/deep/.d"]
    );
    assert_eq!(found(path, "*.txt"), ["a.txt", "b.txt", "odd[1].txt"]);
    assert_eq!(
        found(path, "s*"),
        ["sub", "sub/c.txt", "sub/deep", "sub/deep/.d"]
    );
    assert_eq!(found(path, "odd[1].txt"), ["odd[1].txt"]);
    assert_eq!(found(path, ".").len(), 8);
}

#[test]
fn nothing_outside_is_taken() {
    let folder = tree(&["in/a"]);
    symlink("/etc", folder.path().join("out")).expect("link");
    let opened = Folder::open(folder.path()).expect("opened");
    for bad in ["../x", "in/../../x", "/etc/passwd", "out/passwd"] {
        let refused = opened.find(bad);
        assert!(
            matches!(refused, Err(ContextError::Outside { .. })),
            "{bad}: {refused:?}"
        );
    }
    assert!(matches!(
        opened.find("no*"),
        Err(ContextError::Nothing { .. })
    ));
    // A link itself is copied as one.
    assert_eq!(found(folder.path(), "out"), ["out"]);
}

#[test]
fn what_is_ignored_is_not_taken() {
    let folder = tree(&[
        "a.log",
        "keep.log",
        "node_modules/x/y",
        "src/a.log",
        "src/main",
        "src/tmp/x",
    ]);
    let text = "# comment\n*.log\n!keep.log\n/node_modules/\n**/tmp\n.dockerignore\n";
    fs::write(folder.path().join(".dockerignore"), text).expect("written");
    assert_eq!(
        found(folder.path(), "."),
        ["keep.log", "src", "src/a.log", "src/main"]
    );
    let opened = Folder::open(folder.path()).expect("opened");
    assert!(matches!(
        opened.find("node_modules"),
        Err(ContextError::Nothing { .. })
    ));
    fs::write(folder.path().join(".dockerignore"), "src\n!src/main\n").expect("written");
    assert_eq!(found(folder.path(), "src"), ["src/main"]);
}

#[test]
fn a_digest_is_of_names_modes_and_contents() {
    let folder = tree(&["d/a", "d/b"]);
    let digest = || {
        Folder::open(folder.path())
            .expect("opened")
            .find("d")
            .expect("found")
            .digest()
            .expect("read")
    };
    let first = digest();
    assert_eq!((first.len(), &digest()), (64, &first));
    fs::write(folder.path().join("d/a"), "other").expect("written");
    let second = digest();
    assert_ne!(second, first);
    fs::set_permissions(folder.path().join("d/a"), fs::Permissions::from_mode(0o700))
        .expect("mode");
    let third = digest();
    assert_ne!(third, second);
    fs::rename(folder.path().join("d/b"), folder.path().join("d/c")).expect("renamed");
    assert_ne!(digest(), third);
}

#[test]
fn an_archive_has_what_was_found() {
    let folder = tree(&["d/a", &format!("d/{}", "long".repeat(40))]);
    symlink("nowhere", folder.path().join("d/link")).expect("link");
    let opened = Folder::open(folder.path()).expect("opened");
    let (file, length) = opened.find("d").expect("found").archive().expect("packed");
    assert_eq!(file.metadata().expect("there").len(), length);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let names: Vec<_> = archive
        .entries()
        .expect("an archive")
        .map(|it| it.expect("an entry"))
        .map(|it| {
            (
                it.path().expect("a path").to_string_lossy().into_owned(),
                it.header().entry_type(),
            )
        })
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(names[0].0.trim_end_matches('/'), "d");
    assert_eq!(
        names[3],
        (
            "d/longlong".to_owned() + &"long".repeat(38),
            tar::EntryType::Regular
        )
    );
    assert_eq!(names[2], ("d/link".to_owned(), tar::EntryType::Symlink));
}
