//! Rules of the store about what is remembered of sandboxes and teams.

use std::collections::BTreeMap;
use std::sync::Arc;

use soulbox_control::{KeptLine, KeptSample, LogLevel, LogLine, Room, Speaker, Store};
use soulbox_types::{SandboxId, TeamId, UnixMillis};

use crate::{sandbox, team};

const EVERYTHING: u64 = u64::MAX;

fn line(sandbox_id: &SandboxId, speaker: Speaker, number: u64, message: &str) -> KeptLine {
    KeptLine {
        sandbox_id: sandbox_id.clone(),
        speaker,
        number,
        line: LogLine {
            at: UnixMillis(1000 + number),
            level: LogLevel::Warn,
            logger: "process".to_owned(),
            message: message.to_owned(),
            fields: BTreeMap::from([("pid".to_owned(), "7\0".to_owned())]),
        },
    }
}

async fn messages(store: &dyn Store, team_id: &TeamId, id: &SandboxId) -> Vec<String> {
    let lines = store.lines(team_id, id).await.expect("read");
    lines.into_iter().map(|it| it.message).collect()
}

pub async fn lines_of_a_sandbox_are_its_teams_and_have_room(store: Arc<dyn Store>) {
    let store = &*store;
    let owner = team("whose sandboxes say much");
    let owner = store.ensure_team(&owner).await.expect("a team");
    let rows = [sandbox(210, &owner), sandbox(211, &owner)];
    let ids = rows.each_ref().map(|row| row.sandbox_id.clone());
    for row in &rows {
        store.reserve(row, 9, None).await.expect("reserved");
    }
    let [first, second] = &ids;
    let kept = [
        line(first, Speaker::Guest, 2, "b"),
        line(first, Speaker::Server, 2, "decided"),
        line(first, Speaker::Guest, 1, "a\0"),
        line(second, Speaker::Guest, 1, "of the other"),
    ];
    // What is there is not added again, whoever brings it.
    for at in [10, 20] {
        store.keep_lines(UnixMillis(at), &kept).await.expect("kept");
    }
    let lines = store.lines(&owner.team_id, first).await.expect("read");
    assert_eq!(lines[1], kept[1].line, "it comes back as it was");
    assert_eq!(
        lines[0].message, "a\u{fffd}",
        "no database has a NUL in a text"
    );
    assert_eq!(lines.len(), 3);
    let stranger = TeamId::from_random([250; 16]);
    assert!(messages(store, &stranger, first).await.is_empty());

    // More than one transaction, then bounds by number and by size, each for its speaker alone.
    let many: Vec<_> = (10..210)
        .map(|number| line(first, Speaker::Guest, number, &number.to_string()))
        .collect();
    store.keep_lines(UnixMillis(30), &many).await.expect("kept");
    let room = |lines, bytes| Room { lines, bytes };
    let bound = async |speaker, room| {
        let bounded = store.bound_lines(first, speaker, room).await;
        bounded.expect("bounded");
        messages(store, &owner.team_id, first).await
    };
    let left = bound(Speaker::Guest, room(3, 1 << 20)).await;
    assert_eq!(left, ["decided", "207", "208", "209"]);
    let two = many[0].line.bytes() * 2 + 20;
    let left = bound(Speaker::Guest, room(3, two)).await;
    assert_eq!(left, ["decided", "208", "209"]);
    let left = bound(Speaker::Server, room(0, 0)).await;
    assert_eq!(left, ["208", "209"]);
    assert_eq!(messages(store, &owner.team_id, second).await.len(), 1);
}

