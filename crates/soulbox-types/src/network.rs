//! Where a sandbox may connect to: ranges of addresses, and the policy made of them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

/// The text is no `a.b.c.d/n`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IPv4 range such as 10.1.0.0/16")]
pub struct ParseCidrError(String);

impl Cidr {
    /// Every address.
    pub const ALL: Self = Self {
        address: Ipv4Addr::UNSPECIFIED,
        prefix: 0,
    };

    /// The first and the last address.
    #[must_use]
    pub fn bounds(self) -> (Ipv4Addr, Ipv4Addr) {
        let rest = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        (
            self.address,
            Ipv4Addr::from_bits(self.address.to_bits() | rest),
        )
    }

    fn contains(self, other: Self) -> bool {
        let ((first, last), (from, to)) = (self.bounds(), other.bounds());
        first <= from && to <= last
    }

    /// The range of twice the size whose other half is `other`.
    fn joined(self, other: Self) -> Option<Self> {
        let parent = self
            .prefix
            .checked_sub(1)
            .map(|prefix| Self::masked(self.address, prefix))?;
        (self != other && self.prefix == other.prefix && parent.contains(other)).then_some(parent)
    }

    fn masked(address: Ipv4Addr, prefix: u8) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Self {
            address: Ipv4Addr::from_bits(address.to_bits() & mask),
            prefix,
        }
    }

    /// The fewest ranges that hold the same addresses, in order and without overlap, which is what the kernel's interval sets take.
    #[must_use]
    pub fn merged(ranges: &[Self]) -> Vec<Self> {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        let mut merged: Vec<Self> = Vec::with_capacity(sorted.len());
        for range in sorted {
            if merged.last().is_some_and(|last| last.contains(range)) {
                continue;
            }
            let mut range = range;
            while let Some(parent) = merged.last().and_then(|last| last.joined(range)) {
                merged.pop();
                range = parent;
            }
            merged.push(range);
        }
        merged
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let error = || ParseCidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > 32 || !digits {
            return Err(error());
        }
        Ok(Self::masked(address, prefix))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Where a sandbox may connect to. The host, private ranges and other sandboxes are refused in every case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Egress {
    /// Nothing outside, DNS of the gateway included.
    Denied,
    /// Any public address.
    Open,
    /// These public addresses; no DNS, since a name is a message to whoever answers for it.
    Only(Vec<Cidr>),
    /// Any public address but `denied`, of which `allowed` may be reached all the same.
    Except {
        denied: Vec<Cidr>,
        allowed: Vec<Cidr>,
    },
}

impl Egress {
    /// The policy of two lists: what is denied is refused unless it is allowed, what neither names is open.
    #[must_use]
    pub fn of_lists(allowed: &[Cidr], denied: &[Cidr]) -> Self {
        let (allowed, denied) = (Cidr::merged(allowed), Cidr::merged(denied));
        match (denied.is_empty(), denied == [Cidr::ALL]) {
            (true, _) => Self::Open,
            (_, true) if allowed.is_empty() => Self::Denied,
            (_, true) => Self::Only(allowed),
            _ => Self::Except { denied, allowed },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_read_and_masked() {
        let check = |text: &str, expected: Option<&str>| {
            let read = text.parse::<Cidr>().ok().map(|cidr| cidr.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        };
        check("10.1.2.3/16", Some("10.1.0.0/16"));
        check("1.2.3.4", Some("1.2.3.4/32"));
        check("1.2.3.4/0", Some("0.0.0.0/0"));
        for bad in [
            "",
            "1.2.3.4/33",
            "1.2.3.4/+8",
            "1.2.3.4/",
            "1.2.3/8",
            "::1/128",
            "1.2.3.4/x",
            "1.2.3.4/8; drop",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn bounds_are_the_first_and_last_address() {
        let check = |text: &str, first: &str, last: &str| {
            let (from, to) = text.parse::<Cidr>().unwrap().bounds();
            assert_eq!(
                (from.to_string().as_str(), to.to_string().as_str()),
                (first, last)
            );
        };
        check("0.0.0.0/0", "0.0.0.0", "255.255.255.255");
        check("8.8.0.0/15", "8.8.0.0", "8.9.255.255");
        check("1.1.1.1", "1.1.1.1", "1.1.1.1");
    }

    #[test]
    fn merging_drops_what_is_contained_and_joins_halves() {
        let check = |texts: &[&str], expected: &[&str]| {
            assert_eq!(Cidr::merged(&ranges(texts)), ranges(expected), "{texts:?}");
        };
        check(&["8.8.8.8", "8.8.0.0/16", "8.8.8.8"], &["8.8.0.0/16"]);
        check(&["128.0.0.0/1", "0.0.0.0/2", "64.0.0.0/2"], &["0.0.0.0/0"]);
        // Neighbours, but not halves of one range.
        check(&["1.1.1.1", "1.1.1.2"], &["1.1.1.1", "1.1.1.2"]);
        check(&[], &[]);
    }

    #[test]
    fn allow_beats_deny_and_what_is_in_no_list_is_open() {
        let check = |allowed: &[&str], denied: &[&str], expected: Egress| {
            assert_eq!(
                Egress::of_lists(&ranges(allowed), &ranges(denied)),
                expected
            );
        };
        check(&[], &[], Egress::Open);
        check(&["1.1.1.1"], &[], Egress::Open);
        check(&[], &["0.0.0.0/0", "8.8.8.8"], Egress::Denied);
        check(&[], &["0.0.0.0/1", "128.0.0.0/1"], Egress::Denied);
        check(
            &["1.1.1.1"],
            &["0.0.0.0/0"],
            Egress::Only(ranges(&["1.1.1.1"])),
        );
        let except = Egress::Except {
            denied: ranges(&["8.0.0.0/8"]),
            allowed: ranges(&["8.8.8.8"]),
        };
        check(&["8.8.8.8"], &["8.0.0.0/8"], except);
    }
}
