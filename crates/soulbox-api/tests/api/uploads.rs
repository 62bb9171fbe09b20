//! Files of COPY steps: links and what is taken over them.

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use crate::builds::ids;
use crate::fixture::{Fixture, OTHER_KEY, fixture_with};

const HASH: &str = "abababababababababababababababababababababababababababababababab";
const GZIP: &[u8] = b"\x1f\x8b rest of it";

async fn put(
    server: &Fixture,
    path: &str,
    announced: Option<u64>,
    body: &'static [u8],
) -> (StatusCode, String) {
    let mut request = Request::builder().method("PUT").uri(path);
    if let Some(length) = announced {
        request = request.header("content-length", length);
    }
    let request = request.body(Body::from(body)).expect("a request");
    let answer = server
        .router
        .clone()
        .oneshot(request)
        .await
        .expect("infallible");
    let status = answer.status();
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn an_archive_is_put_to_the_link_that_was_given() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().to_owned();
    let server = fixture_with(|settings| {
        settings.archives = Some(place);
        settings.max_archive_bytes = 1000;
    })
    .await;
    let of = ids(&server
        .post("/v3/templates", json!({"name": "t1"}))
        .await
        .status(202));
    let files = format!("/templates/{}/files/{HASH}", of.0);
    let link = async || {
        let headers = [
            ("x-api-key", crate::fixture::KEY),
            ("host", "boxes.example:3000"),
        ];
        let answer = server.call("GET", &files, &headers, None).await.status(201);
        let url = answer.body["url"].as_str().expect("a URL").to_owned();
        (answer.body["present"] == true, url)
    };
    let (present, url) = link().await;
    assert!(!present);
    let path = url
        .strip_prefix("http://boxes.example:3000")
        .expect("where the client asked")
        .to_owned();
    let https = [
        ("x-api-key", crate::fixture::KEY),
        ("host", "a"),
        ("x-forwarded-proto", "https"),
    ];
    let answer = server.call("GET", &files, &https, None).await;
    assert!(
        answer.body["url"]
            .as_str()
            .is_some_and(|it| it.starts_with("https://a/")),
        "{answer:?}"
    );

    let length = GZIP.len() as u64;
    let (status, _) = put(&server, &path, None, GZIP).await;
    assert_eq!(status, StatusCode::LENGTH_REQUIRED);
    for (announced, body, part) in [
        (length + 1, GZIP, "ended after"),
        (length - 1, GZIP, "longer than"),
        (4, b"text".as_slice(), "neither a tar archive"),
    ] {
        let (status, text) = put(&server, &path, Some(announced), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        assert!(text.contains(part), "{text}");
    }
    let (status, _) = put(&server, &path, Some(1001), GZIP).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let other_hash = path.replace(HASH, &"cd".repeat(32));
    let digit = if path.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{digit}", &path[..path.len() - 1]);
    let expires = path
        .split("expires=")
        .nth(1)
        .and_then(|it| it.split('&').next())
        .expect("there");
    let longer = path.replace(expires, &format!("{expires}0"));
    let past = path.replace(expires, "1000");
    for path in [&other_hash, &forged, &longer, &past] {
        let (status, _) = put(&server, path, Some(length), GZIP).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
    }
    for path in [
        path.replace("token=", "x="),
        path.replace("expires=", "x="),
        path.replace(HASH, ".."),
    ] {
        let (status, _) = put(&server, &path, Some(length), GZIP).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
    }
    server.get(&path).await.status(405);
    assert!(!link().await.0, "nothing was kept");

    let (status, text) = put(&server, &path, Some(length), GZIP).await;
    assert_eq!((status, text.as_str()), (StatusCode::CREATED, ""));
    let (present, again) = link().await;
    assert!(present && again.contains(HASH), "{again}");
    let (status, _) = put(&server, &path, Some(length), GZIP).await;
    assert_eq!(status, StatusCode::CREATED, "uploads can be repeated");
    let team = path.split('/').nth(2).expect("a team");
    assert_eq!(
        std::fs::read(directory.path().join(team).join(HASH)).expect("kept"),
        GZIP
    );

    server
        .get(&format!("/templates/{}/files/x", of.0))
        .await
        .expect(400, "Invalid files hash");
    server
        .get(&format!(
            "/templates/{}/files/{}",
            of.0,
            HASH.to_uppercase()
        ))
        .await
        .status(400);
    server
        .get(&format!("/templates/none/files/{HASH}"))
        .await
        .status(404);
    let other = [("x-api-key", OTHER_KEY)];
    server.call("GET", &files, &other, None).await.status(403);
}

#[tokio::test]
async fn without_a_place_nothing_is_taken() {
    let server = fixture_with(|_| {}).await;
    let of = ids(&server
        .post("/v3/templates", json!({"name": "t1"}))
        .await
        .status(202));
    let headers = [("x-api-key", crate::fixture::KEY), ("host", "a")];
    let files = format!("/templates/{}/files/{HASH}", of.0);
    let link = server.call("GET", &files, &headers, None).await.status(201);
    let path = link.body["url"]
        .as_str()
        .and_then(|it| it.strip_prefix("http://a"))
        .expect("a URL");
    let (status, _) = put(&server, path, Some(GZIP.len() as u64), GZIP).await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
}
