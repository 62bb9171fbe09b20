//! A minimal netlink client, blocking: message building, one exchange, typed errors. Route and nftables messages are built on top of it by
//! the runtime, in a launcher that has no async runtime and on a path where a spawned `ip` or `nft` would cost ten times the work.
//!
//! Source: netlink(7), include/uapi/linux/netlink.h

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv,
    sendto, socket_with,
};

/// `nlmsghdr.nlmsg_flags` values.
pub const REQUEST: u16 = 0x1;
/// Ask for an answer even when all went well.
pub const ACK: u16 = 0x4;
/// Create the object when it is absent.
pub const CREATE: u16 = 0x400;
/// Fail when the object is there.
pub const EXCL: u16 = 0x200;
/// Replace the object when it is there.
pub const REPLACE: u16 = 0x100;
/// All objects.
pub const DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const HEADER_LEN: usize = 16;

/// Which kernel subsystem to speak with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Route,
    Netfilter,
    /// Sockets of other processes: sock_diag(7).
    Sockets,
}

/// One or more messages under construction. Values are in host byte order unless written as bytes.
#[derive(Debug, Default, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    start: usize,
}

/// Where an open nested attribute began; see [`Message::nest`].
#[derive(Debug)]
#[must_use]
pub struct Nest(usize);

impl Message {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the next message of the batch. `sequence` is what the kernel's answer repeats.
    pub fn begin(&mut self, kind: u16, flags: u16, sequence: u32) -> &mut Self {
        self.align();
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.fix_length();
        self
    }

    /// Appends the fixed part that follows the header (`ifinfomsg` and the like).
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.fix_length();
        self
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.align();
        let len = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.fix_length();
        self
    }

    /// Appends an attribute whose value is text with its final NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Opens a nested attribute; [`Message::close`] ends it.
    pub fn nest(&mut self, kind: u16) -> Nest {
        self.align();
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        self.fix_length();
        Nest(at)
    }

    /// Ends the nested attribute.
    pub fn close(&mut self, nest: Nest) -> &mut Self {
        self.align();
        let len = (self.bytes.len() - nest.0) as u16;
        self.bytes[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
        self.fix_length();
        self
    }

    fn align(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn fix_length(&mut self) {
        let len = (self.bytes.len() - self.start) as u32;
        let at = self.start;
        self.bytes[at..at + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// A netlink socket of the network namespace that the thread was in when it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket to `family`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol: Option<Protocol> = match family {
            Family::Route => None, // NETLINK_ROUTE is protocol 0.
            Family::Netfilter => Some(netlink::NETFILTER),
            Family::Sockets => Some(netlink::SOCK_DIAG),
        };
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { fd })
    }

    /// Sends the batch and reads until the answer to message number `last` has come; that message must carry [`ACK`] or be a dump.
    /// Gives the payloads (after the header) of all data messages. The first error, of any message, is the result.
    ///
    /// # Errors
    /// The kernel's errno for the first message that failed.
    pub fn exchange(&self, message: &Message, last: u32) -> io::Result<Vec<(u16, Vec<u8>)>> {
        sendto(
            &self.fd,
            &message.bytes,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        let mut data = Vec::new();
        let mut buffer = vec![0u8; 32 << 10];
        let mut first_error = None;
        loop {
            let (received, _) = recv(&self.fd, &mut buffer, RecvFlags::empty())?;
            let mut rest = &buffer[..received];
            while rest.len() >= HEADER_LEN {
                let len = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if len < HEADER_LEN || len > rest.len() {
                    return Err(io::Error::from_raw_os_error(libc::EBADMSG));
                }
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let sequence = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
                let payload = &rest[HEADER_LEN..len];
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let errno = payload
                            .get(..4)
                            .map_or(0, |e| -i32::from_ne_bytes([e[0], e[1], e[2], e[3]]));
                        if errno != 0 && first_error.is_none() {
                            first_error = Some(io::Error::from_raw_os_error(errno));
                        }
                        if sequence == last || errno != 0 {
                            // After an error in a batch nothing was done, and the kernel need not answer the rest.
                            return match first_error {
                                Some(error) => Err(error),
                                None => Ok(data),
                            };
                        }
                    }
                    _ => data.push((kind, payload.to_vec())),
                }
                rest = &rest[len.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

/// Splits a run of attributes into `(kind, value)`; the nesting mark is cut off the kind. Stops at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_lengths_are_right() {
        let mut message = Message::new();
        message.begin(16, REQUEST, 1).raw(&[0; 16]);
        let nest = message.nest(18);
        message.text(1, "veth");
        message.close(nest);
        // header 16, ifinfomsg 16, nest 4, text 4 + 5 padded to 12
        assert_eq!(message.bytes.len(), 48);
        assert_eq!(
            u32::from_ne_bytes(message.bytes[..4].try_into().unwrap()),
            48
        );
        let inner: Vec<_> = attributes(&message.bytes[32..]).collect();
        assert_eq!(inner.len(), 1);
        assert_eq!(inner[0].0, 18);
        assert_eq!(attributes(inner[0].1).next(), Some((1, &b"veth\0"[..])));
    }

    #[test]
    fn loopback_is_listed() {
        let socket = Socket::open(Family::Route).unwrap();
        let mut message = Message::new();
        message.begin(18, REQUEST | DUMP, 7).raw(&[0; 16]);
        let links = socket.exchange(&message, 7).unwrap();
        assert!(links.iter().any(|(_, link)| {
            attributes(&link[16..]).any(|(kind, value)| kind == 3 && value == b"lo\0")
        }));
    }
}
