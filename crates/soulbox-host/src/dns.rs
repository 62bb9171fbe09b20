//! The gateway's name server: answers sandboxes as the host itself resolves, hosts file included.
//!
//! Flow: [`DnsServer`] receives, [`answer`] turns bytes into bytes, [`sources`] knows the host's configuration and asks
//! its name servers, [`limits`] bounds what any one sandbox can occupy. Guests are hostile: nothing of a query is trusted,
//! and an answer never needs more of us than one lookup with a deadline.
//!
//! Deliberately absent: search domains (the sandbox has its own resolver), DNSSEC validation, zone transfers, and IPv6
//! addresses, which are useless inside: AAAA answers are empty.

mod answer;
mod limits;
mod sources;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use answer::Transport;
use limits::Limits;
use sources::Resolver;
pub use sources::Sources;

/// Queries at work at once; each is a task of a few KiB.
const QUERIES: usize = 1024;
/// Of them, by one source address, which is one sandbox.
const QUERIES_OF_ONE: usize = 64;
const CONNECTIONS: usize = 256;
const CONNECTIONS_OF_ONE: usize = 8;
/// A connection without a query for so long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// No question is longer; an answer may be.
const LONGEST_QUERY: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("failed to listen for DNS on {address} ({transport})")]
    Bind {
        address: SocketAddr,
        transport: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A name server on one address, UDP and TCP.
#[derive(Debug)]
pub struct DnsServer {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    answers: Answers,
}

/// What is answered to a query.
#[derive(Debug, Clone)]
enum Answers {
    Resolved(Arc<Resolver>),
    /// A refusal, whatever is asked.
    Refusal,
}

impl Answers {
    async fn to(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match self {
            Self::Resolved(resolver) => answer::answer(query, transport, resolver).await,
            Self::Refusal => answer::refused(query),
        }
    }
}

impl DnsServer {
    /// Binds both sockets; nothing is answered before [`DnsServer::serve`]. The host's own configuration is the source.
    pub async fn bind(address: SocketAddr) -> Result<Self, DnsError> {
        Self::bind_with(address, Sources::default()).await
    }

    /// The same with other files than the host's. Port 0 takes a free one, the same for both.
    pub async fn bind_with(address: SocketAddr, sources: Sources) -> Result<Self, DnsError> {
        let answers = |bound| Answers::Resolved(Arc::new(Resolver::new(sources, bound)));
        Self::bind_answering(address, answers).await
    }

    /// Binds a name server that refuses every query at once: for sandboxes that may not go out, since a name is a message to whoever
    /// answers for it, and silence would make each program wait for its timeout.
    pub async fn bind_refusing(address: SocketAddr) -> Result<Self, DnsError> {
        Self::bind_answering(address, |_| Answers::Refusal).await
    }

    async fn bind_answering(
        address: SocketAddr,
        answers: impl FnOnce(SocketAddr) -> Answers,
    ) -> Result<Self, DnsError> {
        let failed = |transport| {
            move |source| DnsError::Bind {
                address,
                transport,
                source,
            }
        };
        let tcp = TcpListener::bind(address).await.map_err(failed("tcp"))?;
        let bound = tcp.local_addr().map_err(failed("tcp"))?;
        let udp = UdpSocket::bind(bound).await.map_err(failed("udp"))?;
        Ok(Self {
            udp: Arc::new(udp),
            tcp,
            answers: answers(bound),
        })
    }

    /// The address of both sockets.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Answers until `stop` ends; then all that is at work ends too.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let queries = Limits::new(QUERIES, QUERIES_OF_ONE);
        let connections = Limits::new(CONNECTIONS, CONNECTIONS_OF_ONE);
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; LONGEST_QUERY];
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                // A task's panic is its own: the query has no answer, the server goes on.
                Some(_) = tasks.join_next() => {}
                received = self.udp.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => {
                        let query = buffer[..length].to_vec();
                        self.take_datagram(query, from, &queries, &mut tasks);
                    }
                    // Linux reports here that an earlier answer did not arrive; that is the asker's loss.
                    Err(error) => pause_after(&error, "failed to receive a DNS query").await,
                },
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, from)) => {
                        if let Some(permit) = connections.take(from.ip()) {
                            let (answers, queries) = (self.answers.clone(), queries.clone());
                            tasks.spawn(async move {
                                // An end of the connection by either side is the normal end.
                                let _ = converse(stream, from, &answers, &queries).await;
                                drop(permit);
                            });
                        }
                    }
                    Err(error) => pause_after(&error, "failed to accept a DNS connection").await,
                },
            }
        }
    }

    fn take_datagram(
        &self,
        query: Vec<u8>,
        from: SocketAddr,
        queries: &Limits,
        tasks: &mut JoinSet<()>,
    ) {
        let Some(permit) = queries.take(from.ip()) else {
            // An answer at once, so that a resolver inside does not wait for its timeout. Not sent if the socket is full.
            if let Some(refusal) = answer::overloaded(&query) {
                let _ = self.udp.try_send_to(&refusal, from);
            }
            return;
        };
        let (udp, answers) = (Arc::clone(&self.udp), self.answers.clone());
        tasks.spawn(async move {
            if let Some(reply) = answers.to(&query, Transport::Udp).await {
                let _ = udp.send_to(&reply, from).await;
            }
            drop(permit);
        });
    }
}

/// One connection: queries one after another, each with two bytes of length before it (RFC 1035 4.2.2).
async fn converse(
    mut stream: TcpStream,
    from: SocketAddr,
    answers: &Answers,
    queries: &Limits,
) -> io::Result<()> {
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        if length > LONGEST_QUERY {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let mut query = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let reply = match queries.take(from.ip()) {
            Some(_permit) => answers.to(&query, Transport::Tcp).await,
            None => answer::overloaded(&query),
        };
        let Some(reply) = reply else { return Ok(()) };
        let length =
            u16::try_from(reply.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn pause_after(error: &io::Error, what: &'static str) {
    tracing::warn!(%error, "{what}");
    // Out of descriptors, for one: trying again at once would spin.
    tokio::time::sleep(Duration::from_millis(20)).await;
}
