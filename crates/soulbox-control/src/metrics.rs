//! What sandboxes use and how many a team has, over time: sampled every five seconds.
//!
//! The last half hour is kept sample by sample in memory, what is older by the two minutes in the store. So a server that starts knows the
//! past, but for the last minutes of one that was killed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use soulbox_types::{SandboxId, SandboxState, TeamId, UnixMillis};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clock;
use crate::control::Control;
use crate::history::KeptSample;
use crate::hosts::HostUsage;
use crate::registry::Handle;
use crate::store::{SandboxRow, StoreError, TeamRow};

const EVERY: Duration = Duration::from_secs(5);
const RECENT: usize = 360;
const COARSE_MILLIS: u64 = 120_000;
/// Dead sandboxes whose last half hour is kept; the longest dead ones go first.
const MAX_DEAD: usize = 256;
/// How often points go into the store.
const WRITE_ROUNDS: u64 = 12;
/// Points that the store has not taken yet; the oldest go first.
const MAX_UNWRITTEN: usize = 100_000;
/// A server that stops waits so long for its store to take the last points.
const LAST_WRITE_WITHIN: Duration = Duration::from_secs(2);

/// What one sandbox used at one moment; processor time is over the interval before it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SandboxSample {
    /// Percent of all its CPUs, 0 to 100.
    pub cpu_percent: f64,
    /// Bytes, without the page cache.
    pub memory: u64,
    pub cache: u64,
    /// Bytes that it has added to its template's files.
    pub disk: u64,
    pub processes: u64,
    /// Bytes since its start.
    pub received: u64,
    pub sent: u64,
}

/// How many sandboxes a team had at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TeamSample {
    pub concurrent: u32,
    /// A second, over the interval before it.
    pub start_rate: f64,
}

/// A sample and when it was taken.
pub type Point<T> = (UnixMillis, T);

/// The part of a series between two moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    pub from: Option<UnixMillis>,
    pub to: UnixMillis,
}

/// The last half hour of something.
struct Series<T> {
    recent: VecDeque<Point<T>>,
    /// The two minutes that are not over.
    coarse: Option<Point<T>>,
    fold: Fold<T>,
}

/// What stands for two samples of the same interval.
type Fold<T> = fn(T, T) -> T;

impl<T: Copy> Series<T> {
    fn new(fold: Fold<T>) -> Self {
        Self {
            recent: VecDeque::new(),
            coarse: None,
            fold,
        }
    }

    /// Returns the point of two minutes that are over.
    fn push(&mut self, at: UnixMillis, sample: T) -> Option<Point<T>> {
        self.recent.push_back((at, sample));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        match &mut self.coarse {
            Some((begun, folded)) if at.millis_since(*begun) < COARSE_MILLIS => {
                *folded = (self.fold)(*folded, sample);
                None
            }
            coarse => coarse.replace((at, sample)),
        }
    }
}

/// The samples within the range, oldest first, as dense as its length allows: the older ones until there are recent ones.
fn within<T: Copy>(
    range: TimeRange,
    older: impl IntoIterator<Item = Point<T>>,
    recent: &VecDeque<Point<T>>,
    fold: Fold<T>,
) -> Vec<Point<T>> {
    let sampled_since = recent.front().map_or(UnixMillis(u64::MAX), |it| it.0);
    let older = older.into_iter().filter(|it| it.0 < sampled_since);
    let in_range = |it: &Point<T>| range.from.is_none_or(|from| it.0 >= from) && it.0 <= range.to;
    let found: Vec<_> = older
        .chain(recent.iter().copied())
        .filter(in_range)
        .collect();
    let Some(first) = found.first().map(|it| it.0) else {
        return found;
    };
    let step = step_millis(range.to.millis_since(range.from.unwrap_or(first)));
    // Half a sample's interval of grace, since samples do not come by the millisecond.
    let step = step.saturating_sub(clock::millis(EVERY) / 2);
    let mut next = first;
    let mut thinned: Vec<Point<T>> = Vec::new();
    for (at, sample) in found {
        match thinned.last_mut() {
            // What happened between two points is in one of them.
            Some(point) if at < next => point.1 = fold(point.1, sample),
            _ => {
                next = at.plus_millis(step);
                thinned.push((at, sample));
            }
        }
    }
    thinned
}

/// Between two points of an answer, by the length of what was asked for.
fn step_millis(window_millis: u64) -> u64 {
    const HOUR: u64 = 3600;
    1000 * match window_millis / 1000 {
        ..HOUR => 5,
        HOUR..21_600 => 30,
        21_600..43_200 => 60,
        43_200..86_400 => 120,
        86_400..604_800 => 300,
        _ => 900,
    }
}

