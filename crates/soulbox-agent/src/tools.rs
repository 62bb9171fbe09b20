//! The five tools of a sandbox, for models and for MCP clients alike.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use soulbox_client::{CodeEvent, CommandEvent, Sandbox, SandboxError};
use tokio::sync::Mutex;

use crate::budget::Budget;

/// What a model gets of one call, in characters: about 5,000 tokens.
const TEXT: usize = 20_000;
/// Further pictures of one call are counted and not kept.
const MOST_PICTURES: usize = 20;
/// A larger file is read in parts, by code.
const LARGEST_FILE: usize = 10 << 20;
const MOST_ENTRIES: usize = 1000;

/// A tool as providers and clients are told of it.
#[derive(Clone, Debug)]
pub struct Definition {
    pub name: &'static str,
    pub description: &'static str,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// It changes nothing.
    pub read_only: bool,
}

/// All tools, in the order in which they are offered.
#[must_use]
pub fn definitions() -> Vec<Definition> {
    let text = |description: &str| json!({"type": "string", "description": description});
    let schema = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required});
    let one = |name, description, parameters, read_only| Definition {
        name,
        description,
        parameters,
        read_only,
    };
    vec![
        one(
            "run_code",
            "Run code in a stateful interpreter (Jupyter-like) inside the sandbox. Variables persist between calls. The value of the last expression, printed output and charts are returned.",
            schema(
                json!({
                    "code": text("The code to run"),
                    "language": text("python (default), javascript, typescript or bash"),
                }),
                &["code"],
            ),
            false,
        ),
        one(
            "run_command",
            "Run a shell command in the sandbox and return its output and exit code.",
            schema(
                json!({"command": text("A command line for bash")}),
                &["command"],
            ),
            false,
        ),
        one(
            "read_file",
            "Read a text file of the sandbox.",
            schema(
                json!({"path": text("Absolute, or relative to the home directory")}),
                &["path"],
            ),
            true,
        ),
        one(
            "write_file",
            "Write a text file into the sandbox, with the directories that lead to it.",
            schema(
                json!({
                    "path": text("Absolute, or relative to the home directory"),
                    "content": text("The whole content of the file"),
                }),
                &["path", "content"],
            ),
            false,
        ),
        one(
            "list_files",
            "List the entries of a directory of the sandbox.",
            schema(
                json!({"path": text("Absolute, or relative to the home directory (default)")}),
                &[],
            ),
            true,
        ),
    ]
}

/// A chart or an image that code has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// `png`, `jpeg` or `svg`.
    pub format: &'static str,
    /// Base64; of `svg` the text itself.
    pub data: String,
}

/// Output while a tool runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Stdout(String),
    Stderr(String),
    Picture(Picture),
}

/// What a call came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// For the model, within a budget.
    pub text: String,
    /// The code raised, the command failed, the file is not there.
    pub failed: bool,
    pub pictures: Vec<Picture>,
}

impl Ran {
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            failed: true,
            pictures: Vec::new(),
        }
    }
}

/// Why nothing can be done in the sandbox any more. What a model did wrong is no such thing.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("the sandbox was lost")]
    Lost(#[source] SandboxError),
}

/// The tools of one sandbox. Calls may be made at once; those of the interpreter take turns in the order in which they came.
#[derive(Clone, Debug)]
pub struct Toolbox {
    sandbox: Sandbox,
    /// Of one call.
    within: Duration,
    /// Pieces of code share variables, so their order matters, and one that waited inside would use up its own time.
    interpreter: Arc<Mutex<()>>,
}

#[derive(Deserialize)]
struct RunCode {
    code: String,
    language: Option<String>,
}

#[derive(Deserialize)]
struct RunCommand {
    command: String,
}

#[derive(Deserialize)]
struct ReadFile {
    path: String,
}

#[derive(Deserialize)]
struct WriteFile {
    path: String,
    content: String,
}

#[derive(Deserialize)]
struct ListFiles {
    path: Option<String>,
}

