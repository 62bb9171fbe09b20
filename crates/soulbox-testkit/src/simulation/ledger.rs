//! What was asked for, what was promised, what really exists; and whether the one fits the other.
//!
//! Nothing of the code under test is used to judge it: processes are counted by the world, promises are the answers that clients got.

use std::collections::{BTreeMap, BTreeSet};

use soulbox_control::ownership::{Answer, Ticket};
use soulbox_types::{Epoch, UnixMillis};

/// The latest that an end may come after its deadline.
const EXPIRY_WITHIN: u64 = 1_000;
/// No deadline: nobody knows when what was asked for comes about.
const SOMETIME: UnixMillis = UnixMillis(u64::MAX / 2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Create { deadline: UnixMillis },
    Set(UnixMillis),
    Extend(UnixMillis),
    Kill,
    Pause,
    Resume(UnixMillis),
    Snapshot,
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Waiting,
    Answered(Answer),
    /// The client has stopped waiting.
    Left,
    /// The front has died first.
    Lost,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) sandbox: usize,
    pub(super) wish: Wish,
    pub(super) outcome: Outcome,
    /// The front that was asked.
    front: u32,
    asked_at: UnixMillis,
    answered_at: UnixMillis,
}

#[derive(Debug, Clone, Default)]
struct Sandbox {
    requests: Vec<usize>,
    /// The last run that ended by itself.
    exited_run: Option<u32>,
    starts: u32,
    started_at: Option<UnixMillis>,
    alive: bool,
    signalled: bool,
    /// Somebody was told, or the row says, that it is over.
    over: bool,
    applied: Option<Epoch>,
    /// A snapshot with which it was to end failed.
    excused: bool,
    /// A save harmed it, so the host ends it.
    harmed: bool,
    /// The latest run that somebody was told of: nothing of an earlier one may come back.
    known_run: u32,
    /// The run that its last rollback made.
    replaced_run: u32,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    sandboxes: Vec<Sandbox>,
    pub(super) requests: Vec<Request>,
    /// Whether several fronts are asked.
    pub(super) shared: bool,
    /// The sandboxes of snapshots, and of which run they are.
    snapshots: BTreeMap<String, (usize, u32)>,
    /// Snapshots that somebody was told of, and that nobody deletes.
    promised_snapshots: BTreeSet<String>,
}

