//! What sandboxes use and how many a team has, over time: sampled every five seconds, kept in memory, bounded.
//!
//! The last half hour is kept sample by sample, what is older by the two minutes. A restart of the front begins anew; the host keeps nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use soulbox_types::{SandboxId, SandboxState, TeamId, UnixMillis};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::control::Control;
use crate::hosts::HostUsage;
use crate::store::{SandboxRow, TeamRow};

const EVERY: Duration = Duration::from_secs(5);
const RECENT: usize = 360;
const COARSE_MILLIS: u64 = 120_000;
/// A day of a sandbox, which is the longest life by default, and a week of a team.
const COARSE_OF_SANDBOX: usize = 720;
const COARSE_OF_TEAM: usize = 5040;
/// Dead sandboxes whose series are kept; the longest dead ones go first.
const MAX_DEAD: usize = 256;

/// What one sandbox used at one moment; processor time is over the interval before it.
#[derive(Debug, Clone, Copy, PartialEq)]
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
#[derive(Debug, Clone, Copy, PartialEq)]
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

struct Series<T> {
    recent: VecDeque<Point<T>>,
    coarse: VecDeque<Point<T>>,
    max_coarse: usize,
    /// What stands for two samples of the same two minutes.
    fold: fn(T, T) -> T,
}

impl<T: Copy> Series<T> {
    fn new(max_coarse: usize, fold: fn(T, T) -> T) -> Self {
        Self {
            recent: VecDeque::new(),
            coarse: VecDeque::new(),
            max_coarse,
            fold,
        }
    }

    fn push(&mut self, at: UnixMillis, sample: T) {
        self.recent.push_back((at, sample));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        match self.coarse.back_mut() {
            Some((begun, folded)) if at.millis_since(*begun) < COARSE_MILLIS => {
                *folded = (self.fold)(*folded, sample);
            }
            _ => self.coarse.push_back((at, sample)),
        }
        if self.coarse.len() > self.max_coarse {
            self.coarse.pop_front();
        }
    }

    /// The samples within the range, oldest first, as dense as its length allows.
    fn within(&self, range: TimeRange) -> Vec<Point<T>> {
        let sampled_since = self.recent.front().map_or(UnixMillis(u64::MAX), |it| it.0);
        let older = self.coarse.iter().filter(|it| it.0 < sampled_since);
        let all = older.chain(&self.recent).copied();
        let in_range =
            |it: &Point<T>| range.from.is_none_or(|from| it.0 >= from) && it.0 <= range.to;
        let found: Vec<_> = all.filter(in_range).collect();
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
                Some(point) if at < next => point.1 = (self.fold)(point.1, sample),
                _ => {
                    next = at.plus_millis(step);
                    thinned.push((at, sample));
                }
            }
        }
        thinned
    }
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
                    series: Series::new(COARSE_OF_SANDBOX, |_, newer| newer),
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
                entry.series.push(at, sample);
            }
        }
        for (id, entry) in sandboxes.iter_mut() {
            if !usage.contains_key(id) {
                entry.dead_since.get_or_insert(at);
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
            entry.series.push(at, sample);
        }
    }
}

impl Control {
    /// The samples of a sandbox of the team; none of an unknown one.
    #[must_use]
    pub fn metrics(
        &self,
        team: &TeamRow,
        id: &SandboxId,
        range: TimeRange,
    ) -> Option<(Arc<SandboxRow>, Vec<Point<SandboxSample>>)> {
        let sandboxes = lock(&self.shared.metrics.sandboxes);
        let entry = sandboxes.get(id)?;
        (entry.row.team_id == team.team_id).then(|| (entry.row.clone(), entry.series.within(range)))
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
    #[must_use]
    pub fn team_metrics(&self, team: &TeamRow, range: TimeRange) -> Vec<Point<TeamSample>> {
        lock(&self.shared.metrics.teams)
            .get(&team.team_id)
            .map(|entry| entry.series.within(range))
            .unwrap_or_default()
    }

    /// Samples until `shutdown`.
    pub(crate) async fn measure(&self, shutdown: &CancellationToken) {
        let mut rounds = tokio::time::interval(EVERY);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = rounds.tick() => {
                    // A stop does not wait for a host.
                    shutdown.run_until_cancelled(self.measure_once()).await;
                }
            }
        }
    }

    async fn measure_once(&self) {
        let running: Vec<_> = self
            .registry()
            .all()
            .into_iter()
            .filter(|handle| handle.state() == SandboxState::Running)
            .map(|handle| handle.row)
            .collect();
        self.shared.metrics.take_counts(clock::wall(), &running);
        match tokio::time::timeout(EVERY, self.hosts().usage()).await {
            Ok(Ok(usage)) => {
                let now = clock::wall();
                self.shared.metrics.take_usage(now, &running, &usage);
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
    fn note_oom_kills(&self, running: &[Arc<SandboxRow>], usage: &[HostUsage]) {
        let counted: HashMap<_, _> = usage
            .iter()
            .map(|it| (&it.sandbox_id, it.oom_kills))
            .collect();
        for row in running {
            if let Some(oom_kills) = counted.get(&row.sandbox_id) {
                self.shared.around.logs.count_oom_kills(row, *oom_kills);
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
        series: Series::new(COARSE_OF_TEAM, |one, other| TeamSample {
            concurrent: one.concurrent.max(other.concurrent),
            start_rate: one.start_rate.max(other.start_rate),
        }),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(samples: u64) -> Series<u64> {
        let mut series = Series::new(20, u64::max);
        for number in 0..samples {
            series.push(UnixMillis(number * 5000), number);
        }
        series
    }

    fn range(from: u64, to: u64) -> TimeRange {
        TimeRange {
            from: Some(UnixMillis(from)),
            to: UnixMillis(to),
        }
    }

    #[test]
    fn a_series_is_bounded_and_its_older_part_is_coarse() {
        let series = filled(2000);
        assert_eq!((series.recent.len(), series.coarse.len()), (RECENT, 20));
        // Two minutes are 24 samples, and the largest stands for them.
        let filled = filled(400);
        assert_eq!(filled.coarse[0], (UnixMillis(0), 23));
        let all = filled.within(TimeRange {
            from: None,
            to: UnixMillis(2_000_000),
        });
        assert_eq!(all[0], (UnixMillis(0), 23));
        assert_eq!(all.last(), Some(&(UnixMillis(399 * 5000), 399)));
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn an_answer_is_as_dense_as_its_window_allows() {
        let series = filled(300);
        assert_eq!(series.within(range(100_000, 199_999)).len(), 20);
        let thin = series.within(range(0, 2 * 3_600_000));
        assert_eq!(thin[1].0, UnixMillis(30_000));
        assert_eq!(thin[0].1, 5, "the most of what it stands for");
        assert_eq!(thin.len(), 50);
        assert!(series.within(range(5_000_000, 6_000_000)).is_empty());
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
