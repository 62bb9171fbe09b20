//! The loop: a model says something and calls tools, they are run, it hears what came of it, until it has nothing more to call.
//! The calls of one answer run at once.
//!
//! It ends in one of the ways of [`Ending`], never by an error that is thrown: what the model did wrong is told to the model, what a
//! provider or the sandbox did is an ending. Time and cancellation hold at every moment, also amid an answer or a call.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use genai::chat::{
    ChatMessage, ChatRequest, ChatStreamEvent, ContentPart, MessageContent, Tool, ToolCall,
    ToolResponse,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::provider::{Model, ModelError, Provider};
use crate::tools::{Picture, Ran, Said, ToolError, Toolbox, definitions};

/// An answer is asked for so often when the service is busy.
const MOST_TRIES: u32 = 5;
const FIRST_REST: Duration = Duration::from_millis(500);
/// A service that wants to be left alone for longer is not waited for.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// A model sees so many pictures of one call, none of them with more characters of base64: providers refuse larger ones.
const MOST_SEEN: usize = 4;
const LARGEST_SEEN: usize = 4_700_000;

/// What is to be done, and how the model is asked.
#[derive(Clone, Debug)]
pub struct Task {
    pub prompt: String,
    pub tools: Tools,
    pub charts: Charts,
    pub limits: Limits,
    pub prices: Option<Prices>,
}

/// How a model gets code into the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tools {
    Called,
    /// Fenced blocks of its text are run.
    Fenced,
}

/// What a model gets of the charts that its code draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charts {
    Seen,
    /// It only hears that there are some.
    Told,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Answers of the model.
    pub turns: u32,
    pub time: Duration,
    /// In the currency of the prices.
    pub cost: Option<f64>,
}

/// Per million tokens.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    pub input: f64,
    pub output: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// Why it is over.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The model had nothing more to do.
    Finished,
    /// It had not either, and the last call of a tool had failed.
    LastCallFailed,
    TurnLimit,
    TimeLimit,
    CostLimit,
    Cancelled,
    ProviderFailed(ModelError),
    SandboxLost(String),
}

impl Ending {
    /// The word for it, stable for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::LastCallFailed => "last_call_failed",
            Self::TurnLimit => "turn_limit",
            Self::TimeLimit => "time_limit",
            Self::CostLimit => "cost_limit",
            Self::Cancelled => "cancelled",
            Self::ProviderFailed(_) => "provider_failed",
            Self::SandboxLost(_) => "sandbox_lost",
        }
    }

    /// A line for people; none where all went well.
    #[must_use]
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Finished => None,
            Self::LastCallFailed => Some("the last call of a tool failed".to_owned()),
            Self::TurnLimit => Some("the limit of turns is reached".to_owned()),
            Self::TimeLimit => Some("the limit of time is reached".to_owned()),
            Self::CostLimit => Some("the limit of cost is reached".to_owned()),
            Self::Cancelled => Some("it was cancelled".to_owned()),
            Self::ProviderFailed(error) => Some(error.to_string()),
            Self::SandboxLost(cause) => Some(cause.clone()),
        }
    }
}

/// Everything about a conversation that is over.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub ending: Ending,
    /// What the model said last.
    pub text: String,
    pub turns: u32,
    pub calls: u32,
    pub usage: Usage,
    /// None where there are no prices.
    pub cost: Option<f64>,
}

/// What happens on the way.
#[derive(Clone, Debug)]
pub enum Event {
    /// A piece of the model's text as it comes.
    Text(String),
    /// The first call of a conversation is number 1.
    CallStarted {
        call: u32,
        name: String,
        arguments: Value,
    },
    /// Output of a call; several may speak in turn.
    Said {
        call: u32,
        said: Said,
    },
    CallFinished {
        call: u32,
        name: String,
        failed: bool,
    },
    /// Nobody allowed it, or somebody forbade it.
    CallRefused {
        name: String,
        why: String,
    },
    Retrying {
        cause: String,
        rest: Duration,
    },
}

/// Whether a call may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Approval {
    Yes,
    /// Told to the model.
    No(String),
}

/// Asked before each call.
pub trait Approve {
    fn approve(&mut self, name: &str, arguments: &Value) -> impl Future<Output = Approval>;
}

/// What is known when the time is over amid something.
struct Progress {
    text: String,
    turns: u32,
    calls: u32,
    usage: Usage,
    last_failed: bool,
}

