//! Which crate may know which: the arrows of docs/ARCHITECTURE.md. Dev-dependencies are free.

use anyhow::Context;
use serde_json::Value;

/// Each crate of ours with those of ours that it may depend on.
const ARROWS: [(&str, &[&str]); 24] = [
    ("soulbox-types", &[]),
    ("soulbox-wire", &["soulbox-types"]),
    ("soulbox-envd-proto", &[]),
    // Ships to users: it knows the bytes of the API and what values may be, nothing else.
    ("soulbox-client", &["soulbox-types", "soulbox-wire"]),
    // A double of other people's services; it knows nothing of ours.
    ("soulbox-fake-provider", &[]),
    // A client like any other, with models on its other side.
    (
        "soulbox-agent",
        &["soulbox-client", "soulbox-fake-provider"],
    ),
    // Shared by servers on both sides of the wall; knows neither.
    ("soulbox-http", &[]),
    ("soulbox-sys", &["soulbox-types"]),
    ("soulbox-runtime", &["soulbox-sys", "soulbox-types"]),
    ("soulbox-pool", &["soulbox-sys", "soulbox-types"]),
    (
        "soulbox-build",
        &["soulbox-pool", "soulbox-sys", "soulbox-types"],
    ),
    // What ships into a sandbox knows nothing of the host.
    (
        "soulbox-envd",
        &["soulbox-envd-proto", "soulbox-http", "soulbox-sys"],
    ),
    ("soulbox-interpreter", &["soulbox-http"]),
    // Bytes in, bytes out: it knows neither sandboxes nor the pool.
    ("soulbox-archive", &[]),
    (
        "soulbox-host",
        &[
            "soulbox-archive",
            "soulbox-build",
            "soulbox-pool",
            "soulbox-runtime",
            "soulbox-sys",
            "soulbox-types",
            "soulbox-wire",
        ],
    ),
    // Control declares traits; it knows neither the host nor the wire.
    ("soulbox-control", &["soulbox-types"]),
    ("soulbox-store", &["soulbox-control", "soulbox-types"]),
    // Performs builds for control, on hosts that it knows by a trait of its own.
    ("soulbox-builder", &["soulbox-control", "soulbox-types"]),
    (
        "soulbox-api",
        &["soulbox-control", "soulbox-types", "soulbox-wire"],
    ),
    (
        "soulbox-ingress",
        &[
            "soulbox-envd-proto",
            "soulbox-http",
            "soulbox-types",
            "soulbox-wire",
        ],
    ),
    (
        "soulbox-cli",
        &[
            "soulbox-agent",
            "soulbox-api",
            "soulbox-build",
            "soulbox-builder",
            "soulbox-client",
            "soulbox-control",
            "soulbox-envd-proto",
            "soulbox-host",
            "soulbox-ingress",
            "soulbox-pool",
            "soulbox-runtime",
            "soulbox-store",
            "soulbox-sys",
            "soulbox-types",
            "soulbox-wire",
        ],
    ),
    // For tests only: nothing depends on it but by a dev-dependency.
    (
        "soulbox-testkit",
        &["soulbox-control", "soulbox-host", "soulbox-types"],
    ),
    // For figures only: nothing depends on it.
    (
        "soulbox-bench",
        &[
            "soulbox-api",
            "soulbox-control",
            "soulbox-store",
            "soulbox-types",
        ],
    ),
    ("xtask", &[]),
];

pub(super) fn check(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let mut findings = Vec::new();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
    {
        let name = package["name"].as_str().context("a package has no name")?;
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            findings.push(format!(
                "{name}: no arrows are set for this crate in xtask/src/tidy/arrows.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let ours = dependency["path"].is_string();
            if ours && dependency["kind"].is_null() && !allowed.contains(&on) {
                findings.push(format!(
                    "{name}: must not depend on {on} (arrows of docs/ARCHITECTURE.md)"
                ));
            }
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: Value) -> Value {
        json!({ "packages": [{ "name": name, "dependencies": dependencies }] })
    }

    #[test]
    fn an_arrow_that_is_not_drawn_is_found() {
        let host = json!([{ "name": "soulbox-host", "path": "/x", "kind": null }]);
        assert_eq!(
            check(&package("soulbox-control", host.clone()))
                .unwrap()
                .len(),
            1
        );
        assert!(check(&package("soulbox-cli", host)).unwrap().is_empty());
        let tests_only = json!([{ "name": "soulbox-host", "path": "/x", "kind": "dev" }]);
        assert!(
            check(&package("soulbox-control", tests_only))
                .unwrap()
                .is_empty()
        );
        assert_eq!(check(&package("soulbox-new", json!([]))).unwrap().len(), 1);
    }

    #[test]
    fn no_arrow_leads_in_a_circle() {
        // Crates in an order in which each points only at earlier ones.
        let mut placed: Vec<&str> = Vec::new();
        while placed.len() < ARROWS.len() {
            let next = ARROWS.iter().find(|(name, to)| {
                !placed.contains(name) && to.iter().all(|crate_name| placed.contains(crate_name))
            });
            placed.push(next.expect("a circle").0);
        }
    }
}
