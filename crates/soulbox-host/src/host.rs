//! All live sandboxes of a host. Each has one task ([`crate::sandbox`]); this map leads to it.

mod collect;
mod rollback;
mod sealing;
mod snapshots;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use soulbox_archive::{Archive, ArchiveError};
use soulbox_pool::{Growth, PoolError, Snapshot, SnapshotPool, TemplateManifest};
use soulbox_types::{DeathCause, Egress, Epoch, Limits, MiB, MilliCpu, UnixMillis};
use soulbox_wire::host::{
    self as wire, Create, Created, Event, HostError, HostErrorKind, HostSandbox, HostTemplate,
    HostUsage,
};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::chain;
use crate::claims::Claims;
use crate::clock::{self, now};
use crate::copies::Copies;
use crate::layers;
use crate::lifecycle::{self, Answer, AtDeadline, Effect, Fences, Machine};
use crate::memory::{self, MemoryError};
use crate::record::{Record, Records};
use crate::runtime::{DialError, ProcessName, RestoreError, Runtime, RuntimeError};
use crate::sandbox::{self, Current, Ended, Owned, Reply, Request, answer_as_result};
use crate::saves::{Job, Saves};
use crate::slots::Slots;
use crate::snapshot::{Key, RootBasis};
use crate::substitutes::Substitutes;
use crate::warm::{Booted, Warm, WarmLevels, WarmTargets, default_limits};
use crate::workshop::{Made, MakeError, Workshop};
use snapshots::Origin;

/// Starts that run at once; more wait, since they would only share the two locks that they all need.
const CONCURRENT_STARTS: usize = 8;
/// How often the pool's space is looked at and leftovers are given back once more.
const UPKEEP: Duration = Duration::from_secs(10);
/// How long a stop waits for starts under way, and then for ends under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Events that a slow front may leave unread; it reconciles by list when it missed some.
const EVENTS: usize = 4096;

