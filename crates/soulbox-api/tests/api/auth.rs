//! Who is let in, and what is said to the others.

use serde_json::json;

use crate::fixture::{ACCESS_TOKEN, ADMIN_TOKEN, KEY, OTHER_KEY, fixture};

const INVALID: &str =
    "Invalid API key, please visit https://e2b.dev/docs/api-key for more information.";

#[tokio::test]
async fn refusals_say_what_is_wrong_with_the_credential() {
    let server = fixture().await;
    let unknown = KEY.replace("00", "11");
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(Headers<'_>, u16, String)] = &[
        (&[], 401, "authorization header is missing".into()),
        (
            &[("x-api-key", "abc")],
            401,
            "authorization header is malformed".into(),
        ),
        (
            &[("x-api-key", "")],
            401,
            "authorization header is malformed".into(),
        ),
        (
            &[("x-api-key", "e2b_zz")],
            401,
            format!("{INVALID}\nInvalid API key format"),
        ),
        (
            &[("x-api-key", "e2b_")],
            401,
            format!("{INVALID}\nInvalid API key format"),
        ),
        (
            &[("x-api-key", &unknown)],
            401,
            format!("{INVALID}\nCannot get the team for the given API key"),
        ),
        (
            &[("authorization", "Basic abc")],
            401,
            "authorization header is malformed".into(),
        ),
        (
            &[("authorization", "Bearer abc"), ("x-team-id", "x")],
            401,
            "Invalid auth provider token.\nno identity provider is configured".into(),
        ),
        // The first scheme with a header speaks.
        (
            &[("authorization", "Bearer abc"), ("x-api-key", "abc")],
            401,
            "authorization header is malformed".into(),
        ),
        (
            &[("x-admin-token", "guess"), ("x-team-id", "x")],
            401,
            "Invalid Access token.\nInvalid Access token.".into(),
        ),
        (
            &[("x-admin-token", ADMIN_TOKEN)],
            401,
            "authorization header is missing".into(),
        ),
        (
            &[("x-admin-token", ADMIN_TOKEN), ("x-team-id", "x")],
            400,
            "Invalid team ID".into(),
        ),
        (
            &[
                ("x-admin-token", ADMIN_TOKEN),
                ("x-team-id", "00000000-0000-4000-8000-000000000000"),
            ],
            404,
            "Team not found".into(),
        ),
    ];
    for (headers, status, message) in cases {
        server
            .call("GET", "/v2/sandboxes", headers, None)
            .await
            .expect(*status, message);
    }
}

#[tokio::test]
async fn credentials_come_before_parameters_and_body() {
    let server = fixture().await;
    let bad = [("x-api-key", "e2b_zz")];
    server
        .call("POST", "/sandboxes", &bad, Some("{".into()))
        .await
        .status(401);
    server
        .call("GET", "/v2/sandboxes?limit=0", &bad, None)
        .await
        .status(401);
    server
        .call("DELETE", "/sandboxes/A-B-C", &bad, None)
        .await
        .status(401);
    // Parameters before the body.
    let good = [("x-api-key", KEY)];
    let answer = server
        .call("POST", "/sandboxes/a-b-c/timeout", &good, Some("{".into()))
        .await;
    answer.expect(400, "Invalid sandbox ID");
}

#[tokio::test]
async fn header_names_in_any_case_and_a_second_good_scheme_are_fine() {
    let server = fixture().await;
    server
        .call("GET", "/v2/sandboxes", &[("X-Api-Key", KEY)], None)
        .await
        .status(200);
    let both = [("authorization", "Bearer nonsense"), ("x-api-key", KEY)];
    server
        .call("GET", "/v2/sandboxes", &both, None)
        .await
        .status(200);
}

#[tokio::test]
async fn the_administrator_acts_as_a_team() {
    let server = fixture().await;
    let team = server.add_team("third", "e2b_aa", |_| {}).await;
    let admin = [
        ("x-admin-token", ADMIN_TOKEN),
        ("x-team-id", team.team_id.as_str()),
    ];
    let body = json!({"templateID": "base", "timeout": 60}).to_string();
    let id = server
        .call("POST", "/sandboxes", &admin, Some(body))
        .await
        .status(201)
        .id();
    server.get(&format!("/sandboxes/{id}")).await.status(404);
    server
        .call(
            "GET",
            &format!("/sandboxes/{id}"),
            &[("x-api-key", "e2b_aa")],
            None,
        )
        .await
        .status(200);
}

