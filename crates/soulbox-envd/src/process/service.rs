//! The Process service: requests in, [`Processes`] asked, answers out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest,
    ServiceResult, ServiceStream,
};
use futures_util::{Stream, StreamExt as _};
use rustix::process::Signal as KernelSignal;
use soulbox_envd_proto::rpc::process as wire;
use soulbox_envd_proto::rpc::process::__buffa::oneof;

use super::fanout::Event;
use super::input::{InputError, InputKind};
use super::spawn::{self, StartError, Surroundings};
use super::stream::{EventStream, WireEvent};
use super::{Followed, Process, Processes, Selector, SignalError};
use crate::cause::chain;
use crate::http::{keepalive, user_of};
use crate::settings::Settings;

pub(crate) struct ProcessService {
    settings: Arc<Settings>,
    processes: Arc<Processes>,
}

impl ProcessService {
    pub(crate) fn new(settings: Arc<Settings>, processes: Arc<Processes>) -> Self {
        Self {
            settings,
            processes,
        }
    }

    fn find(&self, selector: Option<Selector>) -> Result<Arc<Process>, ConnectError> {
        let selector = selector.ok_or_else(no_selector)?;
        self.processes
            .find(&selector)
            .ok_or_else(|| not_found(&selector))
    }

    async fn write(
        &self,
        process: &Process,
        input: Option<&wire::ProcessInput>,
    ) -> Result<(), ConnectError> {
        let (kind, data) = match input.and_then(|input| input.input.as_ref()) {
            Some(oneof::process_input::Input::Stdin(data)) => (InputKind::Stdin, data),
            Some(oneof::process_input::Input::Pty(data)) => (InputKind::Pty, data),
            None => {
                return Err(ConnectError::unimplemented(
                    "input is neither stdin nor pty",
                ));
            }
        };
        process
            .input
            .write(kind, data)
            .await
            .map_err(|error| input_error(&error))
    }
}

impl wire::Process for ProcessService {
    async fn list<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::ListRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListResponse> + Send + use<'a>> {
        let processes = self.processes.list();
        let processes = processes.iter().map(|process| wire::ProcessInfo {
            config: process.config.clone().into(),
            pid: process.pid,
            tag: process.tag.clone(),
        });
        Response::ok(wire::ListResponse {
            processes: processes.collect(),
        })
    }

    async fn start(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::StartResponse> + Send + use<>>> {
        let user = user_of(&context)?;
        let workdir = self.settings.default_workdir();
        let variables = self.settings.variables();
        let surroundings = Surroundings {
            user: &user,
            default_workdir: workdir.as_deref(),
            variables: &variables,
        };
        let deadline = context.deadline();
        let (_, subscription) = self
            .processes
            .start(request.to_owned_message(), &surroundings, deadline)
            .map_err(|error| start_error(&error))?;
        Ok(Response::stream(EventStream::new(
            subscription,
            keepalive(&context),
            deadline,
        )))
    }

    async fn connect(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::ConnectResponse> + Send + use<>>> {
        let selector =
            selector(request.to_owned_message().process.as_option()).ok_or_else(no_selector)?;
        let stream: Events = match self
            .processes
            .follow(&selector)
            .ok_or_else(|| not_found(&selector))?
        {
            Followed::Live(subscription) => Events::Live(Box::new(EventStream::new(
                subscription,
                keepalive(&context),
                context.deadline(),
            ))),
            Followed::Finished { pid, end } => {
                Events::Finished(vec![Event::End(end), Event::Start { pid }])
            }
        };
        Ok(Response::stream(stream))
    }

    async fn update<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::UpdateRequest>,
    ) -> ServiceResult<impl Encodable<wire::UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find(selector(request.process.as_option()))?;
        if let Some(pty) = request.pty.as_option() {
            process
                .input
                .resize(spawn::window_size(pty))
                .map_err(|error| input_error(&error))?;
        }
        Response::ok(wire::UpdateResponse::default())
    }

    async fn send_input<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::SendInputRequest>,
    ) -> ServiceResult<impl Encodable<wire::SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find(selector(request.process.as_option()))?;
        self.write(&process, request.input.as_option()).await?;
        Response::ok(wire::SendInputResponse::default())
    }

    async fn stream_input<'a>(
        &'a self,
        _context: RequestContext,
        mut requests: InboundStream<wire::StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<wire::StreamInputResponse> + Send + use<'a>> {
        let mut process = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(oneof::stream_input_request::Event::Start(start)) => {
                    process = Some(self.find(selector(start.process.as_option()))?);
                }
                Some(oneof::stream_input_request::Event::Data(data)) => {
                    let process = process.as_ref().ok_or_else(|| {
                        ConnectError::invalid_argument("data came before the start message")
                    })?;
                    self.write(process, data.input.as_option()).await?;
                }
                Some(oneof::stream_input_request::Event::Keepalive(_)) => {}
                None => {
                    return Err(ConnectError::unimplemented(
                        "message is neither start, data nor keepalive",
                    ));
                }
            }
        }
        Response::ok(wire::StreamInputResponse::default())
    }

    async fn send_signal<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<wire::SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find(selector(request.process.as_option()))?;
        let signal = if request.signal == wire::Signal::SIGNAL_SIGKILL {
            KernelSignal::KILL
        } else if request.signal == wire::Signal::SIGNAL_SIGTERM {
            KernelSignal::TERM
        } else {
            return Err(ConnectError::unimplemented(format!(
                "signal {:?} cannot be sent",
                request.signal
            )));
        };
        process
            .end(signal)
            .map_err(|error: SignalError| ConnectError::internal(chain(&error)))?;
        Response::ok(wire::SendSignalResponse::default())
    }

    async fn close_stdin<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<wire::CloseStdinResponse> + Send + use<'a>> {
        let process = self.find(selector(request.to_owned_message().process.as_option()))?;
        process
            .input
            .close()
            .await
            .map_err(|error| input_error(&error))?;
        Response::ok(wire::CloseStdinResponse::default())
    }
}

/// What Connect streams: a live program's events, or the two that are left of a finished one (last first).
enum Events {
    Live(Box<EventStream>),
    Finished(Vec<Event>),
}

impl Stream for Events {
    type Item = Result<WireEvent, ConnectError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Self::Live(stream) => Pin::new(stream).poll_next(context),
            Self::Finished(events) => Poll::Ready(events.pop().map(|event| Ok(WireEvent(event)))),
        }
    }
}

fn selector(selector: Option<&wire::ProcessSelector>) -> Option<Selector> {
    match selector?.selector.as_ref()? {
        oneof::process_selector::Selector::Pid(pid) => Some(Selector::Pid(*pid)),
        oneof::process_selector::Selector::Tag(tag) => Some(Selector::Tag(tag.clone())),
    }
}

fn no_selector() -> ConnectError {
    ConnectError::unimplemented("process is named by neither pid nor tag")
}

fn not_found(selector: &Selector) -> ConnectError {
    ConnectError::not_found(match selector {
        Selector::Pid(pid) => format!("process with pid {pid} not found"),
        Selector::Tag(tag) => format!("process with tag {tag} not found"),
    })
}

fn start_error(error: &StartError) -> ConnectError {
    match error {
        StartError::Groups(_) => ConnectError::internal(chain(error)),
        _ => ConnectError::invalid_argument(chain(error)),
    }
}

fn input_error(error: &InputError) -> ConnectError {
    match error {
        InputError::CannotCloseTerminal => ConnectError::unknown(chain(error)),
        _ => ConnectError::internal(chain(error)),
    }
}