impl Toolbox {
    /// Each call may take `within`; code and commands are ended then.
    #[must_use]
    pub fn new(sandbox: Sandbox, within: Duration) -> Self {
        Self {
            sandbox,
            within,
            interpreter: Arc::default(),
        }
    }

    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Calls a tool. Whatever the caller did wrong, a name that there is not or arguments that do not fit, is told in the result.
    ///
    /// # Errors
    /// [`ToolError::Lost`]: later calls will fail as well.
    pub async fn call(
        &self,
        name: &str,
        arguments: &Value,
        tell: impl FnMut(Said),
    ) -> Result<Ran, ToolError> {
        let done = match name {
            "run_code" => match parsed::<RunCode>(name, arguments) {
                Ok(arguments) => self.run_code(&arguments, tell).await,
                Err(refused) => return Ok(refused),
            },
            "run_command" => match parsed::<RunCommand>(name, arguments) {
                Ok(arguments) => self.run_command(&arguments, tell).await,
                Err(refused) => return Ok(refused),
            },
            "read_file" => match parsed::<ReadFile>(name, arguments) {
                Ok(arguments) => self.read_file(&arguments).await,
                Err(refused) => return Ok(refused),
            },
            "write_file" => match parsed::<WriteFile>(name, arguments) {
                Ok(arguments) => self.write_file(arguments).await,
                Err(refused) => return Ok(refused),
            },
            "list_files" => match parsed::<ListFiles>(name, arguments) {
                Ok(arguments) => self.list_files(&arguments).await,
                Err(refused) => return Ok(refused),
            },
            _ => {
                let all: Vec<_> = definitions().iter().map(|tool| tool.name).collect();
                return Ok(Ran::failed(format!(
                    "error: there is no tool `{name}`, only {}",
                    all.join(", ")
                )));
            }
        };
        match done {
            Ok(ran) => Ok(ran),
            Err(lost @ (SandboxError::Gone { .. } | SandboxError::Send(_))) => {
                Err(ToolError::Lost(lost))
            }
            Err(SandboxError::TookTooLong { within }) => Ok(Ran::failed(format!(
                "error: it was ended after {} s, the longest that a call may take",
                within.as_secs()
            ))),
            Err(error) => Ok(Ran::failed(format!("error: {error}"))),
        }
    }

    async fn run_code(
        &self,
        arguments: &RunCode,
        mut tell: impl FnMut(Said),
    ) -> Result<Ran, SandboxError> {
        let _turn = self.interpreter.lock().await;
        let mut out = Budget::new(TEXT);
        let mut ran = Ran::default();
        let mut left_out = 0;
        let done = self
            .sandbox
            .run_code(
                &arguments.code,
                arguments.language.as_deref(),
                self.within,
                |event| match event {
                    CodeEvent::Stdout(text) => {
                        out.push(&text);
                        tell(Said::Stdout(text));
                    }
                    CodeEvent::Stderr(text) => {
                        out.push(&text);
                        tell(Said::Stderr(text));
                    }
                    CodeEvent::Result(formats) => {
                        let picture = picture(&formats);
                        let main = formats.get("is_main_result") == Some(&Value::Bool(true));
                        // The text of a figure is its size; the value of an expression is worth having.
                        if (main || picture.is_none())
                            && let Some(text) = text_of(&formats)
                        {
                            let text = format!("{text}\n");
                            out.push(&text);
                            tell(Said::Stdout(text));
                        }
                        match picture {
                            Some(picture) if ran.pictures.len() < MOST_PICTURES => {
                                tell(Said::Picture(picture.clone()));
                                ran.pictures.push(picture);
                            }
                            Some(_) => left_out += 1,
                            None => {}
                        }
                    }
                    CodeEvent::Error {
                        name,
                        value,
                        traceback,
                    } => {
                        ran.failed = true;
                        out.push(&traceback);
                        let cause = format!("\nerror: {name}: {value}\n");
                        out.push(&cause);
                        tell(Said::Stderr(cause));
                    }
                },
            )
            .await;
        if let Err(SandboxError::TookTooLong { within }) = &done {
            ran.failed = true;
            out.push(&format!(
                "\nerror: it was interrupted after {} s\n",
                within.as_secs()
            ));
        } else {
            done?;
        }
        let shown = ran.pictures.len();
        if shown > 0 {
            out.push(&format!("[{shown} picture(s) were shown to the user]\n"));
        }
        if left_out > 0 {
            out.push(&format!("[{left_out} more pictures were left out]\n"));
        }
        if out.is_empty() {
            out.push("[no output]");
        }
        ran.text = out.finish();
        Ok(ran)
    }

    async fn run_command(
        &self,
        arguments: &RunCommand,
        mut tell: impl FnMut(Said),
    ) -> Result<Ran, SandboxError> {
        let mut out = Budget::new(TEXT);
        let end = self
            .sandbox
            .run_command(&arguments.command, self.within, |event| {
                let (bytes, stderr) = match event {
                    CommandEvent::Stdout(bytes) => (bytes, false),
                    CommandEvent::Stderr(bytes) => (bytes, true),
                };
                let text = String::from_utf8_lossy(&bytes).into_owned();
                out.push(&text);
                tell(if stderr {
                    Said::Stderr(text)
                } else {
                    Said::Stdout(text)
                });
            })
            .await?;
        if end.exit_code != 0 {
            let cause = end
                .cause
                .filter(|cause| *cause != end.status)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            out.push(&format!("\n[{}{cause}]", end.status));
        } else if out.is_empty() {
            out.push("[no output]");
        }
        Ok(Ran {
            text: out.finish(),
            failed: end.exit_code != 0,
            pictures: Vec::new(),
        })
    }

