//! Text of any size, of which a model gets the beginning and the end.

use std::collections::VecDeque;

/// Keeps so many characters of the beginning and as many of the end, and counts what is between them.
#[derive(Debug)]
pub(crate) struct Budget {
    half: usize,
    head: String,
    head_count: usize,
    tail: VecDeque<char>,
    dropped: usize,
}

impl Budget {
    pub(crate) fn new(characters: usize) -> Self {
        Self {
            half: characters / 2,
            head: String::new(),
            head_count: 0,
            tail: VecDeque::new(),
            dropped: 0,
        }
    }

    pub(crate) fn push(&mut self, text: &str) {
        let mut characters = text.chars();
        while self.head_count < self.half {
            let Some(character) = characters.next() else {
                return;
            };
            self.head.push(character);
            self.head_count += 1;
        }
        for character in characters {
            if self.tail.len() == self.half {
                self.tail.pop_front();
                self.dropped += 1;
            }
            self.tail.push_back(character);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// The text; where some is missing, it says how much.
    pub(crate) fn finish(self) -> String {
        let mut text = self.head;
        if self.dropped > 0 {
            text += &format!("\n[... {} characters left out ...]\n", self.dropped);
        }
        text.extend(self.tail);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(most: usize, pieces: &[&str]) -> String {
        let mut budget = Budget::new(most);
        for piece in pieces {
            budget.push(piece);
        }
        budget.finish()
    }

    #[test]
    fn what_fits_is_kept_as_it_is() {
        assert_eq!(kept(10, &["abcde", "fghij"]), "abcdefghij");
        assert_eq!(kept(10, &["äöü"]), "äöü");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        assert_eq!(
            kept(4, &["abc", "defgh", "i"]),
            "ab\n[... 5 characters left out ...]\nhi"
        );
    }
}
