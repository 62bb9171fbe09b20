//! `GET /metrics`: what the sandbox uses. Totals are the limits that the host told; uses come from the sandbox's own
//! control group where one is mounted inside, else from `/proc`, which then shows the host's memory and CPU.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::answer::{HttpError, json};
use crate::settings::Settings;

/// USER_HZ, which is 100 on every Linux architecture that matters here.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug, Serialize)]
struct Metrics {
    ts: u64,
    cpu_count: u32,
    cpu_used_pct: f64,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    mem_total_mib: u64,
    mem_used_mib: u64,
    disk_total: u64,
    disk_used: u64,
}

/// CPU time at the last sample, for the percentage.
static LAST: Mutex<Option<(Instant, f64)>> = Mutex::new(None);

pub(crate) async fn metrics(State(settings): State<Arc<Settings>>) -> Result<Response, HttpError> {
    let limits = settings.limits();
    let cores = std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    let cpu_count = limits.map_or(cores, |limits| limits.cpu_millis.div_ceil(1000).max(1));
    let seconds = cgroup_cpu_seconds()
        .or_else(proc_cpu_seconds)
        .ok_or_else(|| HttpError::internal("cannot read CPU times"))?;
    let memory = cgroup_memory()
        .or_else(proc_memory)
        .ok_or_else(|| HttpError::internal("cannot read memory use"))?;
    let disk = rustix::fs::statvfs("/")
        .map_err(|errno| HttpError::internal(format!("cannot read disk use: {errno}")))?;
    let mem_total = limits.map_or(memory.total, |limits| limits.memory_bytes);
    Ok(json(&Metrics {
        ts: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        cpu_count,
        cpu_used_pct: percentage(
            seconds,
            limits.map_or(f64::from(cores), |limits| {
                f64::from(limits.cpu_millis) / 1000.0
            }),
        ),
        mem_total,
        mem_used: memory.used,
        mem_cache: memory.cache,
        mem_total_mib: mem_total >> 20,
        mem_used_mib: memory.used >> 20,
        disk_total: limits.map_or(disk.f_blocks * disk.f_frsize, |limits| limits.disk_bytes),
        disk_used: disk.f_blocks.saturating_sub(disk.f_bavail) * disk.f_frsize,
    }))
}

/// Share of all cores since the last sample, two decimals; zero for the first.
fn percentage(seconds: f64, cores: f64) -> f64 {
    let now = Instant::now();
    let last = LAST
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .replace((now, seconds));
    let Some((then, before)) = last else {
        return 0.0;
    };
    let capacity = now.duration_since(then).as_secs_f64() * cores;
    if capacity <= 0.0 {
        return 0.0;
    }
    ((seconds - before).max(0.0) / capacity * 10_000.0).round() / 100.0
}

struct Memory {
    total: u64,
    used: u64,
    cache: u64,
}

fn cgroup_memory() -> Option<Memory> {
    let (used, statistics) = match number("/sys/fs/cgroup/memory.current") {
        Some(used) => (used, "/sys/fs/cgroup/memory.stat"),
        None => (
            number("/sys/fs/cgroup/memory/memory.usage_in_bytes")?,
            "/sys/fs/cgroup/memory/memory.stat",
        ),
    };
    let statistics = fs::read_to_string(statistics).ok()?;
    let cache = field(&statistics, "file ")
        .or_else(|| field(&statistics, "cache "))
        .unwrap_or(0);
    let total = proc_memory()?.total;
    Some(Memory {
        total,
        used: used.saturating_sub(cache),
        cache,
    })
}

fn proc_memory() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name| field(&text, name).map(|kib| kib << 10);
    let total = kib("MemTotal:")?;
    Some(Memory {
        total,
        used: total.saturating_sub(kib("MemAvailable:")?),
        cache: kib("Cached:")?,
    })
}

fn cgroup_cpu_seconds() -> Option<f64> {
    if let Some(nanoseconds) = number("/sys/fs/cgroup/cpuacct/cpuacct.usage") {
        return Some(nanoseconds as f64 / 1e9);
    }
    let text = fs::read_to_string("/sys/fs/cgroup/cpu.stat").ok()?;
    field(&text, "usage_usec ").map(|microseconds| microseconds as f64 / 1e6)
}

/// Busy time of all cores.
fn proc_cpu_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, rest @ ..] = ticks.as_slice() else {
        return None;
    };
    let busy = user + nice + system + rest.iter().take(3).sum::<u64>();
    Some(busy as f64 / TICKS_PER_SECOND)
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
