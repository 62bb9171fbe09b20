//! ICMP errors for a sandbox: the packet that each quoted carries the slot's own address, by which nothing inside knows it. One rule for each
//! kind puts the inner address there, so that a refused datagram or a lost way is told to the program that it is of.
//!
//! By netlink, since `nft` cannot say it: the checksum of the quoted header is put right together with the address, so that the two cancel out
//! in the checksum of the message.
//!
//! Source: include/uapi/linux/netfilter/nf_tables.h

use std::io;

use soulbox_sys::netlink::{self, Message, Socket};

use super::{begin_batch, end_batch};
use crate::identity::INNER_ADDRESS;

const NFT_NEWRULE: u16 = (10 << 8) | 6; // NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWRULE
const APPEND: u16 = 0x800; // NLM_F_APPEND
const LIST_ELEMENT: u16 = 1; // NFTA_LIST_ELEM
const VALUE: u16 = 1; // NFTA_DATA_VALUE
const REGISTER: u32 = 1; // NFT_REG_1
const TRANSPORT: u32 = 2; // NFT_PAYLOAD_TRANSPORT_HEADER
const L4PROTO: u32 = 16; // NFT_META_L4PROTO
const EQUAL: u32 = 0; // NFT_CMP_EQ
const INTERNET_CHECKSUM: u32 = 1; // NFT_PAYLOAD_CSUM_INET

const ICMP: u8 = 1;
/// Unreachable (with "too big"), time exceeded, parameter problem: RFC 792.
const KINDS: [u8; 3] = [3, 11, 12];
/// The quoted IP header begins behind eight bytes of ICMP; source address and checksum in it.
const QUOTED_SOURCE: u32 = 8 + 12;
const QUOTED_CHECKSUM: u32 = 8 + 10;

/// Appends the rules to the chain, which sees only packets to sandboxes.
pub(super) fn append(socket: &Socket, table: &str, chain: &str) -> io::Result<()> {
    let mut message = Message::new();
    begin_batch(&mut message);
    for (sequence, kind) in (1..).zip(KINDS) {
        message
            .begin(
                NFT_NEWRULE,
                netlink::REQUEST | netlink::ACK | netlink::CREATE | APPEND,
                sequence,
            )
            .raw(&[libc::AF_INET as u8, 0, 0, 0])
            .text(1, table) // NFTA_RULE_TABLE
            .text(2, chain); // NFTA_RULE_CHAIN
        let expressions = message.nest(4); // NFTA_RULE_EXPRESSIONS
        // NFTA_META_DREG, _KEY
        expression(&mut message, "meta", &[(1, REGISTER), (2, L4PROTO)], None);
        // NFTA_CMP_SREG, _OP, _DATA
        let equal = [(1, REGISTER), (2, EQUAL)];
        expression(&mut message, "cmp", &equal, Some((3, &[ICMP])));
        // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
        let load = [(1, REGISTER), (2, TRANSPORT), (3, 0), (4, 1)];
        expression(&mut message, "payload", &load, None);
        expression(&mut message, "cmp", &equal, Some((3, &[kind])));
        // NFTA_IMMEDIATE_DREG, _DATA
        let address = INNER_ADDRESS.octets();
        let data = Some((2, address.as_slice()));
        expression(&mut message, "immediate", &[(1, REGISTER)], data);
        // NFTA_PAYLOAD_SREG, _BASE, _OFFSET, _LEN, _CSUM_TYPE, _CSUM_OFFSET
        let store = [
            (5, REGISTER),
            (2, TRANSPORT),
            (3, QUOTED_SOURCE),
            (4, 4),
            (6, INTERNET_CHECKSUM),
            (7, QUOTED_CHECKSUM),
        ];
        expression(&mut message, "payload", &store, None);
        message.close(expressions);
    }
    let last = KINDS.len() as u32;
    end_batch(&mut message, last + 1);
    socket.exchange(&message, last).map(drop)
}

fn expression(
    message: &mut Message,
    name: &str,
    numbers: &[(u16, u32)],
    data: Option<(u16, &[u8])>,
) {
    let element = message.nest(LIST_ELEMENT);
    message.text(1, name); // NFTA_EXPR_NAME
    let inner = message.nest(2); // NFTA_EXPR_DATA
    for (kind, number) in numbers {
        message.attribute(*kind, &number.to_be_bytes());
    }
    if let Some((kind, value)) = data {
        let nest = message.nest(kind);
        message.attribute(VALUE, value);
        message.close(nest);
    }
    message.close(inner).close(element);
}
