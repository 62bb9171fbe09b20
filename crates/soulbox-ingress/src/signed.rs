//! Signed `/files` URLs on the shared host. Whoever got one from an SDK sends no header that names the sandbox, so the signature itself says whose
//! file it is: the one sandbox, live or paused until traffic comes, whose access token makes it.
//!
//! A search costs a digest for each sandbox, so it is rationed by the client's address. envd checks the signature again, and its expiration.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::Query;
use http::request::Parts;
use http::{Method, Uri};
use serde::Deserialize;
use soulbox_envd_proto::{FileOperation, sign_file};
use subtle::ConstantTimeEq;

use crate::refusal::Refusal;

/// No path in Linux is longer (PATH_MAX), and every byte of it is digested for each sandbox.
const MAX_PATH: usize = 4096;
/// Searches that an address may make at once, and how soon it may make the next one then.
const BURST: u32 = 100;
const ONE_EVERY: Duration = Duration::from_millis(20);
/// Addresses that are remembered. More at once share one ration.
const ADDRESSES: usize = 4096;

/// A request for a file whose sandbox is not named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedFile {
    path: String,
    username: String,
    operation: FileOperation,
    expiration: Option<i64>,
    signature: String,
}

/// As envd reads it.
#[derive(Deserialize)]
struct FilesQuery {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    signature: Option<String>,
    #[serde(default)]
    signature_expiration: Option<i64>,
}

impl SignedFile {
    /// The request as one for a signed file, if it is one.
    ///
    /// # Errors
    /// [`Refusal::SignatureInvalid`]: it has a signature that nobody can have made.
    pub(crate) fn of(request: &Parts) -> Result<Option<Self>, Refusal> {
        Self::read(&request.method, &request.uri)
    }

    /// [`SignedFile::of`] a request of this method and target.
    pub(crate) fn read(method: &Method, uri: &Uri) -> Result<Option<Self>, Refusal> {
        let operation = match *method {
            Method::GET | Method::HEAD => FileOperation::Read,
            Method::POST => FileOperation::Write,
            _ => return Ok(None),
        };
        let text = uri.query().unwrap_or_default();
        if uri.path() != "/files" || !text.contains("signature") {
            return Ok(None);
        }
        let Ok(Query(query)) = Query::<FilesQuery>::try_from_uri(uri) else {
            return Err(Refusal::SignatureInvalid);
        };
        let Some(signature) = query.signature else {
            return Ok(None);
        };
        let path = query.path.unwrap_or_default();
        let username = query.username.unwrap_or_default();
        if path.len() + username.len() > MAX_PATH {
            return Err(Refusal::SignatureInvalid);
        }
        Ok(Some(Self {
            path,
            username,
            operation,
            expiration: query.signature_expiration,
            signature,
        }))
    }

    /// Whether envd would refuse it for its age.
    pub(crate) fn has_expired(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs().cast_signed());
        self.expiration.is_some_and(|expiration| expiration < now)
    }

    /// Whether this token made the signature.
    pub(crate) fn is_signed_with(&self, token: &str) -> bool {
        let expected = sign_file(
            &self.path,
            self.operation,
            &self.username,
            token,
            self.expiration,
        );
        expected.as_bytes().ct_eq(self.signature.as_bytes()).into()
    }
}

