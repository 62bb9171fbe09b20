//! The launch plan: all that the launcher is told, as data. Making it does no I/O; performing it (see [`crate::launch`]) decides nothing.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::identity::{
    ENVD_PORT, GATEWAY_ADDRESS, GATEWAY_MAC, HOSTNAME, ID_COUNT, INNER_ADDRESS, INNER_PREFIX, Slot,
};
use crate::seccomp;

/// Where envd and the launcher lie inside; a read-only bind of a directory of the host's root.
pub const GUEST_DIR: &str = "/usr/lib/soulbox";

/// What the launcher does before it knows which sandbox it will be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupPlan {
    /// Host ID of root inside, and how many IDs there are.
    pub id_base: u32,
    pub id_count: u32,
    /// A directory of the host with one empty directory `root` in it: the root while parked.
    pub empty_root: String,
    /// Values for /proc/sys, written inside the new namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Files below /proc that show /dev/null.
    pub proc_masked: Vec<String>,
    /// Paths below /proc that are read-only.
    pub proc_read_only: Vec<String>,
    pub network: InnerNetwork,
}

/// The sandbox's end of the network, the same in every sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InnerNetwork {
    pub interface: String,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub gateway_mac: [u8; 6],
    /// The launcher listens here itself, so that a connection can be made before envd runs.
    pub listen_port: u16,
}

/// What turns a parked launcher into a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    pub hostname: String,
    /// The filter, one instruction a number (little endian).
    pub seccomp: Vec<u64>,
    /// Capabilities that stay in the bounding set, by number.
    pub capabilities: Vec<u8>,
    /// Program and arguments of envd; the launcher appends `--listen-fd N --init-secret-fd N`.
    pub envd: Vec<String>,
    /// Environment of envd.
    pub environment: Vec<(String, String)>,
    /// Program and arguments of init; the launcher appends envd's pid.
    pub init: Vec<String>,
    /// Hex key for envd, handed over in a pipe.
    pub init_secret: String,
}

/// The plan for an empty slot.
#[must_use]
pub fn setup(slot: Slot, empty_root: &str) -> SetupPlan {
    let sysctl = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    SetupPlan {
        id_base: slot.id_base(),
        id_count: ID_COUNT,
        empty_root: empty_root.to_owned(),
        sysctls: vec![
            // Root inside has no power over this network namespace later, so servers on low ports and ping need these.
            sysctl("net/ipv4/ip_unprivileged_port_start", "0"),
            sysctl("net/ipv4/ping_group_range", "0 65535"),
            // IPv6 stays on for ::1 only; `default` is what eth0 starts with.
            sysctl("net/ipv6/conf/default/disable_ipv6", "1"),
            // The host's end rewrites the addresses of packets but not of the packets quoted in ICMP errors, so "too big" finds no
            // connection here: let the host cut packets instead of waiting for an answer to them. tests/security: small MTU.
            sysctl("net/ipv4/ip_no_pmtu_disc", "1"),
            // The kernel counts inotify objects per user of the host's root namespace too; a sandbox gets a share of them, not all.
            sysctl("user/max_inotify_instances", "1024"),
            sysctl("user/max_inotify_watches", "65536"),
            // Denied by seccomp as well; this holds where a filter has a hole.
            sysctl("user/max_user_namespaces", "0"),
        ],
        proc_masked: ["kcore", "keys", "timer_list"].map(str::to_owned).to_vec(),
        proc_read_only: ["sys", "sysrq-trigger", "irq", "bus", "fs"]
            .map(str::to_owned)
            .to_vec(),
        network: InnerNetwork {
            interface: "eth0".to_owned(),
            address: INNER_ADDRESS,
            prefix: INNER_PREFIX,
            gateway: GATEWAY_ADDRESS,
            gateway_mac: GATEWAY_MAC,
            listen_port: ENVD_PORT,
        },
    }
}

