//! What a build begins with: images by the names that people write, and builds.

use crate::bench::KnownBuild;

/// What to do with an image that is not here as such, but something near it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImagePolicy {
    /// Begin with what is near, and say so in the build's log.
    #[default]
    Alias,
    /// It is not found.
    Strict,
}

/// An image, and which template of the installation has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found<'known> {
    pub(crate) build: &'known KnownBuild,
    /// For the log, where it is not the image itself.
    pub(crate) warning: Option<String>,
    /// What the image itself says in its environment.
    pub(crate) env: &'static [(&'static str, &'static str)],
}

const PATH: (&str, &str) = (
    "PATH",
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
);
/// Of the images of Docker Hub, as far as it is true of what stands for them. The patch release of Python is Debian's, so it is not told.
const ENVIRONMENTS: &[(&str, &[(&str, &str)])] = &[
    ("python", &[PATH, ("LANG", "C.UTF-8")]),
    ("node", &[PATH, ("YARN_VERSION", "1.22.19")]),
];

/// How near a template is to an image.
enum Nearness {
    /// The same distribution or language, of the same version.
    Same,
    /// What it is instead, for the warning.
    Near(&'static str),
}

const BASE: &str = "base";
/// What `base` is made of.
const BASE_IS: &str = "Debian 12 with Python 3.11 and Node.js 20 and 22";

/// The template that stands for an image.
///
/// # Errors
/// The text that a client gets to read.
pub(crate) fn find<'known>(
    image: &str,
    templates: &'known [KnownBuild],
    policy: ImagePolicy,
) -> Result<Found<'known>, String> {
    let missing =
        || format!("image '{image}' not found: the image or tag does not exist in the registry");
    let known = |name| templates.iter().find(|template| template.name == name);
    let (build, nearness) = meanings(image)
        .into_iter()
        .find_map(|(name, nearness)| Some((known(name)?, nearness)))
        .ok_or_else(missing)?;
    let name = &build.name;
    let warning = match nearness {
        Nearness::Same => None,
        Nearness::Near(_) if policy == ImagePolicy::Strict => return Err(missing()),
        Nearness::Near(what) => Some(format!(
            "image '{image}' is not in the local store, '{name}' is used instead: {what}"
        )),
    };
    let env = ENVIRONMENTS
        .iter()
        .find(|(name, _)| hub_name(image).split(':').next() == Some(name))
        .map_or(&[][..], |(_, env)| env);
    Ok(Found {
        build,
        warning,
        env,
    })
}

/// A registry's host has a dot or a port, and only Docker Hub's own name means what no host means.
fn hub_name(image: &str) -> &str {
    ["docker.io/library/", "docker.io/", "library/"]
        .iter()
        .find_map(|prefix| image.strip_prefix(prefix))
        .unwrap_or(image)
}