/// How an agent is to run.
#[derive(Debug, Clone)]
pub struct HostSettings {
    pub data: PathBuf,
    pub warm: WarmTargets,
    /// Name of the template that is booted ahead.
    pub default_template: String,
    /// Digest of the guest programs that new sandboxes run.
    pub guests: String,
    /// Creates are refused when less of the host's memory is available.
    pub memory_reserve: MiB,
    /// What the mark of snapshots is made with.
    pub snapshot_key: [u8; 32],
    /// Where sealed snapshots are kept, if anywhere.
    pub store: Option<PathBuf>,
    /// How long a layer stays that nothing needs.
    pub keep_layers: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("failed to read the records of running sandboxes")]
    Records(#[source] io::Error),
    #[error("failed to set the clock of deadlines")]
    Clock(#[source] io::Error),
    #[error("failed to look through the pool")]
    Pool(#[source] PoolError),
    #[error("failed to open the store of sealed snapshots")]
    Store(#[source] ArchiveError),
    #[error("failed to clear what an earlier agent left")]
    Sweep(#[source] RuntimeError),
    #[error("failed to start a thread")]
    Thread(#[source] io::Error),
    #[error("failed to adopt sandbox {sandbox_id}")]
    Adopt {
        sandbox_id: String,
        #[source]
        source: io::Error,
    },
}

/// A handle to the sandboxes of this host; clones are the same host.
pub struct Host<R: Runtime> {
    inner: Arc<Inner<R>>,
}

impl<R: Runtime> Clone for Host<R> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

struct Inner<R: Runtime> {
    settings: HostSettings,
    workshop: Arc<Workshop<R>>,
    warm: Arc<Warm<R>>,
    saves: Saves<R>,
    copies: Arc<Copies>,
    claims: Arc<Claims>,
    /// Held while layers are collected.
    collecting: tokio::sync::Mutex<()>,
    substitutes: Substitutes<R>,
    records: Records,
    sandboxes: Mutex<HashMap<String, Entry<R>>>,
    /// Locked after `sandboxes` where both are.
    fences: Mutex<Fences<String>>,
    templates: Mutex<Arc<[TemplateManifest]>>,
    starts: Semaphore,
    events: Mutex<Vec<mpsc::Sender<Event>>>,
    stopping: AtomicBool,
    /// Creates under way.
    creations: TaskTracker,
    /// Owners of sandboxes and whatever gives back what ended ones had.
    tasks: TaskTracker,
    /// Sandboxes whose owner has ended without them, since the agent stops.
    left: AtomicUsize,
}

enum Entry<R: Runtime> {
    /// The ID is taken; a start is under way.
    Starting(Starting),
    Live(Live<R>),
}

struct Starting {
    machine: Machine,
    /// Kills that came meanwhile.
    waiting: Vec<Reply>,
}

struct Live<R: Runtime> {
    /// A rollback changes them.
    running: Current<R>,
    inbox: mpsc::Sender<Request>,
    record: Arc<Mutex<Record>>,
}

/// What there is of a live sandbox without its owner.
type Listed<R> = (Arc<<R as Runtime>::Running>, Arc<Mutex<Record>>);

impl<R: Runtime> Host<R> {
    /// Adopts what runs, clears what an earlier agent left half done, and starts to make warm slots.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        runtime: R,
        pool: Arc<dyn SnapshotPool>,
        settings: HostSettings,
    ) -> Result<Self, StartError> {
        let records = Records::open(&settings.data).map_err(StartError::Records)?;
        clock::set(&settings.data).map_err(StartError::Clock)?;
        let key = Key::derive(&settings.snapshot_key);
        let archive = settings
            .store
            .as_deref()
            .map(|root| Archive::open(root, &settings.snapshot_key, Handle::current()))
            .transpose()
            .map_err(StartError::Store)?;
        pool.sweep_restores().map_err(StartError::Pool)?;
        let paused = snapshots::paused(&*pool, &key).map_err(StartError::Pool)?;
        let mut adopted = Vec::new();
        records.sweep().map_err(StartError::Records)?;
        for record in records.all().map_err(StartError::Records)? {
            let process = ProcessName {
                pid: record.pid,
                start_time: record.start_time,
            };
            match runtime.adopt(record.slot, process) {
                // It is ended by the sweep. Its snapshot was whole, and whoever asked for it may have been told.
                Some(_) if paused.get(&record.sandbox_id) >= Some(&record.epoch) => {
                    tracing::warn!(
                        sandbox_id = record.sandbox_id,
                        "ending a sandbox that was paused when an agent died"
                    );
                    records.delete(&record.sandbox_id);
                }
                // So is this one: the front that builds with it has ended with the agent.
                Some(_) if record.step => records.delete(&record.sandbox_id),
                Some(running) => adopted.push((record, running)),
                None => {
                    tracing::info!(
                        sandbox_id = record.sandbox_id,
                        "a sandbox ended while no agent ran"
                    );
                    records.delete(&record.sandbox_id);
                }
            }
        }
        let kept: Vec<u16> = adopted.iter().map(|(record, _)| record.slot).collect();
        let swept = runtime.sweep(&kept).map_err(StartError::Sweep)?;
        for upper in pool.list_uppers().map_err(StartError::Pool)? {
            if !adopted.iter().any(|(record, _)| record.upper == upper.name) {
                pool.delete_upper(&upper.name).map_err(StartError::Pool)?;
            }
        }
        if !adopted.is_empty() || swept > 0 {
            tracing::info!(
                adopted = adopted.len(),
                swept,
                "took over from an earlier agent"
            );
        }

        let templates: Arc<[TemplateManifest]> = pool.templates().map_err(StartError::Pool)?.into();
        let default = find_default(&templates, &settings.default_template);
        let copies = Arc::new(Copies::new(Arc::clone(&pool), key.clone(), archive));
        let slots = Slots::new(runtime.slots(), kept);
        let workshop = Arc::new(Workshop::new(runtime, pool, slots));
        let warm = Warm::new(settings.warm, default);
        let tasks = TaskTracker::new();
        let host = Self {
            inner: Arc::new(Inner {
                workshop: Arc::clone(&workshop),
                warm: Arc::clone(&warm),
                saves: Saves::new(Arc::clone(&workshop), key, tasks.clone()),
                copies,
                claims: Arc::default(),
                collecting: tokio::sync::Mutex::default(),
                substitutes: Substitutes::default(),
                records,
                sandboxes: Mutex::new(HashMap::new()),
                fences: Mutex::default(),
                templates: Mutex::new(templates),
                starts: Semaphore::new(CONCURRENT_STARTS),
                events: Mutex::default(),
                stopping: AtomicBool::new(false),
                creations: TaskTracker::new(),
                tasks,
                left: AtomicUsize::new(0),
                settings,
            }),
        };
        for (record, running) in adopted {
            let sandbox_id = record.sandbox_id.clone();
            let adopt = || -> io::Result<()> {
                let ended = workshop.runtime.ended(&running)?;
                let machine = Machine::adopt(
                    Epoch(record.epoch),
                    UnixMillis(record.deadline),
                    at_deadline(record.at_deadline),
                );
                let first = (machine, Vec::new(), Vec::new());
                host.inner.adopt(record, Arc::new(running), ended, first);
                Ok(())
            };
            adopt().map_err(|source| StartError::Adopt { sandbox_id, source })?;
        }
        warm.start(workshop, Handle::current())
            .map_err(StartError::Thread)?;
        tokio::spawn(upkeep(Arc::downgrade(&host.inner)));
        tokio::spawn(collect::from_time_to_time(Arc::downgrade(&host.inner)));
        Ok(host)
    }

    /// Events from now on, until the receiver is dropped; each receiver gets all of them.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        lock(&self.inner.events).push(sender);
        receiver
    }

    /// Starts a sandbox. The descriptor is a TCP connection to its envd.
    ///
    /// # Errors
    /// Kinds `AlreadyExists`, `StaleEpoch` (a kill came before it), `TemplateMissing`, `NoCapacity` and `Failed` (nothing is left).
    pub async fn create(&self, request: Create) -> Result<(Created, OwnedFd), HostError> {
        let inner = &self.inner;
        let _under_way = inner.creations.token();
        if inner.stopping.load(Ordering::SeqCst) {
            return Err(HostError {
                kind: HostErrorKind::Failed,
                message: "the host agent is stopping".to_owned(),
            });
        }
        memory::check(inner.settings.memory_reserve)
            .map_err(|error| failure(&MakeError::Memory(error)))?;
        let origin = inner.origin_of(&request).await?;
        inner.reserve_id(&request)?;
        let _claimed = inner.claims.start(origin.layers());
        let created = inner.clone().start_sandbox(request, origin).await;
        inner.warm.refill();
        created
    }

    /// Ends a sandbox; returns when no process of it is left. Concurrent calls all succeed.
    ///
    /// # Errors
    /// Kinds `NotFound`, `StaleEpoch`, and `Failed` when the kernel does not end it.
    pub async fn kill(&self, sandbox_id: &str, epoch: Epoch) -> Result<(), HostError> {
        let (reply, answer) = oneshot::channel();
        if let Some((inbox, reply)) = self.inner.kill(sandbox_id, epoch, reply)
            && inbox.send(Request::Kill { epoch, reply }).await.is_err()
        {
            return Err(not_found(sandbox_id));
        }
        // The task ends with the sandbox: when somebody else ended it first, that is what was wanted.
        answer.await.unwrap_or(Ok(()))
    }

    /// Moves the deadline.
    ///
    /// # Errors
    /// Kinds `NotFound`, `StaleEpoch`, `Failed`.
    pub async fn set_deadline(
        &self,
        sandbox_id: &str,
        epoch: Epoch,
        deadline: UnixMillis,
    ) -> Result<(), HostError> {
        let inbox = self.inner.live(sandbox_id, |live| live.inbox.clone())?;
        let (reply, answer) = oneshot::channel();
        if inbox
            .send(Request::SetDeadline {
                epoch,
                deadline,
                reply,
            })
            .await
            .is_err()
        {
            return Err(not_found(sandbox_id));
        }
        answer.await.map_err(|_| not_found(sandbox_id))?
    }

    /// Changes where it may connect to.
    ///
    /// # Errors
    /// Kinds `NotFound`, `StaleEpoch`, `Failed`.
    pub async fn set_egress(
        &self,
        sandbox_id: &str,
        epoch: Epoch,
        egress: Egress,
    ) -> Result<(), HostError> {
        let inbox = self.inner.live(sandbox_id, |live| live.inbox.clone())?;
        let (reply, answer) = oneshot::channel();
        let request = Request::SetEgress {
            epoch,
            egress,
            reply,
        };
        if inbox.send(request).await.is_err() {
            return Err(not_found(sandbox_id));
        }
        answer.await.map_err(|_| not_found(sandbox_id))?
    }

    /// Connects to a TCP port of a sandbox.
    ///
    /// # Errors
    /// Kinds `NotFound`, `PortClosed`, `Failed`.
    pub async fn dial(&self, sandbox_id: &str, port: u16) -> Result<OwnedFd, HostError> {
        let running = self
            .inner
            .live(sandbox_id, |live| Arc::clone(&lock(&live.running)))?;
        self.inner
            .workshop
            .runtime
            .dial(&running, port)
            .await
            .map_err(|error| HostError {
                kind: match error {
                    DialError::Closed => HostErrorKind::PortClosed,
                    DialError::Failed(_) => HostErrorKind::Failed,
                },
                message: chain(&error),
            })
    }

    /// Every live sandbox that somebody asked for.
    #[must_use]
    pub fn list(&self) -> Vec<HostSandbox> {
        let listed = self.inner.listed();
        let shown = listed.iter().map(|(_, record)| {
            let record = lock(record);
            HostSandbox {
                sandbox_id: record.sandbox_id.clone(),
                epoch: record.epoch,
                build_id: record.build_id.clone(),
                started_at: record.started_at,
                deadline: record.deadline,
                egress: record.egress.clone(),
            }
        });
        shown.collect()
    }

    /// What each of these has used.
    ///
    /// # Errors
    /// Kind `Failed`.
    pub async fn usage(&self) -> Result<Vec<HostUsage>, HostError> {
        let live = self.inner.listed();
        let workshop = Arc::clone(&self.inner.workshop);
        spawn_blocking(move || {
            let traffic = workshop.runtime.traffic().map_err(|error| failed(&error))?;
            let usage = live.iter().filter_map(|(running, record)| {
                let record = lock(record).clone();
                // One that is just ending has nothing to tell.
                let usage = workshop.runtime.usage(running).ok()?;
                let traffic = traffic.get(&record.slot).copied().unwrap_or_default();
                Some(HostUsage {
                    cpu_micros: usage.cpu_micros,
                    memory: usage.memory,
                    cache: usage.cache,
                    processes: usage.processes,
                    disk: (workshop.pool.usage(&record.upper))
                        .map_or(0, |it| it.bytes + record.inherited),
                    received: traffic.received,
                    sent: traffic.sent,
                    oom_kills: workshop.runtime.oom_kills(running),
                    sandbox_id: record.sandbox_id,
                })
            });
            Ok(usage.collect())
        })
        .await
        .map_err(|error| failed(&error))?
    }

    /// The templates of the pool, read anew. A snapshot of theirs is told of when new sandboxes should go on from it.
    ///
    /// # Errors
    /// Kind `Failed` when a manifest cannot be read.
    pub async fn templates(&self) -> Result<Vec<HostTemplate>, HostError> {
        let templates = self.inner.reload_templates().await?;
        let mut told: Vec<_> = templates.iter().map(layers::told).collect();
        for template in &mut told {
            if let Some(snapshot_id) = &template.inherited.started
                && !self.inner.is_current(snapshot_id).await
            {
                template.inherited.started = None;
            }
        }
        Ok(told)
    }

    /// There is a new build, or it is another than it was: nothing that it replaces is kept ahead.
    pub(crate) fn renew_ahead(&self, build: &TemplateManifest) {
        let inner = &self.inner;
        inner.discard_booted(inner.warm.renew(build));
    }

    /// A build is no more: nothing of it is kept ahead.
    pub(crate) fn forget_ahead(&self, build_id: &str) {
        let inner = &self.inner;
        inner.discard_booted(inner.warm.forget(build_id));
    }

    pub(crate) fn workshop(&self) -> Arc<Workshop<R>> {
        Arc::clone(&self.inner.workshop)
    }

    /// The record of a live sandbox.
    pub(crate) fn record(&self, sandbox_id: &str) -> Result<Record, HostError> {
        self.inner
            .live(sandbox_id, |live| lock(&live.record).clone())
    }

    /// How the slots do that are made ahead.
    #[must_use]
    pub fn warm_levels(&self) -> WarmLevels {
        self.inner.warm.levels()
    }

    /// Ends the warm slots and lets go of the sandboxes, which run on. Returns their number; nothing that ended is left then, unless a
    /// warning says so.
    pub async fn stop(self) -> usize {
        let inner = self.inner;
        inner.stopping.store(true, Ordering::SeqCst);
        inner.creations.close();
        if timeout(STOP_TIMEOUT, inner.creations.wait()).await.is_err() {
            tracing::warn!("starts of sandboxes are still under way");
        }
        // Without their senders the owners of the sandboxes end.
        lock(&inner.sandboxes).clear();
        let (booted, parked) = inner.warm.drain();
        let substitutes = inner.substitutes.drain();
        let (warm, workshop) = (Arc::clone(&inner.warm), Arc::clone(&inner.workshop));
        inner.tasks.spawn_blocking(move || {
            for substitute in substitutes {
                workshop.discard(substitute.made);
            }
            for booted in booted {
                workshop.discard(booted.made);
            }
            for prepared in parked {
                workshop.discard_prepared(prepared);
            }
            warm.join();
        });
        inner.tasks.close();
        if timeout(STOP_TIMEOUT, inner.tasks.wait()).await.is_err() {
            tracing::warn!("ended sandboxes are not given back yet; the next start will do that");
        }
        let workshop = Arc::clone(&inner.workshop);
        match spawn_blocking(move || workshop.retry_leftovers()).await {
            Ok(0) => {}
            Ok(leftovers) => tracing::warn!(
                leftovers,
                "some slots could not be given back; the next start will do that"
            ),
            Err(error) => tracing::error!(%error, "failed to give slots back"),
        }
        inner.left.load(Ordering::SeqCst)
    }

    /// Ends every sandbox; for giving the host back.
    pub async fn kill_all(&self) {
        let live: Vec<_> = lock(&self.inner.sandboxes)
            .iter()
            .filter_map(|(sandbox_id, entry)| match entry {
                Entry::Starting(_) => None,
                Entry::Live(live) => Some((sandbox_id.clone(), lock(&live.record).epoch)),
            })
            .collect();
        for (sandbox_id, epoch) in live {
            if let Err(error) = self.kill(&sandbox_id, Epoch(epoch)).await {
                tracing::warn!(sandbox_id, %error, "failed to end a sandbox");
            }
        }
    }
}

impl<R: Runtime> Inner<R> {
    fn reserve_id(&self, request: &Create) -> Result<(), HostError> {
        let sandbox_id = &request.sandbox_id;
        let mut sandboxes = lock(&self.sandboxes);
        if sandboxes.contains_key(sandbox_id) {
            return Err(HostError {
                kind: HostErrorKind::AlreadyExists,
                message: format!("sandbox {sandbox_id} exists already"),
            });
        }
        let epoch = Epoch(request.epoch);
        if lock(&self.fences).bars(sandbox_id, epoch) {
            return Err(HostError {
                kind: HostErrorKind::StaleEpoch,
                message: format!("sandbox {sandbox_id} has ended before this create came"),
            });
        }
        let starting = Starting {
            machine: Machine::create(
                epoch,
                UnixMillis(request.deadline),
                at_deadline(request.at_deadline),
            ),
            waiting: Vec::new(),
        };
        sandboxes.insert(sandbox_id.clone(), Entry::Starting(starting));
        Ok(())
    }

    /// Takes a kill: the inbox of the owner that it is for, with its reply, or else all is done with the reply.
    fn kill(
        &self,
        sandbox_id: &str,
        epoch: Epoch,
        reply: Reply,
    ) -> Option<(mpsc::Sender<Request>, Reply)> {
        match lock(&self.sandboxes).get_mut(sandbox_id) {
            Some(Entry::Live(live)) => Some((live.inbox.clone(), reply)),
            Some(Entry::Starting(starting)) => {
                let event = lifecycle::Event::Kill { epoch };
                let (machine, effects) = lifecycle::step(&starting.machine, now(), event);
                starting.machine = machine;
                match effects[..] {
                    [Effect::Answer(answer)] => {
                        let result = answer_as_result(answer, sandbox_id, machine.epoch);
                        // Whoever has gone away needs no answer.
                        drop(reply.send(result));
                    }
                    _ => starting.waiting.push(reply),
                }
                None
            }
            None => {
                // Its create may be under way to here.
                lock(&self.fences).bar(&sandbox_id.to_owned(), epoch, now());
                drop(reply.send(Err(not_found(sandbox_id))));
                None
            }
        }
    }

    fn is_doomed(&self, sandbox_id: &str) -> bool {
        matches!(
            lock(&self.sandboxes).get(sandbox_id),
            Some(Entry::Starting(starting)) if starting.machine.is_doomed()
        )
    }

    /// What the start under way has come to, and the kills that wait for it.
    fn leave_starting(
        &self,
        sandbox_id: &str,
        event: lifecycle::Event,
    ) -> Option<(Machine, Vec<Effect>, Vec<Reply>)> {
        let mut sandboxes = lock(&self.sandboxes);
        let Some(Entry::Starting(starting)) = sandboxes.get_mut(sandbox_id) else {
            return None;
        };
        let (machine, effects) = lifecycle::step(&starting.machine, now(), event);
        let waiting = std::mem::take(&mut starting.waiting);
        starting.machine = machine;
        if effects.contains(&Effect::Forget) {
            lock(&self.fences).bar(&sandbox_id.to_owned(), machine.epoch, now());
            sandboxes.remove(sandbox_id);
        }
        Some((machine, effects, waiting))
    }

    fn live<T>(&self, sandbox_id: &str, take: impl FnOnce(&Live<R>) -> T) -> Result<T, HostError> {
        match lock(&self.sandboxes).get(sandbox_id) {
            Some(Entry::Live(live)) => Ok(take(live)),
            _ => Err(not_found(sandbox_id)),
        }
    }

    /// Live sandboxes that somebody asked for, not those of template builds.
    fn listed(&self) -> Vec<Listed<R>> {
        let sandboxes = lock(&self.sandboxes);
        let live = sandboxes.values().filter_map(|entry| match entry {
            Entry::Starting(_) => None,
            Entry::Live(live) => Some((Arc::clone(&lock(&live.running)), Arc::clone(&live.record))),
        });
        live.filter(|(_, record)| !lock(record).step).collect()
    }

    /// What a sandbox begins from: a build, or a list of layers.
    async fn root_of(&self, request: &Create) -> Result<TemplateManifest, HostError> {
        if request.layers.is_empty() {
            self.template(&request.build_id).await
        } else {
            layers::manifest(request)
        }
    }

    /// A sandbox off the stock, where it begins from nothing but a build and there is one of that.
    fn take_booted(&self, origin: &Origin) -> Option<Booted<R>> {
        let (booted, dead) = self.warm.take_booted(origin.build_alone()?);
        self.discard_booted(dead);
        booted
    }

    async fn template(&self, build_id: &str) -> Result<TemplateManifest, HostError> {
        let find = |templates: &[TemplateManifest]| {
            templates
                .iter()
                .find(|template| template.build_id == build_id)
                .cloned()
        };
        let known = find(&lock(&self.templates));
        if let Some(template) = known {
            return Ok(template);
        }
        if let Some(build) = layers::build(Arc::clone(&self.workshop), build_id).await? {
            return Ok(build);
        }
        find(&self.reload_templates().await?).ok_or_else(|| HostError {
            kind: HostErrorKind::TemplateMissing,
            message: format!("build {build_id} is not in the pool of this host"),
        })
    }

    async fn reload_templates(&self) -> Result<Arc<[TemplateManifest]>, HostError> {
        let workshop = Arc::clone(&self.workshop);
        let templates = spawn_blocking(move || workshop.pool.templates()).await;
        let templates: Arc<[TemplateManifest]> = match templates {
            Ok(Ok(templates)) => templates.into(),
            Ok(Err(error)) => return Err(failed(&error)),
            Err(error) => return Err(failed(&error)),
        };
        *lock(&self.templates) = Arc::clone(&templates);
        let default = find_default(&templates, &self.settings.default_template);
        self.discard_booted(self.warm.set_templates(&templates, default));
        Ok(templates)
    }

    async fn start_sandbox(
        self: Arc<Self>,
        request: Create,
        origin: Origin,
    ) -> Result<(Created, OwnedFd), HostError> {
        let sandbox_id = request.sandbox_id.clone();
        let (record, made, envd) = match self.clone().make_ready(request, origin).await {
            Ok(ready) => ready,
            Err(error) => {
                let left = self.leave_starting(&sandbox_id, lifecycle::Event::StartFailed);
                for reply in left.into_iter().flat_map(|(_, _, waiting)| waiting) {
                    // Whoever has gone away needs no answer.
                    drop(reply.send(Ok(())));
                }
                return Err(error);
            }
        };
        let created = Created {
            started_at: record.started_at,
            init_secret: made.init_secret,
            restored: made.guests.is_some(),
        };
        let (machine, mut effects, waiting) = self
            .leave_starting(
                &sandbox_id,
                lifecycle::Event::Started {
                    started_at: UnixMillis(record.started_at),
                },
            )
            .unwrap_or_else(|| {
                // The agent has stopped meanwhile and let go of everything.
                let machine = Machine::adopt(
                    Epoch(record.epoch),
                    UnixMillis(record.deadline),
                    at_deadline(record.at_deadline),
                );
                (machine, vec![Effect::Answer(Answer::Done)], Vec::new())
            });
        let answer = match effects.first() {
            Some(Effect::Answer(answer)) => *answer,
            _ => Answer::Done,
        };
        effects.retain(|effect| !matches!(effect, Effect::Answer(_)));
        self.adopt(
            record,
            made.running,
            made.ended,
            (machine, effects, waiting),
        );
        answer_as_result(answer, &sandbox_id, machine.epoch).map(|()| (created, envd))
    }

    /// A sandbox with its record. On an error nothing of it is left.
    async fn make_ready(
        self: Arc<Self>,
        request: Create,
        origin: Origin,
    ) -> Result<(Record, Made<R>, OwnedFd), HostError> {
        let mut basis = origin.basis();
        let booted = self.take_booted(&origin);
        let (made, envd) = match booted {
            Some(Booted { made, envd, .. }) => (made, envd),
            None => {
                let _permit = self
                    .starts
                    .acquire()
                    .await
                    .map_err(|error| failed(&error))?;
                if self.is_doomed(&request.sandbox_id) {
                    return answer_as_result(
                        Answer::StaleEpoch,
                        &request.sandbox_id,
                        Epoch(request.epoch).next(),
                    )
                    .and_then(|()| Err(not_found(&request.sandbox_id)));
                }
                let inner = Arc::clone(&self);
                let limits = limits_of(&request);
                let made = spawn_blocking(move || inner.make_started(&origin, &limits)).await;
                let (made, of) = made
                    .map_err(|error| failed(&error))?
                    .map_err(|error| failure(&error))?;
                basis = of;
                match self
                    .workshop
                    .runtime
                    .dial(&made.running, crate::ENVD_PORT)
                    .await
                {
                    Ok(envd) => (made, envd),
                    Err(error) => {
                        self.discard_now(made).await;
                        return Err(failed(&MakeError::Dial(error)));
                    }
                }
            }
        };
        match self.hand_over(&request, basis, &made, now()) {
            Ok(record) => Ok((record, made, envd)),
            Err(error) => {
                self.discard_now(made).await;
                Err(failure(&error))
            }
        }
    }

    /// A sandbox of any template, from a parked slot or from nothing. Blocks.
    fn make(
        &self,
        template: &TemplateManifest,
        snapshot: Option<&Snapshot>,
    ) -> Result<Made<R>, MakeError> {
        let limits = default_limits(Some(template));
        self.workshop.pool.reserve_ok().map_err(MakeError::Upper)?;
        let prepared = match self.warm.take_parked() {
            Some(prepared) => prepared,
            None => self.workshop.prepare(&limits)?,
        };
        let made = self.workshop.boot(prepared, template, snapshot, &limits)?;
        match self.workshop.runtime.set_limits(&made.running, &limits) {
            Ok(()) => Ok(made),
            Err(error) => {
                self.workshop.discard(made);
                Err(MakeError::Limits(error))
            }
        }
    }

    /// Gives a sandbox off the bench to its creator: what differs from the default, and its record. Some 0.2 ms.
    fn hand_over(
        &self,
        request: &Create,
        basis: RootBasis,
        made: &Made<R>,
        started_at: UnixMillis,
    ) -> Result<Record, MakeError> {
        let runtime = &self.workshop.runtime;
        let limits = limits_of(request);
        if limits != made.limits {
            runtime
                .set_limits(&made.running, &limits)
                .map_err(MakeError::Limits)?;
            if limits.disk != made.limits.disk {
                self.workshop
                    .pool
                    .set_quota(&made.upper, limits.disk)
                    .map_err(MakeError::Quota)?;
            }
        }
        let egress = Egress::try_from(&request.egress).map_err(MakeError::Ranges)?;
        if egress != Egress::Denied {
            runtime
                .set_egress(&made.running, &egress)
                .map_err(MakeError::Egress)?;
        }
        let process = runtime
            .process(&made.running)
            .ok_or(MakeError::EndedEarly)?;
        let record = Record {
            sandbox_id: request.sandbox_id.clone(),
            epoch: request.epoch,
            build_id: request.build_id.clone(),
            started_at: started_at.0,
            deadline: UnixMillis(request.deadline).of_started(started_at).0,
            at_deadline: request.at_deadline,
            slot: made.slot,
            pid: process.pid,
            start_time: process.start_time,
            upper: made.upper.clone(),
            inherited: made.inherited,
            basis,
            guests: made
                .guests
                .clone()
                .unwrap_or_else(|| self.settings.guests.clone()),
            init_secret: made.init_secret.clone(),
            egress: request.egress.clone(),
            step: !request.layers.is_empty(),
        };
        self.records.put(&record).map_err(MakeError::Record)?;
        Ok(record)
    }

    /// Puts a running sandbox into the map and gives it its task, which begins with what was decided before.
    fn adopt(
        self: &Arc<Self>,
        record: Record,
        running: Arc<R::Running>,
        ended: OwnedFd,
        (machine, first, waiting): (Machine, Vec<Effect>, Vec<Reply>),
    ) {
        let sandbox_id = record.sandbox_id.clone();
        let record = Arc::new(Mutex::new(record));
        let (inbox, requests) = mpsc::channel(16);
        let running: Current<R> = Arc::new(Mutex::new(running));
        let live = Live {
            running: Arc::clone(&running),
            inbox,
            record: Arc::clone(&record),
        };
        lock(&self.sandboxes).insert(sandbox_id, Entry::Live(live));
        let owned = Owned {
            machine,
            first,
            waiting,
            record: Arc::clone(&record),
            inbox: requests,
        };
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            let (saves, substitutes) = (&inner.saves, &inner.substitutes);
            let current = Arc::clone(&running);
            let owner = sandbox::own(saves, substitutes, current, ended, &inner.records, owned);
            let outcome = owner.await;
            let running = Arc::clone(&lock(&running));
            match outcome {
                Ok(None) => {
                    inner.left.fetch_add(1, Ordering::SeqCst);
                }
                Ok(Some(ended)) => inner.bury(ended, running),
                Err(error) => {
                    // Nobody could tell its end any more, so it ends now.
                    tracing::error!(%error, "failed to watch a sandbox");
                    inner.workshop.runtime.kill(&running);
                    let record = lock(&record).clone();
                    let ended = Ended {
                        cause: DeathCause::AgentDied,
                        saved: None,
                        savers: Vec::new(),
                        job: None,
                        epoch: Epoch(record.epoch),
                        record,
                        waiting: Vec::new(),
                    };
                    inner.bury(ended, running);
                }
            }
        });
    }

    /// Performs [`Effect::Bury`]: forgets an ended sandbox, tells who waits, and gives back what it had.
    fn bury(self: &Arc<Self>, ended: Ended, running: Arc<R::Running>) {
        let Ended {
            cause,
            saved,
            savers,
            job,
            record,
            epoch,
            waiting,
        } = ended;
        if let Some(unwanted) = self.substitutes.take(&record.sandbox_id) {
            self.discard_later(unwanted.made);
        }
        // Before the ID is free: its next user has a record of the same name.
        self.records.delete(&record.sandbox_id);
        let mut sandboxes = lock(&self.sandboxes);
        lock(&self.fences).bar(&record.sandbox_id, epoch, now());
        sandboxes.remove(&record.sandbox_id);
        drop(sandboxes);
        let event = match &saved {
            Some(snapshot) if savers.is_empty() => Some(Event::Paused(snapshot.clone())),
            Some(_) => None,
            None => waiting.is_empty().then(|| Event::Exited {
                sandbox_id: record.sandbox_id.clone(),
                epoch: record.epoch,
                cause: cause.as_str().to_owned(),
            }),
        };
        if let Some(event) = event {
            // A front that is behind asks for the list.
            lock(&self.events).retain(|events| {
                !matches!(
                    events.try_send(event.clone()),
                    Err(mpsc::error::TrySendError::Closed(_))
                )
            });
        }
        // Whoever has gone away needs no answer.
        for reply in waiting {
            drop(reply.send(Ok(())));
        }
        match saved {
            Some(snapshot) => {
                tracing::info!(sandbox_id = record.sandbox_id, "a sandbox was paused");
                for reply in savers {
                    drop(reply.send(Ok(snapshot.clone())));
                }
            }
            None => {
                let (sandbox_id, cause) = (&record.sandbox_id, cause.as_str());
                tracing::info!(sandbox_id, cause, "a sandbox ended");
            }
        }
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            // It works with what is given back.
            let mut job = job;
            if job.is_some()
                && let Ok(unwanted) = Job::over(&mut job).await
            {
                // The end came when it was nearly on disk.
                inner.saves.delete(unwanted.snapshot_id);
            }
            let workshop = Arc::clone(&inner.workshop);
            inner
                .tasks
                .spawn_blocking(move || workshop.release(running, record.upper, record.slot));
        });
    }

    /// Ends a sandbox that was not handed over; no process of it is left when this returns.
    async fn discard_now(&self, made: Made<R>) {
        let workshop = Arc::clone(&self.workshop);
        let discarded = self.tasks.spawn_blocking(move || workshop.discard(made));
        if let Err(error) = discarded.await {
            tracing::error!(%error, "failed to give a slot back");
        }
    }

    fn discard_later(&self, made: Made<R>) {
        let workshop = Arc::clone(&self.workshop);
        self.tasks.spawn_blocking(move || workshop.discard(made));
    }

    fn discard_booted(&self, booted: Vec<Booted<R>>) {
        for booted in booted {
            self.discard_later(booted.made);
        }
    }
}

