//! `/api-keys` and the administrator's keys of a team.

use serde::{Deserialize, Serialize};

/// `POST /api-keys`, `PATCH /api-keys/{id}` and `POST /admin/teams/{id}/api-keys`.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NameApiKey {
    /// 1 to 255 characters.
    #[cfg_attr(
        feature = "openapi",
        schema(required, min_length = 1, max_length = 255, nullable = false)
    )]
    pub name: Option<String>,
}

/// What may be shown of a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct KeyMask {
    pub prefix: String,
    pub value_length: u32,
    pub masked_value_prefix: String,
    pub masked_value_suffix: String,
}

/// An item of `GET /api-keys`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TeamApiKey {
    pub id: String,
    pub name: String,
    pub mask: KeyMask,
    pub created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used: Option<String>,
}

/// The answer to a create: the only time that the key itself is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedTeamApiKey {
    #[serde(flatten)]
    pub row: TeamApiKey,
    pub key: String,
}
