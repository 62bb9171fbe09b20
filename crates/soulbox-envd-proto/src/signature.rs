//! Signatures of `/files` URLs: whoever knows the access token can hand out a URL for one path, user and operation.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOperation {
    Read,
    Write,
}

impl FileOperation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The value of query parameter `signature`. `path` and `user` are the raw query values, empty when absent;
/// `expiration` is in Unix seconds.
pub fn sign_file(
    path: &str,
    operation: FileOperation,
    user: &str,
    token: &str,
    expiration: Option<i64>,
) -> String {
    let mut text = format!("{path}:{}:{user}:{token}", operation.as_str());
    if let Some(expiration) = expiration {
        text.push_str(&format!(":{expiration}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";

    #[test]
    fn known_signature() {
        assert_eq!(
            sign_file("hello.txt", FileOperation::Read, "user", TOKEN, None),
            "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"
        );
    }

    #[test]
    fn every_part_counts() {
        let base = sign_file("a", FileOperation::Read, "u", TOKEN, Some(1));
        assert_ne!(
            base,
            sign_file("b", FileOperation::Read, "u", TOKEN, Some(1))
        );
        assert_ne!(
            base,
            sign_file("a", FileOperation::Write, "u", TOKEN, Some(1))
        );
        assert_ne!(
            base,
            sign_file("a", FileOperation::Read, "v", TOKEN, Some(1))
        );
        assert_ne!(base, sign_file("a", FileOperation::Read, "u", "t", Some(1)));
        assert_ne!(
            base,
            sign_file("a", FileOperation::Read, "u", TOKEN, Some(2))
        );
        assert_ne!(base, sign_file("a", FileOperation::Read, "u", TOKEN, None));
    }
}