async fn upkeep<R: Runtime>(inner: std::sync::Weak<Inner<R>>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        let Some(inner) = inner.upgrade() else { return };
        let workshop = Arc::clone(&inner.workshop);
        drop(inner);
        let kept = spawn_blocking(move || {
            workshop.retry_leftovers();
            let growth = workshop.pool.grow_if_low();
            // Also where it could not grow, and all the more.
            if let Err(error) = workshop.pool.share_out() {
                tracing::warn!(error = %chain(&error), "failed to share out the pool");
            }
            if let Err(error) = workshop.pool.sweep_snapshots() {
                tracing::warn!(error = %chain(&error), "failed to delete half a snapshot");
            }
            growth
        });
        match kept.await {
            Ok(Ok(Growth::NotNeeded)) => {}
            Ok(Ok(Growth::Grown { size_bytes })) => tracing::info!(size_bytes, "enlarged the pool"),
            Ok(Ok(Growth::HostFull)) => {
                tracing::warn!("the pool is nearly full and the disk of the host too")
            }
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "failed to enlarge the pool"),
            Err(error) => tracing::warn!(%error, "failed to enlarge the pool"),
        }
    }
}

fn limits_of(request: &Create) -> Limits {
    Limits {
        memory: MiB(request.memory_mib),
        cpu: MilliCpu(request.cpu_milli),
        pids: request.pids,
        disk: MiB(request.disk_mib),
    }
}

