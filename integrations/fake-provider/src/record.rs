//! What was asked, kept for tests, without any key.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde_json::{Value, json};

/// So many requests are kept; the oldest go first.
const KEPT: usize = 2000;
/// Bodies above this are kept as their size only.
const LARGEST_BODY: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct Records {
    all: Mutex<(u64, VecDeque<Value>)>,
}

impl Records {
    /// Keeps one and gives the number by which it is found again.
    pub(crate) fn add(&self, mut record: Value, body: Value, size: usize) -> u64 {
        record["body"] = if size > LARGEST_BODY {
            json!({"left_out_bytes": size})
        } else {
            body
        };
        record["finished"] = json!(false);
        let mut all = self.lock();
        all.0 += 1;
        let number = all.0;
        record["number"] = json!(number);
        all.1.push_back(record);
        if all.1.len() > KEPT {
            all.1.pop_front();
        }
        number
    }

    pub(crate) fn set(&self, number: u64, key: &str, value: Value) {
        let mut all = self.lock();
        if let Some(record) = all.1.iter_mut().find(|record| record["number"] == number) {
            record[key] = value;
        }
    }

    pub(crate) fn list(&self) -> Vec<Value> {
        self.lock().1.iter().cloned().collect()
    }

    pub(crate) fn clear(&self) {
        self.lock().1.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, VecDeque<Value>)> {
        // Nothing is done under the lock that could leave the list half changed.
        self.all
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
