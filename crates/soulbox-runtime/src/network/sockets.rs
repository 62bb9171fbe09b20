//! Ending TCP connections of a network namespace from outside of the programs that have them.
//!
//! Source: sock_diag(7), include/uapi/linux/inet_diag.h

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use soulbox_sys::netlink::{self, Family, Message, Socket, attributes};

/// The mark of every socket that the agent makes inside ([`crate::dial`]). Programs inside cannot set it: that needs NET_ADMIN or NET_RAW.
pub const DIALLED: u32 = 0x5042_0001;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_MARK: u16 = 15;
/// All states but LISTEN (10); numbers of include/net/tcp_states.h.
const CONNECTIONS: u32 = 0xfff & !(1 << 10);
/// `struct inet_diag_sockid` within `struct inet_diag_msg`.
const ID: std::ops::Range<usize> = 4..52;

/// Which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connections {
    /// Those that came in through the agent: their other end is no part of the sandbox.
    Dialled,
    /// Those with a peer outside of the sandbox: the peer's network knows nothing of a restored end.
    Outside,
}

/// Resets these connections of the caller's network namespace; gives their number. Needs NET_ADMIN there.
///
/// # Errors
/// The kernel's; `EOPNOTSUPP` without CONFIG_INET_DIAG_DESTROY.
pub fn reset(which: Connections) -> io::Result<usize> {
    let socket = Socket::open(Family::Sockets)?;
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut message = Message::new();
        message
            .begin(SOCK_DIAG_BY_FAMILY, netlink::REQUEST | netlink::DUMP, 1)
            .raw(&request(family, &[0; 48]));
        for (_, found) in socket.exchange(&message, 1)? {
            let Some(id) = found.get(ID) else { continue };
            if !is_chosen(which, family, &found) {
                continue;
            }
            let mut message = Message::new();
            message
                .begin(SOCK_DESTROY, netlink::REQUEST | netlink::ACK, 1)
                .raw(&request(family, id));
            match socket.exchange(&message, 1) {
                Ok(_) => ended += 1,
                // It ended by itself meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ended)
}

/// `struct inet_diag_req_v2`.
fn request(family: i32, id: &[u8]) -> Vec<u8> {
    let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend(CONNECTIONS.to_ne_bytes());
    request.extend(id);
    request
}

fn is_chosen(which: Connections, family: i32, found: &[u8]) -> bool {
    match which {
        Connections::Dialled => attributes(found.get(72..).unwrap_or_default())
            .any(|(kind, value)| kind == INET_DIAG_MARK && value == DIALLED.to_ne_bytes()),
        // After two ports and the source, sixteen bytes.
        Connections::Outside => match found.get(24..40) {
            Some(peer) => !is_inner(family, peer),
            None => false,
        },
    }
}

fn is_inner(family: i32, peer: &[u8]) -> bool {
    let address = if family == libc::AF_INET {
        <[u8; 4]>::try_from(&peer[..4]).map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)))
    } else {
        <[u8; 16]>::try_from(peer).map(|bytes| Ipv6Addr::from(bytes).to_canonical())
    };
    address.is_ok_and(|address| address.is_loopback() || address == crate::identity::INNER_ADDRESS)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn peers_inside_are_told_apart() {
        let mut mapped = [0u8; 16];
        mapped[10..].copy_from_slice(&[255, 255, 127, 0, 0, 1]);
        assert!(is_inner(libc::AF_INET6, &mapped));
        mapped[12..].copy_from_slice(&[1, 1, 1, 1]);
        assert!(!is_inner(libc::AF_INET6, &mapped));
        assert!(is_inner(
            libc::AF_INET,
            &[127, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        ));
        assert!(is_inner(
            libc::AF_INET,
            &[169, 254, 0, 21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        ));
        assert!(!is_inner(
            libc::AF_INET,
            &[8, 8, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        ));
    }

    #[test]
    fn a_connection_is_reset_by_its_mark() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let marked = crate::dial::marked_socket(false).unwrap();
        rustix::io::ioctl_fionbio(&marked, false).unwrap();
        rustix::net::connect(&marked, &address).unwrap();
        let plain = TcpStream::connect(address).unwrap();
        let (mut first, _) = listener.accept().unwrap();
        let (second, _) = listener.accept().unwrap();
        assert!(reset(Connections::Dialled).unwrap() >= 1);
        let error = first.read(&mut [0u8; 1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        drop(plain);
        assert_eq!(
            (&second).read(&mut [0u8; 1]).unwrap(),
            0,
            "the other one ends in peace"
        );
    }
}
