//! `soulbox.toml` of a template's folder, and E2B's `e2b.toml`, which is a part of it.
//!
//! Unknown keys are refused, and so are keys whose feature does not exist yet: nobody should believe in a rule that nothing keeps.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use soulbox_types::Network;
use soulbox_wire::rest;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Names of the file, the first that is there counts.
pub const CONFIG_FILES: [&str; 2] = ["soulbox.toml", "e2b.toml"];
/// In MiB; less does not start a shell and what it runs.
const LEAST_MEMORY: u64 = 128;
const MOST_CPUS: u32 = 32;
const LONGEST_NAME: usize = 128;
/// Keys that have no meaning yet, with what there is instead.
const NOT_YET: [(&str, &str); 2] = [
    (
        "mounts",
        "there are no volumes yet; COPY files in, or write them into the sandbox",
    ),
    ("profile", "there is one kind of isolation"),
];

/// What a template's folder says about its builds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "soulbox.toml")]
pub struct TemplateConfig {
    /// The ID of a template that exists, where it has no name to be called by. `id` in old files.
    #[serde(alias = "id")]
    pub template_id: Option<String>,
    /// The name of the template: `name`, `team/name`, either with `:tag`. `name` in old files.
    #[serde(alias = "name")]
    #[schemars(length(max = 128))]
    pub template_name: Option<String>,
    /// The Dockerfile, relative to the folder. By default the first that is there of `soulbox.Dockerfile`, `e2b.Dockerfile`, `Dockerfile`.
    pub dockerfile: Option<String>,
    /// Started in every new sandbox, before anybody gets it.
    pub start_cmd: Option<String>,
    /// Tried until it exits with 0; then a sandbox is ready.
    pub ready_cmd: Option<String>,
    /// 1, or an even number. 2 by default.
    #[schemars(range(min = 1, max = 32))]
    pub cpu_count: Option<u32>,
    /// MiB, an even number. 1024 by default.
    #[schemars(range(min = 128), extend("multipleOf" = 2))]
    pub memory_mb: Option<u64>,
    /// MiB that a sandbox can write, at least.
    pub disk_mb: Option<u64>,
    /// The ID of the team that the key must be of. `team_id` in old files.
    #[serde(alias = "team_id")]
    pub team: Option<String>,
    /// Variables of the build's steps and of the start and ready commands. Commands of clients do not see them.
    pub env: BTreeMap<String, String>,
    /// Users that exist before the first step of the Dockerfile.
    pub users: Vec<User>,
    /// Where sandboxes may connect to, unless their create says it.
    pub network: Option<NetworkDefaults>,
    /// How long sandboxes live and what happens then, unless their create says it.
    pub idle: Option<IdleDefaults>,
}

/// A user inside.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct User {
    #[schemars(regex(pattern = r"^[a-z_][a-z0-9_-]{0,31}$"))]
    pub name: String,
    /// May become root without a password.
    #[serde(default)]
    pub sudo: bool,
}

/// Where sandboxes may connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkDefaults {
    /// False denies everything that `allow_out` does not name.
    pub allow_internet_access: Option<bool>,
    /// IPv4 addresses and ranges that may be reached although they are denied.
    pub allow_out: Vec<String>,
    /// IPv4 addresses and ranges that may not be reached; `0.0.0.0/0` is all of them.
    pub deny_out: Vec<String>,
}

/// How long sandboxes live, and what happens then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IdleDefaults {
    /// Seconds; the team's longest life is the most. 300 by default.
    #[schemars(range(min = 1))]
    pub timeout: Option<u32>,
    /// `kill` by default.
    pub on_timeout: Option<OnTimeout>,
    /// Whether processes and memory are kept with a pause, or only what is on disk. True by default.
    pub keep_memory: Option<bool>,
    /// Whether a request for one of its ports resumes a paused sandbox. False by default.
    pub auto_resume: Option<bool>,
}

/// What becomes of a sandbox whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    Kill,
    Pause,
}

/// One thing that is wrong in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Both count from 1.
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.message
        )
    }
}