/// The templates that an image may mean, best first; none: it is no image that anything here is near to.
fn meanings(image: &str) -> Vec<(&'static str, Nearness)> {
    use Nearness::{Near, Same};
    let image = hub_name(image);
    // A digest names one image and no other.
    if image.contains('@') {
        return Vec::new();
    }
    let (name, tag) = image.split_once(':').unwrap_or((image, "latest"));
    let version = tag.split('-').next().unwrap_or(tag);
    let is = |exact: &[&str]| exact.contains(&version);
    let of = |major: &str| version == major || version.starts_with(&format!("{major}."));
    let meanings = match name {
        "e2bdev/base" | "base" if tag == "latest" => vec![(BASE, Same)],
        "e2bdev/code-interpreter" if tag == "latest" => vec![("code-interpreter-v1", Same)],
        "debian" if is(&["12", "bookworm"]) || of("12") => vec![(BASE, Same)],
        "python" if of("3.11") => vec![(BASE, Same)],
        "node" if of("20") || is(&["iron"]) => vec![(BASE, Same)],
        "node" if of("22") || is(&["jod"]) => vec![("node22", Same), (BASE, Near(BASE_IS))],
        "debian" | "ubuntu" | "buildpack" | "python" | "node" => vec![(BASE, Near(BASE_IS))],
        "oven/bun" if is(&["latest", "alpine", "slim", "debian"]) || of("1") => {
            vec![("bun", Same)]
        }
        "oven/bun" => vec![("bun", Near("Bun 1"))],
        "denoland/deno" if is(&["latest", "debian", "ubuntu", "alpine"]) || of("2") => {
            vec![("deno", Same)]
        }
        "denoland/deno" => vec![("deno", Near("Deno 2"))],
        _ => Vec::new(),
    };
    // A tag that cannot be one is no image of anybody's.
    let valid = !tag.is_empty()
        && tag.len() <= 128
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    match valid {
        true => meanings,
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use soulbox_types::{Limits, MiB, MilliCpu};

    fn known(name: &str) -> KnownBuild {
        KnownBuild {
            name: name.to_owned(),
            template_id: "t".to_owned(),
            build_id: "b".to_owned(),
            layers: Vec::new(),
            limits: Limits {
                memory: MiB(1),
                cpu: MilliCpu(1),
                pids: 1,
                disk: MiB(1),
            },
            default_user: "user".to_owned(),
            default_workdir: "/home/user".to_owned(),
            env: Default::default(),
            start_command: None,
            ready_command: None,
            started: None,
        }
    }

    #[test]
    fn images_are_found_by_the_names_that_people_write() {
        let all = [known("base"), known("code-interpreter-v1")];
        let name = |image: &str, policy| {
            let found = find(image, &all, policy).ok()?;
            Some((found.build.name.as_str(), found.warning.is_some()))
        };
        for same in [
            "e2bdev/base",
            "e2bdev/base:latest",
            "debian:12",
            "debian:bookworm-slim",
            "python:3.11",
            "python:3.11.6-slim",
            "node:20",
            "docker.io/library/node:20.9.0",
        ] {
            for policy in [ImagePolicy::Alias, ImagePolicy::Strict] {
                assert_eq!(name(same, policy), Some(("base", false)), "{same}");
            }
        }
        let interpreter = name("e2bdev/code-interpreter", ImagePolicy::Strict);
        assert_eq!(interpreter, Some(("code-interpreter-v1", false)));
        for near in [
            "ubuntu:22.04",
            "debian",
            "python:3.13",
            "node:lts",
            "node:201",
        ] {
            assert_eq!(
                name(near, ImagePolicy::Alias),
                Some(("base", true)),
                "{near}"
            );
            assert_eq!(name(near, ImagePolicy::Strict), None, "{near}");
        }
        for none in [
            "",
            "nobody/nothing:1",
            "ghcr.io/debian:12",
            "debian@sha256:00",
            "debian:",
            "debian:a b",
            "e2bdev/base:other",
        ] {
            let error = find(none, &all, ImagePolicy::Alias).expect_err(none);
            assert!(
                error.starts_with(&format!("image '{none}' not found: ")),
                "{error}"
            );
        }
        assert!(find("debian:12", &[], ImagePolicy::Alias).is_err());
        let env = |image: &str| {
            let found = find(image, &all, ImagePolicy::Alias).expect("found");
            found.env.iter().map(|(name, _)| *name).collect::<Vec<_>>()
        };
        assert_eq!(env("docker.io/library/node:20"), ["PATH", "YARN_VERSION"]);
        assert_eq!(env("python:3.11-slim"), ["PATH", "LANG"]);
        assert!(env("debian:12").is_empty() && env("e2bdev/base").is_empty());

        // An image whose template is not here means what is near to it, if anything is.
        assert_eq!(name("node:22", ImagePolicy::Alias), Some(("base", true)));
        assert_eq!(name("node:22", ImagePolicy::Strict), None);
        assert_eq!(name("oven/bun", ImagePolicy::Alias), None);
        let more = [known("base"), known("node22"), known("bun"), known("deno")];
        for (image, expected) in [
            ("node:22", "node22"),
            ("node:22.3-slim", "node22"),
            ("oven/bun", "bun"),
            ("oven/bun:1", "bun"),
            ("denoland/deno:2.1.4", "deno"),
            ("docker.io/denoland/deno:latest", "deno"),
        ] {
            let found = find(image, &more, ImagePolicy::Strict).expect(image);
            assert_eq!((found.build.name.as_str(), found.warning), (expected, None));
        }
        let near = find("denoland/deno:1.40", &more, ImagePolicy::Alias).expect("near");
        assert!(near.warning.is_some_and(|text| text.contains("Deno 2")));
    }
}
