//! Logs of sandboxes: what was decided about each, and what the daemon inside has done for its clients.
//!
//! Lines go into the store some seconds after they were said, and are read from there, so every server says the same; bounded for each sandbox
//! and in all. The daemon keeps a ring of its own, which is read when somebody asks, soon after a client has used the daemon, and before a
//! kill that a client asks for. A sandbox that ends by itself loses what was not read yet. A guest may make its daemon say anything, so its
//! lines have room of their own: they cannot drive out what was decided.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use soulbox_types::{DeathCause, SandboxId, SandboxState, UnixMillis};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clock;
use crate::control::Control;
use crate::history::{KeptLine, Room, Speaker};
use crate::store::{SandboxRow, StoreError, TeamRow};

const ROOM_OF_DECISIONS: Room = Room {
    lines: 256,
    bytes: 128 << 10,
};
const ROOM_OF_GUEST: Room = Room {
    lines: 1000,
    bytes: 128 << 10,
};
/// Of guests' lines that the store has not taken yet, all together.
const MAX_UNWRITTEN_BYTES: usize = 64 << 20;
/// Ended sandboxes of which the store has not taken the last lines; the longest ended ones are forgotten first.
const MAX_ENDED: usize = 1000;
/// Of all lines in the store.
const MAX_KEPT_BYTES: u64 = 256 << 20;
/// The store is trimmed when so much was added.
const TRIM_EVERY_BYTES: usize = 32 << 20;
/// How soon the daemon is read after a client has used it, and lines are written.
const COLLECT_EVERY: Duration = Duration::from_secs(2);
/// A server that stops waits so long for its store to take the last lines.
const LAST_WRITE_WITHIN: Duration = Duration::from_secs(2);
const AT_ONCE: usize = 16;
/// How long a daemon may take to tell its log when somebody waits.
const ASK_WITHIN: Duration = Duration::from_secs(2);
const ASK_BEFORE_KILL_WITHIN: Duration = Duration::from_millis(100);
const OUT_OF_MEMORY: &str = "out of memory, the kernel ended programs";

/// How important a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// A line as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub at: UnixMillis,
    pub level: LogLevel,
    /// Who says it: `lifecycle`, or a part of the daemon inside.
    pub logger: String,
    pub message: String,
    pub fields: BTreeMap<String, String>,
}

impl LogLine {
    /// About what it takes in memory, and in the store.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const OWN: usize = 64;
        let fields = self.fields.iter();
        let fields: usize = fields
            .map(|(name, value)| name.len() + value.len() + OWN)
            .sum();
        OWN + self.logger.len() + self.message.len() + fields
    }
}

/// A line of the daemon inside, with the number that it goes by there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLogLine {
    pub number: u64,
    pub line: LogLine,
}

/// Which way a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogDirection {
    /// Oldest first, from the cursor on.
    Forward,
    /// Newest first, from the cursor back.
    Backward,
}

/// What somebody wants to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Lines of that moment are part of it, in either direction.
    pub cursor: Option<UnixMillis>,
    pub direction: LogDirection,
    pub least: LogLevel,
    /// A part of the message or of a field's value.
    pub search: Option<String>,
    pub limit: usize,
}

impl LogQuery {
    /// The lines that are sought, of all of a log, oldest first.
    fn select(&self, mut lines: Vec<LogLine>) -> Vec<LogLine> {
        lines.retain(|line| {
            line.level >= self.least
                && self.cursor.is_none_or(|at| match self.direction {
                    LogDirection::Forward => line.at >= at,
                    LogDirection::Backward => line.at <= at,
                })
                && self.search.as_ref().is_none_or(|text| {
                    line.message.contains(text) || line.fields.values().any(|it| it.contains(text))
                })
        });
        if self.direction == LogDirection::Backward {
            lines.reverse();
        }
        lines.truncate(self.limit);
        lines
    }
}