/// What each address may still search.
#[derive(Default)]
pub(crate) struct Rations {
    /// When an address will have its whole burst again.
    full_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl Rations {
    /// Takes one search from the address's ration; false when there is none.
    pub(crate) fn take(&self, address: IpAddr) -> bool {
        self.take_at(address, Instant::now())
    }

    fn take_at(&self, address: IpAddr, now: Instant) -> bool {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= ADDRESSES {
            full_at.retain(|_, full| *full > now);
        }
        let mut key = subscriber(address);
        if full_at.len() >= ADDRESSES && !full_at.contains_key(&key) {
            key = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        }
        let full = full_at.entry(key).or_insert(now);
        let next = (*full).max(now) + ONE_EVERY;
        if next > now + ONE_EVERY * BURST {
            return false;
        }
        *full = next;
        true
    }
}

/// Who has one address of IPv6 has the whole /64.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, target: &str) -> Result<Option<SignedFile>, Refusal> {
        let request = http::Request::builder().method(method).uri(target);
        SignedFile::of(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn only_files_with_a_signature_are_searched_for() {
        for (method, target) in [
            ("GET", "/files?path=a"),
            ("GET", "/files"),
            ("GET", "/file?signature=v1_x"),
            ("GET", "/files/compose?signature=v1_x"),
            ("OPTIONS", "/files?signature=v1_x"),
            ("DELETE", "/files?signature=v1_x"),
            ("GET", "/files?path=signature"),
        ] {
            assert_eq!(parse(method, target), Ok(None), "{method} {target}");
        }
        let long = format!("/files?signature=v1_x&path={}", "a".repeat(MAX_PATH + 1));
        for target in [
            "/files?signature=a&signature=b",
            "/files?signature=a&signature_expiration=soon",
            &long,
        ] {
            assert_eq!(parse("GET", target), Err(Refusal::SignatureInvalid));
        }
    }

    #[test]
    fn a_signature_fits_one_token_operation_and_query() {
        let signature = sign_file("/a b+c", FileOperation::Write, "root", "token", Some(7));
        let encoded = signature.replace('+', "%2B").replace('/', "%2F");
        let target = format!(
            "/files?path=%2Fa+b%2Bc&username=root&signature={encoded}&signature_expiration=7"
        );
        let file = parse("POST", &target).unwrap().unwrap();
        assert!(file.is_signed_with("token"));
        assert!(!file.is_signed_with("other"));
        let read = parse("GET", &target).unwrap().unwrap();
        assert!(!read.is_signed_with("token"));
        let later = target.replace("expiration=7", "expiration=8");
        assert!(
            !parse("POST", &later)
                .unwrap()
                .unwrap()
                .is_signed_with("token")
        );
    }

    #[test]
    fn a_signature_has_an_end() {
        for (expiration, expired) in [
            ("", false),
            ("&signature_expiration=7", true),
            ("&signature_expiration=99999999999", false),
        ] {
            let target = format!("/files?path=a&signature=v1_x{expiration}");
            assert_eq!(
                parse("GET", &target).unwrap().unwrap().has_expired(),
                expired,
                "{target}"
            );
        }
    }

    #[test]
    fn searches_are_rationed_by_address() {
        let (rations, start) = (Rations::default(), Instant::now());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        for _ in 0..BURST {
            assert!(rations.take_at(one, start));
        }
        assert!(!rations.take_at(one, start));
        assert!(!rations.take_at(address("::ffff:10.0.0.1"), start));
        assert!(rations.take_at(other, start));
        assert!(rations.take_at(one, start + ONE_EVERY));
        assert!(!rations.take_at(one, start + ONE_EVERY));
        assert!(rations.take_at(address("2001:db8::1"), start));
        assert_eq!(
            subscriber(address("2001:db8::1")),
            subscriber(address("2001:db8::2"))
        );
    }

    #[test]
    fn memory_of_addresses_is_bounded() {
        let (rations, start) = (Rations::default(), Instant::now());
        for number in 0..2 * u32::try_from(ADDRESSES).unwrap() {
            rations.take_at(IpAddr::V4(number.into()), start);
        }
        assert_eq!(rations.full_at.lock().unwrap().len(), ADDRESSES + 1);
        // Those whose ration is whole again are forgotten when there is need.
        assert!(rations.take_at(IpAddr::V4([9, 9, 9, 9].into()), start + ONE_EVERY * BURST));
        assert_eq!(rations.full_at.lock().unwrap().len(), 1);
    }
}