/// One answer of a model.
struct Answer {
    content: MessageContent,
    text: String,
    calls: Vec<ToolCall>,
}

/// Lets the model work on the task until it is over. The sandbox is left as it is.
pub async fn converse(
    model: &Model,
    toolbox: &Toolbox,
    task: &Task,
    approve: &mut impl Approve,
    cancelled: &CancellationToken,
    mut tell: impl FnMut(Event),
) -> Outcome {
    let mut progress = Progress {
        text: String::new(),
        turns: 0,
        calls: 0,
        usage: Usage::default(),
        last_failed: false,
    };
    let deadline = Instant::now() + task.limits.time;
    let ending = tokio::select! {
        biased;
        () = cancelled.cancelled() => Ending::Cancelled,
        () = tokio::time::sleep_until(deadline) => Ending::TimeLimit,
        ending = work(model, toolbox, task, approve, &mut tell, &mut progress) => ending,
    };
    Outcome {
        ending,
        cost: cost(task, progress.usage),
        text: progress.text,
        turns: progress.turns,
        calls: progress.calls,
        usage: progress.usage,
    }
}

fn cost(task: &Task, usage: Usage) -> Option<f64> {
    let prices = task.prices?;
    // Counts of tokens are far below where this loses anything.
    #[allow(clippy::cast_precision_loss)]
    let of = |tokens: u64, price: f64| tokens as f64 * price / 1e6;
    Some(of(usage.input_tokens, prices.input) + of(usage.output_tokens, prices.output))
}

async fn work(
    model: &Model,
    toolbox: &Toolbox,
    task: &Task,
    approve: &mut impl Approve,
    tell: &mut impl FnMut(Event),
    progress: &mut Progress,
) -> Ending {
    let mut request = ChatRequest::from_user(&task.prompt).with_system(system(task.tools));
    if task.tools == Tools::Called {
        request = request.with_tools(definitions().into_iter().map(|tool| {
            Tool::new(tool.name)
                .with_description(tool.description)
                .with_schema(tool.parameters)
        }));
    }
    loop {
        if progress.turns == task.limits.turns {
            return Ending::TurnLimit;
        }
        let spent = cost(task, progress.usage);
        if spent
            .zip(task.limits.cost)
            .is_some_and(|(spent, most)| spent >= most)
        {
            return Ending::CostLimit;
        }
        progress.turns += 1;
        progress.text.clear();
        let answer = match ask(model, &request, tell, progress).await {
            Ok(answer) => answer,
            Err(error) => return Ending::ProviderFailed(error),
        };
        request = request.append_message(said(&answer));
        let told = match task.tools {
            Tools::Called => call_all(toolbox, &answer.calls, approve, tell, progress)
                .await
                .map(|ran| results(model.provider(), task.charts, &answer.calls, ran)),
            Tools::Fenced => run_fenced(toolbox, &answer.text, approve, tell, progress)
                .await
                .map(|ran| outcomes(task.charts, ran)),
        };
        match told {
            Ok(told) if told.is_empty() && progress.last_failed => return Ending::LastCallFailed,
            Ok(told) if told.is_empty() => return Ending::Finished,
            Ok(told) => request = request.append_messages(told),
            Err(ToolError::Lost(cause)) => return Ending::SandboxLost(cause.to_string()),
        }
    }
}

fn system(tools: Tools) -> String {
    let how = match tools {
        Tools::Called => "Use the tools; they run in a Linux sandbox that is yours for this task.",
        Tools::Fenced => {
            "Write code in one fenced block (```python, ```javascript or ```bash); it is run in a Linux sandbox that is yours \
             for this task, and you are told what came of it. Without a fenced block your answer counts as the last one."
        }
    };
    format!(
        "You are a programmer who solves the user's task by running code. {how} Files that the user gave you are in /home/user; \
         leave files that the user should get there as well. Charts that your code shows reach the user. When you are done, \
         answer in a few words."
    )
}

/// The answer as it goes back to the provider. What is no object cannot go back as arguments: some services refuse it.
fn said(answer: &Answer) -> ChatMessage {
    let mut content = answer.content.clone();
    let mut parts = Vec::new();
    for part in content.iter_mut() {
        if let genai::chat::ContentPart::ToolCall(call) = part
            && !call.fn_arguments.is_object()
        {
            call.fn_arguments = json!({});
        }
        parts.push(part.clone());
    }
    ChatMessage::assistant(MessageContent::from_parts(parts))
}