/// A counter of processor time as it was last seen.
#[derive(Clone, Copy)]
struct Seen {
    at: UnixMillis,
    cpu_micros: u64,
}

struct OfSandbox {
    row: Arc<SandboxRow>,
    seen: Option<Seen>,
    /// When it was found dead.
    dead_since: Option<UnixMillis>,
    series: Series<SandboxSample>,
}

struct OfTeam {
    started: u32,
    series: Series<TeamSample>,
}

/// All series.
#[derive(Default)]
pub(crate) struct Metrics {
    sandboxes: Mutex<HashMap<SandboxId, OfSandbox>>,
    teams: Mutex<HashMap<TeamId, OfTeam>>,
    /// Points that the store has not taken yet, oldest first.
    unwritten: Mutex<VecDeque<KeptSample>>,
}

impl Metrics {
    pub(crate) fn count_start(&self, team_id: &TeamId) {
        of_team(&mut lock(&self.teams), team_id).started += 1;
    }

    /// Takes in what a host said of its sandboxes; those of which it says nothing are dead.
    fn take_usage(&self, at: UnixMillis, running: &[Arc<SandboxRow>], usage: &[HostUsage]) {
        let usage: HashMap<_, _> = usage.iter().map(|it| (&it.sandbox_id, it)).collect();
        let mut sandboxes = lock(&self.sandboxes);
        for row in running {
            let Some(usage) = usage.get(&row.sandbox_id) else {
                continue;
            };
            let entry = sandboxes
                .entry(row.sandbox_id.clone())
                .or_insert_with(|| OfSandbox {
                    row: row.clone(),
                    seen: None,
                    dead_since: None,
                    series: Series::new(newer),
                });
            entry.dead_since = None;
            let now = Seen {
                at,
                cpu_micros: usage.cpu_micros,
            };
            if let Some(before) = entry.seen.replace(now) {
                let sample = SandboxSample {
                    cpu_percent: cpu_percent(before, now, row.limits.cpu.0),
                    memory: usage.memory,
                    cache: usage.cache,
                    disk: usage.disk,
                    processes: usage.processes,
                    received: usage.received,
                    sent: usage.sent,
                };
                let over = entry.series.push(at, sample);
                self.keep(row.sandbox_id.as_str(), over);
            }
        }
        for (id, entry) in sandboxes.iter_mut() {
            if !usage.contains_key(id) {
                entry.dead_since.get_or_insert(at);
                self.keep(id.as_str(), entry.series.coarse.take());
            }
        }
        let mut dead: Vec<_> = sandboxes
            .iter()
            .filter_map(|(id, entry)| Some((entry.dead_since?, id.clone())))
            .collect();
        dead.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
        for (_, id) in dead.drain(MAX_DEAD.min(dead.len())..) {
            sandboxes.remove(&id);
        }
    }

    fn take_counts(&self, at: UnixMillis, running: &[Arc<SandboxRow>]) {
        let mut counts: HashMap<&TeamId, u32> = HashMap::new();
        for row in running {
            *counts.entry(&row.team_id).or_default() += 1;
        }
        let mut teams = lock(&self.teams);
        for team_id in counts.keys() {
            of_team(&mut teams, team_id);
        }
        for (team_id, entry) in teams.iter_mut() {
            let sample = TeamSample {
                concurrent: counts.get(team_id).copied().unwrap_or(0),
                start_rate: f64::from(std::mem::take(&mut entry.started)) / EVERY.as_secs_f64(),
            };
            let over = entry.series.push(at, sample);
            self.keep(team_id.as_str(), over);
        }
    }

    /// Notes for the store what two minutes were like.
    fn keep(&self, subject: &str, point: Option<Point<impl Serialize>>) {
        let Some((at, sample)) = point else {
            return;
        };
        // These are numbers, which JSON has.
        let Ok(sample) = serde_json::to_string(&sample) else {
            return;
        };
        let mut unwritten = lock(&self.unwritten);
        unwritten.push_back(KeptSample {
            subject: subject.to_owned(),
            at,
            sample,
        });
        if unwritten.len() > MAX_UNWRITTEN {
            unwritten.pop_front();
        }
    }

    /// Notes for the store what has not lasted two minutes: this server ends.
    fn keep_all(&self) {
        for (id, entry) in lock(&self.sandboxes).iter_mut() {
            self.keep(id.as_str(), entry.series.coarse.take());
        }
        for (id, entry) in lock(&self.teams).iter_mut() {
            self.keep(id.as_str(), entry.series.coarse.take());
        }
    }

