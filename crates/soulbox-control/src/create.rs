//! The create: template, limits, row and command, and what a repeated one gets.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use soulbox_types::{Limits, MiB, MilliCpu, SandboxState, UnixMillis};
use tokio::sync::oneshot;

use crate::catalog::{ResolveError, Resolved};
use crate::clock;
use crate::control::{Control, SandboxView, longest};
use crate::error::{CreateError, LimitError};
use crate::hosts::{FromSnapshot, HostCreate};
use crate::lifecycle::Machine;
use crate::owner::{Creation, Refusal};
use crate::random;
use crate::settings::ControlSettings;
use crate::spec::{LimitOverrides, SandboxSpec, TemplateReference};
use crate::store::{IdempotencyClaim, SandboxRow, Spawns, TeamRow};

/// How a sandbox begins, beside what its row says.
pub(crate) struct Beginning {
    pub(crate) timeout: Duration,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) snapshot: Option<FromSnapshot>,
    pub(crate) claim: Option<IdempotencyClaim>,
}

impl Control {
    /// Creates a sandbox; it is usable when this returns. Dropping the future does not stop the create, but a sandbox that
    /// nobody then waits for is killed.
    ///
    /// # Errors
    /// See [`CreateError`]; nothing stays of the sandbox.
    pub async fn create(
        &self,
        team: &TeamRow,
        spec: SandboxSpec,
    ) -> Result<SandboxView, CreateError> {
        let resolved = self.resolve(team, &spec.template).await?;
        let settings = self.settings();
        let hours = self.max_hours(team);
        let template = &resolved.build.policy;
        let timeout = match (spec.policy.timeout, template.timeout) {
            (Some(Duration::ZERO), _) => return Err(CreateError::TimeoutNotPositive),
            (Some(asked), _) if asked > longest(hours) => {
                return Err(CreateError::TimeoutTooLong { hours });
            }
            (Some(asked), _) => asked,
            // Nobody asked for more than the team may have.
            (None, Some(usual)) => usual.min(longest(hours)),
            (None, None) => spec.usual_timeout,
        };
        let lifecycle = spec.policy.lifecycle(template, timeout)?;
        let network = spec.policy.network.or_else(|| template.network.clone());
        let limits = apply(resolved.build.limits, spec.overrides, settings)?;
        if !spec.public_traffic && !spec.secure {
            return Err(CreateError::PrivateTrafficNotSecure);
        }
        if self.registry().stopping().is_cancelled() {
            return Err(CreateError::Stopping);
        }

        let snapshot = self.catalog().snapshot(&resolved.build.build_id).cloned();
        let now = clock::now();
        let host_build_id = match &snapshot {
            Some(snapshot) => snapshot.host_build_id.clone(),
            None => resolved.build.build_id.clone(),
        };
        let row = SandboxRow {
            sandbox_id: random::sandbox_id()?,
            team_id: team.team_id.clone(),
            template_id: resolved.template.template_id.clone(),
            build_id: resolved.build.build_id.clone(),
            host_build_id,
            alias: resolved.alias.clone(),
            limits,
            network: network.unwrap_or(spec.usual_network),
            secure: spec.secure,
            public_traffic: spec.public_traffic,
            inbound: Arc::new(spec.inbound),
            envd_version: resolved.build.envd_version.clone(),
            created_at: now,
            lifecycle,
            progress: Machine::create(now, 0, 0).0.progress(),
            metadata: spec.metadata,
        };
        let beginning = Beginning {
            timeout,
            env: spec.env,
            snapshot: snapshot.map(|snapshot| FromSnapshot {
                snapshot_id: snapshot.snapshot_name.clone(),
                memory: snapshot.memory,
                is_copy: true,
            }),
            claim: spec.idempotency,
        };
        self.begin(team, row, beginning).await
    }

