//! The host's table of tracked connections (conntrack), of which a slot that is given back leaves nothing.
//!
//! Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c

use std::io;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use soulbox_sys::netlink::{self, Message, Socket};

const IPCTNL_MSG_CT_DELETE: u16 = (1 << 8) | 2; // NFNL_SUBSYS_CTNETLINK
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_F_CTA_IP_SRC: u32 = 1;

/// Removes all connections that `source` has begun. Walks through the whole table: about a millisecond.
///
/// # Errors
/// The kernel's; nothing to remove is none.
pub(super) fn forget(socket: &Mutex<Socket>, source: Ipv4Addr) -> io::Result<()> {
    let mut message = Message::new();
    message
        .begin(IPCTNL_MSG_CT_DELETE, netlink::REQUEST | netlink::ACK, 1)
        .raw(&[libc::AF_INET as u8, 0, 0, 0]);
    let tuple = message.nest(CTA_TUPLE_ORIG);
    let address = message.nest(CTA_TUPLE_IP);
    message.attribute(CTA_IP_V4_SRC, &source.octets());
    message.close(address).close(tuple);
    let filter = message.nest(CTA_FILTER);
    message.attribute(
        CTA_FILTER_ORIG_FLAGS,
        &CTA_FILTER_F_CTA_IP_SRC.to_ne_bytes(),
    );
    message.close(filter);
    super::exchange(socket, &message, 1).map(drop)
}
