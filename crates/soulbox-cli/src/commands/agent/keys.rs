//! Keys of providers: from the environment, else from a file that nobody but its owner can read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde::Deserialize;
use soulbox_agent::{Access, Provider};

use crate::failure::Failure;
use crate::secret_file;

/// A section of the file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    api_key: Option<String>,
    base_url: Option<String>,
    project: Option<String>,
    identity_url: Option<String>,
}

/// The variables of a provider: key, root, project, identity service. The names are those of the official packages.
fn variables(provider: Provider) -> [&'static str; 4] {
    match provider {
        Provider::Anthropic => ["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "", ""],
        Provider::Mistral => ["MISTRAL_API_KEY", "MISTRAL_BASE_URL", "", ""],
        Provider::Groq => ["GROQ_API_KEY", "GROQ_BASE_URL", "", ""],
        Provider::Together => ["TOGETHER_API_KEY", "TOGETHER_BASE_URL", "", ""],
        Provider::Fireworks => ["FIREWORKS_API_KEY", "FIREWORKS_BASE_URL", "", ""],
        Provider::Watsonx => [
            "WATSONX_API_KEY",
            "WATSONX_URL",
            "WATSONX_PROJECT_ID",
            "WATSONX_IAM_URL",
        ],
        Provider::Compatible => ["OPENAI_API_KEY", "OPENAI_BASE_URL", "", ""],
        Provider::Demo => ["", "", "", ""],
    }
}

pub(super) fn hint(provider: Provider) -> String {
    let names: Vec<_> = variables(provider)
        .into_iter()
        .filter(|name| !name.is_empty())
        .collect();
    format!(
        "set {} in the environment or in ~/.config/soulbox/agent.toml; --provider demo needs nothing",
        names.join(", ")
    )
}

/// What there is for this provider; each value of the environment goes before that of the file.
pub(super) fn access(provider: Provider, named: Option<&Path>) -> Result<Access, Failure> {
    let usual = || {
        let home = std::env::var_os("HOME").map(PathBuf::from)?;
        Some(home.join(".config/soulbox/agent.toml")).filter(|path| path.exists())
    };
    let file = named.map(Path::to_owned).or_else(usual);
    let section = match &file {
        Some(path) => section(path, provider.name())?,
        None => Section::default(),
    };
    let [key, base_url, project, identity_url] = variables(provider);
    let or = |name: &str, other: Option<String>| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.is_empty())
            .or(other)
    };
    Ok(Access {
        key: or(key, section.api_key).unwrap_or_default(),
        base_url: or(base_url, section.base_url),
        project: or(project, section.project),
        identity_url: or(identity_url, section.identity_url),
    })
}

fn section(path: &Path, name: &str) -> Result<Section, Failure> {
    let shown = path.display();
    let text = secret_file::read(path)?;
    // The words of the parser quote the line, which may be a key's.
    let mut sections: BTreeMap<String, Section> = toml::from_str(&text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        Failure::usage(anyhow!("`{shown}` is not understood, line {line}: {}", error.message()))
            .hint("a section for each provider, such as [groq], with api_key, base_url, project, identity_url")
    })?;
    Ok(sections.remove(name).unwrap_or_default())
}
