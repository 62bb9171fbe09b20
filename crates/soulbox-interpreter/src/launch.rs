//! Starting kernels: the fork server of Python, and programs that are a kernel by themselves.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::kernel::{self, Dialect, Ends, Kernel, KernelFault};
use crate::language::Language;

const PYTHON_DRIVER: &str = include_str!("../../../kernels/python/driver.py");
const JAVASCRIPT_DRIVER: &str = include_str!("../../../kernels/javascript/driver.cjs");
const BASH_DRIVER: &str = include_str!("../../../kernels/bash/driver.sh");

/// Where the base template has it.
const NEWER_NODE: &str = "/opt/node-22/bin/node";

/// What envd writes in a copy of a sandbox: the variables that it has there.
const VARIABLES: &str = "/run/soulbox/variables.json";

/// This program, also when its file was replaced since.
const OURSELVES: &str = "/proc/self/exe";

/// An interpreter of a language and its libraries are read from a disk that may be busy.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// Python kernels that are wanted at once.
const FORKS_WAITING: usize = 64;
const FORKS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("cannot write the driver `{path}`")]
    Driver {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("cannot start `{program}`")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` did not answer")]
    Answer {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("`{program}` answered something else")]
    Strange {
        program: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{program}` cannot start a kernel: {reason}")]
    Fork {
        program: &'static str,
        reason: String,
    },
    #[error(transparent)]
    Kernel(#[from] KernelFault),
    #[error("the start was interrupted")]
    Interrupted,
}

/// Starts kernels; drivers lie in a folder of its own.
#[derive(Debug)]
pub struct Launcher {
    drivers: PathBuf,
    python: mpsc::Sender<ForkOrder>,
}

impl Launcher {
    /// Writes the drivers into `folder`, and starts the thread that speaks with the fork server; it ends with the launcher.
    pub fn new(folder: &Path) -> Result<Self, LaunchError> {
        for (name, text) in [
            ("python.py", PYTHON_DRIVER),
            ("javascript.cjs", JAVASCRIPT_DRIVER),
            ("bash.sh", BASH_DRIVER),
        ] {
            let path = folder.join(name);
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&path, text))
                .map_err(|source| LaunchError::Driver { path, source })?;
        }
        let (python, orders) = mpsc::channel(FORKS_WAITING);
        let driver = folder.join("python.py");
        // Now, and not at the first use: a sandbox that is full of processes could start none then.
        std::thread::Builder::new()
            .name("forks".to_owned())
            .spawn(move || obey(orders, &driver))
            .map_err(LaunchError::Thread)?;
        Ok(Self {
            drivers: folder.to_owned(),
            python,
        })
    }

    /// A kernel that is ready, in the directory `cwd`, which exists.
    pub(crate) async fn launch(
        &self,
        language: &Language,
        cwd: &str,
    ) -> Result<Kernel, LaunchError> {
        let (connection, ends) = kernel::connection()?;
        let mut kernel = match language {
            Language::Python => {
                let pid = self.fork_python(ends, cwd).await?;
                Kernel::new(connection, pid, None, Dialect::Json)?
            }
            Language::JavaScript | Language::TypeScript => {
                // Node's own stdin would be the connection, and that of every program it starts; descriptor 3 is not passed on.
                let mut command = Command::new("sh");
                command
                    .args(["-c", "exec \"$@\" 3<&0 0</dev/null", "sh"])
                    .arg(node(language))
                    .arg("--no-warnings")
                    .arg(self.drivers.join("javascript.cjs"))
                    .arg(language.name());
                let child = spawn(command, ends, cwd)?;
                Kernel::new(connection, child.id(), Some(child), Dialect::Json)?
            }
            Language::Bash => {
                let mut command = Command::new("bash");
                command
                    .args(["--noprofile", "--norc"])
                    .arg(self.drivers.join("bash.sh"));
                let child = spawn(command, ends, cwd)?;
                Kernel::new(connection, child.id(), Some(child), Dialect::Nul)?
            }
            Language::Installed { spec, .. } => {
                let mut command = Command::new(OURSELVES);
                command.arg("--kernel").arg(&**spec);
                command.arg("--drivers").arg(&self.drivers);
                let child = spawn(command, ends, cwd)?;
                Kernel::new(connection, child.id(), Some(child), Dialect::Json)?
            }
        };
        kernel.ready(STARTS_WITHIN).await?;
        Ok(kernel)
    }

    async fn fork_python(&self, ends: Ends, cwd: &str) -> Result<u32, LaunchError> {
        let (reply, answer) = oneshot::channel();
        let cwd = cwd.to_owned();
        self.python
            .send(ForkOrder { ends, cwd, reply })
            .await
            .map_err(|_| LaunchError::Interrupted)?;
        answer.await.map_err(|_| LaunchError::Interrupted)?
    }
}

/// A Python kernel that is wanted.
#[derive(Debug)]
struct ForkOrder {
    ends: Ends,
    cwd: String,
    reply: oneshot::Sender<Result<u32, LaunchError>>,
}

