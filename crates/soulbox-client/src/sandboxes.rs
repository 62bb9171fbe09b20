//! Calls that are about sandboxes.

use reqwest::Method;
use soulbox_wire::rest;

use crate::client::{Client, ClientError, path};

impl Client {
    /// The newest snapshot of a sandbox, if it has one.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn latest_snapshot(
        &self,
        sandbox_id: &str,
    ) -> Result<Option<rest::SnapshotInfo>, ClientError> {
        // An ID that is none is refused as a parameter; asking for it says so in the words of other calls.
        let _detail: serde_json::Value = self.get(&path(&["sandboxes", sandbox_id])).await?;
        let query = format!("/snapshots?sandboxID={sandbox_id}&limit=1");
        let newest: Vec<rest::SnapshotInfo> = self.get(&query).await?;
        Ok(newest.into_iter().next())
    }

    /// Takes a running sandbox back to a snapshot of itself.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn rollback(&self, sandbox_id: &str, snapshot_id: &str) -> Result<(), ClientError> {
        let body = rest::RollbackSandbox {
            snapshot_id: Some(snapshot_id.to_owned()),
        };
        let path = path(&["sandboxes", sandbox_id, "rollback"]);
        self.call(Method::POST, &path, Some(&body)).await
    }
}
