//! `soulbox template gc`: versions of templates that nobody uses any more, and layers that nobody needs.
//!
//! Which versions go is the server's rule and setting, and it deletes them by itself within half an hour; this does so at once. What stands on
//! layers only the agent knows.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use serde_json::{Value, json};
use soulbox_build::bottom;
use soulbox_control::{UnusedBuild, clock, snapshot_of_build};
use soulbox_pool::{BtrfsPool, LayerDigest, Pool};
use soulbox_types::{BuildId, UnixMillis};
use soulbox_wire::host::{Hello, HostSnapshot, Reply, Request};

use super::pool::{pool_failure, with_pool};
use super::{print, print_json};
use crate::commands::ask::ask;
use crate::commands::db::Records;
use crate::commands::{block_on, require_root};
use crate::failure::Failure;
use crate::settings::Settings;

/// What a version takes that nothing else does.
#[derive(Default)]
struct Own {
    /// Layers of no other version; one that several unused ones have is the first one's.
    layers: Vec<LayerDigest>,
    /// Of the layers and of the snapshot that sandboxes begin with.
    bytes: u64,
}

type Owns = HashMap<BuildId, Own>;

pub(super) fn run(
    settings: &Settings,
    dry_run: bool,
    older_than: u64,
    as_json: bool,
) -> Result<(), Failure> {
    require_root("template gc")?;
    let hello = hello(settings)?;
    if hello.settings.database_url.is_some() != settings.database_url.is_some() {
        let cause = anyhow!("the server has its records in another database than this command");
        return Err(Failure::new(cause)
            .hint("give this command the SOULBOX_DATABASE_URL or config file that serve has"));
    }
    let snapshots = match ask(settings, Request::Snapshots, refused)? {
        Reply::Snapshots(snapshots) => snapshots,
        _ => return Err(unexpected()),
    };
    let (builds, owns) = block_on(versions(settings, &hello, &snapshots, dry_run))?;
    if !dry_run {
        forget(settings, &builds)?;
    }
    let request = Request::CollectLayers {
        older_than,
        dry_run,
    };
    let Reply::Layers(layers) = ask(settings, request, refused)? else {
        return Err(unexpected());
    };
    let mut layers: BTreeSet<String> = layers.into_iter().collect();
    if dry_run {
        let with_builds = builds.iter().filter_map(|it| owns.get(&it.build_id));
        let with_builds = with_builds.flat_map(|own| own.layers.clone()).collect();
        with_pool(settings, "gc", |pool, _| {
            layers.extend(older(pool, with_builds, older_than)?);
            Ok(())
        })?;
    }
    show(&builds, &owns, &layers, dry_run, as_json)
}

fn hello(settings: &Settings) -> Result<Hello, Failure> {
    match ask(settings, Request::Hello, refused)? {
        Reply::Hello(hello) => Ok(*hello),
        _ => Err(unexpected()),
    }
}

/// The versions that go and what each takes. They are deleted from the records, unless it is a look.
async fn versions(
    settings: &Settings,
    hello: &Hello,
    snapshots: &[HostSnapshot],
    dry_run: bool,
) -> Result<(Vec<UnusedBuild>, Owns), Failure> {
    let (since, installed) = rule(hello)?;
    let records = Records::open_as_is(settings).await?;
    let done = async {
        let store = records.retired_builds();
        let unused = store.unused_builds(since, &installed).await?;
        let mut owns = Owns::new();
        with_pool(settings, "gc", |pool, _| {
            owns = owned(pool, &unused, snapshots).map_err(pool_failure)?;
            Ok(())
        })?;
        if dry_run {
            return Ok((unused, owns));
        }
        let retired = store.retire_builds(since, &installed).await?;
        records.announce().await?;
        Ok((retired, owns))
    };
    let done = done.await;
    records.close().await;
    done
}

/// Since when a version must be unused to go, and which stay whatever tags say.
fn rule(hello: &Hello) -> Result<(UnixMillis, Vec<BuildId>), Failure> {
    let kept = Duration::from_secs(hello.settings.keep_builds).as_millis();
    let kept = u64::try_from(kept).unwrap_or(u64::MAX);
    let installed = hello.templates.iter().map(|it| it.build_id.parse());
    let installed: Result<Vec<_>, soulbox_types::IdError> = installed.collect();
    let installed = installed.map_err(Failure::new)?;
    Ok((UnixMillis(clock::wall().0.saturating_sub(kept)), installed))
}

/// Lets the agent forget deleted versions. What it cannot forget now, the server asks of it again.
fn forget(settings: &Settings, builds: &[UnusedBuild]) -> Result<(), Failure> {
    for build in builds {
        let build_id = build.build_id.to_string();
        ask(settings, Request::DeleteBuild { build_id }, refused)?;
    }
    Ok(())
}

