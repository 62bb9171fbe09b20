//! Accounts of the sandbox, read from `/etc/passwd` and `/etc/group` by ourselves: a static program has no NSS, and the
//! files may change at any time, so nothing is kept.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Bytes of either that are read; more is an error.
const LONGEST: u64 = 4 << 20;
const O_NONBLOCK: i32 = 0o4000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("cannot read {file}")]
    Read {
        file: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("unknown user '{0}'")]
    Unknown(String),
}

/// Looks a user up by name; numbers are not names.
pub(crate) fn find(name: &str) -> Result<User, UserError> {
    let passwd = read(PASSWD)?;
    passwd
        .lines()
        .filter_map(parse_user)
        .find(|user| user.name == name)
        .ok_or_else(|| UserError::Unknown(name.to_owned()))
}

/// The supplementary groups of `user`, its primary group among them.
pub(crate) fn groups_of(user: &User) -> Result<Vec<u32>, UserError> {
    let text = read(GROUP)?;
    let mut groups = vec![user.gid];
    for line in text.lines() {
        let mut fields = line.split(':');
        let (Some(_), Some(_), Some(gid), Some(members)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Ok(gid) = gid.parse() else { continue };
        if members.split(',').any(|member| member == user.name) && !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    Ok(groups)
}

/// Names of owners and groups, for one listing.
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// An unreadable file gives no names: owners are then shown as numbers.
    pub(crate) fn load() -> Self {
        let passwd = read(PASSWD).unwrap_or_default();
        let group = read(GROUP).unwrap_or_default();
        let mut users = HashMap::new();
        for user in passwd.lines().filter_map(parse_user) {
            users.entry(user.uid).or_insert(user.name);
        }
        let mut groups = HashMap::new();
        for line in group.lines() {
            let mut fields = line.split(':');
            if let (Some(name), Some(_), Some(Ok(gid))) =
                (fields.next(), fields.next(), fields.next().map(str::parse))
            {
                groups.entry(gid).or_insert_with(|| name.to_owned());
            }
        }
        Self { users, groups }
    }

    pub(crate) fn user(&self, uid: u32) -> String {
        self.users
            .get(&uid)
            .cloned()
            .unwrap_or_else(|| uid.to_string())
    }

    pub(crate) fn group(&self, gid: u32) -> String {
        self.groups
            .get(&gid)
            .cloned()
            .unwrap_or_else(|| gid.to_string())
    }

    /// The group of that name, such as `tty`.
    pub(crate) fn gid_of(&self, name: &str) -> Option<u32> {
        self.groups
            .iter()
            .find(|(_, group)| *group == name)
            .map(|(gid, _)| *gid)
    }
}

fn parse_user(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields.as_slice() else {
        return None;
    };
    Some(User {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: (*home).to_owned(),
    })
}

fn read(file: &'static str) -> Result<String, UserError> {
    // Whoever is root inside may put anything in its place: a FIFO must not hold the daemon, nor an endless file fill it.
    let mut bytes = Vec::new();
    File::options()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(file)
        .and_then(|opened| opened.take(LONGEST + 1).read_to_end(&mut bytes))
        .and_then(|length| match length as u64 {
            0..=LONGEST => Ok(()),
            _ => Err(io::ErrorKind::FileTooLarge.into()),
        })
        .map_err(|source| UserError::Read { file, source })?;
    // Comments and real names need not be UTF-8.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_by_name_only() {
        let root = find("root").expect("every system has root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(matches!(find("0"), Err(UserError::Unknown(name)) if name == "0"));
    }

    #[test]
    fn malformed_lines_are_no_users() {
        assert_eq!(parse_user("x:y"), None);
        assert_eq!(parse_user("x:*:a:1:::"), None);
        let user = User {
            name: "u".into(),
            uid: 1000,
            gid: 1001,
            home: "/home/u".into(),
        };
        assert_eq!(
            parse_user("u:x:1000:1001:A,B:/home/u:/bin/bash"),
            Some(user)
        );
    }

    #[test]
    fn unnamed_owners_are_numbers() {
        let names = Names::load();
        assert_eq!(names.user(0), "root");
        assert_eq!(names.user(4_000_000_000), "4000000000");
        assert_eq!(names.group(0), "root");
    }
}