    /// The half hour of a sandbox of the team that is in memory.
    fn recent(
        &self,
        team: &TeamRow,
        id: &SandboxId,
    ) -> Option<(Arc<SandboxRow>, VecDeque<Point<SandboxSample>>)> {
        let sandboxes = lock(&self.sandboxes);
        let entry = sandboxes.get(id)?;
        (entry.row.team_id == team.team_id)
            .then(|| (entry.row.clone(), entry.series.recent.clone()))
    }
}

impl Control {
    /// The samples of a sandbox of the team; none of an unknown one.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn metrics(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        range: TimeRange,
    ) -> Result<Option<(Arc<SandboxRow>, Vec<Point<SandboxSample>>)>, StoreError> {
        let (row, recent) = match self.shared.metrics.recent(team, id) {
            Some(found) => found,
            None => match self.store().sandbox(id).await? {
                Some(row) if row.team_id == team.team_id => (Arc::new(row), VecDeque::new()),
                Some(_) | None => return Ok(None),
            },
        };
        let older = self.older(id.as_str(), range, &recent).await?;
        Ok(Some((row, within(range, older, &recent, newer))))
    }

    /// The samples of the range that are in the store, unless memory has all of it.
    async fn older<T: DeserializeOwned>(
        &self,
        subject: &str,
        range: TimeRange,
        recent: &VecDeque<Point<T>>,
    ) -> Result<Vec<Point<T>>, StoreError> {
        let from = range.from.unwrap_or(UnixMillis(0));
        if recent.front().is_some_and(|(at, _)| *at <= from) {
            return Ok(Vec::new());
        }
        let kept = self.store().samples(subject, (from, range.to)).await?;
        // One of a later version, with other fields, is passed over.
        let samples = kept
            .into_iter()
            .filter_map(|(at, text)| Some((at, serde_json::from_str(&text).ok()?)));
        Ok(samples.collect())
    }

    /// The newest sample of a running sandbox of the team.
    #[must_use]
    pub fn latest_metrics(
        &self,
        team: &TeamRow,
        id: &SandboxId,
    ) -> Option<(Arc<SandboxRow>, Point<SandboxSample>)> {
        let row = self.running(team, id).ok()?.row;
        let sandboxes = lock(&self.shared.metrics.sandboxes);
        Some((row, *sandboxes.get(id)?.series.recent.back()?))
    }

    /// How many sandboxes the team had.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn team_metrics(
        &self,
        team: &TeamRow,
        range: TimeRange,
    ) -> Result<Vec<Point<TeamSample>>, StoreError> {
        let recent = lock(&self.shared.metrics.teams)
            .get(&team.team_id)
            .map(|entry| entry.series.recent.clone())
            .unwrap_or_default();
        let older = self.older(team.team_id.as_str(), range, &recent).await?;
        Ok(within(range, older, &recent, most))
    }

    /// Samples until `shutdown`.
    pub(crate) async fn measure(&self, shutdown: &CancellationToken) {
        let mut rounds = tokio::time::interval(EVERY);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round: u64 = 0;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = rounds.tick() => {}
            }
            // A stop does not wait for a host.
            shutdown.run_until_cancelled(self.measure_once()).await;
            round += 1;
            if round.is_multiple_of(WRITE_ROUNDS)
                && let Err(failure) = self.write_samples().await
            {
                // They are kept for the next time.
                warn!(error = %crate::chain(&failure), "failed to write samples");
            }
        }
        self.shared.metrics.keep_all();
        match tokio::time::timeout(LAST_WRITE_WITHIN, self.write_samples()).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                warn!(error = %crate::chain(&failure), "the last samples are lost");
            }
            Err(_) => warn!("the last samples are lost: the store takes too long"),
        }
    }

    async fn write_samples(&self) -> Result<(), StoreError> {
        let unwritten: Vec<_> = lock(&self.shared.metrics.unwritten)
            .iter()
            .cloned()
            .collect();
        if unwritten.is_empty() {
            return Ok(());
        }
        self.store().keep_samples(&unwritten).await?;
        // Nobody else takes any away, and new ones come behind these.
        lock(&self.shared.metrics.unwritten).drain(..unwritten.len());
        Ok(())
    }

    async fn measure_once(&self) {
        let running: Vec<_> = self
            .registry()
            .all()
            .into_iter()
            .filter(|handle| handle.state() == SandboxState::Running)
            .collect();
        let rows: Vec<_> = running.iter().map(|it| Arc::clone(&it.row)).collect();
        self.shared.metrics.take_counts(clock::wall(), &rows);
        match tokio::time::timeout(EVERY, self.hosts().usage()).await {
            Ok(Ok(usage)) => {
                let now = clock::wall();
                self.shared.metrics.take_usage(now, &rows, &usage);
                self.note_oom_kills(&running, &usage);
            }
            // A gap in the series; the next round says more.
            Ok(Err(failure)) => {
                tracing::debug!(error = %crate::chain(&failure), "failed to measure sandboxes");
            }
            Err(_) => tracing::debug!("failed to measure sandboxes in time"),
        }
    }

    /// Inside, a program that was ended for want of memory looks like any that got SIGKILL; the log of its sandbox tells them apart.
    fn note_oom_kills(&self, running: &[Handle], usage: &[HostUsage]) {
        let counted: HashMap<_, _> = usage
            .iter()
            .map(|it| (&it.sandbox_id, it.oom_kills))
            .collect();
        let logs = &self.shared.around.logs;
        for Handle { row, progress, .. } in running {
            if let Some(oom_kills) = counted.get(&row.sandbox_id) {
                let started_at = progress.borrow().started_at;
                logs.count_oom_kills(row, started_at, *oom_kills);
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of days are far below 2^52"
)]
fn cpu_percent(before: Seen, now: Seen, cpu_milli: u32) -> f64 {
    let used = now.cpu_micros.saturating_sub(before.cpu_micros) as f64;
    let available = now.at.millis_since(before.at) as f64 * f64::from(cpu_milli);
    let percent = if available > 0.0 {
        100.0 * used / available
    } else {
        0.0
    };
    (percent.clamp(0.0, 100.0) * 100.0).round() / 100.0
}

fn of_team<'a>(teams: &'a mut HashMap<TeamId, OfTeam>, team_id: &TeamId) -> &'a mut OfTeam {
    teams.entry(team_id.clone()).or_insert_with(|| OfTeam {
        started: 0,
        series: Series::new(most),
    })
}