/// Lines of one speaker that the store has not taken yet, oldest first, each with its place among all of the server's.
struct Unwritten {
    speaker: Speaker,
    lines: VecDeque<(u64, KeptLine)>,
    bytes: usize,
    room: Room,
    /// What was written since the store was told to drop lines that have no room.
    unbounded: Room,
}

impl Unwritten {
    fn new(speaker: Speaker, room: Room) -> Self {
        Self {
            speaker,
            lines: VecDeque::new(),
            bytes: 0,
            room,
            unbounded: Room { lines: 0, bytes: 0 },
        }
    }

    fn push(&mut self, place: u64, line: KeptLine) {
        self.bytes += line.line.bytes();
        self.lines.push_back((place, line));
        while self.lines.len() > self.room.lines || self.bytes > self.room.bytes {
            if self.pop().is_none() {
                break;
            }
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let (_, oldest) = self.lines.pop_front()?;
        let bytes = oldest.line.bytes();
        self.bytes -= bytes;
        Some(bytes)
    }

    /// Those before a place are in the store; says whether older ones of the store may have no room now.
    fn written(&mut self, before: u64) -> bool {
        while self.lines.front().is_some_and(|(place, _)| *place < before) {
            self.unbounded.bytes += self.pop().unwrap_or_default();
            self.unbounded.lines += 1;
        }
        let grown = self.unbounded.lines > self.room.lines / 4
            || self.unbounded.bytes > self.room.bytes / 4;
        if grown {
            self.unbounded = Room { lines: 0, bytes: 0 };
        }
        grown
    }
}

struct Book {
    decisions: Unwritten,
    guest: Unwritten,
    /// The number of the last line that the daemon told.
    last: u64,
    /// Lines of before were read, are of a time that was undone, or another sandbox's.
    since: UnixMillis,
    /// Whether a client has used the daemon since it was read.
    used: Arc<AtomicBool>,
    ever_used: bool,
    /// How many programs the kernel had ended for want of memory when the host last counted them; none: it has not counted for this server.
    oom_kills: Option<u64>,
    ended: bool,
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct Shelf {
    books: HashMap<SandboxId, Book>,
    /// Oldest end first.
    ended: VecDeque<SandboxId>,
    guest_bytes: usize,
    /// The place of the next line at least.
    next: u64,
    /// Of places in their millisecond.
    offset: u64,
}

/// What the store shall take.
struct Batch {
    lines: Vec<KeptLine>,
    /// Of the first line that is not part of it.
    before: u64,
}

/// What is not in the store yet of the logs of all sandboxes.
#[derive(Default)]
pub(crate) struct Logs {
    shelf: Mutex<Shelf>,
    /// Who writes, with what was written since the store was trimmed.
    writing: tokio::sync::Mutex<usize>,
}

impl Logs {
    /// Begins the log of a sandbox that this server makes, or takes up.
    pub(crate) fn open(&self, row: &SandboxRow, is_new: bool) {
        let book = Book {
            decisions: Unwritten::new(Speaker::Server, ROOM_OF_DECISIONS),
            guest: Unwritten::new(Speaker::Guest, ROOM_OF_GUEST),
            last: 0,
            used: Arc::default(),
            // The daemon of a copy has what was done in the sandbox that it is a copy of, which may be another team's.
            since: clock::by_wall(row.created_at),
            ever_used: false,
            oom_kills: is_new.then_some(0),
            ended: false,
            turn: Arc::default(),
        };
        self.lock()
            .books
            .entry(row.sandbox_id.clone())
            .or_insert(book);
    }

    /// Notes what was decided about a sandbox.
    pub(crate) fn decided(
        &self,
        id: &SandboxId,
        level: LogLevel,
        message: &str,
        fields: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        self.decided_at(id, clock::wall(), None, decision(level, message, fields));
    }

    /// A line of another server with the same moment and number is the same line.
    fn decided_at(&self, id: &SandboxId, at: UnixMillis, number: Option<u64>, line: LogLine) {
        let mut shelf = self.lock();
        let place = shelf.places(1);
        let Some(book) = shelf.books.get_mut(id) else {
            return;
        };
        book.decisions.push(
            place,
            KeptLine {
                sandbox_id: id.clone(),
                speaker: Speaker::Server,
                // Unlike those of any earlier server, and of another one most likely.
                number: number.unwrap_or(place),
                line: LogLine { at, ..line },
            },
        );
    }

