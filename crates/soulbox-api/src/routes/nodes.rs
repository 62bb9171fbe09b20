//! `/nodes`: the hosts, for the administrator.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use soulbox_control::{NodeStatus, NodeView};
use soulbox_wire::rest;

use crate::App;
use crate::auth::Administrator;
use crate::error::ApiError;
use crate::input::{Body, Segment};
use crate::query::Params;
use crate::time;

/// All hosts of one server are one cluster.
const CLUSTER: &str = "00000000-0000-0000-0000-000000000000";

#[utoipa::path(get, path = "/nodes", tag = "admin", summary = "The hosts that sandboxes run on",
    security(("admin_token" = [])),
    params(("clusterID" = Option<String>, Query, description = "Of another cluster there are none")),
    responses((status = 200, body = [rest::Node])))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    _: Administrator,
    params: Params,
) -> Result<Json<Vec<rest::Node>>, ApiError> {
    if !of_this_cluster(params.get("clusterID")) {
        return Ok(Json(Vec::new()));
    }
    let nodes = app.control.nodes().await?;
    Ok(Json(nodes.into_iter().map(shown).collect()))
}

#[utoipa::path(get, path = "/nodes/{node_id}", tag = "admin", summary = "A host",
    security(("admin_token" = [])),
    params(("node_id" = String, Path), ("clusterID" = Option<String>, Query)),
    responses((status = 200, body = rest::Node), (status = 404, body = rest::Error, description = "No such host")))]
pub(crate) async fn detail(
    State(app): State<Arc<App>>,
    _: Administrator,
    Segment(id): Segment,
    params: Params,
) -> Result<Json<rest::Node>, ApiError> {
    let nodes = match of_this_cluster(params.get("clusterID")) {
        true => app.control.nodes().await?,
        false => Vec::new(),
    };
    let found = nodes.into_iter().find(|node| node.host.id == id);
    let mut node = shown(found.ok_or_else(missing)?);
    node.sandbox_starting_count = None;
    Ok(Json(node))
}

#[utoipa::path(post, path = "/nodes/{node_id}", tag = "admin", summary = "Drain a host, or let it take sandboxes again",
    description = "Only a `ready` one takes new sandboxes; what runs on it goes on. Holds until the host's agent ends.",
    security(("admin_token" = [])), params(("node_id" = String, Path)), request_body = rest::SetNodeStatus,
    responses((status = 204, description = "Changed"), (status = 404, body = rest::Error, description = "No such host")))]
pub(crate) async fn set_status(
    State(app): State<Arc<App>>,
    _: Administrator,
    Segment(id): Segment,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let body: rest::SetNodeStatus = body.required()?;
    let status = match body.status {
        rest::NodeStatus::Ready => NodeStatus::Ready,
        rest::NodeStatus::Draining => NodeStatus::Draining,
        rest::NodeStatus::Unhealthy => NodeStatus::Unhealthy,
        rest::NodeStatus::Standby => NodeStatus::Standby,
    };
    if of_this_cluster(body.cluster_id.as_deref())
        && app.control.set_node_status(&id, status).await?
    {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing())
    }
}

fn of_this_cluster(id: Option<&str>) -> bool {
    id.is_none_or(|id| id == CLUSTER)
}

fn missing() -> ApiError {
    ApiError::not_found("Node not found")
}

fn shown(node: NodeView) -> rest::Node {
    let host = node.host;
    rest::Node {
        id: host.id,
        service_instance_id: host.instance,
        cluster_id: CLUSTER.to_owned(),
        status: match host.status {
            NodeStatus::Ready => rest::NodeStatus::Ready,
            NodeStatus::Draining => rest::NodeStatus::Draining,
            NodeStatus::Unhealthy => rest::NodeStatus::Unhealthy,
            NodeStatus::Standby => rest::NodeStatus::Standby,
        },
        status_changed_at: time::format(host.status_changed_at),
        sandbox_count: host.sandboxes,
        sandbox_starting_count: Some(host.starting),
        create_successes: host.create_successes,
        create_fails: host.create_fails,
        version: host.version,
        commit: host.commit,
        machine_info: rest::MachineInfo {
            cpu_family: host.cpu_family,
            cpu_model: host.cpu_model,
            cpu_model_name: host.cpu_model_name,
            cpu_architecture: host.cpu_architecture,
        },
        metrics: rest::NodeMetrics {
            allocated_cpu: u32::try_from(node.allocated_milli_cpu.div_ceil(1000))
                .unwrap_or(u32::MAX),
            cpu_percent: host.cpu_percent,
            cpu_count: host.cpu_count,
            allocated_memory_bytes: node.allocated_memory,
            memory_used_bytes: host.memory_used,
            memory_total_bytes: host.memory_total,
            huge_pages_total: host.huge_pages_total,
            huge_pages_used: host.huge_pages_used,
            huge_pages_reserved: host.huge_pages_reserved,
            huge_page_size_bytes: host.huge_page_size,
            disks: host
                .disks
                .into_iter()
                .map(|disk| rest::NodeDisk {
                    mount_point: disk.mount_point,
                    device: disk.device,
                    filesystem_type: disk.filesystem,
                    used_bytes: disk.used,
                    total_bytes: disk.total,
                })
                .collect(),
        },
    }
}
