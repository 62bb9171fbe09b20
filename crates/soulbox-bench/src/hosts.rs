//! [`InstantHosts`]: a host whose sandboxes are entries of a map. It does all that it is asked at once, and keeps how late ends came.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use soulbox_control::{
    HostCreate, HostFailure, HostSandbox, HostTemplate, HostUsage, Hosts, Started,
};
use soulbox_types::{
    BuildId, Egress, Epoch, Limits, MiB, MilliCpu, SandboxId, TemplateId, UnixMillis,
};

/// The clock of deadlines, which begins with this value; control is given the same.
pub struct Clock {
    begun: UnixMillis,
    since: Instant,
}

impl Clock {
    pub fn start() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let begun = UnixMillis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        let clock = Self {
            begun,
            since: Instant::now(),
        };
        soulbox_control::clock::set(begun);
        clock
    }

    fn now(&self) -> UnixMillis {
        let passed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.begun.plus_millis(passed)
    }
}

pub struct InstantHosts {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: HashMap<SandboxId, HostSandbox>,
    /// Milliseconds from the deadline to the kill, of those that had reached it.
    late: Vec<u64>,
    /// Kills before the deadline: somebody asked for them.
    early: u64,
}

/// What has ended so far.
pub struct Ended {
    pub late: Vec<u64>,
    pub early: u64,
    pub live: usize,
}

impl InstantHosts {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            state: Mutex::default(),
        }
    }

    pub fn ended(&self) -> Ended {
        let state = self.state();
        Ended {
            late: state.late.clone(),
            early: state.early,
            live: state.live.len(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Hosts for InstantHosts {
    async fn create(&self, sandbox: &HostCreate) -> Result<Started, HostFailure> {
        let started_at = self.clock.now();
        let entry = HostSandbox {
            sandbox_id: sandbox.sandbox_id.clone(),
            epoch: sandbox.epoch,
            build_id: sandbox.build_id.clone(),
            started_at,
            deadline: sandbox.deadline,
            egress: sandbox.egress.clone(),
        };
        let before = self.state().live.insert(sandbox.sandbox_id.clone(), entry);
        match before {
            None => Ok(Started { started_at }),
            Some(_) => Err(HostFailure::AlreadyExists),
        }
    }

    async fn kill(&self, sandbox_id: &SandboxId, epoch: Epoch) -> Result<(), HostFailure> {
        let now = self.clock.now();
        let mut state = self.state();
        let sandbox = state.live.get(sandbox_id).ok_or(HostFailure::NotFound)?;
        if epoch < sandbox.epoch {
            return Err(HostFailure::StaleEpoch);
        }
        if now >= sandbox.deadline {
            let late = now.millis_since(sandbox.deadline);
            state.late.push(late);
        } else {
            state.early += 1;
        }
        state.live.remove(sandbox_id);
        Ok(())
    }

    async fn set_deadline(
        &self,
        sandbox_id: &SandboxId,
        epoch: Epoch,
        deadline: UnixMillis,
    ) -> Result<(), HostFailure> {
        let mut state = self.state();
        let sandbox = state
            .live
            .get_mut(sandbox_id)
            .ok_or(HostFailure::NotFound)?;
        if epoch < sandbox.epoch {
            return Err(HostFailure::StaleEpoch);
        }
        (sandbox.epoch, sandbox.deadline) = (epoch, deadline);
        Ok(())
    }

    async fn set_egress(
        &self,
        sandbox_id: &SandboxId,
        epoch: Epoch,
        egress: &Egress,
    ) -> Result<(), HostFailure> {
        let mut state = self.state();
        let sandbox = state
            .live
            .get_mut(sandbox_id)
            .ok_or(HostFailure::NotFound)?;
        if epoch < sandbox.epoch {
            return Err(HostFailure::StaleEpoch);
        }
        sandbox.egress = egress.clone();
        Ok(())
    }

    async fn list(&self) -> Result<Vec<HostSandbox>, HostFailure> {
        Ok(self.state().live.values().cloned().collect())
    }

    /// Of all that live, so that control's series cost what they cost.
    async fn usage(&self) -> Result<Vec<HostUsage>, HostFailure> {
        let state = self.state();
        let used = state.live.keys().map(|sandbox_id| HostUsage {
            sandbox_id: sandbox_id.clone(),
            cpu_micros: 1000,
            memory: 1 << 20,
            cache: 1 << 20,
            processes: 2,
            disk: 4096,
            received: 0,
            sent: 0,
            oom_kills: 0,
        });
        Ok(used.collect())
    }

    async fn templates(&self) -> Result<Vec<HostTemplate>, HostFailure> {
        Ok(vec![HostTemplate {
            name: "base".to_owned(),
            template_id: TemplateId::from_random([1; 20]),
            build_id: BuildId::from_random([1; 16]),
            built_at: UnixMillis(1_700_000_000_000),
            limits: Limits {
                memory: MiB(1024),
                cpu: MilliCpu(2000),
                pids: 1024,
                disk: MiB(2048),
            },
            default_user: "user".to_owned(),
            default_workdir: "/home/user".to_owned(),
        }])
    }
}
