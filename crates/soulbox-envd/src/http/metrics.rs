//! `GET /metrics`: what the sandbox uses. Totals are the limits that the host told at the start, uses come with the
//! question, counted by the host ([`USAGE_HEADER`]). Asked from inside, the daemon says what it sees itself: its control
//! group where one is mounted inside, else its processes one by one, since `/proc/meminfo` and `/proc/stat` show the
//! host's. The disk it cannot see at all, so `disk_used` is then left out.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde::Serialize;
use soulbox_envd_proto::{SandboxUsage, USAGE_HEADER};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_used: Option<u64>,
}

/// Who counted; only counts of the same kind are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counter {
    Host,
    Own,
}

/// CPU time at the last sample, for the percentage.
static LAST: Mutex<Option<(Counter, Instant, f64)>> = Mutex::new(None);

pub(crate) async fn metrics(
    State(settings): State<Arc<Settings>>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let limits = settings.limits();
    let told = told(&headers)?;
    let cores = std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    let cpu_count = limits.map_or(cores, |limits| limits.cpu_millis.div_ceil(1000).max(1));
    let (counter, seconds) = match told {
        Some(usage) => (Counter::Host, usage.cpu_micros as f64 / 1e6),
        None => (Counter::Own, own_cpu_seconds()?),
    };
    let memory = match told {
        Some(usage) => Memory {
            used: usage.memory,
            cache: usage.cache,
        },
        None => cgroup_memory()
            .or_else(process_memory)
            .ok_or_else(|| HttpError::internal("cannot read memory use"))?,
    };
    let mem_total = match limits {
        Some(limits) => limits.memory_bytes,
        None => host_memory().ok_or_else(|| HttpError::internal("cannot read memory size"))?,
    };
    let disk = rustix::fs::statvfs("/")
        .map_err(|errno| HttpError::internal(format!("cannot read disk use: {errno}")))?;
    Ok(json(&Metrics {
        ts: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        cpu_count,
        cpu_used_pct: percentage(
            counter,
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
        disk_used: match (told, limits) {
            (Some(usage), _) => Some(usage.disk),
            // The file system is the whole pool's, and the limit is not of that.
            (None, Some(_)) => None,
            // Nobody limits this machine, so it is its own.
            (None, None) => Some(disk.f_blocks.saturating_sub(disk.f_bavail) * disk.f_frsize),
        },
    }))
}

/// What the host counted, when it comes with the request.
fn told(headers: &HeaderMap) -> Result<Option<SandboxUsage>, HttpError> {
    headers
        .get(USAGE_HEADER)
        .map(|value| serde_json::from_slice(value.as_bytes()))
        .transpose()
        .map_err(|error| HttpError::bad_request(format!("invalid {USAGE_HEADER}: {error}")))
}

fn own_cpu_seconds() -> Result<f64, HttpError> {
    cgroup_cpu_seconds()
        .or_else(|| processes().map(|all| all.cpu_seconds))
        .ok_or_else(|| HttpError::internal("cannot read CPU times"))
}

/// Share of all cores since the last sample, two decimals; zero for the first.
fn percentage(counter: Counter, seconds: f64, cores: f64) -> f64 {
    let now = Instant::now();
    let last = LAST
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .replace((counter, now, seconds));
    let Some((_, then, before)) = last.filter(|(before, ..)| *before == counter) else {
        return 0.0;
    };
    let capacity = now.duration_since(then).as_secs_f64() * cores;
    if capacity <= 0.0 {
        return 0.0;
    }
    ((seconds - before).max(0.0) / capacity * 10_000.0).round() / 100.0
}

struct Memory {
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
    Some(Memory {
        used: used.saturating_sub(cache),
        cache,
    })
}

/// Memory of all processes together; the page cache is the host's to count, so it is none here.
fn process_memory() -> Option<Memory> {
    Some(Memory {
        used: processes()?.memory_bytes,
        cache: 0,
    })
}

fn host_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    field(&text, "MemTotal:").map(|kib| kib << 10)
}

fn cgroup_cpu_seconds() -> Option<f64> {
    if let Some(nanoseconds) = number("/sys/fs/cgroup/cpuacct/cpuacct.usage") {
        return Some(nanoseconds as f64 / 1e9);
    }
    let text = fs::read_to_string("/sys/fs/cgroup/cpu.stat").ok()?;
    field(&text, "usage_usec ").map(|microseconds| microseconds as f64 / 1e6)
}

/// What all processes of this pid namespace use, and have used.
#[derive(Default)]
struct Processes {
    /// Their own pages: those of files and of shared memory belong to the page cache.
    memory_bytes: u64,
    /// With that of their children that are gone, so a process that ends takes nothing away.
    cpu_seconds: f64,
}

fn processes() -> Option<Processes> {
    let page = rustix::param::page_size() as u64;
    let mut all = Processes::default();
    for directory in fs::read_dir("/proc").ok()?.flatten() {
        let name = directory.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // One that ends meanwhile is left out.
        let read = |file| fs::read_to_string(directory.path().join(file)).ok();
        if let Some([_, resident, shared]) = read("statm").and_then(|text| numbers(&text, 0)) {
            all.memory_bytes += resident.saturating_sub(shared) * page;
        }
        // The name stands in parentheses and may contain anything; utime is the 12th field after it, proc_pid_stat(5).
        if let Some([user, system, children_user, children_system]) =
            read("stat").and_then(|text| numbers(text.rsplit_once(')')?.1, 11))
        {
            let ticks = user + system + children_user + children_system;
            all.cpu_seconds += ticks as f64 / TICKS_PER_SECOND;
        }
    }
    Some(all)
}

/// `N` numbers after the first `skipped` words.
fn numbers<const N: usize>(text: &str, skipped: usize) -> Option<[u64; N]> {
    let mut words = text.split_ascii_whitespace().skip(skipped);
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    Some(numbers)
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_processes_are_counted() {
        let before = processes().expect("/proc");
        let pages = vec![1_u8; 64 << 20];
        let began = Instant::now();
        let mut sum = 0_u64;
        while began.elapsed().as_millis() < 200 {
            sum = sum.wrapping_add(pages.iter().map(|byte| u64::from(*byte)).sum());
        }
        assert!(sum > 0);
        let after = processes().expect("/proc");
        // Other processes of the machine come and go, so only what is ours for certain is asserted.
        assert!(after.memory_bytes > 64 << 20);
        assert!(after.cpu_seconds > 0.0 && before.cpu_seconds > 0.0);
    }

    #[test]
    fn numbers_of_a_line() {
        assert_eq!(numbers("7 8 9 10", 1), Some([8, 9]));
        assert_eq!(numbers::<2>("7 8", 1), None);
        assert_eq!(numbers::<1>(" S x", 0), None);
    }
}
