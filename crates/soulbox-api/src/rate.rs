//! How often a team may ask each route: what the operator allows, none by default.
//!
//! The generic cell rate algorithm: a bucket is one moment, before which no more is taken. Requests without a team are not counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use soulbox_types::TeamId;

/// Buckets at once; those that are full again are dropped when there are more.
const MAX_BUCKETS: usize = 50_000;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// What is allowed on one route.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Requests in each period, evenly.
    pub rate: u32,
    /// Requests at once after a pause.
    pub burst: u32,
    #[serde(default = "one", rename = "period_s")]
    pub period_seconds: u32,
}

fn one() -> u32 {
    1
}

/// Why the operator's text is none of limits.
#[derive(Debug, thiserror::Error)]
pub enum RateError {
    #[error("it is no JSON object of routes with rate, burst and period_s")]
    Json(#[source] serde_json::Error),
    #[error("there is no route `{0}`")]
    UnknownRoute(String),
    #[error("rate, burst and period_s of `{0}` must be 1 to 1000000")]
    OutOfRange(String),
}

impl RateError {
    /// What the text is not, to follow "is not".
    #[must_use]
    pub fn wanted(&self) -> String {
        match self {
            Self::Json(error) => format!("JSON of routes with rate, burst and period_s: {error}"),
            Self::UnknownRoute(route) => format!("of routes that are there: `{route}` is none"),
            Self::OutOfRange(route) => format!("in bounds: `{route}` needs 1 to 1000000"),
        }
    }
}

type Bucket = (TeamId, Arc<str>);

/// The limits of one server.
#[derive(Debug, Default)]
pub struct RateLimits {
    rules: HashMap<String, Rule>,
    /// When each bucket is full again.
    buckets: Mutex<HashMap<Bucket, Instant>>,
}

/// Where a request left its bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Taken {
    pub(crate) limit: u32,
    pub(crate) remaining: u32,
    pub(crate) reset: Duration,
}

/// Carries [`Taken`] from where the team is known to where headers are written.
#[derive(Clone, Default)]
pub(crate) struct Noted(Arc<OnceLock<Taken>>);

impl Noted {
    pub(crate) fn note(&self, taken: Taken) {
        // A request takes once.
        let _ = self.0.set(taken);
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        if let Some(taken) = self.0.get() {
            headers.insert(LIMIT, HeaderValue::from(taken.limit));
            headers.insert(REMAINING, HeaderValue::from(taken.remaining));
            headers.insert(RESET, HeaderValue::from(seconds(taken.reset)));
        }
    }
}

/// Whole seconds, rounded up.
pub(crate) fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

impl RateLimits {
    /// From `{"POST /v2/sandboxes": {"rate": 5, "burst": 10, "period_s": 1}}`. A key is a method and a path as `/openapi.json` has it, or `*` for
    /// every route that has no rule of its own; each route has a bucket of its own.
    ///
    /// # Errors
    /// The text is not of that form, or names a route that is not there.
    pub fn parse(text: &str) -> Result<Self, RateError> {
        let rules: HashMap<String, Rule> = serde_json::from_str(text).map_err(RateError::Json)?;
        let described = crate::description();
        let known: Vec<String> = crate::openapi::listed(&described.paths)
            .into_iter()
            .map(|(method, path, _)| format!("{method} {path}"))
            .collect();
        let within = |number: u32| (1..=1_000_000).contains(&number);
        for (route, rule) in &rules {
            if route != "*" && !known.contains(route) {
                return Err(RateError::UnknownRoute(route.clone()));
            }
            if !(within(rule.rate) && within(rule.burst) && within(rule.period_seconds)) {
                return Err(RateError::OutOfRange(route.clone()));
            }
        }
        Ok(Self {
            rules,
            buckets: Mutex::default(),
        })
    }