fn owned(
    pool: &BtrfsPool,
    unused: &[UnusedBuild],
    snapshots: &[HostSnapshot],
) -> Result<Owns, soulbox_pool::PoolError> {
    let of_snapshots: HashMap<_, _> = snapshots
        .iter()
        .map(|it| (it.snapshot_id.as_str(), it.disk_bytes + it.image_bytes))
        .collect();
    let is_unused = |build_id: &str| unused.iter().any(|it| it.build_id.as_str() == build_id);
    let mut claimed = BTreeSet::new();
    for manifest in pool.builds()?.into_iter().chain(pool.templates()?) {
        if !is_unused(&manifest.build_id) {
            claimed.extend(manifest.layers);
        }
    }
    let mut owns = Owns::new();
    for build in unused {
        let mut own = Own::default();
        let manifest = pool.build(build.build_id.as_str())?;
        for layer in manifest.map_or(Vec::new(), |it| it.layers) {
            if !claimed.insert(layer.clone()) {
                continue;
            }
            // One that somebody collects meanwhile takes nothing.
            own.bytes += bottom::measure(&pool.layer_path(&layer)).map_or(0, |size| size.bytes);
            own.layers.push(layer);
        }
        let snapshot = snapshot_of_build(&build.build_id);
        own.bytes += of_snapshots.get(snapshot.as_str()).copied().unwrap_or(0);
        owns.insert(build.build_id.clone(), own);
    }
    Ok(owns)
}

/// Those of the layers that a collection would take.
fn older(
    pool: &BtrfsPool,
    layers: BTreeSet<LayerDigest>,
    older_than: u64,
) -> Result<Vec<String>, Failure> {
    let all = pool.list_layers().map_err(pool_failure)?;
    let now = SystemTime::now();
    let is_old = |since: SystemTime| {
        let age = now.duration_since(since);
        age.is_ok_and(|age| age >= Duration::from_secs(older_than))
    };
    let found = all
        .into_iter()
        .filter(|(layer, since)| layers.contains(layer) && is_old(*since));
    Ok(found.map(|(layer, _)| layer.into()).collect())
}

fn show(
    builds: &[UnusedBuild],
    owns: &Owns,
    layers: &BTreeSet<String>,
    dry_run: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let bytes = |build: &UnusedBuild| owns.get(&build.build_id).map(|own| own.bytes);
    if as_json {
        let build = |it: &UnusedBuild| {
            json!({
                "buildID": it.build_id.as_str(),
                "templateID": it.template_id.as_str(),
                "unusedSince": it.unused_since.0,
                "bytes": bytes(it),
            })
        };
        let builds: Vec<Value> = builds.iter().map(build).collect();
        return print_json(&json!({ "deleted": !dry_run, "builds": builds, "layers": layers }));
    }
    eprintln!(
        "{} builds that nobody uses and {} layers that nobody needs {}",
        builds.len(),
        layers.len(),
        if dry_run {
            "would be deleted"
        } else {
            "were deleted"
        }
    );
    let now = clock::wall();
    let mut text = String::new();
    for build in builds {
        text.push_str(&format!(
            "build {} of template {}, unused for {}{}\n",
            build.build_id,
            build.template_id,
            age(now.0.saturating_sub(build.unused_since.0)),
            bytes(build).map_or(String::new(), |it| format!(
                ", {} KiB",
                it.div_ceil(1 << 10)
            )),
        ));
    }
    for layer in layers {
        text.push_str(&format!("layer {layer}\n"));
    }
    print(&text)
}

/// In its largest unit of which there are two.
fn age(millis: u64) -> String {
    let seconds = millis / 1000;
    for (unit, length) in [("days", 86_400), ("hours", 3600), ("minutes", 60)] {
        if seconds >= 2 * length {
            return format!("{} {unit}", seconds / length);
        }
    }
    format!("{seconds} seconds")
}

fn refused(error: crate::rpc::RpcError) -> Failure {
    Failure::new(error).hint("the server's log says more")
}

fn unexpected() -> Failure {
    let cause = anyhow!("the agent's answer is of another kind");
    Failure::new(cause).hint("is the server of this version?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        let told = [0, 119_999, 120_000, 7_199_999, 7_200_000, 200_000_000].map(age);
        let expected = ["0 seconds", "119 seconds", "2 minutes", "119 minutes"];
        assert_eq!(told[..4], expected);
        assert_eq!(told[4..], ["2 hours", "2 days"]);
    }
}
