//! The task that owns one context: executions one after the other, interruption, death and restart.
//!
//! States: a kernel that is idle, a kernel that executes, no kernel. The last is left by starting one, at once after a death
//! and again with each execution. What an idle kernel's programs write is read and forgotten, so that they do not block.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, MissedTickBehavior};

use crate::kernel::{Event, Kernel, Request};
use crate::language::Language;
use crate::launch::{LaunchError, Launcher};
use crate::message::{KernelError, Line, Message};
use crate::output::{Channel, Gone, Output};

/// Executions that wait for their turn.
const WAITING: usize = 64;
/// Pieces of output before an execution's number.
const EARLY: usize = 64;
/// Between interrupts of an execution that goes on.
const AGAIN: Duration = Duration::from_millis(500);
/// Between looks for a fork bomb.
const LOOK: Duration = Duration::from_millis(200);
/// How long an idle kernel is looked after. What begins to multiply later is noticed by the next execution.
const LOOK_AFTER: Duration = Duration::from_secs(10);
/// An interrupted execution that others wait for ends after this, and its kernel with it.
const PATIENCE: Duration = Duration::from_millis(1500);

/// One execution and where its answer goes. The client is gone when `lines` is closed.
pub(crate) struct Execution {
    pub(crate) code: String,
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) lines: mpsc::Sender<Bytes>,
}

pub(crate) enum Order {
    Restart(oneshot::Sender<Result<(), LaunchError>>),
    Remove(oneshot::Sender<()>),
}

/// A context as others see it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) id: String,
    pub(crate) language: Language,
    pub(crate) cwd: String,
    executions: mpsc::Sender<Execution>,
    orders: mpsc::Sender<Order>,
}

/// Why an execution was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    Removed,
}

impl Context {
    /// Starts a kernel and the task that owns it; the task ends with [`Order::Remove`] or with the context's last user.
    pub(crate) async fn start(
        launcher: Arc<Launcher>,
        id: String,
        language: Language,
        cwd: String,
    ) -> Result<Self, LaunchError> {
        let kernel = launcher.launch(&language, &cwd).await?;
        let (executions, waiting) = mpsc::channel(WAITING);
        let (orders, ordered) = mpsc::channel(4);
        let owner = Owner {
            launcher,
            language: language.clone(),
            cwd: cwd.clone(),
            kernel: Some(kernel),
            looks: Looks::default(),
            waiting,
            ordered,
        };
        tokio::spawn(owner.run());
        Ok(Self {
            id,
            language,
            cwd,
            executions,
            orders,
        })
    }

    pub(crate) fn execute(&self, execution: Execution) -> Result<(), Refusal> {
        self.executions
            .try_send(execution)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Refusal::Full,
                mpsc::error::TrySendError::Closed(_) => Refusal::Removed,
            })
    }

    /// A new kernel; what runs is ended.
    pub(crate) async fn restart(&self) -> Result<(), LaunchError> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| LaunchError::Interrupted;
        self.orders
            .send(Order::Restart(reply))
            .await
            .map_err(|_| LaunchError::Interrupted)?;
        answer.await.map_err(gone)?
    }

    /// Returns when its processes were killed.
    pub(crate) async fn remove(&self) {
        let (reply, answer) = oneshot::channel();
        if self.orders.send(Order::Remove(reply)).await.is_ok() {
            // The task may have been removed by somebody else first.
            _ = answer.await;
        }
    }
}

struct Owner {
    launcher: Arc<Launcher>,
    language: Language,
    cwd: String,
    kernel: Option<Kernel>,
    looks: Looks,
    waiting: mpsc::Receiver<Execution>,
    ordered: mpsc::Receiver<Order>,
}

/// When an idle kernel is looked after: for a while after each execution.
#[derive(Debug, Default)]
struct Looks {
    next: Option<Instant>,
    until: Option<Instant>,
}

impl Looks {
    fn begin(&mut self) {
        let now = Instant::now();
        self.until = Some(now + LOOK_AFTER);
        self.next = Some(now + LOOK);
    }

    /// Returns when it is time for the next.
    async fn due(&mut self) {
        match self.next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
        let next = Instant::now() + LOOK;
        self.next = (self.until >= Some(next)).then_some(next);
    }
}