    /// Notes it when the kernel has ended programs of a sandbox since its host counted them last. The count began when it was started,
    /// so every server that notes the same count says the same, and the store keeps it once.
    pub(crate) fn count_oom_kills(
        &self,
        row: &SandboxRow,
        started_at: Option<UnixMillis>,
        oom_kills: u64,
    ) {
        let before = match self.lock().books.get_mut(&row.sandbox_id) {
            Some(book) => book.oom_kills.replace(oom_kills),
            None => return,
        };
        // What came before this server is another one's to note. A resumed sandbox is counted anew.
        let before = before.unwrap_or(oom_kills);
        let killed = oom_kills.checked_sub(before).unwrap_or(oom_kills);
        if killed > 0 {
            let fields = [
                ("killed", killed.to_string()),
                ("memory_mb", row.limits.memory.0.to_string()),
            ];
            let started_at = started_at.unwrap_or(row.created_at);
            let number = KeptLine::ONCE + (started_at.0 << 20) + oom_kills.min(0xf_ffff);
            let line = decision(LogLevel::Warn, OUT_OF_MEMORY, fields);
            self.decided_at(&row.sandbox_id, clock::wall(), Some(number), line);
        }
    }

    /// Notes the end of a sandbox. Every server that owned it does, and it is one line.
    pub(crate) fn ended(&self, id: &SandboxId, at: Option<UnixMillis>, cause: Option<DeathCause>) {
        let level = match cause {
            Some(DeathCause::Killed | DeathCause::Expired) | None => LogLevel::Info,
            Some(_) => LogLevel::Error,
        };
        let cause = cause.map_or("unknown", DeathCause::as_str).to_owned();
        let line = decision(level, "sandbox ended", [("cause", cause)]);
        let at = at.unwrap_or_else(clock::wall);
        self.decided_at(id, at, Some(u64::MAX >> 1), line);
        let mut shelf = self.lock();
        if let Some(book) = shelf.books.get_mut(id)
            && !std::mem::replace(&mut book.ended, true)
        {
            shelf.ended.push_back(id.clone());
        }
        while shelf.ended.len() > MAX_ENDED {
            shelf.forget_the_longest_ended();
        }
    }

    /// Its daemon counts anew, or from an earlier number.
    pub(crate) fn restarted(&self, id: &SandboxId) {
        if let Some(book) = self.lock().books.get_mut(id) {
            book.last = 0;
            book.since = clock::wall();
        }
    }

    /// Takes in what a daemon told.
    fn told(&self, id: &SandboxId, lines: Vec<HostLogLine>) {
        let mut shelf = self.lock();
        let shelf = &mut *shelf;
        let first = shelf.places(lines.len() as u64);
        let Some(book) = shelf.books.get_mut(id) else {
            return;
        };
        let before = book.guest.bytes;
        for (place, HostLogLine { number, line }) in (first..).zip(lines) {
            if number <= book.last || line.at < book.since {
                continue;
            }
            book.last = number;
            let line = KeptLine {
                sandbox_id: id.clone(),
                speaker: Speaker::Guest,
                number,
                line,
            };
            book.guest.push(place, line);
        }
        shelf.guest_bytes = shelf.guest_bytes + book.guest.bytes - before;
        while shelf.guest_bytes > MAX_UNWRITTEN_BYTES {
            if shelf.ended.is_empty() {
                // None has ended, so the one that says most just now gives way.
                shelf.drop_guest_lines(id);
                break;
            }
            shelf.forget_the_longest_ended();
        }
    }

    /// All lines that the store has not taken yet.
    fn unwritten(&self) -> Batch {
        let shelf = self.lock();
        let books = shelf.books.values();
        let lines = books.flat_map(|book| book.decisions.lines.iter().chain(&book.guest.lines));
        Batch {
            lines: lines.map(|(_, line)| line.clone()).collect(),
            before: shelf.next,
        }
    }

