//! An MCP server over one sandbox: the tools of [`Toolbox`], and files of the home directory as resources.
//!
//! The sandbox is made by the first call that needs one and is shared by all clients of the server. It ends with the server, or after
//! a time without calls; then the next call makes another, and says so. Protocol, sessions and transports are `rmcp`'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams,
    ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, Resource,
    ResourceContents, ResourceTemplate, ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::RequestContext;
use rmcp::transport::io::stdio_pipes;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt as _};
use serde_json::Value;
use soulbox_client::{Client, ClientError, Place, SandboxError, SandboxOptions};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::tools::{ToolError, Toolbox, definitions};

const HOME: &str = "/home/user";
/// Files below the home directory that are listed, and how deep.
const MOST_LISTED: usize = 1000;
const DEPTH: u32 = 4;
const LARGEST_RESOURCE: usize = 10 << 20;

/// The server; clones share the sandbox.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    place: Place,
    options: SandboxOptions,
    within: Duration,
    current: Mutex<Current>,
}

enum Current {
    /// None was needed yet.
    None,
    /// When its deadline was set.
    Some(Toolbox, Instant),
    /// There was one, and what was in it is gone.
    Lost,
    /// The server ends: nothing is made any more.
    Closed,
}

/// Why the server could not be run.
#[derive(Debug, thiserror::Error)]
pub enum McpError {
    #[error("the client did not begin a session")]
    Begin(#[source] Box<rmcp::service::ServerInitializeError>),
    #[error("the server failed")]
    Serve(#[source] std::io::Error),
    #[error("the session ended badly")]
    End(#[source] tokio::task::JoinError),
}

impl Server {
    /// Nothing is made yet. `options.timeout` is how long the sandbox lives without calls, and `within` how long one call may take.
    #[must_use]
    pub fn new(client: Client, place: Place, options: SandboxOptions, within: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                place,
                options,
                within,
                current: Mutex::new(Current::None),
            }),
        }
    }

    /// Serves one client on standard input and output until it closes them or `cancelled` says so.
    ///
    /// # Errors
    /// [`McpError`]. [`Server::close`] is the caller's to call in any case.
    pub async fn stdio(&self, cancelled: CancellationToken) -> Result<(), McpError> {
        let serving = self.clone().serve_with_ct(stdio_pipes(), cancelled.clone());
        let running = tokio::select! {
            running = serving => running,
            () = cancelled.cancelled() => return Ok(()),
        };
        match running {
            Ok(running) => running.waiting().await.map(|_| ()).map_err(McpError::End),
            // A client that leaves before it has begun is no failure.
            Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => Ok(()),
            Err(error) => Err(McpError::Begin(Box::new(error))),
        }
    }

    /// Serves clients that show `token` at `/mcp` until `cancelled` says so.
    ///
    /// # Errors
    /// [`McpError`]. [`Server::close`] is the caller's to call in any case.
    pub async fn http(
        &self,
        listener: TcpListener,
        token: String,
        cancelled: CancellationToken,
    ) -> Result<(), McpError> {
        let server = self.clone();
        let config =
            StreamableHttpServerConfig::default().with_cancellation_token(cancelled.child_token());
        let service = StreamableHttpService::new(
            move || Ok(server.clone()),
            Arc::new(LocalSessionManager::default()),
            config,
        );
        let app = axum::Router::new().route_service("/mcp", service).layer(
            axum::middleware::from_fn_with_state(Arc::<str>::from(token), admit),
        );
        axum::serve(listener, app)
            .with_graceful_shutdown(async move { cancelled.cancelled().await })
            .await
            .map_err(McpError::Serve)
    }

    /// Ends the sandbox, if there is one; afterwards none is made.
    ///
    /// # Errors
    /// Those of [`Client::kill_sandbox`]; the sandbox's deadline then ends it.
    pub async fn close(&self) -> Result<(), ClientError> {
        let mut current = self.shared.current.lock().await;
        match std::mem::replace(&mut *current, Current::Closed) {
            Current::Some(toolbox, _) => self
                .shared
                .client
                .kill_sandbox(toolbox.sandbox().id())
                .await
                .map(|_| ()),
            _ => Ok(()),
        }
    }