/// How an execution left the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Idle,
    Busy,
    Dead,
    /// Dead, and the code has not begun.
    DeadBefore,
}

impl Owner {
    async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                order = self.ordered.recv() => {
                    let Some(order) = order else { return };
                    if self.obey(order).await.is_break() {
                        return;
                    }
                }
                execution = self.waiting.recv() => {
                    let Some(execution) = execution else { return };
                    if self.execute(execution).await.is_break() {
                        return;
                    }
                }
                () = self.looks.due() => {
                    if let Some(kernel) = &mut self.kernel {
                        kernel.disperse();
                    }
                }
                // Also what was written after the last execution ended.
                event = idle(self.kernel.as_mut()) => {
                    if matches!(event, Event::Died) {
                        self.kernel = None;
                        // A failure is told to the next execution, which tries again.
                        self.kernel = self.launch().await.ok();
                    }
                }
            }
        }
    }

    async fn launch(&self) -> Result<Kernel, LaunchError> {
        self.launcher.launch(&self.language, &self.cwd).await
    }

    async fn obey(&mut self, order: Order) -> std::ops::ControlFlow<()> {
        self.kernel = None;
        match order {
            Order::Restart(reply) => {
                let result = match self.launch().await {
                    Ok(kernel) => {
                        self.kernel = Some(kernel);
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                // Whoever asked may have gone.
                _ = reply.send(result);
                std::ops::ControlFlow::Continue(())
            }
            Order::Remove(reply) => {
                _ = reply.send(());
                std::ops::ControlFlow::Break(())
            }
        }
    }

    async fn execute(&mut self, execution: Execution) -> std::ops::ControlFlow<()> {
        // It waited, and its client did not.
        if execution.lines.is_closed() {
            return std::ops::ControlFlow::Continue(());
        }
        let mut again = true;
        let (kernel, left) = loop {
            let mut kernel = match self.kernel.take() {
                Some(kernel) => kernel,
                None => match self.launch().await {
                    Ok(kernel) => kernel,
                    Err(error) => {
                        not_started(&execution, &error).await;
                        return std::ops::ControlFlow::Continue(());
                    }
                },
            };
            // Left behind by an earlier one, and begun late.
            kernel.disperse();
            let performing = async {
                match perform(&mut kernel, &execution).await {
                    Left::Busy => interrupted(&mut kernel, &self.waiting).await,
                    left => left,
                }
            };
            let left = tokio::select! {
                left = performing => left,
                order = self.ordered.recv() => {
                    drop(kernel);
                    let Some(order) = order else { return std::ops::ControlFlow::Break(()) };
                    restarted(&execution).await;
                    return self.obey(order).await;
                }
            };
            // It was killed while it was idle, and not noticed before: nothing was executed yet, so another can.
            if left == Left::DeadBefore && again {
                again = false;
                continue;
            }
            if left == Left::DeadBefore {
                restarted(&execution).await;
            }
            break (kernel, left);
        };
        if left == Left::Idle {
            self.looks.begin();
            self.kernel = Some(kernel);
        } else {
            drop(kernel);
            self.kernel = self.launch().await.ok();
        }
        std::ops::ControlFlow::Continue(())
    }
}

async fn idle(kernel: Option<&mut Kernel>) -> Event {
    match kernel {
        Some(kernel) => kernel.next().await,
        None => std::future::pending().await,
    }
}

/// Executes, and passes on what the kernel writes and says until it is done, dead, or the client gone.
async fn perform(kernel: &mut Kernel, execution: &Execution) -> Left {
    // Written since the last execution, by programs that it left behind: nobody's.
    kernel.forget_output();
    let request = Request {
        code: &execution.code,
        env: &execution.variables,
    };
    tokio::select! {
        sent = kernel.execute(&request) => {
            if sent.is_err() {
                return Left::DeadBefore;
            }
        }
        // A request that is half sent cannot be taken back.
        () = execution.lines.closed() => return Left::Dead,
    }
    let mut output = Output::new(&execution.lines);
    let mut failed = false;
    let mut counted = false;
    // What was read before the number, which is the first line.
    let mut early = Vec::new();
    let mut looks = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = kernel.next() => event,
            _ = looks.tick() => {
                if !kernel.end_bomb() {
                    continue;
                }
                Event::Died
            }
            () = output.due() => {
                if output.flush().await.is_err() {
                    return Left::Busy;
                }
                continue;
            }
            () = execution.lines.closed() => return Left::Busy,
        };
        let passed = match event {
            Event::Stdout(_) | Event::Stderr(_) if !counted => {
                // The number comes at once; what floods the pipes meanwhile is of programs that were left behind.
                if early.len() < EARLY {
                    early.push(event);
                }
                Ok(())
            }
            Event::Stdout(bytes) => output.write(Channel::Stdout, &bytes).await,
            Event::Stderr(bytes) => output.write(Channel::Stderr, &bytes).await,
            Event::Message(Message::Count(execution_count)) => {
                counted = true;
                let mut passed = output
                    .line(Line::NumberOfExecutions { execution_count }.bytes())
                    .await;
                for event in early.drain(..) {
                    passed = match (passed, event) {
                        (Ok(()), Event::Stdout(bytes)) => {
                            output.write(Channel::Stdout, &bytes).await
                        }
                        (Ok(()), Event::Stderr(bytes)) => {
                            output.write(Channel::Stderr, &bytes).await
                        }
                        (passed, _) => passed,
                    };
                }
                passed
            }
            Event::Message(Message::Result(line)) => output.line(line).await,
            Event::Message(Message::Error(_)) if failed => Ok(()),
            Event::Message(Message::Error(error)) => {
                failed = true;
                output.line(error_line(&error)).await
            }
            Event::Message(Message::Done) => {
                // The kernel is idle, whether or not anybody hears of it.
                _ = output.line(Line::EndOfExecution.bytes()).await;
                return Left::Idle;
            }
            // The last is an event of its own.
            Event::Message(Message::Ready | Message::Failed { .. } | Message::Output { .. }) => {
                Ok(())
            }
            Event::Died if !counted => return Left::DeadBefore,
            Event::Died => {
                say_restarted(&mut output).await;
                return Left::Dead;
            }
        };
        if passed == Err(Gone) {
            return Left::Busy;
        }
    }
}

