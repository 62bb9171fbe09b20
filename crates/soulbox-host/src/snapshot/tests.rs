//! What is refused: every change of a manifest or an image.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;

use super::*;

fn manifest() -> Manifest {
    let subject = Subject {
        snapshot_id: "snap".to_owned(),
        sandbox_id: "iabc".to_owned(),
        epoch: 3,
        build_id: "build".to_owned(),
        after: After::End,
        created_at: 5,
    };
    let basis = RootBasis {
        layers: vec!["ab".repeat(32)],
        default_user: "user".to_owned(),
        default_workdir: "/home/user".to_owned(),
    };
    Manifest::new(subject, basis)
}

fn snapshot(text: String) -> Snapshot {
    Snapshot {
        name: "snap".to_owned(),
        images: "/nowhere".into(),
        disk_bytes: 1,
        manifest: text,
    }
}

#[test]
fn only_what_this_installation_sealed_is_opened() {
    let key = Key::derive(b"secret");
    let text = key.seal(&manifest()).expect("sealed");
    let opened = key.open(&snapshot(text.clone())).expect("opened");
    assert_eq!(opened, manifest());
    let other = Key::derive(b"another secret");
    let foreign = other.open(&snapshot(text.clone()));
    assert!(
        matches!(foreign, Err(RefusedError::Mark(MarkError::Foreign))),
        "{foreign:?}"
    );
    let moved = Snapshot {
        name: "elsewhere".to_owned(),
        ..snapshot(text)
    };
    let moved = key.open(&moved);
    assert!(
        matches!(moved, Err(RefusedError::Misplaced(_))),
        "{moved:?}"
    );
}

#[test]
fn no_changed_byte_of_a_manifest_is_taken() {
    let key = Key::derive(b"secret");
    let text = key.seal(&manifest()).expect("sealed").into_bytes();
    for at in 0..text.len() {
        let mut changed = text.clone();
        changed[at] ^= 1;
        let Ok(changed) = String::from_utf8(changed) else {
            continue;
        };
        // Letters of hex digits mean the same in both cases; no bit of ours changes only that.
        let refused = key.open(&snapshot(changed));
        assert!(refused.is_err(), "byte {at}");
        let cut = String::from_utf8(text[..at].to_vec()).expect("ASCII");
        assert!(key.open(&snapshot(cut)).is_err(), "cut at {at}");
    }
}

#[test]
fn another_form_is_refused_by_its_number() {
    let key = Key::derive(b"secret");
    let mut later = manifest();
    later.version = VERSION + 1;
    let text = key.seal(&later).expect("sealed");
    let refused = key.open(&snapshot(text));
    assert!(
        matches!(refused, Err(RefusedError::Version(2))),
        "{refused:?}"
    );
}

#[test]
fn every_change_of_the_images_is_found() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    // More than one part, so that the last byte is in another one than the first.
    let pages: Vec<u8> = (0..(33_u32 << 20)).map(|at| (at >> 7) as u8).collect();
    fs::write(path("pages-1.img"), &pages).expect("write");
    fs::write(path("core-1.img"), "core").expect("write");
    fs::write(path("empty.img"), "").expect("write");
    fs::write(path("dump.log"), "for people").expect("write");
    let here = Fingerprint::of_this_host("4.2").expect("a host");
    let begun = Begun::default();
    let memory =
        Memory::of(folder.path(), &begun, "g".into(), "00".into(), here.clone()).expect("read");
    assert_eq!(memory.images.len(), 3);
    memory.fits(&here).expect("the same host");
    // All at once, and as a restore does it.
    let verify = || {
        let at_once = memory.check(folder.path());
        let apart = memory
            .check_processes(folder.path())
            .and_then(|()| memory.check_contents(folder.path()));
        let text = |found: &Result<(), RefusedError>| found.as_ref().err().map(ToString::to_string);
        assert_eq!(text(&at_once), text(&apart));
        at_once
    };
    verify().expect("unchanged");
    fs::write(path("dump.log"), "more for people").expect("write");
    verify().expect("a log is no image");

    for at in [0, 32 << 20, pages.len() - 1] {
        let mut flipped = pages.clone();
        flipped[at] ^= 0x10;
        fs::write(path("pages-1.img"), flipped).expect("write");
        let refused = verify().expect_err("a flipped bit");
        assert_eq!(
            refused.to_string(),
            "its image `pages-1.img` was changed",
            "byte {at}"
        );
    }
    fs::write(path("pages-1.img"), &pages[..pages.len() - 1]).expect("write");
    let refused = verify().expect_err("truncated").to_string();
    assert!(
        refused.contains("34603007 bytes and had 34603008"),
        "{refused}"
    );
    let before_it_begins = memory.check_processes(folder.path());
    assert!(before_it_begins.is_err(), "CRIU would wait for the rest");
    fs::write(path("pages-1.img"), &pages).expect("write");
    fs::write(path("more.img"), "").expect("write");
    let refused = verify().expect_err("one too many").to_string();
    assert_eq!(
        refused,
        "there is an image `more.img` that its manifest does not name"
    );
    fs::remove_file(path("more.img")).expect("delete");
    fs::remove_file(path("core-1.img")).expect("delete");
    let refused = verify().expect_err("one too few").to_string();
    assert_eq!(refused, "its image `core-1.img` is missing");

    let other = Fingerprint {
        criu: "9".to_owned(),
        ..here
    };
    let refused = memory.fits(&other).expect_err("another CRIU");
    assert!(matches!(
        refused,
        RefusedError::OtherHost { what: "CRIU", .. }
    ));
}

#[test]
fn what_was_read_while_it_was_written_has_the_same_digests() {
    let folder = tempfile::tempdir().expect("folder");
    let digests = |begun: &Begun| digest::of(folder.path(), Which::All, begun).expect("read");
    fs::write(folder.path().join("core-1.img"), "core").expect("write");
    let follower = Follower::start(folder.path().to_owned()).expect("a thread");
    // Into a third part, in pieces that are no multiples of what is read at once.
    let pages: Vec<u8> = (0..(70_u32 << 20)).map(|at| (at >> 9) as u8).collect();
    let mut file = fs::File::create(folder.path().join("pages-1.img")).expect("create");
    for piece in pages.chunks(3 << 20) {
        file.write_all(piece).expect("write");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    fs::write(folder.path().join("pages-2.img"), "few").expect("write");
    let begun = follower.end();
    assert!(begun.bytes() > 32 << 20, "{}", begun.bytes());
    assert_eq!(digests(&begun), digests(&Begun::default()));
    // They are of what was read.
    file.write_all_at(b"changed", 5).expect("write");
    assert_ne!(digests(&begun), digests(&Begun::default()));
}
