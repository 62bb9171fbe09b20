//! The nftables rules of an installation, as text; pure.
//!
//! They live in tables of their own beside those of Docker, firewalld or ufw and accept nothing that another table drops.

use std::fmt::Write;

use super::NetworkPolicy;
use crate::identity::{GATEWAY_ADDRESS, INNER_ADDRESS, Instance, REFUSED_DNS_PORT, SLOTS};

/// Map: interface name to the slot's own address.
pub(super) const OWN: &str = "own";
/// Set: interfaces that may reach public addresses.
pub(super) const OPEN: &str = "open";

/// Sets: pairs of an interface and a range of addresses. What is in [`DENY`] is refused unless it is in [`ALLOW`]; what is in [`ALLOW`] may be
/// reached also by an interface that is not in [`OPEN`].
pub(super) const ALLOW: &str = "allow";
pub(super) const DENY: &str = "deny";

/// Set: interfaces whose sandbox has had a connection, each with the count of those that the host still tracks. The kernel adds elements; one
/// keeps the limit of its time until the slot is given back.
pub(super) const CONNECTIONS: &str = "connections";

/// The chain of packets on their way into a sandbox.
pub(super) const LEAVE: &str = "leave";

/// All sets and maps.
pub(super) const SETS: [&str; 5] = [OWN, OPEN, ALLOW, DENY, CONNECTIONS];

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