    /// Starts the sandbox of a row that is not there yet.
    pub(crate) async fn begin(
        &self,
        team: &TeamRow,
        row: SandboxRow,
        beginning: Beginning,
    ) -> Result<SandboxView, CreateError> {
        let settings = self.settings();
        let now = row.created_at;
        let within = settings.start_within;
        let timeout = beginning.timeout;
        let (machine, first) = Machine::create(now, clock::millis(timeout), clock::millis(within));
        let row = Arc::new(SandboxRow {
            progress: machine.progress(),
            ..row
        });
        let command = HostCreate {
            epoch: machine.epoch,
            deadline: machine.deadline,
            env: beginning.env,
            snapshot: beginning.snapshot,
            ..self.command(&row)
        };
        let (reply, created) = oneshot::channel();
        let limit = team.max_sandboxes.unwrap_or(settings.max_sandboxes);
        let creation = Creation {
            command,
            limit,
            claim: beginning.claim.clone(),
            reply,
        };
        self.own(row.clone(), machine, first, Some(creation));

        let answer_within = within + settings.command_within * 2;
        match tokio::time::timeout(answer_within, created).await {
            Ok(Ok(Ok(progress))) => {
                let fields = [
                    ("template_id", row.template_id.to_string()),
                    ("timeout_s", timeout.as_secs().to_string()),
                ];
                self.log(&row.sandbox_id, "sandbox started", fields);
                self.count_spawn(&row, progress.started_at.unwrap_or(now));
                Ok(self.view(row, progress))
            }
            Ok(Ok(Err(Refusal::Failed(failure)))) => {
                if matches!(
                    failure,
                    CreateError::Host(crate::HostFailure::TemplateMissing)
                ) {
                    // The catalog may be behind the hosts; the next create shall know better.
                    drop(self.refresh_templates(Duration::ZERO).await);
                }
                Err(failure)
            }
            Ok(Ok(Err(Refusal::Claimed {
                fingerprint,
                sandbox,
            }))) => self.replay(
                beginning.claim.as_ref().map(|it| &it.fingerprint),
                &fingerprint,
                sandbox,
            ),
            Ok(Err(_)) => Err(CreateError::Stopping),
            Err(_) => Err(CreateError::TimedOut),
        }
    }

    pub(crate) async fn resolve(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<Resolved, ResolveError> {
        let found = self.catalog().resolve(team, reference);
        if found.is_err() && self.refreshed_for_a_miss().await {
            return self.catalog().resolve(team, reference);
        }
        found
    }

    /// An earlier create had the key; its outcome is this one's.
    fn replay(
        &self,
        asked: Option<&String>,
        claimed: &String,
        sandbox: Option<Box<SandboxRow>>,
    ) -> Result<SandboxView, CreateError> {
        if asked != Some(claimed) {
            return Err(CreateError::IdempotencyMismatch);
        }
        let Some(row) = sandbox else {
            return Err(CreateError::IdempotencyOutcomeUnknown);
        };
        // What the owner says is newer than the row.
        let progress = self
            .registry()
            .get(&row.sandbox_id)
            .map_or(row.progress, |handle| *handle.progress.borrow());
        match (progress.state, progress.started_at) {
            (SandboxState::Creating, _) => Err(CreateError::IdempotencyInProgress),
            (_, Some(_)) => Ok(self.view(Arc::new(*row), progress)),
            (_, None) => Err(CreateError::IdempotencyOutcomeUnknown),
        }
    }

    fn count_spawn(&self, row: &SandboxRow, at: UnixMillis) {
        self.shared.metrics.count_start(&row.team_id);
        let mut spawns = self
            .shared
            .spawns
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = spawns
            .entry(row.template_id.clone())
            .or_insert_with(|| Spawns {
                template_id: row.template_id.clone(),
                count: 0,
                last: at,
            });
        entry.count += 1;
        entry.last = entry.last.max(at);
    }
}

/// The template's limits with what the create wants otherwise.
pub(crate) fn apply(
    mut limits: Limits,
    overrides: LimitOverrides,
    settings: &ControlSettings,
) -> Result<Limits, LimitError> {
    const LEAST_MIB: u64 = 128;
    if let Some(cpus) = overrides.cpus {
        let max = settings.max_cpus;
        if cpus != 1 && cpus % 2 != 0 || cpus == 0 {
            return Err(LimitError::CpuOdd);
        }
        if cpus > max {
            return Err(LimitError::CpuTooMany { max });
        }
        limits.cpu = MilliCpu::whole(cpus);
    }
    if let Some(memory) = overrides.memory_mib {
        let max = settings.max_memory_mib;
        if memory < LEAST_MIB {
            return Err(LimitError::MemoryTooLittle { min: LEAST_MIB });
        }
        if memory % 2 != 0 {
            return Err(LimitError::MemoryOdd);
        }
        if memory > max {
            return Err(LimitError::MemoryTooMuch { max });
        }
        limits.memory = MiB(memory);
    }
    if let Some(disk) = overrides.disk_mib {
        let max = settings.max_disk_mib;
        if disk < LEAST_MIB {
            return Err(LimitError::DiskTooLittle { min: LEAST_MIB });
        }
        if disk > max {
            return Err(LimitError::DiskTooMuch { max });
        }
        limits.disk = MiB(disk);
    }
    Ok(limits)
}
