//! `soulbox admin`: teams and their API keys, and copies of snapshots. For teams and keys it works on the database itself, so it needs no
//! running server; one that runs hears of a change within a second. A key is shown once, when it is made; kept is its hash.

mod snapshot;

use std::io::Write;
use std::sync::Arc;

use anyhow::anyhow;
use serde_json::{Value, json};
use soulbox_control::{
    KeyError, KeyRow, NewKey, Store, StoreError, TeamRow, new_api_key, new_team,
};

use super::db::Records;
use super::{Installation, require_root};
use crate::failure::Failure;
use snapshot::SnapshotCommand;

/// Manage teams and API keys
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Teams: create, list, ban, block, limit
    #[command(subcommand)]
    Team(TeamCommand),
    /// API keys of a team: create, list, revoke
    #[command(subcommand)]
    Key(KeyCommand),
    /// Snapshots: list, seal, drop the local copy, collect the store
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// What all of these commands take.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    #[command(flatten)]
    installation: Installation,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
pub enum TeamCommand {
    /// Make a team
    Create {
        #[command(flatten)]
        common: Common,
        /// Its namespace of template names: letters, digits, - and _
        slug: String,
        /// [default: the slug]
        #[arg(long)]
        name: Option<String>,
        /// Sandboxes at once [default: the server's setting]
        #[arg(long, value_name = "N")]
        max_sandboxes: Option<Limit>,
        /// Longest life of a sandbox [default: the server's setting]
        #[arg(long, value_name = "HOURS")]
        max_sandbox_hours: Option<Limit>,
    },
    /// Show all teams
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Refuse every request of a team
    Ban(OneTeam),
    /// Lift a ban
    Unban(OneTeam),
    /// Let a team look and clean up, but not create or change
    Block {
        #[command(flatten)]
        team: OneTeam,
        /// Told to the team
        #[arg(long)]
        reason: Option<String>,
    },
    /// Lift a block
    Unblock(OneTeam),
    /// Set limits of a team; `default` is the server's setting
    Limit {
        #[command(flatten)]
        team: OneTeam,
        /// Sandboxes at once
        #[arg(long, value_name = "N")]
        max_sandboxes: Option<Limit>,
        /// Longest life of a sandbox
        #[arg(long, value_name = "HOURS")]
        max_sandbox_hours: Option<Limit>,
    },
}

#[derive(Debug, clap::Subcommand)]
pub enum KeyCommand {
    /// Make an API key and print it
    Create {
        #[command(flatten)]
        team: OneTeam,
        #[arg(long)]
        name: String,
    },
    /// Show the API keys of a team, masked
    List(OneTeam),
    /// Make a key useless
    Revoke {
        #[command(flatten)]
        team: OneTeam,
        /// Its ID, as list shows it
        key_id: String,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub struct OneTeam {
    #[command(flatten)]
    common: Common,
    /// Slug or ID of the team
    team: String,
}

/// A limit of a team.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    Default,
    At(u32),
}

impl std::str::FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            _ => match text.parse() {
                Ok(0) | Err(_) => Err("give a number from 1, or default".to_owned()),
                Ok(limit) => Ok(Self::At(limit)),
            },
        }
    }
}

impl Limit {
    fn value(self) -> Option<u32> {
        match self {
            Self::Default => None,
            Self::At(limit) => Some(limit),
        }
    }
}

pub fn run(command: Command) -> Result<(), Failure> {
    require_root("admin")?;
    match command {
        Command::Snapshot(command) => snapshot::run(&command),
        Command::Team(command) => {
            let common = team_common(&command).clone();
            on_records(common, async |store| team(store, command).await)
        }
        Command::Key(command) => {
            let common = key_common(&command).clone();
            on_records(common, async |store| key(store, command).await)
        }
    }
}