/// Asks until there is an answer, or an error that will not pass.
async fn ask(
    model: &Model,
    request: &ChatRequest,
    tell: &mut impl FnMut(Event),
    progress: &mut Progress,
) -> Result<Answer, ModelError> {
    let mut tries = 1;
    loop {
        let error = match ask_once(model, request, tell, progress).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let asked = match &error {
            ModelError::Refused { rest, .. } => *rest,
            _ => None,
        };
        let rest = asked.unwrap_or_else(|| backoff(tries));
        // What was passed on already cannot be taken back.
        if !error.passes()
            || tries == MOST_TRIES
            || rest > LONGEST_REST
            || !progress.text.is_empty()
        {
            return Err(error);
        }
        tell(Event::Retrying {
            cause: error.to_string(),
            rest,
        });
        sleep(rest).await;
        tries += 1;
    }
}

/// Twice as long each time, and a part of it by chance, so that clients do not come back all at once.
fn backoff(tries: u32) -> Duration {
    let whole = FIRST_REST * 2u32.pow(tries - 1);
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    whole / 2 + whole.mul_f64(f64::from(nanoseconds % 1000) / 2000.0)
}

async fn ask_once(
    model: &Model,
    request: &ChatRequest,
    tell: &mut impl FnMut(Event),
    progress: &mut Progress,
) -> Result<Answer, ModelError> {
    let failed = |error: &genai::Error| model.failed(error);
    let target = model.target().await?;
    let options = model.options();
    if model.answers_whole() {
        let answer = model
            .client()
            .exec_chat(target, request.clone(), Some(&options))
            .await
            .map_err(|error| failed(&error))?;
        add(progress, Some(&answer.usage));
        let text = answer.texts().concat();
        let calls = answer
            .tool_calls()
            .into_iter()
            .cloned()
            .map(read_arguments)
            .collect();
        if !text.is_empty() {
            progress.text.push_str(&text);
            tell(Event::Text(text.clone()));
        }
        return Ok(Answer {
            content: answer.content,
            text,
            calls,
        });
    }
    let started = model
        .client()
        .exec_chat_stream(target, request.clone(), Some(&options))
        .await
        .map_err(|error| failed(&error))?;
    let mut stream = started.stream;
    while let Some(event) = stream.next().await {
        match event.map_err(|error| failed(&error))? {
            ChatStreamEvent::Chunk(piece) => {
                progress.text.push_str(&piece.content);
                tell(Event::Text(piece.content));
            }
            ChatStreamEvent::End(end) => {
                add(progress, end.captured_usage.as_ref());
                let content = end.captured_content.unwrap_or_default();
                let text = content.texts().concat();
                let calls = content
                    .tool_calls()
                    .into_iter()
                    .cloned()
                    .map(read_arguments)
                    .collect();
                return Ok(Answer {
                    content,
                    text,
                    calls,
                });
            }
            _ => {}
        }
    }
    Err(ModelError::BrokeOff {
        provider: model.provider().name(),
        cause: "the stream ended before its end".to_owned(),
    })
}

/// Arguments that came as a text are what that text says; where it says nothing, they stay a text, which tools refuse.
fn read_arguments(mut call: ToolCall) -> ToolCall {
    if let Value::String(text) = &call.fn_arguments {
        if text.trim().is_empty() {
            call.fn_arguments = json!({});
        } else if let Ok(value) = serde_json::from_str(text) {
            call.fn_arguments = value;
        }
    }
    call
}

fn add(progress: &mut Progress, usage: Option<&genai::chat::Usage>) {
    let count = |tokens: Option<i32>| {
        tokens
            .and_then(|tokens| u64::try_from(tokens).ok())
            .unwrap_or(0)
    };
    if let Some(usage) = usage {
        progress.usage.input_tokens += count(usage.prompt_tokens);
        progress.usage.output_tokens += count(usage.completion_tokens);
    }
}

/// What is done about one call.
enum Granted {
    /// Its number.
    Yes(u32),
    /// What the model hears instead.
    No(Ran),
}

async fn grant(
    (name, arguments): (&str, &Value),
    approve: &mut impl Approve,
    tell: &mut impl FnMut(Event),
    progress: &mut Progress,
) -> Granted {
    match approve.approve(name, arguments).await {
        Approval::Yes => {
            progress.calls += 1;
            Granted::Yes(progress.calls)
        }
        Approval::No(why) => {
            let text = format!("error: the user did not allow this call: {why}");
            tell(Event::CallRefused {
                name: name.to_owned(),
                why,
            });
            Granted::No(Ran::failed(text))
        }
    }
}

