//! Who keeps a mount from being given back, for a message that an operator can do something with.

use std::fs;
use std::path::Path;

/// No longer list is of use.
const MOST: usize = 8;

/// Programs that have something below `mounted` open, as root, work directory, program or mapping, and mounts on top of it. Empty where
/// nothing shows, as when what was open is being closed. Best effort: what ends meanwhile is left out.
pub(crate) fn of(mounted: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        if holds(&process.path(), mounted) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (pid {pid})", name.trim_end()));
        }
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let inner =
        points.filter(|point| Path::new(point) != mounted && Path::new(point).starts_with(mounted));
    found.extend(inner.map(|point| format!("a mount at `{point}`")));
    found.truncate(MOST);
    found
}

fn holds(process: &Path, mounted: &Path) -> bool {
    let leads = |link: &Path| fs::read_link(link).is_ok_and(|path| path.starts_with(mounted));
    let any_of = |folder: &str| {
        let mut links = fs::read_dir(process.join(folder))
            .into_iter()
            .flatten()
            .flatten();
        links.any(|link| leads(&link.path()))
    };
    ["cwd", "root", "exe"]
        .iter()
        .any(|name| leads(&process.join(name)))
        || any_of("fd")
        || any_of("map_files")
}
