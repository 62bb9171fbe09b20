//! Times as RFC 3339, and the tokens of paginated lists that carry one.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use soulbox_control::{Cursor, Order};
use soulbox_types::UnixMillis;

/// In UTC, always with milliseconds, so that texts sort as their times do.
pub(crate) fn format(at: UnixMillis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    format!("{at:.3}")
}

/// Any offset; what is finer than a millisecond is cut off, what is before 1970 becomes 1970.
pub(crate) fn parse(text: &str) -> Option<UnixMillis> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(UnixMillis(u64::try_from(at.as_millisecond()).unwrap_or(0)))
}

/// An ascending list's token says so, since it means nothing in a descending one.
pub(crate) fn encode_cursor(cursor: &Cursor, order: Order) -> String {
    let suffix = match order {
        Order::OldestFirst => "__asc",
        Order::NewestFirst => "",
    };
    URL_SAFE.encode(format!("{}__{}{suffix}", format(cursor.at), cursor.id))
}

/// None for anything that [`encode_cursor`] would not have made for this order.
pub(crate) fn decode_cursor(token: &str, order: Order) -> Option<Cursor> {
    let text = String::from_utf8(URL_SAFE.decode(token).ok()?).ok()?;
    let mut parts = text.split("__");
    let (at, id, suffix) = (parts.next()?, parts.next()?, parts.next());
    let fits = match order {
        Order::OldestFirst => suffix == Some("asc"),
        Order::NewestFirst => suffix.is_none(),
    };
    if !fits || parts.next().is_some() || id.is_empty() {
        return None;
    }
    Some(Cursor {
        at: parse(at)?,
        id: id.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_there_and_back() {
        assert_eq!(
            format(UnixMillis(1_700_000_000_120)),
            "2023-11-14T22:13:20.120Z"
        );
        assert_eq!(format(UnixMillis(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            parse("2023-11-14T23:13:20.1209+01:00"),
            Some(UnixMillis(1_700_000_000_120))
        );
        assert_eq!(parse("yesterday"), None);
    }

    #[test]
    fn cursors_belong_to_their_order() {
        let cursor = Cursor {
            at: UnixMillis(1_700_000_000_120),
            id: "iabc".to_owned(),
        };
        for (order, other) in [
            (Order::OldestFirst, Order::NewestFirst),
            (Order::NewestFirst, Order::OldestFirst),
        ] {
            let token = encode_cursor(&cursor, order);
            assert_eq!(decode_cursor(&token, order), Some(cursor.clone()));
            assert_eq!(decode_cursor(&token, other), None);
        }
        for garbage in ["", "garbage", "%%%", "YQ=="] {
            assert_eq!(decode_cursor(garbage, Order::NewestFirst), None);
        }
    }
}