/// One call from its start to its end.
async fn perform(
    toolbox: &Toolbox,
    granted: Granted,
    (name, arguments): (&str, &Value),
    tell: &RefCell<&mut impl FnMut(Event)>,
) -> Result<Ran, ToolError> {
    let call = match granted {
        Granted::Yes(call) => call,
        Granted::No(ran) => return Ok(ran),
    };
    let tell = |event| (tell.borrow_mut())(event);
    tell(Event::CallStarted {
        call,
        name: name.to_owned(),
        arguments: arguments.clone(),
    });
    let ran = toolbox
        .call(name, arguments, |said| tell(Event::Said { call, said }))
        .await?;
    tell(Event::CallFinished {
        call,
        name: name.to_owned(),
        failed: ran.failed,
    });
    Ok(ran)
}

/// The calls of an answer, all at once, after each was asked about. What they came to is in the order of the calls.
async fn call_all(
    toolbox: &Toolbox,
    calls: &[ToolCall],
    approve: &mut impl Approve,
    tell: &mut impl FnMut(Event),
    progress: &mut Progress,
) -> Result<Vec<Ran>, ToolError> {
    let mut granted = Vec::new();
    for one in calls {
        let one = (one.fn_name.as_str(), &one.fn_arguments);
        granted.push(grant(one, approve, tell, progress).await);
    }
    let tell = RefCell::new(tell);
    let running = calls.iter().zip(granted).map(|(one, granted)| {
        let one = (one.fn_name.as_str(), &one.fn_arguments);
        perform(toolbox, granted, one, &tell)
    });
    let ran = try_join_all(running).await?;
    if let Some(last) = ran.last() {
        progress.last_failed = last.failed;
    }
    Ok(ran)
}

/// The fenced blocks of a text in their order, up to one that fails; each with its language.
async fn run_fenced(
    toolbox: &Toolbox,
    text: &str,
    approve: &mut impl Approve,
    tell: &mut impl FnMut(Event),
    progress: &mut Progress,
) -> Result<Vec<(&'static str, Ran)>, ToolError> {
    let mut done = Vec::new();
    for (language, code) in fenced(text) {
        let arguments = json!({"code": code, "language": language});
        let one = ("run_code", &arguments);
        let granted = grant(one, approve, tell, progress).await;
        let ran = perform(toolbox, granted, one, &RefCell::new(&mut *tell)).await?;
        progress.last_failed = ran.failed;
        done.push((language, ran));
        if progress.last_failed {
            break;
        }
    }
    Ok(done)
}

/// Results of calls as messages; none for none.
fn results(
    provider: Provider,
    charts: Charts,
    calls: &[ToolCall],
    ran: Vec<Ran>,
) -> Vec<ChatMessage> {
    let done = calls
        .iter()
        .zip(ran.into_iter().map(|ran| seen(charts, ran)));
    if provider == Provider::Anthropic {
        // The crate's results have neither pictures nor a mark of failure, this service's have both.
        let blocks: Vec<_> = done
            .map(|(call, (ran, pictures))| {
                let mut content = Vec::new();
                // A block without text is refused.
                if !ran.text.is_empty() {
                    content.push(json!({"type": "text", "text": ran.text}));
                }
                content.extend(pictures.iter().map(|picture| {
                    let source = json!({"type": "base64", "media_type": media_type(picture), "data": picture.data});
                    json!({"type": "image", "source": source})
                }));
                let block = json!({"type": "tool_result", "tool_use_id": call.call_id, "content": content, "is_error": ran.failed});
                ContentPart::from_custom(block, None)
            })
            .collect();
        return match blocks.is_empty() {
            true => Vec::new(),
            false => vec![ChatMessage::tool(MessageContent::from_parts(blocks))],
        };
    }
    // On the other wires a result is text, so pictures follow as if the user had sent them.
    let (mut responses, mut shown) = (Vec::new(), Vec::new());
    for (call, (ran, pictures)) in done {
        responses.push(ToolResponse::from_tool_call(call, ran.text));
        shown.extend(pictures);
    }
    let mut messages = Vec::new();
    if !responses.is_empty() {
        messages.push(ChatMessage::from(responses));
    }
    if !shown.is_empty() {
        let text = "The pictures that the code has shown:".to_owned();
        messages.push(with_pictures(text, shown));
    }
    messages
}