pub async fn what_two_servers_noted_at_moments_of_their_own_is_one_line(store: Arc<dyn Store>) {
    let owner = team("whose sandboxes have little memory");
    let owner = store.ensure_team(&owner).await.expect("a team");
    let rows = [sandbox(213, &owner), sandbox(214, &owner)];
    let ids = rows.each_ref().map(|row| row.sandbox_id.clone());
    for row in &rows {
        store.reserve(row, 9, None).await.expect("reserved");
    }
    let [first, second] = &ids;
    let noted = |at, sandbox_id, speaker, number, message| {
        let mut kept = line(sandbox_id, speaker, number, message);
        kept.line.at = UnixMillis(at);
        kept
    };
    const ONCE: u64 = KeptLine::ONCE;
    let by_one = [
        noted(1, first, Speaker::Server, ONCE, "first"),
        // Neither what has no such number nor what a guest gives one is held back by it.
        noted(3, first, Speaker::Server, ONCE - 1, "often"),
        noted(4, first, Speaker::Server, ONCE - 1, "often"),
        noted(5, first, Speaker::Guest, ONCE + 1, "a guest's"),
        noted(6, first, Speaker::Guest, ONCE + 1, "a guest's"),
    ];
    let by_the_other = [
        noted(2, first, Speaker::Server, ONCE, "first, later"),
        noted(7, first, Speaker::Server, ONCE + 1, "second"),
    ];
    let at = UnixMillis(10);
    let both = async |one: &[KeptLine], other: &[KeptLine]| {
        let (one, other) = tokio::join!(store.keep_lines(at, one), store.keep_lines(at, other));
        one.and(other).expect("kept");
    };
    both(&by_one, &by_the_other).await;
    let said = messages(&*store, &owner.team_id, first).await;
    // Whoever was first.
    assert!(["first", "first, later"].contains(&&*said[0]), "{said:?}");
    let rest = ["often", "often", "a guest's", "a guest's", "second"];
    assert_eq!(said[1..], rest);

    // In opposite orders neither waits for the other for ever.
    for round in 1..=8 {
        let numbers = ONCE + round * 50..ONCE + round * 50 + 50;
        let note = |at| move |number| noted(at, second, Speaker::Server, number, "of both");
        let by_one: Vec<_> = numbers.clone().map(note(1)).collect();
        let by_the_other: Vec<_> = numbers.rev().map(note(2)).collect();
        both(&by_one, &by_the_other).await;
    }
    let of_the_second = messages(&*store, &owner.team_id, second).await;
    assert_eq!(of_the_second, ["of both"; 400]);
}

pub async fn history_is_trimmed_by_age_and_by_size(store: Arc<dyn Store>) {
    let store = &*store;
    let owner = team("whose sandboxes said much long ago");
    let owner = store.ensure_team(&owner).await.expect("a team");
    let row = sandbox(212, &owner);
    let id = &row.sandbox_id;
    store.reserve(&row, 9, None).await.expect("reserved");
    for number in 1..=4 {
        // A guest says any time; what counts is when it was kept.
        let mut kept = line(id, Speaker::Guest, number, &number.to_string());
        kept.line.at = UnixMillis(9000 - number);
        let at = UnixMillis(1_000_000 + number);
        store.keep_lines(at, &[kept]).await.expect("kept");
        let sample = KeptSample {
            subject: id.as_str().to_owned(),
            at,
            sample: number.to_string(),
        };
        store.keep_samples(&[sample]).await.expect("kept");
    }
    let trim = async |before, max_bytes| {
        let trimmed = store.trim_history(UnixMillis(before), max_bytes).await;
        trimmed.expect("trimmed");
        messages(store, &owner.team_id, id).await
    };
    assert_eq!(trim(1_000_002, EVERYTHING).await, ["4", "3", "2"]);
    let all = (UnixMillis(0), UnixMillis(u64::MAX));
    let samples = store.samples(id.as_str(), all).await.expect("read");
    assert_eq!(samples.len(), 3, "samples of before are gone too");
    // Of too many the longest kept ones go, five hundred at once.
    let later: Vec<_> = (1..=600)
        .map(|number| line(id, Speaker::Server, number, "later"))
        .collect();
    let at = UnixMillis(1_000_010);
    store.keep_lines(at, &later).await.expect("kept");
    let all: usize = later.iter().map(|it| it.line.bytes()).sum();
    assert_eq!(trim(0, all as u64 + 1000).await.len(), 603);
    assert_eq!(trim(0, all as u64).await, ["later"; 103]);
    assert_eq!(trim(0, 0).await, [""; 0]);
}

pub async fn samples_come_back_in_order_and_the_last_of_a_moment_holds(store: Arc<dyn Store>) {
    let store = &*store;
    let sample = |subject: &str, at, sample: &str| KeptSample {
        subject: subject.to_owned(),
        at: UnixMillis(at),
        sample: sample.to_owned(),
    };
    let kept = [
        sample("a", 3, "three"),
        sample("a", 1, "one"),
        sample("b", 2, "another's"),
        sample("a", 2, "two"),
    ];
    store.keep_samples(&kept).await.expect("kept");
    let later = [sample("a", 2, "2")];
    store.keep_samples(&later).await.expect("kept");
    let between = async |from, to| {
        let found = store.samples("a", (UnixMillis(from), UnixMillis(to))).await;
        let found = found.expect("read").into_iter();
        found.map(|(at, text)| (at.0, text)).collect::<Vec<_>>()
    };
    let text = |at, text: &str| (at, text.to_owned());
    assert_eq!(
        between(1, 3).await,
        [text(1, "one"), text(2, "2"), text(3, "three")]
    );
    assert_eq!(between(2, 2).await, [text(2, "2")]);
    assert_eq!(between(4, u64::MAX).await, []);
}
