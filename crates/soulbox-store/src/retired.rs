//! [`RetiredBuilds`] on both databases, as [`crate::templates`] is made.

use async_trait::async_trait;
use soulbox_control::{RetiredBuilds, StoreError, UnusedBuild};
use soulbox_types::{BuildId, UnixMillis};

use crate::rows::{self, Columns, number};
use crate::store::Told;
use crate::{PostgresStore, SqliteStore, failed};

/// A build whose status and tags have not changed since `$1`, without a tag: the newest ready build of each has it.
const UNUSED: &str = "SELECT build_id, template_id, updated_at FROM builds WHERE status IN ('ready', 'failed') AND updated_at < $1 \
    AND NOT EXISTS (SELECT 1 FROM assignments AS own WHERE builds.status = 'ready' AND own.build_id = builds.build_id \
        AND NOT EXISTS (SELECT 1 FROM assignments AS newer JOIN builds AS later ON later.build_id = newer.build_id \
            WHERE newer.template_id = own.template_id AND newer.tag = own.tag \
            AND newer.assignment_number > own.assignment_number AND later.status = 'ready')) \
    AND build_id NOT IN (SELECT build_id FROM sandboxes WHERE state <> 'dead') \
    AND build_id NOT IN (SELECT host_build_id FROM sandboxes WHERE state <> 'dead' AND host_build_id IS NOT NULL) \
    AND build_id NOT IN (SELECT build_id FROM snapshots) \
    AND build_id NOT IN (SELECT host_build_id FROM snapshots) ORDER BY updated_at, build_id";

/// What refers to something comes before it.
const DELETE: [&str; 5] = [
    "INSERT INTO forgotten_builds (build_id) VALUES ($1) ON CONFLICT (build_id) DO NOTHING",
    "DELETE FROM assignments WHERE build_id = $1",
    "DELETE FROM build_lines WHERE build_id = $1",
    "DELETE FROM build_details WHERE build_id = $1",
    "DELETE FROM builds WHERE build_id = $1",
];

/// What [`UNUSED`] has found, without those that are listed.
fn unused(found: &[impl Columns], but: &[BuildId]) -> Result<Vec<UnusedBuild>, sqlx::Error> {
    let mut unused = Vec::new();
    for row in found {
        let build = UnusedBuild {
            build_id: rows::parsed(row, "build_id")?,
            template_id: rows::parsed(row, "template_id")?,
            unused_since: rows::moment(row, "updated_at")?,
        };
        if !but.contains(&build.build_id) {
            unused.push(build);
        }
    }
    Ok(unused)
}

macro_rules! retired_builds {
    ($store:ty) => {
        #[async_trait]
        impl RetiredBuilds for $store {
            async fn unused_builds(
                &self,
                unused_since: UnixMillis,
                but: &[BuildId],
            ) -> Result<Vec<UnusedBuild>, StoreError> {
                const ACTION: &str = "read which builds nobody uses";
                let found = sqlx::query(UNUSED)
                    .bind(number(unused_since.0))
                    .fetch_all(&mut *self.read().await.map_err(failed(ACTION))?)
                    .await
                    .map_err(failed(ACTION))?;
                unused(&found, but).map_err(failed(ACTION))
            }

            async fn retire_builds(
                &self,
                unused_since: UnixMillis,
                but: &[BuildId],
            ) -> Result<Vec<UnusedBuild>, StoreError> {
                const ACTION: &str = "delete builds that nobody uses";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let found = sqlx::query(UNUSED)
                    .bind(number(unused_since.0))
                    .fetch_all(&mut *transaction)
                    .await
                    .map_err(failed(ACTION))?;
                let unused = unused(&found, but).map_err(failed(ACTION))?;
                if unused.is_empty() {
                    return Ok(unused);
                }
                for build in &unused {
                    for statement in DELETE {
                        sqlx::query(statement)
                            .bind(build.build_id.as_str())
                            .execute(&mut *transaction)
                            .await
                            .map_err(failed(ACTION))?;
                    }
                }
                self.commit(transaction, Told::Templates)
                    .await
                    .map_err(failed(ACTION))?;
                Ok(unused)
            }

            async fn forgotten_builds(&self) -> Result<Vec<BuildId>, StoreError> {
                const ACTION: &str = "read which builds are deleted";
                let found = sqlx::query("SELECT build_id FROM forgotten_builds ORDER BY build_id")
                    .fetch_all(&mut *self.read().await.map_err(failed(ACTION))?)
                    .await
                    .map_err(failed(ACTION))?;
                let builds = found.iter().map(|row| rows::parsed(row, "build_id"));
                builds.collect::<Result<_, _>>().map_err(failed(ACTION))
            }

            async fn builds_are_forgotten(&self, builds: &[BuildId]) -> Result<(), StoreError> {
                const ACTION: &str = "note that builds are forgotten";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                for build_id in builds {
                    sqlx::query("DELETE FROM forgotten_builds WHERE build_id = $1")
                        .bind(build_id.as_str())
                        .execute(&mut *transaction)
                        .await
                        .map_err(failed(ACTION))?;
                }
                // Nobody else has to hear of it.
                transaction.commit().await.map_err(failed(ACTION))
            }
        }
    };
}

retired_builds!(SqliteStore);
retired_builds!(PostgresStore);
