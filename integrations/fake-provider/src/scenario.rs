//! What is answered: scenarios of turns, the ones that are built in, and which of them a request asks for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::conversation::{Conversation, Message, Tool, fenced};
use crate::provider::Refusal;

/// Turns, one for each answer of the model. The last is repeated when the conversation goes on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub turns: Vec<Turn>,
}

/// One answer: text, calls of tools, or a fault.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Turn {
    /// `{{result}}` becomes what the tools said last, `{{code}}` the code of the prompt.
    pub text: Option<String>,
    /// The text is repeated up to so many bytes.
    pub text_bytes: Option<usize>,
    pub calls: Vec<Call>,
    pub error: Option<Fault>,
    /// Before the first byte.
    pub delay_ms: u64,
    /// Between events of a stream.
    pub pace_ms: u64,
    pub cut: Option<Cut>,
}

/// A call of a tool. Without a name it is the tool that runs code, without arguments it carries the code.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Call {
    pub name: Option<String>,
    pub arguments: Option<Value>,
    /// Arguments as they are sent, valid JSON or not.
    pub raw: Option<String>,
    pub code: Option<String>,
}

/// A refusal, `times` in a row for one request and then the turn itself; always, when `times` is left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub status: u16,
    pub retry_after: Option<u64>,
    pub times: Option<u32>,
    pub message: Option<String>,
}

/// Where the connection is broken off.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// Half way through.
    Middle,
    /// Amid the arguments of the first call.
    Call,
}

/// A scenario that was found for a request, and where in it the conversation is.
#[derive(Debug)]
pub(crate) struct Picked {
    pub name: String,
    pub index: usize,
    pub turn: Turn,
    code: Vec<(String, String)>,
    result: String,
}

/// A call as it is sent.
#[derive(Debug)]
pub(crate) struct Sent {
    pub name: String,
    pub arguments: String,
}

const ANSWER: &str = "There is nothing to run here: the answer is 42.";
const CODE: &str = "print('hello from the sandbox')\nsum(range(101))\n";
const CHART: &str = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3, 4], [1, 4, 9, 16])\nplt.title('Squares')\nplt.show()\n";
const CHARTS: &str = "import matplotlib.pyplot as plt\nfor n in range(20):\n    plt.figure()\n    plt.plot([0, n])\n    plt.show()\n";
/// Tools that run code go by these names in one framework or another.
const CODE_TOOLS: [&str; 6] = [
    "run_code",
    "runCode",
    "execute_python",
    "execute_code",
    "python",
    "code_interpreter",
];

