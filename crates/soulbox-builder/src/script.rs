//! What is run inside for steps other than RUN, as root of the sandbox. Texts of clients are quoted, never pasted.

/// Where the archive of a COPY lies meanwhile; nobody but the step's own sandbox ever sees it.
pub(crate) const ARCHIVE: &str = "/.soulbox-copy/archive";

/// One word of a shell, whatever is in the text.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Makes a folder; only what was not there before gets the owner.
pub(crate) fn workdir(path: &str, owner: &str) -> String {
    format!(
        r#"set -euo pipefail
path={path} owner={owner}
{MAKE_FOLDERS}
make_folders "$path" "$owner""#,
        path = quoted(path),
        owner = quoted(owner),
    )
}

/// Makes a user with a home where there is none; `privileged` ones may become root without a password.
pub(crate) fn user(name: &str, privileged: bool) -> String {
    let privileges = if privileged {
        r#"usermod -aG sudo "$name"
passwd -d "$name" >/dev/null
printf '%s ALL=(ALL:ALL) NOPASSWD: ALL\n' "$name" >"/etc/sudoers.d/$name"
chmod 440 "/etc/sudoers.d/$name""#
    } else {
        ""
    };
    format!(
        r#"set -euo pipefail
name={name}
if known=$(getent passwd -- "$name"); then
  # A number finds its user, whose name is what every command of the template will be run by.
  [ "${{known%%:*}}" = "$name" ] || {{ echo "'$name' is the number of the user '${{known%%:*}}': give the name" >&2; exit 1; }}
else
  group=(); getent group -- "$name" >/dev/null && group=(--gid "$name")
  useradd --create-home --shell /bin/bash "${{group[@]}}" -- "$name"
fi
{privileges}"#,
        name = quoted(name),
    )
}

/// Prints the values, one after the other, each ended by a NUL; variables are replaced as a login shell of root knows them.
pub(crate) fn expand(values: &[String]) -> String {
    let words: Vec<_> = values.iter().map(|value| expandable(value)).collect();
    format!("printf '%s\\0' {}", words.join(" "))
}

/// A word in which only variables mean something.
fn expandable(value: &str) -> String {
    let mut word = String::from('"');
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            // `\$` is a dollar already; any other backslash is itself.
            '\\' if characters.peek() == Some(&'$') => {
                characters.next();
                word.push_str("\\$");
            }
            '"' | '`' | '\\' => {
                word.push('\\');
                word.push(character);
            }
            '$' => match characters.peek() {
                Some('{' | '_' | 'a'..='z' | 'A'..='Z') => word.push('$'),
                _ => word.push_str("\\$"),
            },
            _ => word.push(character),
        }
    }
    word.push('"');
    word
}

/// Unpacks `archive` and puts what `source` means there in its place, by the rules of a Dockerfile's COPY.
pub(crate) fn copy(
    archive: &str,
    source: &str,
    destination: &str,
    owner: &str,
    mode: Option<&str>,
) -> String {
    format!(
        r#"set -euo pipefail
archive={archive} source={source} destination={destination} owner={owner} mode={mode}
{MAKE_FOLDERS}
{COPY}"#,
        archive = quoted(archive),
        source = quoted(source),
        destination = quoted(destination),
        owner = quoted(owner),
        mode = quoted(mode.unwrap_or("")),
    )
}

