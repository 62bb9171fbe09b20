//! Templates of a server, by its API.

use std::io::{IsTerminal, Write};

use anyhow::anyhow;
use serde_json::json;
use soulbox_client::{BuildEvent, Client, Project, rest};

use super::folder::build_failure;
use super::{Build, One, print, print_json};
use crate::commands::block_on;
use crate::failure::Failure;

pub(super) use crate::commands::sandbox::refused;

pub(super) fn build(build: Build) -> Result<(), Failure> {
    let project =
        Project::open(&build.folder, build.dockerfile.as_deref()).map_err(build_failure)?;
    for warning in &project.recipe.warnings {
        eprintln!("warning: Dockerfile {warning}");
    }
    let client = build.server.client()?;
    block_on(async {
        let name = build.name.as_deref();
        let built = client
            .build(&project, name, &build.tags, build.no_cache, &mut tell)
            .await
            .map_err(build_failure)?;
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
            eprintln!("{level}{}", line.message);
        }
    }
}

pub(super) async fn list(client: Client, json: bool) -> Result<(), Failure> {
    let templates = client.templates().await.map_err(refused)?;
    if json {
        return print_json(&as_json(&templates)?);
    }
    let mut text = format!(
        "{:<32} {:<20} {:<8} {:>4} {:>10} {:>10} {}\n",
        "NAME", "ID", "ACCESS", "CPUS", "MEMORY", "DISK", "STATE"
    );
    for template in &templates {
        text.push_str(&format!(
            "{:<32} {:<20} {:<8} {:>4} {:>6} MiB {:>6} MiB {}\n",
            template.names.first().map_or("-", String::as_str),
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
    for template in templates {
        client.delete_template(&template).await.map_err(refused)?;
        eprintln!("deleted {template}");
    }
    Ok(())
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
