//! What `/init` told the daemon: token, variables, default user and directory, limits. One value, replaced piece by
//! piece; readers copy what they need.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use buffa_types::google::protobuf::Timestamp;
use soulbox_envd_proto::{InitRequest, SandboxLimits, sign_init};

/// How the daemon was started; fixed for its life.
#[derive(Debug, Default)]
pub struct Startup {
    /// Key of the `/init` signature. Absent in tests: `/init` is then open until a token is set.
    pub init_secret: Option<Vec<u8>>,
    pub default_user: Option<String>,
    pub default_workdir: Option<String>,
}

#[derive(Debug)]
pub struct Settings {
    init_secret: Option<Vec<u8>>,
    state: Mutex<State>,
    service_began: AtomicBool,
}

#[derive(Debug)]
struct State {
    access_token: Option<String>,
    /// Variables that users set.
    variables: BTreeMap<String, String>,
    /// Variables of ours, which users cannot change.
    own_variables: BTreeMap<String, String>,
    default_user: String,
    default_workdir: Option<String>,
    limits: Option<SandboxLimits>,
    /// Seconds and nanoseconds of the newest applied `/init`.
    applied: Option<(i64, i32)>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    #[error("timestamp is not RFC 3339")]
    Timestamp,
    #[error("access token must not be empty")]
    EmptyToken,
    #[error("access token validation failed")]
    TokenMismatch,
    #[error("access token reset not authorized")]
    TokenReset,
}

/// Whether an `/init` changed anything.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    Yes,
    /// It was older than the last one.
    Stale,
}

impl Settings {
    pub fn new(startup: Startup) -> Self {
        let own_variables = BTreeMap::from([(
            "E2B_SANDBOX".to_owned(),
            startup.init_secret.is_some().to_string(),
        )]);
        // Made ahead and nobody's yet: until the first `/init` says otherwise, the token is one that nobody is told.
        // tests/security: an agent that nobody has claimed.
        let unclaimed = startup
            .init_secret
            .as_deref()
            .map(|secret| sign_init(secret, b"unclaimed"));
        Self {
            init_secret: startup.init_secret,
            state: Mutex::new(State {
                access_token: unclaimed,
                variables: BTreeMap::new(),
                own_variables,
                default_user: startup.default_user.unwrap_or_else(|| "root".to_owned()),
                default_workdir: startup.default_workdir,
                limits: None,
                applied: None,
            }),
            service_began: AtomicBool::new(false),
        }
    }

    pub fn init_secret(&self) -> Option<&[u8]> {
        self.init_secret.as_deref()
    }

    /// True for the first caller: the template's service is started once.
    pub(crate) fn begin_service(&self) -> bool {
        !self.service_began.swap(true, Ordering::Relaxed)
    }

    pub fn access_token(&self) -> Option<String> {
        self.lock().access_token.clone()
    }

    pub fn default_user(&self) -> String {
        self.lock().default_user.clone()
    }

    pub fn default_workdir(&self) -> Option<String> {
        self.lock().default_workdir.clone()
    }

    pub fn limits(&self) -> Option<SandboxLimits> {
        self.lock().limits
    }

    /// All variables that programs get, ours winning.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let state = self.lock();
        let mut all = state.variables.clone();
        all.extend(
            state
                .own_variables
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        all
    }

    /// Variables that users set, for a daemon that was told none since it began. False: it was told some.
    pub(crate) fn recall(&self, variables: BTreeMap<String, String>) -> bool {
        let mut state = self.lock();
        let untold = state.variables.is_empty();
        if untold {
            state.variables = variables;
        }
        untold
    }

    /// Whether `offered` opens a daemon whose token is set; everything opens one without.
    pub fn token_matches(&self, offered: Option<&str>) -> bool {
        match (&self.lock().access_token, offered) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(token), Some(offered)) => {
                equal_in_constant_time(token.as_bytes(), offered.as_bytes())
            }
        }
    }

    /// Applies an `/init` whose signature, where one is needed, was good.
    pub fn apply(&self, request: &InitRequest) -> Result<Applied, InitError> {
        if request.access_token.as_deref() == Some("") {
            return Err(InitError::EmptyToken);
        }
        let timestamp = request
            .timestamp
            .as_deref()
            .map(parse_timestamp)
            .transpose()?;
        let mut state = self.lock();
        // Without a secret there is nothing to tell the host from a program: a token, once set, stays.
        if self.init_secret.is_none()
            && state.access_token.is_some()
            && state.access_token != request.access_token
        {
            return Err(if request.access_token.is_some() {
                InitError::TokenMismatch
            } else {
                InitError::TokenReset
            });
        }
        if let Some(timestamp) = timestamp {
            if state.applied.is_some_and(|applied| timestamp < applied) {
                return Ok(Applied::Stale);
            }
            state.applied = Some(timestamp);
        }
        state.access_token.clone_from(&request.access_token);
        if let Some(variables) = request
            .env_vars
            .as_ref()
            .filter(|variables| !variables.is_empty())
        {
            state.variables.clone_from(variables);
        }
        if let Some(user) = request
            .default_user
            .as_ref()
            .filter(|user| !user.is_empty())
        {
            state.default_user.clone_from(user);
        }
        if let Some(workdir) = request
            .default_workdir
            .as_ref()
            .filter(|workdir| !workdir.is_empty())
        {
            state.default_workdir = Some(workdir.clone());
        }
        if request.limits.is_some() {
            state.limits = request.limits;
        }
        for (name, value) in [
            ("E2B_SANDBOX_ID", &request.sandbox_id),
            ("E2B_TEMPLATE_ID", &request.template_id),
        ] {
            if let Some(value) = value {
                state.own_variables.insert(name.to_owned(), value.clone());
            }
        }
        Ok(Applied::Yes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Length may show, contents may not.
pub fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |difference, (left, right)| {
            std::hint::black_box(difference | (left ^ right))
        }) == 0
}

