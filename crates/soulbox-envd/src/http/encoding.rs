//! Which content coding a download gets.

use http::{HeaderMap, header};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Identity,
    Gzip,
}

/// The choice for a request; `None` when nothing that we have is acceptable.
///
/// Clients send `gzip, deflate` by default, without meaning it, and compressing costs more than a local connection
/// does. So gzip is used only where it is the one coding asked for, or where identity is refused.
pub(crate) fn choose(headers: &HeaderMap) -> Option<Coding> {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    let mut others = false;
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for element in value.to_str().unwrap_or_default().split(',') {
            let mut parts = element.split(';');
            let coding = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
            let quality = parts
                .find_map(|part| part.trim().strip_prefix("q=")?.parse::<f32>().ok())
                .unwrap_or(1.0);
            match coding.as_str() {
                "" => {}
                "gzip" | "x-gzip" => gzip = Some(quality),
                "identity" => identity = Some(quality),
                "*" => any = Some(quality),
                _ => others |= quality > 0.0,
            }
        }
    }
    let identity_refused = identity.or(any) == Some(0.0);
    let gzip_accepted = gzip.or(any).is_some_and(|quality| quality > 0.0);
    let gzip_alone = gzip
        .is_some_and(|quality| quality > 0.0 && quality >= identity.unwrap_or(0.0))
        && !others
        && any.is_none_or(|any| any == 0.0);
    match (identity_refused, gzip_accepted) {
        (true, false) => None,
        (true, true) => Some(Coding::Gzip),
        (false, _) if gzip_alone => Some(Coding::Gzip),
        (false, _) => Some(Coding::Identity),
    }
}

/// Requests for a part or with a condition are answered without coding.
pub(crate) fn wants_identity(headers: &HeaderMap) -> bool {
    [
        header::RANGE,
        header::IF_MODIFIED_SINCE,
        header::IF_NONE_MATCH,
        header::IF_RANGE,
    ]
    .iter()
    .any(|name| headers.contains_key(name))
}

/// Whether identity is acceptable at all.
pub(crate) fn identity_acceptable(headers: &HeaderMap) -> bool {
    let mut any = None;
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for element in value.to_str().unwrap_or_default().split(',') {
            let refused = element.split(';').skip(1).any(|part| {
                part.trim()
                    .strip_prefix("q=")
                    .and_then(|q| q.parse::<f32>().ok())
                    == Some(0.0)
            });
            match element.split(';').next().unwrap_or_default().trim() {
                "identity" => return !refused,
                "*" => any = Some(!refused),
                _ => {}
            }
        }
    }
    any.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(accept: Option<&'static str>, expected: Option<Coding>) {
        let headers: HeaderMap = accept
            .into_iter()
            .map(|value| (header::ACCEPT_ENCODING, HeaderValue::from_static(value)))
            .collect();
        assert_eq!(choose(&headers), expected, "{accept:?}");
    }

    #[test]
    fn codings_are_chosen_as_clients_expect() {
        check(None, Some(Coding::Identity));
        check(Some("gzip"), Some(Coding::Gzip));
        check(Some("gzip, deflate"), Some(Coding::Identity));
        check(Some("zstd,gzip,br"), Some(Coding::Identity));
        check(Some("br"), Some(Coding::Identity));
        check(Some("gzip;q=0.5, identity"), Some(Coding::Identity));
        check(Some("gzip, identity;q=0.5"), Some(Coding::Gzip));
        check(Some("*"), Some(Coding::Identity));
        check(Some("*;q=0"), None);
        check(Some("*;q=0, gzip"), Some(Coding::Gzip));
        check(Some("identity;q=0, *"), Some(Coding::Gzip));
        check(Some("identity;q=0"), None);
        check(Some("gzip;q=0"), Some(Coding::Identity));
    }
}
