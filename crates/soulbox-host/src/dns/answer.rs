//! One query, bytes to bytes.

use std::time::Duration;

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, Record, RecordType};
use tokio::time::timeout;

use super::sources::Resolver;

/// For all that one query may take; askers wait about as long.
const DEADLINE: Duration = Duration::from_secs(5);
/// What passes through every network in one datagram (the DNS flag day of 2020).
const LONGEST_DATAGRAM: u16 = 1232;
/// Names of the hosts file may change at any moment.
const LONGEST_LIFE: u32 = 300;
const HEADER: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What a lookup came to: the answer's code and records.
struct Outcome {
    code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl Outcome {
    fn empty(code: ResponseCode) -> Self {
        Self {
            code,
            answers: Vec::new(),
            authorities: Vec::new(),
        }
    }
}

/// None when the bytes deserve no answer: answers, and what is too short to have a number.
pub(super) async fn answer(
    query: &[u8],
    transport: Transport,
    resolver: &Resolver,
) -> Option<Vec<u8>> {
    if query.len() < HEADER || query[2] & 0x80 != 0 {
        return None;
    }
    let Ok(request) = Message::from_vec(query) else {
        return failure(query, ResponseCode::FormErr);
    };
    if request.metadata.op_code != OpCode::Query {
        return failure(query, ResponseCode::NotImp);
    }
    let [question] = request.queries.as_slice() else {
        return failure(query, ResponseCode::FormErr);
    };
    let outcome = match (question.query_class, question.query_type) {
        (DNSClass::IN, RecordType::ANY | RecordType::AXFR | RecordType::IXFR) => {
            Outcome::empty(ResponseCode::NotImp)
        }
        (DNSClass::IN, _) => match timeout(
            DEADLINE,
            look_up(question.name(), question.query_type, resolver),
        )
        .await
        {
            Ok(outcome) => outcome,
            Err(_) => Outcome::empty(ResponseCode::ServFail),
        },
        _ => Outcome::empty(ResponseCode::NotImp),
    };
    encode(&request, outcome, transport).or_else(|| failure(query, ResponseCode::ServFail))
}

/// What an asker gets whose query is one too many.
pub(super) fn overloaded(query: &[u8]) -> Option<Vec<u8>> {
    failure(query, ResponseCode::ServFail)
}

/// What an asker gets that may not ask. None when the bytes deserve no answer.
pub(super) fn refused(query: &[u8]) -> Option<Vec<u8>> {
    if query.len() < HEADER || query[2] & 0x80 != 0 {
        return None;
    }
    failure(query, ResponseCode::Refused)
}

async fn look_up(name: &Name, kind: RecordType, resolver: &Resolver) -> Outcome {
    let mut name = name.clone();
    name.set_fqdn(true);
    if kind == RecordType::AAAA {
        // No address, but a name that does not exist must still be said not to: many programs stop at the first such answer.
        let mut outcome = outcome(resolver.lookup(&name, RecordType::A).await);
        outcome
            .answers
            .retain(|record| record.record_type() == RecordType::CNAME);
        return outcome;
    }
    outcome(resolver.lookup(&name, kind).await)
}

fn outcome(result: Result<Lookup, NetError>) -> Outcome {
    match result {
        Ok(lookup) => {
            let mut answers = lookup.answers().to_vec();
            for record in &mut answers {
                record.ttl = record.ttl.min(LONGEST_LIFE);
            }
            Outcome {
                code: ResponseCode::NoError,
                answers,
                authorities: Vec::new(),
            }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Outcome {
            code: none.response_code,
            answers: Vec::new(),
            // Says for how long there will be none.
            authorities: none
                .soa
                .map(|soa| soa.into_record_of_rdata())
                .into_iter()
                .collect(),
        },
        Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::NXDomain))) => {
            Outcome::empty(ResponseCode::NXDomain)
        }
        Err(_) => Outcome::empty(ResponseCode::ServFail),
    }
}

fn encode(request: &Message, outcome: Outcome, transport: Transport) -> Option<Vec<u8>> {
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = outcome.code;
    response.queries.clone_from(&request.queries);
    response.answers = outcome.answers;
    response.authorities = outcome.authorities;
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LONGEST_DATAGRAM);
        response.set_edns(edns);
    }
    let bytes = response.to_vec().ok()?;
    let longest = match transport {
        Transport::Udp => request.max_payload().min(LONGEST_DATAGRAM),
        Transport::Tcp => u16::MAX,
    };
    if bytes.len() <= usize::from(longest) {
        Some(bytes)
    } else {
        response.truncate().to_vec().ok()
    }
}

/// A header and nothing else, made of the query's own bytes: also for queries that cannot be parsed.
fn failure(query: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let header = query.get(..HEADER)?;
    if header[2] & 0x80 != 0 {
        return None;
    }
    let mut message = Message::new(
        u16::from_be_bytes([header[0], header[1]]),
        MessageType::Response,
        OpCode::Query,
    );
    message.metadata.recursion_desired = header[2] & 1 != 0;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    let mut bytes = message.to_vec().ok()?;
    bytes[2] = (bytes[2] & 0x87) | (header[2] & 0x78); // the operation, one that we may not know
    Some(bytes)
}