/// The scenario of this name that needs no file.
fn built_in(name: &str, code: &[(String, String)], tools: bool) -> Option<Scenario> {
    let call = Call::default;
    let calls = |code: &str| Turn {
        calls: vec![Call {
            code: Some(code.to_owned()),
            ..call()
        }],
        ..Turn::default()
    };
    let said = |text: &str| Turn {
        text: Some(text.to_owned()),
        ..Turn::default()
    };
    let one = || Turn {
        calls: vec![call()],
        ..Turn::default()
    };
    let last = || said("The code answered:\n{{result}}");
    let long = "All of this text is one answer that takes a while to say, so that a stream of it can be watched as it comes.";
    let turns = match name {
        "answer" | "no-code" => vec![said(ANSWER)],
        "tool" | "stream-tool" => vec![one(), last()],
        "tool-text" => vec![
            Turn {
                text: Some("I will run some code.".to_owned()),
                ..one()
            },
            last(),
        ],
        "parallel" => {
            let codes: Vec<String> = if code.len() > 1 {
                code.iter().map(|(_, code)| code.clone()).collect()
            } else {
                (1..=3).map(|n| format!("print({n})\n")).collect()
            };
            let calls = codes.into_iter().map(|code| Call {
                code: Some(code),
                ..call()
            });
            vec![
                Turn {
                    calls: calls.collect(),
                    ..Turn::default()
                },
                last(),
            ]
        }
        "malformed" | "malformed-always" => {
            let broken = Turn {
                calls: vec![Call {
                    raw: Some("{\"code\": \"print(1".to_owned()),
                    ..call()
                }],
                ..Turn::default()
            };
            match name {
                "malformed" => vec![broken, one(), last()],
                _ => vec![broken],
            }
        }
        "wrong-arguments" => vec![
            Turn {
                calls: vec![Call {
                    arguments: Some(json!({"kode": 7})),
                    ..call()
                }],
                ..Turn::default()
            },
            one(),
            last(),
        ],
        "unknown-tool" => vec![
            Turn {
                calls: vec![Call {
                    name: Some("no_such_tool".to_owned()),
                    arguments: Some(json!({"anything": true})),
                    ..call()
                }],
                ..Turn::default()
            },
            last(),
        ],
        "fenced" => vec![
            said("This computes it:\n\n```{{language}}\n{{code}}```\n"),
            last(),
        ],
        "fill" => vec![said("{{code}}")],
        "fenced-always" => vec![said("Once more:\n\n```{{language}}\n{{code}}```\n")],
        "chart" => vec![calls(CHART), last()],
        "endless" => vec![one()],
        "endless-code" => vec![calls("while True: pass\n"), last()],
        "loud" => vec![calls("print('x' * 10_000_000)\n"), last()],
        "charts" => vec![calls(CHARTS), last()],
        "raise" => vec![calls("raise ValueError('on purpose')\n"), last()],
        "slow" => vec![Turn {
            delay_ms: 300,
            pace_ms: 100,
            ..said(long)
        }],
        "stall" => vec![Turn {
            pace_ms: 3_600_000,
            ..said(long)
        }],
        "cut" => vec![Turn {
            cut: Some(Cut::Middle),
            ..said(long)
        }],
        "cut-tool" => vec![Turn {
            cut: Some(Cut::Call),
            ..one()
        }],
        "big" => vec![Turn {
            text_bytes: Some(10_000_000),
            ..said(long)
        }],
        other => {
            let (times, status) = match other.split_once('-')? {
                ("error", status) => (None, status),
                ("retry", status) => (Some(2), status),
                _ => return None,
            };
            let status = status.parse().ok().filter(|s| (400..600).contains(s))?;
            let fault = Fault {
                status,
                // The real ones say it with 429 only.
                retry_after: (status == 429).then_some(1),
                times,
                message: None,
            };
            let first = if tools { one() } else { said(ANSWER) };
            vec![
                Turn {
                    error: Some(fault),
                    ..first
                },
                last(),
            ]
        }
    };
    Some(Scenario { turns })
}

/// Finds the scenario that a request asks for: by header, by what a message says, by the model's name; else the `usual` one.
///
/// # Errors
/// Names a scenario that does not exist, or one that needs tools where none are offered.
pub(crate) fn pick(
    conversation: &Conversation,
    header: Option<&str>,
    model: &str,
    usual: &str,
    own: &BTreeMap<String, Scenario>,
) -> Result<Picked, Refusal> {
    let marked = marked(conversation)?;
    let by_model = model
        .split_once("fake-")
        // A model of a catalogue may have more behind the name, as in `fake-tool:free`.
        .map(|(_, name)| name.split([':', '@']).next().unwrap_or(name).to_owned());
    let start = marked.as_ref().map(|(index, _)| *index);
    let begin = start.unwrap_or_else(|| last_request(conversation));
    let text = match conversation.messages.get(begin) {
        Some(Message::User(text)) => text.as_str(),
        _ => "",
    };
    let code: Vec<_> = fenced(text)
        .into_iter()
        .filter(|(word, _)| word != "scenario")
        .collect();
    let named = |name: String| {
        own.get(&name)
            .cloned()
            .or_else(|| built_in(&name, &code, !conversation.tools.is_empty()))
            .map(|scenario| (name.clone(), scenario))
            .ok_or_else(|| Refusal::new(404, format!("there is no scenario `{name}`")))
    };
    let (name, scenario) = match (header, marked, by_model) {
        (Some(name), ..) => named(name.to_owned())?,
        (None, Some((_, Marked::Name(name))), _) => named(name)?,
        (None, Some((_, Marked::Whole(scenario))), _) => ("of the prompt".to_owned(), scenario),
        (None, None, Some(name)) => named(name)?,
        (None, None, None) => named(usual.to_owned())?,
    };
    let index = conversation.messages[begin.min(conversation.messages.len())..]
        .iter()
        .filter(|message| matches!(message, Message::Assistant { .. }))
        .count();
    let turn = scenario
        .turns
        .get(index)
        .or(scenario.turns.last())
        .cloned()
        .ok_or_else(|| Refusal::bad(format!("scenario `{name}` has no turns")))?;
    if !turn.calls.is_empty() && conversation.tools.is_empty() && turn.error.is_none() {
        return Err(Refusal::bad(format!(
            "scenario `{name}` calls tools, and the request offers none"
        )));
    }
    Ok(Picked {
        name,
        index,
        turn,
        code,
        result: conversation.last_result(),
    })
}

