//! Outbound rules: what is accepted and refused, what reaches the host, and that a restart keeps it.

use serde_json::json;
use soulbox_control::HostFailure;
use soulbox_types::{Egress, Epoch};

use crate::fixture::{Answer, Fixture, KEY, eventually, fixture};

fn only(address: &str) -> Egress {
    Egress::Only(vec![address.parse().expect("an address")])
}

async fn put(server: &Fixture, id: &str, body: serde_json::Value) -> Answer {
    let path = format!("/sandboxes/{id}/network");
    server
        .call("PUT", &path, &[("x-api-key", KEY)], Some(body.to_string()))
        .await
}

fn refused(answer: &Answer, status: u16, text: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(answer.message().contains(text), "{answer:?}");
}

fn on_host(server: &Fixture, id: &str) -> Egress {
    let id = id.parse().expect("an ID");
    server.hosts.state().live[&id].egress.clone()
}

#[tokio::test]
async fn lists_reach_the_host_and_come_back() {
    let server = fixture().await;
    let body = json!({"templateID": "base", "timeout": 60, "allow_internet_access": false,
        "network": {"allowOut": ["1.1.1.1"], "denyOut": ["8.8.8.8/8"]}});
    let id = server.post("/sandboxes", body).await.status(201).id();
    assert_eq!(on_host(&server, &id), only("1.1.1.1"));
    let detail = server.get(&format!("/sandboxes/{id}")).await.body;
    assert_eq!(detail["allowInternetAccess"], false);
    let expected =
        json!({"allowPublicTraffic": true, "allowOut": ["1.1.1.1"], "denyOut": ["8.8.8.8/8"]});
    assert_eq!(detail["network"], expected);

    put(&server, &id, json!({"denyOut": ["0.0.0.0/0"]}))
        .await
        .status(204);
    assert_eq!(on_host(&server, &id), Egress::Denied);
    put(&server, &id, json!({})).await.status(204);
    assert_eq!(on_host(&server, &id), Egress::Open);
    let detail = server.get(&format!("/sandboxes/{id}")).await.body;
    assert!(detail.get("network").is_none() && detail.get("allowInternetAccess").is_none());
}

#[tokio::test]
async fn bad_lists_are_refused_on_create_and_update() {
    let server = fixture().await;
    let id = server.create().await;
    for (network, status, text) in [
        (
            json!({"denyOut": ["not-a-cidr"]}),
            400,
            "invalid denied CIDR not-a-cidr",
        ),
        (
            json!({"denyOut": ["0.0.0.0"]}),
            400,
            "invalid denied CIDR 0.0.0.0",
        ),
        (
            json!({"allowOut": ["a b"]}),
            400,
            "invalid allowed address a b",
        ),
        (json!({"allowOut": ["example.com"]}), 400, "ALL_TRAFFIC"),
        (
            json!({"allowOut": ["example.com"], "denyOut": ["0.0.0.0/0"]}),
            501,
            "domain",
        ),
        (json!({"allowOut": 7}), 400, "validation error"),
        (
            json!({"rules": {"a.com": []}}),
            400,
            "Network transform rules are not available",
        ),
        (
            json!({"egressProxy": {"address": "a:1"}}),
            403,
            "Egress proxy (network.egressProxy)",
        ),
        (
            json!({"dnsServers": ["8.8.8.8"]}),
            501,
            "network.dnsServers",
        ),
    ] {
        let create = json!({"templateID": "base", "network": network});
        refused(&server.post("/sandboxes", create).await, status, text);
        refused(&put(&server, &id, network).await, status, text);
    }
    assert_eq!(on_host(&server, &id), Egress::Open);
    put(&server, "iunknown", json!({})).await.status(404);
}

#[tokio::test]
async fn a_decision_that_went_out_meanwhile_does_not_matter() {
    let server = fixture().await;
    let id = server.create().await;
    server
        .hosts
        .state()
        .fail_egress
        .push(HostFailure::StaleEpoch);
    put(&server, &id, json!({"denyOut": ["0.0.0.0/0"]}))
        .await
        .status(204);
    assert_eq!(on_host(&server, &id), Egress::Denied);
}

#[tokio::test]
async fn one_that_its_host_is_about_to_end_is_not_found() {
    let server = fixture().await;
    let id = server.create().await;
    for failure in [
        HostFailure::NotFound,
        HostFailure::NotLive,
        HostFailure::BeingPaused,
        HostFailure::Lost("it may be damaged".to_owned()),
    ] {
        server.hosts.state().fail_egress.push(failure);
        put(&server, &id, json!({"denyOut": ["0.0.0.0/0"]}))
            .await
            .status(404);
    }
}

#[tokio::test]
async fn what_the_host_did_not_take_is_told_again_at_the_next_start() {
    let server = fixture().await;
    let id = server.create().await;
    let failure = HostFailure::Unreachable("gone".to_owned());
    server.hosts.state().fail_egress.push(failure);
    let answer = put(&server, &id, json!({"denyOut": ["0.0.0.0/0"]})).await;
    refused(&answer, 500, "will be told again");
    assert_eq!(on_host(&server, &id), Egress::Open);
    // Whatever the epoch is that the host has by then.
    let parsed = id.parse().expect("an ID");
    server
        .hosts
        .state()
        .live
        .get_mut(&parsed)
        .expect("live")
        .epoch = Epoch(1);
    let next = crate::recovery::restart(&server).await;
    eventually("the host has it", || on_host(&next, &id) == Egress::Denied).await;
}

#[tokio::test]
async fn what_concerns_requests_into_a_sandbox_is_kept_for_life() {
    let server = fixture().await;
    let network = json!({"allowPublicTraffic": null, "maskRequestHost": "app.local:${PORT}", "httpsPorts": [8443, 443]});
    let create = json!({"templateID": "base", "network": network});
    let id = server.post("/sandboxes", create).await.status(201).id();
    let expected = json!({"allowPublicTraffic": true, "maskRequestHost": "app.local:${PORT}", "httpsPorts": [8443, 443]});
    let shown = async || server.get(&format!("/sandboxes/{id}")).await.body["network"].clone();
    assert_eq!(shown().await, expected);
    put(&server, &id, json!({})).await.status(204);
    assert_eq!(shown().await, expected);
    for field in ["allowPublicTraffic", "maskRequestHost", "httpsPorts"] {
        let value = &network[field];
        let value = if value.is_null() {
            json!(false)
        } else {
            value.clone()
        };
        let answer = put(&server, &id, json!({field: value})).await;
        refused(&answer, 400, "can be set only when the sandbox is created");
    }
    assert_eq!(shown().await, expected);
}

#[tokio::test]
async fn bad_masks_and_ports_are_refused() {
    let server = fixture().await;
    for (network, text) in [
        (
            json!({"maskRequestHost": "ex ample"}),
            "mask request host is not valid: ex ample",
        ),
        (
            json!({"maskRequestHost": "bücher.example"}),
            "mask request host 'bücher.example' is not ASCII",
        ),
        (json!({"maskRequestHost": 7}), "validation error"),
        (json!({"httpsPorts": [0]}), "httpsPorts: 0 is no port"),
        (
            json!({"httpsPorts": [8443, 8443]}),
            "httpsPorts: port 8443 is named twice",
        ),
        (json!({"httpsPorts": [49983]}), "httpsPorts: port 49983"),
        (json!({"httpsPorts": ["8443"]}), "validation error"),
    ] {
        let create = json!({"templateID": "base", "network": network});
        refused(&server.post("/sandboxes", create).await, 400, text);
    }
}