fn on_records(
    common: Common,
    work: impl AsyncFnOnce(&dyn Store) -> Result<Shown, Failure>,
) -> Result<(), Failure> {
    let settings = common.installation.settings(None)?;
    super::block_on(async {
        let records = Records::open_as_is(&settings).await?;
        let store: Arc<dyn Store> = match &records {
            Records::Here(store) => Arc::new(store.clone()),
            Records::Elsewhere(store) => Arc::new(store.clone()),
        };
        let shown = work(&*store).await;
        let announced = match &shown {
            Ok(_) => records.announce().await,
            Err(_) => Ok(()),
        };
        records.close().await;
        let shown = shown?;
        announced?;
        print(&shown, common.json)
    })
}

fn team_common(command: &TeamCommand) -> &Common {
    match command {
        TeamCommand::Create { common, .. } | TeamCommand::List { common } => common,
        TeamCommand::Ban(team)
        | TeamCommand::Unban(team)
        | TeamCommand::Unblock(team)
        | TeamCommand::Block { team, .. }
        | TeamCommand::Limit { team, .. } => &team.common,
    }
}

fn key_common(command: &KeyCommand) -> &Common {
    match command {
        KeyCommand::Create { team, .. }
        | KeyCommand::List(team)
        | KeyCommand::Revoke { team, .. } => &team.common,
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(error)
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::new(error)
    }
}

/// What a command prints: as JSON, or as lines.
struct Shown {
    json: Value,
    lines: Vec<String>,
}

async fn team(store: &dyn Store, command: TeamCommand) -> Result<Shown, Failure> {
    match command {
        TeamCommand::Create {
            slug,
            name,
            max_sandboxes,
            max_sandbox_hours,
            ..
        } => {
            let team = new_team(&slug, name.as_deref().unwrap_or(&slug))
                .map_err(|error| Failure::usage(error).hint("such as acme or acme-2"))?;
            let team = TeamRow {
                max_sandboxes: max_sandboxes.and_then(Limit::value),
                max_sandbox_hours: max_sandbox_hours.and_then(Limit::value),
                ..team
            };
            let there = store.ensure_team(&team).await?;
            if there.team_id == team.team_id {
                return Ok(teams(&[there], true));
            }
            Err(Failure::new(anyhow!("there is a team `{slug}` already"))
                .hint("soulbox admin team list shows them"))
        }
        TeamCommand::List { .. } => Ok(teams(&store.teams().await?, false)),
        TeamCommand::Ban(team) => change(store, &team, |row| row.banned = true).await,
        TeamCommand::Unban(team) => change(store, &team, |row| row.banned = false).await,
        TeamCommand::Block { team, reason } => {
            let block = |row: &mut TeamRow| {
                row.blocked = true;
                row.blocked_reason = reason;
            };
            change(store, &team, block).await
        }
        TeamCommand::Unblock(team) => {
            let unblock = |row: &mut TeamRow| {
                row.blocked = false;
                row.blocked_reason = None;
            };
            change(store, &team, unblock).await
        }
        TeamCommand::Limit {
            team,
            max_sandboxes,
            max_sandbox_hours,
        } => {
            let limit = |row: &mut TeamRow| {
                if let Some(limit) = max_sandboxes {
                    row.max_sandboxes = limit.value();
                }
                if let Some(limit) = max_sandbox_hours {
                    row.max_sandbox_hours = limit.value();
                }
            };
            change(store, &team, limit).await
        }
    }
}

async fn change(
    store: &dyn Store,
    team: &OneTeam,
    how: impl FnOnce(&mut TeamRow),
) -> Result<Shown, Failure> {
    let mut row = find(store, &team.team).await?;
    how(&mut row);
    if store.update_team(&row).await? {
        Ok(teams(&[row], true))
    } else {
        Err(no_team(&team.team))
    }
}

