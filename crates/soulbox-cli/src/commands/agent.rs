//! `soulbox agent`: a model writes code, a sandbox of its own runs it, and what comes of it is saved here.
//!
//! What the model says goes to stdout, everything else to stderr. The sandbox is ended whatever happens; its deadline ends it where
//! this process cannot.

mod keys;
mod output;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use soulbox_agent::{
    Access, Approval, Approve, Charts, Ending, Event, Limits, Model, Outcome, Prices, Provider,
    Said, Task, Toolbox, Tools, converse,
};
use soulbox_client::{Client, Place, Sandbox, SandboxOptions};
use tokio_util::sync::CancellationToken;

use super::{block_on, sandbox};
use crate::failure::{Failure, INTERRUPTED, chain, plain};
use output::Output;

const HOME: &str = "/home/user";
/// For what comes before and after the conversation; the sandbox is ended then at the latest.
const GRACE: Duration = Duration::from_secs(120);

/// Let a model solve a task by running code in a sandbox
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What is to be done
    task: String,
    /// anthropic, mistral, groq, together, fireworks, watsonx, compatible, or demo, which needs no key
    #[arg(long, value_name = "NAME", default_value = "anthropic")]
    provider: String,
    /// Model [default: one of the provider's that writes code]
    #[arg(long)]
    model: Option<String>,
    /// Root of the provider's service, where it is not the public one
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// File with keys, for its owner only [default: ~/.config/soulbox/agent.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Files that the model gets, in /home/user
    #[arg(long, value_name = "FILE", num_args = 1..)]
    files: Vec<PathBuf>,
    /// Folder for charts and files that the model leaves
    #[arg(long, value_name = "DIR", default_value = "soulbox-output")]
    output: PathBuf,
    /// Template of the sandbox [default: SOULBOX_TEMPLATE, else code-interpreter-v1]
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Answers of the model
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    max_turns: u32,
    /// Seconds that it may take
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    max_seconds: u64,
    /// Most that it may cost, in the currency of the prices
    #[arg(
        long,
        value_name = "AMOUNT",
        requires = "price_input",
        requires = "price_output"
    )]
    max_cost: Option<f64>,
    /// Price of a million tokens that the model reads
    #[arg(long, value_name = "AMOUNT", requires = "price_output")]
    price_input: Option<f64>,
    /// Price of a million tokens that the model writes
    #[arg(long, value_name = "AMOUNT", requires = "price_input")]
    price_output: Option<f64>,
    /// Seconds that one piece of code or command may take
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    call_seconds: u64,
    /// Whether calls of tools are asked about first: ask, never (none is made), always (all are)
    #[arg(long, value_enum, default_value_t = When::Always)]
    approve: When,
    /// How the model gets code to run: by calls of tools, or fenced in its text [default: as the model can]
    #[arg(long, value_enum)]
    tools: Option<How>,
    /// What the model gets of charts: the pictures, or that there are some [default: as the model can]
    #[arg(long, value_enum)]
    charts: Option<See>,
    /// Print the outcome as JSON; the model's text goes to stderr then
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: sandbox::Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum When {
    Ask,
    Never,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum How {
    Called,
    Fenced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum See {
    Seen,
    Told,
}

pub fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let provider = Provider::of_name(&arguments.provider).ok_or_else(|| {
        let all: Vec<_> = Provider::ALL
            .iter()
            .map(|provider| provider.name())
            .collect();
        Failure::usage(anyhow!("there is no provider `{}`", arguments.provider))
            .hint(format!("one of {}", all.join(", ")))
    })?;
    if arguments.approve == When::Ask && !std::io::stdin().is_terminal() {
        return Err(
            Failure::usage(anyhow!("--approve ask needs a terminal to ask on"))
                .hint("use --approve always, or never to see what it would run"),
        );
    }
    for file in &arguments.files {
        if !file.is_file() {
            return Err(Failure::usage(anyhow!("`{}` is no file", file.display()))
                .hint("--files takes paths of files"));
        }
    }
    block_on(async move {
        let access = access(provider, &arguments).await?;
        let model = Model::new(provider, arguments.model.clone(), access)
            .map_err(|error| Failure::usage(error).hint(keys::hint(provider)))?;
        let (tools, charts) = abilities(&arguments, &model)?;
        let (client, place) = arguments.server.sandboxes()?;
        let cancelled = until_signalled()?;
        let mut output = Output::new(arguments.output.clone());
        let task = Task {
            prompt: arguments.task.clone(),
            tools,
            charts,
            limits: Limits {
                turns: arguments.max_turns,
                time: Duration::from_secs(arguments.max_seconds),
                cost: arguments.max_cost,
            },
            prices: arguments
                .price_input
                .zip(arguments.price_output)
                .map(|(input, output)| Prices { input, output }),
        };
        let server = (&client, &place);
        let outcome = in_sandbox(&arguments, &model, task, server, &cancelled, &mut output).await?;
        report(&arguments, &outcome, &output)
    })
}

/// As it was asked for, else as the model can.
fn abilities(arguments: &Arguments, model: &Model) -> Result<(Tools, Charts), Failure> {
    let tools = match arguments.tools {
        Some(How::Called) => Tools::Called,
        Some(How::Fenced) => Tools::Fenced,
        None if model.writes_fenced_code() => Tools::Fenced,
        None => Tools::Called,
    };
    let charts = match arguments.charts {
        Some(See::Seen) if !model.takes_charts(tools) => {
            let provider = model.provider().name();
            return Err(Failure::usage(anyhow!(
                "{provider} takes no pictures beside the results of tools"
            ))
            .hint("with --tools fenced it does"));
        }
        Some(See::Seen) => Charts::Seen,
        Some(See::Told) => Charts::Told,
        None if model.sees_charts(tools) => Charts::Seen,
        None => Charts::Told,
    };
    Ok((tools, charts))
}

/// The key and where it is sent; the demo is started here.
async fn access(provider: Provider, arguments: &Arguments) -> Result<Access, Failure> {
    if provider != Provider::Demo {
        let mut access = keys::access(provider, arguments.keys.as_deref())?;
        if arguments.base_url.is_some() {
            access.base_url.clone_from(&arguments.base_url);
        }
        return Ok(access);
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .context("failed to listen for the demo")?;
    let address = listener
        .local_addr()
        .context("failed to listen for the demo")?;
    let service = soulbox_agent::demo::router(soulbox_agent::demo::Options::default());
    tokio::spawn(async move { axum::serve(listener, service).await });
    Ok(Access {
        key: "demo".to_owned(),
        base_url: Some(format!("http://{address}/compatible")),
        ..Access::default()
    })
}

/// Cancelled by the first SIGINT or SIGTERM.
pub(super) fn until_signalled() -> Result<CancellationToken, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let cancelled = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for signals")?;
    let token = cancelled.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    });
    Ok(cancelled)
}