enum Marked {
    Name(String),
    Whole(Scenario),
}

/// The last message of the user that names a scenario, as `[scenario: NAME]` or as a fenced block of JSON with the word `scenario`.
fn marked(conversation: &Conversation) -> Result<Option<(usize, Marked)>, Refusal> {
    for (index, message) in conversation.messages.iter().enumerate().rev() {
        let Message::User(text) = message else {
            continue;
        };
        if let Some((_, json)) = fenced(text)
            .into_iter()
            .find(|(word, _)| word == "scenario")
        {
            let scenario = serde_json::from_str(&json)
                .map_err(|error| Refusal::bad(format!("the scenario in the prompt: {error}")))?;
            return Ok(Some((index, Marked::Whole(scenario))));
        }
        let name = text
            .split_once("[scenario:")
            .and_then(|(_, rest)| rest.split_once(']'));
        if let Some((name, _)) = name {
            return Ok(Some((index, Marked::Name(name.trim().to_owned()))));
        }
    }
    Ok(None)
}

/// Where the last request of the user stands. What follows an answer with fenced code is taken for the outcome of that code.
fn last_request(conversation: &Conversation) -> usize {
    let mut begin = 0;
    let mut code_before = false;
    for (index, message) in conversation.messages.iter().enumerate() {
        match message {
            Message::User(_) if !code_before => begin = index,
            Message::Assistant { text, .. } => code_before = !fenced(text).is_empty(),
            _ => {}
        }
    }
    begin
}

impl Picked {
    /// The text of this answer.
    pub(crate) fn text(&self) -> Option<String> {
        let text = self.turn.text.as_ref()?;
        let (language, code) = self.block();
        let text = text
            .replace("{{language}}", language)
            .replace("{{code}}", code)
            .replace("{{result}}", &self.result);
        Some(match self.turn.text_bytes {
            Some(bytes) if !text.is_empty() => text.chars().cycle().take(bytes).collect(),
            _ => text,
        })
    }

    /// The calls of this answer, for the tools that there are.
    ///
    /// # Errors
    /// Where no tool that runs code is offered, and the scenario needs one.
    pub(crate) fn calls(&self, tools: &[Tool]) -> Result<Vec<Sent>, Refusal> {
        self.turn
            .calls
            .iter()
            .map(|call| {
                let tool = || {
                    code_tool(tools)
                        .ok_or_else(|| Refusal::bad("none of the tools offered runs code"))
                };
                let name = match &call.name {
                    Some(name) => name.clone(),
                    None => tool()?.name.clone(),
                };
                let arguments = match (&call.raw, &call.arguments) {
                    (Some(raw), _) => raw.clone(),
                    (None, Some(arguments)) => arguments.to_string(),
                    (None, None) => self.code_arguments(tool()?, call).to_string(),
                };
                Ok(Sent { name, arguments })
            })
            .collect()
    }

    fn code_arguments(&self, tool: &Tool, call: &Call) -> Value {
        let (language, of_prompt) = self.block();
        let code = call.code.as_deref().unwrap_or(of_prompt);
        let properties = &tool.parameters["properties"];
        let key = code_property(tool).unwrap_or("code");
        let mut arguments = json!({ key: code });
        if call.code.is_none() && language != "python" && properties["language"].is_object() {
            arguments["language"] = json!(language);
        }
        arguments
    }

