//! The program that a template wants in every sandbox, such as the code interpreter.
//!
//! `/etc/soulbox/service.json` names it and its port. The port is open before `/init` is answered, so that whoever uses the
//! sandbox at once waits for the program instead of being refused; the program gets the listening socket as its stdin. It runs
//! as root, with the sandbox's variables. When it ends it is started again, and connections wait meanwhile.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use soulbox_sys::process::{Credentials, Program, Session, SpawnError};

use crate::descriptor;
use crate::process::{DEFAULT_PATH, reap, wait};
use crate::settings::Settings;

const DESCRIPTION: &str = "/etc/soulbox/service.json";
/// Before a program that ended is started again: at first, and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A program that ran for so long has started well.
const STEADY: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error("cannot read `{DESCRIPTION}`")]
    Read(#[source] io::Error),
    #[error("`{DESCRIPTION}` describes no service")]
    Description(#[source] serde_json::Error),
    #[error("cannot listen on port {port}")]
    Listen {
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("the service's {what} contains a NUL byte")]
    Nul { what: &'static str },
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("cannot watch the service")]
    Watch(#[source] io::Error),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    /// An absolute path.
    program: String,
    #[serde(default)]
    arguments: Vec<String>,
    /// The sandbox's own variables win.
    #[serde(default)]
    environment: BTreeMap<String, String>,
    port: u16,
}

/// Starts the template's service, if it has one; the first call does, and later ones nothing.
pub(crate) fn start(settings: &Arc<Settings>) -> Result<(), ServiceError> {
    if !settings.begin_service() {
        return Ok(());
    }
    let text = match std::fs::read(DESCRIPTION) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.map_err(ServiceError::Read)?,
    };
    let description: Description =
        serde_json::from_slice(&text).map_err(ServiceError::Description)?;
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, description.port)).map_err(|source| {
            ServiceError::Listen {
                port: description.port,
                source,
            }
        })?;
    let first = spawn(&description, settings, &listener)?;
    let settings = Arc::clone(settings);
    // Lives as long as the daemon, and the sandbox with it.
    tokio::spawn(async move {
        let (mut running, mut pause) = (Some(first), PAUSE);
        loop {
            let since = Instant::now();
            if let Some(pidfd) = running.take() {
                wait(&pidfd).await;
                reap(&pidfd);
            }
            pause = if since.elapsed() < STEADY {
                (pause * 2).min(LONGEST_PAUSE)
            } else {
                PAUSE
            };
            tokio::time::sleep(pause).await;
            // A shortage of processes or memory may pass; there is nobody to tell but those who wait at the port.
            running = spawn(&description, &settings, &listener).ok();
        }
    });
    Ok(())
}

fn spawn(
    description: &Description,
    settings: &Settings,
    listener: &TcpListener,
) -> Result<descriptor::Descriptor, ServiceError> {
    let text =
        |what| move |text: String| CString::new(text).map_err(|_| ServiceError::Nul { what });
    let mut variables: BTreeMap<String, String> = [
        ("PATH", DEFAULT_PATH),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    variables.extend(description.environment.clone());
    variables.extend(settings.variables());
    let program = text("program")(description.program.clone())?;
    let mut arguments = vec![program.clone()];
    for argument in &description.arguments {
        arguments.push(text("argument")(argument.clone())?);
    }
    let inherited: OwnedFd = listener.try_clone().map_err(ServiceError::Watch)?.into();
    let spawned = soulbox_sys::process::spawn(
        Program {
            candidates: vec![program],
            arguments,
            environment: variables
                .iter()
                .map(|(name, value)| text("environment")(format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
            working_directory: c"/".to_owned(),
            credentials: Credentials {
                uid: 0,
                gid: 0,
                groups: Vec::new(),
            },
            name: description.program.clone(),
        },
        Session::Inherited,
        inherited.into(),
        Stdio::null(),
        Stdio::null(),
    )?;
    descriptor::register(spawned.pidfd).map_err(ServiceError::Watch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_names_program_and_port() {
        let read = |text: &str| serde_json::from_str::<Description>(text);
        let description = read(r#"{"program": "/a", "port": 49999}"#).unwrap();
        assert_eq!(
            (description.program.as_str(), description.port),
            ("/a", 49999)
        );
        for bad in [
            r#"{"program": "/a"}"#,
            r#"{"port": 1}"#,
            r#"{"program": "/a", "port": 70000}"#,
            r#"{"program": "/a", "port": 1, "user": "x"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
