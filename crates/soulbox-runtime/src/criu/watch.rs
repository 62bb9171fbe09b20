//! Having CRIU itself watched, so that its end finds what it holds standing still: the agent's half of [`crate::launch::watch`].

use std::io;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::launch::channel::{Channel, FromLauncher, ToLauncher, WatchPlan};
use crate::launch::watch::STOP_WITHIN;

/// A watcher that has not answered by then never will.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A process that traces CRIU until that has ended. Dropped, it is waited for, so CRIU has to be ended first.
#[derive(Debug)]
pub(crate) struct Watch {
    control: Option<Channel>,
    process: Child,
}

impl Watch {
    /// # Errors
    /// No process, or the kernel's: somebody traces CRIU already.
    pub(crate) fn begin(launcher: &Path, plan: WatchPlan) -> io::Result<Self> {
        let (control, process) = Channel::start(launcher)?;
        let watch = Self {
            control: Some(control),
            process,
        };
        watch.send(&ToLauncher::Watch(plan))?;
        match watch.hear(ANSWER_WITHIN)? {
            Some(FromLauncher::Watching) => Ok(watch),
            Some(FromLauncher::Failed { step, errno }) => {
                let source = io::Error::from_raw_os_error(errno);
                Err(io::Error::new(source.kind(), format!("{step}: {source}")))
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// CRIU holds nothing any more: its end may come.
    pub(crate) fn release(&self) {
        // Without a watcher there is nothing to be released.
        let _ = self.send(&ToLauncher::LetGo);
    }

    /// Of a CRIU that has ended: whether what it held was stopped before that, or why not; nothing when it was not to be.
    pub(crate) fn end(self) -> Option<io::Result<()>> {
        match self.hear(STOP_WITHIN * 2) {
            Ok(Some(FromLauncher::Stopped)) => Some(Ok(())),
            Ok(Some(FromLauncher::Failed { step, .. })) => Some(Err(io::Error::other(step))),
            _ => None,
        }
    }

    fn send(&self, message: &ToLauncher) -> io::Result<()> {
        let control = self.control.as_ref();
        control.map_or(Ok(()), |control| control.send(message, &[]))
    }

    fn hear(&self, within: Duration) -> io::Result<Option<FromLauncher>> {
        let Some(control) = &self.control else {
            return Ok(None);
        };
        let heard = control.receive(Some(within))?;
        Ok(heard.map(|(message, _)| message))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Without an agent it leaves what it has stopped, and ends.
        self.control = None;
        let _ = self.process.wait();
    }
}