    /// The first block of the prompt, or the code that every scenario has.
    fn block(&self) -> (&str, &str) {
        match self.code.first() {
            Some((language, code)) if !language.is_empty() => (language, code),
            Some((_, code)) => ("python", code),
            None => ("python", CODE),
        }
    }
}

fn code_tool(tools: &[Tool]) -> Option<&Tool> {
    CODE_TOOLS
        .iter()
        .find_map(|name| tools.iter().find(|tool| tool.name == *name))
        .or_else(|| tools.iter().find(|tool| code_property(tool).is_some()))
}

fn code_property(tool: &Tool) -> Option<&'static str> {
    ["code", "source", "python_code", "script"]
        .into_iter()
        .find(|key| !tool.parameters["properties"][*key].is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(messages: Vec<Message>) -> Conversation {
        let tool = Tool {
            name: "run_code".to_owned(),
            parameters: json!({"type": "object", "properties": {"code": {"type": "string"}, "language": {"type": "string"}}}),
        };
        Conversation {
            messages,
            tools: vec![tool],
            ..Conversation::default()
        }
    }

    fn user(text: &str) -> Message {
        Message::User(text.to_owned())
    }

    fn assistant(text: &str, calls: &[&str]) -> Message {
        Message::Assistant {
            text: text.to_owned(),
            calls: calls.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    fn chosen(conversation: &Conversation, header: Option<&str>, model: &str) -> (String, usize) {
        let picked = pick(conversation, header, model, "tool-text", &BTreeMap::new()).unwrap();
        (picked.name, picked.index)
    }

    #[test]
    fn a_header_beats_a_message_and_a_message_beats_a_model() {
        let plain = conversation(vec![user("hello")]);
        assert_eq!(chosen(&plain, None, "claude-sonnet-5").0, "tool-text");
        assert_eq!(chosen(&plain, None, "fake-chart:free").0, "chart");
        let marked = conversation(vec![user("hello [scenario: cut]")]);
        assert_eq!(chosen(&marked, None, "fake-chart").0, "cut");
        assert_eq!(chosen(&marked, Some("slow"), "fake-chart").0, "slow");
    }

    #[test]
    fn a_new_request_begins_again_and_results_go_on() {
        let mut messages = vec![
            user("a"),
            assistant("", &["1"]),
            Message::Results(vec![("1".to_owned(), "5050".to_owned())]),
        ];
        assert_eq!(chosen(&conversation(messages), None, "m").1, 1);
        messages = vec![user("a"), assistant("done", &[]), user("b")];
        assert_eq!(chosen(&conversation(messages), None, "m").1, 0);
        messages = vec![
            user("a"),
            assistant("```python\n1\n```", &[]),
            user("it printed 1"),
        ];
        assert_eq!(chosen(&conversation(messages), None, "m").1, 1);
    }

    #[test]
    fn code_of_the_prompt_is_what_is_run() {
        let asked = conversation(vec![user(
            "run\n```javascript\n1 + 1\n```\nplease [scenario: tool]",
        )]);
        let picked = pick(&asked, None, "m", "tool-text", &BTreeMap::new()).unwrap();
        let sent = picked.calls(&asked.tools).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&sent[0].arguments).unwrap(),
            json!({"code": "1 + 1\n", "language": "javascript"})
        );
    }

    #[test]
    fn a_whole_scenario_comes_with_the_prompt() {
        let asked = conversation(vec![user(
            "```scenario\n{\"turns\": [{\"calls\": [{\"name\": \"write_file\", \"arguments\": {\"path\": \"a\"}}]}]}\n```",
        )]);
        let picked = pick(&asked, None, "m", "tool-text", &BTreeMap::new()).unwrap();
        let sent = picked.calls(&asked.tools).unwrap();
        assert_eq!(
            (sent[0].name.as_str(), sent[0].arguments.as_str()),
            ("write_file", "{\"path\":\"a\"}")
        );
    }

    #[test]
    fn a_name_that_nobody_has_is_refused() {
        let plain = conversation(vec![user("hello")]);
        let refused = pick(&plain, Some("typo"), "m", "tool-text", &BTreeMap::new()).unwrap_err();
        assert_eq!(
            (refused.status, refused.message.as_str()),
            (404, "there is no scenario `typo`")
        );
    }
}
