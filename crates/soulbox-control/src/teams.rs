//! New teams, as the administrator makes them.

use crate::clock;
use crate::random::{self, RandomError};
use crate::store::TeamRow;

/// As long as a label of a domain name may be.
const LONGEST_SLUG: usize = 63;
const LONGEST_NAME: usize = 255;

/// Why a team is not made.
#[derive(Debug, thiserror::Error)]
pub enum TeamError {
    #[error("`{0}` is no slug: 1 to 63 of a-z, 0-9, - and _")]
    Slug(String),
    #[error("the name of a team has 1 to 255 characters")]
    Name,
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// A team with an ID of its own and the installation's limits; not stored yet.
///
/// # Errors
/// The slug could not stand before a template's name; the name is empty or long.
pub fn new_team(slug: &str, name: &str) -> Result<TeamRow, TeamError> {
    let plain =
        |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || matches!(it, b'-' | b'_');
    if slug.is_empty() || slug.len() > LONGEST_SLUG || !slug.bytes().all(plain) {
        return Err(TeamError::Slug(slug.chars().take(80).collect()));
    }
    let name = name.trim();
    if name.is_empty() || name.chars().count() > LONGEST_NAME {
        return Err(TeamError::Name);
    }
    Ok(TeamRow {
        team_id: random::team_id()?,
        name: name.to_owned(),
        slug: slug.to_owned(),
        banned: false,
        blocked: false,
        blocked_reason: None,
        max_sandboxes: None,
        max_sandbox_hours: None,
        created_at: clock::wall(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_can_stand_before_names_of_templates() {
        let team = new_team("acme-2_x", " Acme ").expect("a team");
        assert_eq!(
            (team.slug.as_str(), team.name.as_str()),
            ("acme-2_x", "Acme")
        );
        for bad in ["", "Acme", "a/b", "a.b", "a b", "ä", &"a".repeat(64)] {
            assert!(
                matches!(new_team(bad, "x"), Err(TeamError::Slug(_))),
                "{bad}"
            );
        }
        for bad in ["", "  ", &"a".repeat(256)] {
            assert!(matches!(new_team("a", bad), Err(TeamError::Name)), "{bad}");
        }
    }
}
