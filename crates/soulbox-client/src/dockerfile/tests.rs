use super::*;

fn check(text: &str, expected: &[&[&str]]) {
    let recipe = Recipe::read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let steps: Vec<Vec<&str>> = recipe
        .steps
        .iter()
        .map(|step| {
            std::iter::once(step.kind)
                .chain(step.args.iter().map(String::as_str))
                .collect()
        })
        .collect();
    // Those that begin every Dockerfile's.
    assert_eq!(steps[..2], [["USER", "root"], ["WORKDIR", "/"]]);
    let own: Vec<_> = steps[2..]
        .iter()
        .filter(|it| !is_end(it))
        .map(Vec::as_slice)
        .collect();
    assert_eq!(own, expected, "{text}");
}

fn is_end(step: &[&str]) -> bool {
    matches!(step, ["USER", "user"] | ["WORKDIR", "/home/user"])
}

fn refused(text: &str) -> String {
    Recipe::read(text).expect_err(text).to_string()
}

#[test]
fn user_and_folder_are_set_where_the_file_sets_none() {
    let plain = Recipe::read("FROM debian:12").expect("right");
    assert_eq!(plain.image, "debian:12");
    assert_eq!(
        plain.steps,
        [
            Step::new("USER", ["root"]),
            Step::new("WORKDIR", ["/"]),
            Step::new("USER", ["user"]),
            Step::new("WORKDIR", ["/home/user"])
        ]
    );
    let own = Recipe::read("FROM x\nUSER a\nWORKDIR /b").expect("right");
    assert_eq!(
        own.steps[2..],
        [Step::new("USER", ["a"]), Step::new("WORKDIR", ["/b"])]
    );
}

#[test]
fn run_in_its_forms() {
    check(
        "FROM x\nRUN echo a && \\\n  # a comment\n  echo \"b c\"",
        &[&["RUN", "echo a &&   echo \"b c\""]],
    );
    check(
        r#"FROM x
RUN ["echo", "a b", "it's"]"#,
        &[&["RUN", r"echo 'a b' 'it'\''s'"]],
    );
    check("# escape=`\nFROM x\nRUN a `\n b", &[&["RUN", "a  b"]]);
    check(
        "FROM x\nRUN <<EOF\necho 1\necho 2\nEOF\n",
        &[&["RUN", "echo 1\necho 2\n"]],
    );
    check(
        "FROM x\nRUN --mount=type=cache,target=/c pip install x",
        &[&["RUN", "pip install x"]],
    );
}

#[test]
fn a_here_document_may_be_input() {
    check(
        "FROM x\nRUN <<'EOF' cat >/a\n$b\nEOF\n",
        &[&[
            "RUN",
            "cat >/a <<'END_OF_HERE_DOCUMENT'\n$b\nEND_OF_HERE_DOCUMENT",
        ]],
    );
    assert!(refused("FROM x\nRUN cat <<EOF >/a\nb\nEOF\n").starts_with("line 3: "));
}

#[test]
fn a_here_document_of_another_program_is_a_file() {
    let recipe =
        Recipe::read("FROM x\nRUN <<EOF\n#!/usr/bin/python3\nprint('a')\nEOF\n").expect("right");
    assert!(
        recipe.steps[2].args[0].contains(
            r"#!/usr/bin/python3
print('\''a'\'')"
        ),
        "{recipe:?}"
    );
}

#[test]
fn variables() {
    check(
        "FROM x\nENV A=1 B=\"two words\" C='$x' D=\\$y",
        &[&["ENV", "A", "1", "B", "two words", "C", r"\$x", "D", r"\$y"]],
    );
    check(
        "FROM x\nENV KEY some value",
        &[&["ENV", "KEY", "some value"]],
    );
    check("FROM x\nENV P=$PATH:/x", &[&["ENV", "P", "$PATH:/x"]]);
    check(
        "ARG V=1\nFROM x\nARG V\nARG W=2\nARG Z",
        &[&["ARG", "V", "1"], &["ARG", "W", "2"], &["ARG", "Z", ""]],
    );
    let recipe = Recipe::read("ARG V=12\nARG N=debian\nFROM $N:${V}${S:--slim}").expect("right");
    assert_eq!(recipe.image, "debian:12-slim");
    assert_eq!(
        refused("FROM x\nENV A=1 B"),
        "line 2: `B` is not a name and a value"
    );
}

#[test]
fn copies() {
    check(
        "FROM x\nCOPY --chown=a:b --chmod=0755 one two /to/\nADD [\"with space\", \"/dst\"]",
        &[
            &["COPY", "one", "/to/", "a:b", "0755"],
            &["COPY", "two", "/to/", "a:b", "0755"],
            &["COPY", "with space", "/dst", "", ""],
        ],
    );
    check(
        "FROM x\nCOPY /rooted .\nCOPY / /all",
        &[
            &["COPY", "rooted", ".", "", ""],
            &["COPY", ".", "/all", "", ""],
        ],
    );
    check(
        "FROM x\nUSER me\nCOPY <<EOF /etc/a\nit's\nEOF\n",
        &[
            &["USER", "me"],
            &[
                "RUN",
                "mkdir -p -- \"$(dirname -- /etc/a)\" && printf %s 'it'\\''s\n' >/etc/a && chmod 644 -- /etc/a && chown me:me -- /etc/a",
                "root",
            ],
        ],
    );
}

#[test]
fn what_starts() {
    let start = |text: &str| {
        Recipe::read(&format!("FROM x\n{text}"))
            .expect("right")
            .start
    };
    assert_eq!(start(""), None);
    assert_eq!(
        start("CMD serve --port 1").as_deref(),
        Some("serve --port 1")
    );
    assert_eq!(
        start("ENTRYPOINT [\"python3\", \"-m\"]\nCMD [\"http.server\", \"80 00\"]").as_deref(),
        Some("python3 -m http.server '80 00'")
    );
    assert_eq!(
        start("CMD [\"a\"]\nENTRYPOINT [\"b\"]").as_deref(),
        Some("b a")
    );
}

#[test]
fn what_steps_cannot_say_is_refused_with_its_line() {
    assert_eq!(
        refused("FROM a AS one\nRUN x\nFROM b"),
        "line 3: a second FROM: builds of more than one stage are not supported"
    );
    assert_eq!(
        refused("FROM x\nCOPY --from=y a b"),
        "line 2: COPY --from is not supported"
    );
    assert_eq!(
        refused("FROM x\nCOPY --chmod=u+x a b"),
        "line 2: --chmod=u+x: only octal modes are supported"
    );
    assert_eq!(
        refused("FROM x\nADD https://a.test/b /c"),
        "line 2: `https://a.test/b` is not in the folder; fetch it with RUN"
    );
    assert!(
        refused("FROM x\nRUN --mount=type=secret,id=a y")
            .starts_with("line 2: RUN --mount=type=secret")
    );
    assert!(refused("RUN x").starts_with("line 1: "));
    assert!(refused("FROM x\nFLY y").starts_with("line 2: "));
    assert!(Recipe::read("").is_err());
    assert!(refused("FROM x\nENV A=\"b").starts_with("line 2: "));
}

#[test]
fn what_is_passed_over_is_said() {
    let recipe = Recipe::read(
        "FROM --platform=linux/amd64 x\nHEALTHCHECK CMD a\nSHELL [\"zsh\"]\nEXPOSE 80\nLABEL a=b",
    )
    .expect("right");
    assert_eq!(
        recipe.warnings,
        [
            "line 1: FROM --platform is passed over",
            "line 2: HEALTHCHECK is passed over",
            "line 3: SHELL is passed over"
        ]
    );
}
