//! What is the same for all routes in the description of the API: credentials, errors, the routes that answer 501.
//!
//! The rest is made from the annotations of handlers and from the types of `soulbox-wire`, so a route cannot be left out.

use utoipa::openapi::path::Operation;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    Components, ContentBuilder, HeaderBuilder, HttpMethod, InfoBuilder, LicenseBuilder,
    ObjectBuilder, OpenApi, PathItem, Paths, Ref, RefOr, Required, Response, ResponseBuilder,
    Schema, Type,
};
use utoipa::{PartialSchema, ToSchema};

use soulbox_wire::rest;

use crate::auth::Scheme;

const INTRODUCTION: &str = "Sandboxes over HTTP. Every error is JSON with `code` (the status) and `message`, some with `error_code`. \
    Every answer has `X-E2B-Trace-ID`, which the server's log has too. An answer that is no success says by `Should-Retry` whether \
    the same request may be sent again, then with `Retry-After`. Unknown fields of bodies are ignored.";

/// Adds what handlers do not say themselves.
pub(crate) fn complete(mut api: OpenApi, not_yet: &[(HttpMethod, &str, Scheme)]) -> OpenApi {
    api.info = InfoBuilder::new()
        .title("SoulBox")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(INTRODUCTION))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").build()))
        .build();
    let components = api.components.get_or_insert_with(Components::default);
    for (name, scheme) in schemes() {
        components.add_security_scheme(name, scheme);
    }
    components
        .schemas
        .insert(rest::Error::name().into_owned(), rest::Error::schema());
    for item in api.paths.paths.values_mut() {
        for operation in operations(item) {
            errors(operation);
        }
    }
    for (method, path, scheme) in not_yet {
        let operation = missing(path, *scheme);
        api.paths
            .add_path_operation(*path, vec![method.clone()], operation);
    }
    api
}

fn schemes() -> [(&'static str, SecurityScheme); 5] {
    let header = |name: &str, what: &str| {
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, what)))
    };
    [
        (
            "api_key",
            header(
                "X-API-Key",
                "A key of a team: `e2b_` and hexadecimal digits",
            ),
        ),
        (
            "admin_token",
            header("X-Admin-Token", "The administrator's token"),
        ),
        (
            "team_id",
            header("X-Team-ID", "The team that the administrator acts as"),
        ),
        (
            "upload_link",
            SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::with_description(
                "token",
                "In the link that `GET /templates/{id}/files/{hash}` gives",
            ))),
        ),
        (
            "bearer",
            SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
        ),
    ]
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
    ]
    .into_iter()
    .filter_map(Option::as_mut)
}

/// The errors that any route may answer, where it has not said it itself.
fn errors(operation: &mut Operation) {
    let mut add = |status: &str, what: &str| {
        let responses = &mut operation.responses.responses;
        if !responses.contains_key(status) {
            responses.insert(status.to_owned(), RefOr::T(error(what)));
        }
    };
    let takes_something = operation.parameters.is_some() || operation.request_body.is_some();
    if takes_something {
        add("400", "The parameters or the body are not as described");
    }
    if operation.security.is_some() {
        add("401", "The credential is missing or not valid");
        add("403", "The credential is valid, but not for this");
        add("429", "More than the team may have or ask for");
        add(
            "500",
            "A defect; the log of the server has it under the trace ID",
        );
        add("504", "Not done in time; it may still be under way");
    }
    if operation.request_body.is_some() {
        add("413", "The body is larger than 16 MiB");
    }
}

fn error(what: &str) -> Response {
    let retry = HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .description(Some(
            "`true` when the same request may be sent again after `Retry-After` seconds",
        ))
        .build();
    let body = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(rest::Error::name())))
        .build();
    ResponseBuilder::new()
        .description(what)
        .content("application/json", body)
        .header("Should-Retry", retry)
        .build()
}

/// A route that E2B has and this server does not have yet.
fn missing(path: &str, scheme: Scheme) -> Operation {
    let mut operation = OperationBuilder::new()
        .tag("not there yet")
        .summary(Some("Answers 501"))
        .response("501", error("This route is not implemented yet"))
        .securities(Some(requirements(scheme)));
    for name in path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(Schema::from(
                ObjectBuilder::new().schema_type(Type::String),
            )))
            .build();
        operation = operation.parameter(parameter);
    }
    let mut operation = operation.build();
    errors(&mut operation);
    operation
}

fn requirements(scheme: Scheme) -> Vec<SecurityRequirement> {
    let none = Vec::<String>::new;
    let as_team = SecurityRequirement::new("admin_token", none()).add("team_id", none());
    match scheme {
        Scheme::Customer => vec![SecurityRequirement::new("api_key", none()), as_team],
        Scheme::KeyOwner => vec![as_team],
        Scheme::AccessToken | Scheme::Volume => vec![SecurityRequirement::new("bearer", none())],
    }
}

/// Every operation with its path, in the order of the document.
pub(crate) fn listed(paths: &Paths) -> Vec<(&'static str, &str, &Operation)> {
    let mut all = Vec::new();
    for (path, item) in &paths.paths {
        let methods = [
            ("GET", &item.get),
            ("POST", &item.post),
            ("PUT", &item.put),
            ("PATCH", &item.patch),
            ("DELETE", &item.delete),
        ];
        for (method, operation) in methods {
            if let Some(operation) = operation {
                all.push((method, path.as_str(), operation));
            }
        }
    }
    all
}