fn newer(_: SandboxSample, newer: SandboxSample) -> SandboxSample {
    newer
}

fn most(one: TeamSample, other: TeamSample) -> TeamSample {
    TeamSample {
        concurrent: one.concurrent.max(other.concurrent),
        start_rate: one.start_rate.max(other.start_rate),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A series, and what of it was to go into the store.
    fn filled(samples: u64) -> (Series<u64>, Vec<Point<u64>>) {
        let mut series = Series::new(u64::max);
        let over = (0..samples).filter_map(|number| series.push(UnixMillis(number * 5000), number));
        let over = over.collect();
        (series, over)
    }

    fn range(from: u64, to: u64) -> TimeRange {
        TimeRange {
            from: Some(UnixMillis(from)),
            to: UnixMillis(to),
        }
    }

    #[test]
    fn a_series_is_bounded_and_its_older_part_is_coarse() {
        let (series, older) = filled(400);
        assert_eq!(series.recent.len(), RECENT);
        // Two minutes are 24 samples, and the largest stands for them.
        assert_eq!(older[0], (UnixMillis(0), 23));
        assert_eq!(
            (older.len(), series.coarse),
            (16, Some((UnixMillis(384 * 5000), 399)))
        );
        let everything = TimeRange {
            from: None,
            to: UnixMillis(2_000_000),
        };
        let all = within(everything, older, &series.recent, u64::max);
        assert_eq!(all[0], (UnixMillis(0), 23));
        assert_eq!(all.last(), Some(&(UnixMillis(399 * 5000), 399)));
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn an_answer_is_as_dense_as_its_window_allows() {
        let (series, _) = filled(300);
        let within = |from, to| within(range(from, to), [], &series.recent, u64::max);
        assert_eq!(within(100_000, 199_999).len(), 20);
        let thin = within(0, 2 * 3_600_000);
        assert_eq!(thin[1].0, UnixMillis(30_000));
        assert_eq!(thin[0].1, 5, "the most of what it stands for");
        assert_eq!(thin.len(), 50);
        assert!(within(5_000_000, 6_000_000).is_empty());
    }

    #[test]
    fn processor_time_is_a_share_of_all_cpus() {
        let at = |millis, cpu_micros| Seen {
            at: UnixMillis(millis),
            cpu_micros,
        };
        // One of two CPUs busy for five seconds.
        assert_eq!(cpu_percent(at(0, 0), at(5000, 5_000_000), 2000), 50.0);
        assert_eq!(cpu_percent(at(0, 0), at(5000, 99_000_000), 2000), 100.0);
        assert_eq!(cpu_percent(at(0, 7), at(0, 9), 2000), 0.0);
        // A sandbox of another agent's counting.
        assert_eq!(cpu_percent(at(0, 7), at(5000, 0), 1000), 0.0);
    }
}
