//! Pages of sandboxes: what the databases cut out is compared with what a filter and a sort of all rows give.

use std::collections::BTreeMap;
use std::sync::Arc;

use soulbox_control::{Cursor, ListQuery, Order, SandboxRow, Store};
use soulbox_types::{SandboxId, SandboxState, TeamId, TemplateId, UnixMillis};

const STATES: [SandboxState; 7] = [
    SandboxState::Creating,
    SandboxState::Running,
    SandboxState::Pausing,
    SandboxState::Paused,
    SandboxState::Resuming,
    SandboxState::Killing,
    SandboxState::Dead,
];
const ROWS: u64 = 120;

/// xorshift64*: the same rows and queries in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

fn everything() -> ListQuery {
    ListQuery {
        metadata: Vec::new(),
        running: true,
        paused: true,
        order: Order::OldestFirst,
        started_after: None,
        after: None,
        limit: 100,
    }
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn template(number: u64) -> TemplateId {
    TemplateId::from_random([number as u8 + 1; 20])
}

/// Of two teams and templates, in all states; many of them began in the same millisecond, and some have not begun.
async fn filled(store: &dyn Store, random: &mut Random) -> Vec<SandboxRow> {
    let teams = [super::team("one"), super::team("another")];
    let mut rows = Vec::new();
    for number in 0..ROWS {
        let mut bits = [0; 20];
        bits.fill_with(|| random.below(256) as u8);
        let team = &teams[usize::from(random.below(4) == 0)];
        let mut row = SandboxRow {
            sandbox_id: SandboxId::from_random(bits),
            template_id: template(random.below(2)),
            metadata: BTreeMap::from([
                pair("all", "yes"),
                pair("third", &(number % 3).to_string()),
            ]),
            created_at: UnixMillis(100 + random.below(20)),
            ..super::sandbox(1, team)
        };
        store.reserve(&row, 9_999, None).await.expect("reserve");
        let state = STATES[random.below(7) as usize];
        if state != SandboxState::Creating {
            row.progress.state = state;
            row.progress.started_at =
                (random.below(4) > 0).then(|| UnixMillis(100 + random.below(20)));
            row.progress.ended_at = (state == SandboxState::Dead).then_some(UnixMillis(200));
            store
                .advance(&row.sandbox_id, super::CREATED, &row.progress)
                .await
                .expect("advance");
        }
        rows.push(row);
    }
    rows
}

fn key(row: &SandboxRow) -> Cursor {
    Cursor {
        at: row.progress.started_at.unwrap_or(row.created_at),
        id: row.sandbox_id.to_string(),
    }
}

/// All matches in order, whatever the cursor and the limit are.
fn matches(
    rows: &[SandboxRow],
    team: &TeamId,
    template: Option<&TemplateId>,
    query: &ListQuery,
) -> Vec<SandboxRow> {
    let mut found: Vec<_> = rows
        .iter()
        .filter(|row| {
            row.team_id == *team
                && template.is_none_or(|id| row.template_id == *id)
                && match row.progress.state {
                    SandboxState::Running => query.running,
                    SandboxState::Pausing | SandboxState::Paused | SandboxState::Resuming => {
                        query.paused
                    }
                    _ => false,
                }
                && query.started_after.is_none_or(|at| key(row).at >= at)
                && query
                    .metadata
                    .iter()
                    .all(|(name, value)| row.metadata.get(name) == Some(value))
        })
        .cloned()
        .collect();
    found.sort_by_key(key);
    if query.order == Order::NewestFirst {
        found.reverse();
    }
    found
}

pub(super) async fn a_page_is_what_the_query_says(store: Arc<dyn Store>) {
    let random = &mut Random(0x9e37_79b9_7f4a_7c15);
    let rows = filled(&*store, random).await;
    let team = super::team("one").team_id;
    let (mut pages, mut full) = (0, 0);
    for _ in 0..150 {
        let mut query = everything();
        query.running = random.below(3) > 0;
        query.paused = random.below(3) > 0;
        query.limit = 1 + random.below(30) as usize;
        if random.below(2) == 0 {
            query.order = Order::NewestFirst;
        }
        query.started_after = (random.below(3) == 0).then(|| UnixMillis(100 + random.below(20)));
        if random.below(3) == 0 {
            query.metadata = vec![
                pair("third", &random.below(4).to_string()),
                pair("all", "yes"),
            ];
        }
        let template = (random.below(3) == 0).then(|| template(random.below(2)));
        let expected = matches(&rows, &team, template.as_ref(), &query);
        let running = expected
            .iter()
            .filter(|row| row.progress.state == SandboxState::Running)
            .count();
        let mut seen = Vec::new();
        loop {
            let page = store
                .page(&team, template.as_ref(), &query)
                .await
                .expect("a page");
            assert_eq!(page.total, running, "{query:?}");
            assert!(page.items.len() <= query.limit, "{query:?}");
            assert_eq!(
                page.next,
                page.items
                    .last()
                    .map(key)
                    .filter(|_| seen.len() + page.items.len() < expected.len()),
                "{query:?}"
            );
            seen.extend(page.items);
            pages += 1;
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        assert_eq!(seen, expected, "{query:?}");
        full += usize::from(!expected.is_empty() && expected.len().is_multiple_of(query.limit));
    }
    assert!(
        pages > 300 && full > 5,
        "{pages} pages, {full} of them full to the end"
    );
}

pub(super) async fn metadata_is_compared_as_it_is(store: Arc<dyn Store>) {
    let team = super::team("one");
    let strange = [
        pair("a \"b\"", "ü"),
        pair("back\\slash", "\\u0041"),
        pair("x,", ":"),
        pair(",y", "{\"z\":1}"),
        pair("", ""),
        pair("line\nbreak\t\u{7f}\u{1}", "😀"),
        pair("$.k", "[0]"),
        pair("number", "1"),
        pair("%", "_"),
    ];
    let mut row = super::sandbox(1, &team);
    row.metadata = strange.iter().cloned().collect();
    store.reserve(&row, 9, None).await.expect("reserve");
    let running = super::running(&row);
    store
        .advance(&row.sandbox_id, super::CREATED, &running)
        .await
        .expect("advance");
    let found = async |pairs: &[(String, String)]| {
        let query = ListQuery {
            metadata: pairs.to_vec(),
            ..everything()
        };
        let page = store.page(&team.team_id, None, &query).await;
        let page = page.expect("a page");
        assert_eq!(page.total, page.items.len());
        page.total == 1
    };
    for one in &strange {
        assert!(found(std::slice::from_ref(one)).await, "{one:?}");
    }
    assert!(found(&strange).await);
    assert!(found(&vec![pair("number", "1"); 3_000]).await);
    for wrong in [
        pair("number", "2"),
        pair("number", "1 "),
        pair("Number", "1"),
        pair("number", "1.0"),
        pair("a", "ü"),
        pair("back\\slash", "A"),
        pair("%", "x"),
        pair(":", ","),
        pair("no such", ""),
    ] {
        assert!(!found(std::slice::from_ref(&wrong)).await, "{wrong:?}");
        assert!(
            !found(&[pair("number", "1"), wrong.clone()]).await,
            "{wrong:?}"
        );
    }
}
