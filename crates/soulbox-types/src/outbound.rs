//! Where a sandbox may connect to, as its creator says it: two lists of texts, checked.

use std::net::Ipv6Addr;

use crate::network::{Cidr, Egress};

/// The most entries of one list.
const MAX_ENTRIES: usize = 256;

/// The outbound part of a sandbox's network configuration, in the caller's own texts, which are valid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    internet_access: Option<bool>,
    allow_out: Vec<String>,
    deny_out: Vec<String>,
    allowed: Vec<Cidr>,
    denied: Vec<Cidr>,
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("`{0}` is no address or range to deny")]
    Denied(String),
    #[error("`{0}` is no address, range or domain to allow")]
    Allowed(String),
    #[error("a list has more than {max} entries")]
    TooLong { max: usize },
    #[error("a domain is allowed without everything else being denied")]
    DomainWithoutDenyAll,
    #[error("`{0}` is a domain, which cannot be allowed yet")]
    Domain(String),
    #[error("`{0}` is of IPv6, which sandboxes do not speak yet")]
    Ipv6(String),
}

impl Network {
    /// Checks the lists. `internet_access` is as the caller gave it: `Some(false)` denies everything that is not allowed.
    ///
    /// # Errors
    /// The first entry that is refused.
    pub fn new(
        internet_access: Option<bool>,
        allow_out: Vec<String>,
        deny_out: Vec<String>,
    ) -> Result<Self, NetworkError> {
        if allow_out.len().max(deny_out.len()) > MAX_ENTRIES {
            return Err(NetworkError::TooLong { max: MAX_ENTRIES });
        }
        let mut denied = Vec::new();
        for text in &deny_out {
            match text.parse() {
                // Without a prefix it is taken for a mistyped "everything".
                Ok(_) if text == "0.0.0.0" => return Err(NetworkError::Denied(text.clone())),
                Ok(range) => denied.push(range),
                // Nothing of it can be reached anyway.
                Err(_) if is_ipv6(text) => {}
                Err(_) => return Err(NetworkError::Denied(text.clone())),
            }
        }
        let mut allowed = Vec::new();
        let mut unsupported = None;
        let mut domain = false;
        for text in &allow_out {
            if let Ok(range) = text.parse() {
                allowed.push(range);
            } else if is_ipv6(text) {
                unsupported.get_or_insert(NetworkError::Ipv6(text.clone()));
            } else if is_domain(text) {
                domain = true;
                unsupported.get_or_insert(NetworkError::Domain(text.clone()));
            } else {
                return Err(NetworkError::Allowed(text.clone()));
            }
        }
        if domain && !denied.contains(&Cidr::ALL) {
            return Err(NetworkError::DomainWithoutDenyAll);
        }
        if let Some(unsupported) = unsupported {
            return Err(unsupported);
        }
        Ok(Self {
            internet_access,
            allow_out,
            deny_out,
            allowed,
            denied,
        })
    }

    /// The policy that follows. What is allowed beats what is denied.
    #[must_use]
    pub fn egress(&self) -> Egress {
        let mut denied = self.denied.clone();
        if self.internet_access == Some(false) {
            denied.push(Cidr::ALL);
        }
        Egress::of_lists(&self.allowed, &denied)
    }

    /// As the caller gave it.
    #[must_use]
    pub fn internet_access(&self) -> Option<bool> {
        self.internet_access
    }

    /// As the caller gave it.
    #[must_use]
    pub fn allow_out(&self) -> &[String] {
        &self.allow_out
    }

    /// As the caller gave it.
    #[must_use]
    pub fn deny_out(&self) -> &[String] {
        &self.deny_out
    }
}

fn is_ipv6(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "128"));
    address.parse::<Ipv6Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|bits| bits <= 128)
}

/// `*`, a name, or `*.` and a name.
fn is_domain(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // A last label of digits makes it a mistyped address.
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text == "*" || (name.len() <= 253 && !numeric && name.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(
        access: Option<bool>,
        allow: &[&str],
        deny: &[&str],
    ) -> Result<Network, NetworkError> {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Network::new(access, texts(allow), texts(deny))
    }

    #[test]
    fn lists_are_checked() {
        let check = |allow: &[&str], deny: &[&str], expected: Option<NetworkError>| {
            assert_eq!(
                network(None, allow, deny).err(),
                expected,
                "{allow:?} {deny:?}"
            );
        };
        let text = |text: &str| text.to_owned();
        check(&["1.1.1.1", "8.8.0.0/16"], &["0.0.0.0/0", "::/0"], None);
        for bad in ["not-a-cidr", "0.0.0.0", "example.com", "1.2.3.4/33", ""] {
            check(&[], &[bad], Some(NetworkError::Denied(text(bad))));
        }
        for bad in [
            "",
            "a b",
            "1.2.3",
            "1.2.3.4/33",
            "-x.com",
            "*.*.com",
            "http://x",
        ] {
            check(&[bad], &[], Some(NetworkError::Allowed(text(bad))));
        }
        for domain in ["example.com", "*.example.com", "*"] {
            check(
                &[domain],
                &["8.8.8.8"],
                Some(NetworkError::DomainWithoutDenyAll),
            );
            check(
                &[domain],
                &["0.0.0.0/0"],
                Some(NetworkError::Domain(text(domain))),
            );
        }
        check(&["::1"], &[], Some(NetworkError::Ipv6(text("::1"))));
        let long = vec!["1.1.1.1"; MAX_ENTRIES + 1];
        check(&long, &[], Some(NetworkError::TooLong { max: MAX_ENTRIES }));
    }

    #[test]
    fn no_internet_access_denies_all_that_is_not_allowed() {
        let egress = |access, allow: &[&str], deny: &[&str]| {
            network(access, allow, deny).map(|it| it.egress())
        };
        assert_eq!(egress(None, &[], &[]), Ok(Egress::Open));
        assert_eq!(egress(Some(false), &[], &[]), Ok(Egress::Denied));
        let one = vec!["1.1.1.1".parse().unwrap()];
        assert_eq!(
            egress(Some(false), &["1.1.1.1"], &[]),
            Ok(Egress::Only(one.clone()))
        );
        assert_eq!(
            egress(Some(true), &["1.1.1.1"], &["0.0.0.0/0"]),
            Ok(Egress::Only(one))
        );
    }
}
