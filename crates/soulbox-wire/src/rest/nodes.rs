//! `/nodes`: the hosts that sandboxes run on, for the administrator.

use serde::{Deserialize, Serialize};

/// Whether a node takes new sandboxes. Only a ready one does; what runs on it goes on in any state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    Ready,
    Draining,
    Unhealthy,
    Standby,
}

/// `POST /nodes/{id}`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct SetNodeStatus {
    pub status: NodeStatus,
    #[serde(rename = "clusterID")]
    pub cluster_id: Option<String>,
}

/// An item of `GET /nodes`, and the answer to `GET /nodes/{id}`, which lacks `sandboxStartingCount`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub id: String,
    /// Another one after each start of the host agent.
    #[serde(rename = "serviceInstanceID")]
    pub service_instance_id: String,
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    pub status: NodeStatus,
    pub status_changed_at: String,
    pub sandbox_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_starting_count: Option<u32>,
    pub create_successes: u64,
    pub create_fails: u64,
    pub version: String,
    /// Empty where the build does not know it.
    pub commit: String,
    pub machine_info: MachineInfo,
    pub metrics: NodeMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct MachineInfo {
    pub cpu_family: String,
    pub cpu_model: String,
    pub cpu_model_name: String,
    pub cpu_architecture: String,
}

/// Sizes are bytes; allocated is what sandboxes may use at most, all together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeMetrics {
    #[serde(rename = "allocatedCPU")]
    pub allocated_cpu: u32,
    /// Of all processors together, since the last time that somebody asked.
    pub cpu_percent: u32,
    pub cpu_count: u32,
    pub allocated_memory_bytes: u64,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    pub huge_pages_total: u64,
    pub huge_pages_used: u64,
    pub huge_pages_reserved: u64,
    pub huge_page_size_bytes: u64,
    pub disks: Vec<NodeDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeDisk {
    pub mount_point: String,
    pub device: String,
    pub filesystem_type: String,
    pub used_bytes: u64,
    pub total_bytes: u64,
}