impl TemplateConfig {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// All mistakes of its values; of its form, or of the type of a value, the first.
    pub fn read(text: &str) -> Result<Self, Vec<Mistake>> {
        let first = |error: &toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start);
            vec![mistake(text, at, error.message().trim().to_owned())]
        };
        let table = DeTable::parse(text).map_err(|error| first(&error))?;
        let table = table.get_ref();
        let not_yet: Vec<_> = NOT_YET
            .iter()
            .filter_map(|(key, instead)| {
                let at = place(table, &[Step::Name(key)])?;
                Some(mistake(
                    text,
                    at,
                    format!("`{key}` has no meaning yet: {instead}"),
                ))
            })
            .collect();
        if !not_yet.is_empty() {
            return Err(in_order(not_yet));
        }
        let config: Self = toml::from_str(text).map_err(|error| first(&error))?;
        let mistakes: Vec<_> = config
            .wrong()
            .into_iter()
            .map(|(path, message)| mistake(text, place(table, &path).unwrap_or(0), message))
            .collect();
        if mistakes.is_empty() {
            return Ok(config);
        }
        Err(in_order(mistakes))
    }

    /// The JSON schema of the file, for editors.
    #[must_use]
    pub fn schema() -> String {
        let schema = schemars::schema_for!(Self);
        format!("{:#}\n", schema.as_value())
    }

    /// What is said of sandboxes, as it is sent.
    pub(crate) fn sandbox_defaults(&self) -> Option<rest::SandboxDefaults> {
        let idle = self.idle.clone().unwrap_or_default();
        let network = self.network.clone().unwrap_or_default();
        let network = (network != NetworkDefaults::default()).then_some(network);
        if network.is_none() && idle == IdleDefaults::default() {
            return None;
        }
        Some(rest::SandboxDefaults {
            timeout: idle.timeout.map(|it| i32::try_from(it).unwrap_or(i32::MAX)),
            auto_pause: idle.on_timeout.map(|it| it == OnTimeout::Pause),
            auto_pause_memory: idle.keep_memory,
            auto_resume: idle.auto_resume.map(|enabled| rest::AutoResume { enabled }),
            allow_internet_access: network.as_ref().and_then(|it| it.allow_internet_access),
            network: network.map(|it| rest::DefaultNetwork {
                outbound: rest::OutboundConfig {
                    allow_out: Some(it.allow_out),
                    deny_out: Some(it.deny_out),
                    ..rest::OutboundConfig::default()
                },
                ..rest::DefaultNetwork::default()
            }),
            ..rest::SandboxDefaults::default()
        })
    }

    /// What is wrong with values, each with its place.
    fn wrong(&self) -> Vec<(Vec<Step<'_>>, String)> {
        let mut wrong = Vec::new();
        let mut check = |right: bool, path: Vec<Step<'static>>, message: String| {
            if !right {
                wrong.push((path, message));
            }
        };
        if let Some(name) = &self.template_name {
            check(
                is_template_name(name),
                vec![Step::Key(&["template_name", "name"])],
                format!(
                    "`{name}` is not a name of at most {LONGEST_NAME} characters of a-z, 0-9, - and _, with or without a team before it and a tag after it"
                ),
            );
        }
        if let Some(cpus) = self.cpu_count {
            check(
                (1..=MOST_CPUS).contains(&cpus) && (cpus == 1 || cpus % 2 == 0),
                vec![Step::Key(&["cpu_count"])],
                format!("{cpus} CPUs: it must be 1 or an even number, {MOST_CPUS} at most"),
            );
        }
        if let Some(memory) = self.memory_mb {
            check(
                memory >= LEAST_MEMORY && memory % 2 == 0,
                vec![Step::Key(&["memory_mb"])],
                format!("{memory} MiB: it must be an even number, {LEAST_MEMORY} at least"),
            );
        }
        let texts: [(&'static [&'static str], _); 3] = [
            (&["start_cmd"], &self.start_cmd),
            (&["ready_cmd"], &self.ready_cmd),
            (&["dockerfile"], &self.dockerfile),
        ];
        for (key, text) in texts {
            let empty = text.as_ref().is_some_and(|it| it.trim().is_empty());
            check(
                !empty,
                vec![Step::Key(key)],
                format!("`{}` is empty", key[0]),
            );
        }
        for (number, user) in self.users.iter().enumerate() {
            check(
                is_user(&user.name),
                vec![
                    Step::Key(&["users"]),
                    Step::Item(number),
                    Step::Key(&["name"]),
                ],
                format!(
                    "`{}` is not a user's name: 1 to 32 of a-z, 0-9, _ and -, no digit or - first",
                    user.name
                ),
            );
        }
        for (path, message) in self.network.iter().flat_map(NetworkDefaults::wrong) {
            check(false, path, message);
        }
        for (key, message) in self.idle.iter().flat_map(IdleDefaults::wrong) {
            let path = vec![Step::Key(&["idle"]), Step::Key(key)];
            check(false, path, message.to_owned());
        }
        for name in self.env.keys() {
            if !is_variable(name) {
                let message = format!("`{name}` is not the name of a variable");
                wrong.push((vec![Step::Key(&["env"]), Step::Name(name)], message));
            }
        }
        wrong
    }
}

