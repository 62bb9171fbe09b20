//! Making directories that belong to a user, whoever the daemon is.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;

use crate::path::clean;
use crate::users::User;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error("path is a file: {0}")]
    IsFile(String),
    #[error("cannot look at '{path}'")]
    Stat {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot create directory '{path}'")]
    Create {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot give directory '{path}' to its user")]
    Chown {
        path: String,
        #[source]
        source: io::Error,
    },
}

impl DirectoryError {
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::IsFile(_) => None,
            Self::Stat { source, .. }
            | Self::Create { source, .. }
            | Self::Chown { source, .. } => Some(source),
        }
    }
}

/// Makes `path` and what is missing above it. New directories are 0755 and the user's; existing ones stay as they are.
pub(crate) fn create_owned(path: &str, user: &User) -> Result<(), DirectoryError> {
    let path = clean(path);
    if Path::new(&path).is_dir() {
        return Ok(());
    }
    let ends = path
        .match_indices('/')
        .map(|(at, _)| at)
        .filter(|at| *at > 0)
        .chain([path.len()]);
    for end in ends {
        let component = &path[..end];
        match fs::metadata(component) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(DirectoryError::IsFile(component.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_one(component, user)?,
            Err(source) => {
                return Err(DirectoryError::Stat {
                    path: component.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(())
}

fn create_one(path: &str, user: &User) -> Result<(), DirectoryError> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => {
            chown(path, Some(user.uid), Some(user.gid)).map_err(|source| DirectoryError::Chown {
                path: path.to_owned(),
                source,
            })
        }
        // Another request was faster; the directory is its user's.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && Path::new(path).is_dir() => {
            Ok(())
        }
        Err(source) => Err(DirectoryError::Create {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn new_directories_belong_to_the_user_and_old_ones_stay() {
        let root = tempfile::tempdir().expect("tempdir");
        let user = User {
            name: "u".into(),
            uid: 4321,
            gid: 4322,
            home: "/".into(),
        };
        let path = format!("{}/a/./b//c", root.path().display());
        create_owned(&path, &user).expect("creates");
        create_owned(&path, &user).expect("is there already");
        let made = fs::metadata(root.path().join("a/b/c")).expect("stat");
        assert_eq!(
            (made.uid(), made.gid(), made.mode() & 0o777),
            (4321, 4322, 0o755)
        );
        assert_eq!(fs::metadata(root.path()).expect("stat").uid(), 0);

        fs::write(root.path().join("a/file"), "").expect("write");
        let below = format!("{}/a/file/x", root.path().display());
        assert!(
            matches!(create_owned(&below, &user), Err(DirectoryError::IsFile(path)) if path.ends_with("/a/file"))
        );
    }
}
