//! Reading templates.

use serde_json::json;
use soulbox_control::{AliasRow, AssignmentRow, BuildRow, BuildStatus, Policy, Store, TemplateRow};
use soulbox_types::{BuildId, TemplateId, UnixMillis};

use crate::fixture::{Fixture, KEY, OTHER_KEY, fixture, template};

/// A private template `mine` of team `other`, with three builds.
async fn private(server: &Fixture) -> TemplateId {
    let team = server.add_team("other", OTHER_KEY, |_| {}).await;
    let id = TemplateId::from_random([50; 20]);
    for number in 51..=53 {
        let at = UnixMillis(1_700_000_000_000 + u64::from(number));
        let row = TemplateRow {
            template_id: id.clone(),
            team_id: team.team_id.clone(),
            public: false,
            created_at: at,
            updated_at: at,
            spawn_count: 0,
            last_spawned_at: None,
        };
        let build = BuildRow {
            build_id: BuildId::from_random([number; 16]),
            template_id: id.clone(),
            status: BuildStatus::Ready,
            limits: template("x", 1).limits,
            default_user: "user".to_owned(),
            default_workdir: "/".to_owned(),
            envd_version: "0.6.13".to_owned(),
            policy: Policy::default(),
            created_at: at,
            updated_at: at,
            finished_at: None,
        };
        let alias = AliasRow {
            namespace: team.slug.clone(),
            alias: "mine".to_owned(),
            template_id: id.clone(),
        };
        let assignment = AssignmentRow {
            assignment_id: number.to_string(),
            template_id: id.clone(),
            build_id: build.build_id.clone(),
            tag: "default".to_owned(),
            assigned_at: at,
        };
        server
            .store
            .register_template(&row, &build, &[alias], &assignment)
            .await
            .expect("register");
    }
    // Whoever asks for something unknown makes the server look again.
    tokio::time::sleep(std::time::Duration::from_millis(1050)).await;
    server.get("/templates/aliases/unknown").await.status(404);
    id
}

#[tokio::test]
async fn own_templates_are_listed_in_full() {
    let server = fixture().await;
    let expected = |name: &str, number: u8| {
        let template = template(name, number);
        json!({
            "templateID": template.template_id.as_str(),
            "buildID": template.build_id.as_str(),
            "cpuCount": 2,
            "memoryMB": 1024,
            "diskSizeMB": 2048,
            "public": true,
            "aliases": [name],
            "names": [name],
            "createdAt": format!("2023-11-14T22:13:20.00{number}Z"),
            "updatedAt": format!("2023-11-14T22:13:20.00{number}Z"),
            "createdBy": null,
            "lastSpawnedAt": null,
            "spawnCount": 0,
            "buildCount": 1,
            "envdVersion": "0.6.13",
            "buildStatus": "ready",
        })
    };
    for path in ["/templates", "/v2/templates"] {
        let answer = server.get(path).await.status(200);
        assert_eq!(
            answer.body,
            json!([expected("other", 2), expected("base", 1)]),
            "{path}"
        );
        let others = server
            .call("GET", path, &[("x-api-key", OTHER_KEY)], None)
            .await
            .status(200);
        assert_eq!(others.body, json!([]));
        let mismatch = server
            .get(&format!(
                "{path}?teamID=00000000-0000-4000-8000-000000000000"
            ))
            .await;
        mismatch.expect(400, "Team ID param mismatch with the API key");
    }
    let first = server.get("/v2/templates?limit=1").await.status(200);
    let next = first
        .header("x-next-token")
        .expect("a token")
        .replace('=', "%3D");
    let second = server
        .get(&format!("/v2/templates?limit=1&nextToken={next}"))
        .await
        .status(200);
    assert_eq!(
        (&second.body[0], second.header("x-next-token")),
        (&expected("base", 1), None)
    );
    server.get("/v2/templates?limit=0").await.status(400);
    server
        .get("/v2/templates?nextToken=x")
        .await
        .expect(400, "Invalid next token");
}

