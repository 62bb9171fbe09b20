//! The server on loopback with a fake name server of the host; each test has addresses and files of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Instant;

use hickory_resolver::proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME, MX, SOA, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::sync::oneshot;

use super::*;

/// A name server as the host would use, on port 53 of an address that nobody else has.
struct Upstream {
    address: IpAddr,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Upstream {
    async fn start() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        // Tests of one run are threads or processes of their own.
        let pid = std::process::id().to_be_bytes();
        let address = IpAddr::V4(Ipv4Addr::new(
            127,
            pid[2] | 0x40,
            pid[3],
            NEXT.fetch_add(1, Ordering::Relaxed),
        ));
        let udp = UdpSocket::bind((address, 53))
            .await
            .expect("port 53 of a loopback address, which needs root");
        let tcp = TcpListener::bind((address, 53)).await.expect("bind");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                tokio::select! {
                    received = udp.recv_from(&mut buffer) => {
                        let (length, from) = received.expect("receive");
                        count.fetch_add(1, Ordering::Relaxed);
                        if let Some(mut reply) = fake_answer(&buffer[..length]) {
                            let bytes = reply.to_vec().expect("encode");
                            if bytes.len() > 1232 {
                                reply = reply.truncate();
                            }
                            udp.send_to(&reply.to_vec().expect("encode"), from).await.expect("send");
                        }
                    }
                    accepted = tcp.accept() => {
                        let (mut stream, _) = accepted.expect("accept");
                        let length = stream.read_u16().await.expect("length");
                        let mut query = vec![0; usize::from(length)];
                        stream.read_exact(&mut query).await.expect("query");
                        let reply = fake_answer(&query).expect("answer").to_vec().expect("encode");
                        stream.write_u16(u16::try_from(reply.len()).expect("fits")).await.expect("write");
                        stream.write_all(&reply).await.expect("write");
                    }
                }
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("name")
}

/// None: the name server stays silent.
fn fake_answer(query: &[u8]) -> Option<Message> {
    let request = Message::from_vec(query).expect("our own resolver asks well");
    let question = &request.queries[0];
    let asked = question.name().to_ascii().to_lowercase();
    let mut reply = Message::response(request.metadata.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    let mut put = |owner: &str, data: RData| {
        reply.add_answer(Record::from_rdata(name(owner), 60, data));
    };
    match (asked.as_str(), question.query_type()) {
        ("a.test.", RecordType::A) => put("a.test.", RData::A(A::new(192, 0, 2, 1))),
        ("alias.test.", RecordType::A) => {
            put("alias.test.", RData::CNAME(CNAME(name("a.test."))));
            put("a.test.", RData::A(A::new(192, 0, 2, 1)));
        }
        ("a.test.", RecordType::TXT) => put("a.test.", RData::TXT(TXT::new(vec!["hello".into()]))),
        ("a.test.", RecordType::MX) => put("a.test.", RData::MX(MX::new(10, name("mail.test.")))),
        ("big.test.", RecordType::TXT) => {
            for number in 0..60 {
                put(
                    "big.test.",
                    RData::TXT(TXT::new(vec![format!("{number:040}")])),
                );
            }
        }
        ("broken.test.", _) => reply.metadata.response_code = ResponseCode::ServFail,
        ("silent.test.", _) => return None,
        _ => {
            if asked != "a.test." {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            let soa = SOA::new(name("ns.test."), name("root.test."), 1, 60, 60, 60, 60);
            reply.add_authority(Record::from_rdata(name("test."), 60, RData::SOA(soa)));
        }
    }
    Some(reply)
}

/// A server with its files, stopped at the end.
struct Fixture {
    address: SocketAddr,
    directory: tempfile::TempDir,
    upstream: Upstream,
    stop: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Fixture {
    async fn start(hosts: &str) -> Self {
        let upstream = Upstream::start().await;
        let directory = tempfile::tempdir().expect("temporary directory");
        let sources = Sources {
            hosts: directory.path().join("hosts"),
            resolv_conf: directory.path().join("resolv.conf"),
        };
        std::fs::write(&sources.hosts, hosts).expect("write");
        std::fs::write(
            &sources.resolv_conf,
            format!("nameserver {}\n", upstream.address),
        )
        .expect("write");
        let server = DnsServer::bind_with("127.0.0.1:0".parse().expect("address"), sources)
            .await
            .expect("bind");
        let address = server.address().expect("address");
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self {
            address,
            directory,
            upstream,
            stop: Some(stop),
            served: Some(served),
        }
    }

    async fn send(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        socket.send_to(bytes, self.address).await.expect("send");
        let mut buffer = vec![0; 4096];
        let (length, _) = timeout(Duration::from_secs(8), socket.recv_from(&mut buffer))
            .await
            .ok()?
            .expect("receive");
        buffer.truncate(length);
        Some(buffer)
    }

    async fn ask(&self, owner: &str, kind: RecordType) -> Message {
        let reply = self.send(&question(owner, kind)).await.expect("an answer");
        Message::from_vec(&reply).expect("a message")
    }

    async fn ask_by_tcp(&self, owner: &str, kind: RecordType) -> Message {
        let mut stream = TcpStream::connect(self.address).await.expect("connect");
        let query = question(owner, kind);
        stream
            .write_u16(u16::try_from(query.len()).expect("fits"))
            .await
            .expect("write");
        stream.write_all(&query).await.expect("write");
        let length = stream.read_u16().await.expect("length");
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await.expect("reply");
        Message::from_vec(&reply).expect("a message")
    }

    async fn stop(mut self) {
        let _ = self.stop.take().expect("once").send(());
        let served = self.served.take().expect("once");
        timeout(Duration::from_secs(5), served)
            .await
            .expect("ends when told")
            .expect("no panic");
        UdpSocket::bind(self.address)
            .await
            .expect("the port is free again");
    }
}

fn question(owner: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::query();
    query.metadata.id = 4711;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(owner), kind));
    query.to_vec().expect("encode")
}

fn data(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

#[tokio::test]
async fn the_hosts_file_wins_over_the_name_server() {
    let dns = Fixture::start("192.0.2.77 mirror.test\n192.0.2.78 a.test\n::5 six.test\n").await;
    let reply = dns.ask("mirror.test.", RecordType::A).await;
    assert_eq!(
        (reply.metadata.id, reply.metadata.response_code),
        (4711, ResponseCode::NoError)
    );
    assert!(reply.metadata.recursion_available);
    assert_eq!(data(&reply), ["192.0.2.77"]);
    assert_eq!(
        data(&dns.ask("A.Test.", RecordType::A).await),
        ["192.0.2.78"]
    );
    assert_eq!(dns.upstream.asked.load(Ordering::Relaxed), 0);
    dns.stop().await;
}

#[tokio::test]
async fn other_names_are_asked_of_the_name_server() {
    let dns = Fixture::start("").await;
    assert_eq!(
        data(&dns.ask("a.test.", RecordType::A).await),
        ["192.0.2.1"]
    );
    assert_eq!(
        data(&dns.ask("alias.test.", RecordType::A).await),
        ["a.test.", "192.0.2.1"]
    );
    assert_eq!(data(&dns.ask("a.test.", RecordType::TXT).await), ["hello"]);
    assert_eq!(
        data(&dns.ask("a.test.", RecordType::MX).await),
        ["10 mail.test."]
    );
    assert_eq!(
        data(&dns.ask_by_tcp("a.test.", RecordType::A).await),
        ["192.0.2.1"]
    );
    dns.stop().await;
}

#[tokio::test]
async fn ipv6_addresses_are_empty_and_missing_names_missing() {
    let dns = Fixture::start("::5 six.test\n192.0.2.77 mirror.test\n").await;
    for known in ["a.test.", "mirror.test."] {
        let reply = dns.ask(known, RecordType::AAAA).await;
        assert_eq!(
            (reply.metadata.response_code, data(&reply)),
            (ResponseCode::NoError, vec![]),
            "{known}"
        );
    }
    for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
        let reply = dns.ask("missing.test.", kind).await;
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NXDomain,
            "{kind}"
        );
        assert_eq!(reply.authorities.len(), 1, "the SOA says for how long");
    }
    let reply = dns.ask("a.test.", RecordType::SRV).await;
    assert_eq!(
        (reply.metadata.response_code, data(&reply)),
        (ResponseCode::NoError, vec![])
    );
    dns.stop().await;
}

#[tokio::test]
async fn a_name_server_that_fails_or_is_silent_is_a_failure_in_time() {
    let dns = Fixture::start("").await;
    assert_eq!(
        dns.ask("broken.test.", RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::ServFail
    );
    let start = Instant::now();
    assert_eq!(
        dns.ask("silent.test.", RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::ServFail
    );
    assert!(
        start.elapsed() < Duration::from_secs(7),
        "{:?}",
        start.elapsed()
    );
    dns.stop().await;
}

#[tokio::test]
async fn long_answers_are_cut_for_udp_and_whole_by_tcp() {
    let dns = Fixture::start("").await;
    let reply = dns.ask("big.test.", RecordType::TXT).await;
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    assert_eq!(
        dns.ask_by_tcp("big.test.", RecordType::TXT)
            .await
            .answers
            .len(),
        60
    );

    let mut query = Message::from_vec(&question("a.test.", RecordType::A)).expect("message");
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    query.set_edns(edns);
    let reply = dns
        .send(&query.to_vec().expect("encode"))
        .await
        .expect("an answer");
    let reply = Message::from_vec(&reply).expect("message");
    assert_eq!(reply.edns.map(|edns| edns.max_payload()), Some(1232));
    dns.stop().await;
}

#[tokio::test]
async fn changed_files_are_read_again() {
    let dns = Fixture::start("192.0.2.1 old.test\n").await;
    assert_eq!(
        data(&dns.ask("old.test.", RecordType::A).await),
        ["192.0.2.1"]
    );
    std::fs::write(dns.directory.path().join("hosts"), "192.0.2.200 new.test\n").expect("write");
    let second = Upstream::start().await;
    std::fs::write(
        dns.directory.path().join("resolv.conf"),
        format!("nameserver {}\n", second.address),
    )
    .expect("write");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(
        data(&dns.ask("new.test.", RecordType::A).await),
        ["192.0.2.200"]
    );
    assert_eq!(
        dns.ask("old.test.", RecordType::A)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(dns.upstream.asked.load(Ordering::Relaxed), 0);
    assert!(second.asked.load(Ordering::Relaxed) > 0);

    // Without name servers, or with only ourselves as one, what the hosts file knows is all there is.
    let own = format!("nameserver {}\n", dns.address.ip());
    for text in ["", "rubbish\n", own.as_str()] {
        std::fs::write(dns.directory.path().join("resolv.conf"), text).expect("write");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(
            dns.ask("a.test.", RecordType::A)
                .await
                .metadata
                .response_code,
            ResponseCode::ServFail,
            "{text}"
        );
        assert_eq!(
            data(&dns.ask("new.test.", RecordType::A).await),
            ["192.0.2.200"]
        );
    }
    dns.stop().await;
}

#[tokio::test]
async fn what_is_no_question_gets_its_code() {
    let dns = Fixture::start("").await;
    let code = async |bytes: Vec<u8>| {
        let reply = dns.send(&bytes).await.expect("an answer");
        assert_eq!(reply[..2], bytes[..2], "the number of the query");
        ResponseCode::from(0, reply[3] & 0xf)
    };
    let good = question("a.test.", RecordType::A);
    assert_eq!(
        code(question("a.test.", RecordType::ANY)).await,
        ResponseCode::NotImp
    );
    assert_eq!(
        code(question("a.test.", RecordType::AXFR)).await,
        ResponseCode::NotImp
    );
    let mut update = good.clone();
    update[2] = 0x28;
    assert_eq!(code(update).await, ResponseCode::NotImp);
    let mut chaos = good.clone();
    let last = chaos.len() - 1;
    chaos[last] = 3;
    assert_eq!(code(chaos).await, ResponseCode::NotImp);
    let mut none = good.clone();
    none[5] = 0;
    none.truncate(12);
    assert_eq!(code(none).await, ResponseCode::FormErr);
    assert_eq!(code(good[..20].to_vec()).await, ResponseCode::FormErr);
    dns.stop().await;
}

#[tokio::test]
async fn garbage_neither_answers_nor_hurts() {
    let dns = Fixture::start("192.0.2.77 mirror.test\n").await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let good = question("mirror.test.", RecordType::A);
    // A fixed sequence (a linear congruence), so that a failure can be had again.
    let mut state = 1_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    for round in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..=random() % 4 {
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
        }
        if round % 3 == 0 {
            bytes.truncate(random() as usize % good.len());
        }
        socket.send_to(&bytes, dns.address).await.expect("send");
        if round % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut stream = TcpStream::connect(dns.address).await.expect("connect");
    stream
        .write_all(&[0xff, 0xff, 1, 2, 3])
        .await
        .expect("write");
    // Closed, since no query is that long; with our bytes unread that is a reset.
    assert!(matches!(stream.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    // An answer sent to us must not make us answer.
    let mut reply = good.clone();
    reply[2] |= 0x80;
    let echo = UdpSocket::bind("127.0.0.2:0").await.expect("bind");
    echo.send_to(&reply, dns.address).await.expect("send");
    assert!(
        timeout(Duration::from_millis(300), echo.recv(&mut [0; 512]))
            .await
            .is_err()
    );

    let fresh = UdpSocket::bind("127.0.0.3:0")
        .await
        .expect("another source");
    fresh.send_to(&good, dns.address).await.expect("send");
    let mut buffer = [0; 512];
    let length = timeout(Duration::from_secs(8), fresh.recv(&mut buffer))
        .await
        .expect("in time")
        .expect("receive");
    assert_eq!(
        data(&Message::from_vec(&buffer[..length]).expect("message")),
        ["192.0.2.77"]
    );
    dns.stop().await;
}

#[tokio::test]
async fn one_source_cannot_starve_another() {
    let dns = Fixture::start("192.0.2.77 mirror.test\n").await;
    let greedy = UdpSocket::bind("127.0.0.4:0").await.expect("bind");
    for number in 0..200 {
        greedy
            .send_to(
                &question(&format!("n{number}.silent.test."), RecordType::A),
                dns.address,
            )
            .await
            .expect("send");
        greedy
            .send_to(&question("silent.test.", RecordType::A), dns.address)
            .await
            .expect("send");
    }
    let start = Instant::now();
    assert_eq!(
        data(&dns.ask("mirror.test.", RecordType::A).await),
        ["192.0.2.77"]
    );
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    // The greedy one was told at once that some were too many.
    let mut buffer = [0; 512];
    let length = timeout(Duration::from_secs(1), greedy.recv(&mut buffer))
        .await
        .expect("at once")
        .expect("receive");
    assert!(length >= 12);
    dns.stop().await;
}

#[tokio::test]
async fn a_server_that_is_its_own_name_server_does_not_ask_itself() {
    let pid = std::process::id().to_be_bytes();
    let own = IpAddr::V4(Ipv4Addr::new(127, pid[2] | 0x80, pid[3], 250));
    let directory = tempfile::tempdir().expect("temporary directory");
    let sources = Sources {
        hosts: directory.path().join("hosts"),
        resolv_conf: directory.path().join("resolv.conf"),
    };
    std::fs::write(&sources.hosts, "").expect("write");
    std::fs::write(&sources.resolv_conf, format!("nameserver {own}\n")).expect("write");
    let server = DnsServer::bind_with((own, 53).into(), sources)
        .await
        .expect("bind");
    let served = tokio::spawn(server.serve(std::future::pending()));
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let start = Instant::now();
    socket
        .send_to(&question("a.test.", RecordType::A), (own, 53))
        .await
        .expect("send");
    let mut buffer = [0; 512];
    let length = timeout(Duration::from_secs(8), socket.recv(&mut buffer))
        .await
        .expect("in time")
        .expect("receive");
    let reply = Message::from_vec(&buffer[..length]).expect("message");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    // One round of asking itself would end with the first attempt's timeout, 1.5 s.
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    served.abort();
}
