//! How paths of requests are understood. All file operations run as root; the user only decides what a relative path
//! is relative to.

use crate::users::User;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("cannot expand user-specific home dir in '{0}'")]
    ForeignHome(String),
    #[error("path '{0}' contains a NUL byte")]
    Nul(String),
}

/// The absolute path that `path` means for `user`. An empty one is `default_workdir`, or the home when there is none.
/// Absolute paths are kept as they are, uncleaned.
pub(crate) fn resolve(
    path: &str,
    user: &User,
    default_workdir: Option<&str>,
) -> Result<String, PathError> {
    if path.contains('\0') {
        return Err(PathError::Nul(path.replace('\0', "\\0")));
    }
    let path = if path.is_empty() {
        default_workdir.unwrap_or_default()
    } else {
        path
    };
    if let Some(rest) = path.strip_prefix('~') {
        return match rest.strip_prefix('/') {
            Some(rest) => Ok(clean(&format!("{}/{rest}", user.home))),
            None if rest.is_empty() => Ok(clean(&user.home)),
            None => Err(PathError::ForeignHome(path.to_owned())),
        };
    }
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    Ok(clean(&format!("{}/{path}", user.home)))
}

/// Removes empty, `.` and `..` segments by their spelling alone. The result is absolute.
pub(crate) fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    format!("/{}", segments.join("/"))
}

/// The last component, `/` for the root.
pub(crate) fn name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        None | Some("") => "/",
        Some(name) => name,
    }
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rfind('/') {
        None | Some(0) => "/",
        Some(at) => &trimmed[..at],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, workdir: Option<&str>, expected: Result<&str, PathError>) {
        let user = User {
            name: "user".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/user".into(),
        };
        assert_eq!(
            resolve(path, &user, workdir),
            expected.map(str::to_owned),
            "{path}"
        );
    }

    #[test]
    fn paths_resolve_against_the_home() {
        check("a/../b", None, Ok("/home/user/b"));
        check("./a//b/", None, Ok("/home/user/a/b"));
        check("../../../x", None, Ok("/x"));
        check("~", None, Ok("/home/user"));
        check("~/x", None, Ok("/home/user/x"));
        check("~bob/x", None, Err(PathError::ForeignHome("~bob/x".into())));
        check("/a/../b", None, Ok("/a/../b"));
        check("a\0b", None, Err(PathError::Nul("a\\0b".into())));
    }

    #[test]
    fn working_directory_counts_for_the_empty_path_only() {
        check("", Some("/work"), Ok("/work"));
        check("", None, Ok("/home/user"));
        check("x", Some("/work"), Ok("/home/user/x"));
    }

    #[test]
    fn names_and_parents() {
        for (path, expected_name, expected_parent) in [
            ("/a/b", "b", "/a"),
            ("/a/b/", "b", "/a"),
            ("/a", "a", "/"),
            ("/", "/", "/"),
        ] {
            assert_eq!(
                (name(path), parent(path)),
                (expected_name, expected_parent),
                "{path}"
            );
        }
    }
}