/// The script that puts the rules in place. Chains are made anew; the elements of the map and the sets, which live slots need, stay.
pub(super) fn ruleset(instance: Instance, policy: &NetworkPolicy) -> String {
    let NetworkPolicy {
        allow_internal,
        connections,
    } = policy;
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
    for set in [ALLOW, DENY] {
        rule(&format!(
            "add set ip {table} {set} {{ type ifname . ipv4_addr; flags interval; }}"
        ));
    }
    rule(&format!(
        "add set ip {table} {CONNECTIONS} {{ type ifname; size {SLOTS}; flags dynamic; }}"
    ));
    for chain in ["lists", "admit", "surplus"] {
        rule(&format!("add chain ip {table} {chain}"));
        rule(&format!("flush chain ip {table} {chain}"));
    }
    for (chain, hook) in [
        ("arrive", "type filter hook prerouting priority -310"),
        ("answer", "type filter hook output priority raw"),
        (LEAVE, "type filter hook postrouting priority 300"),
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
    // Names cost no place in the host's table of connections. Those who may not go out get a refusal at once, from another port: silence
    // would make every program that looks a name up wait.
    for protocol in ["udp", "tcp"] {
        let asked = format!("ip daddr {GATEWAY_ADDRESS} {protocol} dport 53");
        add(
            "arrive",
            &format!(
                "iifname != @{OPEN} {asked} {protocol} dport set {REFUSED_DNS_PORT} ip daddr set {service} notrack"
            ),
        );
        add("arrive", &format!("{asked} ip daddr set {service} notrack"));
    }
    add("arrive", &format!("ip saddr set iifname map @{OWN}"));
    add("arrive", &format!("ip saddr {INNER_ADDRESS} drop"));

    for protocol in ["udp", "tcp"] {
        add(
            "answer",
            &format!("ip saddr {service} {protocol} sport {{ 53, {REFUSED_DNS_PORT} }} notrack"),
        );
    }

    add("leave", &format!("oifname != {ours} return"));
    for protocol in ["udp", "tcp"] {
        add(
            "leave",
            &format!(
                "ip saddr {service} {protocol} sport {REFUSED_DNS_PORT} {protocol} sport set 53"
            ),
        );
    }
    add(
        "leave",
        &format!("ip saddr {service} ip saddr set {GATEWAY_ADDRESS}"),
    );
    add("leave", &format!("ip daddr set {INNER_ADDRESS}"));

    // Nothing of the host but DNS: names for those who may go out, a refusal for the others.
    add("host", &format!("iifname != {ours} return"));
    for protocol in ["udp", "tcp"] {
        add(
            "host",
            &format!("iifname @{OPEN} ip daddr {service} {protocol} dport 53 accept"),
        );
        add(
            "host",
            &format!("ip daddr {service} {protocol} dport {REFUSED_DNS_PORT} accept"),
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
    add("pass", "jump lists");
    if !allow_internal.is_empty() {
        let list = allow_internal
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        add(
            "pass",
            &format!("iifname @{OPEN} ip daddr {{ {list} }} goto admit"),
        );
        add(
            "pass",
            &format!("ip daddr {{ {list} }} iifname . ip daddr @{ALLOW} goto admit"),
        );
    }
    let refused = REFUSED.join(", ");
    add(
        "pass",
        &format!("ip daddr {{ {refused} }} meta l4proto tcp reject with tcp reset"),
    );
    add("pass", &format!("ip daddr {{ {refused} }} drop"));
    add("pass", &format!("iifname @{OPEN} goto admit"));
    add("pass", &format!("iifname . ip daddr @{ALLOW} goto admit"));
    // A reset instead of silence: a program learns at once that there is no way out.
    add("pass", "meta l4proto tcp reject with tcp reset");
    add("pass", "drop");

    // The host tracks connections in one table: what fills it cuts off all the others. Only the first packet of a connection is counted,
    // since the count walks through those that there are.
    add(
        "admit",
        &format!(
            "ct status & confirmed == 0 add @{CONNECTIONS} {{ iifname ct count over {connections} }} goto surplus"
        ),
    );
    add("admit", "accept");
    add("surplus", "meta l4proto tcp reject with tcp reset");
    add("surplus", "drop");

    add("lists", &format!("iifname . ip daddr @{ALLOW} return"));
    for verdict in ["meta l4proto tcp reject with tcp reset", "drop"] {
        add("lists", &format!("iifname . ip daddr @{DENY} {verdict}"));
    }

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
    fn rules_are_as_reviewed() {
        let rules = ruleset(
            Instance::new(2).unwrap(),
            &NetworkPolicy {
                allow_internal: vec!["192.168.7.0/24".parse().unwrap()],
                connections: 4096,
            },
        );
        expect![[r#"
            add table ip soulbox_2
            add map ip soulbox_2 own { type ifname : ipv4_addr; }
            add set ip soulbox_2 open { type ifname; }
            add set ip soulbox_2 allow { type ifname . ipv4_addr; flags interval; }
            add set ip soulbox_2 deny { type ifname . ipv4_addr; flags interval; }
            add set ip soulbox_2 connections { type ifname; size 2048; flags dynamic; }
            add chain ip soulbox_2 lists
            flush chain ip soulbox_2 lists
            add chain ip soulbox_2 admit
            flush chain ip soulbox_2 admit
            add chain ip soulbox_2 surplus
            flush chain ip soulbox_2 surplus
            add chain ip soulbox_2 arrive { type filter hook prerouting priority -310; policy accept; }
            flush chain ip soulbox_2 arrive
            add chain ip soulbox_2 answer { type filter hook output priority raw; policy accept; }
            flush chain ip soulbox_2 answer
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
            add rule ip soulbox_2 arrive iifname != @open ip daddr 169.254.0.22 udp dport 53 udp dport set 54 ip daddr set 100.72.0.1 notrack
            add rule ip soulbox_2 arrive ip daddr 169.254.0.22 udp dport 53 ip daddr set 100.72.0.1 notrack
            add rule ip soulbox_2 arrive iifname != @open ip daddr 169.254.0.22 tcp dport 53 tcp dport set 54 ip daddr set 100.72.0.1 notrack
            add rule ip soulbox_2 arrive ip daddr 169.254.0.22 tcp dport 53 ip daddr set 100.72.0.1 notrack
            add rule ip soulbox_2 arrive ip saddr set iifname map @own
            add rule ip soulbox_2 arrive ip saddr 169.254.0.21 drop
            add rule ip soulbox_2 answer ip saddr 100.72.0.1 udp sport { 53, 54 } notrack
            add rule ip soulbox_2 answer ip saddr 100.72.0.1 tcp sport { 53, 54 } notrack
            add rule ip soulbox_2 leave oifname != "sb2-*" return
            add rule ip soulbox_2 leave ip saddr 100.72.0.1 udp sport 54 udp sport set 53
            add rule ip soulbox_2 leave ip saddr 100.72.0.1 tcp sport 54 tcp sport set 53
            add rule ip soulbox_2 leave ip saddr 100.72.0.1 ip saddr set 169.254.0.22
            add rule ip soulbox_2 leave ip daddr set 169.254.0.21
            add rule ip soulbox_2 host iifname != "sb2-*" return
            add rule ip soulbox_2 host iifname @open ip daddr 100.72.0.1 udp dport 53 accept
            add rule ip soulbox_2 host ip daddr 100.72.0.1 udp dport 54 accept
            add rule ip soulbox_2 host iifname @open ip daddr 100.72.0.1 tcp dport 53 accept
            add rule ip soulbox_2 host ip daddr 100.72.0.1 tcp dport 54 accept
            add rule ip soulbox_2 host meta l4proto tcp reject with tcp reset
            add rule ip soulbox_2 host drop
            add rule ip soulbox_2 pass iifname "sb2-*" oifname "sb2-*" drop
            add rule ip soulbox_2 pass oifname "sb2-*" ct state established,related accept
            add rule ip soulbox_2 pass oifname "sb2-*" drop
            add rule ip soulbox_2 pass iifname != "sb2-*" return
            add rule ip soulbox_2 pass jump lists
            add rule ip soulbox_2 pass iifname @open ip daddr { 192.168.7.0/24 } goto admit
            add rule ip soulbox_2 pass ip daddr { 192.168.7.0/24 } iifname . ip daddr @allow goto admit
            add rule ip soulbox_2 pass ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4 } meta l4proto tcp reject with tcp reset
            add rule ip soulbox_2 pass ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4 } drop
            add rule ip soulbox_2 pass iifname @open goto admit
            add rule ip soulbox_2 pass iifname . ip daddr @allow goto admit
            add rule ip soulbox_2 pass meta l4proto tcp reject with tcp reset
            add rule ip soulbox_2 pass drop
            add rule ip soulbox_2 admit ct status & confirmed == 0 add @connections { iifname ct count over 4096 } goto surplus
            add rule ip soulbox_2 admit accept
            add rule ip soulbox_2 surplus meta l4proto tcp reject with tcp reset
            add rule ip soulbox_2 surplus drop
            add rule ip soulbox_2 lists iifname . ip daddr @allow return
            add rule ip soulbox_2 lists iifname . ip daddr @deny meta l4proto tcp reject with tcp reset
            add rule ip soulbox_2 lists iifname . ip daddr @deny drop
            add rule ip soulbox_2 hide ip saddr 100.72.0.0/14 oifname != "sb2-*" masquerade
            add table ip6 soulbox_2
            add chain ip6 soulbox_2 arrive { type filter hook prerouting priority -310; policy accept; }
            flush chain ip6 soulbox_2 arrive
            add rule ip6 soulbox_2 arrive iifname "sb2-*" drop
        "#]].assert_eq(&rules);
    }
}
