//! What a create may leave to its template: how long a sandbox lives, what happens then, and where it may connect to.
//!
//! Each piece is taken from the first that says it: the create, the template's build, the installation. Nothing of a template is a limit for
//! who creates: that has a key of the team, and could take another template. The team's limits hold in every case.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use soulbox_types::{Network, NetworkError};

use crate::clock;
use crate::error::CreateError;
use crate::hosts::AtDeadline;
use crate::store::Lifecycle;

/// Without a timeout of its own a sandbox that traffic resumes lives for so long, and never for less.
const LEAST_AUTO_RESUME: Duration = Duration::from_secs(300);

/// What somebody says of it; what is none is left to the next one. Kept in the store as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_deadline: Option<AtDeadline>,
    /// Whether traffic resumes it when it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", with = "network")]
    pub network: Option<Network>,
}

impl Policy {
    /// What happens at the deadline of a sandbox that was asked for with this, and lives so long.
    ///
    /// # Errors
    /// It is to be resumed by traffic, of a template that keeps no memory.
    pub(crate) fn lifecycle(
        &self,
        template: &Self,
        timeout: Duration,
    ) -> Result<Lifecycle, CreateError> {
        const DISK_ONLY: AtDeadline = AtDeadline::Pause { memory: false };
        let at_deadline = self.at_deadline.or(template.at_deadline);
        let at_deadline = at_deadline.unwrap_or_default();
        let auto_resume = match (self.auto_resume, template.auto_resume) {
            (Some(true), _) if at_deadline == DISK_ONLY => {
                return Err(CreateError::AutoResumeWithoutMemory);
            }
            (Some(asked), _) => asked,
            (None, usual) => usual == Some(true) && at_deadline != DISK_ONLY,
        };
        let lives = clock::millis(timeout.max(LEAST_AUTO_RESUME));
        Ok(Lifecycle {
            at_deadline,
            auto_resume: auto_resume.then_some(lives),
        })
    }
}

/// A network by the texts that it was made of; the rest follows from them.
mod network {
    use serde::{Deserializer, Serializer, de::Error};

    use super::{Deserialize, Network, NetworkError, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Texts {
        internet_access: Option<bool>,
        allow_out: Vec<String>,
        deny_out: Vec<String>,
    }

    pub(super) fn serialize<S: Serializer>(
        network: &Option<Network>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let texts = network.as_ref().map(|network| Texts {
            internet_access: network.internet_access(),
            allow_out: network.allow_out().to_vec(),
            deny_out: network.deny_out().to_vec(),
        });
        texts.serialize(to)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> Result<Option<Network>, D::Error> {
        let texts = Option::<Texts>::deserialize(from)?;
        let read = |it: Texts| Network::new(it.internet_access, it.allow_out, it.deny_out);
        let network: Result<_, NetworkError> = texts.map(read).transpose();
        network.map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: AtDeadline = AtDeadline::Pause { memory: true };
    const DISK: AtDeadline = AtDeadline::Pause { memory: false };

    #[test]
    fn a_policy_survives_the_store() {
        let check = |policy: Policy, expected: &str| {
            let text = serde_json::to_string(&policy).expect("JSON");
            assert_eq!(text, expected);
            assert_eq!(serde_json::from_str::<Policy>(&text).ok(), Some(policy));
        };
        check(Policy::default(), "{}");
        let lists = (vec!["1.1.1.1".to_owned()], vec!["8.0.0.0/8".to_owned()]);
        check(
            Policy {
                timeout: Some(Duration::from_secs(600)),
                at_deadline: Some(DISK),
                auto_resume: Some(false),
                network: Network::new(Some(false), lists.0, lists.1).ok(),
            },
            r#"{"timeout":{"secs":600,"nanos":0},"at_deadline":{"pause":{"memory":false}},"auto_resume":false,"network":{"internet_access":false,"allow_out":["1.1.1.1"],"deny_out":["8.0.0.0/8"]}}"#,
        );
    }

    fn lifecycle(
        asked: (Option<AtDeadline>, Option<bool>),
        template: (Option<AtDeadline>, Option<bool>),
    ) -> Option<(AtDeadline, bool)> {
        let policy = |(at_deadline, auto_resume)| Policy {
            at_deadline,
            auto_resume,
            ..Policy::default()
        };
        let timeout = Duration::from_secs(60);
        let found = policy(asked).lifecycle(&policy(template), timeout).ok()?;
        Some((found.at_deadline, found.auto_resume.is_some()))
    }

    #[test]
    fn each_piece_is_of_the_first_that_says_it() {
        let nothing = (None, None);
        let template = (Some(PAUSE), Some(true));
        let kill = Some(AtDeadline::Kill);
        assert_eq!(lifecycle(nothing, nothing), Some((AtDeadline::Kill, false)));
        assert_eq!(lifecycle(nothing, template), Some((PAUSE, true)));
        assert_eq!(
            lifecycle((kill, None), template),
            Some((AtDeadline::Kill, true))
        );
        assert_eq!(
            lifecycle((None, Some(false)), template),
            Some((PAUSE, false))
        );
        // Without memory nothing answers the request that would resume it.
        assert_eq!(
            lifecycle((Some(DISK), None), template),
            Some((DISK, false)),
            "the create's pause wins over the template's resume"
        );
        assert_eq!(lifecycle((None, Some(true)), (Some(DISK), None)), None);
    }

    #[test]
    fn who_is_resumed_by_traffic_lives_for_its_timeout_and_not_for_less_than_five_minutes() {
        let resumed = Policy {
            at_deadline: Some(PAUSE),
            auto_resume: Some(true),
            ..Policy::default()
        };
        let lives = |seconds| {
            let timeout = Duration::from_secs(seconds);
            let found = Policy::default().lifecycle(&resumed, timeout);
            found.expect("possible").auto_resume
        };
        assert_eq!((lives(15), lives(3600)), (Some(300_000), Some(3_600_000)));
    }
}
