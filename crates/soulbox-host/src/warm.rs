//! Slots made ahead: some booted for the default template, some parked for any. One thread refills; a create only takes.

mod pace;

use std::collections::VecDeque;
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
use pace::Pace;

/// How many of each kind.
#[derive(Debug, Clone, Copy)]
pub struct WarmTargets {
    /// Running envds of the default template.
    pub booted: usize,
    /// Parked launchers.
    pub parked: usize,
}

/// A sandbox without an owner: envd runs, a connection to it is open, and nobody inside has ever been told anything.
pub(crate) struct Booted<R: Runtime> {
    pub(crate) made: Made<R>,
    pub(crate) envd: OwnedFd,
}

struct Stock<R: Runtime> {
    booted: VecDeque<Booted<R>>,
    parked: VecDeque<Prepared<R>>,
    /// What to boot; `None` when there is no template yet.
    template: Option<TemplateManifest>,
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

enum Next {
    Boot(Box<TemplateManifest>),
    Park,
    Stop,
}

impl<R: Runtime> Warm<R> {
    pub(crate) fn new(targets: WarmTargets, template: Option<TemplateManifest>) -> Arc<Self> {
        let stock = Stock {
            booted: VecDeque::new(),
            parked: VecDeque::new(),
            template,
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
    pub(crate) fn take_booted(&self, build_id: &str) -> (Option<Booted<R>>, Vec<Booted<R>>) {
        let mut dead = Vec::new();
        let mut stock = self.lock();
        stock.pace.taken(Instant::now());
        if stock
            .template
            .as_ref()
            .is_none_or(|template| template.build_id != build_id)
        {
            return (None, dead);
        }
        while let Some(booted) = stock.booted.pop_front() {
            if !is_readable(&booted.made.ended) {
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

    /// Changes what is booted ahead; gives back what is of no use any more.
    pub(crate) fn set_template(&self, template: Option<TemplateManifest>) -> Vec<Booted<R>> {
        let mut stock = self.lock();
        if stock.template == template {
            return Vec::new();
        }
        stock.template = template;
        let old = stock.booted.drain(..).collect();
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

    /// Numbers of booted and parked slots in stock.
    pub(crate) fn levels(&self) -> (usize, usize) {
        let stock = self.lock();
        (stock.booted.len(), stock.parked.len())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stock<R>> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Next {
        let mut stock = self.lock();
        loop {
            if stock.stopping {
                return Next::Stop;
            }
            let (have, want) = (stock.booted.len(), self.targets.booted);
            let next = match &stock.template {
                Some(template) if have < want => Next::Boot(Box::new(template.clone())),
                _ if stock.parked.len() < self.targets.parked => Next::Park,
                _ => {
                    stock = self
                        .wanted
                        .wait(stock)
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

    fn run(&self, workshop: &Workshop<R>, tokio: &Handle) {
        let mut pause = Duration::from_millis(100);
        loop {
            let made = match self.next() {
                Next::Stop => return,
                Next::Boot(template) => self.make_booted(workshop, tokio, &template),
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
        template: &TemplateManifest,
    ) -> Result<(), MakeError> {
        let limits = default_limits(Some(template));
        let made = workshop.boot(workshop.prepare(&limits)?, template, None, &limits)?;
        let envd = match tokio.block_on(workshop.runtime.dial(&made.running, crate::ENVD_PORT)) {
            Ok(envd) => envd,
            Err(source) => {
                workshop.discard(made);
                return Err(MakeError::Dial(source));
            }
        };
        let mut stock = self.lock();
        if stock.stopping || stock.template.as_ref() != Some(template) {
            drop(stock);
            workshop.discard(made);
        } else {
            stock.booted.push_back(Booted { made, envd });
        }
        Ok(())
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
