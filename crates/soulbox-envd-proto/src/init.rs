//! The `/init` request: what the host tells envd at birth and after each resume, and how that is authorised.
//!
//! Programs in the sandbox can reach envd too, so the body is signed with a key that only the launch plan carried.

use std::collections::BTreeMap;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Header with the lower-case hex HMAC-SHA256 of the body, see [`sign_init`].
pub const INIT_SIGNATURE_HEADER: &str = "x-soulbox-init-signature";

/// Body of `POST /init`. Every field is optional, unknown ones are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitRequest {
    /// RFC 3339. A request older than the last applied one changes nothing. The clock itself is the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Replaces all variables of the sandbox when present and not empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// The token that requests must carry from now on. Absent clears it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// PEM certificates that programs of the sandbox shall trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// Refused with 501: SoulBox mounts volumes from the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
    /// Refused with 501: there is no such service beside a SoulBox sandbox.
    #[serde(rename = "hyperloopIP", skip_serializing_if = "Option::is_none")]
    pub hyperloop_ip: Option<String>,
    #[serde(rename = "lifecycleID", skip_serializing_if = "Option::is_none")]
    pub lifecycle_id: Option<String>,
    /// SoulBox: becomes `E2B_SANDBOX_ID`.
    #[serde(rename = "sandboxID", skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// SoulBox: becomes `E2B_TEMPLATE_ID`.
    #[serde(rename = "templateID", skip_serializing_if = "Option::is_none")]
    pub template_id: Option<String>,
    /// SoulBox: its processes go on from a moment from which others go on too. Random, and of this copy alone: it is written where programs
    /// find it, and the template's hooks run before the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<String>,
    /// SoulBox: the totals that `/metrics` reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<SandboxLimits>,
}

/// What the sandbox may use, as the host enforces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxLimits {
    pub memory_bytes: u64,
    pub cpu_millis: u32,
    pub disk_bytes: u64,
}

/// A network volume as upstream hosts describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeMount {
    pub nfs_target: String,
    pub path: String,
}

/// What `/etc/machine-id` says in a sandbox: 32 lower-case hex digits, of this sandbox alone and the same for as long as it is.
/// Source: machine-id(5)
#[must_use]
pub fn machine_id(sandbox_id: &str) -> String {
    let mut id = hex::encode(
        mac(b"machine-id", sandbox_id.as_bytes())
            .finalize()
            .into_bytes(),
    );
    id.truncate(32);
    id
}

/// The value of [`INIT_SIGNATURE_HEADER`] for `body`: lower-case hex.
pub fn sign_init(secret: &[u8], body: &[u8]) -> String {
    hex::encode(mac(secret, body).finalize().into_bytes())
}

/// Whether `signature` is [`sign_init`] of `body`. Takes the same time wherever they differ.
pub fn verify_init(secret: &[u8], body: &[u8], signature: &str) -> bool {
    let Ok(signature) = hex::decode(signature) else {
        return false;
    };
    mac(secret, body).verify_slice(&signature).is_ok()
}

fn mac(secret: &[u8], body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(body);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_covers_key_and_body() {
        let signature = sign_init(b"key", b"body");
        assert!(verify_init(b"key", b"body", &signature));
        assert!(!verify_init(b"yek", b"body", &signature));
        assert!(!verify_init(b"key", b"bodz", &signature));
        assert!(!verify_init(b"key", b"body", ""));
        assert!(!verify_init(b"key", b"body", "zz"));
    }

    #[test]
    fn signature_is_the_published_hmac() {
        // RFC 4231, test case 2.
        assert_eq!(
            sign_init(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn fields_have_the_wire_names() {
        let json = r#"{"envVars":{"A":"1"},"accessToken":"t","defaultUser":"user","hyperloopIP":"192.0.2.1","sandboxID":"s",
            "volumeMounts":[{"nfs_target":"h:/x","path":"/m"}],"limits":{"memoryBytes":1,"cpuMillis":2,"diskBytes":3},"new":true}"#;
        let init: InitRequest = serde_json::from_str(json).expect("parses");
        assert_eq!(
            init.env_vars
                .as_ref()
                .and_then(|vars| vars.get("A"))
                .map(String::as_str),
            Some("1")
        );
        assert_eq!(init.hyperloop_ip.as_deref(), Some("192.0.2.1"));
        assert_eq!(init.sandbox_id.as_deref(), Some("s"));
        assert_eq!(init.volume_mounts.len(), 1);
        assert_eq!(
            init.limits,
            Some(SandboxLimits {
                memory_bytes: 1,
                cpu_millis: 2,
                disk_bytes: 3
            })
        );
        let again: InitRequest =
            serde_json::from_str(&serde_json::to_string(&init).expect("serialises"))
                .expect("parses");
        assert_eq!(again, init);
    }
}
