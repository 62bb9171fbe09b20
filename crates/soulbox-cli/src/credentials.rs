//! The secrets of an installation: made at the first start, never replaced by the program.
//!
//! | file, mode 0600 | contains | made |
//! |---|---|---|
//! | `<data>/secrets.json` | the key of all token HMACs | first |
//! | `<data>/credentials.json` | keys of the default team and of the administrator | after it |
//!
//! So credentials without secrets are a loss, which is reported, and secrets without credentials are a first start that was
//! interrupted, which goes on. A file that cannot be read is reported too: replacing it would lock out everybody who holds a key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::secret_file::{self, SecretFileError};

/// What people and programs authenticate with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// `e2b_` and 40 hex digits.
    pub api_key: String,
    /// `sk_e2b_` and 40 hex digits.
    pub access_token: String,
    /// 64 hex digits.
    pub admin_token: String,
}

/// What only the server knows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// 64 hex digits: 32 bytes, the key of the HMACs that make envd and traffic tokens.
    pub token_seed: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("there are no credentials in `{data}`")]
    Absent { data: PathBuf },
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error("`{path}` is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("`{credentials}` is there and `{secrets}` is missing")]
    SecretsLost {
        credentials: PathBuf,
        secrets: PathBuf,
    },
    #[error("failed to write `{path}`")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the system has no random numbers: {0}")]
    Random(getrandom::Error),
}

impl CredentialsError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Absent { .. } => "the first start of soulbox serve makes them; name its data directory with --data-dir".into(),
            Self::File(SecretFileError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                "they are for root: use sudo, or hand the keys on yourself".into()
            }
            Self::File(error) => return error.hint(),
            Self::Damaged { path, .. } => {
                format!("restore it from a backup, or remove {} to have new keys made", path.display())
            }
            Self::SecretsLost { credentials, .. } => {
                format!("restore it from a backup, or remove {} too to have all made anew", credentials.display())
            }
            Self::Write { .. } => "the data directory must be writable and its disk not full".into(),
            Self::Random(_) => return None,
        })
    }
}

impl From<CredentialsError> for Failure {
    fn from(error: CredentialsError) -> Self {
        let hint = error.hint();
        Self::new(error).hint_if(hint)
    }
}

impl Credentials {
    /// Reads the credentials of a data directory.
    pub fn load(data: &Path) -> Result<Self, CredentialsError> {
        let path = data.join("credentials.json");
        let read: Option<Self> = read(&path)?;
        let found = read.ok_or_else(|| CredentialsError::Absent {
            data: data.to_owned(),
        })?;
        for (name, value, prefix, digits) in [
            ("api_key", &found.api_key, "e2b_", 40),
            ("access_token", &found.access_token, "sk_e2b_", 40),
            ("admin_token", &found.admin_token, "", 64),
        ] {
            check_hex(&path, name, value, prefix, digits)?;
        }
        Ok(found)
    }

    fn random() -> Result<Self, CredentialsError> {
        Ok(Self {
            api_key: format!("e2b_{}", random_hex(20)?),
            access_token: format!("sk_e2b_{}", random_hex(20)?),
            admin_token: random_hex(32)?,
        })
    }
}

/// Reads both files of a data directory, or makes them at the first start. For the one server of that directory.
pub fn load_or_create(data: &Path) -> Result<(Credentials, Secrets), CredentialsError> {
    let (credentials_path, secrets_path) =
        (data.join("credentials.json"), data.join("secrets.json"));
    let secrets = match read::<Secrets>(&secrets_path)? {
        Some(secrets) => {
            check_hex(&secrets_path, "token_seed", &secrets.token_seed, "", 64)?;
            secrets
        }
        None if credentials_path.exists() => {
            return Err(CredentialsError::SecretsLost {
                credentials: credentials_path,
                secrets: secrets_path,
            });
        }
        None => {
            let secrets = Secrets {
                token_seed: random_hex(32)?,
            };
            write_new(&secrets_path, &secrets)?;
            secrets
        }
    };
    match Credentials::load(data) {
        Err(CredentialsError::Absent { .. }) => {
            let credentials = Credentials::random()?;
            write_new(&credentials_path, &credentials)?;
            Ok((credentials, secrets))
        }
        loaded => Ok((loaded?, secrets)),
    }
}

/// None when there is no such file.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CredentialsError> {
    let text = match secret_file::read(path) {
        Err(error) if error.is_absent() => return Ok(None),
        other => other?,
    };
    // serde's messages quote no values here, so no secret gets into the error.
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| CredentialsError::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

