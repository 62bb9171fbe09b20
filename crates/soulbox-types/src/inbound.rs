//! How requests reach the ports of a sandbox other than envd's: the host that programs see, and the ports that speak TLS.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What stands for the port of the request in a [`HostMask`].
const PORT_VARIABLE: &str = "${PORT}";
/// The longest text that [`PORT_VARIABLE`] can become.
const LONGEST_PORT: &str = "65535";
/// Of a name in DNS, and of a label of it.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// envd speaks plain HTTP, which is no caller's choice.
const ENVD_PORT: u16 = 49983;

/// The part of a sandbox's network configuration that concerns requests into it. It holds for the sandbox's whole life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inbound {
    /// None: programs see the host that the client named.
    pub mask: Option<HostMask>,
    pub https: HttpsPorts,
}

/// `host` or `host:port`, in either of which `${PORT}` stands for the port of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMask(String);

/// Why a text is no [`HostMask`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseHostMaskError {
    #[error("`{0}` is no host with or without a port")]
    Invalid(String),
    #[error("`{0}` has characters outside ASCII")]
    NotAscii(String),
}

impl HostMask {
    /// As its creator wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host that a program on this port sees.
    #[must_use]
    pub fn for_port(&self, port: u16) -> String {
        self.0.replace(PORT_VARIABLE, &port.to_string())
    }
}

impl FromStr for HostMask {
    type Err = ParseHostMaskError;

    fn from_str(text: &str) -> Result<Self, ParseHostMaskError> {
        let shown = || text.chars().take(MAX_NAME + 1).collect::<String>();
        if !text.is_ascii() {
            return Err(ParseHostMaskError::NotAscii(shown()));
        }
        let longest = text.replace(PORT_VARIABLE, LONGEST_PORT);
        if is_host(&longest) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseHostMaskError::Invalid(shown()))
        }
    }
}

impl fmt::Display for HostMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `name[:port]`, `a.b.c.d[:port]` or `[ipv6][:port]`, and nothing that would be more of a URL than its host.
fn is_host(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    port.is_none_or(is_port) && (host.parse::<Ipv4Addr>().is_ok() || is_name(host))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= MAX_NAME && text.split('.').all(label)
}

/// Ports on which a sandbox's programs speak HTTP over TLS, in the caller's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpsPorts(Vec<u16>);

/// Why a list is no [`HttpsPorts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpsPortsError {
    #[error("{0} is no port")]
    NoPort(i64),
    #[error("port {0} is named twice")]
    Twice(u16),
    #[error("port {0} is the sandbox's own daemon")]
    Reserved(u16),
    #[error("more than {max} ports")]
    TooMany { max: usize },
}

impl HttpsPorts {
    /// The most ports of one sandbox.
    pub const MAX: usize = 128;

    /// Checks a list.
    ///
    /// # Errors
    /// The first entry that is refused.
    pub fn new(ports: &[i64]) -> Result<Self, HttpsPortsError> {
        if ports.len() > Self::MAX {
            return Err(HttpsPortsError::TooMany { max: Self::MAX });
        }
        let mut checked = Vec::with_capacity(ports.len());
        for &port in ports {
            match u16::try_from(port) {
                Err(_) | Ok(0) => return Err(HttpsPortsError::NoPort(port)),
                Ok(ENVD_PORT) => return Err(HttpsPortsError::Reserved(ENVD_PORT)),
                Ok(port) if checked.contains(&port) => return Err(HttpsPortsError::Twice(port)),
                Ok(port) => checked.push(port),
            }
        }
        Ok(Self(checked))
    }

    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }

    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_hosts_with_the_port_put_in() {
        for (text, seen) in [
            ("app.local", "app.local"),
            ("localhost:${PORT}", "localhost:8000"),
            ("app.local:1", "app.local:1"),
            ("p${PORT}.App_1.local:${PORT}", "p8000.App_1.local:8000"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[::1]:${PORT}", "[::1]:8000"),
            ("[fe80::1]", "[fe80::1]"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            let mask: HostMask = text.parse().unwrap();
            assert_eq!(mask.for_port(8000), seen);
            assert_eq!(mask.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            "ex ample",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:8${PORT}",
            "a:b",
            ":80",
            "a/b",
            "http://a",
            "u@a",
            "a..b",
            "-a",
            "a?",
            "${port}",
            "[::1",
            "[::1]80",
            "[a]",
            "::1",
            "a\r\nb",
        ] {
            let error = ParseHostMaskError::Invalid(text.to_owned());
            assert_eq!(text.parse::<HostMask>(), Err(error));
        }
        let long = format!("{}.a", "a".repeat(MAX_LABEL + 1));
        assert!(long.parse::<HostMask>().is_err());
        assert!(vec!["abc"; 64].join(".").parse::<HostMask>().is_err());
        let accented = "bücher.example";
        let error = ParseHostMaskError::NotAscii(accented.to_owned());
        assert_eq!(accented.parse::<HostMask>(), Err(error));
    }

    #[test]
    fn lists_of_ports_are_checked() {
        let ports = HttpsPorts::new(&[8443, 1, 65535]).unwrap();
        assert_eq!(ports.as_slice(), [8443, 1, 65535]);
        assert!(ports.contains(1) && !ports.contains(2));
        for (list, error) in [
            (&[0][..], HttpsPortsError::NoPort(0)),
            (&[-1], HttpsPortsError::NoPort(-1)),
            (&[65536], HttpsPortsError::NoPort(65536)),
            (&[1, 1], HttpsPortsError::Twice(1)),
            (&[49983], HttpsPortsError::Reserved(49983)),
        ] {
            assert_eq!(HttpsPorts::new(list), Err(error));
        }
        let many: Vec<i64> = (1..=129).collect();
        assert_eq!(
            HttpsPorts::new(&many),
            Err(HttpsPortsError::TooMany { max: 128 })
        );
    }
}