fn error_line(error: &KernelError) -> Bytes {
    Line::Error {
        name: &error.name,
        value: &error.value,
        traceback: &error.traceback,
    }
    .bytes()
}

async fn restarted(execution: &Execution) {
    say_restarted(&mut Output::new(&execution.lines)).await;
}

async fn say_restarted(output: &mut Output<'_>) {
    let error = KernelError {
        name: "ContextRestarting".to_owned(),
        value: "Context was restarted".to_owned(),
        traceback: String::new(),
    };
    say_end(output, &error).await;
}

async fn not_started(execution: &Execution, error: &LaunchError) {
    let error = KernelError {
        name: "ContextNotStarted".to_owned(),
        value: crate::http::chain(error),
        traceback: String::new(),
    };
    say_end(&mut Output::new(&execution.lines), &error).await;
}

/// For at most a moment: the client of a context that ends may not read.
async fn say_end(output: &mut Output<'_>, error: &KernelError) {
    let saying = async {
        if output.line(error_line(error)).await.is_ok() {
            // It went between the two lines.
            _ = output.line(Line::EndOfExecution.bytes()).await;
        }
    };
    _ = tokio::time::timeout(PATIENCE, saying).await;
}

/// Ends what runs for nobody: by interrupts, and with its kernel when that does not help and somebody waits.
async fn interrupted(kernel: &mut Kernel, waiting: &mpsc::Receiver<Execution>) -> Left {
    let since = Instant::now();
    let mut ticks = tokio::time::interval(AGAIN);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if !waiting.is_empty() && since.elapsed() >= PATIENCE {
                    return Left::Dead;
                }
                // First: what goes on forking gets no interrupt, or forgets it.
                kernel.disperse();
                kernel.interrupt();
            }
            event = kernel.next() => match event {
                Event::Message(Message::Done) => {
                    kernel.disperse();
                    return Left::Idle;
                }
                Event::Died => return Left::Dead,
                _ => {}
            },
        }
    }
}