/// The plan that starts envd in a parked slot. `init_secret` is the hex key that authorises `/init`.
#[must_use]
pub fn boot(default_user: &str, default_workdir: &str, init_secret: &str) -> BootPlan {
    let text = |parts: &[&str]| {
        parts
            .iter()
            .map(|part| (*part).to_owned())
            .collect::<Vec<_>>()
    };
    let envd = format!("{GUEST_DIR}/envd");
    BootPlan {
        hostname: HOSTNAME.to_owned(),
        seccomp: seccomp::compile(&seccomp::policy())
            .into_iter()
            .map(|instruction| u64::from_le_bytes(instruction.to_bytes()))
            .collect(),
        capabilities: CAPABILITIES.iter().map(|(number, _)| *number).collect(),
        envd: text(&[
            &envd,
            "--default-user",
            default_user,
            "--default-workdir",
            default_workdir,
        ]),
        environment: vec![(
            "PATH".to_owned(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        )],
        init: text(&[&format!("{GUEST_DIR}/launch"), "init"]),
        init_secret: init_secret.to_owned(),
    }
}

/// What root inside may do within its own user namespace: the set that containers usually have, less NET_RAW (forged packets) and MKNOD.
/// SYS_ADMIN, NET_ADMIN, SYS_PTRACE and SYS_MODULE are absent, and so is SYS_RESOURCE.
const CAPABILITIES: [(u8, &str); 12] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (3, "FOWNER"),
    (4, "FSETID"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (10, "NET_BIND_SERVICE"),
    (18, "SYS_CHROOT"),
    (29, "AUDIT_WRITE"),
    (31, "SETFCAP"),
];

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::identity::Instance;

    #[test]
    fn setup_plan_is_as_reviewed() {
        let slot = Slot::new(Instance::new(1).unwrap(), 7).unwrap();
        let plan = serde_json::to_string_pretty(&setup(slot, "/data/run/empty")).unwrap();
        expect![[r#"
            {
              "id_base": 2013724672,
              "id_count": 65536,
              "empty_root": "/data/run/empty",
              "sysctls": [
                [
                  "net/ipv4/ip_unprivileged_port_start",
                  "0"
                ],
                [
                  "net/ipv4/ping_group_range",
                  "0 65535"
                ],
                [
                  "net/ipv6/conf/default/disable_ipv6",
                  "1"
                ],
                [
                  "net/ipv4/ip_no_pmtu_disc",
                  "1"
                ],
                [
                  "user/max_inotify_instances",
                  "1024"
                ],
                [
                  "user/max_inotify_watches",
                  "65536"
                ],
                [
                  "user/max_user_namespaces",
                  "0"
                ]
              ],
              "proc_masked": [
                "kcore",
                "keys",
                "timer_list"
              ],
              "proc_read_only": [
                "sys",
                "sysrq-trigger",
                "irq",
                "bus",
                "fs"
              ],
              "network": {
                "interface": "eth0",
                "address": "169.254.0.21",
                "prefix": 30,
                "gateway": "169.254.0.22",
                "gateway_mac": [
                  2,
                  252,
                  0,
                  0,
                  0,
                  6
                ],
                "listen_port": 49983
              }
            }"#]]
        .assert_eq(&plan);
    }

    #[test]
    fn boot_plan_is_as_reviewed() {
        let mut plan = boot("user", "/home/user", "00ff");
        assert!(plan.seccomp.len() > 100);
        plan.seccomp.clear(); // has golden tests of its own
        let plan = serde_json::to_string_pretty(&plan).unwrap();
        expect![[r#"
            {
              "hostname": "e2b.local",
              "seccomp": [],
              "capabilities": [
                0,
                1,
                3,
                4,
                5,
                6,
                7,
                8,
                10,
                18,
                29,
                31
              ],
              "envd": [
                "/usr/lib/soulbox/envd",
                "--default-user",
                "user",
                "--default-workdir",
                "/home/user"
              ],
              "environment": [
                [
                  "PATH",
                  "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
                ]
              ],
              "init": [
                "/usr/lib/soulbox/launch",
                "init"
              ],
              "init_secret": "00ff"
            }"#]]
        .assert_eq(&plan);
    }
}