#[tokio::test]
async fn spawns_are_counted() {
    let server = fixture().await;
    server.create().await;
    server.create().await;
    server.control.stop(std::time::Duration::from_secs(5)).await;
    let rows = server.store.catalog().await.expect("read");
    let base = rows
        .templates
        .iter()
        .find(|it| it.template_id == template("base", 1).template_id);
    let base = base.expect("there");
    assert_eq!(base.spawn_count, 2);
    assert!(base.last_spawned_at.is_some());
}

#[tokio::test]
async fn one_template_has_its_builds_in_pages() {
    let server = fixture().await;
    let id = private(&server).await;
    let other = [("x-api-key", OTHER_KEY)];
    let path = format!("/templates/{id}");
    let answer = server.call("GET", &path, &other, None).await.status(200);
    assert_eq!(answer.body["names"], json!(["other/mine"]));
    let builds: Vec<_> = [53, 52, 51]
        .map(|number| BuildId::from_random([number; 16]).to_string())
        .into();
    let ids = |answer: &crate::fixture::Answer| -> Vec<String> {
        let builds = answer.body["builds"].as_array().expect("a list");
        builds
            .iter()
            .map(|build| build["buildID"].as_str().expect("an ID").to_owned())
            .collect()
    };
    assert_eq!(ids(&answer), builds);
    assert_eq!(answer.body["buildID"], builds[0]);
    let page = server
        .call("GET", &format!("{path}?limit=2"), &other, None)
        .await
        .status(200);
    assert_eq!(ids(&page), builds[..2]);
    let next = page
        .header("x-next-token")
        .expect("a token")
        .replace('=', "%3D");
    let rest = server
        .call(
            "GET",
            &format!("{path}?limit=2&nextToken={next}"),
            &other,
            None,
        )
        .await
        .status(200);
    assert_eq!(
        (ids(&rest), rest.header("x-next-token")),
        (builds[2..].to_vec(), None)
    );

    server
        .get(&path)
        .await
        .expect(403, "You don't have access to this template");
    server
        .get("/templates/base")
        .await
        .expect(404, "Template base not found");
    server
        .get("/templates/a%2Fb")
        .await
        .expect(404, "Template a/b not found");
}

#[tokio::test]
async fn aliases_are_resolved_with_their_tags() {
    let server = fixture().await;
    let id = private(&server).await;
    let answer = server.get("/templates/aliases/base").await.status(200);
    assert_eq!(
        answer.body,
        json!({"templateID": template("base", 1).template_id.as_str(), "public": true})
    );
    let other = [("x-api-key", OTHER_KEY)];
    for path in [
        "/templates/aliases/mine",
        "/templates/aliases/other%2Fmine",
        "/templates/aliases/other%2Fmine:default",
    ] {
        let answer = server.call("GET", path, &other, None).await.status(200);
        assert_eq!(
            answer.body,
            json!({"templateID": id.as_str(), "public": false}),
            "{path}"
        );
    }
    let foreign = "You don't have access to this template alias";
    server
        .get("/templates/aliases/other%2Fmine")
        .await
        .expect(403, foreign);
    server
        .get("/templates/aliases/mine")
        .await
        .expect(404, "template 'mine' not found");
    server
        .get("/templates/aliases/base:zzz")
        .await
        .expect(404, "tag 'zzz' does not exist for template 'base'");
    server.get("/templates/aliases/a%20b").await.status(400);
    // To a create a foreign private template is as good as none.
    let body = json!({"templateID": "other/mine"});
    server
        .post("/sandboxes", body.clone())
        .await
        .expect(404, "template 'other/mine' not found");
    server
        .call("POST", "/sandboxes", &other, Some(body.to_string()))
        .await
        .status(201);
    let exact = json!({"templateID": format!("mine:{}", BuildId::from_random([51; 16]))});
    server
        .call("POST", "/sandboxes", &other, Some(exact.to_string()))
        .await
        .status(201);
    let last = server
        .hosts
        .state()
        .created
        .last()
        .expect("a create")
        .clone();
    assert_eq!(last.build_id, BuildId::from_random([51; 16]));
    server
        .call("GET", "/templates", &[("x-api-key", KEY)], None)
        .await
        .status(200);
}
