//! Logs of sandboxes: what was decided about each, and what the daemon inside has done for its clients.
//!
//! Kept in memory, bounded for each sandbox and in all. The daemon keeps a ring of its own, which is read when somebody asks, soon after a
//! client has used the daemon, and before a kill that a client asks for. A sandbox that ends by itself loses what was not read yet. A guest
//! may make its daemon say anything, so its lines have room of their own: they cannot drive out what was decided.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use soulbox_types::{DeathCause, SandboxId, SandboxState, TeamId, UnixMillis};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::control::Control;
use crate::store::{SandboxRow, TeamRow};

const MAX_DECISIONS: usize = 256;
const MAX_GUEST_LINES: usize = 1000;
const MAX_GUEST_BYTES: usize = 128 << 10;
/// Of guests' lines, all together.
const MAX_ALL_BYTES: usize = 64 << 20;
/// Ended sandboxes whose logs are kept; the longest ended ones go first.
const MAX_ENDED: usize = 1000;
/// How soon the daemon is read after a client has used it.
const COLLECT_EVERY: Duration = Duration::from_secs(2);
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
    fn bytes(&self) -> usize {
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

struct Book {
    team_id: TeamId,
    decisions: VecDeque<LogLine>,
    guest: VecDeque<LogLine>,
    guest_bytes: usize,
    /// The number of the last line that the daemon told.
    last: u64,
    /// Lines of before were read, or are of a time that was undone.
    since: UnixMillis,
    /// Whether a client has used the daemon since it was read.
    used: Arc<AtomicBool>,
    ever_used: bool,
    /// How many programs the kernel had ended for want of memory when the host last counted them.
    oom_kills: u64,
    ended: bool,
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Shelf {
    books: HashMap<SandboxId, Book>,
    /// Oldest end first.
    ended: VecDeque<SandboxId>,
    guest_bytes: usize,
}

/// The logs of all sandboxes.
#[derive(Default)]
pub(crate) struct Logs {
    shelf: Mutex<Shelf>,
}

impl Logs {
    pub(crate) fn open(&self, row: &SandboxRow) {
        let book = Book {
            team_id: row.team_id.clone(),
            decisions: VecDeque::new(),
            guest: VecDeque::new(),
            guest_bytes: 0,
            last: 0,
            used: Arc::default(),
            since: UnixMillis(0),
            ever_used: false,
            oom_kills: 0,
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
        let fields = fields.into_iter();
        let line = LogLine {
            at: clock::wall(),
            level,
            logger: "lifecycle".to_owned(),
            message: message.to_owned(),
            fields: fields
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        };
        if let Some(book) = self.lock().books.get_mut(id) {
            book.decisions.push_back(line);
            if book.decisions.len() > MAX_DECISIONS {
                book.decisions.pop_front();
            }
        }
    }

    /// Notes it when the kernel has ended programs of a sandbox since its host counted them last.
    pub(crate) fn count_oom_kills(&self, row: &SandboxRow, oom_kills: u64) {
        let before = match self.lock().books.get_mut(&row.sandbox_id) {
            Some(book) => std::mem::replace(&mut book.oom_kills, oom_kills),
            None => return,
        };
        // A resumed sandbox is counted anew.
        let killed = oom_kills.checked_sub(before).unwrap_or(oom_kills);
        if killed > 0 {
            let fields = [
                ("killed", killed.to_string()),
                ("memory_mb", row.limits.memory.0.to_string()),
            ];
            self.decided(&row.sandbox_id, LogLevel::Warn, OUT_OF_MEMORY, fields);
        }
    }

    /// Notes the end of a sandbox, whose log is kept for a while.
    pub(crate) fn ended(&self, id: &SandboxId, cause: Option<DeathCause>) {
        let level = match cause {
            Some(DeathCause::Killed | DeathCause::Expired) | None => LogLevel::Info,
            Some(_) => LogLevel::Error,
        };
        let cause = cause.map_or("unknown", DeathCause::as_str).to_owned();
        self.decided(id, level, "sandbox ended", [("cause", cause)]);
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
        let Some(book) = shelf.books.get_mut(id) else {
            return;
        };
        let before = book.guest_bytes;
        for HostLogLine { number, line } in lines {
            if number <= book.last || line.at < book.since {
                continue;
            }
            book.last = number;
            book.guest_bytes += line.bytes();
            book.guest.push_back(line);
            while book.guest.len() > MAX_GUEST_LINES || book.guest_bytes > MAX_GUEST_BYTES {
                let Some(oldest) = book.guest.pop_front() else {
                    break;
                };
                book.guest_bytes -= oldest.bytes();
            }
        }
        let after = book.guest_bytes;
        shelf.guest_bytes = shelf.guest_bytes + after - before;
        while shelf.guest_bytes > MAX_ALL_BYTES {
            if shelf.ended.is_empty() {
                // None has ended, so the one that says most just now gives way.
                shelf.drop_guest_lines(id);
                break;
            }
            shelf.forget_the_longest_ended();
        }
    }

    /// The lines that are sought; none of another team's sandbox, or of an unknown one.
    fn read(&self, team: &TeamRow, id: &SandboxId, query: &LogQuery) -> Vec<LogLine> {
        let shelf = self.lock();
        let Some(book) = shelf.books.get(id).filter(|it| it.team_id == team.team_id) else {
            return Vec::new();
        };
        let sought = |line: &&LogLine| {
            line.level >= query.least
                && query.cursor.is_none_or(|at| match query.direction {
                    LogDirection::Forward => line.at >= at,
                    LogDirection::Backward => line.at <= at,
                })
                && query.search.as_ref().is_none_or(|text| {
                    line.message.contains(text) || line.fields.values().any(|it| it.contains(text))
                })
        };
        let mut lines: Vec<&LogLine> = book
            .decisions
            .iter()
            .chain(&book.guest)
            .filter(sought)
            .collect();
        // Stable, so that lines of one millisecond stay in order.
        lines.sort_by_key(|line| line.at);
        if query.direction == LogDirection::Backward {
            lines.reverse();
        }
        lines.into_iter().take(query.limit).cloned().collect()
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

    fn place(&self, id: &SandboxId) -> Option<(u64, Arc<tokio::sync::Mutex<()>>)> {
        let shelf = self.lock();
        let book = shelf.books.get(id)?;
        Some((book.last, book.turn.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // Every change leaves it whole, so a panic elsewhere does not spoil it.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn forget_the_longest_ended(&mut self) {
        if let Some(id) = self.ended.pop_front()
            && let Some(book) = self.books.remove(&id)
        {
            self.guest_bytes -= book.guest_bytes;
        }
    }

    fn drop_guest_lines(&mut self, id: &SandboxId) {
        if let Some(book) = self.books.get_mut(id) {
            book.guest.clear();
            self.guest_bytes -= std::mem::take(&mut book.guest_bytes);
        }
    }
}

impl Control {
    /// Lines of a sandbox's log, also for a while after its end; none of one that is unknown or another team's.
    pub async fn logs(&self, team: &TeamRow, id: &SandboxId, query: &LogQuery) -> Vec<LogLine> {
        if self.running(team, id).is_ok() {
            self.read_daemon(id, ASK_WITHIN).await;
        }
        self.shared.around.logs.read(team, id, query)
    }

    /// What is new in the daemon's log, before a kill ends it; not for one that nobody used.
    pub(crate) async fn last_words(&self, id: &SandboxId) {
        if self.shared.around.logs.was_ever_used(id) {
            self.read_daemon(id, ASK_BEFORE_KILL_WITHIN).await;
        }
    }

    /// Reads daemons soon after they were used, until `shutdown`.
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
        }
    }

    /// One reader at a time, so that each goes on where the other has stopped.
    async fn read_daemon(&self, id: &SandboxId, within: Duration) {
        let Some((_, turn)) = self.shared.around.logs.place(id) else {
            return;
        };
        let read = async {
            let _turn = turn.lock().await;
            let handle = self.registry().get(id)?;
            let (last, _) = self.shared.around.logs.place(id)?;
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