fn parse_timestamp(text: &str) -> Result<(i64, i32), InitError> {
    let timestamp: Timestamp = serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| InitError::Timestamp)?;
    Ok((timestamp.seconds, timestamp.nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> InitRequest {
        serde_json::from_str(json).expect("parses")
    }

    #[test]
    fn older_requests_change_nothing() {
        let settings = Settings::new(Startup::default());
        let apply = |json| settings.apply(&request(json));
        assert_eq!(
            apply(r#"{"timestamp":"2026-01-01T00:00:02.5Z","envVars":{"A":"1"}}"#),
            Ok(Applied::Yes)
        );
        assert_eq!(
            apply(r#"{"timestamp":"2026-01-01T00:00:02Z","envVars":{"A":"2"}}"#),
            Ok(Applied::Stale)
        );
        assert_eq!(settings.variables().get("A").map(String::as_str), Some("1"));
        assert_eq!(
            apply(r#"{"timestamp":"yesterday"}"#),
            Err(InitError::Timestamp)
        );
    }

    #[test]
    fn variables_are_replaced_as_a_whole_and_ours_win() {
        let settings = Settings::new(Startup::default());
        settings
            .apply(&request(
                r#"{"envVars":{"A":"1","E2B_SANDBOX_ID":"fake"},"sandboxID":"real"}"#,
            ))
            .expect("applies");
        settings
            .apply(&request(r#"{"envVars":{"B":"2"}}"#))
            .expect("applies");
        settings.apply(&request("{}")).expect("applies");
        let variables = settings.variables();
        assert_eq!(variables.get("A"), None);
        assert_eq!(variables.get("B").map(String::as_str), Some("2"));
        assert_eq!(
            variables.get("E2B_SANDBOX_ID").map(String::as_str),
            Some("real")
        );
    }

    #[test]
    fn variables_of_an_earlier_boot_give_way() {
        let settings = Settings::new(Startup::default());
        let kept = BTreeMap::from([("A".to_owned(), "kept".to_owned())]);
        assert!(settings.recall(kept.clone()));
        assert_eq!(settings.variables().get("A"), kept.get("A"));
        settings
            .apply(&request(r#"{"envVars":{"A":"told"}}"#))
            .expect("applies");
        assert!(!settings.recall(kept));
        let told = settings.variables();
        assert_eq!(told.get("A").map(String::as_str), Some("told"));
    }

    #[test]
    fn without_a_secret_a_set_token_stays() {
        let settings = Settings::new(Startup::default());
        assert_eq!(
            settings.apply(&request(r#"{"accessToken":"a"}"#)),
            Ok(Applied::Yes)
        );
        assert_eq!(
            settings.apply(&request(r#"{"accessToken":"b"}"#)),
            Err(InitError::TokenMismatch)
        );
        assert_eq!(settings.apply(&request("{}")), Err(InitError::TokenReset));
        assert_eq!(
            settings.apply(&request(r#"{"accessToken":""}"#)),
            Err(InitError::EmptyToken)
        );
        assert!(
            settings.token_matches(Some("a"))
                && !settings.token_matches(Some("b"))
                && !settings.token_matches(None)
        );
    }

    #[test]
    fn with_a_secret_the_host_may_change_and_clear_the_token() {
        let settings = Settings::new(Startup {
            init_secret: Some(b"k".to_vec()),
            ..Startup::default()
        });
        assert!(!settings.token_matches(None));
        assert_eq!(
            settings.apply(&request(r#"{"accessToken":"a"}"#)),
            Ok(Applied::Yes)
        );
        assert_eq!(
            settings.apply(&request(r#"{"accessToken":"b"}"#)),
            Ok(Applied::Yes)
        );
        assert!(settings.token_matches(Some("b")));
        assert_eq!(settings.apply(&request("{}")), Ok(Applied::Yes));
        assert!(settings.token_matches(None));
    }
}