/// What came of fenced code, as the user would tell it; nothing where there was none.
fn outcomes(charts: Charts, ran: Vec<(&'static str, Ran)>) -> Vec<ChatMessage> {
    let (mut text, mut shown) = (String::new(), Vec::new());
    for (language, ran) in ran {
        let (ran, pictures) = seen(charts, ran);
        text += &format!("What came of the {language} code:\n{}\n", ran.text);
        shown.extend(pictures);
    }
    match text.is_empty() {
        true => Vec::new(),
        false => vec![with_pictures(text, shown)],
    }
}

/// A result and those of its pictures that the model sees.
fn seen(charts: Charts, mut ran: Ran) -> (Ran, Vec<Picture>) {
    let mut pictures = std::mem::take(&mut ran.pictures);
    pictures.retain(|picture| picture.format != "svg" && picture.data.len() <= LARGEST_SEEN);
    match charts {
        Charts::Seen => pictures.truncate(MOST_SEEN),
        Charts::Told => pictures.clear(),
    }
    if !pictures.is_empty() {
        ran.text += &format!("\n[you see {} of them as well]", pictures.len());
    }
    (ran, pictures)
}

fn with_pictures(text: String, pictures: Vec<Picture>) -> ChatMessage {
    let images = pictures
        .into_iter()
        .map(|picture| ContentPart::from_binary_base64(media_type(&picture), picture.data, None));
    let parts: Vec<_> = std::iter::once(ContentPart::from_text(text))
        .chain(images)
        .collect();
    ChatMessage::user(MessageContent::from_parts(parts))
}

fn media_type(picture: &Picture) -> String {
    format!("image/{}", picture.format)
}

/// Closed blocks of code in a text, with the language that the interpreter knows. Others, output for example, are no code.
fn fenced(text: &str) -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some((fence, word)) = opening(line) else {
            continue;
        };
        let mut code = String::new();
        let closed = lines.by_ref().any(|line| {
            let end = line.trim();
            // A fence may be longer than three marks, and only one at least as long ends it.
            let closes = end.starts_with(fence) && end.trim_start_matches(&fence[..1]).is_empty();
            if !closes {
                code.push_str(line);
                code.push('\n');
            }
            closes
        });
        let language = match word.to_lowercase().as_str() {
            "python" | "py" | "python3" => "python",
            "javascript" | "js" => "javascript",
            "typescript" | "ts" => "typescript",
            "bash" | "sh" | "shell" => "bash",
            _ => continue,
        };
        if closed {
            blocks.push((language, code));
        }
    }
    blocks
}

/// The marks of a line that begins a block, and the word behind them.
fn opening(line: &str) -> Option<(&str, &str)> {
    let marks = line.trim_start();
    let mark = marks.chars().next().filter(|mark| "`~".contains(*mark))?;
    let word = marks.trim_start_matches(mark);
    let fence = &marks[..marks.len() - word.len()];
    // Marks within a line are no block.
    let begins = fence.len() >= 3 && !(mark == '`' && word.contains('`'));
    begins.then(|| (fence, word.split_whitespace().next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_and_output_is_not() {
        let text = "First\n```python\nprint(1)\n```\nthen\n```\n1\n```\n~~~~JS title=a.js\n~~~\nx\n~~~~\n```json\n{}\n```\n```x```\n```bash\nunfinished";
        assert_eq!(
            fenced(text),
            [
                ("python", "print(1)\n".to_owned()),
                ("javascript", "~~~\nx\n".to_owned())
            ]
        );
    }

    #[test]
    fn backoff_grows_and_stays_in_its_bounds() {
        for tries in 1..MOST_TRIES {
            let whole = FIRST_REST * 2u32.pow(tries - 1);
            let rest = backoff(tries);
            assert!(rest >= whole / 2 && rest <= whole, "{tries}: {rest:?}");
        }
    }

    #[test]
    fn arguments_that_are_text_are_read() {
        let call = |text: &str| {
            read_arguments(ToolCall {
                call_id: "1".to_owned(),
                fn_name: "run_code".to_owned(),
                fn_arguments: json!(text),
                thought_signatures: None,
            })
            .fn_arguments
        };
        assert_eq!(call("{\"code\": 1}"), json!({"code": 1}));
        assert_eq!(call(""), json!({}));
        assert_eq!(call("{\"code"), json!("{\"code"));
    }
}