    /// The sandbox, made where there is none, and whether it takes the place of one that was lost.
    async fn toolbox(&self) -> Result<(Toolbox, bool), String> {
        let shared = &self.shared;
        let mut current = shared.current.lock().await;
        let lost = match &mut *current {
            Current::Closed => return Err("the server is ending".to_owned()),
            Current::Some(toolbox, set) => {
                let timeout = shared.options.timeout;
                if set.elapsed() < timeout / 4 {
                    return Ok((toolbox.clone(), false));
                }
                let id = toolbox.sandbox().id().to_owned();
                match shared.client.set_sandbox_timeout(&id, timeout).await {
                    Ok(()) => {
                        *set = Instant::now();
                        return Ok((toolbox.clone(), false));
                    }
                    Err(error) if error.status().is_some_and(|status| status == 404) => true,
                    Err(error) => return Err(chain(&error)),
                }
            }
            Current::Lost => true,
            Current::None => false,
        };
        *current = if lost { Current::Lost } else { Current::None };
        // Not to be broken off by a client that goes away: what is made has to be known here.
        let (client, options, place) = (
            shared.client.clone(),
            shared.options.clone(),
            shared.place.clone(),
        );
        let making = tokio::spawn(async move { client.create_sandbox(&options, &place).await });
        let making = OnDrop(Some(making), shared.client.clone());
        let sandbox = making.finish().await?;
        let toolbox = Toolbox::new(sandbox, shared.within);
        *current = Current::Some(toolbox.clone(), Instant::now());
        Ok((toolbox, lost))
    }

    async fn forget(&self, id: &str) {
        let mut current = self.shared.current.lock().await;
        if matches!(&*current, Current::Some(toolbox, _) if toolbox.sandbox().id() == id) {
            *current = Current::Lost;
        }
    }
}

/// A sandbox that is being made; ended as soon as it is there when nobody waits for it any more.
struct OnDrop(
    Option<tokio::task::JoinHandle<Result<soulbox_client::Sandbox, ClientError>>>,
    Client,
);