/// The thread that owns the fork server. An order is two short messages, but the first waits for an import of IPython.
fn obey(mut orders: mpsc::Receiver<ForkOrder>, driver: &Path) {
    let mut server = None;
    while let Some(ForkOrder { ends, cwd, reply }) = orders.blocking_recv() {
        // Whoever asked may have gone; the kernel ends with its connection then.
        _ = reply.send(fork(&mut server, driver, &ends, &cwd));
    }
}

fn fork(
    server: &mut Option<ForkServer>,
    driver: &Path,
    ends: &Ends,
    cwd: &str,
) -> Result<u32, LaunchError> {
    if let Some(running) = server {
        match running.fork(ends, cwd) {
            Ok(pid) => return Ok(pid),
            Err(error @ LaunchError::Fork { .. }) => return Err(error),
            // Code that runs as root can end it. The next is a new one.
            Err(_) => *server = None,
        }
    }
    let pid = server.insert(ForkServer::start(driver)?).fork(ends, cwd)?;
    Ok(pid)
}

/// TypeScript needs a newer Node than the one that templates call `node`.
fn node(language: &Language) -> &'static str {
    if *language == Language::TypeScript && Path::new(NEWER_NODE).exists() {
        NEWER_NODE
    } else {
        "node"
    }
}

/// Those of the sandbox, where this process was started before they were told.
fn variables() -> BTreeMap<String, String> {
    let text = fs::read(VARIABLES).unwrap_or_default();
    // A file that the sandbox has made something else of has none.
    let found: BTreeMap<String, String> = serde_json::from_slice(&text).unwrap_or_default();
    let is_one = |name: &str, value: &str| !name.contains(['=', '\0']) && !value.contains('\0');
    found
        .into_iter()
        .filter(|(name, value)| !name.is_empty() && is_one(name, value))
        .collect()
}

fn spawn(mut command: Command, ends: Ends, cwd: &str) -> Result<Child, LaunchError> {
    command
        .envs(variables())
        .current_dir(cwd)
        .process_group(0)
        .stdin(std::os::fd::OwnedFd::from(ends.control))
        .stdout(ends.stdout)
        .stderr(ends.stderr)
        .spawn()
        .map_err(|source| LaunchError::Start {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })
}

/// A Python that has imported what kernels need, and forks one when asked. Blocking.
#[derive(Debug)]
struct ForkServer {
    child: Child,
    control: BufReader<UnixStream>,
}

#[derive(Serialize)]
struct Fork<'a> {
    cwd: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    pid: Option<u32>,
    reason: Option<String>,
}

impl ForkServer {
    const NAME: &'static str = "python3";

    fn start(driver: &Path) -> Result<Self, LaunchError> {
        let failed = |source| LaunchError::Start {
            program: Self::NAME.to_owned(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let child = Command::new(Self::NAME)
            .arg(driver)
            .process_group(0)
            .stdin(std::os::fd::OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut server = Self {
            child,
            control: BufReader::new(ours),
        };
        server.answer(STARTS_WITHIN)?;
        Ok(server)
    }

    /// The process ID of a new kernel.
    fn fork(&mut self, ends: &Ends, cwd: &str) -> Result<u32, LaunchError> {
        let answer = |source| LaunchError::Answer {
            program: Self::NAME,
            source,
        };
        let mut request = serde_json::to_vec(&Fork { cwd }).map_err(Self::strange)?;
        request.push(b'\n');
        let descriptors = [
            ends.control.as_fd(),
            ends.stdout.as_fd(),
            ends.stderr.as_fd(),
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = sendmsg(
            self.control.get_ref(),
            &[IoSlice::new(&request)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map_err(|errno| answer(errno.into()))?;
        self.control
            .get_mut()
            .write_all(&request[sent..])
            .map_err(answer)?;
        match self.answer(FORKS_WITHIN)? {
            Answer { pid: Some(pid), .. } => Ok(pid),
            Answer {
                reason: Some(reason),
                ..
            } => Err(LaunchError::Fork {
                program: Self::NAME,
                reason,
            }),
            Answer { .. } => Err(answer(io::ErrorKind::InvalidData.into())),
        }
    }

    fn answer(&mut self, within: Duration) -> Result<Answer, LaunchError> {
        let answer = |source| LaunchError::Answer {
            program: Self::NAME,
            source,
        };
        self.control
            .get_ref()
            .set_read_timeout(Some(within))
            .map_err(answer)?;
        let mut line = Vec::new();
        self.control.read_until(b'\n', &mut line).map_err(answer)?;
        if line.is_empty() {
            return Err(answer(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(Self::strange)
    }

    fn strange(source: serde_json::Error) -> LaunchError {
        LaunchError::Strange {
            program: Self::NAME,
            source,
        }
    }
}

impl Drop for ForkServer {
    fn drop(&mut self) {
        // Its kernels end with it.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