    /// The store has taken all before that place. Returns whose lines in it may have outgrown their room.
    fn written(&self, before: u64) -> Vec<(SandboxId, Speaker, Room)> {
        let mut shelf = self.lock();
        let shelf = &mut *shelf;
        let mut grown = Vec::new();
        for (id, book) in &mut shelf.books {
            let guest_bytes = book.guest.bytes;
            for unwritten in [&mut book.decisions, &mut book.guest] {
                if unwritten.written(before) {
                    grown.push((id.clone(), unwritten.speaker, unwritten.room));
                }
            }
            shelf.guest_bytes = shelf.guest_bytes + book.guest.bytes - guest_bytes;
        }
        let books = &mut shelf.books;
        shelf.ended.retain(|id| {
            let is_left = books.get(id).is_some_and(|book| !book.is_written());
            if !is_left {
                books.remove(id);
            }
            is_left
        });
        grown
    }

    /// Whose daemon was used since it was last read.
    fn used(&self) -> Vec<SandboxId> {
        let mut shelf = self.lock();
        let books = shelf.books.iter_mut();
        let used = books.filter_map(|(id, book)| {
            let used = !book.ended && book.used.swap(false, Ordering::Relaxed);
            book.ever_used |= used;
            used.then(|| id.clone())
        });
        used.collect()
    }

    fn was_ever_used(&self, id: &SandboxId) -> bool {
        let shelf = self.lock();
        let book = shelf.books.get(id);
        book.is_some_and(|book| book.ever_used || book.used.load(Ordering::Relaxed))
    }

    /// Set by whoever carries a request to the daemon.
    pub(crate) fn usage(&self, id: &SandboxId) -> Arc<AtomicBool> {
        let shelf = self.lock();
        shelf
            .books
            .get(id)
            .map(|book| book.used.clone())
            .unwrap_or_default()
    }

