//! Templates of a server, by its API.

use std::io::{IsTerminal, Write};

use anyhow::anyhow;
use serde_json::json;
use soulbox_client::{BuildEvent, Client, Project, rest};

use super::folder::build_failure;
use super::{Build, One, print, print_json};
use crate::commands::agent::until_signalled;
use crate::commands::block_on;
use crate::failure::{Failure, plain};

pub(super) use crate::commands::sandbox::refused;

pub(super) fn build(build: Build) -> Result<(), Failure> {
    let project =
        Project::open(&build.folder, build.dockerfile.as_deref()).map_err(build_failure)?;
    for warning in &project.recipe.warnings {
        eprintln!("warning: Dockerfile {warning}");
    }
    let client = build.server.client()?;
    block_on(async {
        let interrupted = until_signalled()?;
        let name = build.name.as_deref();
        let mut started = false;
        let mut tell = |event: BuildEvent<'_>| {
            started |= matches!(event, BuildEvent::Line(_));
            tell(event);
        };
        let building = client.build(&project, name, &build.tags, build.no_cache, &mut tell);
        let built = tokio::select! {
            built = building => Some(built.map_err(build_failure)?),
            () = interrupted.cancelled() => None,
        };
        let Some(built) = built else {
            return Err(left(started));
        };
        let done = built.requested;
        if build.json {
            return print_json(&json!({
                "templateID": done.template_id,
                "buildID": done.build_id,
                "names": done.names,
                "tags": done.tags,
            }));
        }
        let shown = done.names.first().unwrap_or(&done.template_id);
        print(&format!("{shown} {} built\n", done.build_id))
    })
}

/// What somebody leaves who does not wait for a build.
fn left(started: bool) -> Failure {
    if started {
        return Failure::interrupted(anyhow!("not waiting any longer")).hint(
            "the server goes on with the build; another one with the same tag takes its place",
        );
    }
    Failure::interrupted(anyhow!("interrupted before the build was started"))
}

/// The log as it comes.
fn tell(event: BuildEvent<'_>) {
    match event {
        BuildEvent::Requested(it) => {
            eprintln!("template {}, build {}", it.template_id, it.build_id);
        }
        BuildEvent::Uploading(count) => eprintln!("uploading {count} archives"),
        BuildEvent::Line(line) => {
            let level = match line.level {
                rest::LogLevel::Warn => "warning: ",
                _ => "",
            };
            eprintln!("{level}{}", plain(&colourless(&line.message)));
        }
    }
}

/// A line without the colours that programs of the build gave it.
fn colourless(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|it: char| it.is_ascii_digit() || it == ';');
        match rest.strip_prefix('m') {
            Some(rest) => text.push_str(rest),
            None => text.push_str(&format!("\x1b[{part}")),
        }
    }
    text
}

pub(super) async fn list(client: Client, json: bool) -> Result<(), Failure> {
    let templates = client.templates().await.map_err(refused)?;
    if json {
        return print_json(&as_json(&templates)?);
    }
    let name = |it: &rest::Template| it.names.first().cloned().unwrap_or_else(|| "-".to_owned());
    let widest = templates.iter().map(|it| name(it).len()).max().unwrap_or(0);
    let width = widest.max(24);
    let mut text = format!(
        "{:<width$} {:<20} {:<8} {:>4} {:>10} {:>10} {}\n",
        "NAME", "ID", "ACCESS", "CPUS", "MEMORY", "DISK", "STATE"
    );
    for template in &templates {
        text.push_str(&format!(
            "{:<width$} {:<20} {:<8} {:>4} {:>6} MiB {:>6} MiB {}\n",
            name(template),
            template.template_id,
            if template.public { "public" } else { "private" },
            template.cpu_count,
            template.memory_mb,
            template.disk_size_mb,
            state(template.build_status),
        ));
    }
    print(&text)
}

/// Asks whether all of these are to be deleted, unless that was said.
pub(super) fn confirm(templates: &[String], yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let not_said = |text: &str| Failure::usage(anyhow!(text.to_owned())).hint("say so with --yes");
    if !std::io::stdin().is_terminal() {
        return Err(not_said("nobody can be asked whether to delete"));
    }
    eprint!("delete {} with all builds? [y/N] ", templates.join(", "));
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(anyhow!(error)))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(not_said("nothing was deleted"))
}

pub(super) async fn delete(client: Client, templates: Vec<String>) -> Result<(), Failure> {
    let mut failed = None;
    for template in templates {
        match client.delete_template(&template).await {
            Ok(()) => eprintln!("deleted {template}"),
            Err(error) => {
                // The others are gone into all the same; the last failure is that of the command.
                if let Some(before) = failed.replace(refused(error)) {
                    eprintln!("{before}");
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

pub(super) fn publish(one: One, public: bool) -> Result<(), Failure> {
    let client = one.server.client()?;
    block_on(async {
        let names = client.set_public(&one.template, public).await;
        let names = names.map_err(refused)?.names;
        if one.json {
            return print_json(&json!({ "public": public, "names": names }));
        }
        let now = if public { "public" } else { "private" };
        eprintln!("{} is {now}", one.template);
        print(&names.iter().map(|it| format!("{it}\n")).collect::<String>())
    })
}

pub(super) fn inspect(one: One) -> Result<(), Failure> {
    let client = one.server.client()?;
    block_on(async {
        let contents = client.template_contents(&one.template).await;
        let contents = contents.map_err(refused)?;
        if one.json {
            return print_json(&as_json(&contents)?);
        }
        let mut text = format!(
            "template {}\nbuild    {}\n",
            contents.template_id, contents.build_id
        );
        if let Some(defaults) = &contents.sandbox_defaults {
            text.push_str(&format!("defaults {}\n", as_json(defaults)?));
        }
        for layer in &contents.layers {
            text.push_str(&format!("layer    {layer}\n"));
        }
        for package in &contents.packages {
            text.push_str(&format!(
                "{:<8} {} {}\n",
                package.kind, package.name, package.version
            ));
        }
        print(&text)
    })
}

fn state(status: rest::BuildStatus) -> &'static str {
    match status {
        rest::BuildStatus::Waiting => "waiting",
        rest::BuildStatus::Building => "building",
        rest::BuildStatus::Ready => "ready",
        rest::BuildStatus::Error => "error",
    }
}

fn as_json(value: &impl serde::Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::new(error).hint("report this"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_other_commands_of_a_terminal_stay_for_who_replaces_them() {
        let line = "\x1b[1;32mgreen\x1b[0m and\x1b[m \x1b[2Jmoved \x1b[";
        assert_eq!(colourless(line), "green and \x1b[2Jmoved \x1b[");
    }
}
