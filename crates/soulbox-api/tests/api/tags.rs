//! Tags of templates: giving, taking, reading, rolling back.

use serde_json::{Value, json};

use crate::builds::{Built, with_builder};
use crate::fixture::{KEY, OTHER_KEY, fixture, template};

impl Built {
    async fn assign(&self, target: &str, tags: &[&str]) -> crate::fixture::Answer {
        let body = json!({"target": target, "tags": tags});
        self.server.post("/templates/tags", body).await
    }

    async fn remove(&self, name: &str, tags: &[&str]) -> crate::fixture::Answer {
        let body = json!({"name": name, "tags": tags}).to_string();
        let key = [("x-api-key", KEY)];
        self.server
            .call("DELETE", "/templates/tags", &key, Some(body))
            .await
    }

    async fn created_from(&self, reference: &str) -> String {
        let made = self
            .server
            .post("/sandboxes", json!({"templateID": reference}))
            .await;
        let id = made.status(201).id();
        let build = self
            .server
            .hosts
            .state()
            .created
            .last()
            .expect("a create")
            .build_id
            .clone();
        self.server
            .delete(&format!("/sandboxes/{id}"))
            .await
            .status(204);
        build.to_string()
    }
}

#[tokio::test]
async fn a_tag_goes_to_another_build_and_back() {
    let mut built = with_builder(fixture().await);
    let first = built.ready("t1:v1").await;
    let second = built.ready("t1:v2").await;
    assert_eq!(first.0, second.0);
    let missing = "tag 'default' does not exist for template 't1'";
    built
        .server
        .post("/sandboxes", json!({"templateID": "t1"}))
        .await
        .expect(404, missing);
    let tagged = built
        .assign("t1:v1", &["Prod", "prod", "a.b-c_d"])
        .await
        .status(201);
    assert_eq!(
        tagged.body,
        json!({"tags": ["prod", "a.b-c_d"], "buildID": first.1})
    );
    assert_eq!(built.created_from("t1:prod").await, first.1);
    built
        .assign("t1:v2", &["prod", "default"])
        .await
        .status(201);
    assert_eq!(built.created_from("t1:prod").await, second.1);
    assert_eq!(built.created_from("t1").await, second.1);
    // Back, by the build's own ID.
    built
        .assign(&format!("t1:{}", first.1), &["prod"])
        .await
        .status(201);
    assert_eq!(built.created_from("t1:prod").await, first.1);
    assert_eq!(built.created_from("t1").await, second.1, "others stay");
    let tags = built.server.get("/templates/t1/tags").await.status(200);
    let pairs: Vec<_> = tags
        .body
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| (it["tag"].clone(), it["buildID"].clone()))
        .collect();
    let pair = |tag: &str, of: &(String, String)| (json!(tag), json!(of.1));
    let expected = [
        pair("a.b-c_d", &first),
        pair("default", &second),
        pair("prod", &first),
        pair("v1", &first),
        pair("v2", &second),
    ];
    assert_eq!(pairs, expected);
    assert!(tags.body[0]["createdAt"].is_string());
    built.remove("t1", &["prod", "unknown"]).await.status(204);
    built
        .server
        .post("/sandboxes", json!({"templateID": "t1:prod"}))
        .await
        .status(404);
    assert_eq!(
        built.server.get("/templates/t1/tags/count").await.body,
        json!({"total": 4})
    );
}

#[tokio::test]
async fn what_cannot_be_tagged_says_why() {
    let mut built = with_builder(fixture().await);
    let of = built.ready("t1").await;
    let waiting = built.request("t1:next").await;
    built
        .assign("t1", &[])
        .await
        .expect(400, "At least one tag is required");
    built.assign("t1", &["a/b"]).await.status(400);
    built.assign("t1", &[&of.1]).await.status(400);
    built
        .assign("t1:none", &["x"])
        .await
        .expect(404, "Template 't1' with tag 'none' not found");
    built
        .assign("none", &["x"])
        .await
        .expect(404, "Template 'none' with tag 'default' not found");
    let unready = built.assign(&format!("t1:{}", waiting.1), &["x"]).await;
    unready.status(404);
    built.assign("a b", &["x"]).await.status(400);
    let other = [("x-api-key", OTHER_KEY)];
    let body = Some(json!({"target": of.0, "tags": ["x"]}).to_string());
    let foreign = "You don't have access to this template";
    built
        .server
        .call("POST", "/templates/tags", &other, body)
        .await
        .expect(403, foreign);
    built
        .remove("t1", &["default"])
        .await
        .expect(400, "Cannot delete the 'default' tag");
    built
        .remove("t1", &[])
        .await
        .expect(400, "At least one tag is required");
    let message = "Template name should not contain a tag, use the 'tags' field instead";
    built.remove("t1:v1", &["v1"]).await.expect(400, message);
    built.remove("none", &["v1"]).await.status(404);
    built
        .server
        .post("/templates/tags", json!({"tags": ["x"]}))
        .await
        .status(400);
    for path in [
        "tags",
        "tags/count",
        "tags/exists?tag=x",
        "tags/groups",
        "tags/x/assignments",
    ] {
        let url = format!("/templates/{}/{path}", of.0);
        built.server.get(&url).await.status(200);
        let answer = built.server.call("GET", &url, &other, None).await;
        answer.expect(404, &format!("template '{}' not found", of.0));
        built
            .server
            .get(&format!("/templates/none/{path}"))
            .await
            .status(404);
    }
    let base = template("base", 1);
    let installed = built.server.get("/templates/base/tags").await.status(200);
    assert_eq!(installed.body[0]["buildID"], base.build_id.as_str());
}