/// Makes the sandbox, lets the model work in it, and ends it, in any case.
async fn in_sandbox(
    arguments: &Arguments,
    model: &Model,
    task: Task,
    (client, place): (&Client, &Place),
    cancelled: &CancellationToken,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let template = sandbox::interpreter_template(arguments.template.clone());
    let options = SandboxOptions {
        template: Some(template.clone()),
        timeout: Duration::from_secs(arguments.max_seconds) + GRACE,
        metadata: [(
            "soulboxAgent".to_owned(),
            model.provider().name().to_owned(),
        )]
        .into(),
        allow_internet: None,
    };
    // Not broken off by a signal: a sandbox that is made after all would be nobody's.
    let sandbox = client
        .create_sandbox(&options, place)
        .await
        .map_err(|error| {
            let missing = error.status().is_some_and(|status| status == 404);
            let failure = sandbox::refused(error);
            match missing {
                true => failure.hint(format!(
                    "soulbox template build templates/{template} makes it, or name another with --template"
                )),
                false => failure,
            }
        })?;
    let done = work(arguments, model, task, &sandbox, cancelled, output).await;
    let killed = client.kill_sandbox(sandbox.id()).await;
    let outcome = done?;
    killed.map_err(|error| {
        let cause = anyhow!(error).context(format!("failed to end sandbox {}", sandbox.id()));
        Failure::new(cause).hint("its own deadline ends it")
    })?;
    Ok(outcome)
}

async fn work(
    arguments: &Arguments,
    model: &Model,
    mut task: Task,
    sandbox: &Sandbox,
    cancelled: &CancellationToken,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let given = tokio::select! {
        given = give(sandbox, &arguments.files) => given?,
        () = cancelled.cancelled() => Vec::new(),
    };
    if !given.is_empty() {
        task.prompt += &format!("\n\nFiles: {}", given.join(", "));
    }
    let toolbox = Toolbox::new(sandbox.clone(), Duration::from_secs(arguments.call_seconds));
    let mut asker = Asker(arguments.approve);
    let mut failed = None;
    let mut screen = Screen {
        json: arguments.json,
        output: &mut *output,
        speaking: None,
    };
    let mut outcome = converse(model, &toolbox, &task, &mut asker, cancelled, |event| {
        if let Err(error) = screen.show(event) {
            failed.get_or_insert(error);
        }
    })
    .await;
    // The last line of the model may lack its end.
    if !outcome.text.is_empty() && !outcome.text.ends_with('\n') {
        say(arguments.json, "\n");
    }
    if let Some(error) = failed {
        return Err(Failure::new(error).hint("charts are saved into the folder of --output"));
    }
    if !matches!(outcome.ending, Ending::Cancelled | Ending::SandboxLost(_)) {
        let collected = tokio::select! {
            collected = output.collect(sandbox, HOME, &given) => collected,
            () = cancelled.cancelled() => {
                outcome.ending = Ending::Cancelled;
                Ok(())
            }
        };
        collected?;
    }
    Ok(outcome)
}