fn at_deadline(asked: wire::AtDeadline) -> AtDeadline {
    match asked {
        wire::AtDeadline::Kill => AtDeadline::Kill,
        wire::AtDeadline::Pause { .. } => AtDeadline::Pause,
    }
}

fn find_default(templates: &[TemplateManifest], name: &str) -> Option<TemplateManifest> {
    templates
        .iter()
        .find(|template| template.name == name)
        .cloned()
}

fn not_found(sandbox_id: &str) -> HostError {
    HostError {
        kind: HostErrorKind::NotFound,
        message: format!("sandbox {sandbox_id} does not run on this host"),
    }
}

fn failed(error: &dyn std::error::Error) -> HostError {
    HostError {
        kind: HostErrorKind::Failed,
        message: chain(error),
    }
}

fn failure(error: &MakeError) -> HostError {
    let kind = match error {
        MakeError::NoSlot
        | MakeError::Memory(MemoryError::Short { .. })
        | MakeError::Upper(PoolError::ReserveReached { .. }) => HostErrorKind::NoCapacity,
        MakeError::LayerMissing(_) => HostErrorKind::TemplateMissing,
        MakeError::Upper(PoolError::SnapshotMissing { .. }) => HostErrorKind::SnapshotMissing,
        MakeError::Refused { .. }
        | MakeError::Restore {
            source: RestoreError::ProgramsMissing(_),
            ..
        } => HostErrorKind::SnapshotRefused,
        MakeError::Restore {
            source: RestoreError::Unsupported(_),
            ..
        } => HostErrorKind::Unsupported,
        _ => HostErrorKind::Failed,
    };
    HostError {
        kind,
        message: chain(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