async fn key(store: &dyn Store, command: KeyCommand) -> Result<Shown, Failure> {
    match command {
        KeyCommand::Create { team, name } => {
            if name.trim().is_empty() {
                return Err(
                    Failure::usage(anyhow!("a key needs a name")).hint("such as --name laptop")
                );
            }
            let team = find(store, &team.team).await?;
            let NewKey { row, secret } = new_api_key(&team.team_id, &name)?;
            store.insert_api_key(&row).await?;
            let mut json = shown_key(&row);
            json["key"] = Value::from(secret.clone());
            Ok(Shown {
                json,
                lines: vec![secret],
            })
        }
        KeyCommand::List(team) => {
            let team = find(store, &team.team).await?;
            let keys = store.api_keys(&team.team_id).await?;
            Ok(Shown {
                json: keys.iter().map(shown_key).collect::<Vec<_>>().into(),
                lines: keys
                    .iter()
                    .map(|key| {
                        let hidden = key.value_length.saturating_sub(6) as usize;
                        let used = key
                            .last_used_at
                            .map_or("never".to_owned(), |at| format!("{} ms", at.0));
                        format!(
                            "{}  {}{}{}{}  {}  last used {used}",
                            key.key_id,
                            key.prefix,
                            key.mask_prefix,
                            "*".repeat(hidden),
                            key.mask_suffix,
                            key.name,
                        )
                    })
                    .collect(),
            })
        }
        KeyCommand::Revoke { team, key_id } => {
            let slug = team.team;
            let team = find(store, &slug).await?;
            if store.delete_api_key(&team.team_id, &key_id).await? {
                return Ok(Shown {
                    json: json!({ "revoked": key_id }),
                    lines: vec![format!("revoked {key_id}")],
                });
            }
            Err(Failure::new(anyhow!("team `{slug}` has no key `{key_id}`"))
                .hint("soulbox admin key list shows them"))
        }
    }
}

async fn find(store: &dyn Store, slug_or_id: &str) -> Result<TeamRow, Failure> {
    let found = store
        .teams()
        .await?
        .into_iter()
        .find(|team| team.slug == slug_or_id || team.team_id.as_str() == slug_or_id);
    found.ok_or_else(|| no_team(slug_or_id))
}

fn no_team(slug_or_id: &str) -> Failure {
    Failure::new(anyhow!("there is no team `{slug_or_id}`"))
        .hint("soulbox admin team list shows them")
}

fn teams(rows: &[TeamRow], one: bool) -> Shown {
    let shown: Vec<_> = rows.iter().map(shown_team).collect();
    let json = match (one, shown.first()) {
        (true, Some(only)) => only.clone(),
        _ => Value::from(shown),
    };
    let line = |team: &TeamRow| {
        let state = match (team.banned, team.blocked, &team.blocked_reason) {
            (true, _, _) => "banned".to_owned(),
            (false, true, Some(reason)) => format!("blocked: {reason}"),
            (false, true, None) => "blocked".to_owned(),
            (false, false, _) => "active".to_owned(),
        };
        let limit = |limit: Option<u32>| limit.map_or("default".to_owned(), |it| it.to_string());
        format!(
            "{}  {}  {state}  sandboxes {}, hours {}",
            team.team_id,
            team.slug,
            limit(team.max_sandboxes),
            limit(team.max_sandbox_hours)
        )
    };
    Shown {
        json,
        lines: rows.iter().map(line).collect(),
    }
}

fn shown_team(team: &TeamRow) -> Value {
    json!({
        "team_id": team.team_id.as_str(),
        "slug": team.slug,
        "name": team.name,
        "banned": team.banned,
        "blocked": team.blocked,
        "blocked_reason": team.blocked_reason,
        "max_sandboxes": team.max_sandboxes,
        "max_sandbox_hours": team.max_sandbox_hours,
        "created_at": team.created_at.0,
    })
}

fn shown_key(key: &KeyRow) -> Value {
    json!({
        "key_id": key.key_id,
        "name": key.name,
        "prefix": key.prefix,
        "value_length": key.value_length,
        "mask_prefix": key.mask_prefix,
        "mask_suffix": key.mask_suffix,
        "created_at": key.created_at.0,
        "last_used_at": key.last_used_at.map(|at| at.0),
    })
}

fn print(shown: &Shown, json: bool) -> Result<(), Failure> {
    let text = if json {
        shown.json.to_string()
    } else {
        shown.lines.join("\n")
    };
    if text.is_empty() {
        return Ok(());
    }
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Failure::new(error).hint("stdout must be open"))
}
