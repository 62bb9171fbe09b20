//! `soulbox.toml` of a template's folder, and E2B's `e2b.toml`, which is a part of it.
//!
//! Unknown keys are refused, and so are keys whose feature does not exist yet: nobody should believe in a rule that nothing keeps.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Names of the file, the first that is there counts.
pub const CONFIG_FILES: [&str; 2] = ["soulbox.toml", "e2b.toml"];
/// In MiB; less does not start a shell and what it runs.
const LEAST_MEMORY: u64 = 128;
const MOST_CPUS: u32 = 32;
const LONGEST_NAME: usize = 128;
/// Keys that have no meaning yet, with what there is instead.
const NOT_YET: [(&str, &str); 4] = [
    (
        "mounts",
        "there are no volumes yet; COPY files in, or write them into the sandbox",
    ),
    (
        "network",
        "templates have no rules of their own; give `network` when a sandbox is created",
    ),
    (
        "idle",
        "templates have no rules of their own; give `timeout` and `lifecycle` when a sandbox is created",
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
                let at = at(table, &[key])?;
                Some(mistake(
                    text,
                    at,
                    format!("`{key}` has no meaning yet: {instead}"),
                ))
            })
            .collect();
        if !not_yet.is_empty() {
            return Err(not_yet);
        }
        let config: Self = toml::from_str(text).map_err(|error| first(&error))?;
        let mistakes: Vec<_> = config
            .wrong()
            .into_iter()
            .map(|(path, message)| mistake(text, at(table, &path).unwrap_or(0), message))
            .collect();
        if mistakes.is_empty() {
            return Ok(config);
        }
        Err(mistakes)
    }

    /// The JSON schema of the file, for editors.
    #[must_use]
    pub fn schema() -> String {
        let schema = schemars::schema_for!(Self);
        format!("{:#}\n", schema.as_value())
    }

    /// What is wrong with values, each with the path of its key.
    fn wrong(&self) -> Vec<(Vec<&str>, String)> {
        let mut wrong = Vec::new();
        let mut check = |right: bool, path: Vec<&'static str>, message: String| {
            if !right {
                wrong.push((path, message));
            }
        };
        if let Some(name) = &self.template_name {
            check(
                is_template_name(name),
                vec!["template_name", "name"],
                format!(
                    "`{name}` is not a name of at most {LONGEST_NAME} characters of a-z, 0-9, - and _, with or without a team before it and a tag after it"
                ),
            );
        }
        if let Some(cpus) = self.cpu_count {
            check(
                (1..=MOST_CPUS).contains(&cpus) && (cpus == 1 || cpus % 2 == 0),
                vec!["cpu_count"],
                format!("{cpus} CPUs: it must be 1 or an even number, {MOST_CPUS} at most"),
            );
        }
        if let Some(memory) = self.memory_mb {
            check(
                memory >= LEAST_MEMORY && memory % 2 == 0,
                vec!["memory_mb"],
                format!("{memory} MiB: it must be an even number, {LEAST_MEMORY} at least"),
            );
        }
        for (key, text) in [
            ("start_cmd", &self.start_cmd),
            ("ready_cmd", &self.ready_cmd),
            ("dockerfile", &self.dockerfile),
        ] {
            let empty = text.as_ref().is_some_and(|it| it.trim().is_empty());
            check(!empty, vec![key], format!("`{key}` is empty"));
        }
        for name in self.env.keys() {
            if !is_variable(name) {
                let message = format!("`{name}` is not the name of a variable");
                wrong.push((vec!["env", name], message));
            }
        }
        for user in &self.users {
            if !is_user(&user.name) {
                let message = format!(
                    "`{}` is not a user's name: 1 to 32 of a-z, 0-9, _ and -, no digit or - first",
                    user.name
                );
                wrong.push((vec!["users"], message));
            }
        }
        wrong
    }
}

/// Where a value begins. At the first level all parts of the path but those after it are other names of the key.
fn at(table: &DeTable<'_>, path: &[&str]) -> Option<usize> {
    let find = |table: &DeTable<'_>, name: &str| {
        table
            .iter()
            .find(|(key, _)| key.get_ref().as_ref() == name)
            .map(|(key, value)| (key.span().start, start_within(value, path)))
    };
    path.iter()
        .find_map(|name| find(table, name))
        .map(|found| found.1)
}

/// The begin of a value, or of the key in it that the path ends with.
fn start_within(value: &Spanned<DeValue<'_>>, path: &[&str]) -> usize {
    if let (DeValue::Table(table), Some(name)) = (value.get_ref(), path.get(1))
        && let Some((key, _)) = table
            .iter()
            .find(|(key, _)| key.get_ref().as_ref() == *name)
    {
        return key.span().start;
    }
    value.span().start
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