fn check_hex(
    path: &Path,
    name: &str,
    value: &str,
    prefix: &str,
    digits: usize,
) -> Result<(), CredentialsError> {
    let valid = value.strip_prefix(prefix).is_some_and(|hex| {
        hex.len() == digits
            && hex
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    });
    if valid {
        return Ok(());
    }
    let reason = format!("{name} is not {prefix}<{digits} hex digits>");
    Err(CredentialsError::Damaged {
        path: path.to_owned(),
        reason,
    })
}

fn random_hex(bytes: usize) -> Result<String, CredentialsError> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(CredentialsError::Random)?;
    Ok(hex::encode(random))
}

/// Writes a file that appears whole or not at all, and never over another one.
fn write_new<T: Serialize>(path: &Path, value: &T) -> Result<(), CredentialsError> {
    let temporary = path.with_extension(format!("json.{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        serde_json::to_writer_pretty(&mut file, value)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        renameat_with(CWD, &temporary, CWD, path, RenameFlags::NOREPLACE)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        CredentialsError::Write {
            path: path.to_owned(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn data() -> tempfile::TempDir {
        tempfile::tempdir().expect("temporary directory")
    }

    #[test]
    fn the_first_start_makes_them_and_the_second_keeps_them() {
        let data = data();
        assert!(matches!(
            Credentials::load(data.path()),
            Err(CredentialsError::Absent { .. })
        ));
        let (credentials, secrets) = load_or_create(data.path()).expect("create");
        let (again, secrets_again) = load_or_create(data.path()).expect("load");
        assert!(credentials == again && secrets == secrets_again);
        assert!(Credentials::load(data.path()).expect("load") == credentials);
        assert!(credentials.api_key.starts_with("e2b_") && credentials.api_key.len() == 44);
        assert!(
            credentials.access_token.starts_with("sk_e2b_") && credentials.access_token.len() == 47
        );
        for name in ["credentials.json", "secrets.json"] {
            let mode = fs::metadata(data.path().join(name)).expect("file").mode();
            assert_eq!(mode & 0o7777, 0o600, "{name}");
        }
        assert_eq!(
            fs::read_dir(data.path()).expect("list").count(),
            2,
            "no temporary file stays"
        );
    }

    #[test]
    fn half_written_files_are_reported_and_kept() {
        for name in ["credentials.json", "secrets.json"] {
            for cut in [0, 1, 20, 60] {
                let data = data();
                load_or_create(data.path()).expect("create");
                let path = data.path().join(name);
                let half = fs::read(&path).expect("read")[..cut].to_vec();
                fs::write(&path, &half).expect("cut");
                let error = load_or_create(data.path()).err().expect("damaged");
                assert!(
                    matches!(error, CredentialsError::Damaged { .. }),
                    "{name} {cut}: {error}"
                );
                assert!(error.hint().is_some_and(|hint| hint.contains(name)));
                assert_eq!(fs::read(&path).expect("read"), half, "left as it was");
            }
        }
    }

    #[test]
    fn values_of_another_shape_are_damage() {
        let data = data();
        load_or_create(data.path()).expect("create");
        let path = data.path().join("credentials.json");
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, text.replace("\"e2b_", "\"e2c_")).expect("write");
        let error = Credentials::load(data.path()).err().expect("damaged");
        assert!(
            error
                .to_string()
                .ends_with("is damaged: api_key is not e2b_<40 hex digits>"),
            "{error}"
        );
    }

    #[test]
    fn lost_secrets_are_not_made_anew() {
        let data = data();
        load_or_create(data.path()).expect("create");
        fs::remove_file(data.path().join("secrets.json")).expect("remove");
        assert!(matches!(
            load_or_create(data.path()),
            Err(CredentialsError::SecretsLost { .. })
        ));
    }

    #[test]
    fn an_interrupted_first_start_goes_on() {
        let data = data();
        let (_, secrets) = load_or_create(data.path()).expect("create");
        fs::remove_file(data.path().join("credentials.json")).expect("remove");
        let (_, again) = load_or_create(data.path()).expect("goes on");
        assert!(secrets == again);
    }

    #[test]
    fn files_that_others_can_read_are_refused() {
        let data = data();
        load_or_create(data.path()).expect("create");
        let path = data.path().join("credentials.json");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(
            Credentials::load(data.path()),
            Err(CredentialsError::File(SecretFileError::Exposed {
                mode: 0o644,
                ..
            }))
        ));
    }
}