#[tokio::test]
async fn groups_and_assignments_come_in_pages() {
    let mut built = with_builder(fixture().await);
    let first = built.ready("t1:a1").await;
    let second = built.ready("t1:a2").await;
    for of in [&first, &second, &first] {
        // Each at a moment of its own, as the order goes by it.
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        built
            .assign(&format!("t1:{}", of.1), &["b"])
            .await
            .status(201);
    }
    let get = async |path: &str| {
        built
            .server
            .get(&format!("/templates/t1/tags/{path}"))
            .await
    };
    let names = |body: &Value| -> Vec<String> {
        let groups = body["tags"].as_array().expect("a list");
        groups
            .iter()
            .map(|it| it["tag"].as_str().expect("a tag").to_owned())
            .collect()
    };
    let all = get("groups?assignmentLimit=6&tagsLimit=25&sort=latest_desc")
        .await
        .status(200);
    assert_eq!(
        (names(&all.body).join(" ").as_str(), &all.body["nextCursor"]),
        ("b a2 a1", &Value::Null)
    );
    let group = &all.body["tags"][0];
    assert_eq!(
        (
            group["assignments"].as_array().map(Vec::len),
            &group["hasMore"]
        ),
        (Some(3), &json!(false))
    );
    let held = &group["assignments"][1];
    assert_eq!(held["buildId"], json!(second.1));
    for field in [
        "assignmentId",
        "assignedAt",
        "buildCreatedAt",
        "buildFinishedAt",
    ] {
        assert!(held[field].is_string(), "{field} in {held}");
    }
    for (sort, expected) in [
        ("latest_desc", "b a2 a1"),
        ("latest_asc", "a1 a2 b"),
        ("name_asc", "a1 a2 b"),
        ("name_desc", "b a2 a1"),
    ] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = get(&format!(
                "groups?tagsLimit=1&assignmentLimit=2&sort={sort}{cursor}"
            ))
            .await
            .status(200);
            seen.extend(names(&page.body));
            match page.body["nextCursor"].as_str() {
                Some(next) => cursor = format!("&tagsCursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen.join(" "), expected, "{sort}");
    }
    let page = get("groups?tagsLimit=1&assignmentLimit=2")
        .await
        .status(200);
    assert_eq!(page.body["tags"][0]["hasMore"], true);
    let next = page.body["nextCursor"].as_str().expect("more");
    get(&format!("groups?sort=name_asc&tagsCursor={next}"))
        .await
        .expect(400, "Invalid cursor");
    assert_eq!(
        names(&get("groups?search=A").await.status(200).body),
        ["a2", "a1"]
    );
    assert_eq!(
        names(&get("groups?search=zz").await.status(200).body),
        [""; 0]
    );
    for bad in [
        "groups?sort=x",
        "groups?tagsLimit=0",
        "groups?assignmentLimit=26",
        "groups?search=%2F",
        "groups?tagsCursor=!",
        "exists",
        "exists?tag=",
        "exists?tag=a%20b",
        "b/assignments?limit=101",
        "b/assignments?cursor=x",
        "a%20b/assignments",
    ] {
        get(bad).await.status(400);
    }
    let page = get("B/assignments?limit=2").await.status(200);
    let builds = |body: &Value| -> Vec<Value> {
        body["data"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| it["buildId"].clone())
            .collect()
    };
    assert_eq!(builds(&page.body), [json!(first.1), json!(second.1)]);
    let next = page.body["nextCursor"].as_str().expect("more");
    let rest = get(&format!("b/assignments?limit=2&cursor={next}"))
        .await
        .status(200);
    assert_eq!(
        (builds(&rest.body), &rest.body["nextCursor"]),
        (vec![json!(first.1)], &Value::Null)
    );
    assert_eq!(
        get("none/assignments").await.status(200).body,
        json!({"data": [], "nextCursor": null})
    );
    assert_eq!(
        get("exists?tag=%20A1").await.body,
        json!({"exists": true, "normalizedTag": "a1"})
    );
    assert_eq!(
        get("exists?tag=a9").await.body,
        json!({"exists": false, "normalizedTag": "a9"})
    );
    // A tag of a build that is not ready is none.
    built.request("t1:later").await;
    assert_eq!(get("exists?tag=later").await.body["exists"], false);
    assert_eq!(get("count").await.body, json!({"total": 3}));
}