#[tokio::test]
async fn banned_teams_do_nothing_and_blocked_ones_look_and_clean_up() {
    let server = fixture().await;
    server
        .add_team("banned", "e2b_bb", |team| team.banned = true)
        .await;
    let banned = [("x-api-key", "e2b_bb")];
    for (method, path) in [
        ("GET", "/sandboxes"),
        ("POST", "/sandboxes"),
        ("GET", "/snapshots"),
    ] {
        server
            .call(method, path, &banned, None)
            .await
            .expect(403, "team is banned");
    }
    let block = |reason: Option<&str>| {
        let reason = reason.map(str::to_owned);
        move |team: &mut soulbox_control::TeamRow| {
            team.blocked = true;
            team.blocked_reason = reason;
        }
    };
    server
        .add_team("blocked", "e2b_cc", block(Some("unpaid")))
        .await;
    server
        .add_team("blocked-silently", "e2b_dd", block(None))
        .await;
    let blocked = [("x-api-key", "e2b_cc")];
    for (method, path) in [
        ("POST", "/sandboxes"),
        ("POST", "/v2/sandboxes"),
        ("POST", "/sandboxes/iabc/timeout"),
        ("POST", "/sandboxes/iabc/pause"),
        ("GET", "/templates/t/files/h"),
    ] {
        let answer = server.call(method, path, &blocked, None).await;
        answer.expect(403, "team is blocked: unpaid");
    }
    let silent = server
        .call("POST", "/sandboxes", &[("x-api-key", "e2b_dd")], None)
        .await;
    silent.expect(403, "team is blocked");
    for path in ["/sandboxes", "/v2/sandboxes", "/templates", "/v2/templates"] {
        server.call("GET", path, &blocked, None).await.status(200);
    }
    server
        .call("DELETE", "/sandboxes/iabc", &blocked, None)
        .await
        .status(404);
}

#[tokio::test]
async fn legacy_tokens_and_the_administrator_have_their_own_routes() {
    let server = fixture().await;
    let with = |value: &str| format!("Bearer {value}");
    let good = with(ACCESS_TOKEN);
    server
        .call("GET", "/teams", &[("authorization", &good)], None)
        .await
        .status(501);
    let login = "Invalid Access token, try to login again by running `e2b auth login`.";
    for bad in ["sk_e2b_00", "sk_e2b_zz", KEY] {
        let bad = with(bad);
        server
            .call("GET", "/teams", &[("authorization", &bad)], None)
            .await
            .expect(401, login);
    }
    server
        .call("GET", "/teams", &[("x-api-key", KEY)], None)
        .await
        .status(401);
    server
        .call("GET", "/nodes", &[("x-api-key", KEY)], None)
        .await
        .status(401);
    server
        .call("GET", "/nodes", &[("x-admin-token", "guess")], None)
        .await
        .status(401);
    server
        .call("GET", "/nodes", &[("x-admin-token", ADMIN_TOKEN)], None)
        .await
        .status(200);
    // An API key does not manage API keys.
    server
        .call("GET", "/api-keys", &[("x-api-key", KEY)], None)
        .await
        .status(401);
}

#[tokio::test]
async fn teams_do_not_see_each_other() {
    let server = fixture().await;
    let id = server.create().await;
    let other = [("x-api-key", OTHER_KEY)];
    let missing = format!("Sandbox \"{id}\" doesn't exist or you don't have access to it");
    for (method, path, body) in [
        ("GET", format!("/sandboxes/{id}"), None),
        ("DELETE", format!("/sandboxes/{id}"), None),
        (
            "POST",
            format!("/sandboxes/{id}/timeout"),
            Some(r#"{"timeout":5}"#),
        ),
        ("POST", format!("/sandboxes/{id}/refreshes"), None),
        (
            "POST",
            format!("/sandboxes/{id}/connect"),
            Some(r#"{"timeout":5}"#),
        ),
        ("POST", format!("/v2/sandboxes/{id}/connect"), None),
    ] {
        let answer = server
            .call(method, &path, &other, body.map(str::to_owned))
            .await;
        answer.expect(404, &missing);
    }
    for path in ["/sandboxes", "/v2/sandboxes"] {
        assert_eq!(
            server
                .call("GET", path, &other, None)
                .await
                .status(200)
                .body,
            json!([])
        );
    }
    server.get(&format!("/sandboxes/{id}")).await.status(200);
}