    async fn read_file(&self, arguments: &ReadFile) -> Result<Ran, SandboxError> {
        let bytes = self
            .sandbox
            .read_file(&arguments.path, LARGEST_FILE)
            .await?;
        let Ok(text) = String::from_utf8(bytes) else {
            return Ok(Ran::failed(format!(
                "error: `{}` is no text",
                arguments.path
            )));
        };
        let mut out = Budget::new(TEXT);
        out.push(&text);
        Ok(Ran {
            text: out.finish(),
            ..Ran::default()
        })
    }

    async fn write_file(&self, arguments: WriteFile) -> Result<Ran, SandboxError> {
        let length = arguments.content.len();
        self.sandbox
            .write_file(&arguments.path, arguments.content.into_bytes())
            .await?;
        Ok(Ran {
            text: format!("{length} bytes written to {}", arguments.path),
            ..Ran::default()
        })
    }

    async fn list_files(&self, arguments: &ListFiles) -> Result<Ran, SandboxError> {
        let path = arguments.path.as_deref().unwrap_or(".");
        let entries = self.sandbox.list_files(path, 1).await?;
        let mut lines: Vec<_> = entries
            .iter()
            .take(MOST_ENTRIES)
            .map(|entry| match entry.folder {
                true => format!("{}/", entry.path),
                false => format!("{} ({} bytes)", entry.path, entry.size),
            })
            .collect();
        if entries.len() > MOST_ENTRIES {
            lines.push(format!("[{} more entries]", entries.len() - MOST_ENTRIES));
        }
        if lines.is_empty() {
            lines.push("[empty]".to_owned());
        }
        let mut out = Budget::new(TEXT);
        out.push(&lines.join("\n"));
        Ok(Ran {
            text: out.finish(),
            ..Ran::default()
        })
    }
}

fn parsed<T: DeserializeOwned>(name: &str, arguments: &Value) -> Result<T, Ran> {
    // A text is what could not be read as JSON; no arguments at all are none.
    let empty = Value::Object(Map::new());
    let arguments = match arguments {
        Value::Null => &empty,
        Value::String(text) => {
            let error = serde_json::from_str::<Value>(text).err();
            let why = error.map_or("they are no object".to_owned(), |error| error.to_string());
            return Err(Ran::failed(format!(
                "error: the arguments of {name} are no JSON: {why}"
            )));
        }
        other => other,
    };
    T::deserialize(arguments).map_err(|error| {
        Ran::failed(format!(
            "error: the arguments of {name} do not fit: {error}"
        ))
    })
}

fn picture(formats: &Map<String, Value>) -> Option<Picture> {
    ["png", "jpeg", "svg"].into_iter().find_map(|format| {
        let data = formats.get(format)?.as_str()?.to_owned();
        Some(Picture { format, data })
    })
}

fn text_of(formats: &Map<String, Value>) -> Option<&str> {
    ["text", "markdown", "html", "latex"]
        .into_iter()
        .find_map(|format| formats.get(format)?.as_str())
}

/// A path of the sandbox as a relative one of the host: nothing of it leads anywhere else.
#[must_use]
pub fn below(home: &str, path: &str) -> Option<std::path::PathBuf> {
    let rest = Path::new(path).strip_prefix(home).ok()?;
    let plain = rest
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    (plain && rest.components().next().is_some()).then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_do_not_fit_are_told() {
        let told = |arguments: Value| {
            parsed::<RunCode>("run_code", &arguments)
                .err()
                .unwrap()
                .text
        };
        assert_eq!(
            told(json!({"kode": 1})),
            "error: the arguments of run_code do not fit: missing field `code`"
        );
        assert!(
            told(json!("{\"code\": \"pri"))
                .starts_with("error: the arguments of run_code are no JSON: EOF")
        );
        assert!(parsed::<ListFiles>("list_files", &Value::Null).is_ok());
    }

    #[test]
    fn files_of_a_sandbox_stay_below() {
        assert_eq!(
            below("/home/user", "/home/user/a/b").unwrap(),
            Path::new("a/b")
        );
        for bad in [
            "/home/user",
            "/etc/passwd",
            "/home/user/../x",
            "/home/user/a/../../x",
            "a",
        ] {
            assert_eq!(below("/home/user", bad), None, "{bad}");
        }
    }

    #[test]
    fn every_schema_is_an_object_with_its_required_properties() {
        for tool in definitions() {
            assert_eq!(tool.parameters["type"], "object");
            for required in tool.parameters["required"].as_array().unwrap() {
                assert!(
                    tool.parameters["properties"][required.as_str().unwrap()].is_object(),
                    "{}",
                    tool.name
                );
            }
        }
    }
}
