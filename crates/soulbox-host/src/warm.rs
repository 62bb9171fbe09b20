//! Slots made ahead: some booted for the builds that are used ([`demand`]), some parked for any. One thread refills; a create only takes.
//!
//! In a booted slot nothing has run but our own init and daemon: a template's own programs wait for `/init`.

mod demand;
mod pace;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use soulbox_pool::TemplateManifest;
use soulbox_types::Limits;
use tokio::runtime::Handle;

use crate::runtime::Runtime;
use crate::workshop::{Made, MakeError, Prepared, Workshop};
use demand::{Demand, Step};
use pace::Pace;

/// How often it is looked whether a build has slots that are not used any more.
const LOOK: Duration = Duration::from_secs(30);

/// How many of each kind.
#[derive(Debug, Clone, Copy)]
pub struct WarmTargets {
    /// Running envds, of all builds together.
    pub booted: usize,
    /// Parked launchers.
    pub parked: usize,
}

/// A sandbox without an owner: envd runs, a connection to it is open, and nobody inside has ever been told anything.
pub(crate) struct Booted<R: Runtime> {
    template: Arc<TemplateManifest>,
    pub(crate) made: Made<R>,
    pub(crate) envd: OwnedFd,
}

struct Stock<R: Runtime> {
    booted: VecDeque<Booted<R>>,
    parked: VecDeque<Prepared<R>>,
    demand: Demand,
    /// Booted ones that creates have got.
    taken: u64,
    pace: Pace,
    stopping: bool,
}

/// The stock and its refilling.
pub(crate) struct Warm<R: Runtime> {
    stock: Mutex<Stock<R>>,
    wanted: Condvar,
    targets: WarmTargets,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Next<R: Runtime> {
    Boot(Arc<TemplateManifest>),
    GiveBack(Box<Booted<R>>),
    Park,
    Stop,
}

/// How the stock does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmLevels {
    /// Running envds in stock.
    pub booted: usize,
    /// Sandboxes that began with one, since the start.
    pub taken: u64,
}

impl<R: Runtime> Stock<R> {
    /// Takes out what satisfies a condition.
    fn extract(&mut self, unwanted: impl Fn(&Booted<R>) -> bool) -> Vec<Booted<R>> {
        let (out, kept) = self.booted.drain(..).partition(unwanted);
        self.booted = kept;
        Vec::from_iter::<VecDeque<_>>(out)
    }
}

impl<R: Runtime> Warm<R> {
    pub(crate) fn new(targets: WarmTargets, default: Option<TemplateManifest>) -> Arc<Self> {
        let stock = Stock {
            booted: VecDeque::new(),
            parked: VecDeque::new(),
            demand: Demand::new(default),
            taken: 0,
            pace: Pace::default(),
            stopping: false,
        };
        Arc::new(Self {
            stock: Mutex::new(stock),
            wanted: Condvar::new(),
            targets,
            thread: Mutex::new(None),
        })
    }

    /// Starts the refilling thread. It stops at [`Warm::drain`].
    pub(crate) fn start(
        self: &Arc<Self>,
        workshop: Arc<Workshop<R>>,
        tokio: Handle,
    ) -> std::io::Result<()> {
        let warm = Arc::clone(self);
        let started = thread::Builder::new()
            .name("warmer".into())
            .spawn(move || warm.run(&workshop, &tokio))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(())
    }

    /// A booted sandbox of that build, if one is in stock and still alive, and those that have died meanwhile, to be discarded.
    pub(crate) fn take_booted(
        &self,
        template: &TemplateManifest,
    ) -> (Option<Booted<R>>, Vec<Booted<R>>) {
        let now = Instant::now();
        let mut dead = Vec::new();
        let mut stock = self.lock();
        stock.pace.taken(now);
        stock.demand.note(template, now);
        let is_of_it = |booted: &Booted<R>| *booted.template == *template;
        while let Some(at) = stock.booted.iter().position(is_of_it)
            && let Some(booted) = stock.booted.remove(at)
        {
            if !is_readable(&booted.made.ended) {
                stock.taken += 1;
                return (Some(booted), dead);
            }
            tracing::warn!(
                slot = booted.made.slot,
                "a warm sandbox has ended by itself"
            );
            dead.push(booted);
        }
        (None, dead)
    }

    /// A parked slot, if one is in stock.
    pub(crate) fn take_parked(&self) -> Option<Prepared<R>> {
        let mut stock = self.lock();
        stock.pace.taken(Instant::now());
        stock.parked.pop_front()
    }

    /// Says that something was taken. Called after the answer, so that the refilling does not delay it.
    pub(crate) fn refill(&self) {
        self.wanted.notify_one();
    }

    /// The installation's own templates are these, and one of them is booted whoever uses it. Gives back what is of no use any more.
    pub(crate) fn set_templates(
        &self,
        templates: &[TemplateManifest],
        default: Option<TemplateManifest>,
    ) -> Vec<Booted<R>> {
        self.change(|demand| {
            templates.iter().for_each(|template| demand.renew(template));
            demand.set_default(default);
        })
    }

    /// There is a new build, or it is another than it was. Gives back slots of what it replaces.
    pub(crate) fn renew(&self, template: &TemplateManifest) -> Vec<Booted<R>> {
        self.change(|demand| demand.renew(template))
    }

    /// A build is no more. Gives back its slots.
    pub(crate) fn forget(&self, build_id: &str) -> Vec<Booted<R>> {
        self.change(|demand| demand.forget(build_id))
    }