const MAKE_FOLDERS: &str = r#"make_folders() {
  local missing=() path=${1:-/} made
  while [ ! -d "$path" ]; do missing=("$path" "${missing[@]}"); path=${path%/*}; path=${path:-/}; done
  for made in "${missing[@]}"; do mkdir -- "$made"; chown -- "$2" "$made"; done
}"#;

/// What is unpacked has its owner at once: a later chown would take capabilities and setuid bits away, so `tar` runs as that user, with the
/// privileges of root over files. What is not there yet is then moved, and only what is there already is written over, by `tar` too: it goes
/// through links to folders and leaves folders as they are. Holes, hard links, attributes and capabilities come along.
const COPY: &str = r#"room=${archive%/*}; tree=$room/tree; single=$room/single
trap 'rm -rf -- "$room"' EXIT
user=${owner%%:*}; group=${owner#*:}
uid=$(id -u -- "$user" 2>/dev/null || printf %s "$user"); gid=$(getent group "$group" | cut -d: -f3 || true); gid=${gid:-$group}
for number in "$uid" "$gid"; do case $number in ''|*[!0-9]*) printf "there is no user or group '%s'\n" "$number" >&2; exit 1;; esac; done
mkdir -m 700 -- "$tree" "$single"
caps=+chown,+dac_override,+fowner,+fsetid,+setfcap
setpriv --reuid="$uid" --regid="$gid" --clear-groups --inh-caps="$caps" --ambient-caps="$caps" \
  tar -xpf "$archive" -C "$tree" --no-same-owner --xattrs --xattrs-include='*'
rm -f -- "$archive"
cd -- "$tree"
shopt -s dotglob globstar
source=${source#./}; source=${source%/}; source=${source:-.}
case "/$source/" in */../*) printf '%s: leads out of the archive\n' "$source" >&2; exit 1;; esac
if [ -e "$source" ] || [ -L "$source" ]; then found=("$source"); else
  IFS=; shopt -s nullglob; matches=($source); shopt -u nullglob; unset IFS
  found=(); for one in "${matches[@]}"; do if [ -e "$one" ] || [ -L "$one" ]; then found+=("$one"); fi; done
fi
if [ ${#found[@]} -eq 0 ]; then printf '%s: no such file in the uploaded archive\n' "$source" >&2; exit 1; fi
place() {
  local folder=$1 target=$2 new=() old=() name; shift 2
  for name; do if [ -e "$target/$name" ] || [ -L "$target/$name" ]; then old+=("./$name"); else new+=("./$name"); fi; done
  if [ ${#new[@]} -gt 0 ]; then (cd -- "$folder" && printf '%s\0' "${new[@]}" | xargs -0 mv -t "$target" --); fi
  if [ ${#old[@]} -gt 0 ]; then
    printf '%s\0' "${old[@]}" |
      tar -cf - --xattrs --xattrs-include='*' -S --owner="o:$uid" --group="o:$gid" -C "$folder" --null -T - |
      tar -xpf - --same-owner --numeric-owner --xattrs --xattrs-include='*' --no-overwrite-dir --keep-directory-symlink -C "$target"
  fi
}
into=; if [ ${#found[@]} -gt 1 ] || [ "${destination%/}" != "$destination" ] || [ -d "$destination" ]; then into=1; fi
target=${destination%/}; target=${target:-/}
for one in "${found[@]}"; do
  if [ -n "$mode" ] && [ ! -L "$one" ]; then chmod -R -- "$mode" "$one"; fi
  if [ -d "$one" ] && [ ! -L "$one" ]; then
    if [ ! -d "$target" ]; then
      make_folders "${target%/*}" "$uid:$gid"
      mkdir -- "$target"; chown -- "$uid:$gid" "$target"; chmod --reference="$one" -- "$target"
    fi
    names=("$one"/*); names=("${names[@]#"$one"/}")
    if [ -e "$one/${names[0]}" ] || [ -L "$one/${names[0]}" ]; then place "$one" "$target" "${names[@]}"; fi
  elif [ -n "$into" ]; then
    make_folders "$target" "$uid:$gid"
    case $one in */*) folder=${one%/*};; *) folder=.;; esac
    place "$folder" "$target" "${one##*/}"
  else
    make_folders "${target%/*}" "$uid:$gid"
    mv -T -- "$one" "$single/${target##*/}"
    folder=${target%/*}; place "$single" "${folder:-/}" "${target##*/}"
  fi
done"#;

/// Files that sandboxes of a template find, and what tells which one it is.
pub(crate) fn finalize(template_id: &str, build_id: &str) -> String {
    format!(
        r#"set -euo pipefail
printf 'ENV_ID=%s\nTEMPLATE_ID=%s\nBUILD_ID=%s\n' {template} {template} {build} >/.e2b
id -u user >/dev/null 2>&1 || useradd --create-home --shell /bin/bash user
mkdir -p /code && chmod 777 /code"#,
        template = quoted(template_id),
        build = quoted(build_id),
    )
}

#[cfg(test)]
mod tests;
