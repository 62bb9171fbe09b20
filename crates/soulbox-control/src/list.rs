//! Lists: which sandboxes are asked of the store, and pages of what is in memory.

use soulbox_types::{SandboxId, UnixMillis};

/// Which sandboxes, in which order, from where on.
#[derive(Debug, Clone)]
pub struct ListQuery {
    /// Every pair must be there. None has a NUL, which PostgreSQL knows in no text.
    pub metadata: Vec<(String, String)>,
    pub running: bool,
    /// With those on the way to and from that.
    pub paused: bool,
    pub order: Order,
    pub started_after: Option<UnixMillis>,
    pub after: Option<Cursor>,
    pub limit: usize,
}

/// By start (by creation as long as it has not started), then ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

/// The last item of a page.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    pub at: UnixMillis,
    pub id: String,
}

/// Some of a list.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Matches on all pages; of sandboxes only those that run.
    pub total: usize,
    /// Where the next page starts, if there is one.
    pub next: Option<Cursor>,
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            total: 0,
            next: None,
        }
    }
}

/// Sorts and cuts out the page that follows `after`.
pub fn page<T>(
    mut items: Vec<T>,
    order: Order,
    after: Option<&Cursor>,
    limit: usize,
    key: impl Fn(&T) -> Cursor,
) -> Page<T> {
    let total = items.len();
    items.sort_by_cached_key(&key);
    if order == Order::NewestFirst {
        items.reverse();
    }
    if let Some(after) = after {
        items.retain(|item| match order {
            Order::OldestFirst => key(item) > *after,
            Order::NewestFirst => key(item) < *after,
        });
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(&key) } else { None };
    Page { items, total, next }
}

/// The ID in a path: a sandbox ID, or the legacy `<sandboxID>-<clientID>`.
///
/// # Errors
/// More than two parts, or a first part that is no ID.
pub fn parse_sandbox_id(text: &str) -> Result<SandboxId, soulbox_types::IdError> {
    let mut parts = text.split('-');
    let id = parts.next().unwrap_or_default();
    let _client = parts.next();
    if parts.next().is_some() {
        text.parse()
    } else {
        id.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(at: u64, id: &str) -> Cursor {
        Cursor {
            at: UnixMillis(at),
            id: id.to_owned(),
        }
    }

    #[test]
    fn pages_meet_without_gap_or_overlap_in_both_orders() {
        let items: Vec<_> = ["c", "a", "e", "b", "d"]
            .iter()
            .map(|id| cursor(7, id))
            .collect();
        for (order, expected) in [(Order::OldestFirst, "abcde"), (Order::NewestFirst, "edcba")] {
            let (mut seen, mut after) = (String::new(), None);
            loop {
                let page = page(items.clone(), order, after.as_ref(), 2, Clone::clone);
                assert_eq!(page.total, 5);
                seen.extend(page.items.iter().map(|it| it.id.as_str()));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_full_last_page_has_no_next() {
        let items = vec![cursor(1, "a"), cursor(2, "b")];
        assert_eq!(
            page(items, Order::OldestFirst, None, 2, Clone::clone).next,
            None
        );
    }

    #[test]
    fn legacy_ids_have_at_most_two_parts() {
        assert_eq!(
            parse_sandbox_id("i1-6532622b").map(|id| id.to_string()),
            Ok("i1".to_owned())
        );
        for bad in ["a-b-c", "", "-x", "A"] {
            assert!(parse_sandbox_id(bad).is_err(), "{bad}");
        }
    }
}