    /// Takes out the slots of all builds that have none any more after a change.
    fn change(&self, change: impl FnOnce(&mut Demand)) -> Vec<Booted<R>> {
        let mut stock = self.lock();
        change(&mut stock.demand);
        let shares = stock.demand.shares(self.targets.booted, Instant::now());
        let old = stock.extract(|booted| {
            !shares
                .iter()
                .any(|share| *share.template == *booted.template)
        });
        drop(stock);
        self.refill();
        old
    }

    /// Ends the refilling and hands over the stock. What the thread is just making it gives back itself: see [`Warm::join`].
    pub(crate) fn drain(&self) -> (Vec<Booted<R>>, Vec<Prepared<R>>) {
        let mut stock = self.lock();
        stock.stopping = true;
        let all = (
            stock.booted.drain(..).collect(),
            stock.parked.drain(..).collect(),
        );
        drop(stock);
        self.wanted.notify_all();
        all
    }

    /// Waits for the end of the refilling thread, after [`Warm::drain`]. Blocks for as long as the making of one slot takes.
    pub(crate) fn join(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that makes warm slots had panicked");
        }
    }

    pub(crate) fn levels(&self) -> WarmLevels {
        let stock = self.lock();
        WarmLevels {
            booted: stock.booted.len(),
            taken: stock.taken,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stock<R>> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Next<R> {
        let mut stock = self.lock();
        loop {
            if stock.stopping {
                return Next::Stop;
            }
            let next = match self.step(&stock) {
                Step::Make(template) => Next::Boot(template),
                Step::GiveBack(build_id) => {
                    let is_of_it = |it: &Booted<R>| it.template.build_id == build_id;
                    match stock.booted.iter().position(is_of_it) {
                        Some(at) => match stock.booted.remove(at) {
                            Some(booted) => return Next::GiveBack(Box::new(booted)),
                            None => continue,
                        },
                        None => continue,
                    }
                }
                Step::Nothing if stock.parked.len() < self.targets.parked => Next::Park,
                Step::Nothing => {
                    (stock, _) = self
                        .wanted
                        .wait_timeout(stock, LOOK)
                        .unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            let pause = stock.pace.wait(Instant::now());
            if pause.is_zero() {
                return next;
            }
            (stock, _) = self
                .wanted
                .wait_timeout(stock, pause)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn step(&self, stock: &Stock<R>) -> Step {
        let mut levels = BTreeMap::new();
        for booted in &stock.booted {
            *levels.entry(&*booted.template.build_id).or_default() += 1;
        }
        let slots = self.targets.booted;
        demand::step(&stock.demand.shares(slots, Instant::now()), &levels, slots)
    }

    fn run(&self, workshop: &Workshop<R>, tokio: &Handle) {
        let mut pause = Duration::from_millis(100);
        loop {
            let made = match self.next() {
                Next::Stop => return,
                Next::GiveBack(booted) => {
                    workshop.discard(booted.made);
                    continue;
                }
                Next::Boot(template) => self.make_booted(workshop, tokio, template),
                Next::Park => workshop.prepare(&default_limits(None)).map(|prepared| {
                    let mut stock = self.lock();
                    if stock.stopping {
                        drop(stock);
                        workshop.discard_prepared(prepared);
                    } else {
                        stock.parked.push_back(prepared);
                    }
                }),
            };
            match made {
                Ok(()) => pause = Duration::from_millis(100),
                Err(error) => {
                    tracing::warn!(error = %crate::chain(&error), "failed to make a warm slot");
                    self.rest(pause);
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// Sleeps, unless the refilling is to end.
    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut stock = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if stock.stopping || left.is_zero() {
                return;
            }
            (stock, _) = self
                .wanted
                .wait_timeout(stock, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn make_booted(
        &self,
        workshop: &Workshop<R>,
        tokio: &Handle,
        template: Arc<TemplateManifest>,
    ) -> Result<(), MakeError> {
        let (made, envd) = match boot(workshop, tokio, &template) {
            Ok(booted) => booted,
            Err(error) => {
                // What is wrong with one template is not to keep the others waiting: it is tried again when it is used again.
                self.lock().demand.forget(&template.build_id);
                return Err(error);
            }
        };
        let mut stock = self.lock();
        let shares = stock.demand.shares(self.targets.booted, Instant::now());
        let is_wanted = shares.iter().any(|share| *share.template == *template);
        if stock.stopping || !is_wanted {
            drop(stock);
            workshop.discard(made);
        } else {
            stock.booted.push_back(Booted {
                template,
                made,
                envd,
            });
        }
        Ok(())
    }
}

/// A booted sandbox and a connection to its envd.
fn boot<R: Runtime>(
    workshop: &Workshop<R>,
    tokio: &Handle,
    template: &TemplateManifest,
) -> Result<(Made<R>, OwnedFd), MakeError> {
    let limits = default_limits(Some(template));
    let made = workshop.boot(workshop.prepare(&limits)?, template, None, &limits)?;
    match tokio.block_on(workshop.runtime.dial(&made.running, crate::ENVD_PORT)) {
        Ok(envd) => Ok((made, envd)),
        Err(source) => {
            workshop.discard(made);
            Err(MakeError::Dial(source))
        }
    }
}

/// The limits of a sandbox whose creator names none.
pub(crate) fn default_limits(template: Option<&TemplateManifest>) -> Limits {
    use soulbox_types::{MiB, MilliCpu};
    Limits {
        memory: MiB(template.map_or(1024, |template| template.memory_mib)),
        cpu: MilliCpu::whole(template.map_or(2, |template| template.cpu_count)),
        pids: crate::DEFAULT_PIDS,
        disk: MiB(template.map_or(10 << 10, |template| template.disk_mib)),
    }
}

fn is_readable(descriptor: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    poll(
        &mut polled,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .is_ok_and(|ready| ready > 0)
}
