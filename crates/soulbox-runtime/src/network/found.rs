//! What an installation has in the host's network, read and not changed.

use std::io;

use soulbox_sys::netlink::{self, Family, Message, Socket, attributes};

use super::{HostNetwork, NFT_GETSETELEM, NetworkError, exchange, failed, rules};
use crate::identity::{Instance, Slot};

const RTM_GETADDR: u16 = 22;
const IFA_LOCAL: u16 = 2;
const NFT_GETTABLE: u16 = (10 << 8) | 1; // NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// Objects of one installation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkObjects {
    /// Host ends of pairs, those that carry a slot's name.
    pub interfaces: Vec<Slot>,
    /// Tables of nftables, with their family.
    pub tables: Vec<String>,
    /// Sets and maps of the tables that have elements, with how many.
    pub elements: Vec<(String, usize)>,
    /// Whether the service address is there.
    pub service_address: bool,
}

impl NetworkObjects {
    /// Finds them.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn of(instance: Instance) -> Result<Self, NetworkError> {
        let network = HostNetwork::open(instance)?;
        let prefix = instance.interface_prefix();
        let interfaces = network
            .interfaces()
            .map_err(failed("list the interfaces"))?;
        let mut found = Self {
            interfaces: interfaces
                .iter()
                .filter_map(|name| slot_of(instance, name.strip_prefix(&prefix)?))
                .collect(),
            ..Self::default()
        };
        let netfilter =
            Socket::open(Family::Netfilter).map_err(failed("open a netfilter socket"))?;
        let table = instance.table();
        for (family, name) in [(libc::AF_INET, "ip"), (libc::AF_INET6, "ip6")] {
            if has_table(&netfilter, family, &table).map_err(failed("look for a table"))? {
                found.tables.push(format!("{name} {table}"));
            }
        }
        if found.tables.iter().any(|name| name.starts_with("ip ")) {
            for set in rules::SETS {
                match count(&netfilter, &table, set).map_err(failed(format!("read {set}")))? {
                    0 => {}
                    elements => found.elements.push((set.to_owned(), elements)),
                }
            }
        }
        let mut message = Message::new();
        message
            .begin(RTM_GETADDR, netlink::REQUEST | netlink::DUMP, 1)
            .raw(&[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0]);
        let service = instance.service_address().octets();
        found.service_address = exchange(&network.route, &message, 1)
            .map_err(failed("list the addresses"))?
            .iter()
            .any(|(_, address)| {
                attributes(address.get(8..).unwrap_or_default())
                    .any(|(kind, value)| kind == IFA_LOCAL && value == service)
            });
        Ok(found)
    }
}

/// The slot of a name's last part, written as we write it: `07` is nobody's.
pub(crate) fn slot_of(instance: Instance, index: &str) -> Option<Slot> {
    let slot = Slot::new(instance, index.parse().ok()?)?;
    (slot.index().to_string() == index).then_some(slot)
}

fn has_table(socket: &Socket, family: i32, table: &str) -> io::Result<bool> {
    let mut message = Message::new();
    message
        .begin(NFT_GETTABLE, netlink::REQUEST | netlink::ACK, 1)
        .raw(&[family as u8, 0, 0, 0])
        .text(1, table); // NFTA_TABLE_NAME
    match socket.exchange(&message, 1) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        other => other.map(|_| true),
    }
}

/// How many elements a set has; an absent set has none.
fn count(socket: &Socket, table: &str, set: &str) -> io::Result<usize> {
    let mut message = Message::new();
    message
        .begin(NFT_GETSETELEM, netlink::REQUEST | netlink::DUMP, 1)
        .raw(&[libc::AF_INET as u8, 0, 0, 0])
        .text(1, table)
        .text(2, set);
    let answer = match socket.exchange(&message, 1) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(0),
        other => other?,
    };
    Ok(answer
        .iter()
        .flat_map(|(_, payload)| attributes(payload.get(4..).unwrap_or_default()))
        .filter(|(kind, _)| *kind == NFTA_SET_ELEM_LIST_ELEMENTS)
        .map(|(_, elements)| attributes(elements).count())
        .sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_would_give_are_ours() {
        let instance = Instance::new(1).unwrap();
        assert_eq!(slot_of(instance, "7"), Slot::new(instance, 7));
        for foreign in ["", "07", "+7", "7a", "notes", "2048", "-1"] {
            assert_eq!(slot_of(instance, foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn an_installation_that_never_ran_has_nothing() {
        // The tests of this crate use the first ones.
        let found = NetworkObjects::of(Instance::new(15).unwrap()).expect("root");
        assert_eq!(found, NetworkObjects::default());
    }
}
