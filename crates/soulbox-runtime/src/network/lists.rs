//! Elements of the two sets that hold ranges of addresses for an interface, as netlink messages.
//!
//! A key is the interface's name, padded, and an address; an element spans from one key to another of the same interface.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::Ipv4Addr;

use soulbox_sys::netlink::{self, Family, Message, Socket, attributes};
use soulbox_types::{Cidr, Egress};

use super::{
    IFNAMSIZ, NFT_DELSETELEM, NFT_GETSETELEM, NFT_NEWSETELEM, begin_batch, end_batch, rules,
};

const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;
/// Elements of one message: an attribute is at most 64 KiB long and an element takes 60 bytes.
const CHUNK: usize = 900;

type Range = (Ipv4Addr, Ipv4Addr);

/// What the sets hold for one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lists {
    allow: BTreeSet<Range>,
    deny: BTreeSet<Range>,
}

impl Lists {
    /// The elements that a policy needs.
    pub(super) fn of(egress: &Egress) -> Self {
        let ranges = |list: &[Cidr]| {
            Cidr::merged(list)
                .into_iter()
                .map(Cidr::bounds)
                .collect::<BTreeSet<_>>()
        };
        match egress {
            Egress::Denied | Egress::Open => Self::default(),
            Egress::Only(allowed) => Self {
                allow: ranges(allowed),
                deny: BTreeSet::new(),
            },
            Egress::Except { denied, allowed } => Self {
                allow: ranges(allowed),
                deny: ranges(denied),
            },
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Makes the sets hold `next` for the interface instead of this, in one transaction.
    pub(super) fn replace(&self, table: &str, interface: &str, next: &Self) -> io::Result<()> {
        let mut changes = Vec::new();
        for (set, old, new) in [
            (rules::ALLOW, &self.allow, &next.allow),
            (rules::DENY, &self.deny, &next.deny),
        ] {
            changes.push((NFT_DELSETELEM, set, old.difference(new)));
            changes.push((NFT_NEWSETELEM, set, new.difference(old)));
        }
        let mut messages = Vec::new();
        for (kind, set, ranges) in changes {
            let ranges: Vec<Range> = ranges.copied().collect();
            messages.extend(
                ranges
                    .chunks(CHUNK)
                    .map(|chunk| (kind, set, chunk.to_vec())),
            );
        }
        let Ok(last @ 1..) = u32::try_from(messages.len()) else {
            return Ok(());
        };
        let mut batch = Message::new();
        begin_batch(&mut batch);
        for (sequence, (kind, set, ranges)) in (1..).zip(&messages) {
            // One answer is enough: an error of any message comes in any case.
            let ack = if sequence == last { netlink::ACK } else { 0 };
            batch
                .begin(*kind, netlink::REQUEST | netlink::CREATE | ack, sequence)
                .raw(&[libc::AF_INET as u8, 0, 0, 0]);
            batch.text(1, table).text(2, set); // NFTA_SET_ELEM_LIST_TABLE, _SET
            let elements = batch.nest(NFTA_SET_ELEM_LIST_ELEMENTS);
            for (first, last) in ranges {
                let element = batch.nest(NFTA_LIST_ELEM);
                for (attribute, address) in
                    [(NFTA_SET_ELEM_KEY, first), (NFTA_SET_ELEM_KEY_END, last)]
                {
                    let nest = batch.nest(attribute);
                    batch.attribute(NFTA_DATA_VALUE, &key(interface, *address));
                    batch.close(nest);
                }
                batch.close(element);
            }
            batch.close(elements);
        }
        end_batch(&mut batch, last + 1);
        // A socket of its own: when a transaction of several messages fails, answers may be left unread.
        Socket::open(Family::Netfilter)?
            .exchange(&batch, last)
            .map(drop)
    }

    /// What the sets hold now, by interface: an earlier agent filled them.
    pub(super) fn read(socket: &Socket, table: &str) -> io::Result<HashMap<String, Self>> {
        let mut found: HashMap<String, Self> = HashMap::new();
        for set in [rules::ALLOW, rules::DENY] {
            let mut message = Message::new();
            message
                .begin(NFT_GETSETELEM, netlink::REQUEST | netlink::DUMP, 1)
                .raw(&[libc::AF_INET as u8, 0, 0, 0])
                .text(1, table)
                .text(2, set);
            for (_, payload) in socket.exchange(&message, 1)? {
                let lists = attributes(payload.get(4..).unwrap_or_default());
                for (_, elements) in lists.filter(|it| it.0 == NFTA_SET_ELEM_LIST_ELEMENTS) {
                    for (interface, range) in attributes(elements).filter_map(|it| parse(it.1)) {
                        let lists = found.entry(interface).or_default();
                        match set {
                            rules::ALLOW => lists.allow.insert(range),
                            _ => lists.deny.insert(range),
                        };
                    }
                }
            }
        }
        Ok(found)
    }
}

fn key(interface: &str, address: Ipv4Addr) -> [u8; IFNAMSIZ + 4] {
    let mut key = [0; IFNAMSIZ + 4];
    key[..interface.len()].copy_from_slice(interface.as_bytes());
    key[IFNAMSIZ..].copy_from_slice(&address.octets());
    key
}

/// Interface and range of one element; none for what is not ours.
fn parse(element: &[u8]) -> Option<(String, Range)> {
    let value = |wanted: u16| {
        let (_, nest) = attributes(element).find(|(kind, _)| *kind == wanted)?;
        let (_, value) = attributes(nest).find(|(kind, _)| *kind == NFTA_DATA_VALUE)?;
        let (name, address) = value.split_at_checked(IFNAMSIZ)?;
        let address: [u8; 4] = address.try_into().ok()?;
        let end = name.iter().position(|byte| *byte == 0)?;
        Some((
            String::from_utf8(name[..end].to_vec()).ok()?,
            Ipv4Addr::from(address),
        ))
    };
    let (interface, first) = value(NFTA_SET_ELEM_KEY)?;
    let last = value(NFTA_SET_ELEM_KEY_END).map_or(first, |(_, last)| last);
    Some((interface, (first, last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_disjoint_ranges() {
        let lists = Lists::of(&Egress::Except {
            denied: vec!["8.8.8.8".parse().unwrap(), "8.0.0.0/8".parse().unwrap()],
            allowed: Vec::new(),
        });
        let whole = (Ipv4Addr::new(8, 0, 0, 0), Ipv4Addr::new(8, 255, 255, 255));
        assert_eq!(lists.deny, BTreeSet::from([whole]));
        assert!(Lists::of(&Egress::Open).is_empty());
    }

    #[test]
    fn elements_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        for (kind, last) in [(NFTA_SET_ELEM_KEY, 0), (NFTA_SET_ELEM_KEY_END, 7)] {
            let value = key("sb0-12", Ipv4Addr::new(1, 1, 1, last));
            bytes.extend_from_slice(&[28, 0]);
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[24, 0, 1, 0]);
            bytes.extend_from_slice(&value);
        }
        let range = (Ipv4Addr::new(1, 1, 1, 0), Ipv4Addr::new(1, 1, 1, 7));
        assert_eq!(parse(&bytes), Some(("sb0-12".to_owned(), range)));
        assert_eq!(parse(&bytes[..10]), None);
    }
}