impl OnDrop {
    async fn finish(mut self) -> Result<soulbox_client::Sandbox, String> {
        let Some(making) = &mut self.0 else {
            return Err("no sandbox is being made".to_owned());
        };
        let made = making.await;
        self.0 = None;
        match made {
            Ok(Ok(sandbox)) => Ok(sandbox),
            Ok(Err(error)) => Err(chain(&error)),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(making) = self.0.take() {
            let client = self.1.clone();
            tokio::spawn(async move {
                if let Ok(Ok(sandbox)) = making.await {
                    // Where this fails, the deadline ends it.
                    let _ = client.kill_sandbox(sandbox.id()).await;
                }
            });
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Lets those in who show the token.
async fn admit(State(token): State<Arc<str>>, request: Request, next: Next) -> Response {
    let shown = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, shown)| shown.trim().as_bytes())
        .unwrap_or_default();
    if bool::from(shown.ct_eq(token.as_bytes())) {
        return next.run(request).await;
    }
    let body = "the header `Authorization: Bearer ...` with the server's token is required\n";
    (
        StatusCode::UNAUTHORIZED,
        [(header::WWW_AUTHENTICATE, "Bearer")],
        body,
    )
        .into_response()
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .build();
        let mut info = ServerConfig::new(capabilities).with_instructions(
            "Tools that run code, commands and file operations in a Linux sandbox. The sandbox is made at the first call and keeps its \
             state between calls. Files below /home/user are resources.",
        );
        info.server_info = Implementation::new("soulbox", env!("CARGO_PKG_VERSION"));
        info
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = definitions().into_iter().map(|tool| {
            let schema = tool.parameters.as_object().cloned().unwrap_or_default();
            let annotations = ToolAnnotations::new()
                .read_only(tool.read_only)
                .open_world(false);
            Tool::new(tool.name, tool.description, Arc::new(schema)).with_annotations(annotations)
        });
        Ok(ListToolsResult::with_all_items(tools.collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if !definitions().iter().any(|tool| tool.name == request.name) {
            return Err(ErrorData::invalid_params(
                format!("there is no tool `{}`", request.name),
                None,
            ));
        }
        let failed =
            |text: String| Ok(CallToolResult::error(vec![ContentBlock::text(text)]).into());
        let (toolbox, new) = match self.toolbox().await {
            Ok(found) => found,
            Err(cause) => return failed(format!("error: no sandbox could be made: {cause}")),
        };
        let arguments = request.arguments.map_or(Value::Null, Value::Object);
        let called = tokio::select! {
            called = toolbox.call(&request.name, &arguments, |_| ()) => called,
            // Nobody reads the answer. Code is interrupted when its stream is dropped; a command goes on until its time is over.
            () = context.ct.cancelled() => {
                return Err(ErrorData::internal_error("the call was cancelled", None));
            }
        };
        let ran = match called {
            Ok(ran) => ran,
            Err(ToolError::Lost(cause)) => {
                self.forget(toolbox.sandbox().id()).await;
                return failed(format!(
                    "error: {}; the next call begins with a new sandbox, without what was in this one",
                    chain(&cause)
                ));
            }
        };
        let mut content = Vec::new();
        if new {
            content.push(ContentBlock::text(
                "[the sandbox before this one is gone, with its files and variables; this is a new one]",
            ));
        }
        content.push(ContentBlock::text(ran.text));
        for picture in ran.pictures {
            content.push(match picture.format {
                // Clients show images of pixels only.
                "svg" => ContentBlock::text(picture.data),
                format => ContentBlock::image(picture.data, format!("image/{format}")),
            });
        }
        Ok(match ran.failed {
            true => CallToolResult::error(content),
            false => CallToolResult::success(content),
        }
        .into())
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let (toolbox, _) = self
            .toolbox()
            .await
            .map_err(|cause| ErrorData::internal_error(cause, None))?;
        let entries = toolbox.sandbox().list_files(HOME, DEPTH).await;
        let entries = entries.map_err(|error| ErrorData::internal_error(chain(&error), None))?;
        let shown = entries
            .iter()
            .filter(|entry| !entry.folder && !entry.path.contains("/."))
            .take(MOST_LISTED)
            .map(|entry| {
                Resource::new(format!("file://{}", entry.path), entry.name.clone())
                    .with_size(entry.size)
            });
        Ok(ListResourcesResult::with_all_items(shown.collect()))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let any = ResourceTemplate::new("file:///{+path}", "file")
            .with_description("Any file of the sandbox by its absolute path");
        Ok(ListResourceTemplatesResult::with_all_items(vec![any]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let uri = request.uri;
        let decoded = uri
            .strip_prefix("file://")
            .filter(|path| path.starts_with('/'))
            .map(|path| {
                percent_encoding::percent_decode_str(path)
                    .decode_utf8_lossy()
                    .into_owned()
            });
        let Some(path) = decoded else {
            return Err(ErrorData::invalid_params(
                format!("`{uri}` is no file of the sandbox, as in file:///home/user/a.txt"),
                None,
            ));
        };
        let (toolbox, _) = self
            .toolbox()
            .await
            .map_err(|cause| ErrorData::internal_error(cause, None))?;
        let bytes = match toolbox.sandbox().read_file(&path, LARGEST_RESOURCE).await {
            Ok(bytes) => bytes,
            Err(SandboxError::Refused { status, message }) if status == 404 => {
                return Err(ErrorData::resource_not_found(message, None));
            }
            Err(error) => return Err(ErrorData::internal_error(chain(&error), None)),
        };
        let contents = match String::from_utf8(bytes) {
            Ok(text) => ResourceContents::text(text, uri),
            Err(error) => {
                let data = base64::engine::general_purpose::STANDARD.encode(error.as_bytes());
                ResourceContents::blob(data, uri)
            }
        };
        Ok(ReadResourceResult::new(vec![contents]).into())
    }
}
