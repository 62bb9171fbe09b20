//! What a step finds: who runs it, where, with which environment. A function of the steps before it.

use std::collections::BTreeMap;

/// As the next step finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) user: String,
    /// `None` is the user's home.
    pub(crate) workdir: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
}

impl Context {
    /// What a WORKDIR of that argument means here: absolute, without `.`, `..` and doubled slashes.
    pub(crate) fn workdir_of(&self, path: &str) -> String {
        normal(&self.absolute(path, "/"))
    }

    /// Where a COPY of that destination goes. A slash at the end stays: it says that the destination is a folder.
    pub(crate) fn destination(&self, path: &str) -> String {
        let absolute = self.absolute(path, &self.home());
        let mut normal = normal(&absolute);
        let folder = absolute.ends_with('/') || absolute.ends_with("/.");
        if folder && !normal.ends_with('/') {
            normal.push('/');
        }
        normal
    }

    fn absolute(&self, path: &str, without_workdir: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        if let Some(rest) = path.strip_prefix('~')
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return format!("{}{rest}", self.home());
        }
        let from = self.workdir.as_deref().unwrap_or(without_workdir);
        format!("{from}/{path}")
    }

    /// Where the user's home is by custom.
    pub(crate) fn home(&self) -> String {
        match self.user.as_str() {
            "root" => "/root".to_owned(),
            user => format!("/home/{user}"),
        }
    }

    /// The folder that sandboxes of the finished template begin in.
    pub(crate) fn final_workdir(&self) -> String {
        self.workdir.clone().unwrap_or_else(|| self.home())
    }

    /// The environment of a RUN. A login shell of a PATH that the author has set finds the usual programs too.
    pub(crate) fn run_env(&self) -> BTreeMap<String, String> {
        const USUAL: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut env = self.env.clone();
        if let Some(path) = env.get_mut("PATH") {
            let missing: Vec<_> = USUAL
                .split(':')
                .filter(|usual| !path.split(':').any(|part| part == *usual))
                .collect();
            for usual in missing {
                path.push(':');
                path.push_str(usual);
            }
        }
        env
    }

    /// Everything of it in one text, for names of layers.
    pub(crate) fn text(&self) -> String {
        format!("{:?} {:?} {:?}", self.user, self.workdir, self.env)
    }
}

fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(workdir: Option<&str>) -> Context {
        Context {
            user: "user".to_owned(),
            workdir: workdir.map(str::to_owned),
            env: BTreeMap::new(),
        }
    }

    #[test]
    fn folders_join_what_was_before() {
        let check = |workdir, path: &str, expected: &str| {
            assert_eq!(
                context(workdir).workdir_of(path),
                expected,
                "{workdir:?} {path}"
            );
        };
        check(None, "app", "/app");
        check(Some("/srv"), "app/./x//", "/srv/app/x");
        check(Some("/srv"), "../../..", "/");
        check(Some("/srv"), "/abs", "/abs");
        check(None, "~/x", "/home/user/x");
    }

    #[test]
    fn destinations_keep_what_says_that_they_are_folders() {
        let check = |workdir, path: &str, expected: &str| {
            assert_eq!(
                context(workdir).destination(path),
                expected,
                "{workdir:?} {path}"
            );
        };
        check(None, "a.txt", "/home/user/a.txt");
        check(None, ".", "/home/user/");
        check(Some("/app"), "./", "/app/");
        check(Some("/app"), "b", "/app/b");
        check(Some("/app"), "/etc/", "/etc/");
        check(None, "/", "/");
        check(None, "~/b/", "/home/user/b/");
        check(None, "~bob", "/home/user/~bob");
    }

    #[test]
    fn a_path_of_the_author_keeps_the_usual_programs() {
        let mut context = context(None);
        assert_eq!(context.run_env(), BTreeMap::new());
        context
            .env
            .insert("PATH".into(), "/opt/bin:/usr/bin".into());
        assert_eq!(
            context.run_env()["PATH"],
            "/opt/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin"
        );
    }
}
