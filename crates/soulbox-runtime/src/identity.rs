//! What follows from the numbers of an installation and of a slot: names, ID ranges, addresses. All of it can be derived again after a crash.

use std::net::Ipv4Addr;

/// Installations (data directories with a running server) that one host can hold at once.
pub const INSTANCES: u8 = 16;
/// Slots of one installation.
pub const SLOTS: u16 = 2048;
/// User and group IDs of one sandbox.
pub const ID_COUNT: u32 = 65_536;

/// First host ID of all ranges: above what distributions give to people and `subuid`.
const ID_BASE: u32 = 0x7000_0000;
/// Shared address space (RFC 6598), which no public host uses: 100.64.0.0/10 in 16 blocks.
const BLOCKS: u32 = 0x6440_0000;
const BLOCK_BITS: u32 = 18;

/// The address of every sandbox, as seen inside.
pub const INNER_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The gateway of every sandbox, as seen inside; it answers DNS.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Where the service address answers names with a refusal; a sandbox that may not go out is led there from port 53.
pub const REFUSED_DNS_PORT: u16 = 54;
/// Length of the prefix that both lie in.
pub const INNER_PREFIX: u8 = 30;
/// Hardware address of every sandbox's interface.
pub const INNER_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 5];
/// Hardware address of the host's end of every pair.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 6];
/// The port of envd inside.
pub const ENVD_PORT: u16 = 49983;
/// The host name inside.
pub const HOSTNAME: &str = "e2b.local";

/// One installation on this host, `0..INSTANCES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(u8);

impl Instance {
    /// `None` when the number is out of range.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (number < INSTANCES).then_some(Self(number))
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The nftables tables (`ip` and `ip6`) of the installation.
    #[must_use]
    pub fn table(self) -> String {
        format!("soulbox_{}", self.0)
    }

    /// What the names of all its host interfaces begin with.
    #[must_use]
    pub fn interface_prefix(self) -> String {
        format!("sb{}-", self.0)
    }

    /// The cgroup, below the root of each hierarchy, that holds one cgroup a slot.
    #[must_use]
    pub fn cgroup(self) -> String {
        format!("soulbox-{}", self.0)
    }

    /// The address on the host that stands for [`GATEWAY_ADDRESS`].
    #[must_use]
    pub fn service_address(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.block() + 1)
    }

    /// The block of addresses of its sandboxes, as network address and prefix length.
    #[must_use]
    pub fn address_block(self) -> (Ipv4Addr, u8) {
        (Ipv4Addr::from_bits(self.block()), 32 - BLOCK_BITS as u8)
    }

    fn block(self) -> u32 {
        BLOCKS + (u32::from(self.0) << BLOCK_BITS)
    }
}

/// One slot of an installation: the place of at most one sandbox at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    instance: Instance,
    index: u16,
}

impl Slot {
    /// `None` when the index is out of range.
    #[must_use]
    pub fn new(instance: Instance, index: u16) -> Option<Self> {
        (index < SLOTS).then_some(Self { instance, index })
    }

    /// The installation.
    #[must_use]
    pub fn instance(self) -> Instance {
        self.instance
    }

    /// The number within the installation.
    #[must_use]
    pub fn index(self) -> u16 {
        self.index
    }

    /// The host ID that is 0 inside.
    #[must_use]
    pub fn id_base(self) -> u32 {
        ID_BASE + (u32::from(self.instance.0) * u32::from(SLOTS) + u32::from(self.index)) * ID_COUNT
    }

    /// The name of the host's end of the veth pair; at most 15 bytes (IFNAMSIZ).
    #[must_use]
    pub fn interface(self) -> String {
        format!("{}{}", self.instance.interface_prefix(), self.index)
    }

    /// The address that stands for [`INNER_ADDRESS`] outside.
    #[must_use]
    pub fn outer_address(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.instance.block() + 256 + u32::from(self.index))
    }

    /// The cgroup below the root of each hierarchy.
    #[must_use]
    pub fn cgroup(self) -> String {
        format!("{}/{}", self.instance.cgroup(), self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap_and_fit() {
        let slot = |instance, index| Slot::new(Instance::new(instance).unwrap(), index).unwrap();
        let (first, last) = (slot(0, 0), slot(INSTANCES - 1, SLOTS - 1));
        assert_eq!(first.id_base(), 0x7000_0000);
        assert!(last.id_base().checked_add(ID_COUNT).is_some());
        assert_eq!(
            slot(0, SLOTS - 1).id_base() + ID_COUNT,
            slot(1, 0).id_base()
        );
        assert_eq!(first.outer_address(), Ipv4Addr::new(100, 64, 1, 0));
        assert_eq!(slot(1, 0).outer_address(), Ipv4Addr::new(100, 68, 1, 0));
        assert_eq!(last.outer_address(), Ipv4Addr::new(100, 124, 8, 255));
        assert!(last.interface().len() <= 15);
        assert!(Instance::new(INSTANCES).is_none());
        assert!(Slot::new(first.instance(), SLOTS).is_none());
    }
}
