//! The table of guards, tests/mutations/guards.toml.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};

pub(crate) const TABLE: &str = "tests/mutations/guards.toml";

/// One entry of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) name: String,
    pub(crate) edits: Vec<Edit>,
    pub(crate) check: Check,
    /// Stands in what the check prints when it fails because of this guard.
    pub(crate) says: Option<String>,
    /// Guards of other names are not taken away together with it.
    pub(crate) batch: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) file: PathBuf,
    /// Stands in `file` once.
    pub(crate) from: String,
    pub(crate) to: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    /// A package and a filter of its tests.
    Unit { package: String, filter: String },
    /// Arguments of pytest; they need the server built.
    Attack(Vec<String>),
}

pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<Guard>> {
    let table: toml::Table = text.parse().with_context(|| TABLE.to_owned())?;
    let entries = table
        .get("guard")
        .and_then(toml::Value::as_array)
        .with_context(|| format!("{TABLE} has no [[guard]]"))?;
    entries.iter().map(guard).collect()
}

fn text(entry: &toml::Value, name: &str) -> Option<String> {
    entry
        .get(name)
        .and_then(toml::Value::as_str)
        .map(str::to_owned)
}

fn guard(entry: &toml::Value) -> anyhow::Result<Guard> {
    let name = text(entry, "name").context("a guard has no `name`")?;
    let needed = |entry: &toml::Value, field: &str| {
        text(entry, field).with_context(|| format!("guard `{name}` has no `{field}`"))
    };
    let edit = |entry: &toml::Value| {
        Ok::<_, anyhow::Error>(Edit {
            file: needed(entry, "file")?.into(),
            from: needed(entry, "from")?,
            to: needed(entry, "to")?,
        })
    };
    let also = entry.get("also").and_then(toml::Value::as_array);
    let edits = std::iter::once(entry)
        .chain(also.into_iter().flatten())
        .map(edit)
        .collect::<anyhow::Result<_>>()?;
    let check = match (text(entry, "package"), entry.get("attack")) {
        (Some(package), None) => Check::Unit {
            package,
            filter: needed(entry, "filter")?,
        },
        (None, Some(arguments)) => Check::Attack(
            arguments
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(toml::Value::as_str)
                .map(str::to_owned)
                .collect(),
        ),
        _ => bail!("guard `{name}` needs either `package` and `filter`, or `attack`"),
    };
    Ok(Guard {
        edits,
        check,
        says: text(entry, "says"),
        batch: text(entry, "batch").unwrap_or_default(),
        name,
    })
}

impl Guard {
    /// The text of a file without this guard's edit of it.
    pub(crate) fn without(&self, edit: &Edit, original: &str) -> anyhow::Result<String> {
        let found = original.matches(&edit.from).count();
        ensure!(
            found == 1 && edit.from != edit.to,
            "guard `{}`: its text stands {found} times in {}",
            self.name,
            edit.file.display()
        );
        Ok(original.replacen(&edit.from, &edit.to, 1))
    }
}

impl Check {
    pub(crate) fn title(&self) -> String {
        match self {
            Self::Unit { package, filter } => format!("{package} {filter}"),
            Self::Attack(arguments) => arguments.join(" "),
        }
    }

    pub(crate) fn is_attack(&self) -> bool {
        matches!(self, Self::Attack(_))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const ONE: &str = "[[guard]]\nname = \"n\"\nfile = \"f\"\nfrom = \"a\"\nto = \"\"\n";

    #[test]
    fn a_guard_has_one_test() {
        let unit = parse(&format!("{ONE}package = \"p\"\nfilter = \"t\"\n")).unwrap();
        assert_eq!(unit[0].check.title(), "p t");
        let attack = parse(&format!("{ONE}attack = [\"x.py\", \"-k\", \"y\"]\n")).unwrap();
        assert_eq!(attack[0].check.title(), "x.py -k y");
        assert!(parse(ONE).is_err());
        assert!(parse(&format!("{ONE}package = \"p\"\n")).is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn a_guard_may_stand_in_several_places() {
        let text = format!(
            "{ONE}attack = [\"x\"]\n[[guard.also]]\nfile = \"g\"\nfrom = \"b\"\nto = \"c\"\n"
        );
        let guard = &parse(&text).unwrap()[0];
        assert_eq!(guard.edits.len(), 2);
        assert_eq!(guard.without(&guard.edits[1], "b").unwrap(), "c");
        assert!(parse(&text.replace("from = \"b\"\n", "")).is_err());
    }

    #[test]
    fn only_a_text_that_stands_there_once_can_go() {
        let guard = &parse(&format!("{ONE}attack = [\"x\"]\n")).unwrap()[0];
        let without = |text| guard.without(&guard.edits[0], text);
        assert_eq!(without("bac").unwrap(), "bc");
        assert!(without("b").is_err() && without("aa").is_err());
    }

    /// The table and the sources must not drift apart between two soaks.
    #[test]
    fn every_guard_of_the_table_stands_in_its_file() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for guard in parse(&fs::read_to_string(workspace.join(TABLE)).unwrap()).unwrap() {
            for edit in &guard.edits {
                let text = fs::read_to_string(workspace.join(&edit.file)).unwrap();
                guard.without(edit, &text).unwrap();
            }
        }
    }
}
