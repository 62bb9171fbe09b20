//! `/openapi.json` and `/docs`: every route is described, and what is described is there.

use serde_json::Value;

use crate::fixture::{Answer, fixture};

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// Every operation: method, path with its parameters filled in, its description.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let parts = path.split('/');
        let filled: Vec<_> = parts
            .map(|part| if part.starts_with('{') { "i1" } else { part })
            .collect();
        for method in METHODS {
            if let Some(operation) = item.get(method) {
                all.push((method.to_uppercase(), filled.join("/"), operation.clone()));
            }
        }
    }
    all
}

#[tokio::test]
async fn what_is_described_is_there_and_says_what_it_needs() {
    let server = fixture().await;
    let document = server.call("GET", "/openapi.json", &[], None).await;
    let all = operations(&document.body);
    assert!(all.len() > 70, "{}", all.len());
    for (method, path, operation) in all {
        assert!(operation["summary"].is_string(), "{method} {path}");
        let answer = server.call(&method, &path, &[], None).await;
        if operation["security"].is_null() {
            assert_eq!(path, "/health");
            answer.status(200);
        } else if path.starts_with("/upload/") {
            // Its permission is in the query, after a path that means something.
            answer.expect(400, "Invalid team ID");
        } else {
            answer.expect(401, "authorization header is missing");
        }
        for status in operation["responses"]
            .as_object()
            .expect("responses")
            .keys()
        {
            let described =
                &operation["responses"][status]["content"]["application/json"]["schema"];
            if path != "/health" && status.starts_with(['4', '5']) {
                assert_eq!(
                    described["$ref"], "#/components/schemas/Error",
                    "{method} {path} {status}"
                );
            }
        }
    }
}

#[tokio::test]
async fn every_route_of_the_packages_is_described() {
    let server = fixture().await;
    let document = server.call("GET", "/openapi.json", &[], None).await.body;
    let has = |method: &str, path: &str| document["paths"][path][method].is_object();
    for (method, path) in [
        ("post", "/v2/sandboxes"),
        ("post", "/v2/sandboxes/{sandbox_id}/connect"),
        ("post", "/sandboxes"),
        ("post", "/sandboxes/{sandbox_id}/connect"),
        ("get", "/sandboxes"),
        ("get", "/v2/sandboxes"),
        ("get", "/sandboxes/{sandbox_id}"),
        ("delete", "/sandboxes/{sandbox_id}"),
        ("get", "/sandboxes/{sandbox_id}/metrics"),
        ("get", "/sandboxes/metrics"),
        ("get", "/sandboxes/{sandbox_id}/logs"),
        ("get", "/v2/sandboxes/{sandbox_id}/logs"),
        ("post", "/sandboxes/{sandbox_id}/timeout"),
        ("post", "/sandboxes/{sandbox_id}/refreshes"),
        ("put", "/sandboxes/{sandbox_id}/network"),
        ("post", "/sandboxes/{sandbox_id}/pause"),
        ("post", "/sandboxes/{sandbox_id}/resume"),
        ("post", "/sandboxes/{sandbox_id}/fork"),
        ("post", "/sandboxes/{sandbox_id}/snapshots"),
        ("get", "/snapshots"),
        ("post", "/v3/templates"),
        ("get", "/templates"),
        ("get", "/v2/templates"),
        ("get", "/templates/{template_id}"),
        ("delete", "/templates/{template_id}"),
        ("patch", "/v2/templates/{template_id}"),
        ("get", "/templates/{template_id}/files/{hash}"),
        ("post", "/v2/templates/{template_id}/builds/{build_id}"),
        ("get", "/templates/{template_id}/builds/{build_id}/status"),
        ("get", "/templates/{template_id}/builds/{build_id}/logs"),
        ("get", "/templates/aliases/{alias}"),
        ("post", "/templates/tags"),
        ("delete", "/templates/tags"),
        ("get", "/templates/{template_id}/tags"),
        ("get", "/default-templates"),
        ("get", "/teams"),
        ("get", "/teams/{team_id}/metrics"),
        ("get", "/teams/{team_id}/metrics/max"),
        ("get", "/api-keys"),
        ("post", "/api-keys"),
        ("patch", "/api-keys/{api_key_id}"),
        ("delete", "/api-keys/{api_key_id}"),
        ("get", "/nodes"),
        ("get", "/nodes/{node_id}"),
        ("post", "/nodes/{node_id}"),
        ("post", "/admin/teams/{team_id}/sandboxes/kill"),
        ("get", "/admin/sandboxes/running-counts"),
        ("post", "/admin/teams/{team_id}/api-keys"),
        ("get", "/volumes"),
        ("get", "/secrets"),
    ] {
        assert!(has(method, path), "{method} {path} is not described");
    }
}

#[tokio::test]
async fn the_page_shows_every_route_and_loads_nothing() {
    let server = fixture().await;
    let document = server.call("GET", "/openapi.json", &[], None).await;
    let page = server.call("GET", "/docs", &[], None).await.status(200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    for path in document.body["paths"].as_object().expect("paths").keys() {
        assert!(
            page.text.contains(&format!("<code>{path}</code>")),
            "{path}"
        );
    }
    for name in references(&document) {
        assert!(page.text.contains(&format!("id=\"{name}\"")), "{name}");
    }
    for outside in ["http://", "https://", "<script", "src="] {
        assert!(!page.text.contains(outside), "{outside}");
    }
}

/// The names of schemas that are referred to; each has to be there.
fn references(document: &Answer) -> Vec<String> {
    let schemas = document.body["components"]["schemas"]
        .as_object()
        .expect("schemas");
    let marker = "\"#/components/schemas/";
    let names = document.text.split(marker).skip(1).map(|rest| {
        let name = rest.split('"').next().expect("a name").to_owned();
        assert!(schemas.contains_key(&name), "no schema {name}");
        name
    });
    let names: Vec<_> = names.collect();
    assert!(names.len() > 100, "{}", names.len());
    names
}
