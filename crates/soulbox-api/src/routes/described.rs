//! `/openapi.json` and `/docs`: the description of the API for programs and for people. Neither needs a credential nor anything from elsewhere.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::header;
use serde_json::Value;
use utoipa::openapi::OpenApi;

use crate::App;
use crate::openapi;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}\
h2{margin-top:2.5rem;border-bottom:1px solid #ccc}summary{cursor:pointer;padding:.3rem 0}code,pre{font-family:ui-monospace,monospace;\
font-size:.9em}.m{display:inline-block;width:4.5rem;font-weight:600}table{border-collapse:collapse;margin:.5rem 0}td,th{border:1px solid \
#ddd;padding:.2rem .5rem;text-align:left;vertical-align:top}pre{background:#f6f6f6;padding:.5rem;overflow:auto}@media(prefers-color-scheme:\
dark){body{background:#181818;color:#ddd}pre{background:#242424}td,th{border-color:#444}a{color:#8bf}}";

/// Adds the two routes; both texts are made once.
pub(super) fn serve(router: Router<Arc<App>>, api: &OpenApi) -> Router<Arc<App>> {
    let document = serde_json::to_value(api).unwrap_or_default();
    let json = Bytes::from(document.to_string());
    let page = Bytes::from(page(api, &document));
    router
        .route(
            "/openapi.json",
            get(move || async move { answer("application/json", json) }),
        )
        .route(
            "/docs",
            get(move || async move { answer("text/html; charset=utf-8", page) }),
        )
}

fn answer(kind: &'static str, text: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'",
        ),
    ];
    (headers, text).into_response()
}

/// One section for each tag, one fold for each route, the schemas at the end.
fn page(api: &OpenApi, document: &Value) -> String {
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>SoulBox API</title><style>{STYLE}</style>\
         <h1>SoulBox API</h1><p>{}</p><p><a href=\"/openapi.json\">openapi.json</a></p>",
        prose(api.info.description.as_deref().unwrap_or_default())
    );
    let all = openapi::listed(&api.paths);
    let mut tags: Vec<&str> = Vec::new();
    for (_, _, operation) in &all {
        let tag = tag(operation);
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    // What is missing comes last.
    tags.sort_by_key(|tag| *tag == "not there yet");
    for section in tags {
        let _ = write!(html, "<h2>{}</h2>", prose(section));
        for (method, path, _) in all.iter().filter(|(_, _, it)| tag(it) == section) {
            let operation = &document["paths"][path][method.to_lowercase()];
            route(&mut html, method, path, operation);
        }
    }
    html.push_str("<h2>Schemas</h2>");
    for (name, schema) in document["components"]["schemas"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let text = serde_json::to_string_pretty(schema).unwrap_or_default();
        let _ = write!(
            html,
            "<details id=\"{0}\"><summary><code>{0}</code></summary><pre>{1}</pre></details>",
            escaped(name),
            escaped(&text)
        );
    }
    html
}

fn tag(operation: &utoipa::openapi::path::Operation) -> &str {
    let tags = operation.tags.as_deref().unwrap_or_default();
    tags.first().map_or("others", String::as_str)
}

fn route(html: &mut String, method: &str, path: &str, operation: &Value) {
    let _ = write!(
        html,
        "<details><summary><span class=m>{method}</span><code>{}</code> {}</summary>",
        escaped(path),
        prose(text(&operation["summary"]))
    );
    let _ = write!(html, "<p>{}</p>", prose(text(&operation["description"])));
    if let Some(parameters) = operation["parameters"].as_array() {
        html.push_str("<table><tr><th>parameter<th>in<th>meaning");
        for parameter in parameters {
            let _ = write!(
                html,
                "<tr><td><code>{}</code>{}<td>{}<td>{}",
                escaped(text(&parameter["name"])),
                if parameter["required"] == true {
                    " *"
                } else {
                    ""
                },
                escaped(text(&parameter["in"])),
                prose(text(&parameter["description"]))
            );
        }
        html.push_str("</table>");
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if !body.is_null() {
        let _ = write!(html, "<p>Body: {}</p>", link(body));
    }
    html.push_str("<table><tr><th>status<th>body<th>meaning");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{}",
            escaped(status),
            link(&response["content"]["application/json"]["schema"]),
            prose(text(&response["description"]))
        );
    }
    html.push_str("</table></details>");
}

/// The name of a schema with a link to it, wherever in this one it stands.
fn link(schema: &Value) -> String {
    match schema {
        Value::Object(fields) => match fields.get("$ref").and_then(Value::as_str) {
            Some(reference) => {
                let name = escaped(reference.rsplit('/').next().unwrap_or_default());
                format!("<a href=\"#{name}\">{name}</a>")
            }
            None if fields.get("type").is_some_and(|it| it == "array") => {
                format!("array of {}", link(&schema["items"]))
            }
            None => fields.values().map(link).collect(),
        },
        Value::Array(items) => items.iter().map(link).collect(),
        _ => String::new(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Escaped text with what stands between backticks as code.
fn prose(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for (number, part) in text.split('`').enumerate() {
        if number % 2 == 1 {
            let _ = write!(html, "<code>{}</code>", escaped(part));
        } else {
            html.push_str(&escaped(part));
        }
    }
    html
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