    /// The number of the last line that was read, and who reads.
    fn read_up_to(&self, id: &SandboxId) -> Option<(u64, Arc<tokio::sync::Mutex<()>>)> {
        let shelf = self.lock();
        let book = shelf.books.get(id)?;
        Some((book.last, book.turn.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // Every change leaves it whole, so a panic elsewhere does not spoil it.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decision(
    level: LogLevel,
    message: &str,
    fields: impl IntoIterator<Item = (&'static str, String)>,
) -> LogLine {
    let fields = fields.into_iter();
    LogLine {
        at: clock::wall(),
        level,
        logger: "lifecycle".to_owned(),
        message: message.to_owned(),
        fields: fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    }
}

impl Book {
    fn is_written(&self) -> bool {
        self.decisions.lines.is_empty() && self.guest.lines.is_empty()
    }
}

impl Default for Shelf {
    fn default() -> Self {
        Self {
            books: HashMap::new(),
            ended: VecDeque::new(),
            guest_bytes: 0,
            next: 0,
            offset: RandomState::new().hash_one(()) & 0xf_ffff,
        }
    }
}

impl Shelf {
    /// Takes places, of which it returns the first. They are above those of every earlier server, which had no million lines a millisecond,
    /// and unlike those of another one that runs now.
    fn places(&mut self, count: u64) -> u64 {
        let of_this_moment = (clock::wall().0 << 20) + self.offset;
        let first = self.next.max(of_this_moment);
        self.next = first + count;
        first
    }

    fn forget_the_longest_ended(&mut self) {
        if let Some(id) = self.ended.pop_front()
            && let Some(book) = self.books.remove(&id)
        {
            self.guest_bytes -= book.guest.bytes;
        }
    }

    fn drop_guest_lines(&mut self, id: &SandboxId) {
        if let Some(book) = self.books.get_mut(id) {
            book.guest.lines.clear();
            self.guest_bytes -= std::mem::take(&mut book.guest.bytes);
        }
    }
}

impl Control {
    /// Lines of a sandbox's log, also for a while after its end; none of one that is unknown or another team's.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn logs(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        query: &LogQuery,
    ) -> Result<Vec<LogLine>, StoreError> {
        if self.running(team, id).is_ok() {
            self.read_daemon(id, ASK_WITHIN).await;
        }
        self.write_logs().await?;
        let lines = self.store().lines(&team.team_id, id).await?;
        Ok(query.select(lines))
    }

    /// What is new in the daemon's log, before a kill ends it; not for one that nobody used.
    pub(crate) async fn last_words(&self, id: &SandboxId) {
        if self.shared.around.logs.was_ever_used(id) {
            self.read_daemon(id, ASK_BEFORE_KILL_WITHIN).await;
        }
    }

    /// Reads daemons soon after they were used, and writes lines, until `shutdown`.
    pub(crate) async fn collect_logs(&self, shutdown: &CancellationToken) {
        while shutdown
            .run_until_cancelled(tokio::time::sleep(COLLECT_EVERY))
            .await
            .is_some()
        {
            let used = self.shared.around.logs.used();
            futures_util::stream::iter(used)
                .for_each_concurrent(AT_ONCE, async |id| self.read_daemon(&id, ASK_WITHIN).await)
                .await;
            if let Err(failure) = self.write_logs().await {
                // They are kept for the next time.
                warn!(error = %crate::chain(&failure), "failed to write logs of sandboxes");
            }
        }
        match tokio::time::timeout(LAST_WRITE_WITHIN, self.write_logs()).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                warn!(error = %crate::chain(&failure), "the last lines of sandboxes' logs are lost");
            }
            Err(_) => warn!("the last lines of sandboxes' logs are lost: the store takes too long"),
        }
    }

    /// Lines that were said before this call are in the store after it.
    async fn write_logs(&self) -> Result<(), StoreError> {
        let logs = &self.shared.around.logs;
        let mut since_trim = logs.writing.lock().await;
        let Batch { lines, before } = logs.unwritten();
        if lines.is_empty() {
            return Ok(());
        }
        self.store().keep_lines(clock::wall(), &lines).await?;
        for (id, speaker, room) in logs.written(before) {
            self.store().bound_lines(&id, speaker, room).await?;
        }
        *since_trim += lines.iter().map(|it| it.line.bytes()).sum::<usize>();
        if *since_trim > TRIM_EVERY_BYTES {
            self.trim_history().await?;
            *since_trim = 0;
        }
        Ok(())
    }

    /// Forgets lines and samples that are older than rows of dead sandboxes may be, and the oldest lines when all take too much.
    pub(crate) async fn trim_history(&self) -> Result<(), StoreError> {
        let keep = clock::millis(self.settings().keep_dead);
        let before = UnixMillis(clock::wall().0.saturating_sub(keep));
        self.store().trim_history(before, MAX_KEPT_BYTES).await
    }

    /// One reader at a time, so that each goes on where the other has stopped.
    async fn read_daemon(&self, id: &SandboxId, within: Duration) {
        let Some((_, turn)) = self.shared.around.logs.read_up_to(id) else {
            return;
        };
        let read = async {
            let _turn = turn.lock().await;
            let handle = self.registry().get(id)?;
            let (last, _) = self.shared.around.logs.read_up_to(id)?;
            if handle.state() != SandboxState::Running {
                return None;
            }
            let token = handle.live.access_token.as_deref();
            Some(self.hosts().logs(id, token, last).await)
        };
        match tokio::time::timeout(within, read).await {
            Ok(Some(Ok(lines))) => self.shared.around.logs.told(id, lines),
            Ok(None) => {}
            // An older daemon has no log, and a guest may keep its daemon from answering.
            Ok(Some(Err(failure))) => {
                tracing::debug!(sandbox_id = %id, error = %failure, "failed to read a daemon's log");
            }
            Err(_) => tracing::debug!(sandbox_id = %id, "a daemon did not tell its log in time"),
        }
    }
}

#[cfg(test)]
mod tests;
