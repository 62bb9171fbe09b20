//! Layers that go, on a real loop file, as root.

mod data;

use std::fs;
use std::time::{Duration, SystemTime};

use soulbox_pool::{LayerDigest, Pool};

use data::Data;

fn digest(letter: char) -> LayerDigest {
    letter.to_string().repeat(64).parse().expect("digest")
}

#[test]
fn a_layer_is_listed_with_its_age_and_goes_with_its_names() {
    let data = Data::new();
    let pool = data.open();
    let before = SystemTime::now() - Duration::from_secs(2);
    for letter in ['a', 'b'] {
        let draft = pool.begin_layer().expect("draft");
        fs::write(draft.path().join("file"), [0; 4096]).expect("file");
        draft.commit(&digest(letter)).expect("layer");
    }
    let listed = pool.list_layers().expect("list");
    let names: Vec<_> = listed.iter().map(|(layer, _)| layer.clone()).collect();
    assert_eq!(names, [digest('a'), digest('b')]);
    assert!(
        listed.iter().all(|(_, since)| *since >= before),
        "{listed:?}"
    );

    pool.name_layer(&digest('c'), &digest('a')).expect("named");
    assert_eq!(
        pool.find_layer(&digest('c')).expect("found"),
        Some(digest('a'))
    );
    pool.delete_layer(&digest('a')).expect("deleted");
    assert!(!pool.layer_path(&digest('a')).exists());
    assert_eq!(pool.find_layer(&digest('c')).expect("no error"), None);
    assert!(pool.has_layer(&digest('b')));
    // Deleted already.
    pool.delete_layer(&digest('a')).expect("nothing to do");
    assert_eq!(pool.list_layers().expect("list").len(), 1);
}
