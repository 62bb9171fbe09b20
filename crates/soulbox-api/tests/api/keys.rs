//! API keys: made, listed, renamed and revoked by the administrator, never by a key.

use serde_json::json;

use crate::fixture::{ADMIN_TOKEN, KEY, OTHER_KEY, fixture};

#[tokio::test]
async fn keys_are_made_shown_masked_renamed_and_revoked() {
    let server = fixture().await;
    let team = server.add_team("third", "e2b_aa", |_| {}).await;
    let owner = [
        ("x-admin-token", ADMIN_TOKEN),
        ("x-team-id", team.team_id.as_str()),
    ];
    let body = Some(json!({"name": "ci"}).to_string());
    let made = server
        .call("POST", "/api-keys", &owner, body)
        .await
        .status(201);
    let key = made.body["key"].as_str().expect("a key").to_owned();
    assert_eq!(key.len(), 44);
    let id = made.body["id"].as_str().expect("an ID").to_owned();
    let mask = json!({
        "prefix": "e2b_", "valueLength": 40, "maskedValuePrefix": &key[4..6], "maskedValueSuffix": &key[40..],
    });
    let listed = server
        .call("GET", "/api-keys", &owner, None)
        .await
        .status(200);
    let keys = listed.body.as_array().expect("keys");
    let row = keys.iter().find(|it| it["id"] == id.as_str()).expect("it");
    assert_eq!((&row["mask"], &row["name"]), (&mask, &json!("ci")));
    assert!(
        row.get("key").is_none() && row.get("lastUsed").is_none(),
        "{row}"
    );

    let mine = [("x-api-key", key.as_str())];
    server
        .call("GET", "/sandboxes", &mine, None)
        .await
        .status(200);
    let path = format!("/api-keys/{id}");
    let body = Some(json!({"name": "other"}).to_string());
    server
        .call("PATCH", &path, &owner, body.clone())
        .await
        .status(202);
    let listed = server.call("GET", "/api-keys", &owner, None).await;
    let used = || {
        listed
            .body
            .as_array()
            .and_then(|all| all.iter().find(|it| it["id"] == id.as_str()))
    };
    assert!(used().expect("it")["lastUsed"].is_string(), "{listed:?}");
    assert_eq!(used().expect("it")["name"], "other");

    server.call("DELETE", &path, &owner, None).await.status(204);
    let refused = server
        .call("GET", "/sandboxes", &mine, None)
        .await
        .status(401);
    assert!(
        refused
            .message()
            .ends_with("Cannot get the team for the given API key")
    );
    server
        .call("DELETE", &path, &owner, None)
        .await
        .expect(404, "id not found");
    server
        .call("PATCH", &path, &owner, body)
        .await
        .expect(404, "id not found");
}

#[tokio::test]
async fn a_revoked_key_takes_no_other_with_it_and_its_use_is_not_new() {
    let server = fixture().await;
    let team = server.add_team("third", "e2b_aa", |_| {}).await;
    let owner = [
        ("x-admin-token", ADMIN_TOKEN),
        ("x-team-id", team.team_id.as_str()),
    ];
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let body = Some(json!({"name": name}).to_string());
        let made = server
            .call("POST", "/api-keys", &owner, body)
            .await
            .status(201);
        ids.push((
            made.body["id"].as_str().expect("ID").to_owned(),
            made.body["key"].as_str().expect("key").to_owned(),
        ));
    }
    let used = async || {
        let listed = server.call("GET", "/api-keys", &owner, None).await;
        let keys = listed.body.as_array().expect("keys").clone();
        keys.into_iter()
            .find(|it| it["id"] == ids[0].0.as_str())
            .expect("it")["lastUsed"]
            .clone()
    };
    let first = [("x-api-key", ids[0].1.as_str())];
    server
        .call("GET", "/sandboxes", &first, None)
        .await
        .status(200);
    let before = used().await;
    server
        .call("DELETE", &format!("/api-keys/{}", ids[1].0), &owner, None)
        .await
        .status(204);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    server
        .call("GET", "/sandboxes", &first, None)
        .await
        .status(200);
    assert!(before.is_string());
    assert_eq!(used().await, before, "within a minute it is the same use");
}

#[tokio::test]
async fn a_key_handles_no_keys_and_bad_input_is_named() {
    let server = fixture().await;
    let team = server.add_team("third", "e2b_aa", |_| {}).await;
    let key = [("x-api-key", KEY)];
    server
        .call("GET", "/api-keys", &key, None)
        .await
        .status(401);
    server
        .call("DELETE", "/api-keys/x", &key, None)
        .await
        .status(401);
    let owner = [
        ("x-admin-token", ADMIN_TOKEN),
        ("x-team-id", team.team_id.as_str()),
    ];
    for (body, said) in [
        ("{}", "property \"name\" is missing"),
        ("{\"name\": \"\"}", "1 to 255 characters"),
        ("{\"name\": 7}", "invalid type"),
        ("{\"name\": \"a\\u0000\"}", "no NUL"),
        ("", "EOF"),
    ] {
        let answer = server
            .call("POST", "/api-keys", &owner, Some(body.to_owned()))
            .await
            .status(400);
        assert!(answer.message().contains(said), "{answer:?}");
    }
    let long = json!({"name": "x".repeat(256)}).to_string();
    server
        .call("POST", "/api-keys", &owner, Some(long))
        .await
        .status(400);
}

#[tokio::test]
async fn the_administrator_handles_keys_of_any_team() {
    let server = fixture().await;
    let admin = [("x-admin-token", ADMIN_TOKEN)];
    let team = server.add_team("third", "e2b_aa", |_| {}).await;
    let path = format!("/admin/teams/{}/api-keys", team.team_id);
    let body = || Some(json!({"name": "ops"}).to_string());
    let made = server.call("POST", &path, &admin, body()).await.status(201);
    let key = made.body["key"].as_str().expect("a key").to_owned();
    server
        .call("GET", "/sandboxes", &[("x-api-key", &key)], None)
        .await
        .status(200);
    let of_key = format!("{path}/{}", made.body["id"].as_str().expect("an ID"));
    // Another team's key is not there.
    let other = server.key_id(OTHER_KEY).await.replace(' ', "%20");
    server
        .call("DELETE", &format!("{path}/{other}"), &admin, None)
        .await
        .expect(404, "API key not found");
    server
        .call("DELETE", &of_key, &admin, None)
        .await
        .status(204);
    server
        .call("DELETE", &of_key, &admin, None)
        .await
        .expect(404, "API key not found");
    server
        .call("GET", "/sandboxes", &[("x-api-key", &key)], None)
        .await
        .status(401);
    let nobody = "/admin/teams/00000000-0000-4000-8000-000000000000/api-keys";
    server
        .call("POST", nobody, &admin, body())
        .await
        .expect(404, "Team not found");
    server
        .call("POST", "/admin/teams/x/api-keys", &admin, body())
        .await
        .status(400);
    server
        .call("POST", &path, &[("x-api-key", KEY)], body())
        .await
        .status(401);
    let banned = server
        .add_team("banned", "e2b_cc01", |team| team.banned = true)
        .await;
    let path = format!("/admin/teams/{}/api-keys", banned.team_id);
    server
        .call("POST", &path, &admin, body())
        .await
        .expect(403, "team is banned");
}
