//! What of a host saved processes depend on.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::RefusedError;

/// How the IDs, mounts and networks of a sandbox are laid out: raised with every change after which older images cannot be restored.
const LAYOUT: &str = "1";

/// All of it has to be the same where they go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    pub kernel: String,
    pub architecture: String,
    /// Digest of the sorted features of the processor: programs have chosen code by them.
    pub processor: String,
    pub criu: String,
    pub layout: String,
}

impl Fingerprint {
    /// This host's, with that version of CRIU.
    ///
    /// # Errors
    /// A file of /proc that cannot be read.
    pub fn of_this_host(criu: &str) -> io::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        Ok(Self {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            processor: processor(&cpuinfo),
            criu: criu.to_owned(),
            layout: LAYOUT.to_owned(),
        })
    }

    /// # Errors
    /// [`RefusedError::OtherHost`] with the first thing that differs.
    pub(super) fn compare(&self, here: &Self) -> Result<(), RefusedError> {
        let pairs = [
            ("the kernel", &self.kernel, &here.kernel),
            ("the architecture", &self.architecture, &here.architecture),
            ("the processor", &self.processor, &here.processor),
            ("CRIU", &self.criu, &here.criu),
            ("the layout of sandboxes", &self.layout, &here.layout),
        ];
        match pairs.into_iter().find(|(_, then, now)| then != now) {
            None => Ok(()),
            Some((what, then, now)) => Err(RefusedError::OtherHost {
                what,
                then: then.clone(),
                now: now.clone(),
            }),
        }
    }
}

/// The first processor stands for all: a sandbox may run on any of them.
fn processor(cpuinfo: &str) -> String {
    let line = cpuinfo
        .lines()
        .find_map(|line| {
            let (key, value) = line.split_once(':')?;
            matches!(key.trim(), "flags" | "Features").then_some(value)
        })
        .unwrap_or_default();
    let mut features: Vec<&str> = line.split_ascii_whitespace().collect();
    features.sort_unstable();
    let digest = hex::encode(Sha256::digest(features.join(" ")));
    digest[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_count_in_any_order() {
        let one = processor("model name : x\nflags\t\t: fpu sse avx\n\nflags : none\n");
        assert_eq!(one, processor("flags : avx fpu  sse\n"));
        assert_ne!(one, processor("flags : avx fpu sse avx2\n"));
        assert_eq!(
            processor("Features : fp asimd\n"),
            processor("flags: asimd fp\n")
        );
    }

    #[test]
    fn what_differs_is_named() {
        let here = Fingerprint::of_this_host("4.2").expect("a host");
        here.compare(&here.clone()).expect("the same");
        let other = Fingerprint {
            kernel: "5.0".to_owned(),
            ..here.clone()
        };
        let error = other.compare(&here).expect_err("another kernel");
        assert!(
            error.to_string().starts_with("the kernel was `5.0`"),
            "{error}"
        );
    }
}
