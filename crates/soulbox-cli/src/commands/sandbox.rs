//! `soulbox sandbox`: what the official command line has no word for.

use anyhow::anyhow;
use soulbox_client::{Client, ClientError, Place};

use super::{Installation, block_on, env};
use crate::credentials::Credentials;
use crate::failure::Failure;
use crate::settings::{Setting, Settings};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Take a running sandbox back to its latest snapshot
    Undo {
        sandbox_id: String,
        #[command(flatten)]
        server: Server,
    },
    /// Take a running sandbox back to one of its snapshots
    Rollback {
        sandbox_id: String,
        snapshot_id: String,
        #[command(flatten)]
        server: Server,
    },
}

/// Which server is asked: that of E2B_API_URL and E2B_API_KEY, or else of this installation.
#[derive(Debug, clap::Args)]
pub struct Server {
    #[command(flatten)]
    installation: Installation,
    /// Address that the server listens on [default: as configured, else 127.0.0.1:3000]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
}

pub fn run(command: Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Undo { sandbox_id, server } => {
                let client = server.client()?;
                let newest = client.latest_snapshot(&sandbox_id).await.map_err(refused)?;
                let Some(snapshot) = newest else {
                    let none = anyhow!("sandbox {sandbox_id} has no snapshot");
                    return Err(Failure::new(none).hint(format!(
                        "make one before what may have to be undone: e2b sandbox snapshot create {sandbox_id}"
                    )));
                };
                rollback(&client, &sandbox_id, &snapshot.snapshot_id).await
            }
            Command::Rollback {
                sandbox_id,
                snapshot_id,
                server,
            } => rollback(&server.client()?, &sandbox_id, &snapshot_id).await,
        }
    })
}

async fn rollback(client: &Client, sandbox_id: &str, snapshot_id: &str) -> Result<(), Failure> {
    let done = client.rollback(sandbox_id, snapshot_id).await;
    done.map_err(refused)?;
    eprintln!("sandbox {sandbox_id} goes on from snapshot {snapshot_id}");
    Ok(())
}

pub(super) fn refused(error: ClientError) -> Failure {
    let hint = match &error {
        ClientError::Send { .. } => Some("is the server running? see soulbox serve"),
        ClientError::Refused { status, .. } if status.as_u16() == 401 => Some(
            "is E2B_API_KEY a key of this server? soulbox env prints those of its own installation",
        ),
        _ => None,
    };
    Failure::new(error).hint_if(hint)
}

/// The template of a sandbox in which code is to run: that of the flag, or of SOULBOX_TEMPLATE as our packages read it.
pub(super) fn interpreter_template(flag: Option<String>) -> String {
    flag.or_else(|| variable("SOULBOX_TEMPLATE"))
        .unwrap_or_else(|| "code-interpreter-v1".to_owned())
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

impl Server {
    pub(super) fn client(&self) -> Result<Client, Failure> {
        self.sandboxes().map(|(client, _)| client)
    }

    /// The API, and where its sandboxes are.
    pub(super) fn sandboxes(&self) -> Result<(Client, Place), Failure> {
        let (api, key, place) = match (variable("E2B_API_URL"), variable("E2B_API_KEY")) {
            (Some(api), Some(key)) if self.listen.is_none() => {
                let place = match (variable("E2B_SANDBOX_URL"), variable("E2B_DOMAIN")) {
                    (Some(url), _) => Place::Shared(url),
                    (None, Some(domain)) => Place::Domain(domain),
                    // One listener serves both.
                    (None, None) => Place::Shared(api.clone()),
                };
                (api, key, place)
            }
            _ => {
                let settings = self.settings()?;
                let credentials = Credentials::load(&settings.data_dir)?;
                let (api, sandbox) = env::urls(&settings);
                (api, credentials.api_key, Place::Shared(sandbox))
            }
        };
        let client = Client::new(&api, &key)
            .map_err(|error| Failure::usage(error).hint("see soulbox env"))?;
        Ok((client, place))
    }

    pub(super) fn settings(&self) -> Result<Settings, Failure> {
        let listen = self.listen.clone().map(|value| (Setting::Listen, value));
        // Nothing is opened here, so the rule against plain text on an open address has no say.
        let insecure = Some((Setting::Insecure, "true".to_owned()));
        self.installation
            .clone()
            .settings(listen.into_iter().chain(insecure))
    }
}