/// Puts files into the home directory; their paths there.
async fn give(sandbox: &Sandbox, files: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let mut given = Vec::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let contents = tokio::fs::read(file)
            .await
            .with_context(|| format!("failed to read `{}`", file.display()))?;
        let path = format!("{HOME}/{name}");
        sandbox
            .write_file(&path, contents)
            .await
            .with_context(|| format!("failed to send `{}`", file.display()))?;
        given.push(path);
    }
    Ok(given)
}

struct Asker(When);

impl Approve for Asker {
    async fn approve(&mut self, name: &str, arguments: &Value) -> Approval {
        match self.0 {
            When::Always => Approval::Yes,
            When::Never => Approval::No("nothing is run in this session".to_owned()),
            When::Ask => ask(name, arguments).await,
        }
    }
}

async fn ask(name: &str, arguments: &Value) -> Approval {
    eprint!(
        "{}\nrun it? [y/N, or a reason why not] ",
        plain(&described(name, arguments))
    );
    let (sender, answered) = tokio::sync::oneshot::channel();
    // A thread of its own: the runtime would wait for a blocking task of its, and a person may not answer any more.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    let line = match answered.await {
        Ok(Ok(line)) => line.trim().to_owned(),
        _ => String::new(),
    };
    match line.to_lowercase().as_str() {
        "y" | "yes" => Approval::Yes,
        "" | "n" | "no" => Approval::No("no reason was given".to_owned()),
        _ => Approval::No(line),
    }
}

/// A call as a person reads it.
fn described(name: &str, arguments: &Value) -> String {
    let text = |key: &str| arguments[key].as_str();
    match text("code").or(text("command")).or(text("path")) {
        Some(text) => format!("[{name}]\n{}", text.trim_end()),
        None => format!("[{name}] {arguments}"),
    }
}

fn say(json: bool, text: &str) {
    let text = plain(text);
    // A reader that went away has no use for more; the work goes on for what it leaves.
    let _ = if json {
        write!(std::io::stderr(), "{text}").and_then(|()| std::io::stderr().flush())
    } else {
        write!(std::io::stdout(), "{text}").and_then(|()| std::io::stdout().flush())
    };
}

/// What people see of a conversation.
struct Screen<'a> {
    json: bool,
    output: &'a mut Output,
    /// Whose output stands last: that of calls at once is told apart by a line before it.
    speaking: Option<u32>,
}

impl Screen<'_> {
    fn show(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Text(text) => say(self.json, &text),
            Event::CallStarted {
                call,
                name,
                arguments,
            } => {
                eprintln!("\n[call {call}] {}", plain(&described(&name, &arguments)));
                self.speaking = Some(call);
            }
            Event::Said { call, said } => {
                if self.speaking.replace(call) != Some(call) {
                    eprintln!("\n[call {call}]");
                }
                match said {
                    Said::Stdout(text) | Said::Stderr(text) => eprint!("{}", plain(&text)),
                    Said::Picture(picture) => {
                        let path = self.output.picture(&picture)?;
                        eprintln!("[saved {}]", path.display());
                    }
                }
            }
            Event::CallFinished { call, name, failed } => {
                if failed {
                    eprintln!("[call {call}, {}, failed]", plain(&name));
                }
            }
            Event::CallRefused { name, why } => {
                eprintln!("[{} was not run: {}]", plain(&name), plain(&why));
            }
            Event::Retrying { cause, rest } => {
                let rest = rest.as_secs_f64();
                eprintln!("[{}; asking again in {rest:.1} s]", plain(&cause));
            }
        }
        Ok(())
    }
}

fn report(arguments: &Arguments, outcome: &Outcome, output: &Output) -> Result<ExitCode, Failure> {
    let cause = outcome.ending.cause();
    if arguments.json {
        let saved: Vec<_> = output
            .saved()
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let line = json!({
            "ending": outcome.ending.word(),
            "cause": cause,
            "text": outcome.text,
            "turns": outcome.turns,
            "calls": outcome.calls,
            "usage": {"input_tokens": outcome.usage.input_tokens, "output_tokens": outcome.usage.output_tokens},
            "cost": outcome.cost,
            "saved": saved,
        });
        writeln!(std::io::stdout(), "{line}").context("failed to print the outcome")?;
    }
    match (&outcome.ending, cause) {
        (_, None) => Ok(ExitCode::SUCCESS),
        (Ending::Cancelled, Some(cause)) => {
            eprintln!("error: {cause}");
            Ok(ExitCode::from(INTERRUPTED))
        }
        (ending, Some(cause)) => Err(Failure::new(anyhow!(plain(&cause))).hint_if(match ending {
            Ending::TurnLimit => Some("more are allowed with --max-turns"),
            Ending::TimeLimit => Some("more is allowed with --max-seconds"),
            Ending::CostLimit => Some("more is allowed with --max-cost"),
            _ => None,
        })),
    }
}

/// A chain of causes in one line.
pub(super) fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error)
}
