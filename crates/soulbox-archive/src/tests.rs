//! On a directory: what goes in comes out, what is equal is stored once, and nothing that was changed is handed out.

use std::fs;
use std::path::PathBuf;

use super::*;

struct Store {
    runtime: tokio::runtime::Runtime,
    root: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .build()
                .expect("a runtime"),
            root: tempfile::tempdir().expect("a folder"),
        }
    }

    fn open(&self, secret: &[u8]) -> Archive {
        let runtime = self.runtime.handle().clone();
        Archive::open(self.root.path(), secret, runtime).expect("a store")
    }

    fn chunks(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.root.path().join("chunks")).expect("chunks");
        let files =
            folders.flat_map(|folder| fs::read_dir(folder.expect("one").path()).expect("it"));
        files.map(|file| file.expect("one").path()).collect()
    }
}

/// Bytes that compress badly and have no period.
fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn seal(archive: &Archive, name: &str, bytes: &[u8]) -> Added {
    let held = archive.hold().expect("held");
    let (stream, added) = archive.put_stream(bytes).expect("stored");
    assert_eq!(stream.bytes, bytes.len() as u64);
    let artifact = Artifact {
        note: format!("note of {name}"),
        streams: [("only".to_owned(), stream)].into(),
    };
    archive.put(name, &artifact).expect("sealed");
    drop(held);
    added
}

fn content(archive: &Archive, name: &str) -> Result<Vec<u8>, ArchiveError> {
    let artifact = archive.get(name)?;
    assert_eq!(artifact.note, format!("note of {name}"));
    let mut bytes = Vec::new();
    archive.get_stream(&artifact.streams["only"], &mut bytes)?;
    Ok(bytes)
}

#[test]
fn what_goes_in_comes_out() {
    let store = Store::new();
    let archive = store.open(b"secret");
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("small", b"small".to_vec()),
        ("zeros", vec![0; 3 << 20]),
        ("large", noise(5 << 20, 1)),
    ] {
        seal(&archive, name, &bytes);
        assert!(content(&archive, name).expect(name) == bytes, "{name}");
        archive.verify(name).expect(name);
    }
    assert_eq!(
        archive.names().expect("names"),
        ["empty", "large", "small", "zeros"]
    );
    let absent = archive.get("absent");
    assert!(
        matches!(absent, Err(ArchiveError::ArtifactMissing { .. })),
        "{absent:?}"
    );
}

#[test]
fn a_change_costs_little_more_than_itself() {
    let store = Store::new();
    let archive = store.open(b"secret");
    let mut bytes = noise(8 << 20, 7);
    let first = seal(&archive, "first", &bytes);
    assert!(first.bytes > 8 << 20, "{first:?}");
    let same = seal(&archive, "same", &bytes);
    assert_eq!(same, Added::default());
    // A byte more moves all others, and the cuts with them.
    bytes.insert(4 << 20, 1);
    let second = seal(&archive, "second", &bytes);
    assert!(second.bytes < 600 << 10, "{second:?}");
    assert!(content(&archive, "second").expect("second") == bytes);
}

#[test]
fn no_changed_chunk_is_handed_out_and_a_new_seal_makes_it_whole() {
    let store = Store::new();
    let archive = store.open(b"secret");
    let bytes = noise(1 << 20, 3);
    seal(&archive, "one", &bytes);
    for path in store.chunks() {
        let whole = fs::read(&path).expect("read");
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x04;
        let longer = [&whole[..], &vec![0; 1 << 20]].concat();
        for changed in [&flipped[..], &whole[..whole.len() - 1], &[], &longer] {
            fs::write(&path, changed).expect("write");
            let refused = content(&archive, "one").expect_err("it was changed");
            assert!(
                matches!(refused, ArchiveError::ChunkDamaged { .. }) && refused.is_refusal(),
                "{refused:?}"
            );
            assert!(archive.verify("one").is_err());
        }
        fs::remove_file(&path).expect("delete");
        let refused = content(&archive, "one").expect_err("it is gone");
        assert!(
            matches!(refused, ArchiveError::ChunkMissing { .. }),
            "{refused:?}"
        );
        fs::write(&path, &flipped).expect("write");
        let added = seal(&archive, "one", &bytes);
        assert_eq!(added.objects, 1);
        assert!(content(&archive, "one").expect("whole again") == bytes);
    }
}

#[test]
fn only_artifacts_of_this_installation_in_their_place_are_believed() {
    let store = Store::new();
    let archive = store.open(b"secret");
    seal(&archive, "one", b"bytes");
    let foreign = store.open(b"another secret").get("one");
    assert!(
        matches!(foreign, Err(ArchiveError::NotOurs { .. })),
        "{foreign:?}"
    );
    let path = store.root.path().join("snapshots/one.json");
    let text = fs::read(&path).expect("read");
    fs::write(store.root.path().join("snapshots/two.json"), &text).expect("copy");
    let moved = archive.get("two");
    assert!(
        matches!(moved, Err(ArchiveError::Misplaced { .. })),
        "{moved:?}"
    );
    for at in 0..text.len() {
        let mut changed = text.clone();
        changed[at] ^= 1;
        fs::write(&path, &changed).expect("write");
        assert!(
            archive.get("one").expect_err("changed").is_refusal(),
            "{at}"
        );
        fs::write(&path, &text[..at]).expect("cut");
        assert!(archive.get("one").expect_err("cut").is_refusal(), "{at}");
    }
}

#[test]
fn what_nothing_needs_is_collected_and_nothing_else() {
    let store = Store::new();
    let archive = store.open(b"secret");
    let (common, own) = (noise(1 << 20, 5), noise(1 << 20, 6));
    seal(&archive, "keeps", &common);
    // Another installation's counts as well.
    seal(&store.open(b"another"), "foreign", &noise(1 << 20, 9));
    let before = store.chunks().len() as u64;
    seal(&archive, "goes", &[common.clone(), own].concat());
    assert_eq!(archive.collect(false).expect("nothing").deleted.objects, 0);

    archive.delete("goes").expect("deleted");
    archive.delete("goes").expect("deleted already");
    let dry = archive.collect(true).expect("counted");
    assert!(dry.deleted.bytes > 512 << 10, "{dry:?}");
    assert_eq!(dry.kept.objects, before);
    assert_eq!(store.chunks().len() as u64, before + dry.deleted.objects);
    assert_eq!(archive.collect(false).expect("collected"), dry);
    assert_eq!(store.chunks().len() as u64, before);
    assert!(content(&archive, "keeps").expect("kept") == common);
    store.open(b"another").verify("foreign").expect("kept");
}

#[test]
fn nothing_is_collected_while_something_is_stored_or_cannot_be_read() {
    let store = Store::new();
    let archive = store.open(b"secret");
    let held = archive.hold().expect("held");
    archive.put_stream(&noise(1 << 20, 2)[..]).expect("stored");
    let busy = store.open(b"secret").collect(false);
    assert!(matches!(busy, Err(ArchiveError::Busy(_))), "{busy:?}");
    drop(held);
    fs::create_dir(store.root.path().join("snapshots")).expect("folder");
    fs::write(store.root.path().join("snapshots/odd.json"), "{").expect("odd");
    let odd = archive.collect(false);
    assert!(
        matches!(odd, Err(ArchiveError::ArtifactDamaged { .. })),
        "{odd:?}"
    );
    assert!(!store.chunks().is_empty());
    archive.delete("odd").expect("deleted");
    archive.collect(false).expect("collected");
    assert!(store.chunks().is_empty());
}
