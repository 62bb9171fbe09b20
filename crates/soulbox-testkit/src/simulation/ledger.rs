//! What was asked for, what was promised, what really exists; and whether the one fits the other.
//!
//! Nothing of the code under test is used to judge it: processes are counted by the world, promises are the answers that clients got.

use soulbox_control::ownership::{Answer, Ticket};
use soulbox_types::{Epoch, UnixMillis};

/// The latest that an end may come after its deadline.
const EXPIRY_WITHIN: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Create { deadline: UnixMillis },
    Set(UnixMillis),
    Extend(UnixMillis),
    Kill,
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
    answered_at: UnixMillis,
}

#[derive(Debug, Clone, Default)]
struct Sandbox {
    requests: Vec<usize>,
    exited: bool,
    starts: u32,
    started_at: Option<UnixMillis>,
    alive: bool,
    signalled: bool,
    /// Somebody was told, or the row says, that it is over.
    over: bool,
    applied: Option<Epoch>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    sandboxes: Vec<Sandbox>,
    pub(super) requests: Vec<Request>,
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

    pub(super) fn ask(&mut self, sandbox: usize, wish: Wish) -> Ticket {
        let number = self.requests.len();
        self.of(sandbox).requests.push(number);
        self.requests.push(Request {
            sandbox,
            wish,
            outcome: Outcome::Waiting,
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
        let reasons = self.may_end(sandbox, now);
        let one = &mut self.sandboxes[sandbox];
        match (wish, answer) {
            (Wish::Create { .. }, Answer::Created(_)) if !one.alive && !reasons => {
                return Err(("a created sandbox is there", format!("sandbox {sandbox}")));
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

    pub(super) fn leave(&mut self, ticket: Ticket) {
        let number = usize::try_from(ticket.0).unwrap_or(usize::MAX);
        if let Some(request) = self.requests.get_mut(number)
            && request.outcome == Outcome::Waiting
        {
            request.outcome = Outcome::Left;
        }
    }

    pub(super) fn front_died(&mut self) {
        for request in &mut self.requests {
            if matches!(request.outcome, Outcome::Waiting | Outcome::Left) {
                request.outcome = Outcome::Lost;
            }
        }
    }

    pub(super) fn exited(&mut self, sandbox: usize) {
        self.of(sandbox).exited = true;
    }

    pub(super) fn is_alive(&self, sandbox: usize) -> bool {
        self.sandboxes.get(sandbox).is_some_and(|one| one.alive)
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.sandboxes.len()).filter(|sandbox| self.sandboxes[*sandbox].alive)
    }

    /// A process came to be.
    pub(super) fn started(&mut self, sandbox: usize, now: UnixMillis, limit: u32) -> Checked {
        let one = self.of(sandbox);
        one.started_at = Some(now);
        one.starts += 1;
        one.alive = true;
        if one.starts > 1 {
            return Err(("no sandbox runs twice", format!("sandbox {sandbox}")));
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
                    } else {
                        (*low, *high) = ((*low).min(to), (*high).max(to));
                    }
                }
                (Wish::Extend(to), Some((low, high))) => {
                    if answered(Answer::DeadlineMoved) {
                        *low = (*low).max(to);
                    }
                    *high = (*high).max(to);
                }
                (Wish::Set(_) | Wish::Extend(_) | Wish::Kill, _) => {}
            }
        }
        bounds
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
        let exited = self.sandboxes.get(sandbox).is_some_and(|one| one.exited);
        killed || exited || self.promised(sandbox).is_none_or(|(low, _)| now >= low)
    }
}
