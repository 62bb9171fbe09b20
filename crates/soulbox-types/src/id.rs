//! Identifiers. Each is a checked string: a value of the type is always well formed.
//!
//! Nothing here makes one up; randomness belongs to the caller.

use std::fmt;
use std::str::FromStr;

/// Why a string is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a {kind}")]
pub struct IdError {
    kind: &'static str,
    value: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text of the identifier.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError { kind: $kind, value: text.chars().take(80).collect() })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A sandbox: 1 to 40 characters of `[a-z0-9]`; those that we make are `i` and 20 more.
    SandboxId, "sandbox ID", |text| is_lower_alphanumeric(text, 40)
);
id!(
    /// A template: 1 to 40 characters of `[a-z0-9]`; those that we make have 20.
    TemplateId, "template ID", |text| is_lower_alphanumeric(text, 40)
);
id!(
    /// One build, thus one version, of a template: a lower-case UUID.
    BuildId, "build ID", is_uuid
);
id!(
    /// A team, which is a tenant: a lower-case UUID.
    TeamId, "team ID", is_uuid
);

impl SandboxId {
    /// The identifier made of 20 random values; each is reduced to a character of `[a-z0-9]`.
    #[must_use]
    pub fn from_random(random: [u8; 20]) -> Self {
        Self(format!("i{}", base36(random)))
    }
}

impl TemplateId {
    /// The identifier made of 20 random values; each is reduced to a character of `[a-z0-9]`.
    #[must_use]
    pub fn from_random(random: [u8; 20]) -> Self {
        Self(base36(random))
    }
}

impl BuildId {
    /// The version 4 UUID with these random bits.
    #[must_use]
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(uuid_v4(random))
    }
}

impl TeamId {
    /// The version 4 UUID with these random bits.
    #[must_use]
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(uuid_v4(random))
    }
}

fn base36(random: [u8; 20]) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // 256 is no multiple of 36: the first four letters are a seventh more likely, 103 bits remain.
    random
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % 36]))
        .collect()
}

fn uuid_v4(mut bytes: [u8; 16]) -> String {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn is_lower_alphanumeric(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_valid() {
        assert_eq!(
            SandboxId::from_random([0; 20]).as_str(),
            "iaaaaaaaaaaaaaaaaaaaa"
        );
        for byte in 0..=255 {
            let id = SandboxId::from_random([byte; 20]);
            assert_eq!(id.as_str().parse::<SandboxId>(), Ok(id.clone()));
            let id = BuildId::from_random([byte; 16]);
            assert_eq!(id.as_str().parse::<BuildId>(), Ok(id.clone()));
        }
    }

    #[test]
    fn ids_refuse_other_characters() {
        for bad in ["", "A", "a-b", "a/b", "..", "a\0", "é", &"a".repeat(41)] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "00000000-0000-0000-0000-00000000000g",
            "0000000000000000000000000000000000000",
        ] {
            assert!(bad.parse::<TeamId>().is_err(), "{bad:?}");
        }
    }
}