    /// Takes a request of a team out of its bucket. None where there is no limit; an error is how long the next one has to wait.
    pub(crate) fn take(
        &self,
        team: &TeamId,
        method: &Method,
        route: &str,
    ) -> Option<Result<Taken, (Taken, Duration)>> {
        if self.rules.is_empty() {
            return None;
        }
        let route = format!("{method} {route}");
        let rule = self.rules.get(&route).or_else(|| self.rules.get("*"))?;
        Some(self.take_at(Instant::now(), team, &route, *rule))
    }

    fn take_at(
        &self,
        now: Instant,
        team: &TeamId,
        route: &str,
        rule: Rule,
    ) -> Result<Taken, (Taken, Duration)> {
        let each = Duration::from_secs(u64::from(rule.period_seconds)) / rule.rate;
        let room = each * rule.burst;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= MAX_BUCKETS {
                buckets.clear();
            }
        }
        let key = (team.clone(), Arc::from(route));
        let full_at = buckets.get(&key).copied().unwrap_or(now).max(now) + each;
        let owed = full_at - now;
        let left = |owed: Duration| {
            let left = room.saturating_sub(owed).as_nanos() / each.as_nanos().max(1);
            u32::try_from(left).unwrap_or(u32::MAX)
        };
        if owed > room {
            let taken = Taken {
                limit: rule.burst,
                remaining: 0,
                reset: owed - each,
            };
            return Err((taken, owed - room));
        }
        buckets.insert(key, full_at);
        Ok(Taken {
            limit: rule.burst,
            remaining: left(owed),
            reset: owed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        rate: 2,
        burst: 3,
        period_seconds: 1,
    };

    #[test]
    fn a_burst_then_the_rate() {
        let limits = RateLimits::default();
        let (team, other) = (TeamId::from_random([1; 16]), TeamId::from_random([2; 16]));
        let begin = Instant::now();
        let take = |millis, team| {
            let now = begin + Duration::from_millis(millis);
            limits.take_at(now, team, "GET /x", RULE)
        };
        for remaining in [2, 1, 0] {
            assert_eq!(take(0, &team).map(|it| it.remaining), Ok(remaining));
        }
        let (taken, wait) = take(0, &team).expect_err("the burst is over");
        assert_eq!((taken.limit, taken.remaining, seconds(wait)), (3, 0, 1));
        assert!(take(499, &team).is_err(), "half a second for each");
        assert!(take(500, &team).is_ok() && take(500, &team).is_err());
        assert!(take(500, &other).is_ok(), "each team has its own");
        assert_eq!(
            take(60_000, &team).map(|it| it.remaining),
            Ok(2),
            "no more than the burst"
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, said) in [
            ("", "no JSON object"),
            ("{\"*\": {\"rate\": 1}}", "no JSON object"),
            (
                "{\"*\": {\"rate\": 1, \"burst\": 1, \"per\": 1}}",
                "no JSON object",
            ),
            (
                "{\"GET /x\": {\"rate\": 1, \"burst\": 1}}",
                "no route `GET /x`",
            ),
            ("{\"*\": {\"rate\": 0, \"burst\": 1}}", "must be 1 to"),
        ] {
            let error = RateLimits::parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let good = "{\"POST /v2/sandboxes\": {\"rate\": 5, \"burst\": 10, \"period_s\": 60}, \"*\": {\"rate\": 1, \"burst\": 1}}";
        assert_eq!(RateLimits::parse(good).expect("good").rules.len(), 2);
    }

    #[test]
    fn teams_without_end_do_not_fill_the_memory() {
        let limits = RateLimits::default();
        let now = Instant::now();
        for number in 0..u32::try_from(MAX_BUCKETS + 10).expect("small") {
            let mut random = [0; 16];
            random[..4].copy_from_slice(&number.to_be_bytes());
            let team = TeamId::from_random(random);
            assert!(limits.take_at(now, &team, "GET /x", RULE).is_ok());
        }
        let buckets = limits.buckets.lock().expect("whole");
        assert!(buckets.len() <= MAX_BUCKETS);
    }
}
