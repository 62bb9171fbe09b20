//! `soulbox env`: the variables that point an E2B program at this installation, for `eval "$(soulbox env)"`.
//!
//! Reads files only, so it works whether the server runs or not.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Installation;
use crate::credentials::Credentials;
use crate::failure::Failure;
use crate::settings::{Setting, Settings};

/// Print `export` lines that point E2B programs at this server
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    installation: Installation,
    /// Address that the server listens on [default: as configured, else 127.0.0.1:3000]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
}

pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let listen = arguments.listen.map(|value| (Setting::Listen, value));
    // Nothing is opened here, so the rule against plain text on an open address has no say.
    let insecure = Some((Setting::Insecure, "true".to_owned()));
    let settings = arguments
        .installation
        .settings(listen.into_iter().chain(insecure))?;
    let credentials = Credentials::load(&settings.data_dir)?;
    writeln!(std::io::stdout(), "{}", line(&settings, &credentials))
        .map_err(|error| Failure::new(error).hint("stdout must be open"))
}

fn line(settings: &Settings, credentials: &Credentials) -> String {
    let (api, sandbox) = urls(settings);
    // No value needs quoting: hex digits, host names, addresses.
    let mut line = format!(
        "export E2B_API_KEY={} E2B_API_URL={api} E2B_SANDBOX_URL={sandbox}",
        credentials.api_key
    );
    if let Some(domain) = &settings.domain {
        line.push_str(&format!(" E2B_DOMAIN={domain}"));
    }
    line
}

/// With a domain and our own TLS the names of the certificate count; else the listener's address is enough.
pub(super) fn urls(settings: &Settings) -> (String, String) {
    match (&settings.domain, &settings.tls) {
        (Some(domain), Some(_)) => {
            let port = match settings.listen.port() {
                443 => String::new(),
                port => format!(":{port}"),
            };
            (
                format!("https://api.{domain}{port}"),
                format!("https://sandbox.{domain}{port}"),
            )
        }
        (_, tls) => {
            let scheme = if tls.is_some() { "https" } else { "http" };
            let url = format!("{scheme}://{}", reachable(settings.listen));
            (url.clone(), url)
        }
    }
}

/// A listener on all addresses is reached by the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    SocketAddr::new(address, listen.port())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::settings::Tls;

    fn check(change: impl FnOnce(&mut Settings), expected: Expect) {
        let empty = tempfile::NamedTempFile::new().expect("temporary file");
        let mut settings = Settings::resolve(Some(empty.path()), &|_| None, &[]).expect("defaults");
        change(&mut settings);
        let credentials = Credentials {
            api_key: "e2b_00".into(),
            access_token: "sk_e2b_11".into(),
            admin_token: "22".into(),
        };
        expected.assert_eq(&line(&settings, &credentials));
    }

    fn tls() -> Option<Tls> {
        Some(Tls {
            cert_pem: String::new(),
            key_pem: String::new(),
        })
    }

    #[test]
    fn the_line_names_the_listener() {
        check(
            |_| (),
            expect![
                "export E2B_API_KEY=e2b_00 E2B_API_URL=http://127.0.0.1:3000 E2B_SANDBOX_URL=http://127.0.0.1:3000"
            ],
        );
        check(
            |settings| settings.listen = "0.0.0.0:80".parse().expect("address"),
            expect![
                "export E2B_API_KEY=e2b_00 E2B_API_URL=http://127.0.0.1:80 E2B_SANDBOX_URL=http://127.0.0.1:80"
            ],
        );
        check(
            |settings| settings.listen = "[::]:3000".parse().expect("address"),
            expect![
                "export E2B_API_KEY=e2b_00 E2B_API_URL=http://[::1]:3000 E2B_SANDBOX_URL=http://[::1]:3000"
            ],
        );
    }

    #[test]
    fn a_domain_with_tls_is_named_as_in_the_certificate() {
        check(
            |settings| {
                settings.domain = Some("box.test".into());
                settings.tls = tls();
                settings.listen = "0.0.0.0:443".parse().expect("address");
            },
            expect![
                "export E2B_API_KEY=e2b_00 E2B_API_URL=https://api.box.test E2B_SANDBOX_URL=https://sandbox.box.test E2B_DOMAIN=box.test"
            ],
        );
        check(
            |settings| {
                settings.domain = Some("box.test".into());
                settings.tls = tls();
            },
            expect![
                "export E2B_API_KEY=e2b_00 E2B_API_URL=https://api.box.test:3000 E2B_SANDBOX_URL=https://sandbox.box.test:3000 E2B_DOMAIN=box.test"
            ],
        );
    }

    #[test]
    fn behind_a_proxy_the_listener_is_named_beside_the_domain() {
        check(
            |settings| settings.domain = Some("box.test".into()),
            expect![
                "export E2B_API_KEY=e2b_00 E2B_API_URL=http://127.0.0.1:3000 E2B_SANDBOX_URL=http://127.0.0.1:3000 E2B_DOMAIN=box.test"
            ],
        );
    }
}
