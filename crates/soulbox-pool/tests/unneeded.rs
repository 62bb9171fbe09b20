//! Layers that go, on a real loop file, as root.

mod data;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
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

/// Commands open the pool beside the server that uses it.
#[test]
fn what_is_being_made_is_not_left_over() {
    let data = Data::new();
    let pool = data.open();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let mut opened = 0;
            while !over.load(Ordering::Relaxed) {
                data.open();
                opened += 1;
            }
            opened
        });
        let making: Vec<_> = (0..300)
            .map(|_| {
                let draft = pool.begin_layer()?;
                fs::write(draft.path().join("file"), "x").expect("it is there");
                Ok::<_, soulbox_pool::PoolError>(())
            })
            .filter_map(Result::err)
            .collect();
        over.store(true, Ordering::Relaxed);
        assert!(making.is_empty(), "{making:?}");
        assert!(opening.join().expect("opened") > 0);
    });
}
