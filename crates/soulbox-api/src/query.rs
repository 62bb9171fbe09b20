//! Query strings, decoded strictly: a malformed escape is an error and not a guess.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::error::ApiError;

/// The parameters of a request, in order.
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// The first value of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A whole number within bounds.
    pub(crate) fn number(
        &self,
        name: &str,
        from: usize,
        to: usize,
    ) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if (from..=to).contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::invalid(&format!(
                "parameter \"{name}\" in query must be an integer between {from} and {to}"
            ))),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        pairs(parts.uri.query().unwrap_or_default())
            .map(Self)
            .ok_or_else(|| ApiError::invalid("the query string is malformed"))
    }
}

/// `metadata=...`: itself an escaped query string, which clients escape once more before it becomes a parameter.
pub(crate) fn metadata(value: &str) -> Result<Vec<(String, String)>, ApiError> {
    decode(value)
        .and_then(|text| pairs(&text))
        .ok_or_else(|| ApiError::bad_request("Error parsing metadata: malformed escape"))
        .and_then(|pairs| {
            let texts = pairs.iter().flat_map(|(key, value)| [key, value]);
            without_nul(texts)?;
            Ok(pairs)
        })
}

/// Records can hold no NUL in metadata.
pub(crate) fn without_nul<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<(), ApiError> {
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(ApiError::bad_request("metadata must not contain a NUL"));
    }
    Ok(())
}

fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        })
        .collect()
}

/// `+` is a space, `%` has to be followed by two hexadecimal digits, the result has to be UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?,
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn pairs_are_split_before_they_are_decoded() {
        let expected = vec![pair("a", "b&c"), pair("d", ""), pair("e", "f=g h")];
        assert_eq!(pairs("a=b%26c&d&&e=f=g+h"), Some(expected));
        for bad in ["a=%", "a=%4", "a=%zz", "a=%ff"] {
            assert_eq!(pairs(bad), None, "{bad}");
        }
    }

    #[test]
    fn metadata_is_what_the_official_clients_send() {
        // quote(value), urlencode(pairs) and the parameter's own escape, which is gone by now.
        let expected = vec![pair("k", "a b&c"), pair("l", "m")];
        assert_eq!(metadata("k=a%2520b%2526c&l=m").ok(), Some(expected.clone()));
        assert_eq!(metadata("k%3Da%2520b%2526c%26l%3Dm").ok(), Some(expected));
        for bad in ["k=%25zz", "k=%00", "%00=v"] {
            assert!(metadata(bad).is_err(), "{bad}");
        }
    }
}
