//! Variables of one execution for a kernel that has no way to be told of them: code around it, in the kernel's language.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::kernelspec::Kernelspec;

/// Executed silently, so that the lines of the client's own code keep their numbers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Around {
    pub(crate) before: String,
    pub(crate) after: String,
}

/// `None`: not known how, in this language.
pub(crate) fn around(spec: &Kernelspec, variables: &BTreeMap<String, String>) -> Option<Around> {
    let inherited = |name: &str| {
        spec.env
            .get(name)
            .cloned()
            .or_else(|| std::env::var(name).ok())
    };
    let (set, unset): (Statement, Statement) = match spec.language.to_lowercase().as_str() {
        "python" => (
            |name, value| format!("__import__('os').environ[{name}] = {value}\n"),
            |name, _| format!("__import__('os').environ.pop({name}, None)\n"),
        ),
        "r" => (
            |name, value| format!("Sys.setenv({name} = {value})\n"),
            |name, _| format!("Sys.unsetenv({name})\n"),
        ),
        _ => return None,
    };
    let mut around = Around {
        before: String::new(),
        after: String::new(),
    };
    for (name, value) in variables {
        around.before += &set(&quoted(name), &quoted(value));
        around.after += &match inherited(name) {
            Some(value) => set(&quoted(name), &quoted(&value)),
            None => unset(&quoted(name), ""),
        };
    }
    Some(around)
}

/// Of a quoted name and a quoted value.
type Statement = fn(&str, &str) -> String;

/// A string as Python and R both read it. NUL does not come here: requests with it are refused.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_ascii_control() => {
                // Three octal digits mean the same in both, whatever follows.
                write!(quoted, "\\{:03o}", u32::from(control)).expect("a String takes everything");
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(language: &str) -> Kernelspec {
        let text =
            format!(r#"{{"argv": ["x"], "language": "{language}", "env": {{"KEPT": "before"}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn variables() -> BTreeMap<String, String> {
        [("KEPT", "now"), ("SOULBOX_NEW", "a\"\\\n1é")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn variables_are_set_and_taken_back() {
        let python = around(&spec("python"), &variables()).unwrap();
        assert_eq!(
            python.before,
            "__import__('os').environ[\"KEPT\"] = \"now\"\n__import__('os').environ[\"SOULBOX_NEW\"] = \"a\\\"\\\\\\0121é\"\n"
        );
        assert_eq!(
            python.after,
            "__import__('os').environ[\"KEPT\"] = \"before\"\n__import__('os').environ.pop(\"SOULBOX_NEW\", None)\n"
        );
        let r = around(&spec("R"), &variables()).unwrap();
        assert!(
            r.after.ends_with("Sys.unsetenv(\"SOULBOX_NEW\")\n"),
            "{}",
            r.after
        );
        assert_eq!(around(&spec("julia"), &variables()), None);
    }
}