/// A rule and how it was broken.
pub(super) type Broken = (&'static str, String);
type Checked = Result<(), Broken>;

impl Ledger {
    fn of(&mut self, sandbox: usize) -> &mut Sandbox {
        if self.sandboxes.len() <= sandbox {
            self.sandboxes.resize_with(sandbox + 1, Sandbox::default);
        }
        &mut self.sandboxes[sandbox]
    }

    pub(super) fn ask(
        &mut self,
        front: u32,
        sandbox: usize,
        wish: Wish,
        now: UnixMillis,
    ) -> Ticket {
        let number = self.requests.len();
        self.of(sandbox).requests.push(number);
        self.requests.push(Request {
            sandbox,
            wish,
            outcome: Outcome::Waiting,
            front,
            asked_at: now,
            answered_at: UnixMillis(0),
        });
        Ticket(u64::try_from(number).unwrap_or(u64::MAX))
    }

    /// A client hears an answer; false when it is not there any more.
    pub(super) fn answer(
        &mut self,
        ticket: Ticket,
        answer: Answer,
        now: UnixMillis,
    ) -> Result<bool, Broken> {
        let number = usize::try_from(ticket.0).unwrap_or(usize::MAX);
        let Some(request) = self.requests.get_mut(number) else {
            return Err(("an answer has a caller", format!("{ticket:?} {answer:?}")));
        };
        match request.outcome {
            Outcome::Waiting => {}
            Outcome::Left => return Ok(false),
            Outcome::Answered(_) | Outcome::Lost => {
                return Err(("an answer is given once", format!("{request:?} {answer:?}")));
            }
        }
        request.outcome = Outcome::Answered(answer);
        request.answered_at = now;
        let (sandbox, wish) = (request.sandbox, request.wish);
        let asked_at = request.asked_at;
        let reasons = self.may_end(sandbox, now);
        let shared = self.shared;
        let one = &mut self.sandboxes[sandbox];
        // The answer of one front may come after another's resume; what ran before the question may not.
        let goes_on = shared && one.started_at.is_some_and(|started| started >= asked_at);
        match (wish, answer) {
            (Wish::Create { .. }, Answer::Created(_)) if !one.alive && !reasons => {
                return Err(("a created sandbox is there", format!("sandbox {sandbox}")));
            }
            (Wish::Resume(_), Answer::Resumed(_)) => {
                if !one.alive && !reasons {
                    return Err(("a resumed sandbox is there", format!("sandbox {sandbox}")));
                }
                one.known_run = one.starts;
            }
            (Wish::Create { .. }, Answer::Created(_)) => one.known_run = one.starts,
            (Wish::Pause, Answer::Paused | Answer::AlreadyPaused) if one.alive && !goes_on => {
                let detail = format!("sandbox {sandbox} runs and is {answer:?}");
                return Err(("what is paused does not run", detail));
            }
            (Wish::Kill, Answer::Killed | Answer::Missing) => {
                one.over = true;
                if one.alive {
                    let detail = format!("sandbox {sandbox} after {answer:?}");
                    return Err(("a killed sandbox is gone", detail));
                }
            }
            (_, Answer::Missing | Answer::BeingKilled) if !reasons => {
                let detail = format!("sandbox {sandbox} is {answer:?}");
                return Err(("no sandbox is lost", detail));
            }
            _ => {}
        }
        Ok(true)
    }

    /// Which sandbox somebody asked about.
    pub(super) fn sandbox_of(&self, ticket: Ticket) -> Option<usize> {
        let number = usize::try_from(ticket.0).unwrap_or(usize::MAX);
        self.requests.get(number).map(|request| request.sandbox)
    }

    pub(super) fn leave(&mut self, ticket: Ticket) {
        let number = usize::try_from(ticket.0).unwrap_or(usize::MAX);
        if let Some(request) = self.requests.get_mut(number)
            && request.outcome == Outcome::Waiting
        {
            request.outcome = Outcome::Left;
        }
    }

    pub(super) fn front_died(&mut self, front: u32) {
        for request in &mut self.requests {
            if request.front == front && matches!(request.outcome, Outcome::Waiting | Outcome::Left)
            {
                request.outcome = Outcome::Lost;
            }
        }
    }

    pub(super) fn exited(&mut self, sandbox: usize) {
        let one = self.of(sandbox);
        one.exited_run = Some(one.starts);
    }

    pub(super) fn is_alive(&self, sandbox: usize) -> bool {
        self.sandboxes.get(sandbox).is_some_and(|one| one.alive)
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.sandboxes.len()).filter(|sandbox| self.sandboxes[*sandbox].alive)
    }

    /// A process came to be.
    pub(super) fn started(
        &mut self,
        sandbox: usize,
        now: UnixMillis,
        limit: u32,
        from: Option<String>,
    ) -> Checked {
        let run = from.as_ref().map(|name| self.snapshots.get(name).copied());
        let one = self.of(sandbox);
        let again = one.alive || one.starts > 0 && from.is_none();
        // A fork begins as another sandbox was, and goes on by itself.
        let fork = one.starts == 0;
        one.started_at = Some(now);
        one.starts += 1;
        one.alive = true;
        one.signalled = false;
        if again {
            return Err(("no sandbox runs twice", format!("sandbox {sandbox}")));
        }
        let known_run = one.known_run;
        let is_back = |(of, run)| of != sandbox || run < known_run;
        if !fork && run.is_some_and(|run| run.is_none_or(is_back)) {
            let detail = format!("sandbox {sandbox} from {from:?}");
            return Err(("no sandbox goes back", detail));
        }
        if one.over {
            return Err((
                "kill wins",
                format!("sandbox {sandbox} started after its end"),
            ));
        }
        let alive = self.alive().count();
        if alive > usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(("limits hold", format!("{alive} run, {limit} may")));
        }
        Ok(())
    }

    /// Other processes have taken its place, and the former are gone.
    pub(super) fn replaced(&mut self, sandbox: usize) {
        let one = self.of(sandbox);
        one.starts += 1;
        one.replaced_run = one.starts;
        one.signalled = false;
    }

    /// How often it was started.
    pub(super) fn run_of(&self, sandbox: usize) -> u32 {
        self.sandboxes.get(sandbox).map_or(0, |one| one.starts)
    }

    /// Somebody was told that it has gone back: nothing of before may come again. It may have been started since then, and nobody told.
    pub(super) fn rolled_back(&mut self, sandbox: usize) {
        let one = self.of(sandbox);
        one.known_run = one.known_run.max(one.replaced_run);
    }

    /// A save that was to end it failed: at its deadline it is killed instead.
    pub(super) fn excuse(&mut self, sandbox: usize) {
        self.of(sandbox).excused = true;
    }

    /// A save harmed it: nobody can be blamed for what it becomes.
    pub(super) fn harm(&mut self, sandbox: usize) {
        self.of(sandbox).harmed = true;
    }

    pub(super) fn saved(&mut self, sandbox: usize, name: &str) {
        let run = self.of(sandbox).starts;
        self.snapshots.insert(name.to_owned(), (sandbox, run));
    }

    /// Somebody was told of a snapshot.
    pub(super) fn promise_snapshot(&mut self, name: &str, exists: bool) -> Checked {
        self.promised_snapshots.insert(name.to_owned());
        if exists {
            return Ok(());
        }
        Err((
            "a snapshot that somebody was told of exists",
            name.to_owned(),
        ))
    }

    pub(super) fn deleted(&mut self, name: &str) -> Checked {
        if self.promised_snapshots.contains(name) {
            return Err((
                "a snapshot that somebody was told of exists",
                name.to_owned(),
            ));
        }
        Ok(())
    }

    /// The pause at a deadline begins.
    pub(super) fn pauses_in_time(
        &mut self,
        sandbox: usize,
        now: UnixMillis,
        due: UnixMillis,
    ) -> Checked {
        if !self.may_end(sandbox, now) {
            let detail = format!("sandbox {sandbox}: {:?}", self.promised(sandbox));
            return Err(("no sandbox is paused without a reason", detail));
        }
        let due = self.of(sandbox).started_at.map_or(due, |at| due.max(at));
        if now > due.plus_millis(EXPIRY_WITHIN) {
            let detail = format!("sandbox {sandbox}: {} ms late", now.millis_since(due));
            return Err(("expiry within a second", detail));
        }
        Ok(())
    }

    /// Its row says that it is paused, with the snapshot of that name.
    pub(super) fn row_is_paused(&mut self, sandbox: usize, name: &str, exists: bool) -> Checked {
        let run = self.snapshots.get(name).copied();
        let one = self.of(sandbox);
        let detail = || format!("sandbox {sandbox}, snapshot {name}");
        if !exists {
            return Err(("a paused sandbox is never lost", detail()));
        }
        if run.is_none_or(|(of, run)| of != sandbox || run < one.known_run) {
            return Err(("no sandbox goes back", detail()));
        }
        Ok(())
    }

    /// Whether it has gone on from the snapshot of that name, for as long as it was to or until it ended by itself.
    pub(super) fn has_run_again(&self, sandbox: usize, name: &str, now: UnixMillis) -> bool {
        let Some(one) = self.sandboxes.get(sandbox) else {
            return false;
        };
        let run = self.snapshots.get(name).map(|(_, run)| *run);
        let expired = self.of_sandbox(sandbox).any(|request| match request.wish {
            Wish::Resume(to) => now >= to,
            Wish::Set(to) => now >= to && one.started_at.is_some_and(|at| request.asked_at >= at),
            _ => false,
        });
        run.is_some_and(|run| one.starts > run) && (expired || one.exited_run == Some(one.starts))
    }

    /// Its row goes from a pause to an end, or it was to be paused at its deadline.
    pub(super) fn may_be_lost(&self, sandbox: usize, at_rest: bool) -> Checked {
        let killed = self
            .of_sandbox(sandbox)
            .any(|request| request.wish == Wish::Kill);
        let fine = self.sandboxes.get(sandbox).is_none_or(|one| {
            let over = one.exited_run.is_some() || one.excused || one.harmed;
            killed || !at_rest && (over || self.promised(sandbox).is_none())
        });
        if fine {
            return Ok(());
        }
        let detail = format!("sandbox {sandbox}: {:?}", self.promised(sandbox));
        Err(("a paused sandbox is never lost", detail))
    }

    pub(super) fn ended(&mut self, sandbox: usize) {
        self.of(sandbox).alive = false;
    }

    /// The agent sends SIGKILL, or sweeps it away at its start.
    pub(super) fn signalled(
        &mut self,
        sandbox: usize,
        now: UnixMillis,
        due: UnixMillis,
    ) -> Checked {
        let fine = self.may_end(sandbox, now);
        let one = self.of(sandbox);
        if !one.alive || std::mem::replace(&mut one.signalled, true) {
            return Ok(());
        }
        if !fine {
            let detail = format!("sandbox {sandbox}: {:?}", self.promised(sandbox));
            return Err(("no sandbox ends without a reason", detail));
        }
        // A start that took longer than it may live ends as soon as it is there.
        let due = one.started_at.map_or(due, |at| due.max(at));
        if now > due.plus_millis(EXPIRY_WITHIN) {
            let detail = format!("sandbox {sandbox}: {} ms late", now.millis_since(due));
            return Err(("expiry within a second", detail));
        }
        Ok(())
    }

    /// A command of that epoch takes effect on the host; `lasts` when later ones are to be compared with it. A kill is compared, but an
    /// older kill may follow it: there is nothing that it could undo.
    pub(super) fn applies(&mut self, sandbox: usize, epoch: Epoch, lasts: bool) -> Checked {
        let one = self.of(sandbox);
        let before = one.applied;
        if before.is_some_and(|before| epoch < before) {
            let detail = format!("sandbox {sandbox}: {epoch:?} after {before:?}");
            return Err(("no effect of a stale epoch", detail));
        }
        if lasts {
            one.applied = Some(epoch);
        }
        Ok(())
    }

    /// Its row says that it is over.
    pub(super) fn row_is_dead(&mut self, sandbox: usize) -> Checked {
        let one = self.of(sandbox);
        one.over = true;
        if one.alive {
            return Err(("dead means nothing is left", format!("sandbox {sandbox}")));
        }
        Ok(())
    }

    /// Its end was decided, or there is no owner who could: there has to be a reason.
    pub(super) fn cut(&self, sandbox: usize, now: UnixMillis) -> Checked {
        if self.may_end(sandbox, now) {
            return Ok(());
        }
        let detail = format!("sandbox {sandbox}: {:?}", self.promised(sandbox));
        Err(("no sandbox is lost", detail))
    }

    /// Whether it was promised that it runs now.
    pub(super) fn must_run(&self, sandbox: usize, now: UnixMillis) -> bool {
        !self.may_end(sandbox, now)
    }

    /// The earliest and the latest deadline that fit the answers so far; none when nothing was promised.
    pub(super) fn promised(&self, sandbox: usize) -> Option<(UnixMillis, UnixMillis)> {
        let mut bounds = None;
        for request in self.of_sandbox(sandbox) {
            let answered = |answer| request.outcome == Outcome::Answered(answer);
            match (request.wish, &mut bounds) {
                (Wish::Create { deadline }, _) => {
                    if let Outcome::Answered(Answer::Created(progress)) = request.outcome {
                        // A start that took long moves the deadline, as well as that can be done.
                        bounds = Some((deadline.min(progress.deadline), progress.deadline));
                    }
                }
                (Wish::Set(to), Some((low, high))) => {
                    // Where the answer is that its time is over, the host may not have heard of it.
                    if answered(Answer::DeadlineMoved) && request.answered_at < to {
                        (*low, *high) = (to, to);
                        self.may_overtake(sandbox, request, low, high);
                    } else {
                        (*low, *high) = ((*low).min(to), (*high).max(to));
                    }
                }
                (Wish::Extend(to), Some((low, high))) => {
                    if answered(Answer::DeadlineMoved) {
                        *low = (*low).max(to);
                    }
                    *high = (*high).max(to);
                    self.may_overtake(sandbox, request, low, high);
                }
                // It may stand still from now on, and for how long nobody knows.
                (Wish::Pause, Some(bounds)) => *bounds = (UnixMillis(0), SOMETIME),
                (Wish::Resume(_), _) if answered(Answer::Runs) => {}
                (Wish::Resume(to), Some((low, high))) => {
                    if let Outcome::Answered(Answer::Resumed(progress)) = request.outcome {
                        (*low, *high) = (to.min(progress.deadline), progress.deadline);
                        let since = if self.shared {
                            request.asked_at
                        } else {
                            request.answered_at
                        };
                        self.may_follow(sandbox, request, since, low, high);
                    } else {
                        *high = SOMETIME;
                    }
                }
                (
                    Wish::Set(_)
                    | Wish::Extend(_)
                    | Wish::Kill
                    | Wish::Pause
                    | Wish::Resume(_)
                    | Wish::Snapshot
                    | Wish::Rollback,
                    _,
                ) => {}
            }
        }
        bounds
    }

    /// Two fronts may take up what they are asked for at the same time in either order.
    fn may_overtake(
        &self,
        sandbox: usize,
        request: &Request,
        low: &mut UnixMillis,
        high: &mut UnixMillis,
    ) {
        if self.shared {
            self.may_follow(sandbox, request, request.asked_at, low, high);
        }
    }

    /// When it has to end at the latest, if that is known.
    pub(super) fn due(&self, sandbox: usize) -> Option<UnixMillis> {
        let (_, latest) = self.promised(sandbox)?;
        (latest < SOMETIME).then_some(latest)
    }

    /// What was asked for before a request and was not answered before `since` may still come after it.
    fn may_follow(
        &self,
        sandbox: usize,
        request: &Request,
        since: UnixMillis,
        low: &mut UnixMillis,
        high: &mut UnixMillis,
    ) {
        for earlier in self.of_sandbox(sandbox) {
            if std::ptr::eq(earlier, request) {
                return;
            }
            let over =
                matches!(earlier.outcome, Outcome::Answered(_)) && earlier.answered_at < since;
            match earlier.wish {
                _ if over => {}
                Wish::Set(to) | Wish::Extend(to) => {
                    (*low, *high) = ((*low).min(to), (*high).max(to));
                }
                Wish::Resume(to) => {
                    (*low, *high) = ((*low).min(to), SOMETIME);
                }
                Wish::Pause => (*low, *high) = (UnixMillis(0), SOMETIME),
                Wish::Create { .. } | Wish::Kill | Wish::Snapshot | Wish::Rollback => {}
            }
        }
    }

    pub(super) fn waiting(&self) -> Option<&Request> {
        self.requests
            .iter()
            .find(|request| request.outcome == Outcome::Waiting)
    }

    fn of_sandbox(&self, sandbox: usize) -> impl Iterator<Item = &Request> {
        let numbers = self.sandboxes.get(sandbox).map(|one| &one.requests[..]);
        numbers
            .unwrap_or_default()
            .iter()
            .map(|number| &self.requests[*number])
    }

    fn may_end(&self, sandbox: usize, now: UnixMillis) -> bool {
        let killed = self
            .of_sandbox(sandbox)
            .any(|request| request.wish == Wish::Kill);
        let one = self.sandboxes.get(sandbox);
        let exited = one.is_some_and(|one| one.exited_run.is_some() || one.harmed);
        killed || exited || self.promised(sandbox).is_none_or(|(low, _)| now >= low)
    }
}
