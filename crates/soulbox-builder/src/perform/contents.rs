//! What is in a build: a sandbox of its layers lists the packages, so nothing of it is read anywhere else.

use std::time::Duration;

use soulbox_control::{Contents, Package, PackageKind};
use soulbox_types::BuildId;

use super::{Steps, as_root, collect};
use crate::bench::BenchError;

const WITHIN: Duration = Duration::from_secs(30);
/// Of a name or a version. What is longer is no package's.
const LONGEST: usize = 256;

/// A line for each package: kind, name and version between tabs. Python's and Node's packages are told by their folders, so that neither has
/// to be there.
const LIST: &str = r#"dpkg-query -W -f 'debian\t${Package}\t${Version}\n' 2>/dev/null
for folder in /usr/lib/python3/dist-packages /usr/local/lib/python3*/*-packages /home/*/.local/lib/python3*/site-packages; do
  for one in "$folder"/*.dist-info "$folder"/*.egg-info; do
    [ -e "$one" ] || continue
    one=${one##*/}; one=${one%.*-info}; rest=${one#*-}
    printf 'python\t%s\t%s\n' "${one%%-*}" "${rest%%-*}"
  done
done
for one in /usr/lib/node_modules /usr/local/lib/node_modules; do
  for file in "$one"/*/package.json "$one"/@*/*/package.json; do
    [ -f "$file" ] || continue
    name=${file#"$one"/}; name=${name%/package.json}
    printf 'node\t%s\t%s\n' "$name" "$(sed -n 's/^ *"version": *"\([^"]*\)".*/\1/p' "$file" | head -n 1)"
  done
done
exit 0"#;

impl Steps {
    pub(super) async fn list_contents(
        &self,
        build_id: &BuildId,
    ) -> Result<Option<Contents>, String> {
        let told = |error: BenchError| error.to_string();
        let known = self.benches.build(build_id).await.map_err(told)?;
        let Some(known) = known else {
            return Ok(None);
        };
        let _permit = self.places.take(None).await;
        let started = self.benches.start(build_id, &known.layers, &known.limits);
        let bench = started.await.map_err(told)?;
        let mut command = as_root(LIST.to_owned());
        command.within = WITHIN;
        let mut printed = Vec::new();
        let exit = collect(&*bench, &command, &mut printed).await;
        bench.end().await;
        let exit = exit.map_err(told)?;
        if exit.code != 0 {
            return Err(exit.status);
        }
        Ok(Some(Contents {
            layers: known.layers,
            packages: packages(&String::from_utf8_lossy(&printed)),
        }))
    }
}

/// The packages of the lines, sorted; a line of another form is none.
fn packages(text: &str) -> Vec<Package> {
    let mut packages: Vec<_> = text.lines().filter_map(package).collect();
    packages.sort();
    packages.dedup();
    packages
}

fn package(line: &str) -> Option<Package> {
    let mut fields = line.split('\t');
    let kind = match fields.next()? {
        "debian" => PackageKind::Debian,
        "python" => PackageKind::Python,
        "node" => PackageKind::Node,
        _ => return None,
    };
    let (name, version) = (fields.next()?, fields.next()?);
    let is_plain = |text: &str| text.len() <= LONGEST && !text.chars().any(char::is_control);
    (fields.next().is_none() && !name.is_empty() && is_plain(name) && is_plain(version)).then(
        || Package {
            kind,
            name: name.to_owned(),
            version: version.to_owned(),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_another_form_are_no_packages() {
        let long = format!("debian\t{}\t1", "x".repeat(257));
        let text = format!(
            "debian\tcurl\t1:7\nsomething\npython\ta\nnode\tb\t1\tmore\ndebian\t\t1\nruby\tc\t1\ndebian\t\x1b[2J\t1\n{long}\nnode\tnpm\t\ndebian\tcurl\t1:7\n"
        );
        let shown: Vec<_> = packages(&text)
            .into_iter()
            .map(|it| format!("{:?} {} {}", it.kind, it.name, it.version))
            .collect();
        assert_eq!(shown, ["Debian curl 1:7", "Node npm "]);
    }
}
