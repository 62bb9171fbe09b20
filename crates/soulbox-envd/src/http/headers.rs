//! Headers of a download: what the file is called, what it is, and which part of it was asked for.

use std::ops::Range;

/// `inline; filename=...`: bare where the name is a token, quoted where it is ASCII, else as RFC 5987 has it.
pub(crate) fn content_disposition(name: &str) -> String {
    if !name.is_empty() && name.bytes().all(is_token) {
        return format!("inline; filename={name}");
    }
    if name.bytes().all(|byte| (0x20..0x7F).contains(&byte)) {
        let escaped: String = name
            .chars()
            .flat_map(|letter| {
                matches!(letter, '"' | '\\')
                    .then_some('\\')
                    .into_iter()
                    .chain([letter])
            })
            .collect();
        return format!("inline; filename=\"{escaped}\"");
    }
    let encoded: String = name
        .bytes()
        .map(|byte| {
            if is_attribute(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    format!("inline; filename*=utf-8''{encoded}")
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// attr-char of RFC 5987.
fn is_attribute(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte)
}

/// The media type by the name's extension, else by the first bytes.
pub(crate) fn content_type(name: &str, first_bytes: Option<&[u8]>) -> &'static str {
    let extension = name
        .rsplit_once('.')
        .map(|(_, extension)| extension.to_ascii_lowercase());
    match extension.as_deref().unwrap_or_default() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "log" => "text/plain; charset=utf-8",
        "md" => "text/markdown; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "xml" => "text/xml; charset=utf-8",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "tar" => "application/x-tar",
        "wasm" => "application/wasm",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "svg" => "image/svg+xml",
        "ico" => "image/x-icon",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        _ => match first_bytes {
            Some(bytes) if looks_like_text(bytes) => "text/plain; charset=utf-8",
            _ => "application/octet-stream",
        },
    }
}

fn looks_like_text(bytes: &[u8]) -> bool {
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // The sample may end inside of a character.
        Err(error) if error.error_len().is_none() => {
            return !bytes[..error.valid_up_to()].iter().any(is_control);
        }
        Err(_) => return false,
    };
    !valid.as_bytes().iter().any(is_control)
}

fn is_control(byte: &u8) -> bool {
    *byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0C | 0x1B)
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Bytes(Range<u64>),
    Unsatisfiable,
}

/// The part of a file of `length` bytes that a `Range` header asks for. Several ranges at once, other units and nonsense
/// are answered with the whole, as the standard allows.
pub(crate) fn part(range: Option<&str>, length: u64) -> Part {
    let Some(spec) = range.and_then(|range| range.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Part::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => {
            within(first, last.saturating_add(1).min(length), length)
        }
        (Ok(first), Err(_)) if last.trim().is_empty() => within(first, length, length),
        (Err(_), Ok(suffix)) if first.trim().is_empty() => within(
            if suffix == 0 {
                length
            } else {
                length.saturating_sub(suffix)
            },
            length,
            length,
        ),
        _ => Part::Whole,
    }
}

fn within(start: u64, end: u64, length: u64) -> Part {
    if start < length {
        Part::Bytes(start..end)
    } else {
        Part::Unsatisfiable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_by_what_is_in_them() {
        let check = |name: &str, expected: &str| assert_eq!(content_disposition(name), expected);
        check("a.txt", "inline; filename=a.txt");
        check(".bashrc", "inline; filename=.bashrc");
        check("a b", "inline; filename=\"a b\"");
        check("a\"b\\c", "inline; filename=\"a\\\"b\\\\c\"");
        check("ü b", "inline; filename*=utf-8''%C3%BC%20b");
    }

    #[test]
    fn types_come_from_name_then_content() {
        assert_eq!(content_type("a.JSON", None), "application/json");
        assert_eq!(
            content_type("a", Some(b"text\n")),
            "text/plain; charset=utf-8"
        );
        assert_eq!(
            content_type("a", Some("ab\u{fc}".as_bytes().split_at(3).0)),
            "text/plain; charset=utf-8"
        );
        assert_eq!(
            content_type("a", Some(b"\x7fELF\x02\x01")),
            "application/octet-stream"
        );
        assert_eq!(content_type("a", None), "application/octet-stream");
    }

    #[test]
    fn ranges() {
        let check =
            |range: &str, expected: Part| assert_eq!(part(Some(range), 10), expected, "{range}");
        check("bytes=0-4", Part::Bytes(0..5));
        check("bytes=5-", Part::Bytes(5..10));
        check("bytes=5-99", Part::Bytes(5..10));
        check("bytes=-3", Part::Bytes(7..10));
        check("bytes=-99", Part::Bytes(0..10));
        check("bytes=10-", Part::Unsatisfiable);
        check("bytes=-0", Part::Unsatisfiable);
        check("bytes=4-2", Part::Whole);
        check("bytes=0-1,3-4", Part::Whole);
        check("lines=1-2", Part::Whole);
        assert_eq!(part(None, 10), Part::Whole);
    }
}
