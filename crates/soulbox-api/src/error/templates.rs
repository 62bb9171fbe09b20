//! Status and public text of what control says about templates, builds, tags and uploads.

use http::StatusCode;
use soulbox_control::{
    ArchiveError, BuildError, ContentsError, LimitError, TagError, TemplateError,
};

use super::{ApiError, chain, limit, too_long};

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::NameMissing => Self::bad_request("Name is required"),
            TemplateError::NameTooLong => {
                Self::invalid("\"name\": maximum string length is 128")
            }
            TemplateError::Name(error) => error.into(),
            TemplateError::ForeignNamespace { namespace, slug } => Self::bad_request(format!(
                "namespace '{namespace}' must match your team '{slug}'"
            )),
            TemplateError::Tag(error) => error.into(),
            TemplateError::Limits(LimitError::MemoryTooLittle { min }) => {
                Self::invalid(&format!("\"memoryMB\": number must be at least {min}"))
            }
            TemplateError::Limits(error) => Self::bad_request(limit(error)),
            TemplateError::TimeoutNotPositive => {
                Self::bad_request("Timeout must be greater than 0")
            }
            TemplateError::TimeoutTooLong { hours } => too_long(hours),
            TemplateError::NameTaken { name } | TemplateError::AliasTaken { alias: name } => {
                Self::new(
                    StatusCode::CONFLICT,
                    format!("Alias '{name}' is already used"),
                )
            }
            // Nothing was done, and a place becomes free when a build ends.
            TemplateError::BuildLimitReached { limit } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!(
                    "you have reached the maximum number of concurrent template builds ({limit}). Please wait for \
                     some of them to finish"
                ),
            )
            .retry_after(2),
            TemplateError::Template(error) => error.into(),
            TemplateError::HasRunning { reference } => Self::bad_request(format!(
                "cannot delete template '{reference}' because there are running sandboxes using it"
            )),
            TemplateError::HasSnapshots { reference } => Self::bad_request(format!(
                "cannot delete template '{reference}' because there are snapshots of sandboxes using it"
            )),
            TemplateError::HasPaused { reference } => Self::bad_request(format!(
                "cannot delete template '{reference}' because there are paused sandboxes using it"
            )),
            TemplateError::Installed { reference } => Self::bad_request(format!(
                "cannot delete template '{reference}' because it was built on the host, not over the API"
            )),
            TemplateError::Store(error) => error.into(),
            TemplateError::Random(error) => failed(&error),
        }
    }
}

impl From<TagError> for ApiError {
    fn from(error: TagError) -> Self {
        match error {
            TagError::Template(error) => error.into(),
            TagError::NoTags => Self::bad_request("At least one tag is required"),
            TagError::Invalid(tag) => Self::bad_request(format!(
                "Invalid tag: '{tag}', only a-z, 0-9, -, _ and . are allowed"
            )),
            TagError::Uuid(tag) => {
                Self::bad_request(format!("Invalid tag: '{tag}', tag cannot be a UUID"))
            }
            TagError::RemovesDefault => Self::bad_request("Cannot delete the 'default' tag"),
            TagError::NameHasTag => Self::bad_request(
                "Template name should not contain a tag, use the 'tags' field instead",
            ),
            TagError::Store(error) => error.into(),
            TagError::Random(error) => failed(&error),
        }
    }
}

impl From<BuildError> for ApiError {
    fn from(error: BuildError) -> Self {
        match error {
            // Clients know this status for it.
            BuildError::NotFound { build } => {
                Self::bad_request(format!("Build '{build}' not found"))
            }
            BuildError::Foreign => Self::forbidden("User does not have access to the template"),
            BuildError::TemplateNotFound { template_id } => {
                Self::not_found(format!("Template {template_id} not found"))
            }
            BuildError::NotWaiting => Self::bad_request("build is not in waiting state"),
            BuildError::NoBuilder => Self::not_implemented("building templates over the API"),
            BuildError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service is unavailable").retry_after(2)
            }
            BuildError::Store(error) => error.into(),
        }
    }
}

impl From<ContentsError> for ApiError {
    fn from(error: ContentsError) -> Self {
        match error {
            ContentsError::Resolve(error) => error.into(),
            ContentsError::NoBuilder => Self::not_implemented("looking into templates"),
            ContentsError::Missing => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
                .code("sandbox_no_compatible_node"),
            ContentsError::Failed { .. } => {
                tracing::error!(error = %chain(&error), "failed to look into a template");
                Self::internal()
            }
        }
    }
}

impl From<ArchiveError> for ApiError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            ArchiveError::CutOff { .. }
            | ArchiveError::TooLong { .. }
            | ArchiveError::NoArchive
            | ArchiveError::Body(_) => Self::bad_request(error.to_string()),
            ArchiveError::NoPlace => Self::not_implemented("uploading files"),
            ArchiveError::Disk { .. } | ArchiveError::Random(_) => failed(&error),
        }
    }
}

fn failed(error: &dyn std::error::Error) -> ApiError {
    tracing::error!(error = %chain(error), "request failed");
    ApiError::internal()
}
