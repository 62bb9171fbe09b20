//! The driver of installed kernels of Jupyter: a process between the interpreter, with whom it speaks as every driver does, and
//! one kernel, which it starts and with which it speaks over ZeroMQ.
//!
//! States: starting, idle, executing. It ends with the kernel, and the kernel with it: both are in one process group, so that
//! interrupts of the group reach the kernel as well. Absent: standard input, comms (widgets), updates of earlier displays.

mod variables;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use zeromq::{DealerSocket, Socket as _, SocketRecv as _, SocketSend as _, SubSocket, ZmqError};

use crate::kernelspec::{Kernelspec, SpecError};
use wire::{Received, Session, WireError};

/// Between two questions whether a kernel that starts is there.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Lets a program end with its parent; of util-linux.
const SETPRIV: &str = "/usr/bin/setpriv";

#[derive(Debug, thiserror::Error)]
pub enum JupyterError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("cannot speak with the interpreter")]
    Interpreter(#[source] io::Error),
    #[error("the interpreter's request is not understood")]
    Request(#[source] serde_json::Error),
    #[error("there are no random numbers: {0}")]
    Random(getrandom::Error),
    #[error("cannot prepare the connection `{path}`")]
    Connection {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start `{program}`")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot wait for the kernel")]
    Wait(#[source] io::Error),
    #[error("the kernel ended: {0}")]
    Ended(ExitStatus),
    #[error("the kernel ended before it answered ({status}): {said}")]
    EndedEarly { status: ExitStatus, said: String },
    #[error("cannot speak with the kernel")]
    Socket(#[from] ZmqError),
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Drives the kernel of the file `spec` for the interpreter at the other end of `connection`; its connection file lies in `folder`
/// until it has been read.
pub async fn drive(connection: StdStream, spec: &Path, folder: &Path) -> Result<(), JupyterError> {
    let stream = connection
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(connection))
        .map_err(JupyterError::Interpreter)?;
    let (requests, answers) = stream.into_split();
    let mut interpreter = Interpreter {
        requests: BufReader::new(requests).lines(),
        answers,
        // Before the kernel is there: an interrupt of the group must not end this process.
        interrupts: signal(SignalKind::interrupt()).map_err(JupyterError::Interpreter)?,
    };
    let mut kernel = match Kernel::start(spec, folder).await {
        Ok(kernel) => kernel,
        Err(error) => {
            let reason = crate::http::chain(&error);
            interpreter
                .say(&json!({"type": "failed", "reason": reason}))
                .await?;
            return Err(error);
        }
    };
    interpreter.say(&json!({"type": "ready"})).await?;
    kernel.serve(&mut interpreter).await
}

struct Interpreter {
    requests: Lines<BufReader<OwnedReadHalf>>,
    answers: OwnedWriteHalf,
    interrupts: Signal,
}

impl Interpreter {
    async fn say(&mut self, message: &Value) -> Result<(), JupyterError> {
        let mut line = message.to_string();
        line.push('\n');
        self.answers
            .write_all(line.as_bytes())
            .await
            .map_err(JupyterError::Interpreter)
    }
}

/// What is asked for: see [`crate::kernel::Request`].
#[derive(Deserialize)]
struct Request {
    code: String,
    env: BTreeMap<String, String>,
}

struct Kernel {
    spec: Kernelspec,
    process: Child,
    session: Session,
    shell: DealerSocket,
    output: SubSocket,
    control: DealerSocket,
    executions: u64,
}

/// How one request went on.
#[derive(Default)]
struct Progress {
    counted: bool,
    failed: bool,
    replied: bool,
    idle: bool,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    status: String,
    execution_count: Option<u64>,
    #[serde(default)]
    ename: String,
    #[serde(default)]
    evalue: String,
    #[serde(default)]
    traceback: Vec<String>,
}

#[derive(Deserialize)]
struct Input {
    execution_count: u64,
}

#[derive(Deserialize)]
struct Stream {
    name: String,
    text: String,
}

#[derive(Deserialize)]
struct Display<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct State {
    execution_state: String,
}

impl Kernel {
    async fn start(spec: &Path, folder: &Path) -> Result<Self, JupyterError> {
        let spec = Kernelspec::read(spec)?;
        let (id, key) = (random()?, random()?);
        let file = folder.join(format!("jupyter-{}.json", &id[..16]));
        let failed = |source| JupyterError::Connection {
            path: file.clone(),
            source,
        };
        let ports = ports().map_err(failed)?;
        let [shell, output, stdin, control, heartbeat] = ports;
        let connection = json!({
            "transport": "tcp", "ip": Ipv4Addr::LOCALHOST.to_string(),
            "shell_port": shell, "iopub_port": output, "stdin_port": stdin, "control_port": control, "hb_port": heartbeat,
            "key": key, "signature_scheme": "hmac-sha256", "kernel_name": "",
        });
        // With the key code is executed as root, so nobody else reads it.
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut file| file.write_all(connection.to_string().as_bytes()))
            .map_err(failed)?;
        let read = Temporary(file);
        let mut process = spawn(&spec, &read.0)?;
        let mut complaints = process.stderr.take();
        let mut session = Session::new(id, key);
        let (shell, output, control) = tokio::select! {
            connected = connect(&mut session, [shell, output, control]) => connected?,
            (status, said) = ended(&mut process, complaints.as_mut()) => {
                let status = status.map_err(JupyterError::Wait)?;
                return Err(JupyterError::EndedEarly { status, said });
            }
        };
        // A kernel tells what code writes in messages; what it writes itself is for the log of a server, and there is none. The
        // task ends with the pipe.
        if let Some(mut rest) = complaints {
            tokio::spawn(async move { tokio::io::copy(&mut rest, &mut tokio::io::sink()).await });
        }
        Ok(Self {
            spec,
            process,
            session,
            shell,
            output,
            control,
            executions: 0,
        })
    }

    /// Until the interpreter is gone, or the kernel.
    async fn serve(&mut self, interpreter: &mut Interpreter) -> Result<(), JupyterError> {
        loop {
            tokio::select! {
                line = interpreter.requests.next_line() => {
                    let Some(line) = line.map_err(JupyterError::Interpreter)? else { return Ok(()) };
                    let request = serde_json::from_str(&line).map_err(JupyterError::Request)?;
                    self.execute(request, interpreter).await?;
                }
                // Of threads that an execution left behind: nobody's.
                said = self.output.recv() => { said?; }
                _ = interpreter.interrupts.recv() => {}
                status = self.process.wait() => return Err(JupyterError::Ended(status.map_err(JupyterError::Wait)?)),
            }
        }
    }

    async fn execute(
        &mut self,
        request: Request,
        interpreter: &mut Interpreter,
    ) -> Result<(), JupyterError> {
        let mut around = None;
        if !request.env.is_empty() {
            around = variables::around(&self.spec, &request.env);
            if around.is_none() {
                let value = format!(
                    "variables of one execution are not there for `{}`",
                    self.spec.language
                );
                self.executions += 1;
                interpreter
                    .say(&json!({"type": "count", "execution_count": self.executions}))
                    .await?;
                interpreter
                    .say(&json!({"type": "error", "name": "VariablesNotSupported", "value": value, "traceback": ""}))
                    .await?;
                return interpreter.say(&json!({"type": "done"})).await;
            }
        }
        if let Some(around) = &around {
            self.perform(&around.before, true, interpreter).await?;
        }
        self.perform(&request.code, false, interpreter).await?;
        if let Some(around) = &around {
            self.perform(&around.after, true, interpreter).await?;
        }
        interpreter.say(&json!({"type": "done"})).await
    }

    /// Passes code on, and what comes of it unless it is silent; returns when the kernel has done it.
    async fn perform(
        &mut self,
        code: &str,
        silent: bool,
        interpreter: &mut Interpreter,
    ) -> Result<(), JupyterError> {
        let content = json!({
            "code": code, "silent": silent, "store_history": !silent, "user_expressions": {},
            "allow_stdin": false, "stop_on_error": true,
        });
        let (id, message) = self.session.request("execute_request", &content)?;
        self.shell.send(message).await?;
        let mut progress = Progress::default();
        while !(progress.replied && progress.idle) {
            let message = tokio::select! {
                // What is said before the reply comes first.
                biased;
                message = self.output.recv() => message?,
                message = self.shell.recv() => message?,
                _ = interpreter.interrupts.recv() => {
                    if self.spec.interrupts_by_message() {
                        let (_, message) = self.session.request("interrupt_request", &json!({}))?;
                        self.control.send(message).await?;
                    }
                    continue;
                }
                status = self.process.wait() => return Err(JupyterError::Ended(status.map_err(JupyterError::Wait)?)),
            };
            let received = self.session.read(message)?;
            if received.parent.as_deref() != Some(&id) {
                continue;
            }
            match received.kind.as_str() {
                "status" if received.content::<State>()?.execution_state == "idle" => {
                    progress.idle = true;
                }
                "execute_reply" => {
                    progress.replied = true;
                    if !silent {
                        self.replied(&received, &mut progress, interpreter).await?;
                    }
                }
                _ if silent => {}
                _ => self.said(&received, &mut progress, interpreter).await?,
            }
        }
        Ok(())
    }

    async fn replied(
        &mut self,
        received: &Received,
        progress: &mut Progress,
        interpreter: &mut Interpreter,
    ) -> Result<(), JupyterError> {
        let reply: Reply = received.content()?;
        self.count(reply.execution_count, progress, interpreter)
            .await?;
        let name = match reply.status.as_str() {
            "ok" => return Ok(()),
            "aborted" | "abort" if reply.ename.is_empty() => "ExecutionAborted",
            _ => &reply.ename,
        };
        // Not before what the kernel published: the same error, most often.
        if progress.failed {
            return Ok(());
        }
        progress.failed = true;
        interpreter
            .say(&failure(name, &reply.evalue, &reply.traceback))
            .await
    }

    async fn said(
        &mut self,
        received: &Received,
        progress: &mut Progress,
        interpreter: &mut Interpreter,
    ) -> Result<(), JupyterError> {
        let message = match received.kind.as_str() {
            "execute_input" => {
                let input: Input = received.content()?;
                return self
                    .count(Some(input.execution_count), progress, interpreter)
                    .await;
            }
            "stream" => {
                let stream: Stream = received.content()?;
                json!({"type": "output", "stream": stream.name, "text": stream.text})
            }
            kind @ ("execute_result" | "display_data") => {
                let display: Display<'_> = received.content()?;
                let data = wire::one_line(display.data)?;
                let main = kind == "execute_result";
                self.count(None, progress, interpreter).await?;
                let line = format!(
                    "{{\"type\":\"display\",\"main\":{main},\"data\":{}}}\n",
                    data.get()
                );
                return interpreter
                    .answers
                    .write_all(line.as_bytes())
                    .await
                    .map_err(JupyterError::Interpreter);
            }
            "error" if !progress.failed => {
                progress.failed = true;
                let error: Reply = received.content()?;
                failure(&error.ename, &error.evalue, &error.traceback)
            }
            _ => return Ok(()),
        };
        self.count(None, progress, interpreter).await?;
        interpreter.say(&message).await
    }

    /// Says the number of this execution, once: the kernel's own when it tells one.
    async fn count(
        &mut self,
        own: Option<u64>,
        progress: &mut Progress,
        interpreter: &mut Interpreter,
    ) -> Result<(), JupyterError> {
        if progress.counted {
            return Ok(());
        }
        progress.counted = true;
        self.executions = own.unwrap_or(self.executions + 1);
        interpreter
            .say(&json!({"type": "count", "execution_count": self.executions}))
            .await
    }
}

fn failure(name: &str, value: &str, traceback: &[String]) -> Value {
    json!({"type": "error", "name": name, "value": value, "traceback": traceback.concat()})
}

/// Sockets of a kernel that answers, and whose output is heard.
async fn connect(
    session: &mut Session,
    [shell, output, control]: [u16; 3],
) -> Result<(DealerSocket, SubSocket, DealerSocket), JupyterError> {
    let address = |port| format!("tcp://{}:{port}", Ipv4Addr::LOCALHOST);
    let (mut asking, mut hearing, mut ordering) =
        (DealerSocket::new(), SubSocket::new(), DealerSocket::new());
    hearing.subscribe("").await?;
    asking.connect(&address(shell)).await?;
    hearing.connect(&address(output)).await?;
    ordering.connect(&address(control)).await?;
    // A subscription takes effect some time after it was made: when the state that goes with an answer is heard, it has.
    let (mut answered, mut heard) = (false, false);
    let mut ticks = tokio::time::interval(ASK_AGAIN);
    while !(answered && heard) {
        tokio::select! {
            _ = ticks.tick() => {
                let (_, message) = session.request("kernel_info_request", &json!({}))?;
                asking.send(message).await?;
            }
            message = asking.recv() => answered |= session.read(message?)?.kind == "kernel_info_reply",
            message = hearing.recv() => heard |= session.read(message?)?.parent.is_some(),
        }
    }
    Ok((asking, hearing, ordering))
}

/// The end of a kernel that starts, and the last of what it complained of.
async fn ended(
    process: &mut Child,
    complaints: Option<&mut ChildStderr>,
) -> (io::Result<ExitStatus>, String) {
    let mut said = Vec::new();
    if let Some(complaints) = complaints {
        let mut piece = [0; 4096];
        // At the end of the pipe, or at an error of it, the kernel is as good as gone.
        while let Ok(length @ 1..) = complaints.read(&mut piece).await {
            said.extend_from_slice(&piece[..length]);
            said.drain(..said.len().saturating_sub(piece.len()));
        }
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    (process.wait().await, said)
}

fn spawn(spec: &Kernelspec, file: &Path) -> Result<Child, JupyterError> {
    let mut line = spec.command(file);
    let apart = spec.interrupts_by_message() && Path::new(SETPRIV).exists();
    if apart {
        // In a process group of its own, where an interrupt of ours does not end it; so it must end with us in another way.
        line.splice(
            0..0,
            [SETPRIV, "--pdeathsig", "KILL", "--"].map(str::to_owned),
        );
    }
    let mut command = Command::new(&line[0]);
    command
        .args(&line[1..])
        .envs(&spec.env)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if apart {
        command.process_group(0);
    }
    command.spawn().map_err(|source| JupyterError::Start {
        program: line[0].clone(),
        source,
    })
}

/// Ports that are free now. Another program may take one before the kernel does, which it says by ending.
fn ports() -> io::Result<[u16; 5]> {
    let mut listeners = Vec::new();
    let mut ports = [0; 5];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        // Kept until all are found, so that they differ.
        listeners.push(listener);
    }
    Ok(ports)
}

fn random() -> Result<String, JupyterError> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(JupyterError::Random)?;
    Ok(hex::encode(bytes))
}

/// A file that goes with its user.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // The kernel's own start failed if it is gone already.
        _ = fs::remove_file(&self.0);
    }
}
