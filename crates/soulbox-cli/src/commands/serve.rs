//! `soulbox serve`, up to the agent: everything that can be refused is checked here, in this order:
//! settings, root, data directory, credentials, listener.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{process_environment, require_root};
use crate::credentials::{self, Credentials, Secrets};
use crate::failure::Failure;
use crate::settings::{ServeFlags, Settings};

/// When an agent is killed, its front holds the listener until it notices.
const LISTENER_PATIENCE: Duration = Duration::from_secs(2);

/// Run the server
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Config file [default: /etc/soulbox/soulbox.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: ServeFlags,
}

/// All that the agent starts with.
pub struct Start {
    pub settings: Settings,
    pub credentials: Credentials,
    pub secrets: Secrets,
    /// Bound and listening; non-blocking.
    pub listener: TcpListener,
    /// Where figures are told, likewise.
    pub admin_listener: Option<TcpListener>,
}

/// Checks all that can be checked without making a sandbox, and starts logging.
pub fn prepare(arguments: Arguments) -> Result<Start, Failure> {
    let flags = arguments.flags.into_flags();
    let settings = Settings::resolve(arguments.config.as_deref(), &process_environment, &flags)?;
    crate::logging::start(&settings)?;
    require_root("serve")?;
    prepare_data_dir(&settings.data_dir)?;
    let (credentials, secrets) = credentials::load_or_create(&settings.data_dir)?;
    let listener = listen(settings.listen)?;
    let admin_listener = settings.admin_listen.map(listen).transpose()?;
    Ok(Start {
        settings,
        credentials,
        secrets,
        listener,
        admin_listener,
    })
}

/// Makes the data directory unless it is there, and tries to write in it.
pub fn prepare_data_dir(path: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| data_dir_failure(path, "create", error))?;
    let probe = path.join(format!(".probe-{}", std::process::id()));
    fs::write(&probe, "").map_err(|error| data_dir_failure(path, "write in", error))?;
    fs::remove_file(&probe).map_err(|error| data_dir_failure(path, "write in", error))
}

fn data_dir_failure(path: &Path, doing: &str, error: io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull => "free some disk",
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "choose a directory that root can write with --data-dir"
        }
        _ => "choose another one with --data-dir",
    };
    Failure::new(anyhow::Error::new(error).context(format!(
        "failed to {doing} data directory `{}`",
        path.display()
    )))
    .hint(hint)
}

pub fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let bound = bind_soon(address, Instant::now() + LISTENER_PATIENCE).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program has that port: end it, or choose another one with --listen"
            }
            io::ErrorKind::AddrNotAvailable => {
                "this host has no such address: choose another one with --listen"
            }
            _ => "choose another address with --listen",
        };
        Failure::new(anyhow::Error::new(error).context(format!("failed to listen on {address}")))
            .hint(hint)
    })
}

/// Waits for an address that is in use until `deadline`.
fn bind_soon(address: SocketAddr, deadline: Instant) -> io::Result<TcpListener> {
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = taken.local_addr().expect("address");
        let failure = listen(address).expect_err("in use");
        expect![[r#"
            error: failed to listen on ADDRESS: Address already in use (os error 98)
            hint: another program has that port: end it, or choose another one with --listen"#]]
        .assert_eq(&failure.to_string().replace(&address.to_string(), "ADDRESS"));
    }

    #[test]
    fn a_port_that_becomes_free_is_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = taken.local_addr().expect("address");
        let front = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(taken);
        });
        listen(address).expect("free after a moment");
        front.join().expect("ends");
    }

    #[test]
    fn a_data_dir_that_cannot_be_is_named() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let path = file.path().join("data");
        let failure = prepare_data_dir(&path).expect_err("below a file");
        expect![[r#"
            error: failed to create data directory `PATH`: Not a directory (os error 20)
            hint: choose another one with --data-dir"#]]
        .assert_eq(
            &failure
                .to_string()
                .replace(path.to_str().expect("text"), "PATH"),
        );
        let failure =
            prepare_data_dir(Path::new("/proc/soulbox")).expect_err("no directories there");
        assert!(failure.to_string().contains("/proc/soulbox"), "{failure}");
    }

    #[test]
    fn a_data_dir_is_made_for_its_owner_alone() {
        use std::os::unix::fs::MetadataExt;
        let parent = tempfile::tempdir().expect("temporary directory");
        let path = parent.path().join("a/b");
        prepare_data_dir(&path).expect("made");
        prepare_data_dir(&path).expect("there already");
        assert_eq!(fs::metadata(&path).expect("made").mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&path).expect("list").count(), 0);
    }
}
