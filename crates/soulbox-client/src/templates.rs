//! Calls that are about templates and their builds.

use std::time::Duration;

use reqwest::Method;
use soulbox_wire::rest;

use crate::client::{Client, ClientError, path};

/// The server gives up then as well.
const UPLOAD_WITHIN: Duration = Duration::from_secs(3600);

impl Client {
    /// All templates of the team, newest first.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn templates(&self) -> Result<Vec<rest::Template>, ClientError> {
        self.get("/templates").await
    }

    /// Whose ID is `reference`, an ID or a name, with or without a tag.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn template_of(&self, reference: &str) -> Result<rest::TemplateAlias, ClientError> {
        self.get(&path(&["templates", "aliases", reference])).await
    }

    /// A template with its newest builds.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn template(&self, id: &str) -> Result<rest::TemplateWithBuilds, ClientError> {
        self.get(&path(&["templates", id])).await
    }

    /// The layers and packages of the build that a create from `reference` would take. An extension of SoulBox.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn template_contents(
        &self,
        reference: &str,
    ) -> Result<rest::TemplateContents, ClientError> {
        self.get(&path(&["templates", reference, "contents"])).await
    }

    /// Deletes a template, by its ID or name, with its builds.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn delete_template(&self, reference: &str) -> Result<(), ClientError> {
        let path = path(&["templates", reference]);
        self.call(Method::DELETE, &path, None::<&()>).await
    }

    /// Lets every team use the template, or only its own.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn set_public(
        &self,
        reference: &str,
        public: bool,
    ) -> Result<rest::TemplateNames, ClientError> {
        let path = path(&["v2", "templates", reference]);
        let body = rest::UpdateTemplate {
            public: Some(public),
        };
        self.call(Method::PATCH, &path, Some(&body)).await
    }

    /// Asks for a build, which then waits to be started.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn request_build(
        &self,
        body: &rest::NewTemplate,
    ) -> Result<rest::RequestedTemplate, ClientError> {
        self.call(Method::POST, "/v3/templates", Some(body)).await
    }

    /// Where files of a COPY step go, by their digest, and whether they are there.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn files_link(
        &self,
        template_id: &str,
        hash: &str,
    ) -> Result<rest::FilesLink, ClientError> {
        self.get(&path(&["templates", template_id, "files", hash]))
            .await
    }

    /// Uploads an archive of `length` bytes to such a link.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn upload(
        &self,
        url: &str,
        archive: tokio::fs::File,
        length: u64,
    ) -> Result<(), ClientError> {
        let body = reqwest::Body::from(archive);
        self.put(url, body, length, UPLOAD_WITHIN).await
    }

    /// Starts a build that waits.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn start_build(
        &self,
        template_id: &str,
        build_id: &str,
        body: &rest::StartBuild,
    ) -> Result<(), ClientError> {
        let path = path(&["v2", "templates", template_id, "builds", build_id]);
        self.call(Method::POST, &path, Some(body)).await
    }

    /// How far a build is, and a page of its log that begins at line `offset`.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn build_state(
        &self,
        template_id: &str,
        build_id: &str,
        offset: usize,
    ) -> Result<rest::BuildState, ClientError> {
        let path = path(&["templates", template_id, "builds", build_id, "status"]);
        self.get(&format!("{path}?logsOffset={offset}")).await
    }
}
