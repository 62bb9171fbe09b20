//! The nftables rules of an installation, as text; pure.
//!
//! They live in tables of their own beside those of Docker, firewalld or ufw and accept nothing that another table drops.

use std::fmt;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::identity::{GATEWAY_ADDRESS, INNER_ADDRESS, Instance};

/// Map: interface name to the slot's own address.
pub(super) const OWN: &str = "own";
/// Set: interfaces that may reach public addresses.
pub(super) const OPEN: &str = "open";

/// What no sandbox may reach, whatever its policy: this host's networks, private and shared ranges, link-local with the metadata services,
/// multicast, and reserved ranges that some networks use inside.
const REFUSED: [&str; 10] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// A range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

/// The text is no `a.b.c.d/n`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IPv4 range such as 10.1.0.0/16")]
pub struct ParseCidrError(String);

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let error = || ParseCidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > 32 {
            return Err(error());
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Self {
            address: Ipv4Addr::from_bits(address.to_bits() & mask),
            prefix,
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The script that puts the rules in place. Chains are made anew; the elements of [`OWN`] and [`OPEN`], which live slots need, stay.
pub(super) fn ruleset(instance: Instance, allow_internal: &[Cidr]) -> String {
    let table = instance.table();
    let ours = format!("\"{}*\"", instance.interface_prefix());
    let service = instance.service_address();
    let (block, prefix) = instance.address_block();
    let mut script = String::new();
    let mut rule = |text: &str| {
        let _ = writeln!(script, "{text}");
    };
    rule(&format!("add table ip {table}"));
    rule(&format!(
        "add map ip {table} {OWN} {{ type ifname : ipv4_addr; }}"
    ));
    rule(&format!("add set ip {table} {OPEN} {{ type ifname; }}"));
    for (chain, hook) in [
        ("arrive", "type filter hook prerouting priority -310"),
        ("leave", "type filter hook postrouting priority 300"),
        ("host", "type filter hook input priority -10"),
        ("pass", "type filter hook forward priority -10"),
        ("hide", "type nat hook postrouting priority srcnat"),
    ] {
        rule(&format!(
            "add chain ip {table} {chain} {{ {hook}; policy accept; }}"
        ));
        rule(&format!("flush chain ip {table} {chain}"));
    }
    let mut add = |chain: &str, text: &str| {
        let _ = writeln!(script, "add rule ip {table} {chain} {text}");
    };

    // A sandbox speaks with its own address only (tests/security: forged source), and by the time that anything else of the host looks,
    // the address is the slot's.
    add("arrive", &format!("iifname != {ours} return"));
    add("arrive", &format!("ip saddr != {INNER_ADDRESS} drop"));
    for protocol in ["udp", "tcp"] {
        add(
            "arrive",
            &format!("ip daddr {GATEWAY_ADDRESS} {protocol} dport 53 ip daddr set {service}"),
        );
    }
    add("arrive", &format!("ip saddr set iifname map @{OWN}"));
    add("arrive", &format!("ip saddr {INNER_ADDRESS} drop"));

    add("leave", &format!("oifname != {ours} return"));
    add(
        "leave",
        &format!("ip saddr {service} ip saddr set {GATEWAY_ADDRESS}"),
    );
    add("leave", &format!("ip daddr set {INNER_ADDRESS}"));

    // Nothing of the host but DNS, and that only for those who may go out.
    add("host", &format!("iifname != {ours} return"));
    for protocol in ["udp", "tcp"] {
        add(
            "host",
            &format!("iifname @{OPEN} ip daddr {service} {protocol} dport 53 accept"),
        );
    }
    add("host", "meta l4proto tcp reject with tcp reset");
    add("host", "drop");

    add("pass", &format!("iifname {ours} oifname {ours} drop"));
    add(
        "pass",
        &format!("oifname {ours} ct state established,related accept"),
    );
    add("pass", &format!("oifname {ours} drop"));
    add("pass", &format!("iifname != {ours} return"));
    if !allow_internal.is_empty() {
        let list = allow_internal
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        add(
            "pass",
            &format!("iifname @{OPEN} ip daddr {{ {list} }} accept"),
        );
    }
    let refused = REFUSED.join(", ");
    add(
        "pass",
        &format!("ip daddr {{ {refused} }} meta l4proto tcp reject with tcp reset"),
    );
    add("pass", &format!("ip daddr {{ {refused} }} drop"));
    add("pass", &format!("iifname @{OPEN} accept"));
    // A reset instead of silence: a program learns at once that there is no way out.
    add("pass", "meta l4proto tcp reject with tcp reset");
    add("pass", "drop");

    add(
        "hide",
        &format!("ip saddr {block}/{prefix} oifname != {ours} masquerade"),
    );

    // IPv6 is off inside; should a sandbox find a way to speak it, nobody listens.
    let _ = writeln!(script, "add table ip6 {table}");
    let _ = writeln!(
        script,
        "add chain ip6 {table} arrive {{ type filter hook prerouting priority -310; policy accept; }}"
    );
    let _ = writeln!(script, "flush chain ip6 {table} arrive");
    let _ = writeln!(script, "add rule ip6 {table} arrive iifname {ours} drop");
    script
}

/// The script that takes the tables away, present or not.
pub(super) fn removal(instance: Instance) -> String {
    let table = instance.table();
    format!(
        "add table ip {table}\ndelete table ip {table}\nadd table ip6 {table}\ndelete table ip6 {table}\n"
    )
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn ranges_are_read_and_masked() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(
                text.parse::<Cidr>()
                    .ok()
                    .map(|cidr| cidr.to_string())
                    .as_deref(),
                expected,
                "{text}"
            );
        };
        check("10.1.2.3/16", Some("10.1.0.0/16"));
        check("1.2.3.4", Some("1.2.3.4/32"));
        check("1.2.3.4/0", Some("0.0.0.0/0"));
        for bad in [
            "",
            "1.2.3.4/33",
            "1.2.3/8",
            "::1/128",
            "1.2.3.4/x",
            "1.2.3.4/8; drop",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn rules_are_as_reviewed() {
        let rules = ruleset(
            Instance::new(2).unwrap(),
            &["192.168.7.0/24".parse().unwrap()],
        );
        expect![[r#"
            add table ip soulbox_2
            add map ip soulbox_2 own { type ifname : ipv4_addr; }
            add set ip soulbox_2 open { type ifname; }
            add chain ip soulbox_2 arrive { type filter hook prerouting priority -310; policy accept; }
            flush chain ip soulbox_2 arrive
            add chain ip soulbox_2 leave { type filter hook postrouting priority 300; policy accept; }
            flush chain ip soulbox_2 leave
            add chain ip soulbox_2 host { type filter hook input priority -10; policy accept; }
            flush chain ip soulbox_2 host
            add chain ip soulbox_2 pass { type filter hook forward priority -10; policy accept; }
            flush chain ip soulbox_2 pass
            add chain ip soulbox_2 hide { type nat hook postrouting priority srcnat; policy accept; }
            flush chain ip soulbox_2 hide
            add rule ip soulbox_2 arrive iifname != "sb2-*" return
            add rule ip soulbox_2 arrive ip saddr != 169.254.0.21 drop
            add rule ip soulbox_2 arrive ip daddr 169.254.0.22 udp dport 53 ip daddr set 100.72.0.1
            add rule ip soulbox_2 arrive ip daddr 169.254.0.22 tcp dport 53 ip daddr set 100.72.0.1
            add rule ip soulbox_2 arrive ip saddr set iifname map @own
            add rule ip soulbox_2 arrive ip saddr 169.254.0.21 drop
            add rule ip soulbox_2 leave oifname != "sb2-*" return
            add rule ip soulbox_2 leave ip saddr 100.72.0.1 ip saddr set 169.254.0.22
            add rule ip soulbox_2 leave ip daddr set 169.254.0.21
            add rule ip soulbox_2 host iifname != "sb2-*" return
            add rule ip soulbox_2 host iifname @open ip daddr 100.72.0.1 udp dport 53 accept
            add rule ip soulbox_2 host iifname @open ip daddr 100.72.0.1 tcp dport 53 accept
            add rule ip soulbox_2 host meta l4proto tcp reject with tcp reset
            add rule ip soulbox_2 host drop
            add rule ip soulbox_2 pass iifname "sb2-*" oifname "sb2-*" drop
            add rule ip soulbox_2 pass oifname "sb2-*" ct state established,related accept
            add rule ip soulbox_2 pass oifname "sb2-*" drop
            add rule ip soulbox_2 pass iifname != "sb2-*" return
            add rule ip soulbox_2 pass iifname @open ip daddr { 192.168.7.0/24 } accept
            add rule ip soulbox_2 pass ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4 } meta l4proto tcp reject with tcp reset
            add rule ip soulbox_2 pass ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4 } drop
            add rule ip soulbox_2 pass iifname @open accept
            add rule ip soulbox_2 pass meta l4proto tcp reject with tcp reset
            add rule ip soulbox_2 pass drop
            add rule ip soulbox_2 hide ip saddr 100.72.0.0/14 oifname != "sb2-*" masquerade
            add table ip6 soulbox_2
            add chain ip6 soulbox_2 arrive { type filter hook prerouting priority -310; policy accept; }
            flush chain ip6 soulbox_2 arrive
            add rule ip6 soulbox_2 arrive iifname "sb2-*" drop
        "#]].assert_eq(&rules);
    }
}