impl NetworkDefaults {
    /// Whether entry by entry, or both lists together, are what a create could give as well.
    fn wrong(&self) -> Vec<(Vec<Step<'static>>, String)> {
        const ALLOW: &[&str] = &["allow_out"];
        const DENY: &[&str] = &["deny_out"];
        let everything = || vec!["0.0.0.0/0".to_owned()];
        let allowed = self.allow_out.iter().enumerate().map(|(number, text)| {
            let alone = Network::new(None, vec![text.clone()], everything());
            (ALLOW, number, alone)
        });
        let denied = self.deny_out.iter().enumerate().map(|(number, text)| {
            let alone = Network::new(None, Vec::new(), vec![text.clone()]);
            (DENY, number, alone)
        });
        let mut wrong: Vec<_> = allowed
            .chain(denied)
            .filter_map(|(key, number, alone)| {
                let within = vec![Step::Key(&["network"]), Step::Key(key), Step::Item(number)];
                Some((within, alone.err()?.to_string()))
            })
            .collect();
        if wrong.is_empty()
            && let Err(error) = Network::new(None, self.allow_out.clone(), self.deny_out.clone())
        {
            wrong.push((vec![Step::Key(&["network"])], error.to_string()));
        }
        wrong
    }
}

impl IdleDefaults {
    /// The keys whose values do not fit, as official packages refuse them of a create.
    fn wrong(&self) -> Vec<(&'static [&'static str], &'static str)> {
        let mut wrong: Vec<(&'static [&'static str], _)> = Vec::new();
        let pauses = self.on_timeout == Some(OnTimeout::Pause);
        if self.timeout == Some(0) {
            wrong.push((&["timeout"], "0 seconds: it must be 1 at least"));
        }
        if self.keep_memory.is_some() && !pauses {
            wrong.push((
                &["keep_memory"],
                "`keep_memory` needs `on_timeout = \"pause\"`",
            ));
        }
        if self.auto_resume == Some(true) && (!pauses || self.keep_memory == Some(false)) {
            wrong.push((
                &["auto_resume"],
                "`auto_resume` needs `on_timeout = \"pause\"`, and memory",
            ));
        }
        wrong
    }
}

/// A step on the way to a place in the file.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    /// To the value of a key that is there by one of these names.
    Key(&'static [&'static str]),
    /// To an entry of a list.
    Item(usize),
    /// To a key itself.
    Name(&'a str),
}

/// Where a path leads, or as far as there is something: in bytes from the begin of the file.
fn place(table: &DeTable<'_>, path: &[Step<'_>]) -> Option<usize> {
    let (first, rest) = path.split_first()?;
    let named = |names: &[&str]| {
        let mut entries = table.iter();
        entries.find(|(key, _)| names.contains(&key.get_ref().as_ref()))
    };
    match first {
        Step::Key(names) => named(names).map(|(_, value)| place_within(value, rest)),
        Step::Name(name) => named(&[*name]).map(|(key, _)| key.span().start),
        Step::Item(_) => None,
    }
}

fn place_within(value: &Spanned<DeValue<'_>>, path: &[Step<'_>]) -> usize {
    let further = match (value.get_ref(), path.split_first()) {
        (DeValue::Table(table), Some(_)) => place(table, path),
        (DeValue::Array(items), Some((Step::Item(number), rest))) => {
            items.get(*number).map(|item| place_within(item, rest))
        }
        _ => None,
    };
    further.unwrap_or(value.span().start)
}

fn in_order(mut mistakes: Vec<Mistake>) -> Vec<Mistake> {
    mistakes.sort_by_key(|it| (it.line, it.column));
    mistakes
}

fn mistake(text: &str, at: usize, message: String) -> Mistake {
    let before = text.get(..at).unwrap_or(text);
    Mistake {
        line: before.matches('\n').count() + 1,
        column: before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1,
        message,
    }
}

fn is_template_name(name: &str) -> bool {
    let name = name.trim();
    let (whole, tag) = match name.split_once(':') {
        Some((whole, tag)) => (whole, Some(tag)),
        None => (name, None),
    };
    let (team, alias) = match whole.split_once('/') {
        Some((team, alias)) => (Some(team), alias),
        None => (None, whole),
    };
    let made_of = |text: &str, more: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|it| it.is_ascii_alphanumeric() || "-_".contains(it) || more.contains(it))
    };
    name.len() <= LONGEST_NAME
        && made_of(alias, "")
        && team.is_none_or(|it| made_of(it, ""))
        && tag.is_none_or(|it| made_of(it, "."))
}

fn is_variable(name: &str) -> bool {
    let first = |it: char| it.is_ascii_alphabetic() || it == '_';
    name.starts_with(first) && name.chars().all(|it| first(it) || it.is_ascii_digit())
}

fn is_user(name: &str) -> bool {
    let first = |it: char| it.is_ascii_lowercase() || it == '_';
    name.len() <= 32
        && name.starts_with(first)
        && name
            .chars()
            .all(|it| first(it) || it.is_ascii_digit() || it == '-')
}

#[cfg(test)]
mod tests;
